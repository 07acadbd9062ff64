"""Which tensors of a quantized program are coded in integers, and over what range."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from npuc.layers.found import Coded as Coded
from npuc.layers.side_by_side import Attached, SideBySide
from npuc.passes.graphs import constant


@dataclass(frozen=True)
class Coding:
    """One QuantizeLinear of a tensor that the float program has; `codes` is its result's name."""

    tensor: str
    node: ir.Node
    codes: str
    parameters: tuple[ir.Value, ...]
    low: float
    high: float
    step: float


def find(bench: SideBySide, attached: Attached) -> dict[str, Coding]:
    """Return the coding of each tensor with one scale, by the tensor's name, in graph order."""
    found: dict[str, Coding] = {}
    for node in attached.order:
        if node.op_type != "QuantizeLinear":
            continue
        name = _tensor(node, bench, attached)
        scale = constant(node.inputs[1])
        if name is None or name in found or scale is None or scale.size != 1:
            continue
        clip = _clip(node, bench, attached)
        low, high, step = _reach(node, float(scale.reshape(())), clip)
        parameters = tuple(value for value in node.inputs[1:] if value is not None)
        codes = attached.names.get(node.outputs[0], "")
        found[name] = Coding(name, node, codes, parameters, low, high, step)
    return found


def _tensor(node: ir.Node, bench: SideBySide, attached: Attached) -> str | None:
    """Name the float program's tensor that a node codes: before it, or after where it is a port."""
    clip = _clip(node, bench, attached)
    before = node.inputs[0] if clip is None else clip.inputs[0]
    after = [out for user, _ in node.outputs[0].uses() for out in user.outputs]
    # A port's tensor has another name before it is coded: the coded one has the port's.
    names = [attached.names.get(v, v.name or "") for v in (before, *after) if v is not None]
    return next((name for name in names if name in bench.reference), None)


def _clip(node: ir.Node, bench: SideBySide, attached: Attached) -> ir.Node | None:
    """Return the Clip that quantization put there to hold back codes that may not be used."""
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Clip" or value is None:
        return None
    return None if attached.names.get(value, "") in bench.reference else producer


def _reach(node: ir.Node, scale: float, clip: ir.Node | None) -> tuple[float, float, float]:
    """Return the least and greatest real that codes stand for, and what one code is worth."""
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    assert zero is not None  # what quantizes here writes constants only
    if zero.dtype.kind not in "iu" and zero.dtype.name not in ("int4", "uint4"):
        top = float(ml_dtypes.finfo(zero.dtype).max) * scale  # type: ignore[no-untyped-call]
        return -top, top, 0.0
    info, middle = ml_dtypes.iinfo(zero.dtype), int(zero.reshape(()))  # type: ignore[no-untyped-call]
    low, high = ((int(code) - middle) * scale for code in (info.min, info.max))
    ends = [] if clip is None else [constant(value) for value in clip.inputs[1:3]]
    if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
        low, high = float(ends[0]), float(ends[1])
    return low, high, scale
