"""Say in text what a gate found: a line for each pair, what does not hold in full, and the sum."""

from collections.abc import Iterator, Sequence

from npuc.gate.outcome import Outcome

_ORDER = ("failed", "error", "undecided", "waived", "passed")


def text(outcomes: Sequence[Outcome]) -> str:
    """Return what `npuc gate` prints."""
    width = max((len(outcome.pair.name) for outcome in outcomes), default=0)
    lines = [line for outcome in outcomes for line in _lines(outcome, width)]
    blocks = [outcome.text() for outcome in outcomes if not outcome.passed]
    return "\n\n".join(["\n".join(lines), *blocks, _sum(outcomes)])


def _lines(outcome: Outcome, width: int) -> Iterator[str]:
    yield outcome.line(width)
    if outcome.passed:  # what does not pass says all of it below
        yield from (f"{'':9}  waived: {each}" for each in outcome.waivers[1:])
        yield from (f"{'':9}  note: {note}" for note in outcome.notes)


def _sum(outcomes: Sequence[Outcome]) -> str:
    states = [outcome.state for outcome in outcomes]
    counted = [f"{states.count(state)} {state}" for state in _ORDER if state in states]
    cached = sum(outcome.cached for outcome in outcomes)
    known = f" ({cached} cached)" if cached else ""
    return f"{', '.join(counted) or 'nothing was checked'}, of {len(outcomes)}{known}"
