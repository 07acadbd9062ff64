"""Layers: what is born where, on nets of which one layer was spoiled on purpose."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from npuc import plugins
from npuc.errors import ParityError
from npuc.layers.culprits import BINS
from npuc.layers.measure import Layer, Layers, measure
from npuc.layers.text import advice, finding, largest, table
from npuc.passes.base import run
from npuc.passes.quantize import Quantize
from npuc.passes.round_floats import RoundFloats
from npuc.profile import FloatFormat, IntScheme, Profile
from npuc.program import Program, Tensors
from npuc.quantization import calibrate
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
F32 = np.float32
CHANNELS = 12


def parsed(text: str, weights: Mapping[str, Array]) -> Program:
    """Read a program from ONNX text; its weights are given apart."""
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["":20]>{text}'))
    for name, array in weights.items():
        value = next(v for v in model.graph.inputs if v.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return Program.from_model(model)


def convs(wide: float = 1.0) -> Program:
    """Four convolutions; one channel of what the third reads is `wide` times as large.

    The third's weights make up for it, so that the function is the same for all `wide`.
    """
    rng = np.random.default_rng(0)
    shape = f"float[{CHANNELS},{CHANNELS},3,3]"
    weights = {
        f"w{i}": (rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 8).astype(F32) for i in range(4)
    }
    weights["w1"][5] *= wide
    weights["w2"][:, 5] /= wide
    return parsed(
        f"""g (float[1,{CHANNELS},8,8] x, {shape} w0, {shape} w1, {shape} w2, {shape} w3)
        => (float[1,{CHANNELS},8,8] y)
        {{ c0 = Conv<pads=[1,1,1,1]>(x, w0)  r0 = Relu(c0)  c1 = Conv<pads=[1,1,1,1]>(r0, w1)
           r1 = Relu(c1)  c2 = Conv<pads=[1,1,1,1]>(r1, w2)  r2 = Relu(c2)
           y = Conv<pads=[1,1,1,1]>(r2, w3) }}""",
        weights,
    )


def calls_for(program: Program, count: int = 4, seed: int = 1) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [
        {p.name: rng.normal(size=[int(d) for d in p.shape]).astype(p.dtype) for p in program.inputs}
        for _ in range(count)
    ]


def scheme_of(profile: Profile) -> IntScheme:
    scheme = profile.int_scheme
    assert scheme is not None
    return scheme


def measured(
    program: Program, target: str = "cpu", calls: Sequence[Tensors] | None = None, **ranges: Any
) -> Layers:
    """Quantize for a target, some tensors over ranges that are given, and measure."""
    adapter = plugins.find(target)
    profile = adapter.profile.at("int8")
    program = run(program, adapter.legalise(), profile)
    calls = calls or calls_for(program)
    found = calibrate.collect(program, calls, scheme_of(profile))
    quantized = run(program, [Quantize({**found, **ranges})], profile)
    numerics = adapter.numerics("int8")
    device = run(quantized, numerics, profile) if numerics else None
    return measure(program, quantized, calls, device=device, observer=found.observer)


def by_op(found: Layers, op: str) -> list[Layer]:
    return [layer for layer in found.layers if layer.op == op]


def test_a_net_of_even_channels_blames_no_layer() -> None:
    """The ground on which the next tests stand: unspoiled, all layers are alike."""
    found = measured(convs())
    born = [layer.born for layer in by_op(found, "Conv")]
    assert all(value is not None and 35 < value < 60 for value in born)
    assert not any(chart.wide for culprit in found.worst for chart in culprit.histograms)


@pytest.mark.parametrize("target", ["cpu", "atom", "warboy", "ethos-u55"])
def test_a_wide_channel_is_born_where_it_is_read(target: str) -> None:
    """One scale for all channels is as coarse as the widest needs: others lose 36 dB.

    On devices without floats (`whole`) as on those with; what follows only accumulates.
    """
    found = measured(convs(wide=60.0), target)
    convolutions = by_op(found, "Conv")
    spoiled = convolutions[2]
    assert largest(found) is found.worst[0]
    assert found.worst[0].tensor == spoiled.tensor
    first, second, third, fourth = (layer.born or 0.0 for layer in convolutions)
    assert third < min(first, second, fourth) - 12
    assert spoiled.accumulated < convolutions[1].accumulated - 10
    assert convolutions[3].accumulated < fourth - 10  # not born there: accumulated
    (chart,) = found.worst[0].histograms
    assert (chart.channels, chart.wide) == (CHANNELS, 1)
    assert 40 < chart.ratio < 90  # 60, as far as peaks of channels are alike
    weights, inputs = found.worst[0].weights, found.worst[0].inputs
    assert weights is not None and inputs is not None and inputs < weights - 6
    restored = found.worst[0].restored
    assert restored is not None and restored > found.output + 8
    said = finding(found)
    assert spoiled.title in said and "1 of 12 channels of" in said and "inputs" in said


def test_what_the_device_computes_stands_beside_what_was_quantized() -> None:
    """Integers all the way: every coded tensor is found, and lies near its QDQ form."""
    found = measured(convs(), "ethos-u55")
    device = [layer for layer in found.layers if layer.device is not None]
    assert [layer.op for layer in device if layer.output] == ["Conv"]
    assert len(device) >= 4
    for layer in device:
        assert layer.device is not None and abs(layer.device - layer.accumulated) < 8, layer


@pytest.mark.parametrize(
    ("observer", "option"), [("entropy", "--observer min-max"), ("min-max", "--calibration FILE")]
)
def test_a_range_that_clips_is_named_with_what_to_try(observer: str, option: str) -> None:
    program = convs()
    adapter = plugins.find("cpu")
    profile = adapter.profile.at("int8")
    calls = calls_for(program)
    ranges = dict(calibrate.collect(program, calls, scheme_of(profile)))
    low, high = ranges["r1"]
    ranges["r1"] = (low, high / 8)
    quantized = run(program, [Quantize(ranges)], profile)
    found = measure(program, quantized, calls, observer=observer)
    assert found.worst[0].tensor == "c2"
    coded = found.coded["r1"]
    assert coded.clipped == pytest.approx(clipped(program, calls, "r1", high / 8), rel=0.02)
    assert coded.clipped > 0.05 and coded.seen_high == pytest.approx(high)
    assert "of 'r1' lies beyond its codes" in finding(found)
    tried = advice(found)
    assert tried is not None and tried[0] == option


def clipped(program: Program, calls: Sequence[Tensors], name: str, high: float) -> float:
    """The share of values above a range, counted in numpy."""
    runner = OnnxRunner(program, extra=[name])
    values = np.concatenate([runner(call)[name].ravel() for call in calls])
    return float((values > high * (1 + 0.5 / 255)).mean())


def gemm(rng: np.random.Generator) -> tuple[Program, dict[str, Array]]:
    weights = {"w": rng.normal(size=(6, 5)).astype(F32), "v": rng.normal(size=(5, 3)).astype(F32)}
    text = """g (float[4,6] x, float[6,5] w, float[5,3] v) => (float[4,3] y)
        { h = Gemm(x, w)  t = Tanh(h)  y = MatMul(t, v) }"""
    return parsed(text, weights), weights


def test_numbers_are_those_of_an_independent_model() -> None:
    """Coded by hand in numpy: x and t on 255 codes, weights per column."""
    rng = np.random.default_rng(3)
    program, weights = gemm(rng)
    calls = calls_for(program, 3)
    profile = plugins.find("atom").profile.at("int8")
    scheme = scheme_of(profile)
    ranges = calibrate.collect(program, calls, scheme)
    found = measure(program, run(program, [Quantize(ranges)], profile), calls)

    def fake(x: Array, scale: Array | np.float32) -> Array:
        return np.asarray(np.clip(np.rint(x / scale), -128, 127) * scale, F32)

    def per_column(w: Array) -> Array:
        return fake(w, (np.abs(w).max(axis=0) / scheme.weight_range[1]).astype(F32))

    step = {n: F32(max(-low, high) / 127) for n, (low, high) in ranges.items()}
    sums = np.zeros((3, 2))
    for call in calls:
        x = call["x"]
        t = np.tanh(x @ weights["w"])
        y = t @ weights["v"]
        lossy = np.tanh(fake(x, step["x"]) @ per_column(weights["w"]))
        whole = fake(lossy, step["t"]) @ per_column(weights["v"])
        alone = fake(t, step["t"]) @ per_column(weights["v"])
        inputs = fake(t, step["t"]) @ weights["v"]
        for at, other in enumerate((whole, alone, inputs)):
            sums[at] += (float((y.astype(float) ** 2).sum()), float(((other - y) ** 2).sum()))
    expected = [10 * math.log10(signal / noise) for signal, noise in sums]
    last = found.find("y")
    culprit = next(c for c in found.worst if c.tensor == "y")
    assert last.born is not None and culprit.inputs is not None
    # 0.05 dB is 1 % of the noise: float32 sums in another order move a few ties.
    assert [last.accumulated, last.born, culprit.inputs] == pytest.approx(expected, abs=0.05)
    assert last.reads == ("t",) and last.output


def test_a_bad_weight_is_told_from_a_bad_input() -> None:
    """A weight that only ever meets zeros, and takes all codes of its column."""
    program, weights = gemm(np.random.default_rng(4))
    weights["w"][2] = 100.0
    spoiled = program.clone()
    spoiled.model.graph.initializers["w"].const_value = ir.tensor(weights["w"], name="w")
    calls = [{"x": call["x"] * np.array([1, 1, 0, 1, 1, 1], F32)} for call in calls_for(program)]
    found = measured(spoiled, "cpu", calls)
    culprit = found.worst[0]
    assert culprit.tensor == "h"
    assert culprit.weights is not None and culprit.inputs is not None
    assert culprit.weights < culprit.inputs - 20
    assert "its weights are the larger part" in finding(found)


def test_what_only_moves_values_is_blamed_for_nothing() -> None:
    """Codes that a Transpose moves are read by the product after it, there and on whole devices."""
    rng = np.random.default_rng(5)
    text = """g (float[1,6,4] x, float[6,5] w) => (float[1,4,5] y)
        { t = Transpose<perm=[0,2,1]>(x)  y = MatMul(t, w) }"""
    program = parsed(text, {"w": rng.normal(size=(6, 5)).astype(F32)})
    for target in ("cpu", "warboy"):
        found = measured(program, target)
        assert [layer.born for layer in by_op(found, "Transpose")] in ([None], [])
        assert found.worst[0].tensor == found.layers[-1].tensor
        assert found.layers[-1].reads, target


def test_nan_in_the_quantized_program_is_worst_and_breaks_nothing() -> None:
    """A small positive difference of products becomes a negative one, and its root NaN."""
    x = np.array([[10.4, -20.7], [50.4, -100.7]], F32) / F32(127)  # codes 10, -21, 50, -101
    text = """g (float[2,2] x, float[2,1] w) => (float[2,1] y)
        { d = MatMul(x, w)  y = Sqrt(d) }"""
    program = parsed(text, {"w": np.array([[1.0], [0.5]], F32)})
    profile = plugins.find("atom").profile.at("int8")
    quantized = run(program, [Quantize({"x": (-1.0, 1.0)})], profile)
    found = measure(program, quantized, [{"x": x}], observer="min-max")
    assert math.isnan(found.find("y").accumulated) and math.isnan(found.output)
    assert found.find("y").born is None  # nothing about Sqrt was quantized
    assert found.worst[0].tensor == "d"
    assert "it brings the output from NaN to exact" in finding(found)


def test_what_a_mask_hides_is_no_error() -> None:
    """-Inf and -3.4e38 before Softmax: coded near the scores, and rightly so."""
    rng = np.random.default_rng(6)
    mask = np.triu(np.full((4, 4), np.finfo(F32).min), 1).astype(F32)
    text = """g (float[1,4,8] x, float[8,8] w, float[4,4] m) => (float[1,4,8] y)
        { k = MatMul(x, w)  t = Transpose<perm=[0,2,1]>(k)  s = MatMul(x, t)  a = Add(s, m)
          p = Softmax(a)  y = MatMul(p, k) }"""
    program = parsed(text, {"w": (rng.normal(size=(8, 8)) / 4).astype(F32), "m": mask})
    for target in ("cpu", "ethos-u55"):
        found = measured(program, target)
        scores = found.find("a")
        assert 20 < scores.accumulated < 70, target
        if "a" in found.coded:
            assert found.coded["a"].clipped < 0.01 and found.coded["a"].seen_low > -1e3
    infinite = program.clone()
    endless = np.where(mask < 0, -np.inf, 0).astype(F32)
    infinite.model.graph.initializers["m"].const_value = ir.tensor(endless, name="m")
    found = measured(infinite)
    assert 20 < found.find("a").accumulated < 70


def test_a_program_that_rounds_floats_is_measured_like_one_that_codes() -> None:
    program = convs()
    profile = plugins.find("atom").profile
    rounded = run(program, [RoundFloats(FloatFormat(8, 7))], profile)
    found = measure(program, rounded, calls_for(program))
    # Eight bits of mantissa, rounded: 6.02 · 8 + some; sums of many products hide a part.
    assert all(x.born is not None and 40 < x.born < 70 for x in by_op(found, "Conv"))
    assert not found.coded and advice(found) is None


def test_a_program_beside_itself_loses_nothing() -> None:
    program = convs()
    found = measure(program, program, calls_for(program))
    assert all(layer.accumulated == math.inf and layer.born is None for layer in found.layers)
    assert found.worst == () and found.output == math.inf
    assert "nothing is lost in any layer" in table(found)


def test_histograms_hold_every_value() -> None:
    program = convs()
    calls = calls_for(program, 3)
    found = measured(program, "cpu", calls)
    charts = {chart.tensor: chart for culprit in found.worst for chart in culprit.histograms}
    values = np.stack([call["x"] for call in calls])
    chart = charts["x"]
    assert len(chart.counts) == BINS and sum(chart.counts) == values.size
    expected = np.histogram(values, bins=BINS, range=(chart.low, chart.high))[0]
    # A value on the edge of two bins may fall in either: float64 rounds the division.
    assert np.abs(np.cumsum(expected) - np.cumsum(chart.counts)).max() <= 2
    assert chart.low <= values.min() and values.max() <= chart.high


def test_the_order_of_calls_and_repeats_change_nothing() -> None:
    program = convs()
    calls = calls_for(program)
    once, twice = measured(program, "cpu", calls), measured(program, "cpu", [*calls, *calls])
    for a, b in zip(once.layers, twice.layers, strict=True):
        assert a.accumulated == pytest.approx(b.accumulated, abs=1e-9)
    assert twice.calls == 2 * once.calls


def test_without_calls_there_is_nothing_to_say() -> None:
    program = convs()
    with pytest.raises(ParityError, match="no calls"):
        measure(program, program, [])


def test_names_that_clash_with_those_of_the_bench() -> None:
    """Values called as the bench calls its own, and nodes without any name."""
    rng = np.random.default_rng(7)
    text = """g (float[2,4] npuc_sub, float[4,4] npuc_constant) => (float[2,4] npuc_concat)
        { npuc_where = MatMul(npuc_sub, npuc_constant)
          npuc_concat = MatMul(npuc_where, npuc_constant) }"""
    program = parsed(text, {"npuc_constant": rng.normal(size=(4, 4)).astype(F32)})
    found = measured(program)
    assert [layer.tensor for layer in found.layers] == ["npuc_where", "npuc_concat"]
    assert all(layer.born is not None and 20 < layer.born < 60 for layer in found.layers)


@pytest.mark.parametrize("target", ["cpu", "warboy"])
def test_control_flow_is_passed_through(target: str) -> None:
    """What is born behind a branch is found; the branch itself is blamed for nothing."""
    text = """g (float[2,4] x, bool c, float[4,4] w) => (float[2,4] y)
        { h = MatMul(x, w)
          z = If (c) <then_branch = t () => (float[2,4] a) { a = Mul(h, h) },
                      else_branch = e () => (float[2,4] b) { b = MatMul(h, w) }>
          y = MatMul(z, w) }"""
    rng = np.random.default_rng(8)
    program = parsed(text, {"w": rng.normal(size=(4, 4)).astype(F32)})
    calls = [
        {"x": rng.normal(size=(2, 4)).astype(F32), "c": np.array(flag)} for flag in (True, False)
    ]
    found = measured(program, target, calls)
    assert found.find("z").born is None and math.isfinite(found.find("z").accumulated)
    for name in ("h", "y"):
        born = found.find(name).born
        assert born is not None and 20 < born < 60
