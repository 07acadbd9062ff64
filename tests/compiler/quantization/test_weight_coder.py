"""Weights alone in codes, chosen one after the other: what that saves, and what it may not do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import models
from npuc.errors import UsageError
from npuc.export import export
from npuc.load import load
from npuc.passes import standard
from npuc.passes.base import run
from npuc.passes.lower_opset import LowerOpset
from npuc.passes.qdq.groups import nearest
from npuc.passes.qdq.matrices import matrices
from npuc.passes.weight_only import WeightOnly
from npuc.pipeline import ANY
from npuc.profile import Fact, Profile, WeightScheme
from npuc.program import Program, Tensors
from npuc.quantization import compensate
from npuc.quantization.compensate import partner
from npuc.quantization.quantizer import Choices
from npuc.quantization.weight_coder import WeightCoder
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
CALLS, HELD_OUT = 64, 100


def profile(group: int = 32, symmetric: bool = False, wide: float = 0.0) -> Profile:
    """Return a device with 4-bit weights in groups."""
    facts = {"group": group, "symmetric": symmetric, "wide": wide}
    return Profile("t", "T", {f"w4a16.{k}": Fact(v, "A", "t") for k, v in facts.items()}, {})


def chain(residual: bool, seed: int = 0) -> Program:
    """Return x → Gemm → Relu → Gemm (→ + x) → Gemm with fixed shapes."""
    rng = np.random.default_rng(seed)
    added = "s = Add (x, c)" if residual else "s = Identity (c)"
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g
    (float[16, 40] x) => (float[16, 12] y)
    {{ a = Gemm (x, w0, b0)  b = Relu (a)  c = Gemm (b, w1, b1)  {added}  y = Gemm (s, w2, b2) }}"""
    proto = onnx.parser.parse_model(text)
    for number, shape in enumerate([(40, 64), (64, 40), (40, 12)]):
        weight = rng.normal(size=shape) / np.sqrt(shape[0])
        for name, array in ((f"w{number}", weight), (f"b{number}", rng.normal(size=shape[1:]))):
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(array.astype(np.float32), name)
            )
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{number}"
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def calls(count: int, seed: int) -> list[Tensors]:
    """Return correlated inputs with a mean of their own, as activations have."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(12, 40))
    return [{"x": (rng.normal(size=(16, 12)) @ mix + 0.5).astype(np.float32)} for _ in range(count)]


def sqnr(before: Program, after: Program, samples: Sequence[Tensors]) -> float:
    """Return the first output's SQNR in dB over all samples."""
    runners, (name, *_) = (OnnxRunner(before), OnnxRunner(after)), before.outputs
    pairs = [[r(call)[name.name].astype(np.float64) for r in runners] for call in samples]
    power, error = sum((a**2).sum() for a, _ in pairs), sum(((a - b) ** 2).sum() for a, b in pairs)
    return float(10 * np.log10(power / error))


@pytest.mark.parametrize("residual", [False, True])
def test_later_weights_make_good_what_earlier_ones_lost(residual: bool) -> None:
    """On samples that were not seen it is several dB better than rounding to nearest."""
    program = chain(residual)
    coded = WeightCoder(program, calls(32, 1), profile(), "w4a16").program()
    plain = run(program, [WeightOnly(WeightScheme(4, 32, False))], profile())
    held_out = calls(20, 2)
    assert sqnr(program, coded, held_out) > sqnr(program, plain, held_out) + 3


def test_the_residual_branch_and_the_bias_are_part_of_the_target() -> None:
    """The second product is added to a tensor that was there before; the first and last are not."""
    program = chain(residual=True)
    found, _ = matrices(program.model)
    assert {name: partner(readers[0]) for name, readers in found.items()} == {
        "w0": None, "w1": "x", "w2": None,
    }  # fmt: skip
    coded = WeightCoder(program, calls(32, 1), profile(), "w4a16").coded
    assert all(codes.bias is not None for codes in coded.values())


def test_a_tensor_made_of_the_product_itself_is_no_partner() -> None:
    """y = c + relu(c): what c has lost is in both."""
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[4, 8] x) => (float[4, 8] y)
    { c = Gemm (x, w)  d = Relu (c)  y = Add (c, d) }"""
    proto = onnx.parser.parse_model(text)
    weight = np.eye(8, dtype=np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    program = Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))
    ((reader,),) = matrices(program.model)[0].values()
    assert partner(reader) is None


def test_one_weight_alone_is_the_least_squares_of_its_product() -> None:
    """Nothing was lost before it: against the same codes' worth of plain rounding, less is lost.

    The error is measured on the calibration samples themselves, where the choice must not be
    worse than the nearest codes.
    """
    program = chain(residual=False)
    samples = calls(16, 1)
    ((name, readers), *_) = matrices(program.model)[0].items()
    scheme = WeightScheme(4, 32, False)
    codes = compensate.settle(program, program, readers, samples, scheme, 4)
    x = np.concatenate([call["x"] for call in samples]).astype(np.float64)
    weight, bias = readers[0].rows.astype(np.float64), np.zeros(64)
    assert codes.bias is not None and name == "w0"
    old = program.model.graph.initializers["b0"].const_value
    assert old is not None
    shift = codes.bias - old.numpy()
    own = (x @ (codes.real - weight).T + shift) ** 2
    plain = (x @ (nearest(readers[0].rows, scheme, 4).real - weight).T + bias) ** 2
    assert own.mean() < plain.mean() / 2
    # The bias takes up what is left of the mean, exactly up to float32.
    assert np.abs((x @ (codes.real - weight).T + shift).mean(axis=0)).max() < 1e-5


def test_the_widest_weights_are_those_that_lose_the_most() -> None:
    """Room for a fifth of the weights goes to what hurts the answer most for its size."""
    program = chain(residual=False)
    coder = WeightCoder(program, calls(16, 1), profile(wide=0.2), "w4a16")
    assert coder.bits == {"w0": 4, "w1": 4, "w2": 8}  # the others are too large for that room
    assert "9% of the weights have 8 bits" in coder.notes()[1]


def test_it_is_the_same_from_run_to_run() -> None:
    coders = [WeightCoder(chain(True), calls(8, 1), profile(wide=0.2), "w4a16") for _ in range(2)]
    first, second = (coder.program().serialized() for coder in coders)
    assert first == second


def test_without_samples_weights_take_the_nearest_codes() -> None:
    program = chain(residual=True)
    coded = WeightCoder(program, [], profile(), "w4a16").program()
    plain = run(program, [WeightOnly(WeightScheme(4, 32, False))], profile())
    (call,) = calls(1, 2)
    assert np.array_equal(OnnxRunner(plain)(call)["y"], OnnxRunner(coded)(call)["y"])


def test_what_is_unknown_is_said() -> None:
    with pytest.raises(UsageError, match="does not code weights alone"):
        WeightCoder(chain(True), [], profile(), "int8")
    with pytest.raises(UsageError, match="no node 'gemm_9'"):
        WeightCoder(chain(True), [], profile(), "w4a16", Choices(skip=("gemm_9",)))


def test_a_language_model_keeps_its_choices() -> None:
    """The zoo's GPT at w4a16 on the CPU target: at least 98 % of the next tokens stay the same.

    100 held-out samples are 6,400 tokens: the share's standard error is 0.2 points.
    """
    cpu, zoo = Profile.load("cpu"), models.get("text-gpt")
    exported = export(load("zoo:text-gpt"))
    program = run(exported, [*standard({"batch": 1}), LowerOpset(20)], ANY)
    (port,) = program.inputs
    data, held_out = (
        [{port.name: call[0].numpy()} for call in found]
        for found in (zoo.calibration(CALLS), zoo.samples(HELD_OUT))
    )
    coder = WeightCoder(program, data, cpu, "w4a16")
    coded = coder.program()
    runners, (out,) = (OnnxRunner(program), OnnxRunner(coded)), program.outputs
    same = [
        np.equal(*(r(call)[out.name].argmax(axis=-1) for r in runners)).mean() for call in held_out
    ]
    assert float(np.mean(same)) >= 0.98
    assert sqnr(program, coded, held_out) > 33
    held, every = (sum(f(c) for c in coder.coded.values()) for f in (_bytes, _values))
    # 4.8 bits a code; 32 of a scale and 4 of a zero point in groups of 32, and of 16 at the ends.
    assert held * 8 / every < 6.5 and len(coder.coded) == 13


def _bytes(codes: Any) -> int:
    return int(codes.nbytes)


def _values(codes: Any) -> int:
    return int(codes.codes.size)
