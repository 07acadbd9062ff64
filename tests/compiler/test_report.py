"""The report as a table, as JSON and as an exit code.

The table is compared with tests/golden/report.txt; ``NPUC_GOLDEN=write`` rewrites it.
"""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from npuc.jsonable import canonical
from npuc.metrics import Difference
from npuc.policy import Bar
from npuc.report import SCHEMA, Report, Row, describe

GOLDEN = Path(__file__).parents[1] / "golden" / "report.txt"
NAN = math.nan
EXACT = Difference("y", 0.0, 0.0, 0.0, 4.0, math.inf, 1.0, 1.0, 8)
NEAR = Difference("y", 1e-6, 1e-6, 1e-7, 4.0, 132.1, 0.99999999, 1.0, 8)
LOSSY = Difference("y", 0.25, 0.5, 0.1, 4.0, 21.25, 0.9925, 0.875, 8)
OTHER = Difference("z", 3.0, 9.0, 1.0, 4.0, 12.5, 0.9, None, 0)
BROKEN = replace(
    EXACT, max_abs=NAN, max_rel=NAN, rms=NAN, peak=NAN, sqnr_db=NAN, cosine=NAN, agreement=None,
    rows=0, fault="shape (1,), expected (2,)",
)  # fmt: skip
NOISE = Bar("8x noise", "rounding", {"y": 1e-5})
LOSS = Bar("SQNR >= 20 dB of original", "the policy", sqnr_db=20.0)

ROWS = (
    Row("exported", "ok", (EXACT,), bar=NOISE, calls=8, sizes=2),
    Row("fold-constants", "ok", (NEAR,), (EXACT,), "step", NOISE, calls=9, sizes=2, changes=0),
    Row("simplify", "rolled back", (), note="simplify changed the answer: 3 times the bar"),
    Row("fix-shapes", "ok", (NEAR,), (EXACT,), "step", NOISE, calls=8, changes=3),
    Row("quantize", "failed", (LOSSY, OTHER), (LOSSY,), bar=LOSS, faults=("z: SQNR 12.5 dB",)),
    Row("artifact", "ok", (LOSSY,), (EXACT,), "both", LOSS),
    Row("if floats are e6m9", "shown", (NEAR,)),
)
REPORT = Report(
    model="net.pt", target="atom", precision="int8", evidence="twin", vendor="not run",
    reference="recorded (cpu)", rows=ROWS, assumed={"int8.bias": "exact (assumed)"},
    notes=("a note",), dims={"batch": 4, "time": 7}, placement={"Conv": "tvm"},
    fingerprint={"device": "cpu", "tf32_matmul": False},
)  # fmt: skip


def verdict(*rows: Row) -> Report:
    return replace(REPORT, rows=rows)


def test_the_table() -> None:
    text = REPORT.table() + "\n"
    if os.environ.get("NPUC_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_worst_output_is_shown() -> None:
    (line,) = [text for text in REPORT.table().splitlines() if text.startswith("quantize")]
    assert line.split()[1:5] == ["12.5", "3.00e+00", "0.900000", "87.5%"]
    assert line.endswith("FAILED")


@pytest.mark.parametrize("order", [1, -1])
def test_a_broken_output_is_worse_than_any_number(order: int) -> None:
    row = replace(ROWS[0], state="failed", original=(OTHER, BROKEN)[::order], faults=("y: shape",))
    (line,) = [text for text in verdict(row).table().splitlines() if text.startswith("exported")]
    assert line.split()[1:5] == ["nan", "nan", "nan", "-"]


def test_json_holds_everything_and_comes_back() -> None:
    data = REPORT.to_json()
    assert json.loads(canonical(data)) == data
    assert data["schema"] == SCHEMA == "npuc-report-2" and data["passed"] is False
    row = data["rows"][4]
    assert row["stage"] == "quantize" and row["state"] == "failed" and row["bar"]["sqnr_db"] == 20
    assert row["faults"] == ["z: SQNR 12.5 dB"]
    assert row["original"][0]["sqnr_db"] == 21.25 and row["original"][1]["agreement"] is None
    assert data["rows"][0]["original"][0]["sqnr_db"] == "inf"
    assert data["dims"] == {"batch": 4, "time": 7} and data["placement"] == {"Conv": "tvm"}
    assert data["fingerprint"]["device"] == "cpu" and data["vendor"] == "not run"


def test_json_of_nan_is_still_json() -> None:
    data = verdict(replace(ROWS[0], state="failed", original=(BROKEN,))).to_json()
    assert json.loads(canonical(data))["rows"][0]["original"][0]["max_abs"] == "nan"


def test_a_rolled_back_step_is_no_failure() -> None:
    report = verdict(ROWS[0], ROWS[2], ROWS[5])
    assert report.passed and report.exit_code == 0 and report.failures == ()
    text = report.table()
    assert "rolled back: simplify: simplify changed the answer: 3 times the bar" in text
    assert "PASSED" in text and "FAILED" not in text


def test_a_failed_step_is_named_with_its_remedy() -> None:
    assert REPORT.exit_code == 6 and not REPORT.passed
    text = REPORT.table()
    assert "failed: quantize: z: SQNR 12.5 dB" in text
    assert "FAILED: quantize\n→ look with --layers" in text
    assert "--calibration" in text and "--precision float" in text
    exact = verdict(replace(ROWS[0], state="failed", faults=("y: max abs",))).table()
    assert "FAILED: exported\n→ report this with the artifact" in exact
    assert "--layers" not in exact


def test_what_lowering_broke_is_not_for_the_user_to_tune() -> None:
    """An artifact that is far from its own program is not mended by another observer."""
    fault = "against its program: y: max abs 1 > 0.1 (10 times the bar) (ties)"
    text = verdict(replace(ROWS[5], state="failed", faults=(fault,))).table()
    assert "→ report this with the artifact" in text and "--observer" not in text
    both = verdict(replace(ROWS[5], state="failed", faults=("y: SQNR 1 dB", fault))).table()
    assert "→ report this with the artifact" in both


def test_every_failed_row_is_named() -> None:
    text = verdict(replace(ROWS[0], state="failed"), ROWS[4]).table()
    assert "FAILED: exported, quantize" in text


@pytest.mark.parametrize("rows", [(), (ROWS[6],), (ROWS[2],)])
def test_nothing_compared_is_a_failure(rows: tuple[Row, ...]) -> None:
    report = verdict(*rows)
    assert not report.passed and report.exit_code == 6
    assert "FAILED: nothing was compared" in report.table()


def test_describe_says_where_the_reference_comes_from() -> None:
    assert describe({}) == "unknown inputs (unknown device)"
    cuda = {
        "inputs": "recorded by npuc.save", "device": "H100", "torch": "2.13", "cuda": "13.0",
        "tf32_matmul": True, "autocast": "torch.bfloat16",
    }  # fmt: skip
    assert describe(cuda) == (
        "recorded by npuc.save (H100, torch 2.13, cuda 13.0, TF32 on, autocast on)"
    )
    assert "TF32" not in describe({**cuda, "device": "cpu"})  # a switch that does nothing there
