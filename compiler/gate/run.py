"""Compile what parity.toml names, hold it to what it asks, and keep what was found."""

import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from npuc.errors import NpucError
from npuc.gate.outcome import Outcome
from npuc.gate.pairs import Pair, Spec
from npuc.progress import Progress, Silent

__all__ = ["Outcome", "check", "check_all"]


def check(
    pair: Pair,
    *,
    today: date | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Check one pair, or return what was found when nothing about it was different.

    What goes wrong is in the outcome; only a cache that cannot be written raises.
    """
    return check_pairs([pair], today=today, progress=progress)[0]


def check_all(
    spec: Spec,
    only: Callable[[Pair], bool] | None = None,
    *,
    today: date | None = None,
    progress: Progress | None = None,
) -> tuple[Outcome, ...]:
    """Check every pair of a file, or those that `only` chooses, in its order."""
    return check_pairs([p for p in spec.pairs() if only is None or only(p)],
                       today=today, progress=progress)  # fmt: skip


def check_pairs(
    pairs: Sequence[Pair], *, today: date | None = None, progress: Progress | None = None
) -> tuple[Outcome, ...]:
    """Check pairs; those of one model share the work that is the same for all targets."""
    shown = progress or Silent()
    found: dict[str, Outcome] = {}
    for model in dict.fromkeys(pair.model for pair in pairs):
        with TemporaryDirectory(prefix="npuc-") as folder:
            found |= _compiled([p for p in pairs if p.model == model], Path(folder), shown)
    return tuple(found[pair.name] for pair in pairs)


def _compiled(pairs: Sequence[Pair], folder: Path, shown: Progress) -> dict[str, Outcome]:
    from npuc import pipeline

    started = time.monotonic()
    model, targets = pairs[0].of, {pair.target: pair for pair in pairs}
    failed: dict[str, NpucError] = {}
    try:
        done = pipeline.compile(
            model.source, target=tuple(targets), output=folder, progress=shown,
            failed=failed.__setitem__, **model.options,
        )  # fmt: skip
    except NpucError as error:
        failed, done = dict.fromkeys(targets, error), []
    seconds = time.monotonic() - started
    found = {
        targets[c.report.target].name: Outcome(
            targets[c.report.target], c.report, artifact=c.artifact_path, seconds=seconds
        )
        for c in done
    }
    errors = {targets[t].name: Outcome(targets[t], None, e) for t, e in failed.items()}
    return found | errors
