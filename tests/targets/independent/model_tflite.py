"""What TFLite's reference kernels make of tensors of codes; `scalar_rules` has the numbers."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    from tests.targets.independent import scalar_rules as rules
    from tests.targets.independent.model_values import Array, Value, coded
else:
    import scalar_rules as rules
    from model_values import Array, Value, coded

CLAMPS = frozenset({"Clip", "Relu"})
FUNCTIONS = {
    "Erf": math.erf,
    "Exp": math.exp,
    "Sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "Tanh": math.tanh,
}
"""What is held as a table of 256 codes."""


def recode(x: Value, step: float, z: int, ends: tuple[int, int]) -> Array:
    """Return the codes of the same reals in another coding, within `ends`."""
    assert x.codes is not None and x.scale is not None
    if (float(x.scale), x.zero) == (step, z):
        return x.codes
    by = rules.multiplier(float(x.scale) / step)
    flat = (x.codes - x.zero).reshape(-1).tolist()
    return np.array([rules.clip(rules.mbqm(q, by) + z, *ends) for q in flat]).reshape(x.codes.shape)


def computed(node: onnx.NodeProto, reads: list[Value], step: float, z: int) -> Array | None:
    """Return codes of the result, not limited yet; None where there is no kernel."""
    kind, x = node.op_type, reads[0]
    assert x.codes is not None and x.scale is not None
    centred, source = x.codes - x.zero, float(x.scale)
    if kind in ("Add", "Sub", "Mul"):
        if not coded(reads[1]):
            return None
        return _two(kind, x, reads[1], step) + z
    if kind in ("GlobalAveragePool", "ReduceMean"):
        axes, keep = _mean_axes(node, reads)
        total = centred.sum(axis=axes, keepdims=keep)
        count = centred.size // total.size
        return _each(lambda n: rules.mean(n, count, source, step), total) + z
    if kind == "AveragePool":
        total, count = _windows(node, x.codes)
        pooled = [
            rules.average(int(n), int(c))
            for n, c in zip(total.reshape(-1), count.reshape(-1), strict=True)
        ]
        same = replace(x, codes=np.clip(np.array(pooled).reshape(total.shape), -128, 127))
        return recode(same, step, z, (-128, 127))
    if kind == "Softmax":
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        assert axis in (-1, centred.ndim - 1) and (step, z) == (1 / 256, -128)
        return np.apply_along_axis(lambda r: rules.softmax(r.tolist(), source), -1, x.codes)
    if kind in CLAMPS:
        by = rules.multiplier(rules.f32(source / step))
        return _each(lambda q: rules.mbqm(q, by), centred) + z
    if kind == "HardSwish":
        return _each(lambda q: rules.hard_swish(q, source, step), centred) + z
    if kind == "Sqrt":
        cut = _each(lambda q: rules.square_root(q, source, step), centred) + z
        return np.where(centred < 0, -128, cut)  # the kernel refuses these
    function = FUNCTIONS.get(kind)
    if kind == "HardSigmoid":
        alpha, beta = _floats(node, alpha=0.2, beta=0.5)
        function = lambda v: min(max(alpha * v + beta, 0.0), 1.0)  # noqa: E731
    if kind == "Pow" and reads[1].real.size == 1:
        power = float(reads[1].real.reshape(-1)[0])
        function = lambda v: v**power if v else math.inf  # noqa: E731
    if function is None:
        return None
    return _each(lambda q: rules.lookup(function, q, source, step), centred) + z


def _mean_axes(node: onnx.NodeProto, reads: list[Value]) -> tuple[tuple[int, ...], bool]:
    """Return over which axes a mean is, and whether they stay with length 1."""
    if node.op_type == "GlobalAveragePool":
        return tuple(range(2, reads[0].real.ndim)), True
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    axes = reads[1].real.tolist() if len(reads) > 1 else attributes["axes"]
    return tuple(axes), bool(attributes.get("keepdims", 1))


def _floats(node: onnx.NodeProto, **defaults: float) -> list[float]:
    given = {a.name: a.f for a in node.attribute}
    return [given.get(name, value) for name, value in defaults.items()]


def _windows(node: onnx.NodeProto, codes: Array) -> tuple[Array, Array]:
    """Return sums of codes in each window, and how many places of the image it holds."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kernel, n = attributes["kernel_shape"], codes.ndim - 2
    pads, strides = attributes.get("pads", [0] * 2 * n), attributes.get("strides", [1] * n)
    assert not attributes.get("count_include_pad", 0) and not attributes.get("ceil_mode", 0)
    ends = [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)]

    def summed(array: Array) -> Array:
        padded = np.pad(array, ends)
        view = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))
        return np.asarray(view[:, :, :: strides[0], :: strides[1]].sum(axis=(-2, -1)))

    return summed(codes), summed(np.ones_like(codes))


def _two(kind: str, a: Value, b: Value, step: float) -> Array:
    assert a.codes is not None and b.codes is not None
    first, second = (float(v.scale) for v in (a, b) if v.scale is not None)
    pairs = np.broadcast_arrays(a.codes - a.zero, b.codes - b.zero)
    if kind == "Mul":
        by = rules.multiplier(rules.f32(rules.f32(first * second) / step))
        return _each(lambda n: rules.mbqm(n, by), pairs[0] * pairs[1])
    scales, sign = (first, second, step), -1 if kind == "Sub" else 1
    both = zip(*(p.reshape(-1).tolist() for p in pairs), strict=True)
    return np.array([rules.add(m, n, scales, sign) for m, n in both]).reshape(pairs[0].shape)


def _each(function: Any, array: Array) -> Array:
    found = {n: function(n) for n in set(array.reshape(-1).tolist())}
    return np.array([found[n] for n in array.reshape(-1).tolist()], np.int64).reshape(array.shape)
