"""Layers as text and as a page, from values made by hand.

The table is compared with tests/golden/layers.txt; ``NPUC_GOLDEN=write`` rewrites it.
"""

import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npuc.errors import UnsupportedError
from npuc.estimate import Estimate
from npuc.estimate import Layer as Bound
from npuc.jsonable import canonical
from npuc.layers.found import BINS, Coded, Culprit, Histogram, Layer, Layers
from npuc.layers.text import advice, finding, table
from npuc.metrics import Difference
from npuc.outlets import entry as entries_of
from npuc.pages import page as pages
from npuc.pages.page import page
from npuc.partition import Crossing
from npuc.policy import Bar
from npuc.report import Report, Row

GOLDEN = Path(__file__).parents[2] / "golden" / "layers.txt"
NAN, INF = math.nan, math.inf

LAYERS = (
    Layer("c0", "conv0", "Conv", "net.py:9", "stem", 44.0, 44.0, 43.5, ("x",)),
    Layer("r0", "relu0", "Relu", "net.py:10", "", 45.1, None, 44.0),
    Layer("c1", "conv1", "Conv", "net.py:12", "body.0", 12.1, 12.3, None, ("r0",)),
    Layer("n", "", "Add", "", "", NAN, 30.0, NAN, ("r0", "c1"), False),
    Layer("out", "head", "Gemm", "net.py:20", "head", 11.5, 40.0, 11.0, ("c1",), True),
)
CODED = {
    "x": Coded("x", -1.0, 1.0, 1 / 127, -0.9, 0.99, 0.0),
    "r0": Coded("r0", 0.0, 4.0, 4 / 255, 0.0, 4.0, 0.0),
    "c1": Coded("c1", -2.0, 2.0, 4 / 255, -2.5, 2.0, 0.0000123),
}
COUNTS = tuple(range(BINS))
WORST = (
    Culprit("c1", 38.0, 12.4, 31.2, (Histogram("r0", 0.0, 4.0, COUNTS, 96, 3, 40.4),)),
    Culprit("n", None, 30.0, None, (Histogram("c1", -2.5, 2.0, COUNTS, 0, 0, 0.0),)),
)
FOUND = Layers(LAYERS, CODED, WORST, 11.5, 8, "min-max")


def report(found: Layers | None = FOUND, **more: Any) -> Report:
    """Return a report of a failed step."""
    bar = Bar("SQNR >= 20 dB", "because", sqnr_db=20)
    difference = Difference("out", 0.1, 0.1, 0.02, 4.0, 11.5, 0.9, agreement=1.0, rows=4)
    rows = (
        Row("exported", "ok", (replace(difference, sqnr_db=130.0),)),
        Row("artifact", "failed", (difference,), bar=bar, faults=("out: SQNR 11.5 dB",)),
    )
    return Report("m.pt", "chip", "int8", "twin", "", "its data", rows, layers=found, **more)


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_table() -> None:
    text = table(FOUND) + "\n"
    if os.environ.get("NPUC_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
    assert all(line == line.rstrip() for line in text.splitlines())


def test_no_layer_alone_is_blamed_where_none_gives_much_back() -> None:
    even = replace(FOUND, worst=(replace(WORST[0], restored=11.9), WORST[1]))
    assert "no layer alone is to blame" in finding(even)
    tried = advice(even)
    assert tried is not None and tried[0] == "--precision auto"


def test_the_layer_that_gives_most_back_goes_before_the_one_where_most_is_born() -> None:
    second = replace(WORST[1], restored=50.0)
    assert finding(replace(FOUND, worst=(WORST[0], second))).startswith("Add 'n' costs most")


def test_only_what_a_precision_has_is_advised() -> None:
    """Ranges matter to integers alone; where floats are only rounded nothing can be left out."""
    tried = advice(replace(FOUND, observer="none"))
    assert tried is not None and tried[0] == "--skip conv1"
    even = replace(FOUND, worst=(replace(WORST[0], restored=11.9),))
    assert advice(replace(even, observer="none")) is None
    assert advice(replace(FOUND, observer="")) is None


def test_a_name_is_quoted_for_the_shell() -> None:
    odd = replace(LAYERS[2], node="a b; rm -rf x")
    tried = advice(replace(FOUND, layers=(*LAYERS[:2], odd, *LAYERS[3:])))
    assert tried is not None and tried[0] == "--skip 'a b; rm -rf x'"


def test_layers_are_in_the_json_in_full() -> None:
    data = report().to_json()["layers"]
    assert [layer["tensor"] for layer in data["layers"]] == ["c0", "r0", "c1", "n", "out"]
    assert data["layers"][3]["accumulated"] == "nan" and data["layers"][1]["born"] is None
    assert data["worst"][0]["histograms"][0]["counts"] == list(COUNTS)
    assert data["coded"]["c1"]["clipped"] == 0.0000123
    assert canonical(report().to_json())  # no number that JSON does not have
    assert report(None).to_json()["layers"] is None


def test_the_page_shows_all_of_the_report(whole: Callable[[str], None]) -> None:
    bound = Estimate("chip", "int8", (Bound("conv", "Conv", 10, 5, 5, 5, 2e-6, None),), 5, 5, True)
    html = page(
        report(
            estimate=bound, placement={"Conv": "chip", "TopK": "host"}, notes=("a note",),
            crossings=(Crossing("t", "float32", (4,), 16, "host"),), dims={"batch": 4},
            assumed={"int8.ops": "all (assumed)"}, fingerprint={"device": "cpu", "torch": "2.9"},
        )
    )  # fmt: skip
    whole(html)
    shown = text_of(html)
    for words in (
        "m.pt → chip int8", "FAILED", "out: SQNR 11.5 dB", "batch=4", "a note",
        "Conv &#x27;conv1&#x27; (net.py:12 body.0) costs most: 12.3 dB on its own",
        "Most of it is lost in Conv &#x27;conv1&#x27; ( net.py:12 body.0 )",
        "from 11.5 dB to 31.2 dB", "Try --skip conv1 ,", "3 of 96 channels", "codes reach [0, 4]",
        "one code is worth 0.0157", "host TopK", "Tensors that cross per call: 1, 16 B",
        "At least 2 µs", "int8.ops all (assumed)", "torch 2.9", "NaN", "&lt;0.01%",
        "11.5 dB SQNR of the artifact",
    ):  # fmt: skip
        assert words in shown, words
    assert "<title>Conv &#x27;conv1&#x27;\naccumulated 12.1 dB, born here 12.3 dB" in html


def test_the_plot_holds_every_dot_and_bar() -> None:
    """NaN, Inf and what lies outside the axis stay within the drawing."""
    wild = (
        replace(LAYERS[0], accumulated=INF, born=INF, device=-INF),
        replace(LAYERS[2], accumulated=-40.0, born=-INF),
        replace(LAYERS[4], accumulated=300.0, born=NAN),
    )
    html = page(report(replace(FOUND, layers=(*wild, LAYERS[3]), output=NAN)))
    for tag, limit in (("cx", 794.0), ("cy", 290.0)):
        places = [float(v) for v in re.findall(rf'{tag}="([^"]+)"', html)]
        assert places and all(0 <= place <= limit for place in places)
    points = [p for line in re.findall(r'points="([^"]+)"', html) for p in line.split()]
    assert points and all(0 <= float(p.split(",")[1]) <= 290 for p in points)
    sizes = [float(v) for v in re.findall(r'<rect[^>]* (?:width|height)="([^"]+)"', html)]
    assert all(size >= 0 for size in sizes)


def test_codes_that_are_floats_have_no_step() -> None:
    floats = {**CODED, "r0": replace(CODED["r0"], step=0.0)}
    html = page(report(replace(FOUND, coded=floats)))
    assert "codes are floats" in html


def test_names_are_text_and_nothing_else(whole: Callable[[str], None]) -> None:
    bad = "</svg><script>x</script>\"'&"
    layers = tuple(replace(x, node=bad, source=bad, module=bad, op=bad) for x in LAYERS)
    layers = (replace(layers[0], reads=(bad,)), *layers[1:])
    coded = {**CODED, bad: replace(CODED["x"], tensor=bad)}
    worst = replace(WORST[0], histograms=(replace(WORST[0].histograms[0], tensor=bad),))
    found = Layers(layers, coded, (worst, WORST[1]), 11.5, 8, "min-max")
    html = page(
        replace(
            report(found), model=bad, target=bad, precision=bad, evidence=bad, vendor=bad,
            reference=bad, notes=(bad,), placement={bad: bad}, fingerprint={bad: bad},
            dims={bad: 1}, assumed={bad: bad},
        )
    )  # fmt: skip
    assert html.count("<script>") == 1
    whole(html)


@pytest.mark.parametrize("found", [None, Layers((), {}, (), INF, 0)])
def test_a_page_without_layers_says_so(found: Layers | None, whole: Callable[[str], None]) -> None:
    html = page(report(found))
    whole(html)
    assert "Layers were not measured" in html or "Nothing was quantized" in html
    assert table(found)


def test_several_targets_get_the_page_that_sets_them_side_by_side() -> None:
    broke = UnsupportedError("it broke", hint="npuc check m.pt")
    one = pages.fitting(entries_of.of([report()], {}))
    assert "<h1>m.pt → chip <small>int8" in one and "Per model and target" not in one
    for reports, failed in (([report(), report()], {}), ([report()], {"other": broke})):
        html = pages.fitting(entries_of.of(reports, failed))
        assert "Per model and target" in html and "Layer by layer" in html
    html = pages.fitting(entries_of.of([], {"other": broke}, "/x/m.pt"))
    assert "other" in html and "npuc check m.pt" in html and "ERROR" in html
