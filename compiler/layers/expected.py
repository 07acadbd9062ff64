"""What each operator's codes should cost, derived anew, beside what they do cost.

Quantization follows from a plan (which tensors of an operator are coded, along which axis), from
ranges, and from the device's arithmetic of codes. All of it is done again here, on ranges measured
here, and for one operator at a time: a stale scale, a wrong zero point or axis, a lost bias or
codes read as another type lose far more than that, also where the model's answer as a whole still
looks good enough.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.errors import ParityError
from npuc.layers.codings import find
from npuc.layers.side_by_side import SideBySide
from npuc.passes.graphs import constant, label
from npuc.passes.qdq import codes
from npuc.passes.qdq.results import source
from npuc.passes.qdq.sites import Site, fixed_origin, sites
from npuc.passes.quantize import MASK, SPAN
from npuc.profile import IntScheme
from npuc.program import Program, Tensors
from npuc.quantization.observers import Observer
from npuc.quantization.streaming import stream

Array = np.ndarray[Any, Any]

CALLS = 8
"""Calls that noise is measured on: as many as every pass is checked on."""


READ, WRITE = "DequantizeLinear", "QuantizeLinear"
Row = tuple[ir.Node, str, tuple[int, int], tuple[int, int], tuple[int, int] | None]
"""An operator, its tensor, and where the sums of what was found and of what was expected are; and
those of the mean errors of a product."""

_CHANNELS = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}
"""Products, and the axis of their result along which each entry has a bias of its own."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The error power of one operator, or of one tensor's codes, and what it should be.

    Of an operator on the float program's tensors; `op` is "" for a tensor's codes, and `node` then
    is what writes them. Sums over all calls, in the square of the tensor's unit; `signal` is
    the tensor's own. `shift` and `due` are the same of the mean error of each of a product's
    channels, 0 for others.
    """

    tensor: str
    node: str
    op: str
    found: float
    expected: float
    signal: float
    shift: float = 0.0
    due: float = 0.0


def costs(
    program: Program, quantized: Program, calls: Sequence[Tensors], scheme: IntScheme
) -> tuple[Cost, ...]:
    """Measure every operator that has codes in `quantized` and a plan in the float program.

    `calls` are those of calibration: what others hold beyond its ranges is clipped, which is no
    defect of the codes. Ranges are measured on all of them, noise on the first few.

    Raises `ParityError` without calls, or where ONNX Runtime fails.
    """
    if not calls:
        raise ParityError("there are no calls to measure codes on")
    found = _costs(program, quantized, calls, scheme, whole=True)
    if all(math.isfinite(cost.found + cost.signal + cost.shift) for cost in found):
        return found
    return _costs(program, quantized, calls, scheme, whole=False)


def _costs(
    program: Program, quantized: Program, calls: Sequence[Tensors], scheme: IntScheme, whole: bool
) -> tuple[Cost, ...]:
    """Measure, `whole` as if tensors that Softmax does not read held nothing but finite values."""
    bench = SideBySide(program)
    planned, _ = sites(bench.model, scheme, ())
    attached = bench.attach(quantized)
    codings = find(bench, attached)
    ranges = _ranges(bench, planned, codings, calls, scheme)
    rows: list[Row] = []

    def noise(name: str, *others: ir.Value) -> list[tuple[int, int]]:
        known = whole and name not in bench.scores
        return [bench.noise(name, other, known) for other in others]

    for site in planned:
        for index, value in enumerate(site.node.outputs):
            name = value.name or ""
            other = attached.values.get(name)
            if name not in bench.reference or other is None:
                continue
            alone = bench.born(attached, name)
            if alone is None:
                continue
            ideal = bench.clone(site.node, list(_coded(bench, site, ranges, scheme)))[index]
            if name in bench.outputs and scheme.whole:
                ideal = _rounded(bench, ideal, value, ranges, scheme)
            means = _means(bench, site, value, alone, ideal)
            found, due = noise(name, alone, ideal)
            rows.append((site.node, name, found, due, means))
    for name, coding in codings.items():  # what each tensor's codes lose
        value = bench.reference[name]
        ideal = _rounded(bench, value, value, ranges, scheme)
        if ideal is not value:
            coded = bench.op(WRITE, value, *coding.parameters)
            found, due = noise(name, bench.op(READ, coded, *coding.parameters), ideal)
            rows.append((coding.node, name, found, due, None))
    if not rows:
        return ()
    sums = bench.run(calls[:CALLS]).sums
    return tuple(
        Cost(
            name, label(node), "" if node.op_type == WRITE else node.op_type,
            *(float(sums[at]) for at in (found[1], due[1], found[0], *(means or ()))),
        )
        for node, name, found, due, means in rows
    )  # fmt: skip


def _means(
    bench: SideBySide, site: Site, value: ir.Value, alone: ir.Value, ideal: ir.Value
) -> tuple[int, int] | None:
    """Sum the squares of the summed errors of a product's channels, call by call."""
    axis = _CHANNELS.get(site.node.op_type)
    if axis is None or not site.weights or value.shape is None:
        return None
    rank = len(value.shape)
    axes = bench.constant(np.array([i for i in range(rank) if i != axis % rank], np.int64))

    def summed(other: ir.Value) -> int:
        gap = bench.op("Sub", other, value)
        return bench.squares(bench.op("ReduceSum", gap, axes, keepdims=0))

    return summed(alone), summed(ideal)


def misread(quantized: Program) -> tuple[str, ...]:
    """Say where codes are read with another scale or zero point than they were written with."""
    found = []
    for node in quantized.model.graph:
        made = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != READ or made is None or made.op_type != WRITE:
            continue
        for what, theirs, ours in zip(
            ("scale", "zero point"), made.inputs[1:], node.inputs[1:], strict=True
        ):
            written, read = constant(theirs), constant(ours)
            if written is not None and read is not None and not np.array_equal(written, read):
                tensor = made.inputs[0].name if made.inputs[0] is not None else ""
                found.append(
                    f"codes of {tensor}: written with {what} {written.reshape(-1)[0]}, read with "
                    f"{read.reshape(-1)[0]}"
                )
    return tuple(found)


def _ranges(
    bench: SideBySide,
    planned: Sequence[Site],
    codings: Iterable[str],
    calls: Sequence[Tensors],
    scheme: IntScheme,
) -> Mapping[str, tuple[float, float]]:
    """Return the least and greatest of each tensor that is coded, by the plan or as it is."""
    values = [site.node.inputs[index] for site in planned for index in site.activations]
    if scheme.whole:
        values += [value for site in planned for value in site.node.outputs]
    values += [bench.reference[name] for name in codings]
    names = dict.fromkeys(source(v, scheme).name or "" for v in values if v is not None)
    ends = {name: _Ends(name in bench.scores) for name in names if name in bench.reference}
    if ends:
        stream(bench.program, calls, ends)
    return {name: (seen.low, seen.high) for name, seen in ends.items() if seen.low <= seen.high}


class _Ends(Observer):
    """Watches the least and greatest of what is finite and not hidden; 0 stands for the rest."""

    def __init__(self, scores: bool) -> None:
        super().__init__(bins=False)
        self.hidden = MASK if scores else -math.inf

    def digest(self, values: Array) -> Observer | None:
        """Sum up one array."""
        found = super().digest(values)
        if found is not None and found.low > self.hidden:
            return found
        shown = np.isfinite(values) & (values > self.hidden)
        return super().digest(np.where(shown, values, 0))


def _coded(
    bench: SideBySide,
    site: Site,
    ranges: Mapping[str, tuple[float, float]],
    scheme: IntScheme,
) -> Iterator[ir.Value | None]:
    """Yield a node's inputs as the device should read them."""
    for index, value in enumerate(site.node.inputs):
        if value is None:
            yield None
        elif index in site.activations:
            yield _rounded(bench, value, value, ranges, scheme)
        elif index in site.weights:
            yield _weight(bench, value, site, scheme)
        else:
            yield value


def _rounded(
    bench: SideBySide,
    value: ir.Value,
    like: ir.Value,
    ranges: Mapping[str, tuple[float, float]],
    scheme: IntScheme,
) -> ir.Value:
    """Round a tensor to codes of the range that `like` was seen in, and back."""
    name, origin = source(like, scheme).name or "", fixed_origin(like, scheme)
    if origin is not None:
        affine = codes.fixed(scheme.fixed_scales[origin], origin, scheme)
    elif name in ranges:
        low, high = ranges[name]
        # A mask is coded too, a little below the least score (see `Quantize`).
        affine = codes.activation(low - SPAN if name in bench.scores else low, high, scheme)
    else:
        return value
    scale = bench.constant(np.asarray(affine.scale))
    zero = bench.constant(np.asarray(affine.zero, affine.dtype))
    return bench.op("DequantizeLinear", bench.op("QuantizeLinear", value, scale, zero), scale, zero)


def _weight(bench: SideBySide, value: ir.Value, site: Site, scheme: IntScheme) -> ir.Value:
    array = constant(value)
    assert array is not None  # a plan lists constants only
    scales = codes.weight_scales(array, site.axis, scheme, np.zeros(()))
    coded = codes.weight_codes(array, scales, site.axis, scheme).astype(np.float32)
    shape = [-1 if axis == site.axis else 1 for axis in range(array.ndim)]
    shaped = scales if site.axis is None else scales.reshape(shape)
    with np.errstate(over="ignore"):  # a mask's codes may reach beyond float32
        values = (coded - codes.weight_zero(scheme)) * shaped
    return bench.constant(values.astype(np.float32))
