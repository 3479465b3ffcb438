"""From an experiment's results to the text of one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from train_client.report.canvas import Picture
from train_client.report.claims import claims
from train_client.report.configs import arm_configs, base_text
from train_client.report.curves import cost_curves, gradient_curves, loss_curves
from train_client.report.evidence import Evidence
from train_client.report.gallery import gallery
from train_client.report.groups import ablations
from train_client.report.lanes import timeline
from train_client.report.numbers import interval, percent, plural, share_interval, signed
from train_client.report.paper_tables import has_the_papers_sets, paper_tables
from train_client.report.shares import by_source, forest
from train_client.report.tables import cost_table, main_table, source_table
from train_client.report.verdict import hardest, judge

_MOST_MISSING = 8


@dataclass(frozen=True)
class Fact:
    """A number that stands large, what it is, and its interval."""

    value: str
    title: str
    note: str


def render(evidence: Evidence) -> str:
    """The page; everything that comes from data is escaped."""
    loader = jinja2.PackageLoader("train_client.report", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = environment.loader.get_source(environment, "page.css")[0] if environment.loader else ""
    summary = evidence.summary
    return environment.get_template("page.html.jinja").render(
        css=Markup(css),
        summary=summary,
        verdict=judge(evidence),
        facts=_facts(evidence),
        about=_about(evidence),
        missing=_missing(evidence),
        main=main_table(evidence),
        claims=claims(evidence),
        cost=cost_table(evidence),
        sources=source_table(evidence),
        paper_tables=paper_tables(evidence),
        same_scale=has_the_papers_sets(summary),
        pictures=_pictures(evidence),
        groups=ablations(evidence),
        gallery=gallery(evidence),
        base=base_text(evidence),
        configs=arm_configs(evidence),
    )


def _pictures(evidence: Evidence) -> Mapping[str, Picture | None]:
    return {
        "forest": forest(evidence),
        "loss": loss_curves(evidence),
        "cost": cost_curves(evidence),
        "gradient": gradient_curves(evidence),
        "sources": by_source(evidence),
        "timeline": timeline(evidence),
    }


def _facts(evidence: Evidence) -> list[Fact]:
    best = evidence.best
    if best is None:
        return []
    facts = []
    share, difference = best.own.shares.get("balanced"), best.own.differences["balanced"]
    if share is not None and share.value is not None:
        facts.append(
            Fact(percent(share.value), "of the distance to random b closed", share_interval(share) or "one seed")
        )
    facts.append(
        Fact(signed(difference.mean), "loss against random r, equal steps", interval(difference) or "one seed")
    )
    equal = hardest(best)
    if equal is not None and equal.difference is not None:
        note = interval(equal.difference) or "one seed"
        facts.append(Fact(signed(equal.difference.mean), "loss against random rows, equal cost", note))
    base, mine = evidence.summary.find("random_b"), best.mean("wall")
    if base is not None and mine and (wall := base.mean("wall")):
        facts.append(Fact(f"{wall / mine:.2f} ×", "as fast as training on all rows", "wall clock, not tested"))
    return facts


def _about(evidence: Evidence) -> Sequence[tuple[str, str]]:
    about, summary = evidence.results.about, evidence.summary
    config: Mapping[str, Any] = about["config"]
    selection, run, train, experiment = (config.get(name, {}) for name in ("selection", "run", "train", "experiment"))
    ranks = experiment.get("num_processes", 1)
    device = train.get("device", "auto")
    versions = about.get("versions", {})
    machine = about.get("machine")
    facts = [
        ("scale", f"{summary.scale or 'own configuration'}{', smoke test' if summary.smoke else ''}"),
        ("model", str(config.get("model", {}).get("path", ""))),
        ("arms", f"{len(summary.arms)} of {len(evidence.results.arms)}"),
        ("seeds", ", ".join(map(str, summary.seeds))),
        ("steps", f"{run.get('num_steps', 0):,}"),
        ("batch", f"r = {selection.get('sub_batch_size')} of b = {selection.get('large_batch_size')} rows"),
        ("trainers", f"{plural(ranks, 'process').replace('processs', 'processes')}, device {device}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    if machine:
        text = (
            ", ".join(f"{key} {value}" for key, value in machine.items()) if isinstance(machine, Mapping) else machine
        )
        facts.append(("machine", str(text)))
    return [(name, value) for name, value in facts if value]


def _missing(evidence: Evidence) -> str:
    missing = evidence.summary.missing
    if not missing:
        return ""
    shown = ", ".join(f"{arm} seed {seed}" for arm, seed in missing[:_MOST_MISSING])
    more = f" and {len(missing) - _MOST_MISSING} more" if len(missing) > _MOST_MISSING else ""
    return f"{plural(len(missing), 'run')} not finished: {shown}{more}. Comparisons use the seeds that both arms have."
