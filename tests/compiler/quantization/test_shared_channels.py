"""What a target looks at is what every other looks at, wherever its rules allow that."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from npuc import plugins
from npuc.errors import ParityError
from npuc.kept import Kept
from npuc.passes.equalize import observable, observed
from npuc.profile import IntScheme
from npuc.program import Program
from npuc.quantization import channel_stats
from npuc.quantization.calibrator import Calibrator

Array = np.ndarray[Any, Any]
WEIGHTS = "float[4,3,3,3] w, float[4] b, float[4,4,1,1] v, float[64,8] m, float[8] n, float[8,8] q"
NET = """{
    c = Conv <pads=[1,1,1,1]> (x, w, b)
    r = Relu(c)
    d = Conv(r, v)
    s = Add(d, r)
    t = Relu(s)
    p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (t)
    f = Flatten(p)
    h = MatMul(f, m)
    i = Add(h, n)
    g = Sigmoid(i)
    j = Mul(i, g)
    k = MatMul(j, q)
    l = Log(k)
    a = Softmax(k)
    y = MatMul(a, q)
}"""
TARGETS = ("cpu", "aries", "atom", "rngd", "cuda")


def program() -> Program:
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[1,3,8,8] x) => (float[1,8] y) {NET}'
    proto = onnx.parser.parse_model(
        text.replace("(float[1,3,8,8] x)", f"(float[1,3,8,8] x, {WEIGHTS})")
    )
    rng = np.random.default_rng(0)
    for port in list(proto.graph.input)[1:]:
        shape = [item.dim_value for item in port.type.tensor_type.shape.dim]
        array = rng.normal(0, 0.5, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, port.name))
        proto.graph.input.remove(port)
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def scheme(target: str) -> IntScheme:
    found = plugins.find(target).profile.at("int8").int_scheme
    assert found is not None
    return found


def calls() -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(0.3, 1, (1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]


class Counted(Kept):
    """Keeps, and counts what was computed."""

    made = 0

    def arrays(self, stage: str, about: object, make: Any) -> Mapping[str, Array]:
        def counted() -> Mapping[str, Array]:
            self.made += 1
            found: Mapping[str, Array] = make()
            return found

        return super().arrays(stage, about, counted)


def test_what_can_be_asked_for_depends_on_the_program_alone() -> None:
    every = [observable(program().model, scheme(target)) for target in TARGETS]
    assert all(found == every[0] and list(found) == list(every[0]) for found in every)
    asked = [observed(program().model, scheme(target)) for target in TARGETS]
    assert all(found and found.items() <= every[0].items() for found in asked)
    assert len({frozenset(found) for found in asked}) > 1  # there is something to share


def test_every_target_finds_what_the_first_kept_and_what_it_would_find_alone() -> None:
    kept, net = Counted(), program()
    for target in TARGETS:
        axes, every = (ask(net.model.clone(), scheme(target)) for ask in (observed, observable))
        # l = Log(k) holds NaN, which no target here may stumble over: none codes it.
        assert "l" not in axes
        shared = Calibrator(calls(), scheme(target), target, kept=kept).channels(net, axes, every)
        alone = Calibrator(calls(), scheme(target), target).channels(net, axes, every)
        assert list(shared) == list(alone) == list(axes)
        for name in axes:
            for part in ("low", "high", "mean", "square"):
                assert getattr(shared[name], part).tobytes() == getattr(alone[name], part).tobytes()
    assert kept.made == 1


def test_other_axes_are_observed_by_themselves() -> None:
    net = program()
    every = observable(net.model.clone(), scheme("cpu"))
    axes = {"x": (1,), "r": (2,)}
    found = Calibrator(calls(), scheme("cpu"), "cpu").channels(net, axes, every)
    assert {name: seen.low.size for name, seen in found.items()} == {"x": 3, "r": 8}


def test_what_is_asked_for_must_be_finite() -> None:
    net = program()
    calibrator = Calibrator(calls(), scheme("cpu"), "cpu")
    with pytest.raises(ParityError, match="'l' holds NaN or Inf on calibration sample 0"):
        calibrator.channels(net, {"x": (1,), "l": (1,)}, {"x": (1,), "l": (1,), "y": (1,)})


def test_a_spare_tensor_may_hold_anything() -> None:
    net, axes = program(), {"k": 1, "l": 1, "x": 1}
    found = channel_stats.collect(net, calls(), axes, spare=True)
    strict = channel_stats.collect(net, calls(), {"k": 1, "x": 1})
    assert list(found) == ["k", "x"]
    np.testing.assert_array_equal(found["x"].square, strict["x"].square)


def test_a_spare_tensor_stays_odd() -> None:
    good, bad = np.ones((2, 3), np.float32), np.full((2, 3), np.inf, np.float32)
    for odd in (bad, np.ones((2, 4), np.float32)):
        seen = channel_stats.Spare(1)
        seen.merge(seen.digest(good))
        assert seen.statistics() is not None
        seen.merge(seen.digest(odd))
        resumed = channel_stats.Spare(1)
        resumed.restore(seen.state())
        resumed.merge(resumed.digest(good))
        assert seen.statistics() is None and resumed.statistics() is None
