"""Pool codes instead of the floats they are made from: quantizing keeps order, and is smaller."""

from typing import Any

from npuc.targets.tvm.graph import Walk, bindings, key, number, operator, parts


class Commute(Walk):
    """Turn quantize(max_pool(x)) into max_pool(quantize(x)), which is the same."""

    def __init__(self, module: Any):
        super().__init__(module)
        self._sources = {key(var): expr for var, expr in bindings(module)}
        self._readers: dict[int, int] = {}
        for expr in (*self._sources.values(), self.main.body.body):
            for var in parts(expr):
                self._readers[key(var)] = self._readers.get(key(var), 0) + 1
        found = [expr for expr in self._sources.values() if self._pool(expr) is not None]
        self._moved = {key(expr.args[0]) for expr in found}

    def run(self) -> Any:
        """Return the rebuilt module, or the same where there is nothing to change."""
        return super().run() if self._moved else self.module

    def visit(self, var: Any, expr: Any) -> None:
        if key(var) in self._moved:
            return
        pool = self._pool(expr)
        if pool is None:
            super().visit(var, expr)
            return
        data = self.substitute(pool.args[0])
        codes = self.emit(self.call(expr, [data, *expr.args[1:]]))
        self.bind(var, self.emit(self.call(pool, [codes])))

    def _pool(self, expr: Any) -> Any:
        """Return the pool that a quantization alone reads, or None."""
        if operator(expr) != "relax.quantize" or number(expr.args[0]) is not None:
            return None
        scale, zero = (number(a) for a in expr.args[1:3])
        pool = self._sources.get(key(expr.args[0]))
        if scale is None or zero is None or scale.size != 1 or not (scale > 0).all():
            return None
        if operator(pool) != "relax.nn.max_pool2d" or self._readers[key(expr.args[0])] != 1:
            return None
        return pool
