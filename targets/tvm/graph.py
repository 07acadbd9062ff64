"""Read and rebuild a Relax main function, one binding at a time."""

import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from npuc.targets.tvm import names

Array = np.ndarray[Any, Any]


def bindings(module: Any) -> list[tuple[Any, Any]]:
    """Return (variable, expression) of every binding of main, in order."""
    return [(b.var, b.value) for block in module["main"].body.blocks for b in block.bindings]


def key(var: Any) -> int:
    """Return what identifies a variable: `==` on TVM's variables builds an expression."""
    return hash(var)


def operator(expr: Any) -> str:
    """Return the operator's name of a call, or ""."""
    return str(getattr(getattr(expr, "op", None), "name", ""))


def shape_of(expr: Any) -> tuple[int, ...]:
    """Return a tensor's static shape."""
    return tuple(int(d) for d in expr.ty.shape)


def dtype_of(expr: Any) -> str:
    """Return a tensor's element type by numpy's name."""
    return str(expr.ty.dtype.dtype)


def is_tensor(expr: Any) -> bool:
    """Whether an expression is one tensor of a known static shape."""
    from tvm import relax

    if not isinstance(expr.ty, relax.TensorType) or expr.ty.shape is None:
        return False
    return all(isinstance(d, int) or hasattr(d, "value") for d in expr.ty.shape)


def is_var(expr: Any) -> bool:
    """Whether an expression is a variable."""
    from tvm import ir

    return isinstance(expr, ir.Var)


def number(expr: Any) -> Array | None:
    """Return a constant's array, which is not to be written to, or None for anything else."""
    from tvm import ir

    array: Array | None = None
    if isinstance(expr, ir.GenericConst):
        held: Any = expr
        array = np.from_dlpack(held.value)  # its own memory: weights are asked for dozens of times
        array.flags.writeable = False
    return array


def parts(expr: Any) -> Iterator[Any]:
    """Yield the tensors an expression reads."""
    from tvm import ir

    if isinstance(expr, ir.Tuple):
        for field in expr.fields:
            yield from parts(field)
    elif isinstance(expr, ir.TupleGetItem):
        yield from parts(expr.tuple_value)
    elif isinstance(expr, ir.Call):
        for arg in expr.args:
            yield from parts(arg)
    elif is_var(expr):
        yield expr


def _names(items: Sequence[tuple[Any, Any]]) -> list[str]:
    """Return what the bindings that stand for others are called: see `origins`.

    One without a tensor's name is a part of the operator that ends with the next such name.
    """
    found, name = [], "lv"
    for var, _ in reversed(items):
        bare = var.name.rstrip(string.digits)
        name = bare if name == "lv" or names.tensor(bare) else name
        found.append(name)
    return found[::-1]


class Walk:
    """Rebuild main: `visit` says what each binding becomes. Subclasses override it."""

    def __init__(self, module: Any):
        from tvm import ir, relax

        self.module = module
        self.main = module["main"]
        self.params = list(self.main.params)
        others = {var: func for var, func in module.functions.items() if var.name_hint != "main"}
        self.bb = relax.BlockBuilder(ir.IRModule(others))
        self._values: dict[int, Any] = {}
        self._called = ""

    def run(self) -> Any:
        """Return the rebuilt module."""
        with self.bb.function("main", self.params):
            with self.bb.dataflow():
                for var in self.params:
                    self.bind(var, var)
                items = bindings(self.module)
                for (var, expr), self._called in zip(items, _names(items), strict=True):
                    self.visit(var, expr)
                found = self.substitute(self.main.body.body)
                result = self.bb.emit_output(found, found.name if is_var(found) else "gv")
            self.bb.emit_func_output(result)
        return self.bb.get()

    def visit(self, var: Any, expr: Any) -> None:
        """Emit what a binding becomes; by default itself."""
        self.bind(var, self.emit(self.substitute(expr)))

    def emit(self, expr: Any) -> Any:
        """Add a binding and return its variable; variables and constants stay what they are."""
        if is_var(expr) or number(expr) is not None:
            return expr
        return self.bb.emit(expr, self._called)

    def bind(self, var: Any, value: Any) -> None:
        """Say what stands for an old variable."""
        self._values[key(var)] = value

    def lookup(self, var: Any) -> Any:
        """Return what stands for an old variable."""
        return self._values[key(var)]

    def substitute(self, expr: Any) -> Any:
        """Return an old expression over what now stands for its variables."""
        from tvm import ir

        if is_var(expr):
            return self.lookup(expr)
        if isinstance(expr, ir.Tuple):
            return ir.Tuple([self.substitute(f) for f in expr.fields])
        if isinstance(expr, ir.TupleGetItem):
            return ir.TupleGetItem(self.substitute(expr.tuple_value), expr.index)
        if isinstance(expr, ir.Call):
            return self.call(expr, [self.substitute(a) for a in expr.args])
        return expr

    def call(self, expr: Any, args: Sequence[Any]) -> Any:
        """Return the same call on other arguments."""
        from tvm import ir

        return ir.Call(expr.op, list(args), expr.attrs, list(expr.ty_args))
