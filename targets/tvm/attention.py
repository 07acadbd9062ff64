"""Find attention: softmax(scale·QK' + mask)·V, float or with quantized operands.

Heads are split and merged by transposes, keys repeated for several heads, slices cut from one
product: all of that is read and written in place, as views of what really is in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm import weights as w
from npuc.targets.tvm.dots import FLOAT, Dot, choose
from npuc.targets.tvm.graph import (
    dtype_of,
    is_tensor,
    is_var,
    key,
    number,
    operator,
    parts,
    shape_of,
)
from npuc.targets.tvm.regions import Binding, supported, tensor_args
from npuc.targets.tvm.views import Operand, View, resolve

Sources = dict[int, Any]

DEPTH = 8
"""Operators between the scores and their softmax."""


@dataclass(frozen=True, slots=True)
class Side:
    """One operand of a product: where it is read, and its zero point where it is codes."""

    read: Operand
    zero: int = 0


@dataclass(frozen=True)
class Product:
    """One of the two products: its sides, the scale of integer sums, or None for float ones."""

    left: Side | None
    """None for the second product, whose left side is the softmax; `zero` is of its codes then."""
    right: Side
    scale: float | None = None
    zero: int = 0
    signed: bool = False

    def dot(self, level: Any) -> Dot:
        """Return how to multiply and add."""
        if self.scale is None:
            return FLOAT
        return choose(level, signed=self.signed, narrow=True)


@dataclass(frozen=True)
class Match:
    """Attention in main: positions of everything that it computes, the second product last."""

    members: tuple[int, ...]
    scores: Product
    values: Product
    chain: tuple[Binding, ...]
    """Operators between the scores and their softmax, in order."""
    first: Any
    """The scores' variable."""
    quantize: Any
    """The operator that makes codes of the softmax, or None."""
    out: View
    """Where (batch, row, column) of the result is in memory."""

    @property
    def last(self) -> int:
        """Return the position whose value is the result, before any operator that follows it."""
        return self.members[-1]


class Finder:
    """Looks for attention in one main function."""

    def __init__(self, items: Sequence[Binding], sources: Sources, outputs: set[int], level: Any):
        self._items = items
        self._sources = sources
        self._outputs = outputs
        self._level = level
        self._position = {key(var): at for at, (var, _) in enumerate(items)}
        self._users: dict[int, list[int]] = {}
        for at, (_, expr) in enumerate(items):
            for var in parts(expr):
                self._users.setdefault(key(var), []).append(at)

    def find(self, softmax: int) -> Match | None:
        """Return the attention around a softmax, or None."""
        var, expr = self._items[softmax]
        shape = shape_of(var)
        if dtype_of(var) != "float32" or int(expr.attrs.axis) % len(shape) != len(shape) - 1:
            return None
        before = self._scores(expr.args[0], shape, 0)
        after = self._codes(var)
        if before is None or after is None or len(shape) < 3:
            return None
        members, first = before
        rest, quantize, second = after
        scores = self._first(self._sources[key(first)])
        values = self._second(second, quantize, shape)
        if scores is None or values is None:
            return None
        chain = tuple(self._items[m] for m in members[1:])
        end, out = self._end(self._items[second][0])
        inside = (*members, softmax, *rest, second, *end)
        return Match(inside, scores, values, chain, first, quantize, out)

    def _alone(self, var: Any) -> int | None:
        """Return the position of a value's one user."""
        users = self._users.get(key(var), [])
        return users[0] if len(users) == 1 and key(var) not in self._outputs else None

    def _scores(
        self, var: Any, shape: tuple[int, ...], depth: int
    ) -> tuple[tuple[int, ...], Any] | None:
        """Walk from a softmax's input up to a product; return the positions and its variable."""
        if not is_var(var) or self._alone(var) is None or depth > DEPTH:
            return None
        expr = self._sources.get(key(var))
        if expr is None:
            return None
        at = self._position[key(var)]
        if operator(expr) == "relax.matmul":
            return ((at,), var) if shape_of(var) == shape else None
        if not supported(expr) or operator(expr) == "relax.take":
            return None
        args = tensor_args(expr)
        if any(dtype_of(a) != "float32" for a in args) or dtype_of(var) != "float32":
            return None
        for arg in args:
            if not is_var(arg) or shape_of(arg) != shape:
                continue
            found = self._scores(arg, shape, depth + 1)
            if found is not None and sum(a is not arg for a in args) == len(args) - 1:
                return (*found[0], at), found[1]
        return None

    def _codes(self, var: Any) -> tuple[tuple[int, ...], Any, int] | None:
        """Walk from a softmax to the product that reads it, through quantize and dequantize."""
        at = self._alone(var)
        if at is None:
            return None
        expr = self._items[at][1]
        if operator(expr) == "relax.matmul":
            return ((), None, at) if _same(expr.args[0], var) else None
        if operator(expr) != "relax.quantize" or not supported(expr):
            return None
        known = [number(a) for a in expr.args[1:3]]
        if any(array is None or array.size > 1 for array in known):
            return None
        back = self._alone(self._items[at][0])
        if back is None or operator(self._items[back][1]) != "relax.dequantize":
            return None
        end = self._alone(self._items[back][0])
        if end is None or operator(self._items[end][1]) != "relax.matmul":
            return None
        if not _same(self._items[end][1].args[0], self._items[back][0]):
            return None
        return (at, back), expr, end

    def _first(self, expr: Any) -> Product | None:
        """Read QK': rows of both along the depth."""
        left, right = expr.args
        batch = shape_of(expr)[:-2]
        if min(len(shape_of(left)), len(shape_of(right))) < 3 or dtype_of(expr) != "float32":
            return None
        q, k = (w.activation(a, self._sources) for a in (left, right))
        if q is None or k is None:
            rows, columns = self._side(left, batch, False), self._side(right, batch, True)
            if rows is None or columns is None:
                return None
            return Product(Side(rows), Side(columns))
        rows, columns = self._side(q.tensor, batch, False), self._side(k.tensor, batch, True)
        if rows is None or columns is None:
            return None
        scale = float(_float32(q.scale) * _float32(k.scale))
        signed = dtype_of(q.tensor) == "int8"
        made = Product(Side(rows, q.zero), _signed_side(columns, k), scale, q.zero, signed)
        return made if made.dot(self._level).adds == 4 else None

    def _second(self, at: int, quantize: Any, shape: tuple[int, ...]) -> Product | None:
        """Read P·V: V's rows along the columns."""
        expr = self._items[at][1]
        left, right = expr.args
        batch = shape[:-2]
        if len(shape_of(right)) < 3 or shape_of(expr)[:-2] != batch:
            return None
        if quantize is None:
            read = self._side(right, batch, False)
            return None if read is None else Product(None, Side(read))
        p, v = (w.activation(a, self._sources) for a in (left, right))
        read = None if p is None or v is None else self._side(v.tensor, batch, False)
        if read is None or p is None or v is None:
            return None
        scale = float(_float32(p.scale) * _float32(v.scale))
        made = Product(None, _signed_side(read, v), scale, p.zero, dtype_of(p.tensor) == "int8")
        return made if made.dot(self._level).adds == 4 else None

    def _side(self, expr: Any, batch: tuple[int, ...], turned: bool) -> Operand | None:
        """Resolve a side to a view [*batch, rows, values next to each other]."""
        if not is_var(expr) or not is_tensor(expr):
            return None
        rank = len(batch) + 2
        order = [*range(rank - 2), rank - 1, rank - 2] if turned else list(range(rank))

        def seen(view: View) -> View:
            whole = view.broadcast((*batch, *view.shape[-2:]))
            return whole.permuted(order)

        def accepted(view: View) -> bool:
            if len(view.axes) > rank:
                return False
            made = seen(view)
            return made.stride(rank - 1) == 1 and made.stride(rank - 2) is not None

        found = resolve(expr, self._sources, accepted)
        return None if found is None else Operand(found.base, seen(found.view), found.chain)

    def _end(self, var: Any) -> tuple[tuple[int, ...], View]:
        """Follow a transpose, and a reshape after it, that bring heads together again."""
        out = View.contiguous(shape_of(var))
        at = self._alone(var)
        if at is None or operator(self._items[at][1]) != "relax.permute_dims":
            return (), out
        turned, expr = self._items[at]
        rank = len(out.axes)
        axes = expr.attrs.axes
        order = list(range(rank))[::-1] if axes is None else [int(a) % rank for a in axes]
        view = View.contiguous(shape_of(turned)).permuted([order.index(a) for a in range(rank)])
        if view.stride(rank - 1) != 1:
            return (), out
        then = self._alone(turned)
        if then is not None and operator(self._items[then][1]) == "relax.reshape":
            return (at, then), view
        return (at,), view


def _same(a: Any, b: Any) -> bool:
    return is_var(a) and key(a) == key(b)


def _float32(value: float) -> Any:
    import numpy as np

    return np.float32(value)


def _signed_side(read: Operand, codes: w.Activation) -> Side:
    """Weights of integer products are int8: packing takes 128 off unsigned codes."""
    shift = 128 if dtype_of(codes.tensor) == "uint8" else 0
    return Side(read, codes.zero - shift)
