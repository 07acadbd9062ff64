"""Find what a kernel can do with its result before storing it: bias, activation, residual, ..."""

from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm import halves, markers, whole
from npuc.targets.tvm.coded import coded
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
from npuc.targets.tvm.pointwise import OPERATORS

LIMIT = 24
"""Operators in one region: beyond this, registers spill and kernels are no longer shared."""

LIMIT_WHOLE = 160
"""The same for chains with integers: a requantization alone is some dozens of operators, and
every one of them left out would be a pass over memory in 64 bits."""

Binding = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Region:
    """An anchor (a convolution, a matrix product) and the elementwise operators after it.

    `members` are positions in main, the anchor first; the last one's value is the result and the
    only one that is used elsewhere, but for `kept`: the position of a value that is stored, too.
    """

    members: tuple[int, ...]
    kept: int | None = None

    @property
    def last(self) -> int:
        """Position of the operator whose result is stored."""
        return self.members[-1]


class Regions:
    """Grows regions over one main function."""

    def __init__(self, items: list[Binding], outputs: set[int], operands: frozenset[int]):
        """`operands` are the keys of variables that belong to the operators reading them."""
        self.items = items
        self._operands = operands
        self._outputs = outputs
        self._users: dict[int, list[int]] = {}
        for position, (_, expr) in enumerate(items):
            for var in parts(expr):
                self._users.setdefault(key(var), []).append(position)

    def grow(self, anchor: int, taken: set[int]) -> Region:
        """Return the largest region after an anchor that needs nothing the kernel cannot read."""
        var = self.items[anchor][0]
        shape = shape_of(var)
        inside = {key(var)}
        members = [anchor]
        best = Region(tuple(members))
        limit = LIMIT
        for position in range(anchor + 1, len(self.items)):
            if len(members) > limit:
                break
            item, expr = self.items[position]
            if not any(key(v) in inside for v in parts(expr)):
                continue
            if position in taken or not self._joins(item, expr, inside, shape):
                break
            members.append(position)
            inside.add(key(item))
            if dtype_of(item) != "float32":
                limit = LIMIT_WHOLE
            if dtype_of(item) == whole.TRUTH or operator(expr) == "relax.dequantize":
                continue  # who reads it dequantizes for himself: the codes are what is stored
            used = self._used(members)
            if not used:
                best = Region(tuple(members))
            elif _shortens(expr) and self._keeps(used, position):
                best = Region(tuple(members), used[0])
        return best

    def _used(self, members: list[int]) -> list[int]:
        """Return the members before the last whose values are used elsewhere."""
        held = set(members)
        return [m for m in members[:-1] if self._readers(m) - held or self._is_output(m)]

    def _keeps(self, used: list[int], last: int) -> bool:
        """Whether a region can store a second value: floats, which nobody reads before its end."""
        if len(used) != 1 or dtype_of(self.items[used[0]][0]) != "float32":
            return False
        return not any(used[0] < reader < last for reader in self._readers(used[0]))

    def _readers(self, member: int) -> set[int]:
        return set(self._users.get(key(self.items[member][0]), ()))

    def _is_output(self, member: int) -> bool:
        return key(self.items[member][0]) in self._outputs

    def _joins(self, var: Any, expr: Any, inside: set[int], shape: tuple[int, ...]) -> bool:
        if not is_tensor(var) or shape_of(var) != shape:
            return False
        if key(var) in self._operands:
            return False
        if not supported(expr):
            return False
        return all(
            (is_var(a) and key(a) in inside) or leaf_kind(a, shape) for a in shaped_args(expr)
        )


def supported(expr: Any) -> bool:
    """Whether a region may hold an operator."""
    name = operator(expr)
    if name in OPERATORS and all(dtype_of(a) == "float32" for a in tensor_args(expr)):
        return True
    if name == "relax.clip":
        return dtype_of(expr.args[0]) == "float32"
    if name == "relax.dequantize":
        return coded(expr) is not None
    if name == "relax.quantize":
        codes = str(expr.attrs.out_dtype)
        return codes in ("int8", "uint8") and dtype_of(expr.args[0]) == "float32"
    if markers.name_of(expr) == halves.NARROW:
        return True
    return markers.rounding(expr) is not None or whole.supported(expr)


def _shortens(expr: Any) -> bool:
    """Whether an operator gives codes, or a short float, of what others want as it is."""
    return operator(expr) == "relax.quantize" or markers.name_of(expr) == halves.NARROW


def shaped_args(expr: Any) -> list[Any]:
    """Return the tensors that broadcast to an elementwise operator's result: not a table."""
    args = tensor_args(expr)
    return args[1:] if operator(expr) == "relax.take" else args


def tensor_args(expr: Any) -> list[Any]:
    """Return the tensors an elementwise operator reads."""
    if markers.name_of(expr):
        return [markers.data_of(expr)]
    if operator(expr) in ("relax.clip", "relax.dequantize"):
        return [expr.args[0]]
    return list(expr.args)


def leaf_kind(expr: Any, shape: tuple[int, ...]) -> str:
    """How a kernel reads a value beside its own result; "" where it cannot.

    "number": a constant of one element. "channel": one value per position of the last axis.
    "full": as many values as the result. "row": integers, one per position of all axes but the
    last. Truth values are read from no memory.
    """
    array = number(expr)
    if not (array is not None or (is_var(expr) and is_tensor(expr))):
        return ""
    if dtype_of(expr) == whole.TRUTH:
        return ""
    if array is not None and array.size == 1:
        return "number"
    own = shape_of(expr)
    if own == shape:
        return "full"
    if own == (*shape[:-1], 1) and dtype_of(expr) in whole.INTEGERS:
        return "row"
    if len(own) > len(shape) or not own or own[-1] != shape[-1]:
        return ""
    return "channel" if all(d == 1 for d in own[:-1]) else ""
