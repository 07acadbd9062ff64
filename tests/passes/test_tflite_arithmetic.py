"""Rewriting Dequantize → operator → Quantize into integers, run by ONNX Runtime."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc import passes
from npuc.passes.arithmetic import tflite_kernels as kernels
from npuc.passes.arithmetic import tflite_softmax
from npuc.passes.arithmetic.lookup import CODES
from npuc.passes.arithmetic.round_to import DOMAIN
from npuc.passes.arithmetic.tflite_kernels import Coding
from npuc.passes.arithmetic.tflite_windows import Window
from npuc.passes.base import run
from npuc.passes.tflite_arithmetic import TfliteArithmetic
from npuc.profile import Fact, Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
PLAIN = Profile("test", "Test", {}, {})
A = Coding(float(np.float32(0.05)), 3)
B = Coding(float(np.float32(0.021)), -128)
C = Coding(float(np.float32(0.07)), -7)
SHARE = Coding(1 / 256, -128)


def program(
    body: str,
    inputs: Mapping[str, tuple[Coding, tuple[int, ...]]],
    outputs: Mapping[str, Coding],
    constants: Mapping[str, Array] | None = None,
) -> Program:
    """Build a program from codes to codes: `body` reads each input dequantized by its name.

    Input ``x`` is the port ``x_codes``; output ``y`` of the body is the port ``y_codes``.
    """
    declared, ports, before, after = [], [], [], []
    for name, coding in [*((n, c) for n, (c, _) in inputs.items()), *outputs.items()]:
        scale = float(np.float32(coding.scale))
        declared.append(f"float {name}_s = {{{scale!r}}}, int8 {name}_z = {{{coding.zero}}}")
    for name, (_, shape) in inputs.items():
        ports.append(f"int8[{','.join(map(str, shape))}] {name}_codes")
        before.append(f"{name} = DequantizeLinear ({name}_codes, {name}_s, {name}_z)")
    for name in outputs:
        after.append(f"{name}_codes = QuantizeLinear ({name}, {name}_s, {name}_z)")
    results = ", ".join(f"int8[] {name}_codes" for name in outputs)
    nodes = "\n".join([*before, body, *after])
    text = (
        f'<ir_version: 10, opset_import: ["": 20]> g ({", ".join(ports)}) => ({results})\n'
        f"<{', '.join(declared)}>\n{{ {nodes} }}"
    )
    proto = onnx.parser.parse_model(text)
    for key, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    proto = onnx.shape_inference.infer_shapes(proto, True, True)
    return Program.from_model(ir.from_proto(proto))


def rewritten(before: Program, changes: int = 1, floats: bool = False) -> Program:
    """Apply the pass: a valid model without float operators, and a fixed point."""
    after = run(before, [TfliteArithmetic()], PLAIN)
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    step = after.steps[-1]
    assert (step.changes, step.refusals) == (changes, ())
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    if not floats:
        assert not any(v.dtype == ir.DataType.FLOAT for n in after.model.graph for v in n.outputs)
    again = run(after, [TfliteArithmetic()], PLAIN)
    assert again.steps[-1].changes == 0
    return after


def answer(after: Program, **codes: Array) -> Array:
    """Return the only result's codes."""
    feed = {f"{name}_codes": np.asarray(value, np.int8) for name, value in codes.items()}
    return next(iter(OnnxRunner(after)(feed).values()))


P, Q = np.array(list(itertools.product(range(-128, 128), repeat=2))).T
SHAPE = (1 << 16,)


@pytest.mark.parametrize("op", ["Add", "Sum", "Sub", "Mul"])
@pytest.mark.parametrize("codings", [(A, B, C), (A, A, A), (B, C, Coding(2.0**-12, 100))])
def test_two_operands(op: str, codings: tuple[Coding, Coding, Coding]) -> None:
    """All 65536 pairs equal numpy's form."""
    a, b, o = codings
    before = program(f"y = {op} (p, q)", {"p": (a, SHAPE), "q": (b, SHAPE)}, {"y": o})
    got = answer(rewritten(before), p=P, q=Q)
    if op == "Mul":
        want = kernels.mul(P, Q, codings)
    else:
        want = kernels.add(P, Q, codings, subtract=op == "Sub")
    assert np.array_equal(got, want)


scales = st.floats(2.0**-16, 4.0, width=32)
codings = st.builds(Coding, scales, st.integers(-128, 127))


@settings(max_examples=25, deadline=None)
@given(codings, codings, codings, st.integers(0, 2**32 - 1))
def test_any_codings(a: Coding, b: Coding, o: Coding, seed: int) -> None:
    """Add and Mul with any scales and zero points, where int32 overflows too."""
    p, q = np.random.default_rng(seed).integers(-128, 128, (2, 200))
    ports = {"p": (a, (200,)), "q": (b, (200,))}
    got = answer(rewritten(program("y = Add (p, q)", ports, {"y": o})), p=p, q=q)
    assert np.array_equal(got, kernels.add(p, q, (a, b, o), subtract=False))
    got = answer(rewritten(program("y = Mul (p, q)", ports, {"y": o})), p=p, q=q)
    assert np.array_equal(got, kernels.mul(p, q, (a, b, o)))


def test_operands_broadcast_and_may_be_constant() -> None:
    """A dequantized constant per tensor is an operand like another."""
    before = program(
        "k = DequantizeLinear (k_codes, p_s, p_z)\ny = Mul (p, k)",
        {"p": (A, (2, 3, 4))},
        {"y": C},
        {"k_codes": np.array([[1], [-2], [100]], np.int8)},
    )
    p = np.random.default_rng(0).integers(-128, 128, (2, 3, 4))
    want = kernels.mul(p, np.array([[1], [-2], [100]]), (A, A, C))
    assert np.array_equal(answer(rewritten(before), p=p), want)


FUSED: dict[str, Callable[[Array], Array]] = {
    "t = Add (p, q)\ny = Relu (t)": lambda x: kernels.clamp(x, C.zero),
    "t = Add (p, q)\ny = Clip (t, low, high)": lambda x: kernels.clamp(x, C.code(-1), C.code(6)),
    "t = Add (p, q)\nu = Relu (t)\ny = Clip (u, , high)": lambda x: kernels.clamp(
        x, C.zero, C.code(6)
    ),
}


@pytest.mark.parametrize("body", FUSED)
def test_clamps_are_fused(body: str) -> None:
    """What stands between the operator and its Quantize limits the codes."""
    limits = {"low": np.array(-1, np.float32), "high": np.array(6, np.float32)}
    before = program(body, {"p": (A, SHAPE), "q": (B, SHAPE)}, {"y": C}, limits)
    got = answer(rewritten(before), p=P, q=Q)
    assert np.array_equal(got, FUSED[body](kernels.add(P, Q, (A, B, C), subtract=False)))


UNARY: dict[str, tuple[Coding, Callable[[], Array]]] = {
    "y = Relu (x)": (B, lambda: kernels.relu(CODES, A, B, (B.zero, 127))),
    "y = Clip (x, low, high)": (
        C,
        lambda: kernels.relu(CODES, A, C, (C.code(-1), C.code(6))),
    ),
    "y = LeakyRelu <alpha = 0.3> (x)": (C, lambda: kernels.leaky_relu(CODES, 0.3, A, C)),
    "y = Abs (x)": (C, lambda: kernels.absolute(CODES, A, C)),
    "y = Sqrt (x)": (C, lambda: kernels.square_root(CODES, A, C)),
    "y = HardSwish (x)": (C, lambda: kernels.hard_swish(CODES, A, C)),
    "y = Identity (x)": (C, lambda: kernels.requantize(CODES, A, C)),
    "y = Reshape (x, shape)": (C, lambda: kernels.requantize(CODES, A, C)),
    "m = Identity (x)\ny = Reshape (m, shape)": (C, lambda: kernels.requantize(CODES, A, C)),
}


@pytest.mark.parametrize("body", UNARY)
def test_one_operand(body: str) -> None:
    """All 256 codes, looked up: the kernels' own functions, and another coding."""
    out, want = UNARY[body]
    constants = {
        "low": np.array(-1, np.float32),
        "high": np.array(6, np.float32),
        "shape": np.array([256]),
    }
    moved = "Identity" in body or "Reshape" in body
    before = program(body, {"x": (A, (256,))}, {"y": out}, constants)
    after = rewritten(before, floats=moved)
    assert np.array_equal(answer(after, x=CODES), want())
    assert [n.op_type for n in after.model.graph].count("Gather") == 1


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Gelu", "Elu", "Exp", "Erf", "Softplus"])
def test_a_table_is_within_a_code_of_the_float_program(op: str) -> None:
    """The float program is the meaning; only ties and the last digit may differ."""
    before = program(f"y = {op} (x)", {"x": (A, (256,))}, {"y": B})
    after = rewritten(before)
    difference = answer(before, x=CODES).astype(int) - answer(after, x=CODES).astype(int)
    assert np.abs(difference).max() <= 1 and np.abs(difference).sum() <= 4


POOLS = [
    "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]",
    "kernel_shape = [2, 3], pads = [1, 1, 0, 2], count_include_pad = 1",
    'kernel_shape = [3, 2], strides = [2, 3], auto_pad = "SAME_UPPER"',
    "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1",
    "kernel_shape = [7, 8]",
]


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("out", [A, C])
def test_average_pooling(attributes: str, out: Coding) -> None:
    """Sums in integers over counts, half away from code zero, then another coding if asked for."""
    before = program(f"y = AveragePool <{attributes}> (x)", {"x": (A, (2, 3, 7, 8))}, {"y": out})
    after = rewritten(before)
    x = np.random.default_rng(0).integers(-128, 128, (2, 3, 7, 8))
    node = next(n for n in before.model.graph if n.op_type == "AveragePool")
    result = node.outputs[0].shape
    assert result is not None
    window = Window.of(node, (2, 3, 7, 8), result.numpy())
    total = np.zeros((2, 3, *window.outputs), np.int64)
    filling = A.zero if window.include else 0
    ends = [(0, 0), (0, 0), *zip(window.begin, window.end, strict=True)]
    padded = np.pad(x, ends, constant_values=filling)
    for i, j in itertools.product(*map(range, window.outputs)):
        r, c = i * window.stride[0], j * window.stride[1]
        taps = padded[:, :, r : r + window.kernel[0], c : c + window.kernel[1]]
        total[:, :, i, j] = taps.sum(axis=(2, 3))
    want = kernels.average(total, window.count())
    if out != A:
        want = kernels.requantize(want, A, out)
    got = answer(after, x=x)
    assert np.array_equal(got, want)
    assert np.abs(got.astype(int) - answer(before, x=x).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("body", "axes", "keep"),
    [
        ("y = GlobalAveragePool (x)", (2, 3), True),
        ("y = ReduceMean <keepdims = 0> (x, axes)", (1, 3), False),
        ("y = ReduceMean (x, axes)", (1, 3), True),
    ],
)
def test_mean(body: str, axes: tuple[int, ...], keep: bool) -> None:
    """Any axes, kept or not, in another coding."""
    constants = {"axes": np.array([-1, 1])} if "axes" in body else {}
    before = program(body, {"x": (A, (2, 5, 3, 7))}, {"y": B}, constants)
    x = np.random.default_rng(0).integers(-128, 128, (2, 5, 3, 7))
    want = kernels.mean(x, axes, A, B)
    assert np.array_equal(answer(rewritten(before), x=x), want if keep else want.squeeze(axes))


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("scale", [0.003, 0.11, 20.0])
def test_softmax(axis: int, scale: float) -> None:
    """Along any axis, with sharp and flat rows."""
    source = Coding(float(np.float32(scale)), 9)
    before = program(f"y = Softmax <axis = {axis}> (x)", {"x": (source, (40, 33, 5))}, {"y": SHARE})
    x = np.random.default_rng(0).integers(-128, 128, (40, 33, 5))
    x[:20] //= 16
    got = answer(rewritten(before), x=x)
    assert np.array_equal(got, tflite_softmax.softmax(x, axis, source))
    assert np.abs(got.astype(int) - answer(before, x=x).astype(int)).max() <= 1


def test_joined_tensors_take_the_coding_of_the_result() -> None:
    """Concat needs one coding: operands that have another are requantized first."""
    ports = {"p": (A, (2, 3)), "q": (C, (2, 3))}
    before = program("y = Concat <axis = 1> (p, q)", ports, {"y": C})
    after = rewritten(before, floats=True)
    p, q = np.random.default_rng(0).integers(-128, 128, (2, 2, 3))
    want = np.concatenate([kernels.requantize(p, A, C), q], axis=1)
    assert np.array_equal(answer(after, p=p, q=q), want)


def test_moving_codes_is_left_as_it_is() -> None:
    """With one coding, Dequantize → MaxPool → Quantize is exact: nothing to rewrite."""
    text = "m = MaxPool <kernel_shape = [2, 2]> (x)\ny = Transpose <perm = [0, 1, 3, 2]> (m)"
    before = program(text, {"x": (A, (1, 1, 4, 4))}, {"y": A})
    after = rewritten(before, changes=0, floats=True)
    assert after.serialized() == before.serialized()


def test_functions_are_in_the_model_once() -> None:
    """Two operators share the functions of npuc's domain; nothing unused is left behind."""
    before = program(
        "t = Add (p, q)\ntq = QuantizeLinear (t, p_s, p_z)\ntd = DequantizeLinear (tq, p_s, p_z)\n"
        "y = Mul (td, q)",
        {"p": (A, (4,)), "q": (B, (4,))},
        {"y": C},
    )
    after = rewritten(before, changes=2)
    assert [f.name for f in after.model.functions.values()] == ["Requantize_tflite_double"]
    assert after.model.opset_imports[DOMAIN] == 1
    used = {v.name for n in after.model.graph for v in n.inputs if v is not None}
    assert set(after.model.graph.initializers) <= used


REFUSED = {
    "y = Div (p, q)": "no 8-bit kernel",
    "y = Sum (p, q, p)": "3 operands",
    "y = PRelu (p, slope)": "constant of one number",
    "t = Add (p, q)\nu = Neg (t)\ny = Identity (u)": "read as a float, by Neg",
    "y = Softmax (p)": "writes scale 1/256",
    "y = Add (p, slope)": "is not coded",
    "t = Identity (p)\ny = Mul (t, q)": "is not coded",
}


@pytest.mark.parametrize("body", REFUSED)
def test_what_stays_in_float_is_said(body: str) -> None:
    """The graph is left as it was, with the reason."""
    ports = {"p": (A, (3,)), "q": (B, (3,))}
    constants = {"slope": np.array([0.1, 0.2, 0.3], np.float32)}
    before = program(body, ports, {"y": C}, constants)
    after = run(before, [TfliteArithmetic()], PLAIN)
    step = after.steps[-1]
    assert step.changes == 0
    assert [REFUSED[body] in refusal.reason for refusal in step.refusals] == [True]
    assert [n.op_type for n in after.model.graph] == [n.op_type for n in before.model.graph]
    assert set(after.model.graph.initializers) == set(before.model.graph.initializers)


def test_scales_beyond_the_kernels_are_said() -> None:
    """A HardSwish whose result is far finer than its operand, and an operand too fine for exp."""
    fine = Coding(2.0**-20, 0)
    cases = {
        "y = HardSwish (x)": (Coding(4.0, 0), fine),
        "y = Softmax (x)": (Coding(2.0**-27, 0), SHARE),
    }
    for body, (source, out) in cases.items():
        after = run(program(body, {"x": (source, (8,))}, {"y": out}), [TfliteArithmetic()], PLAIN)
        assert after.steps[-1].changes == 0 and len(after.steps[-1].refusals) == 1


def test_other_codes_are_said() -> None:
    """uint8 activations, and scales per channel, have no kernel here."""
    text = """<ir_version: 10, opset_import: ["": 20]> g (uint8[2] x) => (uint8[2] y)
<float s = {0.1}, uint8 z = {3}>
{ d = DequantizeLinear (x, s, z)  t = Tanh (d)  y = QuantizeLinear (t, s, z) }"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    after = run(Program.from_model(ir.from_proto(proto)), [TfliteArithmetic()], PLAIN)
    assert "uint8" in after.steps[-1].refusals[0].reason
    wide = "float[2] s = {0.1, 0.2}"
    per_channel = text.replace("uint8", "int8").replace("float s = {0.1}", wide)
    per_channel = per_channel.replace("int8 z = {3}", "int8[2] z = {0, 0}")
    per_channel = per_channel.replace("Linear (", "Linear <axis = 0> (")
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(per_channel))
    after = run(Program.from_model(ir.from_proto(proto)), [TfliteArithmetic()], PLAIN)
    assert "one of each" in after.steps[-1].refusals[0].reason


def test_the_twin_runs_the_pass_where_the_profile_says_so() -> None:
    """`numerics` chooses by facts: the elementwise rule, and only for int8."""
    values = {
        "ops": ["Add"],
        "weight_range": [-127, 127],
        "weight_per_channel": True,
        "activation_range": [-128, 127],
        "activation_symmetric": False,
    }
    facts = {f"int8.{key}": Fact(value, "A", "test") for key, value in values.items()}
    for rule, there in (("tflite", True), ("float", False)):
        profile = Profile("t", "T", {**facts, "int8.elementwise": Fact(rule, "A", "test")}, {})
        names = [item.name for item in passes.numerics(profile, "int8", None)]
        assert ("tflite-arithmetic" in names) == there
        assert "tflite-arithmetic" not in [
            item.name for item in passes.numerics(profile, "float", None)
        ]
    assert passes.catalogue()["tflite-arithmetic"] is TfliteArithmetic
