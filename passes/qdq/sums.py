"""Which summands of images are coded where a convolution ends with a sum in float.

A convolution adds another value to its own result before it stores anything, so its own stays a
float that nobody sees. The other one was stored: as codes it takes a quarter of the memory.
"""

from collections.abc import Mapping

import onnx_ir as ir

from npuc.passes.graphs import constant
from npuc.passes.qdq.results import only_reader
from npuc.profile import IntScheme

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_ACTIVATIONS = frozenset(
    {"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Tanh"}
)
IMAGE = 4
"""Axes of a batch of images."""


def stored(node: ir.Node, scheme: IntScheme, order: Mapping[ir.Node, int]) -> tuple[int, ...]:
    """Return the inputs of an Add to code: at most one.

    One summand must be a convolution's result, after its activation, that only this Add reads; of
    two such, the one computed first stays a float. The other must be an image as large that is
    coded for another reader as well, or such a result. `order` gives each node's position.
    """
    if not scheme.coded_sums or node.op_type != "Add" or node.domain or "Add" in scheme.ops:
        return ()
    values = [v for v in node.inputs if v is not None and constant(v) is None]
    if len(values) != 2 or len({str(v.shape) for v in values}) > 1:
        return ()
    if values[0].shape is None or len(values[0].shape) != IMAGE:
        return ()
    fresh = [i for i, v in enumerate(values) if _fresh(v, node)]
    if not fresh:
        return ()
    last = min(fresh, key=lambda i: _position(values[i], order))
    other = 1 - last
    return (other,) if other in fresh or _coded(values[other], node, scheme) else ()


def _fresh(value: ir.Value, node: ir.Node) -> bool:
    """Whether a convolution computes a value for one reader alone."""
    if only_reader(value) is not node:
        return False
    producer = value.producer()
    while producer is not None and producer.op_type in _ACTIVATIONS:
        first = producer.inputs[0]
        producer = None if first is None else first.producer()
    return producer is not None and producer.op_type in CONVOLUTIONS


def _position(value: ir.Value, order: Mapping[ir.Node, int]) -> int:
    producer = value.producer()
    return -1 if producer is None else order[producer]


def _coded(value: ir.Value, node: ir.Node, scheme: IntScheme) -> bool:
    """Whether another reader of a value reads its codes: the first input of a convolution."""
    return any(
        user is not node and index == 0 and user.op_type in CONVOLUTIONS & scheme.ops
        for user, index in value.uses()
    )
