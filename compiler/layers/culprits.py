"""Look into the layers where most error is born: weights or inputs, ranges, channels, and gain."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.layers.found import BINS as BINS
from npuc.layers.found import WIDE, Coded
from npuc.layers.found import Culprit as Culprit
from npuc.layers.found import Histogram as Histogram
from npuc.layers.side_by_side import Attached, SideBySide, fits, has_body, least
from npuc.passes.graphs import constant, initializer
from npuc.passes.qdq.results import carries
from npuc.passes.quantize import MASK
from npuc.program import Program, Tensors

Array = np.ndarray[Any, Any]

RESTORED = 5
"""Layers that are put back into float one by one, each for a run of the whole model."""

_IMAGES = frozenset({"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization"})


@dataclass(frozen=True)
class _Operator:
    """An operator that reads coded tensors, and its twin in the float program.

    `weights` and `inputs` are the indices of its constants and of its tensors.
    """

    node: ir.Node
    twin: ir.Node
    output: int
    weights: frozenset[int]
    inputs: frozenset[int]


def examine(
    program: Program,
    quantized: Program,
    calls: Sequence[Tensors],
    tensors: Sequence[str],
    reads: Mapping[str, Sequence[str]],
    coded: Mapping[str, Coded],
) -> tuple[Culprit, ...]:
    """Examine the operators that make `tensors`, the worst first; `reads` are their inputs."""
    if not tensors:
        return ()
    bench = SideBySide(program)
    attached = bench.attach(quantized)
    found = {name: _operator(bench, attached, name) for name in tensors}
    parts = {n: _parts(bench, attached, n, op) for n, op in found.items() if op is not None}
    watched = {read: coded[read] for name in tensors for read in reads[name] if read in coded}
    images = {r for n, op in found.items() if op and op.twin.op_type in _IMAGES for r in reads[n]}
    charts = {
        name: _Chart(item, name in images, name in bench.scores) for name, item in watched.items()
    }

    def see(values: Tensors) -> None:
        for name, chart in charts.items():
            chart.see(values[name])

    totals = bench.run(calls, tuple(charts), see)
    culprits = []
    for at, name in enumerate(tensors):
        places = parts.get(name, (None, None))
        sums = [None if place is None else totals.decibels(place) for place in places]
        op = found[name]
        restored = None
        if op is not None and at < RESTORED:
            restored = _restored(program, quantized, calls, op, attached)
        drawn = tuple(charts[read].drawn() for read in reads[name] if read in charts)
        culprits.append(Culprit(name, sums[0], sums[1], restored, drawn))
    return tuple(culprits)


def _operator(bench: SideBySide, attached: Attached, name: str) -> _Operator | None:
    """Find the operator behind a tensor that is also in the float program."""
    twin = bench.reference[name].producer()
    if twin is None:
        return None
    for node in reversed(bench.cone(attached, name)):
        if not fits(node, twin) or has_body(node):
            continue
        stored = {i for i, v in enumerate(twin.inputs) if v is not None and constant(v) is not None}
        given = {
            i for i, v in enumerate(twin.inputs) if v is not None and v.name in bench.reference
        }
        output = next(i for i, v in enumerate(twin.outputs) if v.name == name)
        return _Operator(node, twin, output, frozenset(stored), frozenset(given))
    return None


Place = tuple[int, int] | None


def _parts(bench: SideBySide, attached: Attached, name: str, op: _Operator) -> tuple[Place, Place]:
    """Sum the noise with the operator's weights coded alone, and with its inputs alone."""
    places: list[Place] = []
    for kept in (op.weights, op.inputs):
        pairs = list(zip(op.node.inputs, op.twin.inputs, strict=True))
        if not any(_coded(attached, *pairs[i]) for i in kept):
            places.append(None)
            continue
        inputs = [
            bench.copied(attached, value) if value is not None and i in kept else plain
            for i, (value, plain) in enumerate(pairs)
        ]
        places.append(bench.noise(name, bench.clone(op.node, inputs)[op.output]))
    return places[0], places[1]


def _coded(attached: Attached, value: ir.Value | None, plain: ir.Value | None) -> bool:
    """Whether an operator reads something else than the float program's does."""
    if value is None or plain is None:
        return False
    return value is not plain and attached.names.get(value) != plain.name


def _restored(
    program: Program, quantized: Program, calls: Sequence[Tensors], op: _Operator, seen: Attached
) -> float | None:
    """Let one operator read floats, and return the SQNR of the model's worst output then."""
    model = quantized.clone().model
    result = seen.names.get(op.node.outputs[op.output])
    node = next((n for n in model.graph if any(v.name == result for v in n.outputs)), None)
    if result is None or node is None:
        return None
    for index in sorted(op.weights | op.inputs):
        value, plain = node.inputs[index], op.twin.inputs[index]
        assert value is not None  # the twin has this input, and as many as the node
        array = constant(plain) if index in op.weights else None
        if array is None:
            node.replace_input_with(index, _uncoded(value, node))
        else:
            weight = initializer(model.graph, f"{result}_restored_{index}", array)
            node.replace_input_with(index, weight)
    bench = SideBySide(program)
    attached = bench.attach(Program.from_model(model))
    outputs = bench.outputs
    places = [bench.noise(name, attached.values[name]) for name in outputs]
    if not places:
        return None
    totals = bench.run(calls)
    return least(totals.decibels(place) for place in places)


def _uncoded(value: ir.Value, reader: ir.Node) -> ir.Value:
    """Return what was coded, before it was; what is moved in between is moved as floats."""
    producer = value.producer()
    before = producer.inputs[0] if producer is not None and producer.inputs else None
    if producer is None or before is None:
        return value
    if producer.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return _uncoded(before, reader)
    coded = all(user.op_type == "QuantizeLinear" for user, _ in value.uses())
    if producer.op_type == "Clip" and coded:
        return _uncoded(before, reader)
    if not carries(producer):
        return value
    raw = _uncoded(before, reader)
    if raw is before:
        return value
    outputs = [ir.Value(name=f"{v.name}_restored_{id(v)}") for v in producer.outputs]
    copy = ir.Node(
        producer.domain, producer.op_type, [raw, *producer.inputs[1:]],
        producer.attributes.values(), outputs=outputs,
    )  # fmt: skip
    assert reader.graph is not None
    reader.graph.insert_before(reader, copy)
    return outputs[producer.outputs.index(value)]


class _Chart:
    """A histogram of one tensor with the peak of each of its channels, call by call."""

    def __init__(self, coded: Coded, image: bool, scores: bool) -> None:
        self.coded = coded
        self.floor = MASK if scores else -math.inf
        self.axis = 1 if image else -1
        ends = (coded.low, coded.high, coded.seen_low, coded.seen_high)
        known = [end for end in ends if math.isfinite(end)]
        self.low, self.high = min(known), max(known)
        if self.low == self.high:
            self.high = self.low + 1.0
        self.counts = np.zeros(BINS, np.int64)
        self.peaks: Array | None = None

    def see(self, values: Array) -> None:
        """Count one call's values, but for those that are not finite or hidden by a mask."""
        shown = np.isfinite(values) & (values > self.floor)
        finite = values[shown].astype(np.float64)
        places = (finite - self.low) * (BINS / (self.high - self.low))
        index = np.clip(places.astype(np.int64), 0, BINS - 1)
        self.counts += np.bincount(index, minlength=BINS)
        if values.ndim < 2 or not values.size:
            return
        axes = tuple(i for i in range(values.ndim) if i != self.axis % values.ndim)
        peaks = np.abs(np.where(shown, values, 0)).max(axis=axes)
        if self.peaks is not None and self.peaks.shape == peaks.shape:
            peaks = np.maximum(self.peaks, peaks)
        self.peaks = peaks

    def drawn(self) -> Histogram:
        """Return what was counted."""
        counts = tuple(int(count) for count in self.counts)
        peaks = np.zeros(0) if self.peaks is None else self.peaks.astype(np.float64)
        median = float(np.median(peaks)) if peaks.size else 0.0
        ratio = float(peaks.max()) / median if median > 0 else 0.0
        wide = int((peaks > WIDE * median).sum()) if median > 0 else 0
        return Histogram(
            self.coded.tensor, self.low, self.high, counts, int(peaks.size), wide, ratio
        )
