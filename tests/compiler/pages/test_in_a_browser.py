"""The pages in headless Chromium, at the width of a desk and of a phone, clicked through.

Pictures are kept in the test's folder: look at them after a change.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from npuc.errors import UnsupportedError
from npuc.estimate import Estimate
from npuc.estimate import Layer as Bound
from npuc.held import Held
from npuc.layers.found import BINS, Coded, Culprit, Histogram, Layer, Layers
from npuc.metrics import Difference
from npuc.outlets import entry as entries_of
from npuc.outlets.entry import Entry
from npuc.pages.page import gate, page
from npuc.partition import Crossing
from npuc.policy import Bar
from npuc.report import Report, Row

WIDTHS = (1280, 390)
LONG = "encoder_layers_11_attention_self_query_key_value_projection_MatMul_output_0"


class Browser(Protocol):
    """What the tests ask of the browser of conftest.py."""

    faults: list[str]
    requests: list[str]

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None: ...
    def run(self, script: str) -> Any: ...
    def click(self, query: str, at: int = 0) -> None: ...
    def press(self, key: str, code: int, text: str = "") -> None: ...
    def type(self, text: str) -> None: ...
    def shoot(self, path: Path, whole: bool = True) -> Path: ...


def layers(count: int = 60) -> Layers:
    """Return as many layers as a small network has, with names as long as exporters make them."""
    found = tuple(
        Layer(f"t{at}", f"{LONG}_{at}", "MatMul", f"transformer/encoder.py:{at}", f"layers.{at}",
              60.0 - at / 2, 45.0 - at % 7 if at % 3 else None, 58.0 - at / 2, (f"t{at - 1}",),
              at == count - 1)
        for at in range(count)
    )  # fmt: skip
    coded = {f"t{at}": Coded(f"t{at}", -1.0, 1.0, 2 / 255, -1.5, 0.9, 0.02) for at in range(count)}
    chart = tuple(
        Culprit(f"t{at}", 50.0, 41.0, 33.0,
                (Histogram(f"t{at - 1}", -1.5, 1.0, tuple(range(BINS)), 64, 2, 7.0),))
        for at in (5, 11, 20)
    )  # fmt: skip
    return Layers(found, coded, chart, 30.5, 8, "min-max")


def report(target: str, sqnr: float, **more: Any) -> Report:
    """Return a report with everything that a page can show."""
    difference = Difference("logits", 0.5, 1.0, 0.1, 4.0, sqnr, 0.99, 0.97, 400)
    other = replace(difference, output=LONG, sqnr_db=sqnr + 9)
    bar = Bar("SQNR >= 20 dB of original", "because", sqnr_db=20.0)
    ok = sqnr >= 20
    quiet = Row("simplify", "ok", (replace(difference, sqnr_db=130.0),))
    rows = (
        quiet, replace(quiet, stage="fold-constants"), replace(quiet, stage="fold-batchnorm"),
        Row("artifact", "ok" if ok else "failed", (difference, other), bar=bar,
            faults=() if ok else (f"logits: SQNR {sqnr} dB < 20.0 dB", f"{LONG}: too far")),
    )  # fmt: skip
    held = (
        Held("agreement", "logits", "ok" if ok else "failed", "logits: 97 % of 400 agree", 0.97,
             0.95 if ok else 0.98, 0.954, None, 400),
        Held("metric.mAP", "", "waived", "mAP drops by 3 points", 0.03, 0.01, 0.02, 0.04, 400,
             waiver="vendor's resize, ticket 4711; until 2027-01-31"),
    )  # fmt: skip
    works = tuple(Bound(f"{LONG}_{n}", "MatMul", 9, 1, 1, 1, n * 1e-6, 2e-6) for n in range(1, 9))
    return Report(
        "encoder.pt", target, "int8", "twin", "its compiler was not run", "its own data", rows,
        assumed={"int8.ops": "['Conv', 'MatMul'] (assumed)"},
        notes=("a note", "doubtful reference: TF32 was on for matmul"), dims={"batch": 1},
        placement={"MatMul": target, "TopK": "host", "Softmax": f"host+{target}"},
        crossings=(Crossing(LONG, "float32", (1, 128, 768), 393216, "host"),),
        estimate=Estimate(target, "int8", works, 5, 5, True), layers=layers(),
        fingerprint={"device": "NVIDIA H100", "sha256_weights": "5f" * 32, "tf32_matmul": True},
        held=held, call={"source": "encoder.pt", "precision": "int8"}, **more,
    )  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Write a page to a file."""

    def write(html: str) -> Path:
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        return path

    return write


def entries() -> tuple[Entry, ...]:
    """Return pairs in every state, of two models."""
    error = UnsupportedError(f"cannot lower {LONG}", hint="npuc check encoder.pt --target rk3588")
    undecided = replace(report("warboy", 31.0), held=(
        Held("agreement", "logits", "undecided", "96 % of 50: 340 more samples needed", 0.96, 0.97,
             0.88, 0.99, 50, 340),
    ))  # fmt: skip
    first = entries_of.of(
        [report("cpu", 120.0), report("atom", 11.5), undecided], {"rk3588": error}
    )
    names = ("classifier::cpu", "classifier", "cpu")
    passed = replace(report("cpu", 125.0), held=())
    return (*first, Entry(*names, passed, "", 0, cached=True))


def settled(browser: Browser, path: Path) -> None:
    """Check what must hold whatever was clicked."""
    assert browser.faults == []
    assert browser.requests == [path.as_uri()]
    wide, shown = browser.run("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= shown
    assert browser.run("[...document.querySelectorAll('.wide')].every(box => "
                       "box.getBoundingClientRect().right <= innerWidth)")  # fmt: skip


def seen(browser: Browser) -> str:
    """Return the text that is visible."""
    text: str = browser.run("document.body.innerText")
    return text


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_one_report(
    width: int, dark: bool, chromium: Browser, written: Callable[[str], Path], tmp_path: Path
) -> None:
    path = written(page(report("atom", 11.5)))
    chromium.open(path, width, 844, dark)
    chromium.shoot(tmp_path / "opened.png")
    for words in ("FAILED", "SQNR 11.5 dB < 20.0 dB", "WAIVED", "ticket 4711", "11.5 dB",
                  "What it is held to", "TF32 was on", "NVIDIA H100"):  # fmt: skip
        assert words in seen(chromium), words
    settled(chromium, path)

    hidden = {"All 40 layers": "codes reach", "more steps": "fold-batchnorm",
              "What is assumed": "int8.ops", "What was asked": "precision"}  # fmt: skip
    assert "fold-batchnorm" not in seen(chromium)
    titles: list[str] = chromium.run(
        "[...document.querySelectorAll('summary')].map(s => s.innerText)"
    )
    for title, words in hidden.items():
        before = chromium.run("[...document.querySelectorAll('details[open]')].length")
        chromium.click("summary", next(at for at, t in enumerate(titles) if title in t))
        assert chromium.run("[...document.querySelectorAll('details[open]')].length") == before + 1
        assert words in seen(chromium), title
        settled(chromium, path)
    # What is open closes too, by the keyboard as well.
    first = "document.querySelector('details')"
    chromium.click("summary")
    assert not chromium.run(f"{first}.open")
    chromium.run(f"{first}.querySelector('summary').focus()")
    chromium.press("Enter", 13, "\r")
    assert chromium.run(f"{first}.open")
    chromium.shoot(tmp_path / "all-open.png")
    settled(chromium, path)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_dot_says_its_name(
    width: int, chromium: Browser, written: Callable[[str], Path], tmp_path: Path
) -> None:
    path = written(page(report("atom", 11.5)))
    chromium.open(path, width)
    assert chromium.run("document.querySelector('output').innerText") == ""
    chromium.click("svg.probe")
    said = chromium.run("document.querySelector('output').innerText")
    assert LONG in said and "accumulated" in said and "transformer/encoder.py:" in said
    chromium.press("ArrowRight", 39)
    other = chromium.run("document.querySelector('output').innerText")
    assert other != said and LONG in other
    chromium.shoot(tmp_path / "probe.png", whole=False)
    settled(chromium, path)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_gate(
    width: int, chromium: Browser, written: Callable[[str], Path], tmp_path: Path
) -> None:
    path = written(gate(entries()))
    chromium.open(path, width)
    chromium.shoot(tmp_path / "opened.png")
    settled(chromium, path)
    rows = "[...document.querySelectorAll('tbody tr[data-state]')]"
    pairs = "[...document.querySelectorAll('details.pair')]"
    visible = ".filter(x => x.checkVisibility()).map(x => x.dataset.name)"
    assert len(chromium.run(rows + visible)) == 5

    chromium.click("button[data-only='undecided']")
    assert chromium.run(rows + visible) == ["encoder.pt::warboy"] == chromium.run(pairs + visible)
    assert "340 more samples needed" in seen(chromium)
    chromium.click("button[data-only='']")
    chromium.click("input[type=search]")
    chromium.type("CLASSIF")
    assert chromium.run(rows + visible) == ["classifier::cpu"] == chromium.run(pairs + visible)
    chromium.run("document.querySelector('input').select()")
    chromium.press("Backspace", 8)
    assert len(chromium.run(rows + visible)) == 5

    heads: list[str] = chromium.run(
        "[...document.querySelectorAll('.sort th')].map(h => h.innerText)"
    )
    at = next(i for i, head in enumerate(heads) if head.startswith("SQNR"))
    sqnr = f"{rows}.map(row => row.cells[{at}].innerText)"
    chromium.click(".sort th button", at)
    assert chromium.run(sqnr) == ["", "11.5", "31.0", "120.0", "125.0"]
    chromium.click(".sort th button", at)
    assert chromium.run(sqnr) == ["125.0", "120.0", "31.0", "11.5", ""]
    settled(chromium, path)

    chromium.click("button[data-open='no']")
    assert chromium.run(f"{pairs}.every(pair => !pair.open)")
    chromium.click(".sort tbody a")  # the best one is first now
    assert chromium.run("location.hash").startswith("#pair-")
    # The pair opens in an event that follows the change of the address.
    opened: list[str] = chromium.run(
        f"new Promise(done => setTimeout(() => done({pairs}.filter(pair => pair.open)"
        ".map(p => p.dataset.name)), 200))"
    )
    assert opened == ["classifier::cpu"]
    chromium.click("button[data-open='yes']")
    assert chromium.run(f"{pairs}.every(pair => pair.open)")
    chromium.shoot(tmp_path / "all-open.png")
    settled(chromium, path)


@pytest.mark.parametrize("width", WIDTHS)
def test_it_reads_without_its_script(
    width: int, chromium: Browser, written: Callable[[str], Path]
) -> None:
    """Parts fold without it, and nothing is offered that does not work."""
    html = gate(entries())
    path = written(html[: html.index("<script>")] + "</body></html>")
    chromium.open(path, width)
    assert not chromium.run("document.querySelector('.tools').checkVisibility()")
    assert "SQNR 11.5 dB < 20.0 dB" in seen(chromium)
    count = chromium.run("document.querySelectorAll('details[open]').length")
    chromium.click("details.pair:not([open]) > summary")
    assert chromium.run("document.querySelectorAll('details[open]').length") > count
    settled(chromium, path)


def test_a_name_cannot_run_or_fetch_anything(
    chromium: Browser, written: Callable[[str], Path]
) -> None:
    bad = "<img src='https://example.com/x.png' onerror='document.title=1'><script>x</script>"
    made = replace(report("atom", 11.5), model=bad, notes=(bad,))
    path = written(page(made))
    chromium.open(path, 1280)
    assert chromium.run("document.images.length") == 0
    assert bad in seen(chromium)
    settled(chromium, path)


def test_the_browser_notices_what_it_is_asked_for(
    chromium: Browser, written: Callable[[str], Path]
) -> None:
    """A page that fetches, fails and is too wide fails the checks above."""
    path = written("<body style='width:2000px'><img src=other.png><script>undefined.x</script>")
    chromium.open(path, 390)
    assert any("TypeError" in fault for fault in chromium.faults)
    assert [Path(url).name for url in chromium.requests] == ["page.html", "other.png"]
    with pytest.raises(AssertionError):
        settled(chromium, path)
