"""Reports for the tests of outlets: one made by hand with every state, and real ones."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from npuc.held import Held
from npuc.layers.found import BINS, Coded, Culprit, Histogram, Layer, Layers
from npuc.metrics import Difference
from npuc.outlets.entry import Entry
from npuc.policy import Bar
from npuc.report import Report, Row

BAR = Bar("SQNR >= 20 dB of original", "because", sqnr_db=20.0)
DIFFERENCE = Difference("logits", 0.125, 0.5, 0.02, 4.0, 31.25, 0.9995, 0.995, 200)
FAR = replace(DIFFERENCE, max_abs=2.5, sqnr_db=11.5, cosine=0.93, agreement=0.71)
FINE = Held(
    "agreement", "logits", "ok", "logits: agreement 99.5 % >= 97 %: at least 97.4 % at 95 %",
    0.995, 0.97, low=0.974, samples=200,
)  # fmt: skip
OPEN = Held(
    "metric.accuracy", "", "undecided",
    "accuracy: a drop of 0.5 points may be 2.1: 3,200 more samples needed", 0.005, 0.01,
    low=-0.011, high=0.021, samples=100, needed=3200,
)  # fmt: skip
WAIVED = Held(
    "max_noise", "boxes", "waived", "boxes: 11 times the noise > 8 (waived until 2027-01-31)",
    11.0, 8.0, waiver="vendor's resize, ticket 4711; expires 2027-01-31",
)  # fmt: skip
LAYERS = Layers(
    (
        Layer("c0", "conv0", "Conv", "digits/net.py:3", "stem", 44.0, 44.0, 43.5, ("x",)),
        Layer("out", "head", "Gemm", "digits/net.py:9", "head", 11.5, 12.0, 11.0, ("c0",), True),
    ),
    {"c0": Coded("c0", 0.0, 4.0, 4 / 255, 0.0, 4.5, 0.031)},
    (Culprit("out", 38.0, 12.4, 31.2, (Histogram("c0", 0.0, 4.5, (5,) * BINS, 8, 1, 9.0),)),),
    11.5, 8, "min-max",
)  # fmt: skip


def report(target: str, *held: Held, fails: bool = False, layers: Layers | None = None) -> Report:
    """Return a report of three steps whose artifact fails or not."""
    faults = ("logits: SQNR 11.5 dB < 20.0 dB", "logits: cosine 0.93000 < 0.99")
    last = Row("artifact", "failed" if fails else "ok", (FAR if fails else DIFFERENCE,), bar=BAR,
               faults=faults if fails else ())  # fmt: skip
    rows = (
        Row("exported", "ok", (replace(DIFFERENCE, sqnr_db=130.0),)),
        Row("quantize", "ok", (DIFFERENCE,), bar=BAR),
        last,
    )
    return Report(
        "digits.pt", target, "int8", "twin", "", "its own samples (cpu, torch 2.13)", rows,
        assumed={"int8.ops": "all (assumed)"}, notes=("the last batch is padded",),
        layers=layers, held=held, fingerprint={"device": "cpu", "torch": "2.13"},
    )  # fmt: skip


def entry(target: str, made: Report | None, error: str = "", code: int | None = None) -> Entry:
    """Return the entry of one target of the model "digits"."""
    found = code if code is not None else made.exit_code if made else 5
    return Entry(f"digits::{target}", "digits", target, made, error, found, False,
                 "digits/model.pt", 1.5)  # fmt: skip


@pytest.fixture
def entries() -> tuple[Entry, ...]:
    """One entry of every state, with names that no format takes as they are."""
    odd = "cannot lower <Conv> | \x1b[31m`TopK`\x00\n→ npuc check digits/model.pt --target rk3588"
    known = report("aries", fails=True)
    let = replace(known.rows[2], state="waived", note="old silicon; waived until 2027-01-31")
    return (
        entry("cpu", report("cpu", FINE)),
        entry("warboy", report("warboy", FINE, WAIVED)),
        entry("atom", report("atom", fails=True, layers=LAYERS)),
        entry("dx-m1", report("dx-m1", OPEN)),
        entry("rk3588", None, odd, 4),
        replace(entry("rngd", None, "no such operator: Foo", 0), waived="asked; until May"),
        entry("aries", replace(known, rows=(*known.rows[:2], let))),
        replace(entry("tpu", report("tpu")), cached=True, notes=("the waiver of x EXPIRED",)),
    )


@pytest.fixture(scope="session")
def real(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Report]:
    """Reports that a compile made: one that passes, and one that cannot at its bar."""
    from npuc import pipeline
    from npuc.policy import Policy

    folder = tmp_path_factory.mktemp("outlets")
    kept = pipeline.compile(recorded, target=["cpu", "rk3588"], output=folder, layers=True)
    strict = Policy(sqnr_db=90.0)
    (failed,) = pipeline.compile(recorded, target="atom", output=folder, layers=True, policy=strict)
    return {c.report.target: c.report for c in (*kept, failed)}
