"""Which nodes an integer scheme quantizes, and what each of their inputs is."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from npuc.partition import on_host
from npuc.passes.graphs import bodies, constant, label
from npuc.passes.qdq.results import absorbed, left_in_float, listed, results, source
from npuc.passes.qdq.sums import stored
from npuc.profile import IntScheme
from npuc.program import Refusal

DATA_INPUTS = {
    "Clip": 1,
    "Pad": 1,
    "Resize": 1,
    "GridSample": 1,
    "PRelu": 1,
    "Pow": 1,
    "LayerNormalization": 1,
    "InstanceNormalization": 1,
    "GroupNormalization": 1,
    "BatchNormalization": 1,
}
"""Operators whose later inputs are parameters and stay as they are; others quantize them all."""
NO_INTEGER_FORM = {
    "LSTM": "run decompose-rnn first",
    "GRU": "run decompose-rnn first",
    "RNN": "run decompose-rnn first",
    "Attention": "decompose it into MatMul and Softmax first",
}
LAYOUT = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split"}
)
"""Operators that move values without computing: the scale of their input is that of the output."""


@dataclass(frozen=True, slots=True)
class Site:
    """One node to quantize. Numbers are indices into the node's inputs.

    `axis` is the weight's output-channel axis, None for one scale; `groups` repeats the weight's
    scales to cover the bias (ConvTranspose shares its channels between groups).
    """

    node: ir.Node
    activations: tuple[int, ...]
    weights: tuple[int, ...] = ()
    axis: int | None = None
    bias: int | None = None
    groups: int = 1


def sites(
    model: ir.Model, scheme: IntScheme, skip: Iterable[str] = ()
) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """List the nodes of `scheme.ops` that can be quantized, and why the others cannot.

    Inputs that are dequantized already are left as they are; a node with nothing left to do is
    left out silently. Sums of images are sites where `scheme.coded_sums` (see `qdq.sums`).
    """
    skipped = set(skip)
    found: list[Site] = []
    refused = [
        Refusal(label(node), f"{node.op_type} is inside {where}")
        for where, node in bodies(model)
        if node.domain == "" and node.op_type in scheme.ops
    ]
    taken = absorbed(model, scheme)
    order = {node: at for at, node in enumerate(model.graph)}
    for node in model.graph:
        sums = _pending(node, stored(node, scheme, order))
        if sums and node.name not in skipped:
            found.append(Site(node, sums))
        if node.domain != "" or node.op_type not in listed(scheme) or node in taken:
            continue
        if on_host(node):
            continue  # it computes in float32 there, and `Place` has said why
        if node.name in skipped:
            refused.append(Refusal(label(node), "skipped by name"))
            continue
        site = _site(node, scheme)
        if isinstance(site, str):
            refused.append(Refusal(label(node), site))
        elif site.activations or site.weights:
            found.append(site)
    return tuple(found), (*refused, *left_in_float(model, scheme))


def coded(site: Site, scheme: IntScheme) -> Iterator[ir.Value]:
    """Yield the activations that a site reads or makes and that must be coded."""
    for index in site.activations:
        value = site.node.inputs[index]
        if value is not None:
            yield value
    yield from results(site.node, scheme)


def observed(model: ir.Model, scheme: IntScheme) -> tuple[str, ...]:
    """Name the tensors whose range quantization needs, in graph order, without repeats."""
    names = (
        source(value, scheme).name
        for site in sites(model, scheme)[0]
        for value in coded(site, scheme)
        if fixed_origin(value, scheme) is None
    )
    return tuple(dict.fromkeys(name for name in names if name))


def fixed_origin(value: ir.Value, scheme: IntScheme) -> str | None:
    """Return the operator that prescribes this tensor's scale, seen through layout operators."""
    producer = source(value, scheme).producer()
    while producer is not None and producer.domain == "":
        if producer.op_type in scheme.fixed_scales:
            return producer.op_type
        moved = producer.inputs[0] if producer.inputs else None
        if producer.op_type not in LAYOUT or moved is None:
            return None
        producer = moved.producer()
    return None


def _site(node: ir.Node, scheme: IntScheme) -> Site | str:
    if node.op_type in NO_INTEGER_FORM:
        return f"{node.op_type} has no integer form here: {NO_INTEGER_FORM[node.op_type]}"
    builder = _BUILDERS.get(node.op_type, _elementwise)
    site = builder(node)
    if isinstance(site, str):
        return site
    for index in (*site.activations, *site.weights):
        value = node.inputs[index]
        if value is not None and value.dtype != ir.DataType.FLOAT:
            kind = "unknown" if value.dtype is None else value.dtype.name.lower()
            return f"input {value.name!r} is {kind}; only float32 is quantized"
    per_channel = scheme.weight_per_channel and node.op_type in scheme.per_channel_ops
    if site.axis is not None and not per_channel:
        return replace(site, axis=None)
    return site


def _conv(node: ir.Node) -> Site | str:
    weight = node.inputs[1]
    if constant(weight) is None and not dequantized(weight):
        return f"weight {weight.name if weight else ''!r} is not a constant"
    transposed = node.op_type == "ConvTranspose"
    groups = node.attributes.get_int("group", 1) if transposed else 1
    return _weighted(node, 0, 1, axis=1 if transposed else 0, groups=groups, bias=True)


def _gemm(node: ir.Node) -> Site | str:
    if constant(node.inputs[1]) is not None:
        axis = 0 if node.attributes.get_int("transB", 0) else 1
        return _weighted(node, 0, 1, axis=axis, bias=True)
    if constant(node.inputs[0]) is not None:
        return _weighted(node, 1, 0, axis=1 if node.attributes.get_int("transA", 0) else 0)
    return Site(node, _pending(node, (0, 1)))


def _matmul(node: ir.Node) -> Site | str:
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    if right is not None:
        return _weighted(node, 0, 1, axis=right.ndim - 1 if right.ndim > 1 else None)
    if left is not None:
        return _weighted(node, 1, 0, axis=left.ndim - 2 if left.ndim > 1 else None)
    return Site(node, _pending(node, (0, 1)))


def _weighted(
    node: ir.Node, data: int, weight: int, axis: int | None, groups: int = 1, bias: bool = False
) -> Site | str:
    if constant(node.inputs[data]) is not None:
        return "all its inputs are constants: run fold-constants first"
    array = constant(node.inputs[weight])
    if array is not None and array.size == 0:
        return "its weight is empty"
    weights = () if array is None else (weight,)
    has_bias = bias and len(node.inputs) > 2 and node.inputs[2] is not None
    return Site(
        node, _pending(node, (data,)), weights, axis, 2 if has_bias and weights else None, groups
    )


def _elementwise(node: ir.Node) -> Site | str:
    count = DATA_INPUTS.get(node.op_type, len(node.inputs))
    floats = [
        i
        for i, value in enumerate(node.inputs[:count])
        if value is not None and value.dtype in (None, ir.DataType.FLOAT)
    ]
    if not floats:
        return "it has no float32 input"
    weights = tuple(i for i in floats if constant(node.inputs[i]) is not None)
    data = tuple(i for i in floats if i not in weights)
    if not data:
        return "all its inputs are constants: run fold-constants first"
    return Site(node, _pending(node, data), weights)


def _pending(node: ir.Node, inputs: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i in inputs if not dequantized(node.inputs[i]))


def dequantized(value: ir.Value | None) -> bool:
    """Whether a value comes straight from DequantizeLinear."""
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


_BUILDERS = {"Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul}
PRODUCTS = frozenset(_BUILDERS)
"""Operators whose constants are weights: each is multiplied, and the products are summed."""
