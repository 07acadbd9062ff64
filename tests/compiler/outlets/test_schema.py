"""JSON against its schema, both ways: what npuc writes fits, and what it never writes does not.

``NPUC_GOLDEN=write`` rewrites the committed schemas.
"""

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npuc.errors import UsageError
from npuc.outlets import data, reading, schema
from npuc.outlets.entry import Entry
from npuc.report import SCHEMA, Report

Change = Callable[[dict[str, Any]], object]
HOME = Path(__file__).parents[3] / "compiler" / "outlets"


def problems(document: Any, name: str = SCHEMA) -> list[str]:
    """Return what is wrong with a document that went through a file."""
    rules = schema.read(name)
    jsonschema.Draft202012Validator.check_schema(rules)
    through = json.loads(json.dumps(document, allow_nan=False))
    return [e.message for e in jsonschema.Draft202012Validator(rules).iter_errors(through)]


@pytest.mark.parametrize("name", [SCHEMA, schema.GATE, schema.COMPILED])
def test_the_committed_schema_is_that_of_the_dataclasses(name: str) -> None:
    path = HOME / f"{name}.json"
    text = json.dumps(schema.made()[name], indent=1) + "\n"
    if os.environ.get("NPUC_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_every_committed_schema_belongs_to_a_document() -> None:
    assert {path.stem for path in HOME.glob("*.json")} == set(schema.made())


def test_real_reports_fit(real: Mapping[str, Report]) -> None:
    assert [problems(report.to_json()) for report in real.values()] == [[], [], []]
    assert {report.passed for report in real.values()} == {True, False}
    assert all(report.layers and report.layers.layers for report in real.values())


def test_a_gate_fits(entries: tuple[Entry, ...], real: Mapping[str, Report]) -> None:
    more = [Entry("n", "m", t, r, "", r.exit_code) for t, r in real.items()]
    found = data.gate([*entries, *more])
    assert problems(found, schema.GATE) == []
    assert found["passed"] is False and found["exit_code"] == 6
    assert [p["state"] for p in found["pairs"][:5]] == [
        "passed", "waived", "failed", "undecided", "error",
    ]  # fmt: skip


def test_a_gate_over_nothing_has_not_passed() -> None:
    assert data.gate([])["passed"] is False


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every object that has keys of its own kind."""
    if isinstance(value, dict):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


CHANGES: tuple[Change, ...] = (lambda o: o.update(unknown=1), lambda o: o.pop(next(iter(o))))
FREE = {"assumed", "dims", "placement", "fingerprint", "call", "coded", "facts", "max_abs", "rms"}
"""Objects whose keys are names of the user's."""


def test_no_key_may_be_added_or_missing_anywhere(real: Mapping[str, Report]) -> None:
    whole = json.loads(json.dumps(real["atom"].to_json()))
    seen = 0
    for path in places(whole):
        if set(path) & {"fingerprint", "call"} or (path and path[-1] in FREE):
            continue
        if len(path) > 3 and path[-1] not in (0, "bar"):
            continue  # the first of each list stands for the others
        seen += 1
        for change in CHANGES:
            broken = copy.deepcopy(whole)
            change(at(broken, path))
            assert problems(broken), path
    assert seen >= 6


COMPUTED: list[Change] = [
    lambda d: d.update(passed="yes"),
    lambda d: d.update(exit_code=0.5),
]
STORED: list[Change] = [
    lambda d: d.update(schema="npuc-report-1"),
    lambda d: d["rows"][0].update(calls="3"),
    lambda d: d["rows"][0].update(calls=True),
    lambda d: d["rows"][0]["original"][0].update(sqnr_db="NaN"),
    lambda d: d["rows"][0]["original"][0].update(integer=0),
    lambda d: d["layers"]["layers"][0].update(reads="x"),
    lambda d: d["held"].append({"check": "agreement"}),
    lambda d: d.pop("held"),
]


@pytest.mark.parametrize("change", COMPUTED + STORED)
def test_a_wrong_type_is_refused(change: Change, real: Mapping[str, Report]) -> None:
    broken = json.loads(json.dumps(real["atom"].to_json()))
    change(broken)
    assert problems(broken)
    if change in STORED:  # the others are computed again, not read
        with pytest.raises(UsageError):
            reading.report(broken)


def test_real_reports_are_read_back_whole(
    real: Mapping[str, Report], entries: tuple[Entry, ...]
) -> None:
    reports = [*real.values(), *(e.report for e in entries if e.report)]
    for report in reports:
        text = json.dumps(report.to_json())
        back = reading.report(json.loads(text))
        assert json.dumps(back.to_json()) == text
        assert back.table() == report.table() and back.exit_code == report.exit_code


@pytest.mark.parametrize(
    "document", [None, [], "x", {}, {"schema": "npuc-report-1"}, {"schema": SCHEMA}]
)
def test_what_is_no_report_is_refused(document: Any) -> None:
    with pytest.raises(UsageError):
        reading.report(document)


NUMBERS = st.one_of(st.floats(), st.just(-0.0), st.integers(-9, 9).map(float))


@given(NUMBERS)
def test_every_float_survives(value: float) -> None:
    from npuc.jsonable import plain

    back = reading._build(float, json.loads(json.dumps(plain(value))))
    assert back == value or (math.isnan(back) and math.isnan(value))
    assert math.copysign(1, back) == math.copysign(1, value) or math.isnan(value)


def test_a_type_without_a_form_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: complex

    with pytest.raises(TypeError, match="complex"):
        schema._of(Odd, {})
