"""Factors in bfloat16: stored in two bytes where nothing but matrix products reads them.

`RoundTo_e8m7` before a product says that its factor is a bfloat16. Stored as one it is half as
much to read, and CPUs with a dot product of bfloat16 pairs multiply twice as many at a time.
Their products are exact in float32, and so is every sum up to its own rounding; only where a
product or a sum is a subnormal of float32 does the instruction give zero.
"""

from typing import Any

import numpy as np

from npuc.targets.tvm import markers
from npuc.targets.tvm import weights as w
from npuc.targets.tvm.emit import cast, constant, lanes_of
from npuc.targets.tvm.graph import (
    Array,
    Walk,
    bindings,
    dtype_of,
    is_tensor,
    key,
    number,
    operator,
    parts,
    shape_of,
)

NARROW, WIDEN = "ai.npuc.to_bfloat16", "ai.npuc.from_bfloat16"
BFLOAT16 = (8, 7)
"""Bits of exponent and mantissa."""

PRODUCTS = frozenset({"relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul"})


class Halve(Walk):
    """Store what is rounded for products alone, as bfloat16: to_bfloat16, then from_bfloat16."""

    def __init__(self, module: Any):
        super().__init__(module)
        items = bindings(module)
        self._sources = {key(var): expr for var, expr in items}
        readers: dict[int, list[Any]] = {}
        for _, expr in items:
            for part in parts(expr):
                readers.setdefault(key(part), []).append(expr)
        outputs = {key(v) for v in parts(self.main.body.body)}
        self._halved = {
            key(var)
            for var, expr in items
            if _rounds(expr) and key(var) not in outputs and key(var) in readers
            and all(self._takes(reader, var) for reader in readers[key(var)])
        }  # fmt: skip

    def _takes(self, expr: Any, var: Any) -> bool:
        """Whether an expression is a product of `var` and constants that are bfloat16."""
        if operator(expr) not in PRODUCTS or dtype_of(expr) != "float32":
            return False
        data, weights = expr.args
        if number(data) is not None or key(data) != key(var):
            return False
        array = w.values(weights, self._sources)
        if array is None or not exact(array):
            return False
        if operator(expr) == "relax.matmul":
            return array.ndim == 2
        groups, channels = int(expr.attrs.groups), shape_of(data)[3]
        nhwc = str(expr.attrs.data_layout) == "NHWC"
        return nhwc and (groups == 1 or channels // groups % 2 == 0)

    def run(self) -> Any:
        """Return the rebuilt module, or the same where there is nothing to change."""
        return super().run() if self._halved else self.module

    def visit(self, var: Any, expr: Any) -> None:
        """Split a rounding in two; leave anything else as it is."""
        if key(var) not in self._halved:
            super().visit(var, expr)
            return
        data = self.substitute(markers.data_of(expr))
        codes = self.emit(markers.mark(NARROW, data, "uint16"))
        self.bind(var, self.emit(markers.mark(WIDEN, codes, "float32")))


def _rounds(expr: Any) -> bool:
    form = markers.rounding(expr)
    return form is not None and form[:2] == BFLOAT16 and not form[2]


def exact(array: Array) -> bool:
    """Whether float32 values are bfloat16 ones: the lower half of their bits is zero."""
    if array.dtype != np.float32:
        return False
    return not bool(np.any(np.ascontiguousarray(array).view(np.uint32) & 0xFFFF))


def codes(expr: Any, sources: dict[int, Any]) -> Any:
    """Return the uint16 tensor of main that float32 values were widened from, or None."""
    source = sources.get(key(expr)) if number(expr) is None and is_tensor(expr) else None
    return markers.data_of(source) if markers.name_of(source) == WIDEN else None


def narrowed(x: Any) -> Any:
    """Return float32 values rounded to bfloat16, ties to even, as uint16: half of their bits.

    NaN stays one; subnormals are kept.
    """
    from tvm import tirx as t

    lanes = lanes_of(x)
    kind = "uint32" if lanes == 1 else f"uint32x{lanes}"

    def whole(value: int) -> Any:
        return constant(value, "uint32", lanes)

    bits = t.reinterpret(kind, x)
    odd = (bits >> whole(16)) & whole(1)
    size = bits & whole(0x7FFFFFFF)
    # A NaN's upper half may hold no bit of its payload: set one, and let nothing carry.
    result = t.Select(size > whole(0x7F800000), bits | whole(0x400000), bits + whole(0x7FFF) + odd)
    return cast(result >> whole(16), "uint16")


def widened(x: Any) -> Any:
    """Return the float32 values of uint16 bfloat16."""
    from tvm import tirx as t

    lanes = lanes_of(x)
    bits = cast(x, "uint32") << constant(16, "uint32", lanes)
    return t.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", bits)


def packed(array: Array) -> Array:
    """Return the upper halves of float32 values, as uint16."""
    return (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16)
