"""Numbers as a reader wants them: few digits, a real minus sign, and a dash for what isn't there."""

from __future__ import annotations

from train_client.experiment.statistics import Difference, Estimate, Share

NOTHING = "–"
_KILO = 1000


def signed(value: float, digits: int = 3) -> str:
    """With its sign; no minus before zero."""
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def plain(value: float | None, digits: int = 3) -> str:
    """Without a plus."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def with_error(estimate: Estimate | None, digits: int = 3, *, scale: float = 1.0) -> str:
    """Mean ± standard error."""
    if estimate is None or estimate.mean is None:
        return NOTHING
    mean = plain(scale * estimate.mean, digits)
    error = estimate.standard_error
    return mean if error is None else f"{mean} ± {scale * error:.{digits}f}"


def interval(difference: Difference | None, digits: int = 3) -> str:
    """The ends of a difference's confidence interval."""
    if difference is None or difference.low is None or difference.high is None:
        return ""
    return f"{signed(difference.low, digits)} to {signed(difference.high, digits)}"


def percent(share: float) -> str:
    """A share in whole percent."""
    text = f"{100 * share:.0f}"
    return ("0" if text == "-0" else text.replace("-", "−")) + "%"


def share_interval(share: Share) -> str:
    """The ends of a share's confidence interval, in percent."""
    if share.low is None or share.high is None:
        return ""
    return f"{percent(share.low).removesuffix('%')} to {percent(share.high)}"


def count(value: float | None) -> str:
    """A whole number with commas."""
    return NOTHING if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Seconds, with digits only where they say something."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def memory(value: float | None) -> str:
    """Bytes in powers of 1000."""
    if value is None:
        return NOTHING
    for unit in ("B", "kB", "MB"):
        if value < _KILO:
            return f"{value:.0f} {unit}"
        value /= _KILO
    return f"{value:.1f} GB"


def plural(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
