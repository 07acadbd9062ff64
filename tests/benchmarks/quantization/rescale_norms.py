"""Give every LayerNorm of a transformer three wide channels without changing its function.

Scale and offset of three channels are multiplied by 20 to 60, and the rows of the linear layers
that read them are divided by the same. That is exact only where nothing but linear layers reads
the norm (through reshapes and the like that leave its channels alone). After a norm that a
residual addition reads too, as in BERT, no such rescaling exists; that norm is left as it is.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from quantization import graph

WIDE, LEAST, MOST, SEED = 3, 20.0, 60.0, 20

Reader = tuple[ir.Node, int, int]
"""A linear layer, which of its inputs is the weight, and along which axis that is divided."""


def rescale(model: ir.Model, seed: int = SEED) -> tuple[int, int]:
    """Rescale in place; return how many norms took wide channels, and of how many."""
    generator = np.random.default_rng(seed)
    norms = [n for n in model.graph if n.op_type in ("LayerNormalization", "RMSNormalization")]
    reached = 0
    for norm in norms:
        width = _width(norm)
        if width is None:
            continue
        factors = np.ones(width)
        chosen = generator.choice(width, WIDE, replace=False)
        factors[chosen] = generator.uniform(LEAST, MOST, WIDE)
        try:
            readers = list(_readers(norm.outputs[0], width))
        except _NotLinear:
            continue
        for at in range(1, len(norm.inputs)):
            if norm.inputs[at] is not None:
                graph.multiply(model, norm, at, factors)
        for node, at, axis in readers:
            graph.multiply(model, node, at, 1 / (factors if axis else factors[:, None]))
        reached += 1
    return reached, len(norms)


class _NotLinear(Exception):
    """A norm is read by something that cannot take its factors."""


def _width(norm: ir.Node) -> int | None:
    """Return the number of channels of a norm over its last axis with constant parameters."""
    scale = norm.inputs[1]
    if not all(graph.is_weight(v) for v in norm.inputs[1:] if v is not None) or scale is None:
        return None
    size = graph.shape(scale)
    return size[0] if size is not None and len(size) == 1 else None


def _readers(value: ir.Value, width: int) -> Iterator[Reader]:
    """Yield the linear layers that read a value; raises `_NotLinear` where there is another."""
    if value.is_graph_output():
        raise _NotLinear
    for node, index in value.uses():
        if index == 0 and (linear := _linear(node)) is not None:
            yield linear
        elif index == 0 and _keeps_channels(node, width):
            yield from _readers(node.outputs[0], width)
        else:
            raise _NotLinear


def _linear(node: ir.Node) -> Reader | None:
    if len(node.inputs) < 2 or not graph.is_weight(node.inputs[1]):
        return None
    if node.op_type == "MatMul":
        size = graph.shape(node.inputs[1])  # type: ignore[arg-type]
        return (node, 1, 0) if size is not None and len(size) == 2 else None
    if node.op_type == "Gemm" and not graph.integer(node, "transA"):
        return node, 1, graph.integer(node, "transB")
    return None


def _keeps_channels(node: ir.Node, width: int) -> bool:
    """Return whether a node moves tokens about and leaves each one's channels as they are."""
    before = None if node.inputs[0] is None else graph.shape(node.inputs[0])
    after = graph.shape(node.outputs[0])
    if before is None or after is None or not after or after[-1] != width:
        return False
    last = len(before) - 1
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"):
        return True
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return order is not None and order.as_ints()[-1] == last
    if node.op_type == "Gather":
        return graph.integer(node, "axis") % (last + 1) != last
    if node.op_type == "Slice":
        axes = graph.constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return axes is not None and all(int(a) % (last + 1) != last for a in axes.numpy())
    return False
