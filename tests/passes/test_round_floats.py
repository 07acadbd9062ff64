"""Where a device that stores short floats rounds, and where it must not."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import PassError
from npuc.passes.arithmetic.round_to import DOMAIN, round_to
from npuc.passes.base import run
from npuc.passes.round_floats import RoundFloats
from npuc.profile import Fact, FloatFormat, Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

BF16 = FloatFormat(8, 7)
HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
Array = np.ndarray[Any, Any]


def program(text: str) -> Program:
    """Parse a model and infer its types."""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HEAD + text), True)
    return Program.from_model(ir.from_proto(proto))


def rounded(text: str, fmt: FloatFormat = BF16) -> Program:
    """Round a model as ATOM's profile has it; the result must be valid and keep its ports."""
    before = program(text)
    after = run(before, [RoundFloats(fmt)], Profile.load("atom"))
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    return after


def calls(after: Program) -> list[str]:
    """Return the operators whose results are rounded, "input" for a graph input."""
    found = []
    for node in after.model.graph.all_nodes():
        if node.domain == DOMAIN:
            source = node.inputs[0]
            assert source is not None
            producer = source.producer()
            found.append("input" if producer is None else producer.op_type)
    return found


def r(array: Array) -> Array:
    """Round as bfloat16."""
    return round_to(array, BF16)


def normal(*shape: int, seed: int = 0) -> Array:
    """Return float32 noise."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LINEAR = """
linear (float[2, 3] x) => (float[2, 2] y)
<float[3, 2] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, float[2] b = {0.7, 0.8}>
{ h = MatMul (x, w)  s = Add (h, b)  y = Relu (s) }
"""


def test_every_result_is_rounded_once() -> None:
    """MatMul and Add round, Relu keeps a rounded value, inputs and constants are rounded too."""
    after = rounded(LINEAR)
    assert calls(after) == ["input", "MatMul", "Add"]
    weights = after.model.graph.initializers
    w, b = (np.array(v, np.float32) for v in ([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [0.7, 0.8]))
    for name, array in (("w", w), ("b", b)):
        tensor = weights[name].const_value
        assert tensor is not None and np.array_equal(tensor.numpy(), r(array))
    x = normal(2, 3)
    # float64 stands for the exact product sum; three terms of 8-bit numbers are exact in float32.
    want = np.maximum(r(r((r(x).astype(float) @ r(w)).astype(np.float32)) + r(b)), 0)
    assert np.array_equal(OnnxRunner(after)({"x": x})["y"], want)
    assert after.steps[-1].changes == 5


def test_a_rounded_tensor_keeps_its_name() -> None:
    """Reports compare tensors by name: the stored value is the one to compare."""
    before, after = program(LINEAR), rounded(LINEAR)
    x = normal(2, 3)
    exact = OnnxRunner(before, extra=["h"])({"x": x})["h"]
    stored = OnnxRunner(after, extra=["h"])({"x": x})["h"]
    assert np.array_equal(stored, r(stored)) and not np.array_equal(stored, exact)


def test_moving_values_does_not_round_again() -> None:
    """Layout operators, maxima and choices pass rounded values on."""
    after = rounded("""
moves (float[1, 2, 4, 4] x, bool[1] c) => (float[1, 2, 8] y, float[1, 8] z)
<int64[3] s = {1, 2, 4}, float zero = {0.3}, int64[1] i = {1}, int64[1] j = {2}>
{
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
  q = Reshape (p, s)
  t = Transpose <perm = [0, 1, 2]> (q)
  w = Where (c, t, zero)
  y = Concat <axis = 2> (w, t)
  m = Slice (y, i, j, i)
  z = Flatten (m)
}
""")
    assert calls(after) == ["input"]
    constant = after.model.graph.initializers["zero"].const_value
    assert constant is not None and constant.numpy() == r(np.array(0.3, np.float32))


INTEGER = """
integer (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float s = {0.037}, int8 z = {0}, float[2] sw = {0.013, 0.017}, int8[2] zw = {0, 0},
 int8[2, 2, 1, 1] w = {100, -50, 25, 127}, float[2] b = {0.101, -0.203}>
{
  xq = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xq, s, z)
  wd = DequantizeLinear <axis = 0> (w, sw, zw)
  a = Conv (xd, wd, b)
  c = Relu (a)
  cq = QuantizeLinear (c, s, z)
  cd = DequantizeLinear (cq, s, z)
  d = Conv (cd, wd, b)
  y = Add (d, c)
}
"""


def test_integers_stay_exact_between_integer_operators() -> None:
    """Codes and accumulators are exact; a float reader of either gets them rounded."""
    after = rounded(INTEGER)
    assert Counter(calls(after)) == Counter(["input", "Relu", "Conv", "Add"])
    nodes = {node.outputs[0].name: node for node in after.model.graph}
    for name, source in (("cq", "c"), ("a", "xd"), ("d", "cd")):
        first = nodes[name].inputs[0]
        assert first is not None and first.name == source
    assert all(v is not None and v.name != "c" for v in nodes["y_float32"].inputs)
    for name, value in program(INTEGER).model.graph.initializers.items():
        tensor, old = after.model.graph.initializers[name].const_value, value.const_value
        assert tensor is not None and old is not None
        assert np.array_equal(tensor.numpy(), old.numpy())


def test_the_integer_path_computes_what_it_did() -> None:
    """With a representable input, everything up to the last Quantize is bit for bit the same."""
    x = r(normal(1, 2, 4, 4))
    before = OnnxRunner(program(INTEGER), extra=["cq"])({"x": x})
    after = OnnxRunner(rounded(INTEGER), extra=["cq"])({"x": x})
    assert np.array_equal(before["cq"], after["cq"])
    assert np.array_equal(after["y"], r(after["y"]))
    assert not np.array_equal(before["y"], after["y"])


def test_codes_for_a_float_operator_are_rounded() -> None:
    """Add is not an integer operator of this device: what it reads is a stored float."""
    after = rounded("""
mixed (float[1, 4] x) => (float[1, 4] y, float[1, 4] u)
<float s = {0.037}, int8 z = {0}>
{
  q = QuantizeLinear (x, s, z)
  u = DequantizeLinear (q, s, z)
  t = Identity (u)
  y = Add (t, t)
}
""")
    assert Counter(calls(after)) == Counter(["input", "DequantizeLinear", "Identity", "Add"])
    got = OnnxRunner(after)({"x": np.full((1, 4), 0.037 * 101, np.float32)})
    code = r(np.float32(0.037) * np.full((1, 4), 101, np.float32))
    assert np.array_equal(got["u"], code)
    assert np.array_equal(got["y"], r(code + code))


def test_a_constant_added_to_an_accumulator_is_its_bias() -> None:
    """MatMul then Add of a constant then Quantize is one integer operator with its bias."""
    text = """
bias (float[2, 2] x) => (int8[2, 2] y)
<float s = {0.037}, int8 z = {0}, int8[2, 2] w = {100, -50, 25, 127}, float[2] b = {0.101, -0.203}>
{
  q = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (q, s, z)
  wd = DequantizeLinear (w, s, z)
  m = MatMul (xd, wd)
  a = Add (b, m)
  y = QuantizeLinear (a, s, z)
}
"""
    after = rounded(text)
    assert calls(after) == ["input"]
    b = after.model.graph.initializers["b"].const_value
    assert b is not None and b.numpy()[0] == np.float32(0.101)


def test_a_constant_that_is_no_bias_ends_the_integer_path() -> None:
    """A table added to an accumulator, or joined with one, is computed with stored floats."""
    after = rounded("""
table (float[1, 2, 2] x) => (int8[1, 3, 2] y)
<float s = {0.037}, int8 z = {0}, int8[2, 2] w = {100, -50, 25, 127},
 float[1, 1, 2] t = {0.1, 0.2}, float[1, 3, 2] p = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}>
{
  q = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (q, s, z)
  wd = DequantizeLinear (w, s, z)
  m = MatMul (xd, wd)
  c = Concat <axis = 1> (t, m)
  a = Add (c, p)
  y = QuantizeLinear (a, s, z)
}
""")
    assert Counter(calls(after)) == Counter(["input", "MatMul", "Add"])
    for name in ("t", "p"):
        constant = after.model.graph.initializers[name].const_value
        assert constant is not None
        assert np.array_equal(constant.numpy(), r(constant.numpy()))


def test_limits_do_not_end_the_integer_path() -> None:
    """Clip between an integer operator and its requantize is fused as Relu is."""
    after = rounded(INTEGER.replace("c = Relu (a)", "c = Clip (a, s, s)"))
    assert Counter(calls(after)) == Counter(["input", "Clip", "Conv", "Add"])


def test_a_shared_constant_is_rounded_for_float_readers_only() -> None:
    """A scale that is also a factor keeps its value as a scale."""
    after = rounded("""
shared (float[1, 4] x) => (int8[1, 4] y, float[1, 4] m)
<float s = {0.0371}, int8 z = {0}>
{ y = QuantizeLinear (x, s, z)  m = Mul (x, s) }
""")
    nodes = {node.op_type: node for node in after.model.graph}
    scale, factor = nodes["QuantizeLinear"].inputs[1], nodes["Mul"].inputs[1]
    assert scale is not None and factor is not None
    assert scale.const_value is not None and factor.const_value is not None
    assert scale.const_value.numpy() == np.float32(0.0371)
    assert factor.const_value.numpy() == r(np.array(0.0371, np.float32))


def test_control_flow_is_rounded_inside() -> None:
    """Branches read rounded outer values and give rounded results."""
    after = rounded("""
branch (float[2] x, bool c) => (float[2] y)
<float[2] k = {0.1, 0.2}>
{
  h = Mul (x, k)
  y = If (c) <
    then_branch = yes () => (float[2] p) { p = Add (h, k) },
    else_branch = no () => (float[2] n) { n = Identity (h) }
  >
}
""")
    assert calls(after) == ["input", "Mul", "Add"]
    x, k = normal(2), np.array([0.1, 0.2], np.float32)
    h = r(r(x) * r(k))
    runner = OnnxRunner(after)
    assert np.array_equal(runner({"x": x, "c": np.array(True)})["y"], r(h + r(k)))
    assert np.array_equal(runner({"x": x, "c": np.array(False)})["y"], h)


def test_what_is_not_rounded_is_said() -> None:
    """A double, an input that is an output, and a constant output are listed, not passed over."""
    after = rounded("""
odd (float[2] x) => (double[2] d, float[2] x, float[2] y)
<double[2] k = {0.1, 0.2}, float[2] y = {0.1, 0.2}>
{ e = Cast <to = 11> (x)  d = Mul (e, k) }
""")
    reasons = [f"{r.node}: {r.reason}" for r in after.steps[-1].refusals]
    assert any("DOUBLE" in reason for reason in reasons)
    assert any(reason.startswith("x: ") for reason in reasons)
    assert any(reason.startswith("y: ") for reason in reasons)


def test_an_unknown_type_stops_the_pass() -> None:
    """A tensor that may be a float is not skipped in silence."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20, "other": 1]>'
        "hidden (float[2] x) => (float[2] y) { h = other.Thing (x)  y = Relu (h) }"
    )
    with pytest.raises(PassError, match="Thing"):
        run(Program.from_model(ir.from_proto(proto)), [RoundFloats(BF16)], Profile.load("atom"))


def test_rounding_twice_is_rounding_once() -> None:
    """A second run finds every value rounded: same answers, valid graph."""
    once = rounded(LINEAR)
    twice = run(once, [RoundFloats(BF16)], Profile.load("atom"))
    onnx.checker.check_model(ir.to_proto(twice.model), full_check=True)
    x = {"x": normal(2, 3)}
    assert np.array_equal(OnnxRunner(once)(x)["y"], OnnxRunner(twice)(x)["y"])


def device(**facts: Any) -> Profile:
    """Return a device by its facts, "__" standing for the dot of their names."""
    values = {key.replace("__", "."): Fact(value, "A", "test") for key, value in facts.items()}
    return Profile("test", "Test", values, {"test": "this test"})


OPERANDS = {"float__formats": [[8, 7]], "float__rounds": "operands"}
MATRIX = """
matrix (float[1, 2, 4, 4] x) => (float[1, 4, 4] y, float[1, 2, 4, 4] e)
<float[2, 2, 1, 1] w = {0.1, 0.2, 0.3, 0.4}, float[2] b = {0.7, 0.8}, float[1] k = {0.3},
 int64[1] one = {1}>
{
  c = Conv (x, w, b)
  e = Mul (c, k)
  m = ReduceMax <keepdims = 0> (e, one)
  t = Transpose <perm = [0, 2, 1]> (m)
  y = MatMul (m, t)
}
"""


def test_a_matrix_unit_rounds_its_factors_only() -> None:
    """Inputs and weights of products are bfloat16; biases, results and the rest are float32."""
    before = program(MATRIX)
    after = run(before, [RoundFloats(BF16)], device(**OPERANDS))
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    assert sorted(calls(after)) == ["ReduceMax", "Transpose", "input"]
    x = normal(1, 2, 4, 4)
    w = r(np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)).astype(float)
    b, k = np.array([0.7, 0.8], np.float32).astype(float), np.float32(0.3).astype(float)
    conv = np.einsum("oi,nihw->nohw", w, r(x).astype(float)) + b[:, None, None]
    got = OnnxRunner(after)({"x": x})
    # Two products of 8-bit significands are exact in float32; the bias and k round once each.
    np.testing.assert_allclose(got["e"], conv * k, rtol=3 * 2.0**-24, atol=0)
    assert not np.array_equal(got["e"], r(got["e"]))
    m = got["e"].max(axis=1)
    want = r(m).astype(float) @ r(m.transpose(0, 2, 1)).astype(float)
    np.testing.assert_allclose(got["y"], want, rtol=4 * 2.0**-24, atol=1e-6)
    again = run(after, [RoundFloats(BF16)], device(**OPERANDS))
    assert np.array_equal(OnnxRunner(again)({"x": x})["y"], got["y"])


def test_codes_are_no_rounded_factors() -> None:
    """An integer product takes codes as they are; a float one gets them rounded."""
    whole = {
        "int8__ops": ["Conv"],
        "int8__weight_range": [-127, 127],
        "int8__weight_per_channel": True,
        "int8__activation_range": [-128, 127],
        "int8__activation_symmetric": True,
    }
    after = run(program(INTEGER), [RoundFloats(BF16)], device(**OPERANDS, **whole))
    assert calls(after) == []
    assert after.steps[-1].changes == 0
    floats = run(program(INTEGER), [RoundFloats(BF16)], device(**OPERANDS))
    assert calls(floats) == ["DequantizeLinear"] * 3  # x, the shared weight, the second input


def test_products_in_a_loop_are_rounded_inside() -> None:
    """What a body gets as its own input is rounded in the body."""
    text = """
loop (float[2, 2] x, int64 n, bool go) => (float[2, 2] y)
<float[2, 2] w = {0.1, 0.2, 0.3, 0.4}>
{
  y = Loop (n, go, x) <body = step (int64 i, bool c, float[2, 2] s) => (bool d, float[2, 2] p)
    { d = Identity (c)  p = MatMul (s, w) }>
}
"""
    after = run(program(text), [RoundFloats(BF16)], device(**OPERANDS))
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    x, w = normal(2, 2), r(np.array([[0.1, 0.2], [0.3, 0.4]], np.float32))
    want = x
    for _ in range(3):
        want = r(want) @ w
    got = OnnxRunner(after)({"x": x, "n": np.array(3), "go": np.array(True)})["y"]
    np.testing.assert_allclose(got, want, rtol=2.0**-23, atol=0)


def test_products_within_operators_are_said() -> None:
    """A recurrent operator's products are not reached: that is reported."""
    text = """
rnn (float[2, 1, 3] x) => (float[2, 1, 1, 2] y)
<float[1, 2, 3] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, float[1, 2, 2] u = {0.1, 0.2, 0.3, 0.4}>
{ y = RNN <hidden_size = 2> (x, w, u) }
"""
    after = run(program(text), [RoundFloats(BF16)], device(**OPERANDS))
    assert ["inner products" in refusal.reason for refusal in after.steps[-1].refusals] == [True]


@pytest.mark.parametrize("subnormals", ["kept", "flushed"])
def test_a_device_may_flush_subnormals(subnormals: str) -> None:
    """The profile's fact names the operator, and constants are flushed like results."""
    profile = device(float__formats=[[8, 7]], float__subnormals=subnormals)
    text = """
tiny (float[2] x) => (float[2] y)
<float[2] k = {1e-39, 1.0}>
{ y = Add (x, k) }
"""
    after = run(program(text), [RoundFloats(BF16)], profile)
    suffix = "_flushed" if subnormals == "flushed" else ""
    assert {n.op_type for n in after.model.graph if n.domain == DOMAIN} == {f"RoundTo_e8m7{suffix}"}
    got = OnnxRunner(after)({"x": np.array([0, -1e-39], np.float32)})["y"]
    assert (got[0] == 0) == (subnormals == "flushed") and got[1] == 1


def test_without_an_integer_scheme_everything_is_float() -> None:
    """Dequantized codes feed float operators only, so they are rounded."""
    plain = Profile.parse('name = "x"\ntitle = "X"\n')
    after = run(program(INTEGER), [RoundFloats(BF16)], plain)
    assert Counter(calls(after))["DequantizeLinear"] == 3
