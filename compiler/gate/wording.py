"""Say what the samples decide about a rate or a score, in one line."""

import math

from npuc.held import Held
from npuc.statistics import Verdict


def share(value: float) -> str:
    """Spell a share of one as percent, with the digits that matter near 0 and 1."""
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    digits = min(4, max(1, math.ceil(-math.log10(min(value, 1 - value)) - 1)))
    return f"{100 * value:.{digits}f} %"


def judged(
    check: str,
    output: str,
    found: Verdict,
    what: str,
    bar: float,
    confidence: float,
    *,
    at_least: bool,
) -> Held:
    """Return the finding on a rate that must be at least, or a drop that must be at most, `bar`."""
    spell = share if at_least else "{:.4g}".format
    wanted = f"at {'least' if at_least else 'most'} {spell(bar)} asked"
    sure = f"{share(found.low) if at_least else spell(found.low)} to {spell(found.high)}"
    said = {
        "ok": wanted,
        "failed": f"{wanted}: it is {'less' if at_least else 'more'}",
        "undecided": f"{wanted}: {found.wanted.removeprefix('undecided: ')}",
    }[found.state]
    text = (
        f"{what} on {found.samples:,} samples ({sure}, each end at {confidence:.4g} confidence), "
        f"{said}"
    )
    needed = 0 if math.isinf(found.needed) else int(found.needed)
    return Held(
        check, output, found.state, text, found.estimate, bar, found.low, found.high,
        found.samples, needed,
    )  # fmt: skip
