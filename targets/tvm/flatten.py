"""Let matrix products and what follows them run through reshapes that keep the last axis.

Exporters write a product of [batch, rows, depth] as one of [batch·rows, depth] between two
reshapes, and end every kernel there: a residual added after the second one would be a pass over
memory of its own. A kernel does not mind how its rows are numbered, so reshapes sink below
products and elementwise operators until they meet their opposites.
"""

from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm import markers
from npuc.targets.tvm.graph import (
    Walk,
    dtype_of,
    is_tensor,
    is_var,
    key,
    number,
    operator,
    shape_of,
)
from npuc.targets.tvm.regions import supported, tensor_args


@dataclass
class _Value:
    """A new variable in its home shape, standing for an old one of the same rows."""

    home: Any
    shape: tuple[int, ...]
    codes: Any = None
    """The old expression where it dequantizes: who wants it in its shape wants codes before it."""
    made: Any = None
    """The same in the old variable's shape, where somebody wanted it."""


class Flatten(Walk):
    """Move reshapes that keep the last axis down."""

    def __init__(self, module: Any):
        super().__init__(module)
        self._aliases: dict[int, _Value] = {}

    def lookup(self, var: Any) -> Any:
        """Return a variable in its original shape."""
        alias = self._aliases.get(key(var))
        if alias is None:
            return super().lookup(var)
        if alias.made is None and alias.codes is not None:
            alias.made = self.emit(self.substitute(alias.codes))
        elif alias.made is None:
            alias.made = self._reshape(alias.home, alias.shape)
        return alias.made

    def visit(self, var: Any, expr: Any) -> None:
        """Move a reshape, or what reads one, or keep the binding as it is."""
        name = operator(expr)
        home: Any = None
        if name == "relax.reshape":
            home = self._moved(var, expr)
        elif name == "relax.matmul":
            home = self._product(expr)
        elif is_tensor(var) and name != "relax.take" and markers.rounding(expr) is None:
            applies = supported(expr) or name == "relax.dequantize"
            home = self._elementwise(var, expr) if applies else None
        if home is None:
            super().visit(var, expr)
        elif shape_of(home) == shape_of(var):
            self.bind(var, home)
        else:
            codes = expr if name == "relax.dequantize" else None
            self._aliases[key(var)] = _Value(home, shape_of(var), codes)

    def _reshape(self, value: Any, shape: Any) -> Any:
        from tvm import relax

        return value if shape_of(value) == shape else self.emit(relax.op.reshape(value, shape))

    def _home(self, expr: Any) -> Any:
        """Return what an old expression is an alias of, or None."""
        alias = self._aliases.get(key(expr)) if is_var(expr) else None
        return None if alias is None else alias.home

    def _moved(self, var: Any, expr: Any) -> Any:
        data = expr.args[0]
        if not is_var(data) or not is_tensor(data):
            return None
        old, new = shape_of(data), shape_of(var)
        home = self._home(data)
        if not old or not new or old[-1] != new[-1] or new[-1] < 2:
            source = self.substitute(data) if home is None else home
            return self._reshape(source, _rows(shape_of(source), new))
        return self.lookup(data) if home is None else home

    def _product(self, expr: Any) -> Any:
        """A product with one matrix for all rows."""
        left, right = expr.args
        home = self._home(left)
        if home is None or len(shape_of(right)) != 2:
            return None
        return self.emit(self.call(expr, [home, self.substitute(right)]))

    def _elementwise(self, var: Any, expr: Any) -> Any:
        """An operator whose full tensors are aliases of one shape, beside numbers and channels."""
        args = tensor_args(expr)
        homes = [self._home(arg) for arg in args]
        shapes = {shape_of(home) for home in homes if home is not None}
        if len(shapes) != 1 or dtype_of(var) == "bool":
            return None
        (shape,) = shapes
        for arg, home in zip(args, homes, strict=True):
            array = number(arg)
            if home is None and not (array is not None and array.size == 1):
                if not is_tensor(arg) or shape_of(arg) != shape[-1:]:
                    return None
            elif home is not None and shape_of(arg) != shape_of(var):
                return None
        moved = [
            home if home is not None else self.substitute(a)
            for a, home in zip(args, homes, strict=True)
        ]
        return self.emit(self.call(expr, [*moved, *map(self.substitute, expr.args[len(args) :])]))


def _rows(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a matrix with the axes that its rows were made of: [batch, rows, depth].

    What joins heads makes a matrix of them; the residual that is added later is none.
    """
    size = 1
    for count, dim in enumerate(old[:-1], 1):
        size *= dim
        if count > 1 and len(new) == 2 and size == new[0]:
            return (*old[:count], new[1])
    return new
