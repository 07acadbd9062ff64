"""What a device cannot run is marked once, and every later pass leaves it as it is."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import partition
from npuc.passes import numerics
from npuc.passes.base import run
from npuc.passes.place import BETWEEN, Place
from npuc.passes.quantize import Quantize
from npuc.profile import FloatFormat, Profile
from npuc.program import Program, Tensors
from npuc.quantization.calibrate import collect
from npuc.runners import OnnxRunner

TEXT = """<ir_version: 10, opset_import: ["": 20]>
net (float[2, 4] x) => (float[2, 4] y)
<float[4, 4] w1, float[4, 4] w2>
{
  [first] a = MatMul (x, w1)
  [odd] b = Erf (a)
  [between] c = Relu (b)
  [odder] d = Erf (c)
  [last] y = MatMul (d, w2)
}"""
FACTS = """
name = "chip"
title = "Chip"
[sources]
s = "someone"
[facts]
precisions = { value = ["int8", "float"], grade = "P", source = "s" }
"ops.supported" = { value = ["MatMul", "Relu"], grade = "P", source = "s" }
"int8.ops" = { value = ["MatMul", "Relu"], grade = "P", source = "s" }
"int8.weight_range" = { value = [-127, 127], grade = "P", source = "s" }
"int8.weight_per_channel" = { value = true, grade = "P", source = "s" }
"int8.activation_range" = { value = [-128, 127], grade = "P", source = "s" }
"int8.activation_symmetric" = { value = false, grade = "P", source = "s" }
"int8.whole" = { value = true, grade = "P", source = "s" }
"int8.requantize" = { value = "tflite-double", grade = "P", source = "s" }
"int8.elementwise" = { value = "tflite", grade = "P", source = "s" }
"""
OPEN = FACTS.replace('"ops.supported"', '"compiler.accepts"')


def net(named: bool = True) -> Program:
    """Return the model with seeded weights; nodes without names where asked for."""
    proto = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(1)
    for name in ("w1", "w2"):
        array = (rng.normal(size=(4, 4)) / 2).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = node.name if named else ""
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def calls() -> list[Tensors]:
    rng = np.random.default_rng(2)
    return [{"x": rng.normal(size=(2, 4)).astype(np.float32)} for _ in range(4)]


@pytest.mark.parametrize("named", [True, False])
def test_unsupported_nodes_and_what_lies_between_them_are_marked(named: bool) -> None:
    program = run(net(named), [Place()], Profile.parse(FACTS))
    hosted = {n.op_type: partition.on_host(n) for n in partition.host_nodes(program.model)}
    assert set(hosted) == {"Erf", "Relu"} and hosted["Relu"] == BETWEEN
    step = program.steps[-1]
    assert step.changes == 3 and len(step.refusals) == 3
    assert run(program, [Place()], Profile.parse(FACTS)).serialized() == program.serialized()


def test_nothing_is_marked_where_no_list_is_public() -> None:
    assert run(net(), [Place()], Profile.parse(OPEN)).steps[-1].changes == 0


def test_quantization_and_integers_leave_the_host_alone() -> None:
    """Both products become integers; Erf computes in float32 on what comes out of the codes."""
    profile = Profile.parse(FACTS)
    program = run(net(), [Place()], profile)
    scheme = profile.int_scheme
    assert scheme is not None
    program = run(program, [Quantize(collect(program, calls(), scheme))], profile)
    program = run(program, numerics(profile, "int8", None), profile)
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("MatMulInteger") == 2 and kinds.count("Erf") == 2
    nodes = {node.name: node for node in program.model.graph}
    fed = nodes["odd"].inputs[0]
    assert fed is not None and fed.producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
    relu = nodes["between"].inputs[0]
    assert relu is nodes["odd"].outputs[0]
    want = OnnxRunner(net())(calls()[0])["y"]
    got = OnnxRunner(program)(calls()[0])["y"]
    # Four codings of 8 bits, each off by half a step of a range of about 4.
    assert np.abs(got - want).max() < 4 * 4 / 255


def test_the_host_computes_in_float32_and_its_results_are_rounded_as_they_come_back() -> None:
    profile = Profile.parse(FACTS)
    program = run(net(), [Place()], profile)
    program = run(program, numerics(profile, "float", FloatFormat(8, 7)), profile)
    nodes = {node.name: node for node in program.model.graph}
    inner = nodes["between"].inputs[0]
    assert inner is nodes["odd"].outputs[0], "rounded inside the host's part"
    back = nodes["last"].inputs[0]
    assert back is not None and back.producer().op_type == "RoundTo_e8m7"  # type: ignore[union-attr]
    to_host = nodes["odd"].inputs[0]
    assert to_host is not None and to_host.producer().op_type == "RoundTo_e8m7"  # type: ignore[union-attr]
