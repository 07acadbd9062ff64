"""Feed operators of one program the tensors of another, and measure where the answers part.

A tensor that both programs have by name is golden: what the good program makes of it. Every
operator of the other program is run on golden tensors alone, so that an error shows where it is
born and nowhere else.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from npuc.errors import ParityError, PassError
from npuc.passes.graphs import infer_types
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]

Golden = Callable[[Tensors, Sequence[str]], Tensors]
"""Takes a call and names of tensors; returns those that it has, of the good program."""

BORN = "__born"
"""What the name of a tensor ends with that is computed from golden ones."""

TOGETHER = 1 << 28
"""Bytes of tensors that are taken out of one run: a quarter of a gigabyte."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How far a tensor is from the golden one over all calls: sums of squares, the largest
    difference, and what no number can excuse (another shape, NaN on one side)."""

    tensor: str
    error: float = 0.0
    signal: float = 0.0
    max_abs: float = 0.0
    fault: str = ""

    @property
    def ratio(self) -> float:
        """Noise to signal as a ratio of powers; infinite where no number can excuse it."""
        if self.fault:
            return math.inf
        if self.error == 0:
            return 0.0
        return self.error / self.signal if self.signal > 0 else math.inf

    @property
    def text(self) -> str:
        """Say by how much it differs."""
        if self.fault:
            return self.fault
        if self.error == 0:
            return "equal"
        decibels = -10 * math.log10(self.ratio) if 0 < self.ratio < math.inf else -math.inf
        return f"SQNR {decibels:.1f} dB, max abs {self.max_abs:.3g}"

    def plus(self, expected: Array, got: Array) -> "Gap":
        """Add one call."""
        if expected.shape != got.shape:
            return replace(self, fault=f"shape {got.shape}, expected {expected.shape}")
        a, b = _wide(expected), _wide(got)
        odd = ~(np.isfinite(a) & np.isfinite(b))
        unlike = odd & ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if unlike.any():
            fault = f"{int(unlike.sum())} values are NaN or Inf on one side only"
            return replace(self, fault=fault)
        a, b = a[~odd], b[~odd]
        gap = np.abs(a - b)
        # Codes and indices lie about an offset that says nothing of how much they carry.
        centre = a.mean() if expected.dtype.kind in "iu" and a.size else 0.0
        signal = float(((a - centre) ** 2).sum()) or float((a**2).sum())
        return Gap(
            self.tensor, self.error + float((gap**2).sum()), self.signal + signal,
            max(self.max_abs, float(gap.max(initial=0.0))), self.fault,
        )  # fmt: skip


def taps(program: Program) -> Golden:
    """Return what gives tensors of a program by name, under ONNX Runtime without optimizations.

    With them tensors are fused away, and a program of QuantizeLinear may not load at all.
    """
    known = {v.name for node in program.model.graph for v in node.outputs}
    given = {port.name for port in program.inputs}
    results = {port.name for port in program.outputs}
    made: dict[tuple[str, ...], OnnxRunner] = {}

    def golden(call: Tensors, names: Sequence[str]) -> Tensors:
        extra = tuple(n for n in names if n in known and n not in results)
        if extra not in made:
            made.clear()  # one at a time: a session holds the weights
            made[extra] = OnnxRunner(program, "good", extra)
        found = made[extra](call)
        wanted = set(names)
        seen = {**{n: v for n, v in call.items() if n in given}, **found}
        return {n: v for n, v in seen.items() if n in wanted}

    return golden


def shared(names: Iterable[str], bad: Program) -> list[str]:
    """Return the tensors that both programs have, in the order in which the bad one makes them."""
    known = set(names)
    return [v.name for node in bad.model.graph for v in node.outputs if v.name in known and v.name]


def tensors_of(program: Program) -> set[str]:
    """Return the names of a program's inputs and of all that its main graph makes."""
    made = {v.name or "" for node in program.model.graph for v in node.outputs}
    return (made | {port.name for port in program.inputs}) - {""}


class Cut:
    """A program in which every reader of a golden tensor has it from outside."""

    def __init__(self, program: Program, names: Sequence[str]) -> None:
        self.program = program
        self.model = program.clone().model
        with contextlib.suppress(PassError):  # a faulty step may declare what contradicts itself
            infer_types(self.model)
        graph = self.model.graph
        typed = {v.name for node in graph for v in node.outputs if v.dtype is not None}
        self.names = tuple(name for name in names if name in typed)
        wanted = set(self.names)
        self.made: dict[str, ir.Value] = {}
        self.given: dict[str, ir.Value] = {
            port.name: value for port, value in _inputs(program, graph)
        }
        for node in list(graph):
            for value in node.outputs:
                name = value.name or ""
                if name in wanted:
                    self._open(value, name)
        graph.outputs.clear()

    def part(self, names: Sequence[str]) -> Program:
        """Return what computes these tensors, under their names plus `BORN`, and no more."""
        model = self.model.clone()
        graph = model.graph
        by_name = {v.name: v for node in graph for v in node.outputs}
        graph.outputs.extend(by_name[name + BORN] for name in names)
        common.RemoveUnusedNodesPass()(model)
        idle = [v for v in graph.inputs if not v.uses() and v.name not in graph.initializers]
        for value in idle:
            graph.inputs.remove(value)
        return Program.from_model(model)

    def cone(self, name: str) -> list[ir.Node]:
        """Return the nodes between a tensor and golden ones, in the order they run."""
        pending, found = [self.made[name]], set[ir.Node]()
        while pending:
            node = pending.pop().producer()
            if node is not None and node not in found:
                found.add(node)
                pending += [v for v in read_by(node) if v is not None]
        return [node for node in self.model.graph if node in found]

    def reads(self, name: str) -> set[str]:
        """Return the golden tensors and inputs that a tensor is computed from."""
        known = {id(v): n for n, v in self.given.items()}
        return {known[id(v)] for node in self.cone(name) for v in read_by(node) if id(v) in known}

    def _open(self, value: ir.Value, name: str) -> None:
        twin = ir.Value(name=name, type=value.type)
        users = list(value.uses())
        value.name = name + BORN
        value.shape = None  # what a faulty step declares must not stand in the way
        for user, index in users:
            user.replace_input_with(index, twin)
        self.made[name] = value
        if users:
            self.model.graph.inputs.append(twin)
            self.given[name] = twin


def read_by(node: ir.Node) -> Iterator[ir.Value | None]:
    """Yield what a node reads, in the bodies of control flow too."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type is ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from inner.inputs
        elif attribute.type is ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                for inner in graph.all_nodes():
                    yield from inner.inputs


def born(
    golden: Golden,
    cut: Cut,
    calls: Sequence[Tensors],
    sizes: Mapping[str, int],
    count: Callable[[int], None],
) -> dict[str, Gap]:
    """Return for every tensor of a cut what is born in it, in runs of bounded size.

    `sizes` are the bytes of tensors, as far as known; `count` is told how many programs were run
    over the calls.
    """
    found: dict[str, Gap] = {}
    for names in _bounded(cut.names, sizes):
        part = cut.part(names)
        runner = OnnxRunner(part, "born")
        needed = tuple(dict.fromkeys((*names, *(p.name for p in part.inputs))))
        count(2)
        gaps = {name: Gap(name) for name in names}
        for call in calls:
            good = golden(call, needed)
            missing = [p.name for p in part.inputs if p.name not in good]
            if missing:
                raise ParityError(f"the good program does not give {', '.join(missing)}")
            got = runner(good)
            gaps = {n: g.plus(good[n], got[n + BORN]) for n, g in gaps.items()}
        found.update(gaps)
    return found


def _bounded(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    total = 0
    for name in names:
        size = sizes.get(name, 0)
        if group and total + size > TOGETHER:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _inputs(program: Program, graph: ir.Graph) -> Iterator[tuple[Any, ir.Value]]:
    values = {v.name: v for v in graph.inputs}
    for port in program.inputs:
        yield port, values[port.name]


def _wide(array: Array) -> Array:
    if array.dtype.kind == "c":
        array = np.stack((array.real, array.imag), axis=-1)
    wide: Array = array.astype(np.float64)
    return wide
