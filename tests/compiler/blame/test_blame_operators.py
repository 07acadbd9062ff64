"""The operator: equal inputs, unequal results, in every kind of step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import pytest

from npuc import blame
from npuc.blame import siblings, structure
from npuc.blame.gaps import Cut, Gap, born, taps, tensors_of
from npuc.passes.equalize import Equalize
from npuc.passes.fix_shapes import FixShapes
from npuc.passes.graphs import initializer
from npuc.passes.quantize import Quantize
from npuc.program import Program, Tensors
from npuc.targets import tvm


def conv(model: ir.Model, index: int) -> ir.Node:
    """Return the nth convolution."""
    return [n for n in model.graph if n.op_type == "Conv"][index]


def weight(index: int, change: Callable[[Any], Any], part: int = 1) -> Callable[[ir.Model], None]:
    """Return an edit of a convolution's weight or bias, coded or not."""

    def edit(model: ir.Model) -> None:
        value = conv(model, index).inputs[part]
        assert value is not None
        maker = value.producer()
        held = value if maker is None else maker.inputs[0]
        assert held is not None and held.const_value is not None
        array = change(np.array(held.const_value.numpy()))
        held.const_value = ir.tensor(array, name=held.name)

    return edit


def test_a_weight_that_a_pass_changed_names_its_convolution(blocks: Path, broken: Any) -> None:
    with broken(FixShapes, weight(1, lambda a: a * 1.01)):
        found = blame.find(blocks, target="cpu", precision="float")
    # Normalization is folded: the convolution makes its result.
    assert (found.op_type, found.place.split()[-1]) == ("Conv", "first") or "norm" in found.place
    assert found.why_not == ""


def test_an_operator_that_is_dropped_is_named_though_it_is_gone(blocks: Path, broken: Any) -> None:
    def dropped(model: ir.Model) -> None:
        relu = next(n for n in model.graph if n.op_type == "Relu")
        given = relu.inputs[0]
        assert given is not None
        relu.outputs[0].replace_all_uses_with(given)
        model.graph.remove(relu, safe=True)

    seen = {"done": False}

    def once(model: ir.Model) -> None:
        if not seen["done"]:
            seen["done"] = True
            dropped(model)

    with broken(FixShapes, once):
        found = blame.find(blocks, target="cpu", precision="float")
    assert (found.step, found.op_type, found.tensor) == ("fix-shapes", "Relu", "relu")


def test_a_scale_that_is_wrong_names_the_coded_weight(blocks: Path, broken: Any) -> None:
    def halved(model: ir.Model) -> None:
        value = conv(model, 2).inputs[1]
        decoder = None if value is None else value.producer()
        assert decoder is not None
        scale = decoder.inputs[1]
        assert scale is not None and scale.const_value is not None
        held = scale.const_value.numpy() * 0.5
        decoder.replace_input_with(1, initializer(model.graph, "stale_scale", held))

    with broken(Quantize, halved):
        found = blame.find(blocks, target="cpu", precision="int8")
    assert (found.step, found.kind, found.op_type) == ("quantize", "quantization", "Conv")
    assert "second.weight" in found.tensor


def test_codes_read_by_another_zero_point_name_the_reader(blocks: Path, broken: Any) -> None:
    def off_by_three(model: ir.Model) -> None:
        decoder = next(
            n for n in model.graph
            if n.op_type == "DequantizeLinear" and n.inputs[0] is not None
            and n.inputs[0].producer() is not None
        )  # fmt: skip
        zero = decoder.inputs[2]
        assert zero is not None and zero.const_value is not None
        held = np.asarray(zero.const_value.numpy() + 3).astype(zero.const_value.numpy().dtype)
        decoder.replace_input_with(2, initializer(model.graph, "wrong_zero", held))

    with broken(Quantize, off_by_three):
        found = blame.find(blocks, target="cpu", precision="int8")
    assert (found.step, found.op_type) == ("quantize", "DequantizeLinear")
    assert "than it was written with" in found.text()


def test_what_only_a_compile_sees_is_blamed_as_well(
    blocks: Path, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blame does not find a cause by itself, but a compile fails: its word counts."""
    from npuc.blame.judge import Judge

    monkeypatch.setattr(Judge, "coding", lambda self, quantized=None: ((), ()))
    clipped = weight(2, lambda a: np.clip(a, -90, 90))
    with broken(Quantize, clipped):
        found = blame.find(blocks, target="cpu", precision="int8")
    assert (found.step, found.kind) == ("quantize", "quantization")


TWICE = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[4] x) => (float[4] p, float[4] q)
<float h = {0.5}, float k = {0.5}> { %s p = Add(a, a) %s q = Add(b, b) }
"""


def test_a_rewriting_is_held_against_others_of_its_kind() -> None:
    good = Program.from_model(
        ir.from_onnx_text(
            '<ir_version: 9, opset_import: ["" : 20]> g (float[4] x) => (float[4] p, float[4] q)'
            " { p = Softplus(x) q = Softplus(x) }"
        )
    )
    right, wrong = "a = Mul(x, h)", "b0 = Mul(x, k) b = Neg(b0)"
    bad = Program.from_model(ir.from_onnx_text(TWICE % (right, wrong)))
    for program in (good, bad):
        for node in program.model.graph:
            node.name = f"node_{node.outputs[0].name}"
    cut = Cut(bad, ["p", "q"])
    gaps = {"p": Gap("p"), "q": Gap("q", 1.0, 1.0)}
    found = siblings.unlike(cut, "q", gaps, structure.of_program(good), 1e-10)
    assert found is not None and (found.operator, found.tensor) == ("node_b", "b0")
    alike = Program.from_model(ir.from_onnx_text(TWICE % (right, "b = Mul(x, k)")))
    same = siblings.unlike(Cut(alike, ["p", "q"]), "q", gaps, structure.of_program(good), 1e-10)
    assert same is None


def test_a_channel_equalized_on_one_side_alone_is_found_among_scaled_ones(
    blocks: Path, broken: Any
) -> None:
    def one_side(model: ir.Model) -> None:
        weight(0, lambda a: a * np.where(np.arange(8) == 3, 0.5, 1).reshape(8, 1, 1, 1))(model)

    with broken(Equalize, one_side):
        found = blame.find(blocks, target="cpu", precision="int8")
    assert found.step == "equalize" and found.rolled_back
    assert found.op_type in ("Conv", "Relu", "Add")


def test_loss_that_is_spread_has_no_single_operator(blocks: Path, broken: Any) -> None:
    def all_of_them(model: ir.Model) -> None:
        for index in range(3):
            weight(index, lambda a: np.clip(a, -20, 20))(model)

    from npuc.policy import Policy

    with broken(Quantize, all_of_them):
        found = blame.find(blocks, target="cpu", precision="int8", policy=Policy(sqnr_db=20))
    assert found.step == "quantize" and found.found


@pytest.fixture
def lowered_wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[ir.Model], None]], None]:
    """Let the compiler make code for another graph than it was given."""

    def patch(edit: Callable[[ir.Model], None]) -> None:
        plain = tvm.lower

        def lower(program: Program, **options: Any) -> Any:
            copy = program.clone()
            edit(copy.model)
            return plain(copy, **options)

        monkeypatch.setattr(tvm, "lower", lower)

    return patch


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_an_operator_that_is_lowered_wrong_is_found_by_lowering_parts(
    blocks: Path, precision: str, lowered_wrong: Any
) -> None:
    def other_axis(model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "Softmax":
                node.attributes.pop("axis", None)
                node.attributes.add(ir.convenience.convert_attributes({"axis": 2})[0])

    lowered_wrong(other_axis)
    found = blame.find(blocks, target="cpu", precision=precision)
    assert (found.step, found.kind, found.op_type) == ("artifact", "lowering", "Softmax")
    assert found.why_not == ""


def _answers(make: Callable[[Tensors, int], Tensors]) -> Any:
    class Wrong:
        def __init__(self, inner: Any) -> None:
            self.inner, self.name, self.calls = inner, inner.name, 0

        def __call__(self, inputs: Tensors) -> Tensors:
            self.calls += 1
            return make(self.inner(inputs), self.calls)

    plain = tvm.load
    return mock.patch.object(tvm, "load", lambda files, program: Wrong(plain(files, program)))


def test_a_runtime_that_is_wrong_whatever_runs_names_no_operator(blocks: Path) -> None:
    def scaled(answer: Tensors, calls: int) -> Mapping[str, Any]:
        return {name: array * np.float32(1.1) for name, array in answer.items()}

    with _answers(scaled):
        found = blame.find(blocks, target="cpu", precision="float")
    assert found.step == "artifact" and found.operator == ""
    assert "no single operator" in found.why_not


def test_an_answer_that_changes_when_asked_again_is_a_fault(blocks: Path) -> None:
    def drifting(answer: Tensors, calls: int) -> Mapping[str, Any]:
        grown = np.float32(1e-3 * max(0, calls - 12))
        return {name: array + grown for name, array in answer.items()}

    with _answers(drifting):
        found = blame.find(blocks, target="cpu", precision="float")
    assert found.step == "artifact"


def chain(second: float) -> Program:
    """x → Neg a → Mul(a, c) b → Relu y."""
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[4] x) => (float[4] y)'
        " <float c = {1.0}> { a = Neg(x) b = Mul(a, c) y = Relu(b) }"
    )
    held = model.graph.initializers["c"]
    held.const_value = ir.tensor(np.float32(second), name="c")
    return Program.from_model(model)


def test_what_is_born_stays_where_it_is_born() -> None:
    good, bad = chain(1.0), chain(2.0)
    cut = Cut(bad, ["a", "b", "y"])
    calls = [{"x": np.array([-1, -2, 3, 4], np.float32)}]
    runs: list[int] = []
    found = born(taps(good), cut, calls, {}, runs.append)
    assert {n: g.ratio > 0 for n, g in found.items()} == {"a": False, "b": True, "y": False}
    assert runs == [2]


def test_tensors_are_taken_out_in_parts_of_bounded_size() -> None:
    good, bad = chain(1.0), chain(2.0)
    cut = Cut(bad, ["a", "b", "y"])
    calls = [{"x": np.array([-1, -2, 3, 4], np.float32)}]
    runs: list[int] = []
    found = born(taps(good), cut, calls, dict.fromkeys("aby", 1 << 28), runs.append)
    assert runs == [2, 2, 2] and found["b"].ratio == pytest.approx(1.0)
    assert tensors_of(good) == {"x", "a", "b", "y"}


@pytest.mark.parametrize(
    ("right", "got", "text"),
    [
        (np.ones(3, np.float32), np.ones(3, np.float32), "equal"),
        (np.ones(3, np.float32), np.ones(4, np.float32), "shape (4,), expected (3,)"),
        (np.ones(1, np.float32), np.array([np.nan], np.float32), "1 values are NaN"),
        (np.ones(1, np.float32), np.array([1.1], np.float32), "SQNR 20.0 dB"),
    ],
)
def test_gaps_say_what_no_number_can_excuse(right: Any, got: Any, text: str) -> None:
    assert text in Gap("t").plus(right, got).text


def test_codes_are_compared_around_their_mean() -> None:
    codes = np.array([127, 128, 129, 128], np.uint8)
    other = np.array([128, 128, 129, 128], np.uint8)
    assert Gap("t").plus(codes, other).ratio == pytest.approx(0.5)
