"""Measure by how much codes shift each product on average."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.biases import matrix, response
from npuc.passes.graphs import constant
from npuc.passes.qdq.sites import dequantized
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent
from npuc.quantization import channel_stats

Array = np.ndarray[Any, Any]
_KINDS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class _Product:
    """One quantized product. `data` names what it reads, `real` the same before it was coded."""

    node: ir.Node
    data: str
    real: str
    axis: int
    codes: Array
    """What the codes stand for, as `npuc.passes.biases.matrix` has it; `weight` the same before."""
    weight: Array


def measure(
    program: Program,
    reference: Program,
    calls: Sequence[Tensors],
    progress: Progress | None = None,
) -> dict[str, Array]:
    """Return E[ŵ·x̂ - w·x] per output channel by product, float64.

    x̂ and x are what the quantized `program` reads and had before coding it, so that every product
    answers for its own codes alone; ŵ and w are its weight with and without them, the latter from
    `reference`, the float program it was made of. One pass over the calls, a mean per channel.
    At the edges of a padded convolution, where fewer products are summed, the shift is smaller
    than this says.
    """
    products = list(_products(program, reference))
    axes = {name: item.axis for item in products for name in (item.data, item.real)}
    if not axes:
        return {}
    shown = progress or Silent()
    shown.stage("measure shifts")
    seen = channel_stats.means(program, calls, axes, progress=shown.advance)
    return {
        item.node.name or "": response(item.codes, seen[item.data])
        - response(item.weight, seen[item.real])
        for item in products
        if item.data in seen and item.real in seen
    }


def _products(program: Program, reference: Program) -> Iterator[_Product]:
    originals = {node.name: node for node in reference.model.graph}
    known = {v.name for node in reference.model.graph for v in node.outputs}
    for node in program.model.graph:
        other = originals.get(node.name)
        if node.domain or node.op_type not in _KINDS or other is None:
            continue
        data, weight, float_weight = (
            node.inputs[0],
            _real(node.inputs[1]),
            constant(other.inputs[1]),
        )
        if data is None or weight is None or float_weight is None or not dequantized(data):
            continue
        before = _before(data, known)
        sides = [matrix(node, w) for w in (weight, float_weight)]
        if before is None or sides[0] is None or sides[1] is None:
            continue
        axis = 1 if node.op_type == "Conv" else -1
        yield _Product(node, data.name or "", before, axis, sides[0], sides[1])


def _before(data: ir.Value, known: set[str | None]) -> str | None:
    """Name the tensor that was coded; the clamp to fewer codes belongs to coding it."""
    node = data.producer()
    coded = None if node is None or node.inputs[0] is None else node.inputs[0].producer()
    value = None if coded is None or coded.op_type != "QuantizeLinear" else coded.inputs[0]
    clamp = None if value is None else value.producer()
    if value is not None and clamp is not None and clamp.op_type == "Clip":
        value = clamp.inputs[0] if value.name not in known else value
    return None if value is None else value.name


def _real(value: ir.Value | None) -> Array | None:
    """Return what a constant's codes stand for, in float32 as the program has it."""
    node = value.producer() if dequantized(value) and value is not None else None
    arrays = [] if node is None else [constant(v) for v in node.inputs]
    if node is None or any(array is None for array in arrays):
        return None
    codes, scales, *zeros = [np.asarray(array, np.float32) for array in arrays]
    axis = node.attributes.get_int("axis", 1) % max(codes.ndim, 1)
    spread = [-1 if i == axis else 1 for i in range(codes.ndim)]
    scales, *zeros = [a.reshape(spread) if a.size > 1 else a for a in (scales, *zeros)]
    real = codes - zeros[0] if zeros and zeros[0].any() else codes
    return np.asarray(real * scales)
