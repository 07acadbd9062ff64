"""Take a compile's own word for which step fails, where no program by itself shows it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npuc import pipeline
from npuc.blame.steps import REFERENCE, Found
from npuc.blame.trail import LOWERING, Trail, blamed_pass, kind_at
from npuc.errors import ParityError
from npuc.progress import Progress
from npuc.report import Report


def search(
    trail: Trail, target: str, samples: Any, call: Mapping[str, Any], shown: Progress
) -> tuple[Found | None, int]:
    """Compile with all checks, and return the first step that misses a bar, and the runs spent.

    That is one run per step and not O(log n), and only done where nothing else was found: a compile
    that fails and a blame that finds nothing must not be.
    """
    assert trail.loaded is not None  # a trail of a compile has what it loaded
    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        try:
            (done,) = pipeline.compile(
                trail.loaded, target=target, samples=samples, output=Path(work) / "again.npuc",
                progress=shown, **call,
            )  # fmt: skip
        except ParityError as error:
            step = blamed_pass(error) or "compile"
            faults = tuple(line.strip() for line in error.message.splitlines()[1:])
            index = _index(trail, step, 0)
            return Found(step, kind_at(step), faults or (error.message,), index), len(trail.made)
    return _failing(trail, done.report), len(done.report.rows)


def _failing(trail: Trail, report: Report) -> Found | None:
    if report.passed:
        return None
    if not report.failures:
        texts = tuple(held.text for held in report.missed)
        return Found(LOWERING, "lowering", texts) if texts else None
    row = report.failures[0]
    evidence = [f"{r.stage}: {r.faults[0] if r.faults else r.state}" for r in report.failures]
    if row.stage == REFERENCE:
        return Found(REFERENCE, "reference", row.faults, -1, evidence=evidence)
    if row.stage == LOWERING:
        kind = "lowering" if trail.lowered is None else trail.lowered.kind
        return Found(LOWERING, kind, row.faults, evidence=evidence)
    earlier = [r.stage for r in report.rows[: report.rows.index(row)]].count(row.stage)
    index = _index(trail, row.stage, earlier)
    return Found(row.stage, kind_at(row.stage), row.faults, index, evidence=evidence)


def _index(trail: Trail, step: str, earlier: int) -> int:
    """Return the place of a step in a trail; past its end where it is not there."""
    places = [at for at, item in enumerate(trail.made) if item.step == step]
    return places[min(earlier, len(places) - 1)] if places else len(trail.made)
