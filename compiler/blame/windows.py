"""Find the operator that a compiler gets wrong, by lowering ever smaller parts of a program.

A part is fed golden tensors, so that it errs by itself or not at all. Nothing is tapped: outputs in
the middle would break the fusion that may be what is wrong.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from npuc.blame.gaps import Gap, read_by, taps
from npuc.errors import NpucError
from npuc.passes.graphs import constant
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner
from npuc.targets.base import Runner

Lower = Callable[[Program, Path], Runner]
"""Compiles a program and returns what runs it; raises `NpucError` where it cannot."""

KEPT = 0.25
"""The share of the error (-6 dB) that a part must have to be the one that is searched on."""

CLEAN = 0.01
"""Parts with less than this share (-20 dB) of the error do not have it: flips of rounding."""


@dataclass
class Window:
    """A part of a program that is wrong by itself: nodes `low` to `high`, and by how much."""

    low: int
    high: int
    program: Program
    gap: Gap
    spread: bool = False
    fused: bool = False
    evidence: list[str] = field(default_factory=list)


class Windows:
    """Lowers parts of a program. `count` is told of every evaluation."""

    def __init__(
        self, program: Program, lower: Lower, calls: Sequence[Tensors], count: Callable[[int], None]
    ) -> None:
        self.model = program.clone().model
        self.model.graph.sort()
        self.program = Program.from_model(self.model)
        self.lower, self.calls, self.count = lower, calls, count
        self.stored = _stored(self.model.graph)
        self.nodes = [n for n in self.model.graph if n not in self.stored]
        self.golden = taps(self.program)
        self.seen: dict[tuple[int, int], Window | None] = {}

    def find(self) -> Window | None:
        """Return the smallest part that is wrong by itself; None where not even all of it is."""
        found = self.measure(0, len(self.nodes))
        if found is None or found.gap.ratio == 0:
            return None
        whole = found
        found = self._narrowed(found, self._cuts(), whole.gap.ratio)
        found = self._narrowed(found, range(found.low + 1, found.high), whole.gap.ratio)
        rest = [self.measure(0, found.low), self.measure(found.high, len(self.nodes))]
        found.spread = any(r is not None and r.gap.ratio > CLEAN * whole.gap.ratio for r in rest)
        return found

    def measure(self, low: int, high: int) -> Window | None:
        """Lower nodes `low` to `high` and compare with ONNX Runtime; None where that cannot be."""
        if low >= high:
            return None
        if (low, high) not in self.seen:
            self.seen[low, high] = self._measured(low, high)
        return self.seen[low, high]

    def part(self, low: int, high: int) -> Program | None:
        """Return nodes `low` to `high`, and what they need of constants, as a program."""
        inside = set(self.nodes[low:high])
        reads = [v for n in self.nodes[low:high] for v in read_by(n) if v is not None]
        inputs = [v for v in dict.fromkeys(reads) if self._comes_in(v, inside)]
        results = set(self.model.graph.outputs)
        outputs = [
            v
            for n in self.nodes[low:high]
            for v in n.outputs
            if v in results or any(user not in inside for user, _ in v.uses())
        ]
        if not outputs or not inputs or any(v.dtype is None for v in (*inputs, *outputs)):
            return None
        graph = ir.convenience.extract(
            self.model.graph, [v.name or "" for v in inputs], [v.name or "" for v in outputs]
        )
        graph.opset_imports.update(self.model.opset_imports)
        functions = [f.clone() for f in self.model.functions.values()]
        return Program.from_model(
            ir.Model(graph, ir_version=self.model.ir_version, functions=functions)
        )

    def _measured(self, low: int, high: int) -> Window | None:
        part = self.part(low, high)
        if part is None:
            return None
        self.count(1)
        expected = OnnxRunner(part, "part")
        names = [p.name for p in part.outputs]
        gaps = {name: Gap(name) for name in names}
        with tempfile.TemporaryDirectory(prefix="npuc-") as work:
            try:
                runner = self.lower(part, Path(work))
                for call in self.calls:
                    fed = self.golden(call, [p.name for p in part.inputs])
                    right, got = expected(fed), runner(fed)
                    gaps = {n: g.plus(right[n], got[n]) for n, g in gaps.items()}
            except NpucError:
                return None  # not every part of a program can be compiled alone
        return Window(low, high, part, max(gaps.values(), key=lambda gap: gap.ratio))

    def _narrowed(self, found: Window, cuts: Iterable[int], whole: float) -> Window:
        """Halve a part while one half has the error."""
        allowed = list(cuts)
        while True:
            inner = [at for at in allowed if found.low < at < found.high]
            if not inner:
                return found
            middle = min(inner, key=lambda at: abs(2 * at - found.low - found.high))
            first = self.measure(found.low, middle)
            if first is not None and first.gap.ratio >= KEPT * found.gap.ratio:
                found = first
                continue
            second = self.measure(middle, found.high)
            halves = [half for half in (first, second) if half is not None]
            worst = max(halves, key=lambda half: half.gap.ratio, default=None)
            if worst is None or worst.gap.ratio < CLEAN * min(found.gap.ratio, whole):
                # The fault needs both sides of this cut: try the others, nearest first.
                allowed.remove(middle)
                found.fused = True
                continue
            found = worst

    def _comes_in(self, value: ir.Value, inside: set[ir.Node]) -> bool:
        producer = value.producer()
        if producer is None:
            return value.is_graph_input() and not value.is_initializer()
        return (
            producer not in inside
            and producer not in self.stored
            and (producer.graph is self.model.graph)
        )

    def _cuts(self) -> list[int]:
        """Return where a cut leaves what compilers fuse in one piece: codes with their rounding."""
        order = {node: at for at, node in enumerate(self.nodes)}
        closed: set[int] = set()
        for at, node in enumerate(self.nodes):
            for value in node.outputs:
                users = [order[user] for user, _ in value.uses() if user in order]
                if users and _fuses(node, value):
                    closed |= set(range(at + 1, max(users) + 1))
        return [at for at in range(1, len(self.nodes)) if at not in closed]


def _fuses(node: ir.Node, value: ir.Value) -> bool:
    """Whether a compiler computes a value and what reads it at once: accumulators, codes' reals."""
    if node.op_type == "DequantizeLinear" or value.dtype in (ir.DataType.INT32, ir.DataType.DOUBLE):
        return True
    return any(u.op_type == "QuantizeLinear" or u.domain == "ai.npuc" for u, _ in value.uses())


def _stored(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute from constants alone."""
    found: set[ir.Node] = set()
    for node in graph:
        values = [v for v in read_by(node) if v is not None]
        if all(constant(v) is not None or v.producer() in found for v in values):
            found.add(node)
    return found
