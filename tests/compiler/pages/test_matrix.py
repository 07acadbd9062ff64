"""The page on one model and all its targets."""

import math
import re
from collections.abc import Callable

import pytest

from npuc.estimate import Estimate, Layer
from npuc.metrics import Difference
from npuc.pages.matrix import page
from npuc.partition import Crossing
from npuc.policy import Bar
from npuc.report import Report, Row


def difference(sqnr: float) -> Difference:
    """Return a comparison of one float output."""
    return Difference("y", 0.01, 0.01, 0.002, 4.0, sqnr, 0.999, agreement=1.0, rows=4)


def report(target: str, sqnr: float, **more: object) -> Report:
    """Return a report of two steps."""
    bar = Bar("SQNR >= 20 dB", "because", sqnr_db=20)
    state = "ok" if sqnr >= 20 else "failed"
    faults = () if state == "ok" else ("y: SQNR too low",)
    rows = (
        Row("exported", "ok", (difference(130.0),)),
        Row("artifact", state, (difference(sqnr),), bar=bar, faults=faults),
        Row("if floats are e6m9", "shown", (difference(99.0),)),
    )
    return Report("m.pt", target, "int8", "twin", "", "its data", rows, **more)  # type: ignore[arg-type]


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_page_shows_every_target_with_what_its_artifact_answers() -> None:
    layer = Layer("conv", "Conv", 10, 5, 5, 5, 2e-6, None)
    bound = Estimate("chip-b", "int8", (layer,), 5, 5, True)
    crossing = Crossing("t", "float32", (4,), 16, "host")
    second = report(
        "chip-b", 12.5, estimate=bound, placement={"Conv": "chip-b", "TopK": "host"},
        crossings=(crossing,), assumed={"int8.ops": "all (assumed)"}, notes=("a note",),
    )  # fmt: skip
    html = page([second, report("chip-a", 41.25)], {"chip-c": "its compiler <crashed>"})
    shown = text_of(html)
    for words in (
        "m.pt on 2 targets", "chip-a int8 41.2", "chip-b int8 12.5", "TopK (tensors that cross: 1)",
        "2 µs", "not public", "FAILED", "passed", "not compiled: its compiler &lt;crashed&gt;",
        "int8.ops all (assumed)", "a note", "a bound, not a prediction", "y: SQNR too low",
    ):  # fmt: skip
        assert words in shown, words
    assert shown.index("chip-a int8") < shown.index("chip-b int8")


def test_the_page_is_whole_and_asks_for_nothing(whole: Callable[[str], None]) -> None:
    """It works offline: no address in it at all."""
    html = page([report("chip", 30.0)], {})
    whole(html)
    assert "http" not in html and "src=" not in html


@pytest.mark.parametrize("sqnr", [math.inf, math.nan, -3.0, 140.0])
def test_odd_numbers_draw(sqnr: float) -> None:
    """No bar is wider than the picture or negative."""
    html = page([report("chip", sqnr)], {})
    widths = [float(w) for w in re.findall(r'<rect[^>]* width="([^"]+)"', html)]
    assert all(0 <= w <= 620 for w in widths)


def test_names_are_text_and_nothing_else() -> None:
    html = page([report("<script>x</script>", 30.0)], {})
    assert "<script>" not in html


def test_a_page_without_reports_says_so() -> None:
    assert "nothing was compared" in page([], {"chip": "gone"})
