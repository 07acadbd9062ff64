"""Changes that nobody should merge, made to the example repository as a colleague would make them.

Each is red in its pipeline, for its own reason, and green again once it is put right. What runs is
what the committed workflow says (see conftest.py). Ten of them run with every test run; those that
train or compile the most are marked slow.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest

etree: Any = import_module("lxml.etree")  # has no types

SCHEMAS = Path(__file__).resolve().parents[1] / "compiler" / "outlets" / "schemas"
FRESH, GATE = "The reference is fresh", "Hold models to parity.toml"

Edit = Callable[[Path], None]


@dataclass(frozen=True)
class Change:
    """What a colleague changes; the step that goes red, its exit code and what it says."""

    name: str
    edits: tuple[Edit, ...]
    step: str
    code: int
    says: tuple[str, ...]
    slow: bool = False


def edit(file: str, old: str, new: str) -> Edit:
    """Replace a text, which must be there once."""

    def apply(folder: Path) -> None:
        path = folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
        path.write_text(text.replace(old, new))

    return apply


def append(file: str, text: str) -> Edit:
    """Add a text at the end."""

    def apply(folder: Path) -> None:
        path = folder / file
        path.write_text(path.read_text() + text)

    return apply


def python(*words: str) -> Edit:
    """Run one of the repository's own programs, as its author would before a commit."""

    def apply(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    return apply


RECORD = python("record.py")
HEAD = "        return {"
WAIVER = """
[[waivers]]
model = "meter"
target = "{}"
check = "cosine"
reason = "until the new compiler is here"
expires = 2026-01-31
"""

CHANGES = (
    Change(
        "the checkpoint of another run, beside the reference of this one",
        (python("train.py", "1"),),
        FRESH, 6, ("output tens", "output units", "sha256_weights"),
    ),
    Change(
        "calibrated on images as the sensor gives them, 0 to 16",
        (edit("record.py", "calibration=prepare(seen[:CALIBRATION])",
              "calibration=seen[:CALIBRATION]"), RECORD),
        GATE, 6, ("use 6.2% of its calibrated range", "calibrate on data like that"),
    ),
    Change(
        "two outputs of one shape are swapped",
        (edit("model.py", '"tens": self.tens(found), "units": self.units(found)',
              '"tens": self.units(found), "units": self.tens(found)'),),
        FRESH, 6, ("output tens", "output units"),
    ),
    Change(
        "a raw counter in a corner of the image, for which int8 spends its whole range",
        (edit("data.py", "    return images / 16\n",
              "    images = images / 16\n    images[..., 0, 0] = 255\n    return images\n"),
         python("train.py"), RECORD),
        GATE, 6, ("failed: tens: agreement", "failed: read-right:", "SQNR"), slow=True,
    ),
    Change(
        "four bits for the weights",
        (edit("parity.toml", 'precision = "int8"', 'precision = "w4a8"'),
         edit("parity.toml", ', "dx-m1"', "")),
        GATE, 6, ("meter::cpu", "meter::atom", "SQNR"), slow=True,
    ),
    Change(
        "another padding, and nothing recorded again",
        (edit("model.py", "nn.Conv2d(1, 12, 3, padding=1)",
              'nn.Conv2d(1, 12, 3, padding=1, padding_mode="replicate")'),),
        FRESH, 6, ("output tens", "output units", "sha256_program"),
    ),
    Change(
        "dropout that stays on",
        (edit("model.py", "nn.Dropout(0.2)", "Dropped()"),
         edit("model.py", "class Meter(nn.Module):",
              "class Dropped(nn.Module):\n    def forward(self, x: Tensor) -> Tensor:\n"
              "        return nn.functional.dropout(x, 0.2)\n\n\nclass Meter(nn.Module):")),
        FRESH, 3, ("dropout",),
    ),
    Change(
        "an operator that one of the chips does not have",
        (edit("model.py", "self.features(image)", "self.features(image).sin()"),
         python("train.py"), RECORD),
        GATE, 4, ("meter::dx-m1", "Sin"), slow=True,
    ),
    Change(
        "a branch on data",
        (edit("model.py", HEAD,
              "        if found.max() > 8:\n            found = found / 2\n" + HEAD),),
        FRESH, 3, ("model.py:",),
    ),
    Change(
        "a waiver that has expired",
        (edit("parity.toml", "sqnr-db = 25", "sqnr-db = 25\ncosine = 0.999999"),
         *(append("parity.toml", WAIVER.format(target)) for target in ("cpu", "atom", "dx-m1"))),
        GATE, 6, ("EXPIRED on 2026-01-31", "until the new compiler is here"), slow=True,
    ),
    Change(
        "a typo in parity.toml",
        (edit("parity.toml", "agreement = 0.97", "agreemnet = 0.97"),),
        GATE, 2, ("agreemnet", "agreement", "line"),
    ),
    Change(
        "too few samples to say",
        (edit("record.py", "SAMPLES, CALIBRATION = 300", "SAMPLES, CALIBRATION = 50"), RECORD),
        GATE, 9, ("UNDECIDED", "more samples needed"), slow=True,
    ),
    Change(
        "recorded under autocast",
        (edit("record.py", "    strict=True,\n", ""),
         edit("record.py", "npuc.save(\n", 'torch.set_autocast_enabled("cpu", True)\nnpuc.save(\n'),
         RECORD),
        GATE, 6, ("autocast",), slow=True,
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [pytest.param(c, marks=pytest.mark.slow if c.slow else (), id=c.name) for c in CHANGES],
)
def test_a_bad_change_is_red_and_its_fix_is_green(change: Change, runner: Any) -> None:
    for apply in change.edits:
        apply(runner.folder)
    red = runner.github("parity")
    assert red.failed == change.step and red.code == change.code, red.text
    for text in change.says:
        assert text in red.text, red.text
    if change.step == GATE and change.code != 2:
        reports(red)
        assert "meter" in red.summary
    subprocess.run(["git", "checkout", "-q", "--", "."], cwd=runner.folder, check=True, timeout=60)
    green = runner.github("parity")
    assert not green.failed, green.text
    reports(green)


def reports(ran: Any) -> None:
    """Hold what a run uploads to the public schemas."""
    files = {path.name: path for path in ran.uploads["parity-report"]}
    assert files.keys() == {"junit.xml", "npuc.sarif", "index.html", "summary.md"}
    xsd = etree.XMLSchema(etree.parse(SCHEMAS / "junit-10.xsd"))
    xsd.assertValid(etree.parse(files["junit.xml"]))
    schema = json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text("utf-8"))
    sarif = json.loads(files["npuc.sarif"].read_text("utf-8"))
    jsonschema.Draft4Validator(schema).validate(sarif)
    assert bool(sarif["runs"][0]["results"]) == bool(ran.failed)
    assert ran.summary == files["summary.md"].read_text()
    assert ran.uploads["npuc"] == [files["npuc.sarif"]]
