"""Run a program on the host and look at the tensors inside it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npuc.errors import ParityError, UsageError
from npuc.program import Program, Tensors

Array = np.ndarray[Any, Any]


class Taps:
    """A function from one call's inputs to the named tensors; inputs may be named too.

    ONNX Runtime optimizes here, unlike the oracle's (`npuc.runners`): it keeps the tensors that
    are outputs, and rounding differences far below a quantization step cannot matter to a range.
    Raises `UsageError` where the program has no tensor of a name.
    """

    def __init__(self, program: Program, names: Sequence[str]) -> None:
        self.program, self.names = program, tuple(dict.fromkeys(names))
        edges = {port.name for port in program.inputs}
        self._inner = [name for name in self.names if name not in edges]
        copy = program.clone()
        graph = copy.model.graph
        values = {value.name: value for node in graph for value in node.outputs}
        if missing := [name for name in self._inner if name not in values]:
            raise UsageError(f"the program has no tensor {', '.join(map(repr, missing))}")
        graph.outputs.clear()
        graph.outputs.extend(values[name] for name in self._inner)
        self._session = _session(copy) if self._inner else None

    def __call__(self, call: Tensors, number: int) -> dict[str, Array]:
        """Run one call, the `number`th; raises `UsageError` where it lacks an input, and
        `ParityError` where ONNX Runtime fails."""
        feed = self._feed(call, number)
        found = {name: feed[name] for name in self.names if name in feed}
        if self._session is None:
            return found
        try:
            found.update(zip(self._inner, self._session.run(self._inner, feed), strict=True))
        except Exception as error:  # onnxruntime raises pybind types without a common base
            reason = str(error).strip().splitlines()[0][:400]
            raise ParityError(f"ONNX Runtime fails on calibration sample {number}: {reason}") from (
                error
            )
        return found

    def _feed(self, call: Tensors, number: int) -> dict[str, Array]:
        missing = [port.name for port in self.program.inputs if port.name not in call]
        if missing:
            raise UsageError(
                f"calibration sample {number} has no {', '.join(missing)}; it has {sorted(call)}"
            )
        return {p.name: np.asarray(call[p.name], p.dtype, order="C") for p in self.program.inputs}


def _session(program: Program) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    proto = program.serialized()
    providers = ["CPUExecutionProvider"]
    if proto is not None:
        return ort.InferenceSession(proto, options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="npuc-") as folder:
        path = Path(folder) / "model.onnx"
        program.save(path)
        return ort.InferenceSession(str(path), options, providers=providers)
