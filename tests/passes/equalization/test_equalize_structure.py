"""equalize: what else in a model reads or owns a tensor, and odd shapes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import PassError
from npuc.partition import PLACE
from npuc.passes.base import run
from npuc.passes.equalize import Equalize, observed
from npuc.passes.graphs import constant
from npuc.profile import Profile
from npuc.program import Program

Array = np.ndarray[Any, Any]
IMAGE, OUT = "float[1,4,6,6]", "float[1,6,6,6]"
CHAIN = "a = Conv<pads=[1,1,1,1]>(x, w, b) i = Relu(a) y = Conv(i, v)"


def edited(program: Program, change: Callable[[onnx.ModelProto], object]) -> Program:
    """Return a program whose protobuf was changed."""
    proto = ir.to_proto(program.model)
    change(proto)
    onnx.checker.check_model(proto, full_check=True)
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def output(name: str, *shape: int) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


@pytest.mark.parametrize("name", ["a", "i"])
def test_a_graph_output_stays(name: str, build: Any, equalized: Any, integers: Any) -> None:
    before = edited(
        build(IMAGE, OUT, CHAIN), lambda m: m.graph.output.append(output(name, 1, 8, 6, 6))
    )
    assert equalized(before, integers()).steps[-1].changes == 0


def test_a_weight_that_is_an_output_stays(build: Any, equalized: Any, integers: Any) -> None:
    before = edited(
        build(IMAGE, OUT, CHAIN), lambda m: m.graph.output.append(output("v", 6, 8, 1, 1))
    )
    assert equalized(before, integers()).steps[-1].changes == 0


def test_a_default_that_a_caller_may_override_stays(
    build: Any, equalized: Any, integers: Any
) -> None:
    for name, shape in (("w", (8, 4, 3, 3)), ("b", (8,)), ("v", (6, 8, 1, 1))):
        proto = ir.to_proto(build(IMAGE, OUT, CHAIN).model)
        proto.graph.input.append(output(name, *shape))
        before = Program.from_model(ir.from_proto(proto))
        assert equalized(before, integers()).steps[-1].changes == 0


def test_what_a_body_reads_stays(build: Any, equalized: Any, integers: Any) -> None:
    reads = (
        " yes = Constant<value = bool {1}>() z = If (yes) <then_branch = one () =>"
        " (float[1,8,6,6] p0) { p0 = Sigmoid(i) }, else_branch = other () =>"
        " (float[1,8,6,6] p1) { p1 = Tanh(h0) }> y = Conv(j, v)"
    )
    nodes = CHAIN.split("y =")[0] + "h0 = Conv(i, t) j = Relu(h0) " + reads
    before = edited(
        build(IMAGE, OUT, nodes), lambda m: m.graph.output.append(output("z", 1, 8, 6, 6))
    )
    after = equalized(before, integers())
    assert after.steps[-1].changes == 0


FUNCTION = """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
g (float[1,4,6,6] x) => (float[1,6,6,6] y) <float[8,4,1,1] g0 = {@}, float[6,8,1,1] v = {@}> {
  a = Conv(x, g0) i = own.Twice(a) y = Conv(i, v) }
<opset_import: ["" : 20], domain: "own"> Twice (p) => (r) { q = Abs(p) r = Softplus(q) }"""


def test_functions_are_not_seen_through(build: Any, equalized: Any, integers: Any) -> None:
    plain = build(IMAGE, OUT, "a = Conv(x, g0) i = Relu(a) y = Conv(i, v)")
    arrays = {k: v.const_value.numpy() for k, v in plain.model.graph.initializers.items()}
    text = FUNCTION
    for name in ("g0", "v"):
        text = text.replace("@", ", ".join(f"{x:.6f}" for x in arrays[name].ravel()), 1)
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    after = equalized(Program.from_model(ir.from_proto(proto)), integers())
    assert after.steps[-1].changes == 0
    assert equalized(plain, integers()).steps[-1].changes == 2


def test_nodes_on_the_host(build: Any, equalized: Any, scaled: Any, integers: Any) -> None:
    """Their weights are in float and take any factor; what the device codes decides on it."""
    before = build(IMAGE, OUT, CHAIN)
    node = next(n for n in before.model.graph if n.op_type == "Conv")
    node.metadata_props[PLACE] = "for a test"
    assert sorted(scaled(equalized(before, integers()))) == ["b", "v", "w"]
    for node in before.model.graph:
        node.metadata_props[PLACE] = "for a test"
    assert equalized(before, integers()).steps[-1].changes == 0


def test_weights_of_constant_nodes(build: Any, equalized: Any, integers: Any) -> None:
    def change(model: onnx.ModelProto) -> None:
        for tensor in reversed(model.graph.initializer):
            node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.node.insert(0, node)
        del model.graph.initializer[:]

    after = equalized(edited(build(IMAGE, OUT, CHAIN), change), integers())
    assert after.steps[-1].changes == 3
    assert [n.op_type for n in after.model.graph] == ["Conv", "Relu", "Conv"]
    names = sorted(after.model.graph.initializers)
    assert names == ["b_equalized", "v_equalized", "w_equalized"]


def test_silent_channels(build: Any, equalized: Any, scaled: Any, integers: Any) -> None:
    """A channel that is always zero, one that nothing reads, and both."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor).copy()
            if tensor.name == "v":
                array[:, [1, 2]] = 0
            else:
                array[[0, 1]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    after = equalized(edited(build(IMAGE, OUT, CHAIN), change), integers())
    arrays = {k: v.const_value.numpy() for k, v in after.model.graph.initializers.items()}
    assert sorted(arrays) == ["b_equalized", "v_equalized", "w_equalized"]
    assert all(np.isfinite(array).all() for array in arrays.values())
    # Nothing is known of such a channel: it must not be blown up either.
    assert np.abs(arrays["v_equalized"][:, 0]).max() < 1e3
    assert np.abs(arrays["w_equalized"][2]).max() < 1e3


def test_all_zero(build: Any, equalized: Any, integers: Any) -> None:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            array = np.zeros_like(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    assert equalized(edited(build(IMAGE, OUT, CHAIN), change), integers()).steps[-1].changes == 0


def test_nothing_in_a_tensor(build: Any, equalized: Any, integers: Any) -> None:
    before = build("float[0,4,6,6]", "float[0,6,6,6]", CHAIN)
    assert equalized(before, integers()).steps[-1].changes == 0


def test_unknown_shapes_are_left_alone(build: Any, integers: Any) -> None:
    before = build("float[batch,4,6,6]", "float[batch,6,6,6]", CHAIN)
    assert run(before, [Equalize({})], integers()).steps[-1].changes == 0
    assert observed(before.model.clone(), integers().int_scheme) == {}


def test_operators_of_old_opsets(parse: Any, equalized: Any, integers: Any, build: Any) -> None:
    """Ends, paddings and axes were attributes once."""
    weights = {k: v.const_value.numpy() for k, v in
               build(IMAGE, OUT, CHAIN).model.graph.initializers.items()}  # fmt: skip
    text = (
        "(float[1,4,6,6] x, float[8,4,3,3] w, float[8] b, float[6,8,1,1] v) => (float[1,6,@,7] y)"
        " { a = Conv<pads=[1,1,1,1]>(x, w, b) i = # y = Conv(i, v) }"
    )
    for node, rows, changes in (
        ("Clip<min=0.0, max=6.0>(a)", 6, 0),
        ("Clip<min=0.0>(a)", 6, 3),
        ("Pad<pads=[0,0,0,0,0,0,1,1]>(a)", 7, 3),
        ("Pad<pads=[0,0,0,0,0,0,1,1], value=1.0>(a)", 7, 0),
        ("Pad<pads=[0,0,0,0,0,0,1,1], mode='edge'>(a)", 7, 3),
        ("Pad<pads=[0,1,0,0,0,-1,1,1]>(a)", 7, 0),
    ):
        body = text.replace("#", node.replace("'", '"')).replace("@,7", f"{rows},{rows}")
        after = equalized(parse(body, weights, 10), integers())
        assert after.steps[-1].changes == changes, node


def test_a_target_without_integers(build: Any, profile: Profile) -> None:
    with pytest.raises(PassError, match="no integer scheme"):
        Equalize({}).apply(build(IMAGE, OUT, CHAIN).model, profile)


def test_a_tensor_with_two_kinds_of_channels(build: Any, equalized: Any, integers: Any) -> None:
    """A convolution reads it along axis 1, a product along the last."""
    nodes = (
        "a = Conv<pads=[1,1,1,1]>(x, w, b) i = Relu(a) l0 = MatMul(i, x6) j = Conv(i, v)"
        " h0 = Relu(j) z0 = MatMul(h0, x6) n0 = Conv(l0, v) y = Add(n0, z0)"
    )
    step = equalized(build(IMAGE, "float[1,6,6,5]", nodes), integers()).steps[-1]
    assert (step.changes, step.rolled_back) == (0, "")


def test_silent_channels_do_not_break_invariance(parse: Any, equalized: Any, integers: Any) -> None:
    """A channel that a Relu keeps silent has weights in some unit; no choice may hang on it."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(6, 4, 1, 1)), rng.normal(size=(6, 1, 3, 3))
    third, bias = rng.normal(size=(6, 6, 1, 1)), np.zeros(6)
    bias[2] = -100.0  # silent on every input there is
    found = []
    for scale in (np.ones(6), np.exp(rng.normal(scale=1.3, size=6))):
        arrays = (first, second * scale[:, None, None, None], bias * scale)
        values = dict(zip("wdb", arrays, strict=True)) | {"v": third / scale[None, :, None, None]}
        body = (
            f"({IMAGE} x, float[6,4,1,1] w, float[6,1,3,3] d, float[6] b, float[6,6,1,1] v)"
            " => (float[1,6,6,6] y) { a = Conv(x, w) r = Relu(a)"
            " c = Conv<group=6, pads=[1,1,1,1]>(r, d, b) s = Relu(c) y = Conv(s, v) }"
        )
        made = parse(body, {name: array.astype(np.float32) for name, array in values.items()})
        last = constant(equalized(made, integers()).model.graph[-1].inputs[1])
        assert last is not None
        found.append(last / np.abs(last).max())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)  # float32 roundings of one product
