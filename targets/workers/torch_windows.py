"""Products, convolutions, pools and resizing in torch, for `torch_operators.py`.

Forms are chosen so that `torch.export` and vendors' quantizers recognise them: `linear` for a
product with constant weights, `conv2d`.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING or __package__:
    from npuc.targets.workers.torch_call import Call, Operator
else:  # in a kit, where there is no npuc
    from torch_call import Call, Operator


def _matmul(c: Call, a: Tensor, b: Tensor) -> Tensor:
    if c.fixed[1] is not None and b.dim() == 2 and a.dim() >= 2:
        return F.linear(a, b.t())
    return torch.matmul(a, b)


def _gemm(c: Call, a: Tensor, b: Tensor, bias: "Tensor | None" = None) -> Tensor:
    a = a.t() if c.get("transA", 0) else a
    b = b if c.get("transB", 0) else b.t()
    alpha, beta = c.get("alpha", 1.0), c.get("beta", 1.0)
    b = b if alpha == 1.0 else b * alpha
    if bias is not None and beta != 1.0:
        bias = bias * beta
    if bias is None or (bias.dim() == 1 and bias.shape[0] == b.shape[0]):
        return F.linear(a, b, bias)
    return F.linear(a, b) + bias


def _einsum(c: Call, *tensors: Tensor) -> Tensor:
    return torch.einsum(c.text("equation"), *tensors)


def _window(c: Call, x: Tensor, kernel: "list[int]", value: float = 0.0) -> tuple[Any, ...]:
    """Return (x padded where torch cannot, strides, symmetric pads, dilations)."""
    rank = x.dim() - 2
    strides = c.get("strides") or [1] * rank
    dilations = c.get("dilations") or [1] * rank
    pads = c.get("pads") or [0] * (2 * rank)
    auto = c.text("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        pads = [0] * (2 * rank)
        for i in range(rank):
            size, reach = x.shape[2 + i], dilations[i] * (kernel[i] - 1) + 1
            whole = max(0, (-(-size // strides[i]) - 1) * strides[i] + reach - size)
            less, more = whole // 2, whole - whole // 2
            pads[i], pads[i + rank] = (less, more) if auto == "SAME_UPPER" else (more, less)
    begin, end = pads[:rank], pads[rank:]
    if begin != end:
        widths = [w for pair in zip(begin[::-1], end[::-1], strict=True) for w in pair]
        x, begin = F.pad(x, widths, value=value), [0] * rank
    return x, strides, begin, dilations


def _conv(c: Call, x: Tensor, w: Tensor, bias: "Tensor | None" = None) -> Tensor:
    x, strides, pads, dilations = _window(c, x, list(w.shape[2:]))
    function = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    return function(x, w, bias, strides, pads, dilations, c.get("group", 1))


def _conv_transpose(c: Call, x: Tensor, w: Tensor, bias: "Tensor | None" = None) -> Tensor:
    rank = x.dim() - 2
    pads = c.get("pads") or [0] * (2 * rank)
    if c.get("output_shape") or c.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise c.refuse("its pads are not numbers")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    strides, dilations = c.get("strides") or [1] * rank, c.get("dilations") or [1] * rank
    extra, group = c.get("output_padding") or [0] * rank, c.get("group", 1)
    if pads[:rank] == pads[rank:]:
        return function(x, w, bias, strides, pads[:rank], extra, group, dilations)
    y = function(x, w, bias, strides, [0] * rank, extra, group, dilations)
    for axis in range(rank):
        y = y.narrow(2 + axis, pads[axis], y.shape[2 + axis] - pads[axis] - pads[rank + axis])
    return y


def _max_pool(c: Call, x: Tensor) -> Tensor:
    if c.outputs > 1:
        raise c.refuse("its indices are an output too")
    kernel = c.get("kernel_shape")
    x, strides, pads, dilations = _window(c, x, kernel, -math.inf)
    if any(2 * p > k for p, k in zip(pads, kernel, strict=True)):  # torch allows half a kernel
        x, pads = (
            F.pad(x, [w for p in pads[::-1] for w in (p, p)], value=-math.inf),
            [0] * len(pads),
        )
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.dim() - 3]
    return function(x, kernel, strides, pads, dilations, bool(c.get("ceil_mode", 0)))


def _average_pool(c: Call, x: Tensor) -> Tensor:
    kernel, before = c.get("kernel_shape"), x.shape
    x, strides, pads, dilations = _window(c, x, kernel)
    include = bool(c.get("count_include_pad", 0))
    if any(d != 1 for d in dilations) or (x.shape != before and not include):
        raise c.refuse("dilations, or uneven pads that are not counted")
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.dim() - 3]
    return function(x, kernel, strides, pads, bool(c.get("ceil_mode", 0)), include)


def _global_mean(c: Call, x: Tensor) -> Tensor:
    return torch.mean(x, tuple(range(2, x.dim())), keepdim=True)


def _global_max(c: Call, x: Tensor) -> Tensor:
    return torch.amax(x, tuple(range(2, x.dim())), keepdim=True)


def _resize(c: Call, x: Tensor, *rest: Any) -> Tensor:
    mode = c.text("mode", "nearest")
    how = c.text("coordinate_transformation_mode", "half_pixel")
    near = c.text("nearest_mode", "round_prefer_floor")
    axes = [a % x.dim() for a in c.get("axes") or range(x.dim())]
    scales = c.fixed[2] if len(c.fixed) > 2 else None
    if scales is not None and scales.size:
        sizes = [int(x.shape[a] * float(s)) for a, s in zip(axes, scales, strict=True)]
    else:
        sizes = c.ints(3) or []
    want = [*x.shape]
    for axis, size in zip(axes, sizes, strict=True):
        want[axis] = size
    if want[:2] != list(x.shape[:2]) or c.get("antialias", 0):
        raise c.refuse("it resizes batch or channels, or smooths")
    whole = all(w % s == 0 for w, s in zip(want[2:], x.shape[2:], strict=True))
    if mode == "nearest" and whole and (how, near) in _REPEATS:
        return F.interpolate(x, want[2:], mode="nearest")
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(x.dim(), "")
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, want[2:], mode=linear, align_corners=how == "align_corners")
    raise c.refuse(f"{mode} with {how} ({near})")


_REPEATS = {
    ("asymmetric", "floor"),
    *((how, near) for how in ("half_pixel", "pytorch_half_pixel")
      for near in ("round_prefer_floor", "round_prefer_ceil")),
}  # fmt: skip
"""Ways of nearest that repeat every pixel where the scale is a whole number."""


WINDOWS: dict[str, Operator] = {
    "MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum, "Conv": _conv,
    "ConvTranspose": _conv_transpose, "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _global_mean, "GlobalMaxPool": _global_max, "Resize": _resize,
}  # fmt: skip
