"""SAPEON: the academic front end's command line and table; chips of which nothing is public."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npuc.errors import ToolchainError
from npuc.profile import Profile
from npuc.targets.base import Handover
from npuc.targets.sapeon import AixFrontend, x330
from npuc.targets.telechips import dolphin5, n_dolphin

COMMAND = f"{sys.executable} '{Path(__file__).parent / 'fake_axfc' / 'AxfcMain.py'}'"
FAILURES = {
    "exit": "fail to find the compiler library",
    "exit0": "without writing model.aixgraph",
    "kill": "SIGKILL",
    "raise": "NotSupportError",
    "disk": "No space left on device",
    "nothing": "without writing model.aixgraph",
    "empty": "without writing model.aixgraph",
}


@pytest.fixture
def frontend(install: Callable[..., None], tmp_path: Path) -> Callable[..., None]:
    """Return a function: put the stand-in, a machine description and a launcher where they are."""
    (tmp_path / "machine.md").write_text("{}")
    (tmp_path / "launcher").mkdir()

    def put(**chosen: str) -> None:
        given = {
            "NPUC_AXFC_MACHINE": str(tmp_path / "machine.md"),
            "NPUC_AXFC_LAUNCHER": str(tmp_path / "launcher"),
            **chosen,
        }
        install("NPUC_AXFC", "fake_axfc", command=COMMAND, **given)

    return put


@pytest.mark.parametrize("model", ["image", "pair", "batch"])
def test_the_documented_call_with_a_row_for_every_layer(
    model: str, bench: Callable[..., Any], frontend: Callable[..., None]
) -> None:
    """The table lists the inputs and every node in order, with the largest magnitude."""
    frontend()
    built = bench(AixFrontend(), "x220", model).build()
    call = json.loads(built.files["model.aixgraph"].removeprefix(b"FAKE-AIX"))
    assert all(peak > 0 for peak in call["peaks"].values())
    assert (
        AixFrontend().evidence == "twin" and "SAPEON's own compiler has not seen it" in built.said
    )


@pytest.mark.parametrize("mode", FAILURES)
def test_every_failure_is_one_clear_error(
    mode: str, bench: Callable[..., Any], frontend: Callable[..., None]
) -> None:
    frontend(FAKE_MODE=mode)
    kit = bench(AixFrontend(), "x220")
    with pytest.raises(ToolchainError) as caught:
        kit.build()
    assert caught.value.message.startswith("AixFrontend ")
    assert FAILURES[mode] in caught.value.message


@pytest.mark.parametrize("name", ["NPUC_AXFC_MACHINE", "NPUC_AXFC_LAUNCHER"])
def test_what_only_sapeon_has_is_asked_for(name: str, frontend: Callable[..., None]) -> None:
    frontend(**{name: "/no/such/place"})
    found = AixFrontend().find(Profile.load("x220"))
    assert name in found.missing and name in found.remedy


def test_without_the_front_end_there_is_a_kit(
    job: Callable[..., Handover], install: Callable[..., None]
) -> None:
    install("NPUC_AXFC", command=" ")
    profile = Profile.load("x220")
    assert AixFrontend().find(profile).missing
    kit = dict(AixFrontend().kit(job("image", profile), profile))
    assert AixFrontend().lacks(kit) == ""
    for name in ("model.onnx", "calibration.tbl"):
        assert name in AixFrontend().lacks({k: v for k, v in kit.items() if k != name})


@pytest.mark.parametrize("make", [x330, n_dolphin, dolphin5])
def test_a_tool_of_which_nothing_is_public_is_never_run(
    make: Callable[[], Any], job: Callable[..., Handover], tmp_path: Path
) -> None:
    """The kit says that no adapter exists; the model and its data are there all the same."""
    target = make()
    found = target.toolchain()
    assert "not public" in found.missing and found.remedy
    precision = target.profile.precisions[0]
    kit = dict(target.tool.kit(job("image", target.profile, precision), target.profile))
    text = kit["README.txt"].decode()
    assert "publishes no command line" in text and "npuc compile" not in text
    assert {"model.onnx", "request.json", "calibration/x/0000.npy"} <= set(kit)
    assert ("quantization.safetensors" in kit) is (precision == "int8")
    assert target.tool.lacks(kit) == ""
    with pytest.raises(ToolchainError, match="cannot run"):
        target.tool.build(tmp_path, target.profile, None)
