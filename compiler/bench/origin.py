"""Say of every kernel which of the program's operators it computes, and how much work they are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from npuc.bench.result import Arithmetic, Kernel
from npuc.estimate import FREE, operations
from npuc.program import Program

if TYPE_CHECKING:
    import onnx_ir as ir

    from npuc.targets.tvm.instrument import KernelTime

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose work is multiply-adds; the others' is not counted."""

_CODES = frozenset({"int8", "uint8"})


def kernels(program: Program, timed: "Sequence[KernelTime]") -> tuple[Kernel, ...]:
    """Return the kernels with the operators that they computed and nobody before them had.

    A kernel is known by the tensor that it ends with: its operators are those that the tensor
    follows from, back to tensors of other kernels.
    """
    from npuc.passes.graphs import label

    # Where several kernels share an operator, its work is the longest one's.
    longest: dict[str, float] = {}
    for item in timed:
        longest[item.tensor] = max(longest.get(item.tensor, 0.0), item.seconds)
    made = {v.name: node for node in program.model.graph for v in node.outputs if v.name}
    ends = {item.tensor for item in timed}
    owner: dict[ir.Node, str] = {}
    counted: set[str] = set()
    found = []
    for item in timed:
        nodes = list(_behind(made, item.tensor, ends))
        nodes = [n for n in nodes if owner.setdefault(n, item.tensor) == item.tensor]
        first = item.seconds == longest[item.tensor] and item.tensor not in counted
        counted.update([item.tensor] if first else [])
        products = [n for n in nodes if first and n.op_type in PRODUCTS]
        shown = [n for n in nodes if n.op_type not in FREE] or nodes
        # Products first: they are what a reader looks for.
        shown = sorted(reversed(shown), key=lambda n: n.op_type not in PRODUCTS)
        found.append(
            Kernel(
                item.kernel,
                item.seconds,
                sum(map(operations, products)),
                item.bytes,
                _arithmetic(item),
                tuple(f"{n.op_type} {label(n)}" for n in shown),
            )
        )
    return tuple(found)


def _arithmetic(item: "KernelTime") -> Arithmetic:
    if "_bf16" in item.kernel:
        return "bfloat16"
    return "integer" if any(dtype in _CODES for dtype in item.dtypes) else "float32"


def _behind(made: "Mapping[str, ir.Node]", tensor: str, ends: set[str]) -> "Iterator[ir.Node]":
    """Yield what computes a tensor, from its end, without what computes other kernels' ends."""
    queue, seen = [tensor], {tensor}
    while queue:
        node = made.get(queue.pop(0))
        if node is None:
            continue
        yield node
        for value in node.inputs:
            if value is None or not value.name or value.name in seen:
                continue
            seen.add(value.name)
            if value.name not in ends:
                queue.append(value.name)
