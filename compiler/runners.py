"""Run an ONNX program on the host, as the oracle every step is checked with."""

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from npuc.errors import ParityError
from npuc.program import LARGE, PROTO_LIMIT, Program, Tensors


class OnnxRunner:
    """A program under ONNX Runtime's CPU provider with every graph optimization off.

    Off, because an optimizer between the graph and its answer would hide or add differences:
    what runs is what the graph says. `extra` names intermediate values to return as well. With
    `apart` a call is computed by one thread, and `each` may be told to compute several at once.
    """

    def __init__(
        self,
        program: Program,
        name: str = "onnxruntime",
        extra: Iterable[str] = (),
        apart: bool = False,
    ):
        import onnxruntime as ort

        self.name = name
        self.apart = apart
        self.program = program
        self.extra = tuple(extra)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        if apart:
            options.intra_op_num_threads = 1
        try:
            self._session = _session(_with_outputs(program, self.extra), options)
        except Exception as error:  # onnxruntime raises pybind types without a common base
            raise ParityError(f"ONNX Runtime rejects the program: {_first_line(error)}") from error

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray[Any, Any]]:
        """Run one call; raises `ParityError` with ONNX Runtime's reason where it fails."""
        names = [port.name for port in self.program.outputs] + list(self.extra)
        feed = {p.name: np.asarray(inputs[p.name], p.dtype, order="C") for p in self.program.inputs}
        try:
            values = self._session.run(names, feed)
        except Exception as error:  # as above
            shapes = ", ".join(f"{k}:{'x'.join(map(str, v.shape))}" for k, v in feed.items())
            message = f"ONNX Runtime fails at inputs {shapes}: {_first_line(error)}"
            raise ParityError(message) from error
        return dict(zip(names, values, strict=True))


def each(
    runner: Callable[[Tensors], Tensors], calls: Sequence[Tensors], apart: bool
) -> list[Tensors]:
    """Answer calls in order; several at a time where `apart`: the runner is safe for threads."""
    if not apart or len(calls) < 2:
        return [runner(call) for call in calls]
    workers = min(len(calls), len(os.sched_getaffinity(0)))
    size = -(-len(calls) // (8 * workers))
    parts = [calls[at : at + size] for at in range(0, len(calls), size)]
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda part: [runner(call) for call in part], parts)
        return [answer for part in found for answer in part]


def _with_outputs(program: Program, extra: tuple[str, ...]) -> Program:
    if not extra:
        return program
    copy = program.clone()
    values = {v.name: v for node in copy.model.graph for v in node.outputs}
    copy.model.graph.outputs.extend(values[name] for name in extra)
    return copy


def _session(program: Program, options: Any) -> Any:
    import onnxruntime as ort

    providers = ["CPUExecutionProvider"]
    message, weights = _apart(program)
    if message is not None:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        return ort.InferenceSession(message, options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="npuc-") as folder:
        path = Path(folder) / "model.onnx"
        program.save(path)
        return ort.InferenceSession(str(path), options, providers=providers)


def _apart(program: Program) -> tuple[bytes | None, dict[str, np.ndarray[Any, Any]]]:
    """Return a program's message, None where it exceeds protobuf's limit, and the large weights.

    Inside of the message these would be there twice more, and each is copied twice on the way.
    """
    import onnx_ir as ir

    kinds = {getattr(ir.DataType, kind) for kind in _PLAIN}
    weights = {
        name: np.ascontiguousarray(tensor.numpy())
        for name, value in program.model.graph.initializers.items()
        if (tensor := value.const_value) is not None
        and tensor.nbytes > LARGE
        and tensor.dtype in kinds
        and not value.is_graph_input()
    }
    if program.weight_bytes - sum(a.nbytes for a in weights.values()) > PROTO_LIMIT:
        return None, {}
    if weights:
        program = program.clone()
    for name, array in weights.items():
        value = program.model.graph.initializers[name]
        assert value.const_value is not None
        kind, shape = value.const_value.dtype, ir.Shape(array.shape)
        value.const_value = ir.ExternalTensor("-", 0, array.nbytes, kind, shape=shape, name=name)
    return bytes(ir.to_proto(program.model).SerializeToString()), weights


_PLAIN = ("FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8")
"""Types of weights that numpy and ONNX Runtime know by the same bytes. int64 may be sizes, which
ONNX Runtime reads while it builds its graph."""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:400]
