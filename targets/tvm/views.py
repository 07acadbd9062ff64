"""Tensors seen through reshapes, transposes, slices and broadcasts, without a copy.

An axis is a list of factors (size, stride), the outermost first: merging axes that do not lie next
to each other in memory, as repeating keys for several heads does, still is a view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.graph import is_tensor, is_var, key, number, operator, shape_of
from npuc.targets.tvm.regions import supported, tensor_args

Factor = tuple[int, int]
Axis = tuple[Factor, ...]
Sources = dict[int, Any]


@dataclass(frozen=True, slots=True)
class View:
    """Where the elements of a tensor are in the memory of another one; strides in elements."""

    axes: tuple[Axis, ...]
    offset: int = 0

    @classmethod
    def contiguous(cls, shape: Sequence[int]) -> "View":
        """Return the view that a tensor is of itself."""
        axes: list[Axis] = []
        stride = 1
        for size in reversed(shape):
            axes.append(_axis([(size, stride)]))
            stride *= size
        return cls(tuple(reversed(axes)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of what is seen."""
        return tuple(_size(axis) for axis in self.axes)

    def permuted(self, order: Sequence[int]) -> "View":
        """Return the axes in another order."""
        return View(tuple(self.axes[a] for a in order), self.offset)

    def reshaped(self, shape: Sequence[int]) -> "View | None":
        """Return the same elements under another shape; None where strides cannot say it."""
        left = [factor for axis in self.axes for factor in axis]
        axes: list[Axis] = []
        for size in reversed(shape):
            taken: list[Factor] = []
            need = size
            while need > 1:
                if not left:
                    return None
                count, stride = left.pop()
                if need % count == 0:
                    taken.append((count, stride))
                    need //= count
                elif count % need == 0:
                    left.append((count // need, stride * need))
                    taken.append((need, stride))
                    need = 1
                else:
                    return None
            axes.append(_axis(list(reversed(taken))))
        return None if left else View(tuple(reversed(axes)), self.offset)

    def broadcast(self, shape: Sequence[int]) -> "View":
        """Return the view repeated to a shape that it broadcasts to."""
        rank = len(shape)
        axes = ((),) * (rank - len(self.axes)) + self.axes
        spread = [
            axis if _size(axis) == size else _axis([(size, 0)])
            for axis, size in zip(axes, shape, strict=True)
        ]
        return View(tuple(spread), self.offset)

    def sliced(self, axis: int, start: int, step: int, count: int) -> "View | None":
        """Return `count` positions of an axis from `start`; None where it has several factors."""
        factors = self.axes[axis]
        if len(factors) > 1:
            return None
        stride = factors[0][1] if factors else 0
        cut = _axis([(count, stride * step)])
        axes = (*self.axes[:axis], cut, *self.axes[axis + 1 :])
        return View(axes, self.offset + start * stride)

    def stride(self, axis: int) -> int | None:
        """Return how far an axis's neighbours are apart; None where that differs among them."""
        factors = self.axes[axis]
        return (factors[0][1] if factors else 0) if len(factors) < 2 else None

    def index(self, position: Sequence[Any]) -> Any:
        """Return where the element at a position is; positions are integers or expressions."""
        result: Any = self.offset
        for axis, at in zip(self.axes, position, strict=True):
            inner = _size(axis)
            for number_, (size, stride) in enumerate(axis):
                inner //= size
                if stride:
                    place = at // inner if inner > 1 else at
                    place = place % size if number_ else place
                    result = result + place * stride
        return result


def _axis(factors: list[Factor]) -> Axis:
    """Leave out factors of one element, and merge those that lie next to each other."""
    result: list[Factor] = []
    for size, stride in factors:
        if size == 1:
            continue
        if result and result[-1][1] == size * stride:
            result[-1] = (result[-1][0] * size, stride)
        else:
            result.append((size, stride))
    return tuple(result)


def _size(axis: Axis) -> int:
    result = 1
    for size, _ in axis:
        result *= size
    return result


@dataclass(frozen=True, slots=True)
class Operand:
    """What a tensor is computed from: `chain` applied in order to each element of a view."""

    base: Any
    view: View
    chain: tuple[Any, ...] = ()


def resolve(expr: Any, sources: Sources, accepted: Callable[[View], bool]) -> Operand | None:
    """Look through movements and operators on single values for what a tensor really is.

    Of the tensors that it can be read from, the one before the most movements is returned, if its
    view is `accepted`; an operator straight after it is left to whoever computes it.
    """
    found: Operand | None = None
    steps: list[Any] = []
    node = expr
    while True:
        moves = bool(steps) and not _applies(steps[-1])
        if not steps or moves:
            made = _through(node, steps)
            if made is not None and accepted(made.view):
                found = made
        step = sources.get(key(node)) if is_var(node) else None
        if step is None or not is_tensor(node):
            return found
        step = (step, sources) if operator(step) else _part(step, sources)
        if step is None or not (_applies(step) or _moves(step[0])):
            return found
        steps.append(step)
        node = _data(step[0])


def _part(expr: Any, sources: Sources) -> Any:
    """Return an element of a split as (split, its number)."""
    from tvm import ir

    if not isinstance(expr, ir.TupleGetItem):
        return None
    split = sources.get(key(expr.tuple_value))
    return (split, int(expr.index)) if operator(split) == "relax.split" else None


def _data(expr: Any) -> Any:
    """Return the one tensor that a movement or an operator on single values reads."""
    if _moves(expr):
        return expr.args[0]
    return next(a for a in tensor_args(expr) if number(a) is None)


def _applies(step: Any) -> bool:
    """Whether a step computes every element from one other, and numbers."""
    expr = step[0]
    if _moves(expr) or not supported(expr) or operator(expr) == "relax.take":
        return False
    arrays = [number(a) for a in tensor_args(expr)]
    if sum(a is None for a in arrays) != 1 or any(a is not None and a.size > 1 for a in arrays):
        return False
    return bool(shape_of(_data(expr)) == shape_of(expr))


_MOVES = frozenset(
    ["broadcast_to", "expand_dims", "permute_dims", "reshape", "split", "squeeze", "strided_slice"]
)


def _moves(expr: Any) -> bool:
    return operator(expr).removeprefix("relax.") in _MOVES


def _through(base: Any, steps: Sequence[Any]) -> Operand | None:
    """Follow steps, the last one first, from a tensor."""
    view = View.contiguous(shape_of(base))
    chain = []
    for step in reversed(steps):
        if _applies(step):
            chain.append(step[0])
            continue
        moved = _moved(view, *step)
        if moved is None:
            return None
        view = moved
    return Operand(base, view, tuple(chain))


def _moved(view: View, expr: Any, part: Any) -> View | None:
    name = operator(expr)
    if name == "relax.permute_dims":
        axes = expr.attrs.axes
        rank = len(view.axes)
        return view.permuted(range(rank)[::-1] if axes is None else [int(a) % rank for a in axes])
    if name == "relax.broadcast_to":
        return view.broadcast(shape_of(expr))
    if name == "relax.split":
        return _split(view, expr, part)
    if name == "relax.strided_slice":
        return _sliced(view, expr)
    return view.reshaped(shape_of(expr))


def _split(view: View, expr: Any, part: int) -> View | None:
    axis = int(expr.attrs.axis) % len(view.axes)
    fields = [shape_of_type(f)[axis] for f in expr.ty.fields]
    return view.sliced(axis, sum(fields[:part]), 1, fields[part])


def shape_of_type(kind: Any) -> tuple[int, ...]:
    """Return the shape in a tensor type."""
    return tuple(int(d) for d in kind.shape)


def _sliced(view: View, expr: Any) -> View | None:
    axes, begin, _, strides = (
        _integers(a) for a in (*expr.args[1:5], *[None] * (5 - len(expr.args)))
    )
    if axes is None or begin is None:
        return None
    strides = [1] * len(axes) if strides is None else strides
    shape = shape_of(expr)
    result: View | None = view
    for axis, start, step in zip(axes, begin, strides, strict=True):
        if result is None or step < 1:
            return None
        size = result.shape[axis]
        first = min(max(start + size if start < 0 else start, 0), size)
        result = result.sliced(axis, first, step, shape[axis])
    return result


def _integers(expr: Any) -> list[int] | None:
    """Return the integers of a tuple, or None where one is not known."""
    from tvm import ir

    if not isinstance(expr, ir.Tuple):
        return None
    values = [getattr(f, "value", None) for f in expr.fields]
    known = [int(v) for v in values if v is not None]
    return known if len(known) == len(values) else None
