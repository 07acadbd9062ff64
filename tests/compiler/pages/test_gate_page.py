"""The page of a gate: many models and targets."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from npuc.errors import ToolchainError, UnsupportedError
from npuc.estimate import Estimate, Layer
from npuc.held import Held
from npuc.metrics import Difference
from npuc.outlets import entry as entries_of
from npuc.outlets.entry import Entry
from npuc.pages.page import gate, page
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
    body = html[html.index("<body>") :]
    body = body[: body.index("<script>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_page_shows_every_target_with_what_its_artifact_answers() -> None:
    layer = Layer("conv", "Conv", 10, 5, 5, 5, 2e-6, None)
    bound = Estimate("chip-b", "int8", (layer,), 5, 5, True)
    crossing = Crossing("t", "float32", (4,), 16, "host")
    second = report(
        "chip-b", 12.5, estimate=bound, placement={"Conv": "chip-b", "TopK": "host"},
        crossings=(crossing,), assumed={"int8.ops": "all (assumed)"}, notes=("a note",),
    )  # fmt: skip
    crashed = ToolchainError("its compiler <crashed>", hint="npuc toolchain")
    html = gate(entries_of.of([second, report("chip-a", 41.25)], {"chip-c": crashed}))
    shown = text_of(html)
    for words in (
        "m.pt on 3 targets", "m.pt chip-a passed 41.2", "m.pt chip-b FAILED 12.5",
        "TopK (tensors that cross: 1)", "2 µs", "not public", "1 failed, 1 error, 1 passed",
        "its compiler &lt;crashed&gt;", "npuc toolchain", "int8.ops all (assumed)", "a note",
        "a lower bound from public peaks, no prediction", "y: SQNR too low", "Reference: its data",
    ):  # fmt: skip
        assert words in shown, words
    assert shown.index("chip-b") < shown.index("chip-c") < shown.index("chip-a")


def test_only_what_did_not_pass_is_open() -> None:
    html = gate(entries_of.of([report("a", 12.5), report("b", 30.0)], {"c": UnsupportedError("x")}))
    opened = dict(
        re.findall(r'<details class="pair" id="pair-\d" [^>]*data-name="m.pt::(.)"(.*?)>', html)
    )
    assert opened == {"a": " open", "b": "", "c": " open"}
    assert set(re.findall(r'href="#([^"]+)"', html)) == set(re.findall(r'id="([^"]+)"', html))


def test_what_is_held_is_drawn_with_its_interval() -> None:
    wide = Held("agreement", "y", "undecided", "96 % of 50", 0.96, 0.97, 0.88, 0.99, 50, 340)
    least = Held("metric.accuracy", "", "ok", "fine", 0.001, 0.01, high=0.004, samples=9000)
    odd = Held("sqnr_db", "y", "waived", "exact", math.inf, 20.0, waiver="why not; until May")
    html = page(report("chip", 30.0, held=(wide, least, odd)))
    shown = text_of(html)
    for words in ("UNDECIDED", "96 % of 50", "9,000", "why not; until May", "inf"):
        assert words.lower() in shown.lower(), words
    assert "true value 0.88 to 0.99" in html and "true value at most 0.004" in html
    assert html.count('<svg class="tiny"') == 2
    places = [
        float(v) for v in re.findall(r'<(?:circle|line|rect)[^>]* (?:cx|x|x1)="([^"]+)"', html)
    ]
    assert places and all(0 <= place <= 220 for place in places)


def test_a_doubtful_reference_is_not_folded_away() -> None:
    doubtful = report("chip", 30.0, notes=("doubtful reference: TF32 was on for matmul",))
    html = page(doubtful)
    assert "<details open><summary><h2>What it was compared with" in html
    assert "<details><summary><h2>What it was compared with" in page(report("chip", 30.0))


def test_a_waiver_shows_though_the_pair_passes() -> None:
    (entry,) = entries_of.of([report("chip", 12.5)], {})
    assert entry.report is not None
    rows = tuple(
        replace(r, state="waived", note="ticket 4711; until May") if r.state == "failed" else r
        for r in entry.report.rows
    )
    waived = replace(entry, report=replace(entry.report, rows=rows), exit_code=0)
    lost = Entry("n::t", "n", "t", None, "no compiler", 0, waived="asked; until June")
    shown = text_of(gate([waived, lost]))
    assert "passed 2 waived" in shown and "4711" in shown and "until June" in shown


def test_the_page_is_whole_and_asks_for_nothing(whole: Callable[[str], None]) -> None:
    """It works offline: no address in it at all, and its policy lets nothing be fetched."""
    html = gate(entries_of.of([report("chip", 30.0), report("other", 2.0)], {}))
    whole(html)
    assert "://" not in html and "src=" not in html and "default-src 'none'" in html


@pytest.mark.parametrize("sqnr", [math.inf, math.nan, -3.0, 140.0])
def test_odd_numbers_draw(sqnr: float) -> None:
    """No bar is longer than its place or negative."""
    html = gate(entries_of.of([report("chip", sqnr), report("other", 30.0)], {}))
    shares = [float(share) for share in re.findall(r"--share:([^;]+);", html)]
    assert shares and all(0 <= share <= 1 for share in shares)


def test_the_line_is_at_the_bar_that_all_are_held_to() -> None:
    def with_bar(target: str, decibels: float) -> Report:
        made = report(target, 50.0)
        bar = Bar("SQNR", "because", sqnr_db=decibels)
        rows = (made.rows[0], replace(made.rows[1], bar=bar), made.rows[2])
        return replace(made, rows=rows)

    same = gate(entries_of.of([with_bar("a", 36.0), with_bar("b", 36.0)], {}))
    assert "36 dB, what they are held to" in same and "--mark:0.6000" in same
    mixed = gate(entries_of.of([with_bar("a", 36.0), with_bar("b", 20.0)], {}))
    assert "--mark:" not in mixed


def test_names_are_text_and_nothing_else(whole: Callable[[str], None]) -> None:
    bad = "</td><script>x</script>\"'&\x00\x1b[31m\ud800"
    made = replace(report("t", 12.0), model=bad, target=bad, notes=(bad,), call={bad: bad})
    held = Held(bad, bad, "failed", bad, 0.0, 1.0, waiver=bad)
    entry = Entry(bad, bad, bad, replace(made, held=(held,)), bad, 6, notes=(bad,))
    html = gate([entry, replace(entry, report=None)])
    assert html.count("<script>") == 1
    assert "\x00" not in html and "\x1b" not in html
    whole(html)
    html.encode()


def test_a_page_without_pairs_says_so(whole: Callable[[str], None]) -> None:
    html = gate([])
    whole(html)
    assert "nothing was compared" in html and "FAILED" in html
