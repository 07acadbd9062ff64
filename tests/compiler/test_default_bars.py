"""What the default policy holds beside the answers: codes, the artifact's memory, the reference."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import answers, samples
from npuc.layers import expected
from npuc.passes.base import run
from npuc.passes.quantize import Quantize
from npuc.policy import EXCESS, OTHER, Policy
from npuc.profile import Profile
from npuc.program import Program, Tensors
from npuc.progress import Silent
from npuc.runners import OnnxRunner
from npuc.validate import Validator

CPU = Profile.load("cpu").at("int8")
SEEN = (-3.0, 3.0)
TEXT = """<ir_version: 10, opset_import: ["" : 20]>
net (float[batch, 24] x) => (float[batch, 8] y)
{ g = MatMul (x, a)  h = Relu (g)  y = MatMul (h, b) }"""


def program() -> Program:
    random = np.random.default_rng(3)
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in (("a", (24, 16)), ("b", (16, 8))):
        weight = random.uniform(-0.5, 0.5, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def calls(count: int = 8, batch: int = 4) -> tuple[Tensors, ...]:
    random = np.random.default_rng(5)
    return tuple({"x": random.uniform(-3, 3, (batch, 24)).astype(np.float32)} for _ in range(count))


def quantized(ranges: dict[str, tuple[float, float]]) -> Program:
    inner = OnnxRunner(program(), extra=["h"])
    high = max(float(inner(call)["h"].max()) for call in calls())
    return run(program(), [Quantize({"h": (0.0, high), **ranges})], CPU)


def faults(coded: Program) -> tuple[str, ...]:
    assert CPU.int_scheme is not None
    found = expected.costs(program(), coded, calls(), CPU.int_scheme)
    return (*expected.misread(coded), *Policy().coding(found))


def edited(coded: Program, name: str, change: Any) -> Program:
    copy = coded.clone()
    value = copy.model.graph.initializers[name]
    assert value.const_value is not None
    array = np.asarray(change(value.const_value.numpy()))
    value.const_value = ir.tensor(array.astype(value.const_value.numpy().dtype), name=name)
    return copy


def test_sound_codes_cost_what_they_should() -> None:
    coded = quantized({"x": SEEN})
    assert CPU.int_scheme is not None
    found = expected.costs(program(), coded, calls(), CPU.int_scheme)
    assert {c.op for c in found} == {"", "MatMul"} and len(found) == 4
    assert all(0.4 < c.found / c.expected < 2.5 for c in found)
    assert faults(coded) == ()


def test_what_is_not_finite_is_left_out() -> None:
    """A row of infinities is a row less: no range is made of it, and no error is measured in it."""
    assert CPU.int_scheme is not None
    odd = [{"x": np.concatenate([c["x"], np.full((1, 24), np.inf, np.float32)])} for c in calls()]
    both = (
        expected.costs(program(), quantized({"x": SEEN}), given, CPU.int_scheme)
        for given in (calls(), odd)
    )
    for plain, found in zip(*both, strict=True):
        assert found.found == pytest.approx(plain.found, rel=1e-6)
        assert found.expected == pytest.approx(plain.expected, rel=1e-6)


def test_a_range_twice_as_wide_is_borne_and_six_times_is_not() -> None:
    assert faults(quantized({"x": (-6.0, 6.0)})) == ()
    first, *_ = faults(quantized({"x": (-18.0, 18.0)}))
    assert first.startswith("codes of x: SQNR") and f"> {EXCESS:g} times the error" in first


def test_a_range_that_clips_is_found() -> None:
    assert any(text.startswith("codes of x: ") for text in faults(quantized({"x": (-1.5, 1.5)})))


def test_scales_of_the_neighbouring_channel_are_found() -> None:
    coded = edited(quantized({"x": SEEN}), "b_scale", lambda a: a * np.arange(1, 9) / 3)
    (text,) = faults(coded)
    assert text.startswith("MatMul ") and "SQNR" in text


def test_codes_read_with_another_zero_point_are_named() -> None:
    coded = quantized({"x": SEEN})
    reader = next(n for n in coded.model.graph if n.outputs[0].name == "x_dequantized")
    zero = ir.tensor(np.array(reader.inputs[2].const_value.numpy() + 1), name="other")  # type: ignore[union-attr]
    value = ir.Value(name="other", type=reader.inputs[2].type, shape=ir.Shape(()), const_value=zero)  # type: ignore[union-attr]
    coded.model.graph.register_initializer(value)
    reader.replace_input_with(2, value)
    assert expected.misread(coded)[0].startswith("codes of x: written with zero point ")


class Artifact:
    """Answers like a program, and remembers: `keep` of the answer before is added."""

    name = "artifact"

    def __init__(self, source: Program, keep: float) -> None:
        self.runner, self.keep, self.before = OnnxRunner(source), keep, np.zeros(())

    def __call__(self, inputs: Tensors) -> Tensors:
        found = self.runner(inputs)["y"]
        answer = found + np.float32(self.keep) * self.before
        self.before = found
        return {"y": answer.astype(np.float32)}


def validator() -> Validator:
    found = Validator(program(), answers.from_program(program(), calls()), Policy(), Silent())
    found.export(None)
    return found


@pytest.mark.parametrize(("keep", "state"), [(0.0, "ok"), (1e-7, "failed")])
def test_an_artifact_that_remembers_is_found_below_all_bars(keep: float, state: str) -> None:
    found = validator()
    found.artifact(Artifact(program(), keep), program(), loss=True)
    row = found.rows[-1]
    assert row.state == state
    assert all("asked again" in text for text in row.faults)


def recorded(moved: float, **about: Any) -> Sequence[str]:
    """Return the rows of a check whose recorded answers are off by a share of the peak."""
    reference = answers.from_program(program(), calls())
    others = tuple({"y": a["y"] * np.float32(1 + moved)} for a in reference.outputs)
    wide = {n: replace(f, max_abs=moved * f.peak + f.max_abs) for n, f in reference.floor.items()}
    print_of = {**reference.fingerprint, **about}
    found = Validator(
        program(), replace(reference, outputs=others, floor=wide, fingerprint=print_of),
        Policy(), Silent(),
    )  # fmt: skip
    found.export(OnnxRunner(program()))
    return [f"{row.stage} {row.state}" for row in found.rows]


def test_a_reference_that_is_not_the_originals_answer_is_found() -> None:
    """Its noise floor is its own distance from float64, so the bar of noise says nothing."""
    assert recorded(0.0) == ["exported ok"]
    assert recorded(1e-3) == ["reference failed", "exported ok"]


def test_what_computed_in_less_than_float32_may_differ_as_much() -> None:
    about = {"device": "some GPU", "cuda": "13.0", "tf32_matmul": True}
    assert recorded(1e-3, **about) == ["exported ok"]
    assert OTHER * np.finfo(np.float32).eps < 1e-3


def test_a_second_size_is_filled_with_other_samples() -> None:
    given = calls(count=3, batch=1)
    _, (larger,) = samples.variants(given, program())
    assert np.array_equal(larger["x"], np.concatenate([given[0]["x"], given[1]["x"]]))
