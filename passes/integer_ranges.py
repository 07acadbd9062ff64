"""Bounds of integer tensors that hold for every input of a model: what each value can be."""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import constant

Range = tuple[int, int]
"""Smallest and largest value, both inclusive."""

_MOVES = (
    "Concat Expand Flatten GatherElements Identity ReduceMax ReduceMin Reshape Slice Split Squeeze "
    "Tile Transpose Unsqueeze"
)
MOVES = frozenset(_MOVES.split())
"""Operators whose results hold values of their data inputs, and no others."""
INDICES = frozenset(("ArgMax", "ArgMin", "TopK"))
_WHOLE = frozenset(("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))


class Ranges:
    """Bounds of the values of one graph; a value without bounds is not in them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._known: dict[ir.Value, Range] = {}
        for value in graph.inputs:
            if (found := _as_index(value)) is not None:
                self._known[value] = found
        for node in graph:
            for index, value in enumerate(node.outputs):
                found = _result(node, index, [self.of(v) for v in node.inputs])
                if found is None:
                    found = _as_index(value)
                if found is not None:
                    self._known[value] = found

    def add(self, value: ir.Value, found: Range | None) -> None:
        """Say what a new value can be."""
        if found is not None:
            self._known[value] = found

    def of(self, value: ir.Value | None) -> Range | None:
        """Return a value's bounds, or None where nothing is proved."""
        if value is None:
            return None
        array = constant(value)
        if array is None:
            return self._known.get(value) or _of_dtype(value.dtype)
        if array.size == 0 or array.dtype.kind not in "iub":
            return None
        return int(array.min()), int(array.max())


def _of_dtype(dtype: ir.DataType | None) -> Range | None:
    """Bounds that a narrow type alone sets."""
    if dtype == ir.DataType.BOOL:
        return 0, 1
    if dtype is None or not dtype.is_integer() or dtype in (ir.DataType.INT64, ir.DataType.UINT64):
        return None
    info = np.iinfo(dtype.numpy())
    return int(info.min), int(info.max)


def _as_index(value: ir.Value) -> Range | None:
    """Bounds of what Gather takes as an index: anything else is an error there."""
    if value.dtype is None or not value.dtype.is_integer():
        return None
    for user, place in value.uses():
        data = user.inputs[0]
        if user.op_type in ("Gather", "GatherElements") and place == 1 and data is not None:
            size = _dim(data, user.attributes.get_int("axis", 0))
            if size is not None:
                return -size, size - 1
        if user.op_type in _WHOLE and place == 0:  # all of its values go on
            found = _as_index(user.outputs[0])
            if found is not None:
                return found
    return None


def _dim(value: ir.Value, axis: int) -> int | None:
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None


def _result(node: ir.Node, index: int, given: Sequence[Range | None]) -> Range | None:
    """Bounds of an output from those of the inputs."""
    kind = node.op_type
    if kind in INDICES and node.inputs[0] is not None and (kind != "TopK" or index == 1):
        default = 0 if kind.startswith("Arg") else -1
        size = _dim(node.inputs[0], node.attributes.get_int("axis", default))
        return None if size is None else (0, size - 1)
    if kind in MOVES:
        return union(given if kind == "Concat" else given[:1])
    if kind in ("Gather", "Cast"):
        source = None if node.inputs[0] is None else node.inputs[0].dtype
        return None if source is None or source.is_floating_point() else given[0]
    if kind == "Where":
        return union(given[1:3])
    if kind == "Pad":
        filled = len(given) > 2 and node.inputs[2] is not None
        return union([given[0], given[2] if filled else (0, 0)])
    if kind in ("ReduceSum", "CumSum"):
        return _summed(node, given[0])
    rule = _RULES.get(kind)
    known = [g for g in given if g is not None]
    return rule(known) if rule is not None and known and len(known) == len(given) else None


def _summed(node: ir.Node, given: Range | None) -> Range | None:
    source = node.inputs[0]
    if given is None or source is None or source.shape is None or not source.shape.is_static():
        return None
    count = prod(d for d in source.shape if isinstance(d, int))
    return min(given[0], given[0] * count), max(given[1], given[1] * count)


def union(ranges: Sequence[Range | None]) -> Range | None:
    """Return bounds that hold wherever any of them does; None where one is unknown."""
    known = [r for r in ranges if r is not None]
    if not known or len(known) < len(ranges):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _corners(rule: Callable[[int, int], int]) -> Callable[[Sequence[Range]], Range | None]:
    """Bounds of a function that is monotone in each argument: its values at the corners."""

    def bounds(given: Sequence[Range]) -> Range | None:
        if len(given) != 2:
            return None
        values = [rule(a, b) for a in given[0] for b in given[1]]
        return min(values), max(values)

    return bounds


def _divided(given: Sequence[Range]) -> Range | None:
    (low, high), (least, _) = given
    if least < 1:  # by zero, or -2^63 / -1
        return None
    return min(low, 0), max(high, 0)


def _modulo(given: Sequence[Range]) -> Range | None:
    (low, _), (least, most) = given
    if least < 1:
        return None
    return (0 if low >= 0 else 1 - most), most - 1


def _absolute(given: Sequence[Range]) -> Range | None:
    low, high = given[0]
    return 0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high))


_RULES: dict[str, Callable[[Sequence[Range]], Range | None]] = {
    "Add": _corners(lambda a, b: a + b),
    "Sub": _corners(lambda a, b: a - b),
    "Mul": _corners(lambda a, b: a * b),
    "Div": _divided,
    "Mod": _modulo,
    "Abs": _absolute,
    "Neg": lambda g: (-g[0][1], -g[0][0]),
    "Sign": lambda g: (-1, 1),
    "Max": lambda g: (max(low for low, _ in g), max(high for _, high in g)),
    "Min": lambda g: (min(low for low, _ in g), min(high for _, high in g)),
}
