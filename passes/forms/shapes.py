"""Operators that move data: reshapes, cuts, copies and the shuffles of pixels."""

from functools import partial
from math import prod

import numpy as np
import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.graphs import constant
from npuc.passes.writer import Array, Unfit, Writer, axis_of, fixed, floats, given, needed, shape_of

COPIES = 64
"""Nodes or values that one operator may become."""


def reshape(node: ir.Node, w: Writer) -> ir.Value:
    """Flatten(x), Squeeze(x), Unsqueeze(x) = Reshape(x)"""
    return w.reshape(needed(node), shape_of(node.outputs[0]))


def slices(node: ir.Node, w: Writer) -> list[ir.Value]:
    """Split(x) = Slice(x), Slice(x), …"""
    x = needed(node)
    axis = axis_of(node, len(shape_of(x)), 0)
    ends = np.cumsum([shape_of(v)[axis] for v in node.outputs])
    starts = [0, *ends[:-1]]
    return [w.slice(x, axis, int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def _range(node: ir.Node, dims: tuple[int, ...]) -> dict[int, tuple[int, int, int]]:
    """Return axis → (start, length, step) of a Slice, those that cut nothing left out."""
    starts, ends = (fixed(node, i, "bounds").reshape(-1) for i in (1, 2))
    axes = range(len(starts)) if given(node, 3) is None else fixed(node, 3, "axes").reshape(-1)
    steps = np.ones(len(starts), int) if given(node, 4) is None else fixed(node, 4, "steps")
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps.reshape(-1), strict=True):
        size = dims[int(axis)]
        picked = range(*slice(int(start), int(end), int(step)).indices(size))
        if int(step) < 0 and int(end) < -size:
            picked = range(picked.start, -1, int(step))
        if (picked.start, len(picked), picked.step) != (0, size, 1):
            found[int(axis) % len(dims)] = (picked.start, len(picked), picked.step)
    return found


def parts(node: ir.Node, w: Writer) -> ir.Value:
    """Slice(x) = one part of Split(x)"""
    x = needed(node)
    dims = shape_of(x)
    for axis, (start, length, step) in _range(node, dims).items():
        if step != 1:
            raise Unfit(f"it takes every {step}th element")
        x = _piece(x, axis, start, length, dims[axis], True, w)
    return x


def strided(node: ir.Node, w: Writer, cut: bool) -> ir.Value:
    """Slice(x, step n) = Reshape[…, size/n, n, …] → Slice or Split → Reshape"""
    x = needed(node)
    dims = list(shape_of(x))
    for axis, (start, length, step) in _range(node, shape_of(x)).items():
        if step == 1:
            x = _piece(x, axis, start, length, dims[axis], cut, w)
        elif step > 1 and dims[axis] % step == 0 and length == dims[axis] // step:
            tall = w.reshape(x, [*dims[:axis], length, step, *dims[axis + 1 :]])
            one = _piece(tall, axis + 1, start, 1, step, cut, w)
            x = w.reshape(one, [*dims[:axis], length, *dims[axis + 1 :]])
        else:
            raise Unfit(f"step {step} does not divide its axis into whole rows")
        dims[axis] = length
    return x


def _piece(
    x: ir.Value, axis: int, start: int, length: int, size: int, cut: bool, w: Writer
) -> ir.Value:
    if not cut:
        return w.slice(x, axis, start, start + length)
    sizes = [start, length, size - start - length]
    return w.cut(x, [s for s in sizes if s], axis)[int(start > 0)]


def picked(node: ir.Node, w: Writer) -> ir.Value:
    """Gather(x, constant indices) = Slice(x), or Concat(Slice(x), Slice(x), …)"""
    x = needed(node)
    dims = shape_of(x)
    axis = axis_of(node, len(dims), 0)
    indices = fixed(node, 1, "indices")
    flat = [int(i) % dims[axis] for i in indices.reshape(-1)]
    runs: list[list[int]] = []
    for index in flat:
        if runs and index == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    if not 0 < len(runs) <= COPIES:
        raise Unfit(f"its indices make {len(runs)} pieces, the limit is {COPIES}")
    joined = w.concat([w.slice(x, axis, a, b) for a, b in runs], axis)
    if indices.ndim == 1:
        return joined
    return w.reshape(joined, [*dims[:axis], *indices.shape, *dims[axis + 1 :]])


def selection(node: ir.Node, w: Writer) -> ir.Value:
    """Gather(x, constant indices) over the last axis = MatMul(x, a matrix of 0 and 1)"""
    x = floats(node)
    dims = shape_of(x)
    axis = axis_of(node, len(dims), 0)
    indices = fixed(node, 1, "indices")
    if indices.ndim != 1 or axis != len(dims) - 1 or len(dims) < 2:
        raise Unfit("it does not pick along the last axis")
    matrix = np.eye(dims[axis], dtype=x.dtype.numpy() if x.dtype else np.float32)
    return w.op("MatMul", x, w.constant("picked", matrix[:, indices]))


def second_axis(node: ir.Node, w: Writer) -> ir.Value:
    """Concat, Slice over axis k = Reshape[before, k, 1, after] → the same over axis 1 → Reshape"""
    result = shape_of(node.outputs[0])
    if node.op_type == "Concat":
        cuts = {axis_of(node, len(result), 0): (0, 0, 1)}
    else:
        cuts = _range(node, shape_of(needed(node)))
    if len(cuts) != 1:
        raise Unfit(f"it cuts along {len(cuts)} axes")
    axis, (start, length, step) = next(iter(cuts.items()))
    values = [v for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1]) if v]
    shapes = [(v, shape_of(v)) for v in values]
    flat = [w.reshape(v, [prod(d[:axis]), d[axis], 1, prod(d[axis + 1 :])]) for v, d in shapes]
    if node.op_type == "Concat":
        return w.reshape(w.concat(flat, 1), result)
    if step < 0:
        raise Unfit("it runs backwards")
    return w.reshape(w.slice(flat[0], 1, start, start + (length - 1) * step + 1, step), result)


def along(node: ir.Node, w: Writer, target: int) -> ir.Value:
    """ArgMax over axis k = Transpose → ArgMax over another → Transpose"""
    x = needed(node)
    dims = shape_of(x)
    axis, place = axis_of(node, len(dims), 0), target % len(dims)
    if axis == place:
        raise Unfit("it runs along that axis already")
    order = list(range(len(dims)))
    order[axis], order[place] = order[place], order[axis]
    found = w.op(node.op_type, w.transpose(x, order), axis=place)
    if "select_last_index" in node.attributes:
        w.nodes[-1].attributes["select_last_index"] = node.attributes["select_last_index"]
    found.type = node.outputs[0].type
    back = w.transpose(found, order)
    keep = node.attributes.get_int("keepdims", 1)
    return back if keep else w.reshape(back, shape_of(node.outputs[0]))


def flat_indices(node: ir.Node, w: Writer) -> ir.Value:
    """Gather(x, indices of several axes) = Gather(x, Reshape(indices)) → Reshape"""
    indices = needed(node, 1)
    if len(shape_of(indices)) < 2:
        raise Unfit("its indices have one axis")
    axis = axis_of(node, len(shape_of(needed(node))), 0)
    row = w.op("Gather", needed(node), w.reshape(indices, [-1]), axis=axis)
    return w.reshape(row, shape_of(node.outputs[0]))


def _repeats(node: ir.Node, dims: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the padded input shape and the repeats of an Expand or Tile."""
    if node.op_type == "Tile":
        return list(dims), [int(n) for n in fixed(node, 1, "repeats").reshape(-1)]
    wanted = shape_of(node.outputs[0])
    padded = [1] * (len(wanted) - len(dims)) + list(dims)
    return padded, [t // d if d else 1 for d, t in zip(padded, wanted, strict=True)]


def tiled(node: ir.Node, w: Writer) -> ir.Value:
    """Expand(x) = Tile(x)"""
    x = needed(node)
    padded, repeats = _repeats(node, shape_of(x))
    x = x if len(padded) == len(shape_of(x)) else w.reshape(x, padded)
    return x if set(repeats) == {1} else w.op("Tile", x, w.integers("repeats", repeats))


def copies(node: ir.Node, w: Writer) -> ir.Value:
    """Expand(x), Tile(x) = Concat(x, x, …)"""
    x = needed(node)
    padded, repeats = _repeats(node, shape_of(x))
    if sum(repeats) - len(repeats) > COPIES:
        raise Unfit(f"it copies {prod(repeats)} times, the limit is {COPIES} per axis")
    x = x if len(padded) == len(shape_of(x)) else w.reshape(x, padded)
    for axis, times in enumerate(repeats):
        if times == 0:
            raise Unfit("its result is empty")
        x = w.concat([x] * times, axis)
    return x


def _pads(node: ir.Node, rank: int) -> list[tuple[int, int]]:
    amounts = [int(p) for p in fixed(node, 1, "padding").reshape(-1)]
    axes = (
        range(rank) if given(node, 3) is None else [int(a) % rank for a in fixed(node, 3, "axes")]
    )
    found = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        found[axis] = (amounts[place], amounts[place + len(amounts) // 2])
    if min(min(p) for p in found) < 0:
        raise Unfit("it cuts off instead of padding")
    return found


def borders(node: ir.Node, w: Writer) -> ir.Value:
    """Pad(x) = Concat(border, x, border); a border is a constant, or slices of x"""
    x = needed(node)
    dims, kind = list(shape_of(x)), x.dtype
    mode = node.attributes.get_string("mode", "constant")
    fill = 0 if given(node, 2) is None else fixed(node, 2, "value").reshape(-1)[0]
    if kind is None or mode not in ("constant", "reflect", "edge"):
        raise Unfit(f"its mode is {mode}")
    for axis, (before, after) in enumerate(_pads(node, len(dims))):
        size = dims[axis]
        if mode == "constant":
            shapes = ([*dims[:axis], n, *dims[axis + 1 :]] for n in (before, after))
            filled = (np.full(shape, fill, kind.numpy()) for shape in shapes)
            left, right = ([w.constant("border", a)] if a.size else [] for a in filled)
        else:
            reflect = mode == "reflect"
            rows = [[0] * before, [size - 1] * after]
            if reflect:
                rows = [list(range(before, 0, -1)), list(range(size - 2, size - 2 - after, -1))]
            if before + after > COPIES or (reflect and max(before, after) >= size):
                raise Unfit(f"it pads {before} and {after} to {size} in mode {mode}")
            left, right = ([w.slice(x, axis, i, i + 1) for i in side] for side in rows)
        x = w.concat([*left, x, *right], axis)
        dims[axis] += before + after
    return x


def _shuffle(node: ir.Node) -> tuple[ir.Value, tuple[int, ...], int, bool]:
    x = needed(node)
    dims, block = shape_of(x), node.attributes.get_int("blocksize", 1)
    return x, dims, block, node.attributes.get_string("mode", "DCR") == "CRD"


def reordered(node: ir.Node, w: Writer) -> ir.Value:
    """DepthToSpace, SpaceToDepth = Reshape to six axes → Transpose → Reshape"""
    x, (n, c, h, width), b, crd = _shuffle(node)
    if node.op_type == "SpaceToDepth":
        tall = w.reshape(x, [n, c, h // b, b, width // b, b])
        return w.reshape(w.transpose(tall, [0, 3, 5, 1, 2, 4]), shape_of(node.outputs[0]))
    inner = [n, c // (b * b), b, b, h, width] if crd else [n, b, b, c // (b * b), h, width]
    order = [0, 1, 4, 2, 5, 3] if crd else [0, 3, 4, 1, 5, 2]
    return w.reshape(w.transpose(w.reshape(x, inner), order), shape_of(node.outputs[0]))


def placed(node: ir.Node, w: Writer) -> ir.Value:
    """DepthToSpace = ConvTranspose, SpaceToDepth = Conv, with weights 0 and 1 (finite x)"""
    x, dims, b, crd = _shuffle(node)
    floats(node)
    small = dims[1] // (b * b) if node.op_type == "DepthToSpace" else dims[1]
    kind = x.dtype.numpy() if x.dtype else np.float32
    if small * small * b**4 > 1 << 22:
        raise Unfit(f"its weights would have {small * small * b**4:,} elements")
    weights: Array = np.zeros((small * b * b, small, b, b), kind)
    for c in range(small):
        for i in range(b):
            for j in range(b):
                deep = c * b * b + i * b + j if crd else (i * b + j) * small + c
                weights[deep, c, i, j] = 1
    op = "ConvTranspose" if node.op_type == "DepthToSpace" else "Conv"
    return w.op(op, x, w.constant("places", weights), kernel_shape=[b, b], strides=[b, b])


def same(node: ir.Node, w: Writer) -> ir.Value:
    """Cast(x) to its own type = x"""
    x = needed(node)
    if (
        x.dtype is None
        or int(x.dtype) != node.attributes.get_int("to", 0)
        or constant(x) is not None
    ):
        raise Unfit("it changes the type")
    return x


FORMS: Forms = {
    "Flatten": (reshape,),
    "Squeeze": (reshape,),
    "Unsqueeze": (reshape,),
    "Split": (slices,),
    "ArgMax": (partial(along, target=-1), partial(along, target=1)),
    "ArgMin": (partial(along, target=-1), partial(along, target=1)),
    "Concat": (second_axis,),
    "Slice": (second_axis, parts, partial(strided, cut=False), partial(strided, cut=True)),
    "Gather": (picked, flat_indices, selection),
    "Expand": (tiled, copies),
    "Tile": (copies,),
    "Pad": (borders,),
    "DepthToSpace": (reordered, placed),
    "SpaceToDepth": (reordered, placed),
    "Cast": (same,),
}
