"""What each operator says about the factors of its channels: equal, free, moved or held."""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from npuc.passes.equalization.channels import Channels, Rule, shape
from npuc.passes.graphs import constant

Array = np.ndarray[Any, Any]

MOST = 1 << 24
"""Elements up to which factors are followed through an operator that moves them: 128 MiB."""


def conv(node: ir.Node, channels: Channels) -> None:
    """Weights take the input's factors and give the output's; a depthwise one takes any."""
    transposed = node.op_type == "ConvTranspose"
    weight, data = constant(node.inputs[1]), node.inputs[0]
    inputs = channels.vector(data, 1)
    if weight is None or not channels.owned(node, 1, 2):
        _hold(node, channels)
        return
    if inputs is None:
        channels.hold(data)
        inputs = np.zeros((shape(data) or (0, 0))[1], np.int64)
    groups = node.attributes.get_int("group", 1)
    spatial = (1,) * (weight.ndim - 2)
    if transposed:  # (C_in, C_out / groups, …)
        per_group = weight.shape[1]
        out = channels.variables.fresh(per_group * groups)
        reads = inputs.reshape(-1, 1, *spatial)
        gives = np.repeat(out.reshape(groups, per_group), weight.shape[0] // groups, axis=0)
    else:  # (C_out, C_in / groups, …)
        out = channels.variables.fresh(weight.shape[0])
        reads = np.repeat(inputs.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        gives = out.reshape(-1, 1)
    channels.absorb(node, 1, reads.reshape(*reads.shape[:2], *spatial), 1)
    channels.absorb(node, 1, gives.reshape(*gives.shape[:2], *spatial), -1)
    channels.absorb(node, 2, out, -1)
    channels.give(node.outputs[0], out.reshape(1, -1, *spatial))


def gemm(node: ir.Node, channels: Channels) -> None:
    """As a convolution, with the features along axis 1."""
    weight = constant(node.inputs[1])
    across = node.attributes.get_int("transA", 0) == 1
    if weight is None or across or not channels.owned(node, 1, 2):
        _hold(node, channels)
        return
    inputs = channels.vector(node.inputs[0], 1)
    if inputs is None:
        channels.hold(node.inputs[0])
        inputs = np.zeros(1, np.int64)
    turned = bool(node.attributes.get_int("transB", 0))
    out = channels.variables.fresh(weight.shape[0 if turned else 1])
    reads, gives = (inputs[None], out[:, None]) if turned else (inputs[:, None], out[None])
    channels.absorb(node, 1, reads, 1)
    channels.absorb(node, 1, gives, -1)
    channels.absorb(node, 2, out, -1)
    channels.give(node.outputs[0], out[None])


def matmul(node: ir.Node, channels: Channels) -> None:
    """A constant right side is a weight; of two tensors the factors summed over are inverse."""
    left, right = node.inputs
    if constant(right) is not None:
        _weighted(node, channels)
    elif constant(left) is not None:
        ids = channels.of(right)
        if ids.ndim < 2 or ids.shape[-2] > 1 or len(shape(left) or ()) != 2:
            _hold(node, channels)
        else:
            channels.give(node.outputs[0], ids)
    else:
        _product(node, channels)


def _weighted(node: ir.Node, channels: Channels) -> None:
    data, weight = node.inputs[0], constant(node.inputs[1])
    assert weight is not None
    ids = channels.of(data)
    if weight.ndim != 2 or ids.ndim < 2:
        _hold(node, channels)
    elif ids.any() and ids.shape[-1] == 1:  # it mixes positions, and leaves channels alone
        channels.give(node.outputs[0], ids)
    elif not channels.owned(node, 1):
        _hold(node, channels)
    else:
        inputs = channels.vector(data, -1)
        if inputs is None:
            channels.hold(data)
            inputs = np.zeros(1, np.int64)
        out = channels.variables.fresh(weight.shape[1])
        channels.absorb(node, 1, inputs[:, None], 1)
        channels.absorb(node, 1, out[None], -1)
        channels.give(node.outputs[0], out.reshape(*(1,) * (ids.ndim - 1), -1))


def _product(node: ir.Node, channels: Channels) -> None:
    left, right = node.inputs
    for value in (left, right):
        ids = channels.of(value)
        if ids.ndim < 2 or min(ids.shape[-2:]) > 1:
            channels.hold(value)
    one, other = channels.of(left), channels.of(right)
    if one.ndim < 2 or other.ndim < 2:
        return
    inner = np.swapaxes(other, -1, -2)
    channels.variables.join(_row(one), _row(inner), -1)
    # What is left of each side: its factors that are not summed over.
    rows = one if one.shape[-1] == 1 else np.zeros_like(one[..., :1])
    columns = other if other.shape[-2] == 1 else np.zeros_like(other[..., :1, :])
    if rows.any() and columns.any():
        channels.hold(left)
        rows = np.zeros_like(rows)
    rank = len(shape(node.outputs[0]) or ())
    ids = np.where(columns == 0, rows, columns)
    channels.give(node.outputs[0], ids.reshape((1,) * (rank - ids.ndim) + ids.shape))


def _row(ids: Array) -> Array:
    """Return factors that vary along the last axis; zeros where they vary along the one before."""
    return ids if ids.shape[-2] == 1 and ids.shape[-1] > 1 else np.zeros_like(ids[..., :1, :])


def normalization(node: ir.Node, channels: Channels) -> None:
    """Scale and offset give the output's factors; what is normalized stays as it is."""
    data = node.inputs[0]
    channels.hold(data)
    scale = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    rank = len(shape(data) or ())
    if scale is None or scale.ndim > rank or not channels.owned(node, 1, 2):
        return
    out = channels.variables.fresh(scale.size).reshape(scale.shape)
    channels.absorb(node, 1, out, -1)
    channels.absorb(node, 2, out, -1)
    axis = 1 if node.op_type != "LayerNormalization" else rank - scale.ndim
    spread = (1,) * axis + scale.shape
    channels.give(node.outputs[0], out.reshape(spread + (1,) * (rank - len(spread))))


def batch_normalization(node: ir.Node, channels: Channels) -> None:
    """g·(x - m)/√v + o: the mean and g take the input's factors, g and o give the output's."""
    inputs = channels.vector(node.inputs[0], 1)
    training = node.attributes.get_int("training_mode", 0) == 1
    if inputs is None or training or not channels.owned(node, 1, 2, 3):
        _hold(node, channels)
        return
    out = channels.variables.fresh(inputs.size)
    channels.absorb(node, 1, inputs, 1)
    channels.absorb(node, 3, inputs, -1)
    channels.absorb(node, 1, out, -1)
    channels.absorb(node, 2, out, -1)
    rank = len(shape(node.outputs[0]) or ())
    channels.give(node.outputs[0], out.reshape(1, -1, *(1,) * (rank - 2)))


def same(node: ir.Node, channels: Channels) -> None:
    """y(s·x) = s·y(x) for s > 0, position by position or over axes of one factor each."""
    data, out = node.inputs[0], node.outputs[0]
    ids, before, after = channels.of(data), shape(data), shape(out)
    if before is None or after is None or len(before) != len(after):
        _hold(node, channels)
        return
    moved = [i for i, size in enumerate(ids.shape) if size > 1 and before[i] != after[i]]
    windows = node.op_type in _WINDOWS and any(size > 1 for size in ids.shape[2:])
    if moved or windows:
        _hold(node, channels)
        return
    for other in node.inputs[1:]:  # a slope or a size that is computed
        channels.hold(other)
    channels.give(out, ids)


_WINDOWS = frozenset({"MaxPool", "AveragePool", "LpPool"})


def clip(node: ir.Node, channels: Channels) -> None:
    """A clamp at zero is homogeneous, one at another value is not."""
    ends: list[float | None] = []
    known = True
    for value, name in zip((*node.inputs[1:], None, None), ("min", "max"), strict=False):
        end = constant(value)
        known = known and (end is not None or value is None)
        before = node.attributes.get_float(name, None)  # up to opset 10
        ends.append(before if end is None else float(end.reshape(-1)[0]))
    low, high = ends
    far = float(np.finfo(np.float32).max)
    if known and (low in (None, 0.0) or low <= -far) and (high in (None, 0.0) or high >= far):
        same(node, channels)
        return
    reason = f"Clip({low}, {high}) is not homogeneous: what enters it keeps its scale"
    channels.refuse(node, reason, node.inputs[0])


def reduce(node: ir.Node, channels: Channels) -> None:
    """A reduction over axes of one factor each has that factor."""
    data, out = node.inputs[0], node.outputs[0]
    ids, before, after = channels.of(data), shape(data), shape(out)
    axes = node.attributes.get_ints("axes", None)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant(node.inputs[1])
        axes = None if given is None else [int(a) for a in given.reshape(-1)]
    elif axes is None and before is not None:
        axes = list(range(len(before)))
    if before is None or after is None or not axes:
        _hold(node, channels)
        return
    over = {axis % len(before) for axis in axes}
    if any(ids.shape[axis] > 1 for axis in over):
        _hold(node, channels)
        return
    if len(after) < len(before):
        ids = ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in over])
    channels.give(out, ids)


def add(node: ir.Node, channels: Channels) -> None:
    """Summands have one factor; a constant one takes that of the others."""
    out = node.outputs[0]
    rank = len(shape(out) or ())
    ids: Array | None = None
    for value in node.inputs:
        if constant(value) is None:
            mine = channels.of(value)
            mine = mine.reshape((1,) * (rank - mine.ndim) + mine.shape)
            if ids is not None:
                channels.variables.join(ids, mine)
                ids = np.where(ids == 0, mine, ids) if ids.size >= mine.size else mine
            else:
                ids = mine
    if ids is None:
        return
    fixed = [i for i, value in enumerate(node.inputs) if constant(value) is not None]
    if fixed and ids.any() and not channels.owned(node, *fixed):
        _hold(node, channels)
        return
    for index in fixed:
        channels.absorb(node, index, ids, -1)
    channels.give(out, ids)


def multiply(node: ir.Node, channels: Channels) -> None:
    """A constant vector takes and gives factors; of two tensors one, the gate, is held."""
    consts = [i for i, value in enumerate(node.inputs) if constant(value) is not None]
    out = node.outputs[0]
    if len(consts) == 2 or (node.op_type == "Div" and consts == [0]):
        _hold(node, channels)
    elif consts:
        _factor(node, consts[0], channels)
    else:
        data, gate = node.inputs[0], node.inputs[1]
        smaller = _size(data) < _size(gate) or not channels.of(data).any()
        if node.op_type == "Mul" and smaller and channels.of(gate).any():
            data, gate = gate, data
        channels.hold(gate)
        ids = channels.of(data)
        rank = len(shape(out) or ())
        channels.give(out, ids.reshape((1,) * (rank - ids.ndim) + ids.shape))


def _factor(node: ir.Node, index: int, channels: Channels) -> None:
    data, out = node.inputs[1 - index], node.outputs[0]
    array, ids = constant(node.inputs[index]), channels.of(data)
    assert array is not None
    rank = len(shape(out) or ())
    ids = ids.reshape((1,) * (rank - ids.ndim) + ids.shape)
    if array.size == 1 or array.ndim > rank:
        channels.give(out, ids)
    elif not channels.owned(node, index):
        _hold(node, channels)
    else:
        spread = (1,) * (rank - array.ndim) + array.shape
        fresh = channels.variables.fresh(array.size).reshape(spread)
        sign = -1 if node.op_type == "Div" else 1
        channels.absorb(node, index, ids, sign)
        channels.absorb(node, index, fresh, -sign)
        channels.give(out, fresh)


def moved(node: ir.Node, channels: Channels) -> None:
    """What only moves values moves their factors with them."""
    data = [v for v in node.inputs if v is not None and v in channels.ids]
    sizes = [_size(v) for v in (*node.inputs, *node.outputs)]
    if not data:
        return
    joins = node.op_type == "Concat"
    parameters = [] if joins else [v for v in node.inputs[1:] if v is not None]
    if max(sizes) > MOST or any(constant(v) is None for v in parameters):
        _hold(node, channels)
        return
    feeds = {}
    for value in node.inputs:
        if value is not None and value not in parameters:
            feeds[value] = np.broadcast_to(channels.of(value), shape(value) or ())
    feeds |= {v: np.asarray(constant(v)) for v in parameters}
    for value, ids in zip(node.outputs, _evaluate(node, feeds), strict=True):
        channels.give(value, np.asarray(ids))


def _evaluate(node: ir.Node, feeds: dict[ir.Value, Any]) -> list[Array]:
    """Run one operator on whole numbers in place of values, as ONNX's reference has it."""
    import onnx

    names = {value: f"x{i}" for i, value in enumerate(feeds)}
    opset = 20 if node.graph is None else node.graph.opset_imports.get("", 20)
    proto = ir.to_proto(node)
    del proto.input[:]
    proto.input.extend(names[v] if v is not None else "" for v in node.inputs)
    kind = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [proto],
        "moved",
        [kind(names[v], onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
         for v, a in feeds.items()],
        [kind(v.name or "", onnx.TensorProto.INT64, None) for v in node.outputs],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    found = ReferenceEvaluator(model).run(None, {names[v]: array for v, array in feeds.items()})
    return [np.asarray(array) for array in found]


def pad(node: ir.Node, channels: Channels) -> None:
    """Zeros have every factor, and so have copies along axes of one factor."""
    pads, fill, axes = ((*node.inputs[1:], None, None, None)[i] for i in range(3))
    ids = channels.of(node.inputs[0])
    widths = constant(pads) if pads is not None else node.attributes.get_ints("pads", None)
    value = node.attributes.get_float("value", 0.0) if fill is None else constant(fill)
    constant_mode = node.attributes.get_string("mode", "constant") == "constant"
    if widths is None or (constant_mode and (value is None or np.any(value))):
        _hold(node, channels)
        return
    places = range(ids.ndim) if axes is None else constant(axes)
    along = () if places is None else np.flatnonzero(np.reshape(widths, (2, -1)).any(axis=0))
    if places is None or any(ids.shape[int(places[i])] > 1 for i in along):
        _hold(node, channels)
    else:
        same(node, channels)


def _size(value: ir.Value | None) -> int:
    return int(np.prod(shape(value) or (1,)))


def _hold(node: ir.Node, channels: Channels) -> None:
    for value in node.inputs:
        channels.hold(value)


_SAME = (
    "Relu LeakyRelu PRelu Identity Dropout Neg Abs MaxPool AveragePool LpPool GlobalAveragePool "
    "GlobalMaxPool Resize Upsample"
)
_MOVED = (
    "Reshape Transpose Squeeze Unsqueeze Flatten Slice Split Expand Tile Gather DepthToSpace "
    "SpaceToDepth Concat"
)
_REDUCED = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2"
_NORMS = "LayerNormalization InstanceNormalization RMSNormalization"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_MOVED.split(), moved),
    **dict.fromkeys(_REDUCED.split(), reduce),
    **dict.fromkeys(_NORMS.split(), normalization),
    **dict.fromkeys(("Conv", "ConvTranspose"), conv),
    **dict.fromkeys(("Add", "Sub", "Sum"), add),
    **dict.fromkeys(("Mul", "Div"), multiply),
    "BatchNormalization": batch_normalization,
    "Gemm": gemm,
    "MatMul": matmul,
    "Clip": clip,
    "Pad": pad,
}
"""Operators whose channels' factors are followed; all others hold theirs at 1."""
