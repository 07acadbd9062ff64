"""Calibration: one pass over the samples, in memory that does not grow with them."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from npuc.errors import ParityError, UsageError
from npuc.passes.base import run
from npuc.passes.qdq.sites import observed
from npuc.passes.quantize import Quantize
from npuc.profile import Fact, IntScheme, Profile
from npuc.program import Program
from npuc.quantization import observers, streaming
from npuc.quantization.calibrate import collect
from npuc.quantization.thresholds import METHODS
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
FACTS = {
    "int8.ops": ["Conv", "MatMul"],
    "int8.weight_range": [-128, 127],
    "int8.weight_per_channel": True,
    "int8.activation_range": [-128, 127],
    "int8.activation_symmetric": True,
    "int8.observer": "percentile",
    "int8.percentile": 99.9,
    "int8.fixed_scales": {"Softmax": 1 / 127},
}
PROFILE = Profile("t", "T", {k: Fact(v, "A", "t") for k, v in FACTS.items()}, {"t": "test"})
NET = """(float[N,3,S,S] x) => (float[N,D,E,F] y) <float[4,3,1,1] w =
    {1,2,3,4,5,6,7,8,9,-10,11,-12}, float[4] b = {1,-2,3,-4}> {
    a = Conv(x, w, b) c = Relu(a) p = Softmax(c) t = Transpose<perm=[0,1,3,2]>(c)
    y = MatMul(p, t) }"""


@pytest.fixture
def scheme() -> IntScheme:
    found = PROFILE.int_scheme
    assert found is not None
    return found


def program(text: str = NET) -> Program:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def samples(count: int, size: int = 8, seed: int = 0) -> Iterator[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {"x": rng.normal(size=(1, 3, size, size)).astype(np.float32)}


def test_observes_what_quantize_needs_and_no_more(scheme: IntScheme) -> None:
    net = program()
    ranges = collect(net, samples(4), scheme)
    assert tuple(ranges) == observed(net.model, scheme) == ("x", "t")
    after = run(net, [Quantize(ranges)], PROFILE)
    assert (after.steps[-1].changes, after.steps[-1].refusals) == (2, ())


def test_min_max_is_exact_and_the_program_untouched(scheme: IntScheme) -> None:
    net = program()
    before = [p.name for p in net.outputs]
    ranges = collect(net, samples(5), scheme, observer="min-max")
    values = [OnnxRunner(net, extra=("t",))(s)["t"] for s in samples(5)]
    low, high = ranges["t"]
    # ONNX Runtime optimizes while calibrating: a convolution of 3 products may round otherwise.
    assert low == pytest.approx(min(v.min() for v in values), rel=1e-6, abs=1e-6)
    assert high == pytest.approx(max(v.max() for v in values), rel=1e-6)
    assert ranges["x"] == (
        min(float(s["x"].min()) for s in samples(5)),
        max(float(s["x"].max()) for s in samples(5)),
    )
    assert [v.name for v in net.model.graph.outputs] == before
    assert (ranges.samples, ranges.observer) == (5, "min-max")


def test_known_ends_are_taken_where_no_histogram_is_wanted(scheme: IntScheme) -> None:
    """No call is computed for tensors whose ends are known; others are observed as ever."""
    seen = collect(program(), samples(5), scheme, observer="min-max")
    calls, ends = list(samples(5)), {"x": (-9.0, 9.0), "t": (0.0, 7.0), "unread": (0.0, 1.0)}
    blind = [dict.fromkeys(call, np.full(1, np.nan, np.float32)) for call in calls]
    found = collect(program(), blind, scheme, observer="min-max", known=ends)
    assert dict(found) == {"x": (-9.0, 9.0), "t": (0.0, 7.0)} == dict(found.seen)
    assert found.samples == 5
    partly = collect(program(), calls, scheme, observer="min-max", known={"x": (-9.0, 9.0)})
    assert dict(partly) == {"x": (-9.0, 9.0), "t": seen["t"]}
    counted = collect(program(), calls, scheme, known=ends)
    assert dict(counted) == dict(collect(program(), calls, scheme))


def test_the_scheme_names_the_observer(scheme: IntScheme) -> None:
    assert collect(program(), samples(2), scheme).observer == "percentile"
    entropy = replace(scheme, observer="entropy")
    assert collect(program(), samples(2), entropy).observer == "entropy"


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_samples_does_not_matter(name: str, scheme: IntScheme) -> None:
    some = list(samples(6))
    forward = collect(program(), some, scheme, observer=name)
    assert collect(program(), some[::-1], scheme, observer=name) == forward


def test_samples_of_several_sizes(scheme: IntScheme) -> None:
    mixed = [*samples(2, size=4), *samples(2, size=9)]
    assert collect(program(), mixed, scheme).samples == 4


def test_progress(scheme: IntScheme) -> None:
    calls: list[tuple[int, int]] = []
    collect(program(), list(samples(3)), scheme, progress=lambda d, n: calls.append((d, n)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    collect(program(), samples(2), scheme, progress=lambda d, n: calls.append((d, n)))
    assert calls == [(1, 0), (2, 0)]


def broken(value: float) -> Iterator[dict[str, Array]]:
    yield from samples(2)
    bad = next(samples(1))
    bad["x"][0, 1, 2, 3] = value
    yield bad


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", METHODS)
def test_a_value_that_is_not_finite_names_tensor_and_sample(
    value: float, name: str, scheme: IntScheme
) -> None:
    with pytest.raises(ParityError, match="tensor 'x' holds NaN or Inf on calibration sample 2"):
        collect(program(), broken(value), scheme, observer=name)


def test_usage_errors(scheme: IntScheme) -> None:
    with pytest.raises(UsageError, match="no calibration samples"):
        collect(program(), [], scheme)
    with pytest.raises(UsageError, match=r"sample 1 has no x; it has \['z'\]"):
        collect(program(), [*samples(1), {"z": np.zeros(3)}], scheme)
    with pytest.raises(UsageError, match="unknown observer 'max'"):
        collect(program(), samples(1), scheme, observer="max")


def test_a_sample_that_does_not_run_is_named(scheme: IntScheme) -> None:
    with pytest.raises(ParityError, match="fails on calibration sample 0"):
        collect(program(), [{"x": np.zeros((1, 5, 4, 4), np.float32)}], scheme)


def peak(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", METHODS)
def test_memory_does_not_grow_with_the_samples(name: str, scheme: IntScheme) -> None:
    def calibrate(count: int) -> None:
        collect(program(), samples(count, size=64), scheme, observer=name)

    calibrate(2)  # caches of the libraries
    few, many = peak(lambda: calibrate(16)), peak(lambda: calibrate(128))
    # How many calls are under way at once is up to the machine: each has its histograms, and its
    # tensors of 48 and 64 KiB.
    under_way = (streaming.AT_ONCE + 1) * 2 * (observers.BINS * 8 + 2**16)
    assert many <= 1.1 * few + under_way
    assert under_way < 0.1 * 112 * (observers.BINS * 8 + 2**16)  # what keeping them would take
