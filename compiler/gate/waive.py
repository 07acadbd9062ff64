"""Apply waivers: a failure that is known does not count, until its waiver expires."""

from dataclasses import replace
from datetime import date

from npuc.errors import UsageError
from npuc.gate.outcome import Outcome
from npuc.gate.pairs import Waiver
from npuc.held import Held
from npuc.report import Report, Row

COMPILE = "compile"
"""The check that stands for an error in place of an artifact."""


def waive(outcome: Outcome, today: date) -> Outcome:
    """Return the outcome with what its pair's waivers say of it.

    A waiver that is about nothing in the report makes the outcome an error: it would hide a
    spelling mistake. One whose check holds, or that has expired, changes nothing and is noted.
    """
    for waiver in outcome.pair.waivers:
        outcome = _apply(outcome, waiver, today)
    return outcome


def _apply(outcome: Outcome, waiver: Waiver, today: date) -> Outcome:
    failed = _failed(outcome, waiver)
    name = f"the waiver of {waiver.check}" + (f" of {waiver.output}" if waiver.output else "")
    if failed is None:
        return outcome if outcome.error is not None else _stale(outcome, waiver)
    if not failed:
        return _noted(outcome, f"{name} is not needed any more: it holds; remove the waiver")
    if waiver.expired(today):
        return _noted(outcome, f"{name} EXPIRED on {waiver.expires} ({waiver.reason})")
    until = f"{waiver.reason}; waived until {waiver.expires}"
    if outcome.error is not None:
        return replace(outcome, waived=until)
    assert outcome.report is not None
    return replace(outcome, report=_waived(outcome.report, waiver, until))


def _failed(outcome: Outcome, waiver: Waiver) -> bool | None:
    """Whether what a waiver is about failed; None where there is nothing that it is about."""
    if waiver.check == COMPILE:
        return outcome.error is not None
    if outcome.report is None:
        return None
    rows = [row.state == "failed" for row in outcome.report.rows if _about(row, waiver)]
    held = [held.state not in ("ok", "waived") for held in outcome.report.held if _of(held, waiver)]
    return any((*rows, *held)) if rows or held else None


def _about(row: Row, waiver: Waiver) -> bool:
    return row.stage == waiver.check and not waiver.output


def _of(held: Held, waiver: Waiver) -> bool:
    return held.check == waiver.check and waiver.output in ("", held.output)


def _waived(report: Report, waiver: Waiver, until: str) -> Report:
    rows = tuple(
        replace(row, state="waived", note=until)
        if row.state == "failed" and _about(row, waiver)
        else row
        for row in report.rows
    )
    held = tuple(
        replace(item, state="waived", waiver=until)
        if item.state not in ("ok", "waived") and _of(item, waiver)
        else item
        for item in report.held
    )
    return replace(report, rows=rows, held=held)


def _stale(outcome: Outcome, waiver: Waiver) -> Outcome:
    assert outcome.report is not None
    checks = dict.fromkeys(row.stage for row in outcome.report.rows)
    asked = [f"{h.check} of {h.output}" if h.output else h.check for h in outcome.report.held]
    what = f"{waiver.check} of {waiver.output}" if waiver.output else waiver.check
    error = UsageError(
        f"{outcome.pair.name}: stale waiver: nothing is called {what}",
        hint=f"there are {', '.join([*checks, *dict.fromkeys(asked), COMPILE])}",
    )
    return replace(outcome, error=error)


def _noted(outcome: Outcome, note: str) -> Outcome:
    return replace(outcome, notes=(*outcome.notes, note))
