"""DEEPX: dx_com.compile with a DataLoader over the kit's arrays, and the config for images."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.errors import ArtifactError, ToolchainError
from npuc.profile import Profile
from npuc.targets.base import Handover
from npuc.targets.deepx import DxCom

VARIABLE = "NPUC_DXCOM_PYTHON"


@pytest.mark.parametrize("target", ["dx-m1", "dx-h1"])
@pytest.mark.parametrize("model", ["image", "pair"])
def test_the_documented_call(
    target: str, model: str, bench: Callable[..., Any], install: Callable[..., None],
    job: Callable[..., Handover],
) -> None:  # fmt: skip
    """One input is a tensor, several are a dict by name; every call gets there in order."""
    install(VARIABLE, "fake_dxcom")
    kit = bench(DxCom(), target, model)
    built = kit.build()
    call = json.loads(built.files["model.dxnn"].removeprefix(b"FAKE-DXNN"))
    assert call["method"] == "minmax" and call["calls"] == 3
    handed = job(model, kit.profile).calibration
    sums = [sum(float(a.astype(np.float64).sum()) for a in c.values()) for c in handed]
    # The same float64 sums in another order.
    np.testing.assert_allclose(call["sums"], sums, rtol=1e-12)
    assert built.version == "2.5.0" and built.said.startswith("dx-com 2.5.0 compiled model.dxnn")


def test_ema_in_the_request_is_kept(
    bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """The one setting that the README offers to change; another value is refused."""
    install(VARIABLE, "fake_dxcom")
    kit = bench(DxCom(), "dx-m1")
    path = kit.folder / "request.json"
    text = path.read_text()
    path.write_text(text.replace("minmax", "ema"))
    assert json.loads(kit.build().files["model.dxnn"][len(b"FAKE-DXNN") :])["method"] == "ema"
    path.write_text(text.replace("minmax", "magic"))
    with pytest.raises(ArtifactError, match="magic"):
        kit.build()


def test_the_config_is_the_documented_one(job: Callable[..., Handover]) -> None:
    """For one input of image shape; its name and shape are the model's."""
    profile = Profile.load("dx-m1")
    config = json.loads(DxCom().kit(job("image", profile), profile)["config.json"])
    assert config["inputs"] == {"x": [1, 3, 8, 6]}
    assert config["calibration_num"] == 3 and config["calibration_method"] in ("ema", "minmax")
    loader = config["default_loader"]
    assert sorted(loader) == ["dataset_path", "file_extensions", "preprocessings"]
    assert loader["preprocessings"] == [{"resize": {"width": 6, "height": 8}}]
    assert "config.json" not in DxCom().kit(job("pair", profile), profile)


@pytest.mark.parametrize(
    ("model", "words"), [("batch", "x is 2x3x8x6"), ("tokens", "x is 1x5 int64")]
)
def test_what_dx_com_does_not_take_is_said_before_it_runs(
    model: str, words: str, job: Callable[..., Handover]
) -> None:
    """Batch 1 and float32 are documented; the kit names the input that is neither."""
    profile = Profile.load("dx-m1")
    kit = DxCom().kit(job(model, profile), profile)
    assert words in DxCom().lacks(kit)
    assert words in kit["README.txt"].decode()


def test_arrays_that_do_not_fit_the_model(
    bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """The stand-in's verifier, like dx-com's, wants the model's own shape."""
    install(VARIABLE, "fake_dxcom")
    kit = bench(DxCom(), "dx-m1")
    np.save(kit.folder / "calibration" / "x" / "0001.npy", np.zeros((1, 3, 8, 7), np.float32))
    with pytest.raises(ToolchainError, match="ConfigInputError"):
        kit.build()


def test_pickles_among_the_arrays_are_not_loaded(
    bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """An artifact is a stranger's."""
    install(VARIABLE, "fake_dxcom")
    kit = bench(DxCom(), "dx-m1")
    path = kit.folder / "calibration" / "x" / "0000.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ToolchainError, match="allow_pickle=False"):
        kit.build()
