"""Softmax, layer normalization and reductions along rows, vectorised and in a fixed order."""

from collections.abc import Callable
from typing import Any

from npuc.targets.tvm.emit import Kernel, constant, pieces, widen
from npuc.targets.tvm.graph import dtype_of, number, operator, shape_of
from npuc.targets.tvm.plan import Plan
from npuc.targets.tvm.vecmath import Functions, in_kernel

FLOOR = -3.4028234663852886e38
"""The lowest float32: what a maximum starts from."""

Join = Callable[[Any, Any], Any]


def softmax(p: Plan) -> bool:
    """Write softmax or log-softmax along the last axis: exp(x - max) / Σ exp(x - max)."""
    shape = p.shape
    axis = int(p.anchor.attrs.axis) % len(shape)
    if dtype_of(p.anchor) != "float32" or axis != len(shape) - 1:
        return False
    logarithm = operator(p.anchor) == "relax.nn.log_softmax"
    k, length = p.kernel, shape[-1]
    functions = Functions(in_kernel(k))
    x = p.input(p.anchor.args[0])
    y = p.output()
    count = _size(shape) // max(length, 1)
    alone = len(p.region.members) == 1
    with k.units(count, _size(shape) * 20) as row:
        start = k.let(row * length)
        row_values, first = (y, start) if alone else (k.scratch(length, "float32"), 0)
        top = reduce(k, length, FLOOR, larger, lambda at, n: k.load(x, start + at, n))

        def shifted(at: Any, lanes: int) -> Any:
            value = functions.exp(k.load(x, start + at, lanes) - widen(top, lanes))
            result = k.let(value)
            k.store(row_values, result, first + at)
            return result

        total = reduce(k, length, 0.0, add, shifted)
        log_total = k.let(_log(total)) if logarithm else None
        for at, lanes in each(k, length):
            if log_total is not None:
                value = k.load(x, start + at, lanes) - widen(top, lanes) - widen(log_total, lanes)
            else:
                value = k.load(row_values, first + at, lanes) / widen(total, lanes)
            out = k.let(start + at)
            k.store(y, p.finish(k.let(value), lanes, at, out), out)
    return p.done("log_softmax" if logarithm else "softmax")


def layer_norm(p: Plan) -> bool:
    """Write (x - mean) / sqrt(variance + epsilon) · scale + shift along the last axes."""
    shape, a = p.shape, p.anchor.attrs
    axes = sorted(int(v) % len(shape) for v in a.axes)
    if dtype_of(p.anchor) != "float32" or axes != list(range(axes[0], len(shape))):
        return False
    k = p.kernel
    length = _size(shape[axes[0] :])
    x = p.input(p.anchor.args[0])
    scale = p.input(p.anchor.args[1]) if a.scale else None
    shift = p.input(p.anchor.args[2]) if a.center else None
    y = p.output()
    with k.units(_size(shape) // length, _size(shape) * 8) as row:
        start = k.let(row * length)
        total = reduce(k, length, 0.0, add, lambda at, n: k.load(x, start + at, n))
        mean = k.let(total * constant(1.0 / length, "float32"))

        def squared(at: Any, lanes: int) -> Any:
            gap = k.let(k.load(x, start + at, lanes) - widen(mean, lanes))
            return gap * gap

        spread = reduce(k, length, 0.0, add, squared)
        inner = spread * constant(1.0 / length, "float32") + constant(float(a.epsilon), "float32")
        factor = k.let(constant(1.0, "float32") / _sqrt(inner))
        for at, lanes in each(k, length):
            value = (k.load(x, start + at, lanes) - widen(mean, lanes)) * widen(factor, lanes)
            if scale is not None:
                value = value * k.load(scale, at, lanes)
            if shift is not None:
                value = value + k.load(shift, at, lanes)
            out = k.let(start + at)
            last = at if axes[0] == len(shape) - 1 else out % shape[-1]
            k.store(y, p.finish(k.let(value), lanes, last, out), out)
    return p.done("layer_norm")


_JOINS: dict[str, tuple[float, str]] = {
    "relax.sum": (0.0, "add"),
    "relax.mean": (0.0, "add"),
    "relax.max": (FLOOR, "max"),
    "relax.min": (-FLOOR, "min"),
}


def reduction(p: Plan) -> bool:
    """Write a sum, mean, maximum or minimum over neighbouring axes."""
    data = p.anchor.args[0]
    shape = shape_of(data)
    axes = p.anchor.attrs.axis
    reduced = list(range(len(shape))) if axes is None else sorted(int(v) % len(shape) for v in axes)
    if dtype_of(p.anchor) != "float32" or number(data) is not None or not reduced:
        return False
    if reduced != list(range(reduced[0], reduced[-1] + 1)) or _size(shape) == 0:
        return False
    k = p.kernel
    outer, length = _size(shape[: reduced[0]]), _size(shape[reduced[0] : reduced[-1] + 1])
    inner = _size(shape[reduced[-1] + 1 :])
    start, kind = _JOINS[operator(p.anchor)]
    join = {"add": add, "max": larger, "min": smaller}[kind]
    mean = operator(p.anchor) == "relax.mean"
    x = p.input(data)
    y = p.output()
    with k.units(outer, outer * length * inner) as row:
        if inner == 1:
            base = k.let(row * length)
            total = reduce(k, length, start, join, lambda at, n: k.load(x, base + at, n))
            k.store(y, total / constant(float(length), "float32") if mean else total, row)
        else:
            for at, lanes in each(k, inner):
                _down(k, x, y, row * (length * inner) + at, row * inner + at, length, inner, lanes,
                      start, join, mean)  # fmt: skip
    return p.done(operator(p.anchor).removeprefix("relax."))


def _down(
    k: Kernel, x: Any, y: Any, source: Any, target: Any, length: int, stride: int, lanes: int,
    start: float, join: Join, mean: bool,
) -> None:  # fmt: skip
    """Reduce a column of vectors."""
    total = k.scratch(lanes, "float32")
    k.store(total, constant(start, "float32", lanes), 0)
    base = k.let(source)
    with k.loop(length) as step:
        value = k.load(x, base + step * stride, lanes)
        k.store(total, join(k.load(total, 0, lanes), value), 0)
    result = k.load(total, 0, lanes)
    k.store(y, result / constant(float(length), "float32", lanes) if mean else result, target)


def each(k: Kernel, length: int) -> Any:
    """Iterate over (position, lanes): whole vectors in a loop, then the rest."""
    lanes = k.level.lanes
    whole = length // lanes
    if whole:
        with k.loop(whole) as step:
            yield k.let(step * lanes), lanes
    for start, width in pieces(length - whole * lanes, lanes):
        yield whole * lanes + start, width


def reduce(k: Kernel, length: int, start: float, join: Join, value: Any) -> Any:
    """Join all values of a row: lane by lane first, then the lanes in order."""
    lanes = k.level.lanes
    total = k.scratch(lanes, "float32")
    k.store(total, constant(start, "float32", lanes), 0)
    for at, width in each(k, length):
        k.store(total, join(k.load(total, 0, width), value(at, width)), 0)
    result = k.load(total, 0)
    for lane in range(1, min(lanes, length)):
        result = k.let(join(result, k.load(total, lane)))
    return k.let(result)


def add(a: Any, b: Any) -> Any:
    return a + b


def larger(a: Any, b: Any) -> Any:
    from tvm import tirx as t

    return t.max(a, b)


def smaller(a: Any, b: Any) -> Any:
    from tvm import tirx as t

    return t.min(a, b)


def _sqrt(x: Any) -> Any:
    from tvm import tirx as t

    return t.sqrt(x)


def _log(x: Any) -> Any:
    from tvm import tirx as t

    return t.log(x)


def _size(shape: tuple[int, ...]) -> int:
    result = 1
    for dim in shape:
        result *= dim
    return result
