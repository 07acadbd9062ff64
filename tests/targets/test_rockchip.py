"""RK3588: the order of rknn.api's calls, their status, the dataset list and float16."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from npuc.errors import ToolchainError
from npuc.profile import Profile
from npuc.targets.base import Handover
from npuc.targets.rockchip import Rknn

VARIABLE = "NPUC_RKNN_PYTHON"


@pytest.mark.parametrize("model", ["image", "pair", "batch"])
@pytest.mark.parametrize("precision", ["int8", "float"])
def test_the_documented_calls(
    model: str, precision: str, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """Quantized with every call of the dataset, or not at all; no mean, no deviation."""
    install(VARIABLE, "fake_rknn")
    built = bench(Rknn(), "rk3588", model, precision).build()
    call = json.loads(built.files["model.rknn"].removeprefix(b"RKNN\0\0\0\0"))
    assert call["platform"] == "rk3588" and call["mean"] is None and call["std"] is None
    assert call["quantized"] is (precision == "int8")
    assert call.get("calls") == (3 if precision == "int8" else None)


def test_the_dataset_lists_the_inputs_of_a_call_in_a_line(job: Callable[..., Handover]) -> None:
    """Names with spaces and slashes, and names that differ in case only, are told apart."""
    profile = Profile.load("rk3588")
    kit = Rknn().kit(job("pair", profile), profile)
    first, *rest = kit["dataset.txt"].decode().splitlines()
    assert first == "calibration/views_0_left/0000.npy calibration/views_0_LEFT_2/0000.npy"
    assert len(rest) == 2 and all(path in kit for path in first.split(" "))


@pytest.mark.parametrize("call", ["config", "load_onnx", "build", "export_rknn"])
def test_a_status_other_than_zero_is_a_failure(
    call: str, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """Even where the file was written."""
    install(VARIABLE, "fake_rknn", FAKE_STATUS=call)
    kit = bench(Rknn(), "rk3588")
    with pytest.raises(ToolchainError, match=f"{call} returned -1"):
        kit.build()


def test_a_float_kit_needs_no_calibration(job: Callable[..., Handover]) -> None:
    """And has none: it is not used."""
    profile = Profile.load("rk3588")
    kit = Rknn().kit(job("image", profile, "float"), profile)
    assert Rknn().lacks(kit) == "" and not any("calibration" in name for name in kit)
    assert "float16" in kit["README.txt"].decode()


def test_a_stranger_s_dataset_is_written_anew(
    bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """The list of an artifact could name any file of this machine."""
    install(VARIABLE, "fake_rknn")
    kit = bench(Rknn(), "rk3588")
    (kit.folder / "dataset.txt").write_text("/etc/passwd\n")
    kit.build()
    assert "passwd" not in (kit.folder / "dataset.txt").read_text()
