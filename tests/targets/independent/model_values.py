"""Tensors of the independent model, and exact sums of products of their codes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """A tensor. `kind` is what a float32 stands for: "float", "codes", "sum" (an accumulator),
    "constant"; or "other" for what is no float32.

    `codes`, `scale` and `zero` are there where all of it is coded alike; `scale` broadcasts or is
    a vector per channel. `inexact` names the operators before it whose last bit in float32 is
    nobody's promise: sums, exponentials.
    """

    real: Array
    kind: str
    codes: Array | None = None
    scale: Array | None = None
    zero: int = 0
    inexact: frozenset[str] = frozenset()
    host: bool = False


def coded(value: Value) -> bool:
    """Whether all of a tensor is coded alike."""
    return value.codes is not None


def recoded(new: Value, old: Value) -> Value:
    """Give values that one tensor's values became that tensor's codes."""
    if old.codes is None or old.scale is None or old.scale.ndim:
        return new
    codes = np.rint(new.real.astype(np.float64) / old.scale).astype(np.int64) + old.zero
    return replace(new, codes=codes, scale=old.scale, zero=old.zero)


def products(node: onnx.NodeProto, a: Array, b: Array) -> Array:
    """Return the exact sums of products that Conv, Gemm or MatMul asks for, in int64."""
    attributes = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
    if node.op_type == "MatMul":
        return np.asarray(a @ b)
    if node.op_type == "Gemm":
        assert attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
        sides = [m.T if attributes.get(t, 0) else m for m, t in ((a, "transA"), (b, "transB"))]
        return np.asarray(sides[0] @ sides[1])
    assert b.ndim == 4 and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    (dy, dx), (sy, sx) = attributes.get("dilations", [1, 1]), attributes.get("strides", [1, 1])
    groups = attributes.get("group", 1)
    a = np.pad(a, [(0, 0), (0, 0), (top, bottom), (left, right)])
    height = (a.shape[2] - (b.shape[2] - 1) * dy - 1) // sy + 1
    width = (a.shape[3] - (b.shape[3] - 1) * dx - 1) // sx + 1
    parts = []
    for x, w in zip(np.split(a, groups, 1), np.split(b, groups, 0), strict=True):
        total = np.zeros((x.shape[0], w.shape[0], height, width), np.int64)
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                y, z = i * dy, j * dx
                tap = x[:, :, y : y + (height - 1) * sy + 1 : sy, z : z + (width - 1) * sx + 1 : sx]
                total += np.einsum("nchw,oc->nohw", tap, w[:, :, i, j])
        parts.append(total)
    return np.concatenate(parts, 1)
