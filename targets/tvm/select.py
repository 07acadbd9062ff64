"""Choose a kernel for every convolution and matrix product, with what follows it."""

from typing import Any

from npuc.targets.tvm import convolution, pointwise, product, rows
from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.graph import Walk, bindings, key, operator, parts
from npuc.targets.tvm.plan import Plan
from npuc.targets.tvm.regions import Region, Regions

PLANNERS = {
    "relax.nn.conv2d": convolution.plan,
    "relax.nn.conv2d_transpose": convolution.plan,
    "relax.matmul": product.plan,
    "relax.nn.softmax": rows.softmax,
    "relax.nn.log_softmax": rows.softmax,
    "relax.nn.layer_norm": rows.layer_norm,
    "relax.mean": rows.reduction,
    "relax.sum": rows.reduction,
    "relax.max": rows.reduction,
    "relax.min": rows.reduction,
}
"""Operator → (plan) → the same plan with its kernel written, or None to leave it to TVM."""

ALONE = frozenset({"relax.mean", "relax.sum", "relax.max", "relax.min"})
"""Operators whose kernels store their result as it is."""


class Select(Walk):
    """Replace anchors and their regions by calls of kernels."""

    def __init__(self, module: Any, level: Level):
        super().__init__(module)
        self.level = level
        self._items = bindings(module)
        self._sources = {key(var): expr for var, expr in self._items}
        self._position = {key(var): at for at, (var, _) in enumerate(self._items)}
        self._plans: dict[int, Plan] = {}
        self._inner: set[int] = set()
        self._plan()

    def _plan(self) -> None:
        outputs = {key(v) for v in parts(self.main.body.body)}
        regions = Regions(self._items, outputs)
        taken: set[int] = set()
        for at, (_, expr) in enumerate(self._items):
            planner = PLANNERS.get(operator(expr))
            if planner is None or at in taken:
                continue
            alone = operator(expr) in ALONE
            region = Region((at,)) if alone else regions.grow(at, taken)
            plan = Plan(self.level, self._items, region, self._sources)
            if not planner(plan):
                continue
            taken.update(region.members)
            self._inner.update(region.members[:-1])
            self._plans[region.last] = plan

    def visit(self, var: Any, expr: Any) -> None:
        """Emit a kernel's call at its region's last operator, and nothing for the others."""
        at = self._position[key(var)]
        if at in self._inner:
            return
        plan = self._plans.get(at)
        if plan is not None:
            self.bind(var, plan.emit(self))
            return
        call = self.substitute(expr)
        # LegalizeOps passes calls of packed functions by: what is left of npuc's own ends here.
        kernel = pointwise.marker(self.bb, call)
        self.bind(var, self.emit(call if kernel is None else kernel))
