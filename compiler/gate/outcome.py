"""What came of one pair, and how to say it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from npuc.errors import NpucError, worst
from npuc.gate.pairs import Pair
from npuc.metrics import Difference
from npuc.report import Report, Row

State = Literal["passed", "waived", "undecided", "failed", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model on one target. `report` is None where npuc ended with `error` instead.

    `artifact` lies in the cache: to be read, not to be changed. `notes` say what became of its
    waivers and of what was cached. `waived` is the reason why an error does not count.
    """

    pair: Pair
    report: Report | None
    error: NpucError | None = None
    cached: bool = False
    artifact: Path | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    waived: str = ""

    @property
    def passed(self) -> bool:
        """Whether all holds, or what does not is waived."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """0, or what npuc would end with for this pair alone."""
        held = self.report.exit_code if self.report is not None else 0
        code = self.error.exit_code if self.error is not None and not self.waived else 0
        return worst((held, code))

    @property
    def state(self) -> State:
        """What to call it; "error" is no answer: the model was not compared."""
        if self.error is not None:
            return "waived" if self.waived else "error"
        assert self.report is not None
        if self.report.undecided:
            return "undecided"
        if not self.report.passed:
            return "failed"
        return "waived" if self.waivers else "passed"

    @property
    def waivers(self) -> tuple[str, ...]:
        """What failed and does not count, with the reason, a line each."""
        if self.error is not None:
            return (f"compile: {_first(self.error)} ({self.waived})",) if self.waived else ()
        assert self.report is not None
        rows = [f"{r.stage}: {r.note}" for r in self.report.rows if r.state == "waived"]
        held = [f"{h.text} ({h.waiver})" for h in self.report.held if h.state == "waived"]
        return (*rows, *held)

    @property
    def why(self) -> str:
        """Return the first reason why it did not pass, or for a pass its worst number."""
        if self.error is not None:
            return self.waivers[0] if self.waived else _first(self.error)
        assert self.report is not None
        faults = [f"{r.stage}: {f}" for r in self.report.failures for f in r.faults]
        faults += [held.text for held in self.report.missed]
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            return faults[0] + more
        return self.waivers[0] if self.waivers else _number(self.report)

    def line(self, width: int = 0) -> str:
        """Return it in one line; names are padded to `width`."""
        cached = " (cached)" if self.cached else ""
        return f"{self.state.upper():9}  {self.pair.name:{width}}  {self.why}{cached}".rstrip()

    def text(self) -> str:
        """Return all there is to say: the report or the error, and the notes."""
        head = f"{self.pair.name}: {self.state.upper()}"
        error = [str(self.error)] if self.error is not None else []
        table = [self.report.table()] if self.report is not None else []
        return "\n".join([head, *error, *table, *(f"note: {note}" for note in self.notes)])


def _first(error: NpucError) -> str:
    lines = error.message.splitlines()
    return lines[0] if len(lines) == 1 or not lines[0].endswith(":") else " ".join(lines[:2])


def _number(report: Report) -> str:
    """Return what the user gets: the artifact's worst output, or that it was not run."""
    row = _final(report)
    if row is None:
        return "nothing was compared"
    worst = min(row.original, key=_rank)
    number = "exact" if worst.sqnr_db == math.inf else f"SQNR {worst.sqnr_db:.1f} dB"
    where = "" if row.stage == "artifact" else f" after {row.stage}; the artifact was NOT run"
    output = f" ({worst.output})" if len(row.original) > 1 else ""
    return f"{number}{output}{where}; {report.precision}, {report.evidence}"


def _final(report: Report) -> Row | None:
    compared = [row for row in report.rows if row.original and row.state != "shown"]
    named = [row for row in compared if row.stage == "artifact"]
    return next(reversed(named or compared), None)


def _rank(found: Difference) -> float:
    return -math.inf if math.isnan(found.sqnr_db) else found.sqnr_db
