"""OpenVINO's answers cross a pipe from a process of its own. OpenVINO is a stand-in here."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npuc.errors import ToolchainError
from npuc.program import Tensors
from npuc.runners import OnnxRunner
from npuc.targets import openvino_runner, tvm
from npuc.targets.base import Handover, LowerOptions, Runner
from npuc.targets.openvino import OpenVino, openvino

VARIABLE, FAKE = "NPUC_OPENVINO_PYTHON", "fake_openvino"


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> OpenVino:
    """Return the target, with a twin that costs nothing."""
    twin = tvm.Lowered({"payload/model.so": b"twin"}, {"tvm": "0"}, {"Conv": "tvm"})
    monkeypatch.setattr(tvm, "lower", lambda program, *, cpu, fallback: twin)
    monkeypatch.setattr(tvm, "load", lambda files, program: "the twin")
    found = openvino()
    assert isinstance(found, OpenVino)
    return found


@pytest.fixture
def compiled(
    target: OpenVino, job: Callable[..., Handover], install: Callable[..., None], tmp_path: Path
) -> Callable[..., tuple[Runner, Handover]]:
    """Return a function: (precision, how it fails when asked) → (runner, what was compiled)."""

    def make(precision: str = "float", model: str = "pair", **chosen: str) -> Any:
        install(VARIABLE, FAKE, **chosen)
        given = job(model, target.profile, precision)
        program = given.quantized or given.program
        payload = target.lower(program, LowerOptions(precision, handover=given), tmp_path)
        assert payload.evidence == "device" and "ran on this CPU" in payload.vendor
        return target.runner(payload.files, program), given

    return make


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_openvino_answers(precision: str, compiled: Callable[..., tuple[Runner, Handover]]) -> None:
    """What the model answers, for every call, by the names of its outputs."""
    runner, given = compiled(precision)
    assert runner.name.startswith("openvino 2026.4.1")
    wanted = OnnxRunner(given.quantized or given.program)
    for call in given.calibration:
        answers: Tensors = runner(call)
        assert list(answers) == ["y"]
        # ONNX Runtime answers in both; the stand-in's has its optimizations on.
        assert np.allclose(answers["y"], wanted(call)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("raise", "Check 'shape' failed"),
        ("kill", "killed by signal 9"),
        ("hang", "gave no answer in 3 s"),
        ("short", "gave 0 outputs, not 1"),
    ],
)
def test_a_runner_that_breaks_is_one_clear_error(
    mode: str, words: str, compiled: Callable[..., tuple[Runner, Handover]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    runner, given = compiled(FAKE_RUN=mode)
    monkeypatch.setattr(openvino_runner, "SECONDS", 3.0)
    with pytest.raises(ToolchainError, match=words):
        runner(given.calibration[0])


def test_the_process_ends_with_the_runner(
    compiled: Callable[..., tuple[Runner, Handover]],
) -> None:
    runner, _ = compiled()
    assert isinstance(runner, openvino_runner.OpenVinoRunner)
    process = runner._process
    folder = Path(runner._folder.name)
    assert process.poll() is None and folder.exists()
    del runner
    assert process.poll() is not None and not folder.exists()


def test_without_openvino_the_twin_answers_and_the_kit_is_whole(
    target: OpenVino, job: Callable[..., Handover], install: Callable[..., None], tmp_path: Path
) -> None:
    install(VARIABLE)
    given = job("image", target.profile, "int8")
    assert given.quantized is not None
    payload = target.lower(given.quantized, LowerOptions("int8", handover=given), tmp_path)
    assert payload.evidence == "twin" and "openvino was not run: not installed" in payload.vendor
    names = {n for n in payload.files if n.startswith("vendor/")}
    assert names == {f"vendor/{n}" for n in ("model.onnx", "compile.py", "request.json",
                                             "README.txt")}  # fmt: skip
    assert b"QuantizeLinear" in payload.files["vendor/model.onnx"]
    assert b"npuc toolchain install openvino" in payload.files["vendor/README.txt"]
    assert target.runner(payload.files, given.quantized) == "the twin"  # type: ignore[comparison-overlap]


def test_an_artifact_of_another_machine_is_run_by_the_twin(
    target: OpenVino, job: Callable[..., Handover], install: Callable[..., None]
) -> None:
    """The files are there, OpenVINO is not."""
    install(VARIABLE)
    files = {"vendor/openvino.xml": b"<?xml", "vendor/openvino.bin": b""}
    program = job("image", target.profile, "float").program
    assert target.runner(files, program) == "the twin"  # type: ignore[comparison-overlap]


def test_a_python_without_openvino_is_said_when_it_is_asked(
    target: OpenVino, job: Callable[..., Handover], install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Found, but its import fails: the vendor's words are in the error."""
    install(VARIABLE, FAKE, FAKE_MODE="import")
    files = {"vendor/openvino.xml": b"<?xml", "vendor/openvino.bin": b""}
    program = job("image", target.profile, "float").program
    with pytest.raises(ToolchainError, match=r"libvendor\.so"):
        target.runner(files, program)
    assert sys.executable
