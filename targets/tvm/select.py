"""Choose a kernel for every convolution and matrix product, with what follows it."""

from collections.abc import Callable
from typing import Any

from npuc.targets.tvm import (
    attention_kernel,
    chains,
    convolution,
    joining,
    pointwise,
    pooling,
    product,
    rows,
)
from npuc.targets.tvm import weights as w
from npuc.targets.tvm.attention import Finder
from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.graph import Walk, bindings, dtype_of, is_var, key, operator, parts
from npuc.targets.tvm.plan import Plan
from npuc.targets.tvm.regions import Region, Regions

PLANNERS = {
    "relax.nn.conv2d": convolution.plan,
    "relax.nn.conv2d_transpose": convolution.plan,
    "relax.concat": joining.plan,
    "relax.nn.max_pool2d": pooling.plan,
    "relax.nn.avg_pool2d": pooling.plan,
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


INTEGER_ANCHORS = frozenset({"relax.nn.conv2d", "relax.matmul"})


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
        operands = self._operands()
        regions = Regions(self._items, outputs, operands)
        taken: set[int] = set()
        self._attention(regions, outputs, taken)
        for at, (_, expr) in enumerate(self._items):
            planner = PLANNERS.get(operator(expr))
            if planner is None or at in taken:
                continue
            alone = operator(expr) in ALONE
            region = Region((at,)) if alone else regions.grow(at, taken)
            self._try(planner, region, taken)
        for at, (var, expr) in enumerate(self._items):
            if at in taken or key(var) in operands or not chains.starts(expr, self._sources):
                continue
            region = regions.grow(at, taken)
            if len(region.members) > 1:
                self._try(chains.plan, region, taken)

    def _attention(self, regions: Regions, outputs: set[int], taken: set[int]) -> None:
        """Plan attention first: its products are none of their own then."""
        finder = Finder(self._items, self._sources, outputs, self.level)
        for at, (_, expr) in enumerate(self._items):
            match = finder.find(at) if operator(expr) == "relax.nn.softmax" else None
            if match is not None:
                region = regions.grow(match.last, taken)
                self._try(attention_kernel.planner(match), region, taken)
                taken.update(match.members)
                self._inner.update(match.members[:-1])
                if region.last != match.last:
                    self._inner.add(match.last)

    def _try(self, planner: Callable[[Plan], bool], region: Region, taken: set[int]) -> None:
        plan = Plan(self.level, self._items, region, self._sources)
        if planner(plan):
            taken.update(region.members)
            self._inner.update(region.members[:-1])
            self._plans[region.last] = plan

    def _operands(self) -> frozenset[int]:
        """Return what only takes zero points off the codes that a product's kernel reads itself.

        Were it to end another kernel, that one would store it, and the codes not at all.
        """
        found = set()
        for _, expr in self._items:
            if operator(expr) in INTEGER_ANCHORS and dtype_of(expr) == "int32":
                for arg in expr.args:
                    while is_var(arg) and w.centred(arg, self._sources) is not None:
                        found.add(key(arg))
                        arg = self._sources[key(arg)].args[0]
        return frozenset(found)

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
