"""A stand-in for OpenVINO that enforces the calls npuc makes of it; ONNX Runtime answers.

FAKE_RUN chooses how a compiled model fails when it is asked: ``raise``, ``kill``, ``hang``,
``short`` (an output less), ``garbage`` on standard output.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import misbehave

__version__ = "2026.4.1-fake"
misbehave.at_start()
RUN = os.environ.get("FAKE_RUN", "")


class Model:
    """A model that was read: from ONNX, or from the two files that `save_model` writes."""

    def __init__(self, path: str) -> None:
        content = Path(path).read_bytes()
        if content.startswith(b"<?xml"):
            content = Path(path).with_suffix(".bin").read_bytes()
        self.content = content


class Compiled:
    """A model that answers."""

    def __init__(self, model: Model) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(model.content)
        self.outputs = [o.name for o in self._session.get_outputs()]
        print("a library's words on standard output")

    def __call__(self, inputs: "list[Any]") -> dict[str, Any]:
        if RUN == "raise":
            raise RuntimeError("Check 'shape' failed")
        if RUN == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if RUN == "hang":
            time.sleep(600)
        if RUN == "short":
            self.outputs = []
        names = [i.name for i in self._session.get_inputs()]
        answers = self._session.run(None, dict(zip(names, inputs, strict=True)))
        return dict(zip((o.name for o in self._session.get_outputs()), answers, strict=True))


class Core:
    """The devices of this machine."""

    def read_model(self, path: Any) -> Model:
        """Read a model."""
        misbehave.in_call()
        return Model(str(path))

    def compile_model(self, model: Model, device: str, config: dict[str, str]) -> Compiled:
        """Make it ready to answer."""
        if device != "CPU" or config != {"INFERENCE_PRECISION_HINT": "f32"}:
            raise ValueError(f"{device}, {config}")
        return Compiled(model)


def save_model(model: Model, path: Any, *, compress_to_fp16: bool) -> None:
    """Write the two files."""
    if compress_to_fp16:
        raise ValueError("weights must stay float32")
    misbehave.write(Path(path), b"<?xml")
    Path(path).with_suffix(".bin").write_bytes(model.content)


if RUN == "garbage" and sys.argv[0].endswith("run.py"):
    os.write(3, b"not a message")
