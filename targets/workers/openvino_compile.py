"""Convert model.onnx beside this file into OpenVINO's form: openvino.xml and openvino.bin.

    python compile.py

Needs a Python environment in which openvino is installed, and nothing else. Weights stay float32.
"""

from pathlib import Path


def main(folder: Path) -> None:
    """Read model.onnx in `folder`, write openvino.xml and openvino.bin there."""
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / "model.onnx")
    core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # it can run, too
    openvino.save_model(model, folder / "openvino.xml", compress_to_fp16=False)
    print(f"openvino.xml: openvino {openvino.__version__}")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
