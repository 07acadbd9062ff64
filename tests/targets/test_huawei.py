"""Ascend: ATC's command line, the chip only its owner knows, the line that says success."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npuc.errors import ArtifactError, LoadError, ToolchainError
from npuc.profile import Profile
from npuc.targets.base import Handover
from npuc.targets.huawei import Atc

COMMAND = f"{sys.executable} '{Path(__file__).parent / 'fake_atc' / 'atc'}'"
FAILURES = {
    "exit": "fail to find the compiler library",
    "exit0": "without writing model.om",
    "kill": "SIGKILL",
    "segv": "SIGSEGV",
    "raise": "NotSupportError",
    "disk": "No space left on device",
    "nothing": "without writing model.om",
    "empty": "without writing model.om",
    "silent": "did not say 'ATC run success'",
}


@pytest.fixture
def atc(install: Callable[..., None]) -> Callable[..., None]:
    """Return a function: put the stand-in where ATC is looked for."""

    def put(**chosen: str) -> None:
        install("NPUC_ATC", "fake_atc", command=COMMAND, NPUC_ASCEND_SOC="Ascend310P3", **chosen)

    return put


@pytest.mark.parametrize("target", ["ascend-910", "ascend-310p"])
@pytest.mark.parametrize("model", ["image", "pair", "batch", "tokens"])
def test_the_documented_call(
    target: str, model: str, bench: Callable[..., Any], atc: Callable[..., None]
) -> None:
    """The model, its shapes, the chip; the file and the log are kept."""
    atc()
    built = bench(Atc(), target, model, "float").build()
    call = json.loads(built.files["model.om"].removeprefix(b"FAKE-OM"))
    assert call["soc"] == "Ascend310P3" and call["inputs"]
    assert b"ATC run success" in built.files["compile.log"]
    assert Atc().evidence == "vendor-compiled"
    assert built.said.endswith("compiled model.om for Ascend310P3; not run")


@pytest.mark.parametrize("mode", FAILURES)
def test_every_failure_is_one_clear_error(
    mode: str, bench: Callable[..., Any], atc: Callable[..., None]
) -> None:
    atc(FAKE_MODE=mode)
    kit = bench(Atc(), "ascend-910")
    with pytest.raises(ToolchainError) as caught:
        kit.build()
    assert caught.value.message.startswith("atc ") and FAILURES[mode] in caught.value.message


def test_noise_on_stderr_is_no_failure(bench: Callable[..., Any], atc: Callable[..., None]) -> None:
    atc(FAKE_MODE="noise")
    assert bench(Atc(), "ascend-910").build().files["compile.log"].count(b"unknown op") == 1000


@pytest.mark.parametrize(
    ("soc", "words"), [("", "NPUC_ASCEND_SOC is not set"), ("310P3", "is no name like Ascend310P3")]
)
def test_without_the_chip_s_name_nothing_is_compiled(
    soc: str, words: str, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    install("NPUC_ATC", "fake_atc", command=COMMAND, NPUC_ASCEND_SOC=soc)
    kit = bench(Atc(), "ascend-910")
    assert words in Atc().find(kit.profile).missing
    with pytest.raises(ToolchainError, match="cannot run"):
        kit.build()


@pytest.mark.parametrize("command", ["/no/such/atc", "false", "'unclosed"])
def test_finding_never_raises(command: str, install: Callable[..., None]) -> None:
    install("NPUC_ATC", command=command, NPUC_ASCEND_SOC="Ascend910B")
    found = Atc().find(Profile.load("ascend-910"))
    assert found.missing and "npu-smi" in found.remedy


def test_the_kit_is_whole_and_says_how(job: Callable[..., Handover]) -> None:
    profile = Profile.load("ascend-910")
    kit = dict(Atc().kit(job("pair", profile), profile))
    assert Atc().lacks(kit) == "" and kit == Atc().kit(job("pair", profile), profile)
    text = kit["README.txt"].decode()
    assert '--input_shape="views/0 left:1,3,8,6;views_0_LEFT:1,5"' in text
    assert "AMCT" in text and "quantization.safetensors" in kit
    for name in ("model.onnx", "request.json"):
        assert name in Atc().lacks({k: v for k, v in kit.items() if k != name})


def test_a_damaged_kit_never_reaches_the_compiler(
    bench: Callable[..., Any], atc: Callable[..., None]
) -> None:
    atc(FAKE_MODE="exit")
    kit = bench(Atc(), "ascend-910")
    (kit.folder / "model.onnx").write_bytes(b"\x08\x07 no model")
    with pytest.raises(LoadError):
        kit.build()
    (kit.folder / "request.json").write_bytes(b"{}")
    with pytest.raises((ArtifactError, LoadError)):
        kit.build()
