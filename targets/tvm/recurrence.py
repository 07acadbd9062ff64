"""Run recurrences as loops: one kernel computes all steps of an LSTM, a GRU or an RNN."""

import string
from collections.abc import Iterator
from typing import Any

import numpy as np

from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.graph import Walk, bindings, is_var, key, operator, parts, shape_of
from npuc.targets.tvm.recurrence_find import Finder
from npuc.targets.tvm.recurrence_form import Loop
from npuc.targets.tvm.recurrence_kernel import Writer
from npuc.targets.tvm.views import shape_of_type


class Recurrence(Walk):
    """Replace the steps of every recurrence by one call."""

    def __init__(self, module: Any, level: Level):
        super().__init__(module)
        self._items = bindings(module)
        finder = Finder(self._items, {key(v) for v in parts(self.main.body.body)})
        self._position = finder.position
        self._starts: dict[int, tuple[Loop, Writer]] = {}
        self._inner: set[int] = set()
        self._stored: dict[int, tuple[int, Loop, int, int]] = {}
        self._calls: dict[int, dict[int, Any]] = {}
        for loop in finder.all():
            writer = Writer(level, loop, finder)
            if writer.possible:
                self._take(loop, writer, finder)
        self._splits = dict(self._read_from(finder))

    def _take(self, loop: Loop, writer: Writer, finder: Finder) -> None:
        start = finder.begins(loop)
        self._starts[start] = (loop, writer)
        self._inner |= finder.members(loop)
        for step, variables in enumerate(loop.variables):
            for at in loop.outputs:
                if at in variables:
                    self._stored[key(variables[at])] = (start, loop, at, step)

    def run(self) -> Any:
        """Return the rebuilt module, or the same where there is nothing to change."""
        return super().run() if self._starts or self._splits else self.module

    def visit(self, var: Any, expr: Any) -> None:
        """Emit a loop where its first step ends, and nothing for the other steps."""
        at = self._position[key(var)]
        if at in self._starts:
            self._emit(at)
        elif at not in self._inner:
            super().visit(var, self._slice(expr))

    def _read_from(self, finder: Finder) -> Iterator[tuple[int, Any]]:
        """Yield the splits outside of loops that loops read parts of, out of the whole."""
        for at, (var, expr) in enumerate(self._items):
            if operator(expr) != "relax.split" or at in self._inner:
                continue
            parts_ = [self._items[part][0] for part in finder.users.get(key(var), ())]
            users = [finder.users.get(key(part), ()) for part in parts_]
            if any(some and self._inner.issuperset(some) for some in users):
                yield key(var), expr

    def _slice(self, expr: Any) -> Any:
        """Return a part of such a split as a slice, and anything else as it is.

        Nothing reads the split then: it need not copy the parts of all steps.
        """
        from tvm import relax

        split = self._splits.get(key(expr.tuple_value)) if hasattr(expr, "tuple_value") else None
        if split is None:
            return expr
        axis = int(split.attrs.axis) % len(shape_of(split.args[0]))
        ends = np.cumsum([shape_of_type(field)[axis] for field in split.ty.fields])
        axes: Any = [axis]  # TVM converts them
        begin: Any = [int(ends[expr.index - 1]) if expr.index else 0]
        end: Any = [int(ends[expr.index])]
        return relax.op.strided_slice(split.args[0], axes, begin, end)

    def lookup(self, var: Any) -> Any:
        """Return a step's value out of all that the loop stores."""
        from tvm import relax

        held = self._stored.get(key(var))
        if held is None:
            return super().lookup(var)
        start, loop, node, step = held
        place = loop.steps - 1 - step if loop.outputs[node] else step
        axes: Any = [0]  # TVM converts them
        begin: Any = [place]
        end: Any = [place + 1]
        return self.emit(relax.op.strided_slice(self._calls[start][node], axes, begin, end))

    def substitute(self, expr: Any) -> Any:
        """Join steps that a concatenation has in order without cutting them apart first."""
        from tvm import ir

        if not isinstance(expr, ir.Tuple):
            return super().substitute(expr)
        fields: list[Any] = []
        items = list(expr.fields)
        while items:
            held = self._stored.get(key(items[0])) if is_var(items[0]) else None
            if held is not None and len(items) >= held[1].steps:
                start, loop, node, _ = held
                run = [self._stored.get(key(v), (-1,)) for v in items[: loop.steps]]
                first, turn = (loop.steps - 1, -1) if loop.outputs[node] else (0, 1)
                wanted = [(start, loop, node, first + turn * n) for n in range(loop.steps)]
                if [r[:1] + r[2:] for r in run] == [r[:1] + r[2:] for r in wanted]:
                    fields.append(self._calls[start][node])
                    del items[: loop.steps]
                    continue
            fields.append(self.substitute(items.pop(0)))
        return ir.Tuple(fields)

    def _emit(self, at: int) -> None:
        from tvm import ir, relax

        loop, writer = self._starts[at]
        function = self.bb.add_func(writer.write(), "recurrence")
        shape: Any = (loop.steps, *loop.shape)
        kinds = [relax.TensorType(shape, "float32") for _ in loop.outputs]
        args: Any = [self.substitute(a) for a in writer.params]
        # A kernel is called after what it ends with.
        self._called = loop.variables[-1][max(loop.outputs)].name.rstrip(string.digits)
        call = relax.call_tir(function, args, out_ty=kinds[0] if len(kinds) == 1 else kinds)
        made = self.emit(call)
        several = len(kinds) > 1
        self._calls[at] = {
            node: self.emit(ir.TupleGetItem(made, number_)) if several else made
            for number_, node in enumerate(loop.outputs)
        }
