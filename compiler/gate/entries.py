"""Hand outcomes to the outlets."""

from collections.abc import Sequence

from npuc.gate.outcome import Outcome
from npuc.outlets.entry import Entry


def entries(outcomes: Sequence[Outcome]) -> tuple[Entry, ...]:
    """Return the same in the outlets' terms, in the same order."""
    return tuple(map(_entry, outcomes))


def _entry(outcome: Outcome) -> Entry:
    return Entry(
        outcome.pair.name,
        outcome.pair.model,
        outcome.pair.target,
        outcome.report,
        "" if outcome.error is None else str(outcome.error),
        outcome.exit_code,
        outcome.cached,
        outcome.pair.of.source,
        outcome.seconds,
        outcome.notes,
        outcome.waived,
    )
