"""Learned codes in programs: how products are seen as matrices, and what is kept as it was."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import PassError, UsageError
from npuc.passes.base import run
from npuc.passes.learn_rounding import LearnRounding
from npuc.passes.qdq.products import coded
from npuc.passes.quantize import Quantize
from npuc.profile import Fact, Profile
from npuc.program import Program, Tensors
from npuc.quantization import calibrate, rounding
from npuc.quantization.quantizer import Choices, Quantizer
from npuc.quantization.second_moments import Moments, collect
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
Text = Callable[..., Program]


def program(body: str, **weights: Array) -> Program:
    """Build a program whose constants are float32."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {body}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{number}"
    onnx.checker.check_model(proto, full_check=True)
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def profile(**changed: Any) -> Profile:
    """Return a device whose scheme is plain int8 unless facts say otherwise."""
    values = {
        "ops": ["Conv", "ConvTranspose", "Gemm", "MatMul"], "weight_range": [-127, 127],
        "weight_per_channel": True, "activation_range": [-128, 127],
        "activation_symmetric": False, **changed,
    }  # fmt: skip
    facts = {f"int8.{key}": Fact(value, "A", "npuc") for key, value in values.items()}
    return Profile("test", "Test", facts, {"npuc": "this test"})


FOUR = profile(weight_range=[-7, 7])


def calls(made: Program, count: int = 24, seed: int = 1) -> list[Tensors]:
    """Draw inputs whose channels are correlated, as real ones are."""
    rng, found = np.random.default_rng(seed), list[Tensors]()
    for _ in range(count):
        call = {}
        for port in made.inputs:
            shape = [d for d in port.shape if isinstance(d, int)]
            call[port.name] = (rng.uniform(-1, 1, shape) + rng.uniform(-2, 2)).astype(np.float32)
        found.append(call)
    return found


def quantized(made: Program, device: Profile, data: list[Tensors]) -> Program:
    scheme = device.int_scheme
    assert scheme is not None
    return run(made, [Quantize(calibrate.collect(made, data, scheme))], device)


def loss(made: Program, other: Program, data: list[Tensors]) -> float:
    """Return the mean squared error of all outputs."""
    first, second = OnnxRunner(made), OnnxRunner(other)
    gaps = [first(call)[k] - v for call in data for k, v in second(call).items()]
    return float(np.mean([np.mean(gap**2) for gap in gaps]))


RNG = np.random.default_rng(0)
CASES = {
    "MatMul": ("(float[3,8] x) => (float[3,5] y) <float[8,5] w> { y = MatMul (x, w) }",
               {"w": RNG.normal(size=(8, 5))}),
    "MatMul, weight first": ("(float[2,8,3] x) => (float[2,5,3] y) <float[5,8] w> "
                             "{ y = MatMul (w, x) }", {"w": RNG.normal(size=(5, 8))}),
    "Gemm": ("(float[3,8] x) => (float[3,5] y) <float[8,5] w, float[5] b> { y = Gemm (x, w, b) }",
             {"w": RNG.normal(size=(8, 5)), "b": RNG.normal(size=5)}),
    "Gemm, both transposed": ("(float[8,3] x) => (float[3,5] y) <float[5,8] w> "
                              "{ y = Gemm <transA = 1, transB = 1> (x, w) }",
                              {"w": RNG.normal(size=(5, 8))}),
    "Gemm, weight first": ("(float[3,8] x) => (float[5,3] y) <float[8,5] w> "
                           "{ y = Gemm <transA = 1, transB = 1> (w, x) }",
                           {"w": RNG.normal(size=(8, 5))}),
    "Conv": ("(float[2,3,7,6] x) => (float[2,4,4,6] y) <float[4,3,3,2] w> { y = Conv <strides = "
             "[2,1], dilations = [1,2], pads = [1,0,1,2]> (x, w) }",
             {"w": RNG.normal(size=(4, 3, 3, 2))}),
    "Conv, groups": ("(float[1,4,9] x) => (float[1,6,9] y) <float[6,2,3] w> "
                     "{ y = Conv <group = 2, pads = [1,1]> (x, w) }",
                     {"w": RNG.normal(size=(6, 2, 3))}),
    "Conv, depthwise": ("(float[1,5,6,6] x) => (float[1,5,3,3] y) <float[5,1,3,3] w> { y = Conv "
                        '<group = 5, strides = [2,2], auto_pad = "SAME_UPPER"> (x, w) }',
                        {"w": RNG.normal(size=(5, 1, 3, 3))}),
    "Conv, SAME_LOWER": ("(float[1,2,6,6] x) => (float[1,3,3,3] y) <float[3,2,2,3] w> { y = Conv "
                         '<strides = [2,2], auto_pad = "SAME_LOWER"> (x, w) }',
                         {"w": RNG.normal(size=(3, 2, 2, 3))}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_products_are_the_matrices_they_are_seen_as(name: str) -> None:
    """The error that second moments give for other codes is the error ONNX Runtime measures."""
    body, weights = CASES[name]
    made = program(body, **weights)
    data = calls(made, 4)
    first = quantized(made, FOUR, data)
    (weight,), refused = coded(first.model, made.model)
    assert not refused and weight.level == 0
    rows = weight.layout.rows
    assert np.array_equal(weight.layout.restored(rows(weight.codes), weight.codes), weight.codes)
    groups, _, depth = weight.shape
    (moments,) = collect(first, data, {r: (groups, depth) for r in weight.reads}).values()
    moved = np.where(weight.codes > 0, weight.codes - 1, weight.codes + 1)
    second = first.clone()
    second.model.graph.initializers[weight.codes_name].const_value = ir.tensor(moved)
    gap = rows(weight.scales * (moved - weight.codes.astype(float)))
    predicted = np.einsum("god,gde,goe->", gap, moments.total, gap)
    results = [OnnxRunner(p) for p in (first, second)]
    seen = sum(((results[1](c)["y"] - results[0](c)["y"]).astype(float) ** 2).sum() for c in data)
    np.testing.assert_allclose(predicted, seen, rtol=1e-4)  # float32 sums of at most 20 terms


NET = """(float[1,3,8,8] x) => (float[1,4] y)
<float[12,3,3,3] w1, float[12] b1, float[12,1,3,3] w2, float[12,12,1,1] w3, float[4,12] w4> {
  a = Conv <pads = [1,1,1,1]> (x, w1, b1)  r = Relu (a)
  d = Conv <group = 12, pads = [1,1,1,1]> (r, w2)  e = Conv (d, w3)  s = Add (e, r)
  g = GlobalAveragePool (s)  f = Flatten (g)  y = Gemm <transB = 1> (f, w4)
}"""


@pytest.fixture(scope="module")
def net() -> Program:
    rng = np.random.default_rng(2)
    shapes = {"w1": (12, 3, 3, 3), "b1": (12,), "w2": (12, 1, 3, 3), "w3": (12, 12, 1, 1),
              "w4": (4, 12)}  # fmt: skip
    return program(NET, **{k: rng.normal(size=s) for k, s in shapes.items()})


@pytest.mark.parametrize("method", rounding.METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_less_is_lost_on_other_calls_too(net: Program, method: str, bits: int) -> None:
    data, others = calls(net), calls(net, 12, seed=9)
    device = FOUR if bits == 4 else profile()
    first = quantized(net, device, data)
    learned = rounding.learn(first, net, data, device, method)
    second = run(first, [learned], device)
    assert second.steps[-1].changes >= 3 and not second.steps[-1].refusals
    # Activations have 8 bits in both: with weights of 8 they are much of what is lost.
    assert loss(net, second, others) < (0.5 if bits == 4 else 1.0) * loss(net, first, others)
    codes = [v for k, v in second.model.graph.initializers.items() if k.startswith("w") and
             k.endswith("_quantized")]  # fmt: skip
    assert len(codes) == 4
    for value in codes:
        assert value.const_value is not None
        assert np.abs(value.const_value.numpy().astype(int)).max() <= 2 ** (bits - 1) - 1
    again = rounding.learn(first, net, data, device, method)
    for name, item in learned.learned.items():
        assert np.array_equal(item.codes, again.learned[name].codes)


def test_step_by_step_makes_good_what_went_wrong_before(net: Program) -> None:
    data, others = calls(net), calls(net, 12, seed=9)
    first = quantized(net, FOUR, data)
    ends = [
        run(first, [rounding.learn(first, net, data, FOUR, "gptq", stepwise=step)], FOUR)
        for step in (False, True)
    ]
    assert loss(net, ends[1], others) < loss(net, ends[0], others)


def test_what_is_held_does_not_change_what_is_learned(
    net: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one weight at a time there are more runs, and the same codes."""
    data = calls(net)
    first = quantized(net, profile(), data)
    whole = rounding.learn(first, net, data, profile(), "gptq")
    monkeypatch.setattr(rounding, "BUDGET", 1)
    parts = rounding.learn(first, net, data, profile(), "gptq")
    for name, item in whole.learned.items():
        assert np.array_equal(item.codes, parts.learned[name].codes)


def test_levels_follow_the_graph(net: Program) -> None:
    found, _ = coded(quantized(net, FOUR, calls(net, 2)).model, net.model)
    assert [w.level for w in found] == [0, 1, 2, 3]


def test_a_shared_weight_is_learned_for_all_that_it_multiplies() -> None:
    weight = RNG.normal(size=(8, 8))
    body = """(float[3,8] x, float[5,8] z) => (float[3,8] y, float[5,8] v) <float[8,8] w>
    { y = MatMul (x, w)  v = MatMul (z, w) }"""
    made = program(body, w=weight)
    data = calls(made, 6)
    first = quantized(made, FOUR, data)
    ((item,), refused) = coded(first.model, made.model)
    assert len(item.reads) == 2 and not refused
    found = collect(first, data, {read: (1, 8) for read in item.reads})
    both = found[item.reads[0]].plus(found[item.reads[1]])
    assert both.count == 6 * (3 + 5)
    second = run(first, [rounding.learn(first, made, data, FOUR, "gptq", stepwise=False)], FOUR)
    assert loss(made, second, data) < loss(made, first, data)


REFUSED = {
    "scatters": ("(float[1,3,4,4] x) => (float[1,2,8,8] y) <float[3,2,2,2] w> "
                 "{ y = ConvTranspose <strides = [2,2]> (x, w) }", (3, 2, 2, 2)),
    "a stack of matrices": ("(float[2,3,4] x) => (float[2,3,4] y) <float[2,4,4] w> "
                            "{ y = MatMul (x, w) }", (2, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_refusals_are_reported(why: str) -> None:
    body, shape = REFUSED[why]
    made = program(body, w=RNG.normal(size=shape))
    data = calls(made, 3)
    first = quantized(made, FOUR, data)
    second = run(first, [rounding.learn(first, made, data, FOUR, "gptq")], FOUR)
    assert why in second.steps[-1].refusals[0].reason and second.steps[-1].changes == 0


def test_too_deep_a_weight_keeps_its_codes(net: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "DEEPEST", 12)
    data = calls(net, 4)
    first = quantized(net, FOUR, data)
    learned = rounding.learn(first, net, data, FOUR, "gptq")
    assert [r.reason for r in learned.kept] == [
        "its weight sums 27 products, more than 12: it keeps the nearest codes"
    ]
    assert len(learned.learned) == 3


def test_codes_for_other_scales_are_not_used(net: Program) -> None:
    """Learned once, they also serve programs that leave nodes in float, where they fit."""
    data = calls(net, 4)
    first = quantized(net, FOUR, data)
    learned = rounding.learn(first, net, data, FOUR, "gptq")
    other = quantized(net, profile(weight_range=[-6, 6]), data)
    after = run(other, [learned], FOUR)
    assert after.steps[-1].changes == 0 and len(after.steps[-1].refusals) == 4
    scheme = FOUR.int_scheme
    assert scheme is not None
    ranges = calibrate.collect(net, data, scheme)
    mixed = run(net, [Quantize(ranges, ("conv_0",)), learned], FOUR)
    assert not mixed.steps[-1].refusals and mixed.steps[-1].changes >= 2


def test_codes_of_another_shape(net: Program) -> None:
    data = calls(net, 2)
    first = quantized(net, FOUR, data)
    learned = rounding.learn(first, net, data, FOUR, "gptq").learned
    bad = {k: replace(v, codes=v.codes.astype(np.int16)) for k, v in learned.items()}
    with pytest.raises(PassError, match="are int16 of shape"):
        run(first, [LearnRounding("gptq", bad)], FOUR)


def test_bad_requests(net: Program) -> None:
    data = calls(net, 2)
    first = quantized(net, FOUR, data)
    with pytest.raises(UsageError, match="no rounding 'best'; npuc has nearest, gptq, adaround"):
        rounding.learn(first, net, data, FOUR, "best")
    with pytest.raises(UsageError, match="not learned"):
        rounding.learn(first, net, data, FOUR, "nearest")
    with pytest.raises(UsageError, match="no calibration samples"):
        rounding.learn(first, net, [], FOUR, "gptq")
    with pytest.raises(UsageError, match="no integer scheme"):
        rounding.learn(first, net, data, Profile("x", "X", {}, {}), "gptq")


def test_patches_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image is unfolded some rows at a time, with the same sums."""
    body, weights = CASES["Conv"]
    made = program(body, **weights)
    data = calls(made, 2)
    first = quantized(made, FOUR, data)
    ((item,), _) = coded(first.model, made.model)

    def sums() -> Moments:
        (found,) = collect(first, data, {r: (1, 18) for r in item.reads}).values()
        return found

    whole = sums()
    monkeypatch.setattr("npuc.passes.qdq.products.BLOCK", 1)
    parts = sums()
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.total, whole.total, rtol=1e-12)


def test_the_quantizer_learns_once_for_all_its_programs(
    net: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search over programs that leave nodes in float must not learn again for each."""
    data, runs = calls(net, 6), list[int]()
    learn = rounding.learn

    def counted(*given: Any, **named: Any) -> LearnRounding:
        runs.append(1)
        return learn(*given, **named)

    monkeypatch.setattr(rounding, "learn", counted)
    quantizer = Quantizer(net, data, FOUR, Choices(rounding="gptq"))
    mixed, whole = quantizer.program(("conv_0",)), quantizer.program()
    for made in (mixed, whole):
        (step,) = (s for s in made.steps if s.name == "learn-rounding")
        assert step.options == {"method": "gptq"} and step.changes >= 2 and not step.refusals
    assert len(runs) == 1
    plain = Quantizer(net, data, FOUR).program()
    assert "learn-rounding" not in [step.name for step in plain.steps]
    assert loss(net, whole, data) < loss(net, plain, data)


def test_the_quantizer_refuses_an_unknown_rounding_at_once(net: Program) -> None:
    with pytest.raises(UsageError, match="no rounding 'up'"):
        Quantizer(net, [], FOUR, Choices(rounding="up"))
