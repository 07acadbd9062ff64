"""Run a program on the host and look at the tensors inside it."""

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from npuc.errors import ParityError, UsageError
from npuc.program import Program, Tensors

if TYPE_CHECKING:
    import onnxruntime as ort

Array = np.ndarray[Any, Any]
_SMALL = 1024
"""Bytes up to which a weight stays in the model's message."""


class Taps:
    """A function from one call's inputs to the named tensors; inputs may be named too.

    Several threads may call it at once, and each call computes on one share of the cores. ONNX
    Runtime optimizes here, unlike the oracle's (`npuc.runners`): it keeps the tensors that are
    outputs, and rounding differences far below a quantization step cannot matter to a range.
    Raises `UsageError` where the program has no tensor of a name.
    """

    def __init__(self, program: Program, names: Sequence[str], at_once: int = 1) -> None:
        self.program, self.names = program, tuple(dict.fromkeys(names))
        edges = {port.name for port in program.inputs}
        self._inner = [name for name in self.names if name not in edges]
        copy = program.model.clone()
        values = {value.name: value for node in copy.graph for value in node.outputs}
        if missing := [name for name in self._inner if name not in values]:
            raise UsageError(f"the program has no tensor {', '.join(map(repr, missing))}")
        copy.graph.outputs.clear()
        copy.graph.outputs.extend(values[name] for name in self._inner)
        threads = max(1, cores() // at_once)
        self._session = _session(copy, threads) if self._inner else None

    def __call__(self, call: Tensors, number: int) -> dict[str, Array]:
        """Run one call, the `number`th; raises `UsageError` where it lacks an input, and
        `ParityError` where ONNX Runtime fails."""
        feed = self._feed(call, number)
        found = {name: feed[name] for name in self.names if name in feed}
        if self._session is None:
            return found
        try:
            got: Sequence[Any] = self._session.run(self._inner, feed)
        except Exception as error:  # onnxruntime raises pybind types without a common base
            reason = str(error).strip().splitlines()[0][:400]
            raise ParityError(f"ONNX Runtime fails on calibration sample {number}: {reason}") from (
                error
            )
        return found | dict(zip(self._inner, got, strict=True))

    def _feed(self, call: Tensors, number: int) -> dict[str, Array]:
        missing = [port.name for port in self.program.inputs if port.name not in call]
        if missing:
            raise UsageError(
                f"calibration sample {number} has no {', '.join(missing)}; it has {sorted(call)}"
            )
        return {p.name: np.asarray(call[p.name], p.dtype, order="C") for p in self.program.inputs}


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def fingerprint(program: Program) -> str:
    """Return the SHA-256 of a program: its graph, names and weights, but not its history."""
    message, weights = _without_weights(program.model)
    found = hashlib.sha256(message)
    for name in sorted(weights):
        found.update(name.encode() + b"\0")
        found.update(np.ascontiguousarray(weights[name]).data)
    return found.hexdigest()


def _session(model: ir.Model, threads: int) -> "ort.InferenceSession":
    """Load a model whose weights are handed over as they are: as a message they would be there
    twice more, and a message holds no more than 2 GiB."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    message, weights = _without_weights(model)
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    try:
        return ort.InferenceSession(message, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as in Taps.__call__
        reason = str(error).strip().splitlines()[0][:400]
        raise ParityError(f"ONNX Runtime rejects the program: {reason}") from error


def _without_weights(model: ir.Model) -> tuple[bytes, dict[str, Array]]:
    """Return a model's message, and the weights it only names."""
    model = model.clone()
    weights: dict[str, Array] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL or tensor.dtype not in _PLAIN:
            continue
        weights[name] = np.ascontiguousarray(tensor.numpy())
        value.const_value = ir.ExternalTensor(
            "weights",
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(weights[name].shape),
            name=name,
        )
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True)), weights


_PLAIN = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8)
"""Types of weights that numpy and ONNX Runtime know by the same bytes. Wider integers may be sizes,
however many (of a Split into hundreds): ONNX Runtime reads those while it builds its graph."""
