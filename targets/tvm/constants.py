"""Compute at compile time what follows from constants alone, except dequantized weights.

Those stay as they are: integer kernels want the codes, not the values.
"""

from typing import Any

import numpy as np

from npuc.targets.tvm.graph import Array, Walk, is_tensor, number, operator, shape_of
from npuc.targets.tvm.weights import dequantized


class FoldConstants(Walk):
    """Replace cheap operators on constants by their value; with `codes`, dequantizing as well."""

    def __init__(self, module: Any, *, codes: bool = False):
        super().__init__(module)
        self._codes = codes

    def visit(self, var: Any, expr: Any) -> None:
        """Fold a binding where every tensor it reads is a constant."""
        from tvm import relax

        call = self.substitute(expr)
        value = _value(call, shape_of(var)) if is_tensor(var) else None
        if value is None and self._codes and operator(call) == "relax.dequantize":
            value = dequantized(call)
        if value is None:
            self.bind(var, self.emit(call))
        else:
            self.bind(var, relax.const(np.ascontiguousarray(value), str(value.dtype)))


def _value(call: Any, shape: tuple[int, ...]) -> Array | None:
    name = operator(call)
    if name not in _MOVES and name not in _MATH:
        return None
    arrays = [number(arg) for arg in call.args]
    if name in _MOVES:
        return None if arrays[0] is None else _moved(name, call, arrays[0], shape)
    known = [a for a in arrays if a is not None]
    return None if len(known) < len(arrays) else np.asarray(_MATH[name](*known))


_MOVES = frozenset({"relax.reshape", "relax.permute_dims", "relax.expand_dims", "relax.squeeze"})
_MATH = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.negative": np.negative,
}


def _moved(name: str, call: Any, array: Array, shape: tuple[int, ...]) -> Array:
    if name == "relax.permute_dims":
        axes = call.attrs.axes
        return array.transpose(None if axes is None else [int(a) for a in axes])
    return array.reshape(shape)
