"""A stand-in for Mobilint's `qbcompiler` that enforces its documented interface."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import misbehave

__version__ = "1.0.1"
misbehave.at_start()
SCHEMES = ("single", "multi", "global4", "global8", "all")


@dataclass
class CalibrationConfig:
    """How ranges are chosen: the documented fields and no others."""

    method: int
    output: int
    mode: int
    max_percentile: Any

    def __post_init__(self) -> None:
        if self.method not in (0, 1, 2, 3) or self.output not in (0, 1):
            raise ValueError(f"method {self.method}, output {self.output}")
        if sorted(self.max_percentile) != ["percentile", "topk_ratio"]:
            raise ValueError(f"max_percentile {self.max_percentile}")


def mxq_compile(
    *,
    model: Any,
    calib_data_path: Any,
    save_path: Any,
    backend: str,
    device: str = "gpu",
    inference_scheme: str = "single",
    calibration_config: Any = None,
) -> None:
    """Check every argument as documented, look at the data, write the .mxq."""
    misbehave.in_call()
    import handed

    if backend != "onnx" or device != "cpu" or inference_scheme not in SCHEMES:
        raise ValueError(f"{backend}, {device}, {inference_scheme}")
    if calibration_config is not None and not isinstance(calibration_config, CalibrationConfig):
        raise TypeError(f"calibration_config {calibration_config!r}")
    shapes = handed.inputs(handed.model(model, 7, 20, 10))
    layout = {k: [*s[2:], s[1]] if len(s) == 4 else s for k, s in shapes.items()}
    calls = calls_of(Path(calib_data_path), list(shapes))
    sums = []
    for call in calls:
        arrays = (handed.array(path, layout[name]) for name, path in call.items())
        sums.append(sum(float(array.astype(float).sum()) for array in arrays))
    seen: dict[str, Any] = {
        "scheme": inference_scheme,
        "inputs": shapes,
        "sums": sums,
        "device": device,
    }
    seen["configured"] = calibration_config is not None
    misbehave.write(Path(save_path), b"FAKE-MXQ", **seen)


def calls_of(path: Path, names: list[str]) -> list[dict[str, Path]]:
    """Read a folder of arrays for one input, or the JSON that pairs those of several."""
    if path.is_dir():
        if len(names) != 1:
            raise ValueError(f"a folder cannot say which input of {names} an array is for")
        found = [{names[0]: file} for file in sorted(path.iterdir()) if file.suffix == ".npy"]
    else:
        content = json.loads(path.read_text())
        if sorted(content["info"]["input names"]) != sorted(names):
            raise ValueError(f"{content['info']} is not about {names}")
        listed = content["info"]["input names"]
        found = [dict(zip(listed, map(Path, row), strict=True)) for row in content["calib paths"]]
    if not found:
        raise ValueError("calibration is mandatory")
    return found
