"""Some large batches as text: what was picked, with which weight, and what was passed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.config import Config
from shared.dataset import Store
from shared.records import Row
from shared.sampler import draw_large_batch
from train_client.outcome import Outcome


def make_gallery(config: Config, outcome: Outcome, *, steps: Sequence[int]) -> list[dict[str, Any]]:
    """The large batches of some steps, rows in the order they were drawn.

    Raises:
        SubbatchError: the store or the tokenizer can't be opened.
    """
    if not steps:
        return []
    from shared.tokenizer import PROMPT_TEMPLATES, load_tokenizer  # seconds, which only a run's end is worth

    assert config.data.store is not None
    store = Store.open(config.data.store)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    # Of what was put around a prompt; nothing where the tokenizer's own template did it.
    before, _, after = PROMPT_TEMPLATES.get(store.manifest.template, "{instruction}").partition("{instruction}")

    def text(row: Row) -> dict[str, str]:
        ids, prompt = row.input_ids.tolist(), row.num_prompt_tokens
        asked = tokenizer.decode(ids[:prompt], skip_special_tokens=True)
        answer = tokenizer.decode(ids[prompt:], skip_special_tokens=True)
        return {"instruction": asked.removeprefix(before).removesuffix(after), "output": answer}

    gallery = []
    for step in steps:
        drawn = draw_large_batch(store.source_rows, config.selection, seed=config.run.seed, step=step)
        picked = {
            number: (weight, gain)
            for rank in outcome.ranks
            for number, weight, gain in zip(rank[step]["rows"], rank[step]["weights"], rank[step]["gains"], strict=True)
        }
        rows = [
            {
                "row": number,
                "source": store.source_names[source],
                **text(store.row(number)),
                "picked": number in picked,
                "weight": picked.get(number, (0.0, 0.0))[0],
                "gain": _finite(picked.get(number, (0.0, 0.0))[1]),
            }
            for number, source in zip(drawn.tolist(), store.sources_of(drawn).tolist(), strict=True)
        ]
        gallery.append({"step": step, "rows": rows})
    return gallery


def gallery_steps(config: Config) -> list[int]:
    """Steps spread over a run, the first one chosen with weights that were trained a little."""
    count = config.experiment.gallery_steps
    first = min(config.run.staleness + 2, config.run.num_steps - 1)
    return sorted({round(step) for step in np.linspace(first, config.run.num_steps - 1, count).tolist()})


def _finite(value: float) -> float:
    return value if np.isfinite(value) else 0.0
