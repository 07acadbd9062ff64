"""Ways to compute one operator on tensors of lower rank: axes that move together become one."""

from collections.abc import Callable, Iterable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Form, Forms
from npuc.passes.graphs import constant
from npuc.passes.writer import Unfit, Writer, axes_of, axis_of, fixed, given, needed, shape_of

_UNARY = (
    "Abs Acos Asin Atan Cast Ceil Celu Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "Identity LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_BROADCAST = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu "
    "Sub Sum Where Xor"
)
_REDUCED = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
UNARY, BROADCAST = _UNARY.split(), _BROADCAST.split()
REDUCTIONS = [f"Reduce{kind}" for kind in _REDUCED.split()]

Groups = list[list[int]]
"""Runs of axes; every run becomes one axis."""


def groups(
    result: Sequence[int], operands: Iterable[Sequence[int]], alone: Iterable[int] = ()
) -> Groups:
    """Merge adjacent axes that every operand has in full, or repeats; `alone` stay themselves.

    Operands have the result's rank: 1 in front where they have fewer axes.
    """
    kinds = [
        [None if n == 1 else d == n for d, n in zip(dims, result, strict=True)] for dims in operands
    ]
    apart, found = set(alone), Groups()
    for axis in range(len(result)):
        if found and not apart & {axis, found[-1][-1]}:
            columns = [[kind[a] for a in found[-1] if kind[a] is not None] for kind in kinds]
            if all(
                k[axis] is None or not c or c[0] == k[axis]
                for k, c in zip(kinds, columns, strict=True)
            ):
                found[-1].append(axis)
                continue
        found.append([axis])
    return found


def merged(dims: Sequence[int], runs: Groups) -> list[int]:
    """Return a shape with one axis for each run."""
    return [prod(dims[a] for a in run) for run in runs]


class _Lower:
    """Reshapes of one rewrite; `limit` is the highest rank there may be."""

    def __init__(self, w: Writer, limit: int, runs: Groups) -> None:
        if len(runs) > limit:
            raise Unfit(f"its axes merge to rank {len(runs)}, the device has {limit}")
        self.w, self.runs = w, runs

    def __call__(self, value: ir.Value, dims: Sequence[int]) -> ir.Value:
        """Reshape an operand; a constant is stored in its new shape."""
        shape = merged(dims, self.runs)
        array = constant(value)
        if array is None:
            return self.w.reshape(value, shape)
        return self.w.constant("operand", np.asarray(array).reshape(shape))

    def axis(self, axis: int) -> int:
        """Return the run that an axis is in."""
        return next(i for i, run in enumerate(self.runs) if axis in run)


def _again(
    node: ir.Node, w: Writer, inputs: Sequence[ir.Value | None], outputs: int = 1
) -> list[ir.Value]:
    """Append the node once more on other inputs, with all its attributes."""
    made = list(w.several(node.op_type, inputs, outputs))
    for name, attribute in node.attributes.items():
        w.nodes[-1].attributes[name] = attribute
    return made


def _set(w: Writer, name: str, value: int) -> None:
    w.nodes[-1].attributes[name] = ir.AttrInt64(name, value)


def _padded(dims: Sequence[int], rank: int) -> list[int]:
    return [1] * (rank - len(dims)) + list(dims)


def elementwise(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """f(a, b) = Reshape → f → Reshape"""
    result = shape_of(node.outputs[0])
    count = 1 if node.op_type in UNARY else len(node.inputs)
    values = [v for v in node.inputs[:count] if v is not None]
    dims = [_padded(shape_of(v), len(result)) for v in values]
    lower = _Lower(w, limit, groups(result, dims))
    inputs = [lower(v, d) for v, d in zip(values, dims, strict=True)]
    return w.reshape(_again(node, w, [*inputs, *node.inputs[count:]])[0], result)


def along_axis(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """f(x) over one axis = Reshape → f over its run → Reshape"""
    x = needed(node)
    dims, result = shape_of(x), shape_of(node.outputs[0])
    axis = axis_of(node, len(dims), 0 if node.op_type.startswith("Arg") else -1)
    if w.opset < 13 and not node.op_type.startswith("Arg"):
        raise Unfit("before opset 13 it runs over all axes from its own")
    lower = _Lower(w, limit, groups(dims, [dims], [axis]))
    made = _again(node, w, [lower(x, dims)])[0]
    _set(w, "axis", lower.axis(axis))
    return w.reshape(made, result)


def concat(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """Concat(a, b) = Reshape → Concat → Reshape"""
    result = shape_of(node.outputs[0])
    axis = axis_of(node, len(result), 0)
    lower = _Lower(w, limit, groups(result, [result], [axis]))
    parts = [lower(v, shape_of(v)) for v in node.inputs if v is not None]
    return w.reshape(w.concat(parts, lower.axis(axis)), result)


def split(node: ir.Node, w: Writer, limit: int) -> list[ir.Value]:
    """Split(x) = Reshape → Split → Reshape each"""
    x = needed(node)
    dims = shape_of(x)
    axis = axis_of(node, len(dims), 0)
    lower = _Lower(w, limit, groups(dims, [dims], [axis]))
    shapes = [shape_of(v) for v in node.outputs]
    parts = w.cut(lower(x, dims), [s[axis] for s in shapes], lower.axis(axis))
    return [w.reshape(p, s) for p, s in zip(parts, shapes, strict=True)]


def cut(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """Slice(x) = Reshape → Slice → Reshape"""
    x = needed(node)
    dims = shape_of(x)
    starts = fixed(node, 1, "starts").reshape(-1)
    axes = range(len(starts)) if given(node, 3) is None else fixed(node, 3, "axes").reshape(-1)
    places = [int(a) % len(dims) for a in axes]
    lower = _Lower(w, limit, groups(dims, [dims], places))
    new = w.integers("axes", [lower.axis(a) for a in places])
    rest = [given(node, 4)] if given(node, 4) is not None else []
    inputs = [lower(x, dims), needed(node, 1), needed(node, 2), new, *rest]
    return w.reshape(_again(node, w, inputs)[0], shape_of(node.outputs[0]))


def gather(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """Gather(x, i) = Reshape → Gather → Reshape"""
    x = needed(node)
    dims = shape_of(x)
    axis = axis_of(node, len(dims), 0)
    lower = _Lower(w, limit, groups(dims, [dims], [axis]))
    made = _again(node, w, [lower(x, dims), needed(node, 1)])[0]
    _set(w, "axis", lower.axis(axis))
    return w.reshape(made, shape_of(node.outputs[0]))


def reduction(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """Reduce(x) = Reshape → Reduce → Reshape; adjacent reduced axes are one"""
    x = needed(node)
    dims = shape_of(x)
    axes = axes_of(node, len(dims))
    kept = [1 if a in axes else d for a, d in enumerate(dims)]
    runs = Groups()
    for axis in range(len(dims)):
        if runs and (axis in axes) == (runs[-1][-1] in axes):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    lower = _Lower(w, limit, runs)
    places = sorted({lower.axis(a) for a in axes})
    made = w.reduce(node.op_type, lower(x, dims), places)
    keep = node.attributes.get_int("keepdims", 1)
    return w.reshape(made, kept if keep else shape_of(node.outputs[0]))


def expand(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """Expand(x) = Reshape → Expand → Reshape"""
    x, result = needed(node), shape_of(node.outputs[0])
    dims = _padded(shape_of(x), len(result))
    runs = groups(result, [dims])
    lower = _Lower(w, limit, runs)
    wide = w.op("Expand", lower(x, dims), w.integers("wide", merged(result, runs)))
    return w.reshape(wide, result)


def product(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """MatMul(a, b) = Reshape → MatMul with batch axes merged → Reshape"""
    a, b, result = needed(node), needed(node, 1), shape_of(node.outputs[0])
    left, right = shape_of(a), shape_of(b)
    if len(left) < 2 or len(right) < 2:
        raise Unfit("one side is a vector")
    rank = len(result)
    dims = [_padded(d, rank) for d in (left, right)]
    if prod(dims[1][:-2]) == 1:  # one matrix on the right: all rows of the left are alike
        rows = w.reshape(a, [prod(left[:-1]), left[-1]])
        array = constant(b)
        matrix = (
            w.reshape(b, right[-2:])
            if array is None
            else w.constant("right", array.reshape(right[-2:]))
        )
        return w.reshape(w.op("MatMul", rows, matrix), result)
    batch = groups(result[:-2], [d[:-2] for d in dims])
    lower = _Lower(w, limit, [*batch, [rank - 2], [rank - 1]])
    return w.reshape(w.op("MatMul", lower(a, dims[0]), lower(b, dims[1])), result)


def normalization(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """LayerNormalization(x), RMSNormalization(x) = Reshape to rows → the same → Reshape"""
    x = needed(node)
    dims = shape_of(x)
    axis = axis_of(node, len(dims))
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Unfit("its mean or deviation is read")
    runs = [list(range(axis)), *([a] for a in range(axis, len(dims)))]
    lower = _Lower(w, limit, [run for run in runs if run])
    made = _again(node, w, [lower(x, dims), *node.inputs[1:]])[0]
    _set(w, "axis", -(len(dims) - axis))
    return w.reshape(made, dims)


def moves(node: ir.Node, w: Writer, limit: int) -> ir.Value:
    """Transpose(x) = Reshape → Transpose of merged axes → Reshape, in several steps where needed

    Any order is reached by moving one block of axes before another: [a, b, c, d] → [a, c, b, d].
    """
    x = needed(node)
    dims, result = shape_of(x), shape_of(node.outputs[0])
    order = [int(a) for a in node.attributes.get_ints("perm", range(len(dims))[::-1])]
    units = _units(dims, [a for a in order if dims[a] != 1])
    if len(units) <= limit:
        sizes = merged(dims, sorted(units))
        places = [sorted(units).index(unit) for unit in units]
        return w.reshape(w.transpose(w.reshape(x, sizes or [1]), places), result)
    if limit < 4:
        raise Unfit(f"moving one axis takes rank 4, the device has {limit}")
    now, wanted = sorted(units), units
    for place, unit in enumerate(wanted):
        start = now.index(unit)
        if start == place:
            continue
        size = 1
        while wanted[place : place + size + 1] == now[
            start : start + size + 1
        ] and start + size < len(now):
            size += 1
        blocks = (now[:place], now[place:start], now[start : start + size], now[start + size :])
        x = w.reshape(x, [prod(merged(dims, block)) for block in blocks])
        x = w.transpose(x, [0, 2, 1, 3])
        now = [*blocks[0], *blocks[2], *blocks[1], *blocks[3]]
    return w.reshape(x, result)


def _units(dims: Sequence[int], order: Sequence[int]) -> Groups:
    """Return runs of axes that stay side by side, in the wanted order; axes of 1 are left out."""
    found = Groups()
    for axis in order:
        before = found[-1][-1] if found else None
        if (
            before is not None
            and before < axis
            and all(dims[a] == 1 for a in range(before + 1, axis))
        ):
            found[-1].append(axis)
        else:
            found.append([axis])
    return found


def forms(limit: int) -> Forms:
    """Return operator → the ways to compute it at a rank of at most `limit`."""
    rules: dict[str, Callable[[ir.Node, Writer, int], ir.Value | list[ir.Value]]] = {
        **dict.fromkeys([*UNARY, *BROADCAST], elementwise),
        **dict.fromkeys(REDUCTIONS, reduction),
        **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin"], along_axis),
        **dict.fromkeys(["LayerNormalization", "RMSNormalization"], normalization),
        "Concat": concat, "Split": split, "Slice": cut, "Gather": gather,
        "Expand": expand, "MatMul": product, "Transpose": moves,
    }  # fmt: skip
    return {kind: (_bound(rule, limit),) for kind, rule in rules.items()}


def _bound(rule: Callable[[ir.Node, Writer, int], ir.Value | list[ir.Value]], limit: int) -> Form:
    def lowered(node: ir.Node, w: Writer) -> ir.Value | Sequence[ir.Value]:
        return rule(node, w, limit)

    return lowered
