"""Waivers: what is known to fail does not count, until its date, and says so."""

from dataclasses import replace
from datetime import date

import pytest

from npuc.errors import UNDECIDED, ParityError, UnsupportedError
from npuc.gate.outcome import Outcome
from npuc.gate.pairs import Waiver
from npuc.gate.waive import waive
from npuc.held import Held, State

TODAY = date(2026, 11, 21)
WAIVER = Waiver("net", "atom", "artifact", "ticket 7", date(2026, 12, 31))


def with_(outcome: Outcome, *waivers: Waiver, **report: object) -> Outcome:
    """Return the outcome with these waivers and this change of its report."""
    pair = replace(outcome.pair, waivers=waivers)
    assert outcome.report is not None
    return replace(outcome, pair=pair, report=replace(outcome.report, **report))  # type: ignore[arg-type]


def broken(outcome: Outcome, *waivers: Waiver) -> Outcome:
    """Return an outcome whose artifact misses its bar."""
    assert outcome.report is not None
    rows = tuple(
        replace(row, state="failed", faults=("output: SQNR 3.0 dB < 20.0 dB",))
        if row.stage == "artifact"
        else row
        for row in outcome.report.rows
    )
    return with_(outcome, *waivers, rows=rows)


def demand(state: State, output: str = "output", check: str = "agreement") -> Held:
    return Held(check, output, state, f"{output}: {check} 97 %", 0.97, 0.99, samples=100, needed=32)


def test_a_step_that_fails_is_waived_with_its_reason(compiled: Outcome) -> None:
    bare = waive(broken(compiled), TODAY)
    assert (bare.state, bare.exit_code) == ("failed", ParityError.exit_code)
    found = waive(broken(compiled, WAIVER), TODAY)
    assert (found.state, found.exit_code, found.passed) == ("waived", 0, True)
    assert found.report is not None and found.report.passed
    table = found.text()
    assert "waived: artifact: output: SQNR 3.0 dB < 20.0 dB" in table
    assert "ticket 7; waived until 2026-12-31" in table
    assert "PASSED with 1 waived" in table
    assert "ticket 7" in found.line()


def test_an_expired_waiver_changes_nothing_and_says_so(compiled: Outcome) -> None:
    found = waive(broken(compiled, WAIVER), date(2027, 1, 1))
    assert (found.state, found.exit_code) == ("failed", ParityError.exit_code)
    assert found.notes == ("the waiver of artifact EXPIRED on 2026-12-31 (ticket 7)",)
    assert "EXPIRED on 2026-12-31" in found.text()


def test_a_waiver_whose_check_holds_is_noted(compiled: Outcome) -> None:
    found = waive(with_(compiled, WAIVER), TODAY)
    assert (found.state, found.exit_code) == ("passed", 0)
    assert "not needed any more" in found.notes[0]


def test_a_waiver_of_nothing_is_an_error(compiled: Outcome) -> None:
    stale = replace(WAIVER, check="artefact")
    found = waive(with_(compiled, stale), TODAY)
    assert (found.state, found.exit_code) == ("error", 2)
    assert "stale waiver: nothing is called artefact" in found.text()
    assert "artifact" in found.text() and "exported" in found.text()


@pytest.mark.parametrize("state, code", [("failed", 6), ("undecided", UNDECIDED)])
def test_a_demand_is_waived_for_all_outputs_or_for_one(
    compiled: Outcome, state: State, code: int
) -> None:
    held = (demand(state), demand("ok", "mask"), demand(state, "boxes"))
    waiver = replace(WAIVER, check="agreement")
    assert waive(with_(compiled, held=held), TODAY).exit_code == code
    found = waive(with_(compiled, waiver, held=held), TODAY)
    assert found.report is not None
    assert [h.state for h in found.report.held] == ["waived", "ok", "waived"]
    assert found.report.held[0].waiver == "ticket 7; waived until 2026-12-31"
    assert (found.state, found.exit_code) == ("waived", 0)
    narrow = waive(with_(compiled, replace(waiver, output="boxes"), held=held), TODAY)
    assert narrow.report is not None
    assert [h.state for h in narrow.report.held] == [state, "ok", "waived"]
    assert narrow.exit_code == code
    gone = waive(with_(compiled, replace(waiver, output="box"), held=held), TODAY)
    assert gone.state == "error" and "nothing is called agreement of box" in gone.text()


def test_a_failure_beside_what_is_waived_still_fails(compiled: Outcome) -> None:
    outcome = broken(compiled, replace(WAIVER, check="agreement"))
    found = waive(replace(outcome, report=with_(outcome, held=(demand("failed"),)).report), TODAY)
    assert found.exit_code == 0 or found.state == "failed"
    assert (found.state, found.exit_code) == ("failed", 6)
    assert found.report is not None and [h.state for h in found.report.held] == ["waived"]


def test_no_artifact_at_all_is_waived_as_compile(compiled: Outcome) -> None:
    error = UnsupportedError("atom cannot run 3 operators:\n  Loop", hint="npuc check")
    bare = replace(compiled, report=None, artifact=None, error=error)
    assert (bare.state, bare.exit_code, bare.why) == (
        "error", 4, "atom cannot run 3 operators:   Loop",
    )  # fmt: skip
    pair = replace(compiled.pair, waivers=(replace(WAIVER, check="compile"),))
    found = waive(replace(bare, pair=pair), TODAY)
    assert (found.state, found.exit_code) == ("waived", 0)
    assert "ticket 7" in found.line()
    late = waive(replace(bare, pair=pair), date(2027, 1, 1))
    assert (late.state, late.exit_code) == ("error", 4)
    other = replace(compiled.pair, waivers=(WAIVER,))
    assert waive(replace(bare, pair=other), TODAY).exit_code == 4
