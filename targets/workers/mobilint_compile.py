"""Compile model.onnx beside this file into model.mxq with Mobilint's compiler.

    python compile.py

Needs the Python environment in which qbcompiler (or qubee, its former name) is installed, and
nothing else: npuc runs this file there, and puts it into every hand-over kit. `request.json` names
the inputs and the settings; the calibration data is in `calibration/`.
"""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Read the kit in `folder`, write model.mxq there."""
    request = json.loads((folder / "request.json").read_text())
    settings = request["settings"]
    name = "qbcompiler" if importlib.util.find_spec("qbcompiler") else "qubee"
    compiler = importlib.import_module(name)
    more: dict[str, Any] = {}
    if hasattr(compiler, "CalibrationConfig"):
        more["calibration_config"] = compiler.CalibrationConfig(**settings["calibration"])
    else:
        print(f"{name} has no CalibrationConfig: it calibrates by its own defaults")
    compiler.mxq_compile(
        model=str(folder / "model.onnx"),
        calib_data_path=str(calibration(folder, request["inputs"], request["calls"])),
        save_path=str(folder / "model.mxq"),
        backend="onnx",
        device=settings["device"],
        inference_scheme=settings["inference_scheme"],
        **more,
    )
    print(f"model.mxq: {name} {getattr(compiler, '__version__', 'of unknown version')}")


def calibration(folder: Path, inputs: list[dict[str, Any]], calls: int) -> Path:
    """Return the folder of a single input's arrays, or write calib.json, which pairs several."""
    if len(inputs) == 1:
        return folder / str(inputs[0]["folder"])
    content = {
        "info": {
            "input names": [port["name"] for port in inputs],
            "input shapes": [port["shape"] for port in inputs],
        },
        "calib paths": [
            [str(folder / port["folder"] / f"{number:04}.npy") for port in inputs]
            for number in range(calls)
        ],
    }
    path = folder / "calib.json"
    path.write_text(json.dumps(content, indent=1))
    return path


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
