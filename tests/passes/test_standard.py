"""The standard passes together, and on random graphs."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from npuc.passes import catalogue, standard
from npuc.passes.base import Pass, run
from npuc.passes.drop_unused import DropUnused
from npuc.passes.fix_shapes import FixShapes
from npuc.passes.fold_batchnorm import FoldBatchNorm
from npuc.passes.fold_constants import FoldConstants
from npuc.passes.lower_opset import LowerOpset
from npuc.passes.simplify import Simplify
from npuc.profile import Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]


def test_importing_the_package_loads_no_onnx() -> None:
    code = (
        "import sys, npuc.passes;"
        "sys.exit(str([m for m in ('onnx', 'onnx_ir', 'torch') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_the_catalogue_documents_every_pass() -> None:
    passes = catalogue()
    assert list(passes) == sorted(passes)
    for name, item in passes.items():
        assert item.name == name
        text = item.__doc__ or ""
        if name != "round-floats":  # it says what it inserts in words
            assert "⇒" in text.splitlines()[0], f"{name} begins with a drawing"
        assert "\n\n" in text, f"{name} has more to say than its drawing"
    assert {item.name for item in standard({})} <= set(passes)


def test_standard_makes_a_network_small_and_static(
    parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    rng = np.random.default_rng(5)
    weights = {
        "w": rng.normal(size=(8, 3, 3, 3)),
        **{name: rng.normal(size=8) for name in "gom"},
        "v": rng.uniform(0.5, 2, 8),
        "k": rng.normal(size=(8, 5)),
    }
    before = parse(
        """(float[batch,3,8,8] x, float[8,3,3,3] w, float[8] g, float[8] o, float[8] m, float[8] v,
        float[8,5] k) => (float[batch,5] y) <int64[1] zero = {0}, int64[1] rest = {-1}> {
        a = Conv(x, w) b = Identity(a) c = BatchNormalization(b, g, o, m, v) d = Relu(c)
        e = Dropout(d) f = GlobalAveragePool(e) s = Shape(f) n = Gather(s, zero)
        t = Concat<axis=0>(n, rest) h = Reshape(f, t) y = MatMul(h, k) }""",
        {name: value.astype(np.float32) for name, value in weights.items()},
    )
    # Round-off of 27 products of size about 1 and their normalization.
    after = keeps(before, standard({"batch": 2}), atol=1e-5, sizes=(2,))
    assert ops(after)[:3] == ["Conv", "Relu", "GlobalAveragePool"]
    assert set(ops(after)) <= {"Conv", "Relu", "GlobalAveragePool", "Reshape", "Flatten", "MatMul"}
    assert [str(p) for p in (*after.inputs, *after.outputs)] == [
        "x:2x3x8x8:float32",
        "y:2x5:float32",
    ]
    assert [s.name for s in after.steps] == [p.name for p in standard({})]


OPERATORS = [
    "Conv",
    "BatchNormalization",
    "Relu",
    "HardSwish",
    "Gelu",
    "Identity",
    "Dropout",
    "Add",
    "AddConstant",
    "MulShared",
    "Softmax",
    "MaxPool",
    "Transpose",
    "MatMul",
]


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw a chain with skip connections over [N, 4, 6, 6], seeded weights and unused parts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    values = ["x"]

    def weight(array: Array) -> str:
        name = f"w{len(weights)}"
        weights.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        return name

    shared = weight(rng.normal(size=(1, 4, 1, 1)))

    def emit(op: str, *inputs: str, **attributes: Any) -> None:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(nodes)}", **attributes))
        values.append(name)

    for op in draw(st.lists(st.sampled_from(OPERATORS), min_size=1, max_size=8)):
        source = values[draw(st.integers(max(0, len(values) - 3), len(values) - 1))]
        if op == "Conv":
            group = draw(st.sampled_from([1, 2, 4]))
            kernel = weight(rng.normal(0, 0.4, (4, 4 // group, 3, 3)))
            bias = [weight(rng.normal(size=4))] if draw(st.booleans()) else []
            emit("Conv", source, kernel, *bias, group=group, pads=[1, 1, 1, 1])
        elif op == "BatchNormalization":
            stats = [weight(rng.normal(size=4)) for _ in range(3)]
            emit(op, source, *stats, weight(rng.uniform(0.5, 2, 4)))
        elif op == "Add":
            emit("Add", source, values[draw(st.integers(0, len(values) - 1))])
        elif op == "AddConstant":
            emit("Neg", weight(rng.normal(size=(4, 1, 6))))
            emit("Add", source, values.pop())
        elif op == "MulShared":
            emit("Mul", source, shared)
        elif op == "MaxPool":
            emit(op, source, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif op == "Transpose":
            emit(op, source, perm=[0, 1, 3, 2])
        elif op == "MatMul":
            emit(op, source, weight(rng.normal(0, 0.4, (6, 6))))
        else:
            emit(op, source)
    outs = [values[-1], *draw(st.lists(st.sampled_from(values[1:]), max_size=1))]
    shape: list[int | str | None] = ["N", 4, 6, 6]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info(name, 1, shape) for name in dict.fromkeys(outs)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


EXACT: list[Pass] = [
    FoldConstants(),
    DropUnused(),
    FoldBatchNorm(),
    Simplify(),
    FixShapes({"N": 2}),
    LowerOpset(13),
]


@pytest.mark.parametrize("item", EXACT, ids=lambda item: item.name)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(proto=networks())
def test_every_exact_pass_keeps_the_answer(
    item: Pass, proto: onnx.ModelProto, profile: Profile, feed: Callable[..., Any]
) -> None:
    before = Program.from_model(ir.from_proto(proto))
    after = run(before, [item], profile)
    assert after.steps[-1].rolled_back == ""
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    for size in (2,) if isinstance(item, FixShapes) else (1, 3):
        values = feed(before, size)
        expected, got = OnnxRunner(before)(values), OnnxRunner(after)(values)
        for name, value in expected.items():
            # Up to eight layers of 36 products each in another order, relative to the peak.
            peak = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(got[name], value, rtol=0, atol=2e-5 * peak)
    if not item.optional:
        assert run(after, [item], profile).steps[-1].changes == 0
