"""The one value that moves through the pipeline: an ONNX model, its ports and the steps taken."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Tensors = Mapping[str, np.ndarray[Any, Any]]
"""Named arrays: one call's inputs, or one call's outputs."""

PROTO_LIMIT = 2**31 - 2**20
"""Bytes of weights above which a model cannot be one protobuf message (its limit is 2 GiB)."""

SMALL, LARGE = 1 << 10, 1 << 16
"""Bytes: below SMALL every tensor stays in the ONNX file; what shape inference reads, to LARGE."""


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor at the edge of a program. `dtype` is numpy's name; a str dimension is symbolic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape)) or 'scalar'}:{self.dtype}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a pass left a node alone, or a target cannot run it."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass did, or why it was undone. `seconds` is wall time of the pass alone."""

    name: str
    options: Mapping[str, object]
    changes: int
    refusals: tuple[Refusal, ...] = ()
    seconds: float = 0.0
    rolled_back: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """An ONNX model with its ports and history. Treat it as immutable: passes work on a clone."""

    model: "ir.Model"
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...] = ()

    @classmethod
    def from_model(cls, model: "ir.Model", steps: tuple[Step, ...] = ()) -> "Program":
        """Wrap a model, reading the ports off its graph (initializers are not inputs)."""
        weights = model.graph.initializers
        inputs = tuple(_port(v) for v in model.graph.inputs if v.name not in weights)
        return cls(model, inputs, tuple(_port(v) for v in model.graph.outputs), steps)

    @classmethod
    def load(cls, path: Path) -> "Program":
        """Read an ONNX file; weights stay on disk until they are needed."""
        import onnx_ir as ir

        return cls.from_model(ir.load(path))

    def clone(self) -> "Program":
        """Return a copy with a fresh graph that shares weight tensors (nearly free)."""
        return replace(self, model=self.model.clone())

    @property
    def opset(self) -> int:
        """The version of the default ONNX operator set the model really uses."""
        return self.model.opset_imports.get("", 0)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the dynamic dimensions of the inputs, in order of appearance."""
        dims = (d for port in self.inputs for d in port.shape if isinstance(d, str))
        return tuple(dict.fromkeys(dims))

    @property
    def weight_bytes(self) -> int:
        """Size of all initializers in bytes."""
        tensors = (v.const_value for v in self.model.graph.initializers.values())
        return sum(t.nbytes for t in tensors if t is not None)

    def save(self, path: Path) -> None:
        """Write ONNX with the weights beside it in `<stem>.safetensors`; small tensors stay in it.

        ONNX Runtime loads no model whose shapes, axes or split sizes are in another file.
        """
        import onnx_ir as ir

        inside = _largest_parameter(self.model)
        ir.save_safetensors(self.model.clone(), path, size_threshold_bytes=max(SMALL, inside + 1))

    def serialized(self) -> bytes | None:
        """Return the model as one protobuf message, or None where it exceeds protobuf's limit."""
        import onnx_ir as ir

        if self.weight_bytes > PROTO_LIMIT:
            return None
        return bytes(ir.to_proto(self.model).SerializeToString())

    def equals(self, other: "Program") -> bool:
        """Whether both are the same graph over the same weights: those that are one in memory.

        A pass works on a copy that shares its weights, so that equal ones need not be read.
        """
        mine, theirs = (_weights(p.model) for p in (self, other))
        same = mine.keys() == theirs.keys() and all(mine[n] is theirs[n] for n in mine)
        return same and _bare(self.model) == _bare(other.model)


def _largest_parameter(model: "ir.Model") -> int:
    """Return the bytes of the largest tensor that shape inference may read: a list of integers."""
    import onnx_ir as ir

    values = (v for graph in model.graphs() for v in graph.initializers.values())
    tensors = [v.const_value for v in values if v.const_value is not None]
    lists = [t.nbytes for t in tensors if t.dtype == ir.DataType.INT64 and len(t.shape) < 2]
    return max((size for size in lists if size <= LARGE), default=0)


def _weights(model: "ir.Model") -> "dict[str, ir.TensorProtocol | None]":
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def _bare(model: "ir.Model") -> bytes:
    """Serialize a model without the weights of its main graph."""
    import onnx_ir as ir

    copy = model.clone()
    copy.graph.initializers.clear()
    return bytes(ir.to_proto(copy).SerializeToString())


def _port(value: "ir.Value") -> Port:
    if value.dtype is None or value.shape is None:
        shape: tuple[int | str, ...] = ()
        dtype = "unknown" if value.dtype is None else value.dtype.numpy().name
        return Port(value.name or "", dtype, shape)
    shape = tuple(
        dim if isinstance(dim, int) else (dim.value or f"{value.name}_{axis}")
        for axis, dim in enumerate(value.shape)
    )
    return Port(value.name or "", value.dtype.numpy().name, shape)
