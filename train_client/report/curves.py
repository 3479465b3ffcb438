"""Figures along training: losses, losses by cost, gradient error and bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from train_client.experiment.summary import ArmSummary, Point
from train_client.report.canvas import INK, MUTED, RULE, Key, Picture, draw_picture, panels
from train_client.report.evidence import Evidence
from train_client.report.looks import Look, look_of

_BAND = 0.16
_ROUNDING = 1e-3
_REFERENCES = ("random_r", "random_b")


def keys_of(arms: Sequence[ArmSummary]) -> list[Key]:
    """The legend of some arms."""
    looks = [(arm.title, look_of(arm.name)) for arm in arms]
    return [Key(title, look.css_color, look.outline, look.css_dash) for title, look in looks]


def loss_curves(evidence: Evidence) -> Picture | None:
    """Held-out loss by step, and the difference to random r, where what all seeds share has cancelled."""
    arms = [arm for arm in evidence.main if len(arm.curves["balanced"]) > 1]
    if not arms:
        return None
    against = {arm.name: evidence.along(arm.name, "random_r") for arm in arms if arm.name != "random_r"}

    def draw(figure: Figure, narrow: bool) -> None:
        left, right = panels(figure, narrow)
        for arm in arms:
            _plot(left, arm.curves["balanced"], look_of(arm.name))
        _loss_scale(left)
        left.set_title("held-out loss, mean over sources")
        right.axhline(0, color=MUTED, linestyle="--")
        for name, points in against.items():
            look, steps = look_of(name), [step for step, _ in points]
            right.plot(steps, [d.mean for _, d in points], look.dash, color=look.color, marker=look.marker)
            bounded = [(step, *d.drawn) for step, d in points if d.drawn]
            if bounded:
                x, low, high = zip(*bounded, strict=True)
                right.fill_between(x, low, high, color=look.color, alpha=_BAND, linewidth=0)
        _limit_to_means(right, [d.mean for points in against.values() for _, d in points])
        right.set_title("difference to random r, same seeds")
        for axes in (left, right):
            axes.set_xlabel("step")
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    ends = ", ".join(f"{arm.title} {arm.curves['balanced'][-1].value.mean or float('nan'):.3f}" for arm in arms)
    return draw_picture(
        "loss",
        draw,
        title="Held-out loss",
        caption="Loss with bands of one standard error over seeds; paired differences with bands of 95% confidence, of "
        "three seeds or more. "
        "Lower is better, and a band that holds the dashed line is no difference yet.",
        alt=f"Held-out loss by step. At the end: {ends}.",
        heights=(4.3, 8.2),
        keys=keys_of(arms),
    )


def cost_curves(evidence: Evidence) -> Picture | None:
    """Loss by what scoring and training cost, near the end."""
    arms = [arm for arm in evidence.main if arm.curves["balanced"] and arm.mean("balanced") is not None]
    ends = {arm.name: (evidence.cost(arm.name), arm.mean("balanced") or 0.0) for arm in arms}
    if len(arms) < 2 or not all(name in ends for name in _REFERENCES):
        return None

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        for arm in arms:
            look, (cost, loss) = look_of(arm.name), ends[arm.name]
            points = arm.curves["balanced"]
            path = [(point.cost, point.value.mean) for point in points if point.value.mean is not None]
            axes.plot(*zip(*path, strict=True), look.dash, color=look.color, alpha=0.35)
            error = arm.means["balanced"].standard_error or 0.0
            axes.errorbar(cost, loss, error, color=look.color, marker=look.marker, markersize=8, capsize=0)
        (cheap, dear), (first, second) = zip(*(ends[name] for name in _REFERENCES), strict=True)
        axes.plot([cheap, dear], [first, second], "-", color=INK, linewidth=1.2, zorder=1)
        losses = [loss for _, loss in ends.values()]
        reach = max(losses) - min(losses) or 0.1
        axes.set_ylim(min(losses) - 0.25 * reach, max(losses) + 0.6 * reach)
        axes.set_xscale("log")
        axes.set_xlim(0.45 * min(cost for cost, _ in ends.values()), 1.15 * max(cost for cost, _ in ends.values()))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("row passes: 1 for a scored row, 3 for a trained one")
        axes.set_ylabel("held-out loss, mean over sources")
        axes.grid(axis="y")

    return draw_picture(
        "cost",
        draw,
        title="Loss by cost",
        caption="Large marks are ends of runs, with a standard error. The solid line joins random r and random b: "
        "runs on random rows with a sub-batch size in between would end near it. Pale curves are the way there. "
        "Selection pays for its scores where its mark lies under the solid line and under random b’s curve.",
        alt="; ".join(
            f"{arm.title}: {ends[arm.name][0]:,.0f} row passes, loss {ends[arm.name][1]:.3f}" for arm in arms
        ),
        heights=(4.6, 4.6),
        keys=keys_of(arms),
    )


def gradient_curves(evidence: Evidence) -> Picture | None:
    """How far the sub-batch's gradient is from the large batch's, and whether errors add up."""
    # What trains on all rows has the large batch's gradient, but for rounding.
    arms = [arm for arm in evidence.main if any((p.value.mean or 0.0) > _ROUNDING for p in arm.curves["error"])]
    if not arms:
        return None

    def draw(figure: Figure, narrow: bool) -> None:
        left, right = panels(figure, narrow)
        for arm in arms:
            look = look_of(arm.name)
            _plot(left, arm.curves["error"], look)
            _plot(right, arm.curves["bias"], look)
            _plot(right, arm.curves["bias_floor"], Look(look.color, "", ":"), band=False)
        left.set_title("error of a step, |g_S − g_M| / |g_M|")
        right.set_title("bias of all steps so far; dotted: by chance")
        for axes in (left, right):
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")

    return draw_picture(
        "gradient",
        draw,
        title="How well sub-batches stand in for large batches",
        caption="Exact gradients of both at some steps, over all trained weights. Errors that point anywhere average "
        "out: their bias stays on the dotted line. What lies above it pulls every step the same way.",
        alt="; ".join(
            f"{arm.title}: mean error {arm.mean('gradient_error') or float('nan'):.2f}, bias at the end "
            f"{arm.mean('bias') or float('nan'):.2f} against {arm.mean('bias_floor') or float('nan'):.2f} by chance"
            for arm in arms
        ),
        heights=(4.1, 7.8),
        keys=keys_of(arms),
    )


def _plot(axes: Axes, points: Sequence[Point], look: Look, *, band: bool = True) -> None:
    """A mean with a band of one standard error; points without a mean are skipped."""
    known = [(p.step, p.value.mean, p.value.standard_error or 0.0) for p in points if p.value.mean is not None]
    if not known:
        return
    steps, means, errors = zip(*known, strict=True)
    axes.plot(steps, means, look.dash, color=look.color, marker=look.marker or None, linewidth=1.8 if band else 1)
    if band and any(errors):
        low = [mean - error for mean, error in zip(means, errors, strict=True)]
        high = [mean + error for mean, error in zip(means, errors, strict=True)]
        axes.fill_between(steps, low, high, color=look.color, alpha=_BAND, linewidth=0)


def _loss_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7)))
    axes.yaxis.set_minor_locator(NullLocator())
    label: Callable[[float, int | None], str] = lambda value, _: f"{value:g}"  # noqa: E731
    axes.yaxis.set_major_formatter(FuncFormatter(label))


def _limit_to_means(axes: Axes, means: Sequence[float]) -> None:
    """Bands of two seeds can be a hundred times as wide as what they are about."""
    if not means:
        return
    low, high = min(0.0, *means), max(0.0, *means)
    reach = high - low or 0.1
    axes.set_ylim(low - 0.35 * reach, high + 0.35 * reach)
    axes.spines["bottom"].set_color(RULE)
