"""Where a quantized program loses its answer: per tensor, and what is behind the worst.

Accumulated is what a tensor differs by from the float program's when all before it is quantized;
born here is what it differs by when its own operator is, on the float program's own tensors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from npuc import source_lines
from npuc.layers.codings import Coding, find
from npuc.layers.culprits import examine
from npuc.layers.found import FLOATS as FLOATS
from npuc.layers.found import Coded
from npuc.layers.found import Layer as Layer
from npuc.layers.found import Layers as Layers
from npuc.layers.side_by_side import FLOAT, Attached, SideBySide, Totals, least, ranked
from npuc.program import Program, Tensors

CALLS = 8
"""Calls that are measured: a layer's error hardly differs from sample to sample."""

WORST = 8
"""Layers whose ranges and histograms are looked into."""


@dataclass
class _Row:
    """Where a tensor's sums are."""

    layer: Layer
    accumulated: tuple[int, int] | None = None
    born: tuple[int, int] | None = None
    device: tuple[int, int] | None = None


@dataclass
class _Plan:
    bench: SideBySide
    rows: list[_Row] = field(default_factory=list)
    codings: Mapping[str, Coding] = field(default_factory=dict)
    places: dict[str, tuple[int, tuple[int, int]]] = field(default_factory=dict)


def measure(
    program: Program,
    quantized: Program,
    calls: Sequence[Tensors],
    *,
    device: Program | None = None,
    observer: str = "",
    places: Mapping[str, tuple[str, str]] | None = None,
    worst: int = WORST,
) -> Layers:
    """Compare a quantized program with the float program it was made of, tensor by tensor.

    `device` is the quantized program with the target's arithmetic, where that differs. Programs
    keep the names of tensors that they have in common. `places` are `source_lines.known` of the
    program as it was exported. `calls` fit the programs' ports. Memory is
    that of the tensors of one call. Raises
    `ParityError` without calls, or where ONNX Runtime fails.
    """
    program = program.clone()
    source_lines.restore(program.model, places or {})
    plan = _plan(program, quantized, device)
    if not plan.rows:
        return Layers((), {}, (), math.inf, 0, observer)
    totals = plan.bench.run(calls)
    layers = tuple(_measured(row, totals) for row in plan.rows)
    coded = {name: _seen(plan, name, totals) for name in plan.codings}
    outputs = [layer.accumulated for layer in layers if layer.output]
    found = Layers(layers, coded, (), least(outputs), len(calls), observer)
    lossy = [(ranked(x.born), x) for x in layers if x.born is not None and x.born != math.inf]
    chosen = [layer for _, layer in sorted(lossy, key=lambda item: item[0])]
    tensors = [layer.tensor for layer in chosen[:worst]]
    reads = {name: found.find(name).reads for name in tensors}
    return replace(found, worst=examine(program, quantized, calls, tensors, reads, coded))


def _plan(program: Program, quantized: Program, device: Program | None) -> _Plan:
    bench = SideBySide(program)
    attached = bench.attach(quantized)
    chip = None if device is None else bench.attach(device)
    plan = _Plan(bench, codings=find(bench, attached))
    outputs = {value.name for value in bench.graph.outputs}
    by_node = {coding.node: coding for coding in plan.codings.values()}
    for name, value in bench.reference.items():
        producer, other = value.producer(), attached.values.get(name)
        if producer is None or other is None or other.dtype != FLOAT:
            continue
        cone = bench.cone(attached, name)
        reads = [by_node[node].tensor for node in cone if node in by_node]
        # On a device without floats what is moved is coded again, in the same codes.
        reads = [r for r in reads if not any(n in reads for n in list(bench.moves(r))[1:])]
        row = _Row(_layer(value, producer, tuple(reads), name in outputs))
        row.accumulated = bench.noise(name, other)
        alone = bench.born(attached, name)
        row.born = None if alone is None else bench.noise(name, alone)
        on_chip = None if chip is None else _on_device(plan, chip, name)
        row.device = None if on_chip is None else bench.noise(name, on_chip)
        plan.rows.append(row)
    for name, coding in plan.codings.items():
        half = coding.step / 2
        beyond = bench.outside(name, coding.low - half, coding.high + half)
        plan.places[name] = bench.edges(name), beyond
    return plan


def _layer(value: ir.Value, node: ir.Node, reads: tuple[str, ...], output: bool) -> Layer:
    line, module = source_lines.line(node), source_lines.module(node)
    name = value.name or ""
    return Layer(
        name, node.name or "", node.op_type, line, module, math.nan, None, None, reads, output
    )


def _on_device(plan: _Plan, chip: Attached, name: str) -> ir.Value | None:
    """Return a tensor as the device has it, in reals; None where it never has it."""
    value = chip.values.get(name)
    if value is not None and value.dtype == FLOAT:
        return value
    coding = plan.codings.get(name)
    codes = None if coding is None else chip.values.get(coding.codes)
    if coding is None or codes is None:
        return None
    return plan.bench.op("DequantizeLinear", codes, *coding.parameters)


def _measured(row: _Row, totals: Totals) -> Layer:
    assert row.accumulated is not None  # `_plan` sums it for every row
    born = None if row.born is None else totals.decibels(row.born)
    device = None if row.device is None else totals.decibels(row.device)
    whole = totals.decibels(row.accumulated)
    return replace(row.layer, accumulated=whole, born=born, device=device)


def _seen(plan: _Plan, name: str, totals: Totals) -> Coded:
    coding = plan.codings[name]
    edge, (outside, count) = plan.places[name]
    share = float(totals.sums[outside]) / max(float(totals.sums[count]), 1.0)
    low, high = float(totals.lows[edge]), float(totals.highs[edge])
    return Coded(name, coding.low, coding.high, coding.step, low, high, share)
