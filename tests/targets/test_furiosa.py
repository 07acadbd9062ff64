"""Warboy: the ranges in the model, and furiosa-compiler's documented command line."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from npuc.errors import UsageError
from npuc.passes.graphs import constant
from npuc.profile import Profile
from npuc.targets.base import Handover
from npuc.targets.furiosa import FuriosaCompiler
from npuc.targets.furiosa_ranges import KEY, yaml

FAKE = Path(__file__).parent / "fake_furiosa" / "furiosa-compiler"
VARIABLE = "NPUC_WARBOY_COMPILER"


def seen(binary: bytes) -> dict[str, Any]:
    """Return what the stand-in was handed."""
    found: dict[str, Any] = json.loads(binary.removeprefix(b"FAKE-ENF"))
    return found


@pytest.mark.parametrize("model", ["image", "pair", "batch"])
def test_the_documented_command(
    model: str, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """The stand-in takes opset 13 with a range for every tensor; the cache is off."""
    install(VARIABLE, "fake_furiosa", command=f"{sys.executable} {FAKE}")
    built = bench(FuriosaCompiler(), "warboy", model).build()
    call = seen(built.files["model.enf"])
    assert call["npu"] == "warboy-2pe" and call["cache"] == "0"
    assert call["home"] != os.environ.get("HOME")
    assert built.said == "furiosa-compiler 0.10.0 compiled model.enf for warboy-2pe; not run"


def test_one_processing_element(bench: Callable[..., Any], install: Callable[..., None]) -> None:
    """The variable chooses the NPU; a name that furiosa-compiler does not know is refused."""
    install(VARIABLE, "fake_furiosa", command=f"{sys.executable} {FAKE}", NPUC_WARBOY_NPU="warboy")
    kit = bench(FuriosaCompiler(), "warboy")
    assert seen(kit.build().files["model.enf"])["npu"] == "warboy"
    install(VARIABLE, NPUC_WARBOY_NPU="rngd")
    with pytest.raises(UsageError, match="rngd"):
        kit.build()


def test_coded_tensors_have_the_range_of_their_codes(job: Callable[..., Handover]) -> None:
    """s·(-128 - z) to s·(127 - z), by the name the float model has; others as they were seen."""
    profile = Profile.load("warboy")
    made = job("image", profile)
    kit = FuriosaCompiler().kit(made, profile)
    proto = onnx.load_from_string(kit["model.onnx"])
    (text,) = (p.value for p in proto.metadata_props if p.key == KEY)
    names = [json.loads(line[:-1]) for line in text.splitlines()[1::3]]
    assert names == sorted(["x", "123", "r", "g", "f", "y"])
    numbers = {n: tuple(map(float, _pair(text, n))) for n in names}

    assert made.quantized is not None
    coded = set()
    for node in made.quantized.model.graph:
        source = node.inputs[0]
        if node.op_type == "QuantizeLinear" and source is not None and source.name in names:
            scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
            assert scale is not None and zero is not None
            s, z = float(scale), int(zero)
            assert numbers[source.name] == (s * (-128 - z), s * (127 - z))
            coded.add(source.name)
    assert "x" in coded and "123" not in coded
    # `123` goes into a Relu only, which its Conv absorbs: what the calibration showed.
    from npuc.runners import OnnxRunner

    run = OnnxRunner(made.program, extra=["123"])
    arrays = [run(call)["123"] for call in made.calibration]
    assert numbers["123"] == (float(np.min(arrays)), float(np.max(arrays)))


def _pair(text: str, name: str) -> list[str]:
    lines = text.splitlines()
    at = lines.index(f"{json.dumps(name)}:")
    return [line.removeprefix("  - ") for line in lines[at + 1 : at + 3]]


def test_numbers_that_every_yaml_reader_takes_for_floats() -> None:
    """1e-07 without a dot is a word in YAML 1.1; names are quoted, since 123 would be a number."""
    text = yaml({"123": (-1e-07, 2.5), "a\nb": (0.0, 3.0)})
    assert text == '---\n"123":\n  - -1.0e-07\n  - 2.5\n"a\\nb":\n  - 0.0\n  - 3.0\n'


def test_the_command_on_path(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the variable PATH is searched."""
    install(VARIABLE)
    monkeypatch.delenv(VARIABLE)
    tool, profile = FuriosaCompiler(), Profile.load("warboy")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool.find(profile).missing == "not installed here"
    script = tmp_path / "furiosa-compiler"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{FAKE}' \"$@\"\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    found = tool.find(profile)
    assert not found.missing and found.version == "0.10.0"


def test_metadata_of_the_model_stays_here(job: Callable[..., Handover]) -> None:
    """Where a node comes from in the user's source is not handed to a vendor."""
    profile = Profile.load("warboy")
    made = job("image", profile)
    program = made.program.clone()
    for node in program.model.graph:
        node.metadata_props["npuc.source"] = "secret/place.py:3"
    kit = FuriosaCompiler().kit(Handover(program, made.calibration, "int8"), profile)
    assert b"secret" not in kit["model.onnx"]
    assert all(node.metadata_props for node in program.model.graph)
