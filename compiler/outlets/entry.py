"""One model on one target, as every outlet of a gate takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from npuc.errors import UNDECIDED, NpucError, ParityError, worst
from npuc.held import Held
from npuc.metrics import Difference
from npuc.pages import sections
from npuc.report import Report, Row

State = Literal["passed", "waived", "undecided", "failed", "error"]
NOTHING = ("nothing was compared",)


@dataclass(frozen=True, slots=True)
class Entry:
    """What came of one pair. `report` is None where npuc ended with `error` instead.

    `exit_code` is the pair's own, `source` the model's file (or ``zoo:NAME``), `seconds` what a
    clock said: 0 where nobody looked, so that two runs give the same bytes. `notes` are lines for
    people, and `waived` is the reason why an error does not count.
    """

    name: str
    model: str
    target: str
    report: Report | None
    error: str
    exit_code: int
    cached: bool = False
    source: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    waived: str = ""

    @property
    def code(self) -> int:
        """The exit code; never 0 where there is an error, a report that fails, or no report."""
        counts = bool(self.error) and not self.waived
        held = self.report.exit_code if self.report is not None else int(not self.error)
        return worst((self.exit_code, held)) or int(counts)

    @property
    def state(self) -> State:
        """What to call it. "error" stands for what is no answer: the model was not compared."""
        code = self.code
        if code == 0:
            return "waived" if self.waivers else "passed"
        if code == UNDECIDED:
            return "undecided"
        failed = code == ParityError.exit_code or (self.report is not None and not self.error)
        return "failed" if failed else "error"

    @property
    def waivers(self) -> tuple[str, ...]:
        """What does not hold and does not count, with the reason, a line each."""
        rows = () if self.report is None else self.report.rows
        error = [f"{''.join(self.error.splitlines()[:1])} ({self.waived})"] if self.waived else []
        steps = [f"{r.stage}: {'; '.join(r.faults)} ({r.note})" for r in rows if _waived(r)]
        return (*error, *steps, *(f"{h.text} ({h.waiver})" for h in self.held if _waived(h)))

    @property
    def worst(self) -> Difference | None:
        """What the user gets: the output of the artifact that is furthest from the original's."""
        return None if self.report is None else sections.worst(sections.final(self.report))

    @property
    def held(self) -> tuple[Held, ...]:
        """What the policy asked beside the bars of the steps."""
        return () if self.report is None else self.report.held

    @property
    def bars(self) -> str:
        """What it is held to, in a line: the bar of the last step, and each demand once."""
        rows = () if self.report is None else self.report.rows
        last = [row.bar.text for row in rows if row.bar is not None][-1:]
        return "; ".join(
            [*last, *dict.fromkeys(f"{h.check} {h.bar:g} ({h.state})" for h in self.held)]
        )

    @property
    def why(self) -> tuple[str, ...]:
        """Every reason why it did not pass, a line each; the first is the one to show alone."""
        report = self.report
        if report is None:
            return tuple(self.error.splitlines()) or NOTHING
        faults = [f"{r.stage}: {fault}" for r in report.failures for fault in r.faults]
        missed = [h.text for h in report.missed]
        found = [*self.error.splitlines(), *faults, *missed]
        return tuple(found) if found or report.passed else NOTHING


def _waived(found: Row | Held) -> bool:
    return found.state == "waived"


def of(
    reports: Sequence[Report],
    failures: Mapping[str, NpucError],
    source: str = "",
) -> tuple[Entry, ...]:
    """Make entries of one model's reports; `failures` names targets that ended with an error.

    A model is called by its file's name, wherever that lies.
    """
    model = _file(reports[0].model if reports else source)
    failed = [
        _entry(model, target, None, str(error), error.exit_code, source)
        for target, error in failures.items()
    ]
    done = [_entry(_file(r.model), r.target, r, "", r.exit_code, source) for r in reports]
    return (*done, *failed)


def _file(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _entry(
    model: str, target: str, report: Report | None, error: str, code: int, source: str
) -> Entry:
    name = f"{model}::{target}" if target else model
    return Entry(name, model, target, report, error, code, source=source)
