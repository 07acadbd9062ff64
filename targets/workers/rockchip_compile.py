"""Compile model.onnx beside this file into model.rknn with Rockchip's compiler.

    python compile.py

Needs the Python environment in which rknn-toolkit2 is installed, and nothing else: npuc runs this
file there, and puts it into every hand-over kit. `request.json` names the chip and says whether to
quantize; `dataset.txt` then lists the calibration data.
"""

import json
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Read the kit in `folder`, write model.rknn there."""
    settings = json.loads((folder / "request.json").read_text())["settings"]
    from rknn.api import RKNN  # pyright: ignore[reportMissingImports]

    quantize: dict[str, Any] = {"do_quantization": False}
    if settings["quantize"]:
        quantize = {"do_quantization": True, "dataset": str(folder / "dataset.txt")}
    rknn = RKNN()
    try:
        done("config", rknn.config(**config(settings)))
        done("load_onnx", rknn.load_onnx(model=str(folder / "model.onnx")))
        done("build", rknn.build(**quantize))
        done("export_rknn", rknn.export_rknn(str(folder / "model.rknn")))
    finally:
        rknn.release()


def config(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what RKNN.config takes: no mean or deviation, since inputs are normalised."""
    chosen = {"target_platform": settings["target_platform"]}
    if settings["quantize"]:
        chosen |= {
            "quantized_dtype": "w8a8",
            "quantized_algorithm": "normal",
            "quantized_method": "channel",
        }
    return chosen


def done(call: str, status: Any) -> None:
    """End the script where a call says that it failed; config may say nothing."""
    if status not in (0, None):
        raise SystemExit(f"rknn-toolkit2: {call} returned {status}")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
