"""One model on one target, as every outlet of a gate takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from npuc.errors import UNDECIDED, NpucError, ParityError, worst
from npuc.held import Held
from npuc.metrics import Difference
from npuc.pages import sections
from npuc.report import Report

State = Literal["passed", "failed", "undecided", "error"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What came of one pair. `report` is None where npuc ended with `error` instead.

    `exit_code` is the pair's own, `source` the model's file (or ``zoo:NAME``), `seconds` what a
    clock said: 0 where nobody looked, so that two runs give the same bytes.
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

    @property
    def code(self) -> int:
        """The exit code, never 0 where there is an error, a report that fails, or no report."""
        held = self.report.exit_code if self.report is not None else int(not self.error)
        return worst((self.exit_code, held)) or int(bool(self.error))

    @property
    def state(self) -> State:
        """What to call it. "error" stands for what is no answer: the model was not compared."""
        code = self.code
        if code in (0, UNDECIDED):
            return "undecided" if code else "passed"
        return "failed" if code == ParityError.exit_code or self.report is not None else "error"

    @property
    def worst(self) -> Difference | None:
        """What the user gets: the output of the artifact that is furthest from the original's."""
        return None if self.report is None else sections.worst(sections.final(self.report))

    @property
    def held(self) -> tuple[Held, ...]:
        """What the policy asked beside the bars of the steps."""
        return () if self.report is None else self.report.held

    @property
    def why(self) -> tuple[str, ...]:
        """Every reason why it did not pass, a line each; the first is the one to show alone."""
        report = self.report
        if report is None:
            return tuple(self.error.splitlines()) or ("nothing was compared",)
        faults = [f"{r.stage}: {fault}" for r in report.failures for fault in r.faults]
        missed = [h.text for h in report.missed]
        found = [*faults, *missed, *self.error.splitlines()]
        return tuple(found) if found or report.passed else ("nothing was compared",)


def of(
    reports: Sequence[Report],
    failures: Mapping[str, NpucError],
    source: str = "",
    seconds: Mapping[str, float] | None = None,
) -> tuple[Entry, ...]:
    """Make entries of one model's reports; `failures` names targets that ended with an error."""
    model = reports[0].model if reports else source.rsplit("/", 1)[-1]
    took = seconds or {}
    done = [
        Entry(
            f"{r.model}::{r.target}", r.model, r.target, r, "", r.exit_code, False, source,
            took.get(r.target, 0.0),
        )
        for r in reports
    ]  # fmt: skip
    failed = [
        Entry(f"{model}::{target}", model, target, None, str(error), error.exit_code, False, source)
        for target, error in failures.items()
    ]
    return (*done, *failed)
