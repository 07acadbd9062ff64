"""Plan a matrix product: with packed weights, or of two activations."""

from typing import Any

import numpy as np

from npuc.targets.tvm import halves
from npuc.targets.tvm import weights as w
from npuc.targets.tvm.batched import Batched
from npuc.targets.tvm.direct import Direct
from npuc.targets.tvm.dots import FLOAT, choose, of_halves
from npuc.targets.tvm.graph import Array, dtype_of, shape_of
from npuc.targets.tvm.integer import Integer
from npuc.targets.tvm.plan import Plan
from npuc.targets.tvm.staging import Geometry


def plan(p: Plan) -> bool:
    """Write the kernel of a product of float32 or of codes; False for other types and vectors."""
    left, right = p.anchor.args
    if dtype_of(p.anchor) == "int32" and min(len(shape_of(a)) for a in p.anchor.args) > 1:
        return _codes(p) or _batched_codes(p)
    if dtype_of(p.anchor) != "float32" or len(shape_of(right)) < 2 or not shape_of(left):
        return False
    if len(shape_of(right)) == 2 and (_integer(p) or _float(p)):
        return True
    if len(shape_of(left)) < 2:
        return False
    return _batched_integer(p) or _batched(p)


def _geometry(p: Plan, **more: Any) -> Geometry:
    left, right = (shape_of(a) for a in p.anchor.args)
    rows = int(np.prod(left[:-1], dtype=np.int64))
    return Geometry(1, 1, rows, right[0], right[1], **more)


def _float(p: Plan) -> bool:
    array = w.values(p.anchor.args[1], p.sources)
    if array is None:
        return False
    codes = halves.codes(p.anchor.args[0], p.sources)
    dot = FLOAT if codes is None else of_halves(p.level)
    g = _geometry(p, round_channels=dot.adds)
    room = np.zeros((1, g.pixel, g.channels_out), array.dtype)
    room[0, : g.channels] = array
    x = p.input(p.anchor.args[0] if codes is None else codes)
    packed = p.weights(dot.pack(room, p.level.lanes))
    y = p.output()
    Direct(p.kernel, g, p.finish, dot, heavy=p.heavy).write(x, packed, None, y)
    return p.done("matmul" if codes is None else "matmul_bf16")


def _integer(p: Plan) -> bool:
    activation = w.activation(p.anchor.args[0], p.sources)
    codes = w.codes(p.anchor.args[1], p.sources)
    if activation is None or codes is None or codes.axis not in (None, 1):
        return False
    scale = (codes.scale * np.float32(activation.scale)).astype(np.float32)
    return _packed(p, Integer(activation, scale), codes.codes)


def _codes(p: Plan) -> bool:
    """Σ (a - za)·(w - zw) of constant weights: `MatMulInteger`."""
    activation = w.centred_activation(p.anchor.args[0], p.sources)
    codes = w.centred_codes(p.anchor.args[1], p.sources)
    if activation is None or codes is None or codes.ndim != 2:
        return False
    return _packed(p, Integer(activation, None), codes)


def _packed(p: Plan, integer: Integer, codes: Array) -> bool:
    dot = choose(p.level, signed=integer.signed, narrow=codes.dtype == np.int8)
    g = _geometry(p, round_channels=dot.adds, fill=integer.activation.zero)
    array = np.zeros((1, g.pixel, g.channels_out), codes.dtype)
    array[0, : g.channels] = codes
    x = p.input(integer.activation.tensor)
    packed = p.weights(dot.pack(array, p.level.lanes))
    start, finish = integer.prepare(p, array, p.level.lanes, shift=dot.shift)
    y = p.output()
    Direct(p.kernel, g, finish, dot, heavy=p.heavy).write(x, packed, start, y)
    return p.done("matmul_int8")


def _sides(p: Plan) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int]]:
    """Return both sides' batch dimensions, and rows, depth and columns."""
    left, right = (shape_of(a) for a in p.anchor.args)
    if len(right) == 2:
        # One right side for all: the left's batch is more rows.
        return (), (), (int(np.prod(left[:-1])), left[-1], right[-1])
    return left[:-2], right[:-2], (left[-2], left[-1], right[-1])


def _batched(p: Plan) -> bool:
    left, right, size = _sides(p)
    a, b = (p.input(side) for side in p.anchor.args)
    y = p.output()
    Batched(p.kernel, left, right, *size, p.finish, heavy=p.heavy).write(a, b, y)
    return p.done("batched_matmul")


def _batched_integer(p: Plan) -> bool:
    """Σ (a - za)·(b - zb) in int32, of two activations with one scale each."""
    from npuc.targets.tvm.emit import cast, constant

    found = [w.activation(side, p.sources) for side in p.anchor.args]
    sides = [f for f in found if f is not None]
    if len(sides) < 2:
        return False
    left, right, size = _sides(p)
    a, b = (p.input(side.tensor) for side in sides)
    factor = float(np.float32(sides[0].scale) * np.float32(sides[1].scale))

    def finish(value: Any, width: int, channel: Any, index: Any) -> Any:
        real = cast(value, "float32") * constant(factor, "float32", width)
        return p.finish(real, width, channel, index)

    y = p.output()
    zeros = (sides[0].zero, sides[1].zero)
    Batched(p.kernel, left, right, *size, finish, zeros, p.heavy).write(a, b, y)
    return p.done("batched_matmul_int8")


def _batched_codes(p: Plan) -> bool:
    """Σ (a - za)·(b - zb) of two activations: `MatMulInteger`."""
    found = [w.centred_activation(side, p.sources) for side in p.anchor.args]
    sides = [f for f in found if f is not None]
    if len(sides) < 2:
        return False
    left, right, size = _sides(p)
    a, b = (p.input(side.tensor) for side in sides)
    y = p.output()
    zeros = (sides[0].zero, sides[1].zero)
    Batched(p.kernel, left, right, *size, p.finish, zeros, p.heavy).write(a, b, y)
    return p.done("batched_matmul_int8")
