"""ONNX operators in torch, one small function each; used by `onnx_in_torch.py` beside this file.

Every function takes a `Call` (attributes, constants) and the node's tensors, None for those that
are absent. Forms are chosen so that `torch.export` and vendors' quantizers recognise them.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING or __package__:
    from npuc.targets.workers.torch_call import Call, Operator
    from npuc.targets.workers.torch_windows import WINDOWS
else:  # in a kit, where there is no npuc
    from torch_call import Call, Operator
    from torch_windows import WINDOWS

CONSTANT: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2), "ConstantOfShape": (0,), "CumSum": (1,), "Expand": (1,), "Pad": (1, 2, 3),
    "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,),
    "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,),
    "ReduceMean": (1,), "ReduceSum": (1,), "ReduceMax": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceSumSquare": (1,),
    "ReduceLogSumExp": (1,), "ReduceLogSum": (1,), "OneHot": (1, 2),
}  # fmt: skip
"""Inputs that decide shapes or code, by operator: they must be constants."""

_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


# --- elementwise -------------------------------------------------------------------------------
def _div(c: Call, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _mod(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if c.get("fmod", 0) else torch.remainder(a, b)


def _variadic(function: Operator) -> Operator:
    def run(c: Call, first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return run


def _mean(c: Call, *tensors: Tensor) -> Tensor:
    total = tensors[0]
    for other in tensors[1:]:
        total = total + other
    return total / len(tensors)


def _clip(c: Call, x: Tensor, *bounds: Any) -> Tensor:
    low, high = c.number(1), c.number(2)
    low = c.get("min") if low is None else low
    high = c.get("max") if high is None else high
    if low == 0 and high is None:
        return F.relu(x)
    if low == 0 and high == 6:
        return F.relu6(x)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _prelu(c: Call, x: Tensor, slope: Tensor) -> Tensor:
    return F.relu(x) - slope * F.relu(-x)


def _gelu(c: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=c.text("approximate", "none"))


def _hard_sigmoid(c: Call, x: Tensor) -> Tensor:
    alpha, beta = c.get("alpha", 0.2), c.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:  # float32 holds 1/6 to 5e-9
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _cast(c: Call, x: Tensor) -> Tensor:
    to = _TYPES.get(c.get("to"))
    if to is None:
        raise c.refuse(f"ONNX type {c.get('to')} has no torch type")
    return x.to(c.real if to is torch.float32 else to)


def _where(c: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


# --- shapes ------------------------------------------------------------------------------------
def _reshape(c: Call, x: Tensor, shape: Any) -> Tensor:
    sizes = c.ints(1) or []
    if not c.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(c: Call, x: Tensor) -> Tensor:
    axis = c.get("axis", 1) % (x.dim() + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(c: Call, x: Tensor) -> Tensor:
    return x.permute(c.get("perm") or list(range(x.dim()))[::-1])


def _squeeze(c: Call, x: Tensor, *rest: Any) -> Tensor:
    axes = c.axes()
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(c: Call, x: Tensor, *rest: Any) -> Tensor:
    axes = c.axes() or []
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(c: Call, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, dim=c.get("axis"))


def _split(c: Call, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    axis = c.get("axis", 0)
    sizes = c.ints(1) or c.get("split")
    if sizes is None:
        size = -(-x.shape[axis] // c.outputs)
        return torch.split(x, size, dim=axis)
    return torch.split(x, sizes, dim=axis)


def _slice(c: Call, x: Tensor, *rest: Any) -> Tensor:
    starts, ends = c.ints(1) or c.get("starts"), c.ints(2) or c.get("ends")
    axes = c.ints(3) or c.get("axes") or list(range(len(starts)))
    steps = c.ints(4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = x.shape[axis]
        picked = range(*slice(start, None if step < 0 and end < -size else end, step).indices(size))
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(picked.start, picked.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
    return x


def _gather(c: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = c.get("axis", 0) % x.dim()
    fixed = c.fixed[1]
    if fixed is not None and fixed.ndim == 0:
        return x.select(axis, int(fixed) % x.shape[axis])
    if fixed is not None:
        wrapped = np.where(fixed < 0, fixed + x.shape[axis], fixed)
        indices = torch.from_numpy(np.asarray(wrapped, np.int64))
    if axis == 0 and x.dim() == 2 and c.fixed[0] is not None:
        return F.embedding(indices.to(torch.int64), x)
    flat = x.index_select(axis, indices.reshape(-1))
    return flat.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _expand(c: Call, x: Tensor, shape: Any) -> Tensor:
    sizes = c.ints(1) or []
    lead = [1] * (len(sizes) - x.dim())
    have = [*lead, *x.shape]
    want = [1] * (len(have) - len(sizes)) + sizes
    return x.expand([h if w == 1 else w for h, w in zip(have, want, strict=True)])


def _tile(c: Call, x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(c.ints(1) or [])


def _pad(c: Call, x: Tensor, *rest: Any) -> Tensor:
    pads, mode = c.ints(1) or c.get("pads"), c.text("mode", "constant")
    axes = c.ints(3) or list(range(x.dim()))
    widths = [0] * (2 * x.dim())
    for i, axis in enumerate(axes):
        place = 2 * (x.dim() - 1 - axis % x.dim())
        widths[place], widths[place + 1] = pads[i], pads[i + len(axes)]
    if mode == "constant":
        return F.pad(x, widths, value=c.number(2) or 0.0)
    while len(widths) > 2 and widths[-2:] == [0, 0]:
        widths = widths[:-2]
    return F.pad(x, widths, mode={"edge": "replicate", "wrap": "circular"}.get(mode, mode))


def _depth_to_space(c: Call, x: Tensor) -> Tensor:
    n, depth, height, width = x.shape
    block = c.get("blocksize")
    if c.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, depth // block**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, height * block, width * block)


def _space_to_depth(c: Call, x: Tensor) -> Tensor:
    n, depth, height, width = x.shape
    block = c.get("blocksize")
    parts = x.reshape(n, depth, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, height // block, width // block)


def _trilu(c: Call, x: Tensor, *rest: Any) -> Tensor:
    k = int(c.number(1) or 0)
    return torch.triu(x, k) if c.get("upper", 1) else torch.tril(x, k)


def _top_k(c: Call, x: Tensor, k: Any) -> tuple[Tensor, Tensor]:
    largest, ordered = bool(c.get("largest", 1)), bool(c.get("sorted", 1))
    found = torch.topk(x, int(c.number(1) or 0), c.get("axis", -1), largest, ordered)
    return found.values, found.indices


def _arg(function: Operator) -> Operator:
    def run(c: Call, x: Tensor) -> Any:
        if c.get("select_last_index", 0):
            raise c.refuse("select_last_index")
        return function(x, c.get("axis", 0), bool(c.get("keepdims", 1)))

    return run


# --- reductions and normalization --------------------------------------------------------------
def _reduce(function: Operator) -> Operator:
    def run(c: Call, x: Tensor, *rest: Any) -> Any:
        axes, keep = c.axes(), bool(c.get("keepdims", 1))
        if not axes and c.get("noop_with_empty_axes", 0):
            return x
        return function(x, tuple(axes or range(x.dim())), keep)

    return run


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _softmax(function: Operator) -> Operator:
    def run(c: Call, x: Tensor) -> Any:
        if c.opset >= 13:
            return function(x, c.get("axis", -1))
        axis = c.get("axis", 1) % x.dim()
        return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)

    return run


def _layer_norm(c: Call, x: Tensor, scale: Tensor, bias: "Tensor | None" = None) -> Tensor:
    if c.outputs > 1:
        raise c.refuse("its mean and deviation are outputs too")
    axis = c.get("axis", -1) % x.dim()
    return F.layer_norm(x, x.shape[axis:], scale, bias, c.get("epsilon", 1e-5))


def _rms_norm(c: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(c.get("axis", -1) % x.dim(), x.dim()))
    squares = torch.mean(x * x, axes, keepdim=True)
    return x * torch.rsqrt(squares + c.get("epsilon", 1e-5)) * scale


def _batch_norm(c: Call, x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, b, False, 0.0, c.get("epsilon", 1e-5))


def _instance_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=c.get("epsilon", 1e-5))


def _group_norm(c: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = c.get("num_groups")
    if scale.shape[0] == groups != x.shape[1]:  # opset 18 has one per group
        scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
    return F.group_norm(x, groups, scale, bias, c.get("epsilon", 1e-5))


def _lp_norm(c: Call, x: Tensor) -> Tensor:
    axis = c.get("axis", -1)
    if c.get("p", 2) == 1:
        return x / torch.sum(torch.abs(x), axis, keepdim=True)
    return x / torch.sqrt(torch.sum(x * x, axis, keepdim=True))


def _plain(function: Operator) -> Operator:
    return lambda c, *tensors: function(*tensors)


_PLAIN: dict[str, Operator] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "Ceil": torch.ceil,
    "Cos": torch.cos, "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish, "Identity": lambda x: x, "IsNaN": torch.isnan,
    "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log, "Mish": F.mish,
    "Mul": torch.mul, "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or,
    "Pow": torch.pow, "Reciprocal": torch.reciprocal, "Relu": F.relu, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Softplus": F.softplus,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Sub": torch.sub, "Tan": torch.tan,
    "Tanh": torch.tanh, "Xor": torch.logical_xor, "Dropout": lambda x, *rest: x,
}  # fmt: skip

OPERATORS: dict[str, Operator] = {
    **{kind: _plain(function) for kind, function in _PLAIN.items()},
    "Div": _div, "Mod": _mod, "Clip": _clip, "PRelu": _prelu, "Gelu": _gelu, "Cast": _cast,
    "Max": _variadic(torch.maximum), "Min": _variadic(torch.minimum), "Sum": _variadic(torch.add),
    "Mean": _mean, "HardSigmoid": _hard_sigmoid, "Where": _where,
    "LeakyRelu": lambda c, x: F.leaky_relu(x, c.get("alpha", 0.01)),
    "Elu": lambda c, x: F.elu(x, c.get("alpha", 1.0)),
    "Celu": lambda c, x: F.celu(x, c.get("alpha", 1.0)),
    "ThresholdedRelu": lambda c, x: F.threshold(x, c.get("alpha", 1.0), 0.0),
    "Reshape": _reshape, "Flatten": _flatten, "Transpose": _transpose, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Concat": _concat, "Split": _split, "Slice": _slice,
    "Gather": _gather, "Expand": _expand, "Tile": _tile, "Pad": _pad, "Trilu": _trilu,
    "GatherElements": lambda c, x, i: torch.gather(x, c.get("axis", 0), i),
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "TopK": _top_k,
    "CumSum": lambda c, x, axis: torch.cumsum(x, int(c.number(1) or 0)),
    "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin),
    "ReduceMean": _reduce(torch.mean), "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_prod), "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceL1": _reduce(lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep))),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: torch.sum(x * x, axes, keep)),
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
    "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm,
    "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm, "LpNormalization": _lp_norm,
    **WINDOWS,
}  # fmt: skip
"""ONNX operator → function of (call, tensors)."""
