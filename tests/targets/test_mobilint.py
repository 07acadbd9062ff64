"""Mobilint: mxq_compile under both names of the package, and its layout of images."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.profile import Profile
from npuc.targets import mobilint
from npuc.targets.base import Handover, Tool
from npuc.targets.mobilint import QbCompiler

VARIABLE = "NPUC_MOBILINT_PYTHON"


@pytest.mark.parametrize(
    ("target", "make", "scheme"),
    [("aries", mobilint.aries, "all"), ("regulus", mobilint.regulus, "single")],
)
@pytest.mark.parametrize("model", ["image", "pair", "tokens"])
def test_the_documented_call(
    target: str, make: Callable[[], Any], scheme: str, model: str, bench: Callable[..., Any],
    install: Callable[..., None], job: Callable[..., Handover],
) -> None:  # fmt: skip
    """REGULUS has the single scheme only; images are [H, W, C], the rest as the model takes it."""
    install(VARIABLE, "fake_qbcompiler")
    tool: Tool = make().tool
    kit = bench(tool, target, model)
    built = kit.build()
    call = json.loads(built.files["model.mxq"].removeprefix(b"FAKE-MXQ"))
    assert call["scheme"] == scheme and call["device"] == "cpu" and call["configured"]
    sums = [
        sum(float(a.astype(np.float64).sum()) for a in c.values())
        for c in job(model, kit.profile).calibration
    ]
    # The same float64 sums in another order.
    np.testing.assert_allclose(call["sums"], sums, rtol=1e-12)
    assert built.version == "1.0.1"


def test_images_are_stored_channels_last(job: Callable[..., Handover]) -> None:
    """Element by element, not only the shape."""
    profile = Profile.load("aries")
    made = job("image", profile)
    kit = QbCompiler().kit(made, profile)
    import io

    array = np.load(io.BytesIO(kit["calibration/x/0001.npy"]))
    assert array.shape == (8, 6, 3)
    assert array[5, 2, 1] == made.calibration[1]["x"][0, 1, 5, 2]


def test_the_former_name(bench: Callable[..., Any], install: Callable[..., None]) -> None:
    """qubee has no CalibrationConfig: it runs with its defaults, and the log says so."""
    install(VARIABLE, "fake_qubee")
    found = QbCompiler().find(Profile.load("aries"))
    assert (found.missing, found.version) == ("", "0.12.0.0")
    built = bench(QbCompiler(), "aries").build()
    call = json.loads(built.files["model.mxq"].removeprefix(b"FAKE-MXQ"))
    assert not call["configured"] and len(call["sums"]) == 3
    assert b"qubee has no CalibrationConfig" in built.files["compile.log"]


def test_the_present_name_goes_first(install: Callable[..., None]) -> None:
    """Where both are installed."""
    install(VARIABLE, "fake_qubee", "fake_qbcompiler")
    assert QbCompiler().find(Profile.load("aries")).version == "1.0.1"


def test_a_batch_of_images_is_refused(job: Callable[..., Handover]) -> None:
    """[H, W, C] has no place for it."""
    profile = Profile.load("aries")
    assert "batch 1" in QbCompiler().lacks(QbCompiler().kit(job("batch", profile), profile))
