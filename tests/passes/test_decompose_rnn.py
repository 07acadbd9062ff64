"""decompose-rnn: the unrolled steps answer like ONNX Runtime's recurrent operators."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from npuc.errors import PassError
from npuc.passes.base import run
from npuc.passes.decompose_rnn import DecomposeRnn
from npuc.profile import Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

PROFILE = Profile("test", "Test", {}, {})
RECURRENT = {"LSTM", "GRU", "RNN"}
# Sums of at most 13 float32 products, in another order than ONNX Runtime's fused kernel, feed
# saturating functions for 5 steps: a few units in the last place of values below 1.
NOISE = 1e-6


@dataclass
class Case:
    """A recurrent model of hidden size 6 on 5 steps of 7 features."""

    op: str
    direction: str = "forward"
    bias: bool = True
    states: bool = True
    steps: int | str = 5
    lengths: list[int] | None = None
    outputs: tuple[str, ...] = ("Y", "Y_h", "Y_c")
    attributes: dict[str, Any] = field(default_factory=dict)
    batch: int | str = "batch"
    opset: int = 20
    peepholes: bool = False

    def build(self) -> Program:
        rng = np.random.default_rng(7)
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[self.op]
        two = 2 if self.direction == "bidirectional" else 1

        def weight(name: str, *shape: int) -> onnx.TensorProto:
            return onnx.numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), name)

        weights = [weight("W", two, gates * 6, 7), weight("R", two, gates * 6, 6)]
        inputs = ["X", "W", "R", "", "", "", "", ""]
        ports = [helper.make_tensor_value_info("X", 1, [self.steps, self.batch, 7])]
        if self.bias:
            weights.append(weight("B", two, 2 * gates * 6))
            inputs[3] = "B"
        if self.lengths is not None:
            weights.append(onnx.numpy_helper.from_array(np.array(self.lengths, np.int32), "L"))
            inputs[4] = "L"
        if self.states:
            inputs[5] = "h"
            ports.append(helper.make_tensor_value_info("h", 1, [two, self.batch, 6]))
            if self.op == "LSTM":
                inputs[6] = "c"
                ports.append(helper.make_tensor_value_info("c", 1, [two, self.batch, 6]))
        if self.peepholes:
            weights.append(weight("P", two, 18))
            inputs[7] = "P"
        names = [n if n in self.outputs else "" for n in ("Y", "Y_h", "Y_c")]
        names = names if self.op == "LSTM" else names[:2]
        while inputs[-1] == "":
            inputs.pop()
        node = helper.make_node(
            self.op,
            inputs,
            names,
            name="cell",
            hidden_size=6,
            direction=self.direction,
            **self.attributes,
        )
        outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names if n]
        graph = helper.make_graph([node], "g", ports, outs, weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
        )
        model = onnx.shape_inference.infer_shapes(model)
        return Program.from_model(ir.from_proto(model))


def ops(program: Program) -> set[str]:
    return {node.op_type for node in program.model.graph}


def feed(program: Program, batch: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        port.name: rng.normal(size=[batch if isinstance(d, str) else d for d in port.shape]).astype(
            np.float32
        )
        for port in program.inputs
    }


def equal(before: Program, after: Program, batches: tuple[int, ...] = (1, 3)) -> None:
    left = {n.op_type for n in after.model.graph.all_nodes()} & {"LSTM", "GRU", "RNN"}
    assert not left and after.steps[-1].changes > 0  # a pass that did nothing is equal too
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    for batch in batches:
        values = feed(before, batch)
        expected, got = OnnxRunner(before)(values), OnnxRunner(after)(values)
        assert list(expected) == list(got)
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=NOISE)


EVERY = [
    Case(op, direction, bias, states, attributes=attributes)
    for op, direction, bias, states in itertools.product(
        ("LSTM", "GRU", "RNN"),
        ("forward", "reverse", "bidirectional"),
        (True, False),
        (True, False),
    )
    for attributes in (
        [{"linear_before_reset": 0}, {"linear_before_reset": 1}] if op == "GRU" else [{}]
    )
]


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_answers_like_the_operator(case: Case) -> None:
    before = case.build()
    after = run(before, [DecomposeRnn()], PROFILE)
    assert after.steps[-1].changes == 1
    assert not ops(after) & RECURRENT
    assert after.outputs == before.outputs
    equal(before, after)


@pytest.mark.parametrize("outputs", [("Y",), ("Y_h",), ("Y_c",), ("Y_h", "Y_c")], ids="-".join)
def test_any_subset_of_outputs(outputs: tuple[str, ...]) -> None:
    before = Case("LSTM", "bidirectional", outputs=outputs).build()
    after = run(before, [DecomposeRnn()], PROFILE)
    assert after.steps[-1].changes == 1 and not ops(after) & RECURRENT
    equal(before, after)


def test_one_step() -> None:
    before = Case("GRU", "bidirectional", steps=1).build()
    after = run(before, [DecomposeRnn()], PROFILE)
    assert after.steps[-1].changes == 1 and not ops(after) & RECURRENT
    equal(before, after)


def test_full_sequence_lengths_are_nothing() -> None:
    before = Case("LSTM", lengths=[5, 5, 5], batch=3).build()
    after = run(before, [DecomposeRnn()], PROFILE)
    assert after.steps[-1].changes == 1 and not ops(after) & RECURRENT
    equal(before, after, (3,))


def test_activations_are_per_direction() -> None:
    names = ["Relu", "Tanh", "Softsign", "Sigmoid", "Softplus", "Tanh"]
    before = Case("LSTM", "bidirectional", attributes={"activations": names}).build()
    after = run(before, [DecomposeRnn()], PROFILE)
    assert after.steps[-1].changes == 1 and not ops(after) & RECURRENT
    equal(before, after)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_batch_first_is_time_first_transposed(op: str) -> None:
    # ONNX Runtime's CPU kernels refuse layout 1, so the answer is that of the transposed model.
    first = Case(op, "bidirectional").build()
    node = first.model.graph[0]
    second = first.clone()
    cell = second.model.graph[0]
    cell.attributes["layout"] = ir.AttrInt64("layout", 1)
    for port in (*second.model.graph.inputs, *cell.outputs):
        if port.shape is not None:
            order = (2, 0, 1, 3) if port.name == "Y" else (1, 0, 2)
            port.shape = ir.Shape([port.shape[i] for i in order])
    assert node.attributes.get_int("layout", 0) == 0
    after = run(Program.from_model(second.model), [DecomposeRnn()], PROFILE)
    values = feed(first, 3)
    expected = OnnxRunner(first)(values)
    got = OnnxRunner(after)({name: v.swapaxes(0, 1) for name, v in values.items()})
    for name, value in expected.items():
        order = (2, 0, 1, 3) if name == "Y" else (1, 0, 2)
        np.testing.assert_allclose(got[name], value.transpose(order), rtol=0, atol=NOISE)


REFUSED = {
    "sequence length is not a number": Case("LSTM", steps="time"),
    "the limit is 4": Case("LSTM"),
    "not all the full 5 steps": Case("LSTM", lengths=[5, 4, 5], batch=3),
    "peepholes": Case("LSTM", peepholes=True),
    "attribute clip": Case("GRU", attributes={"clip": 1.0}),
    "couples the input and forget": Case("LSTM", attributes={"input_forget": 1}),
    "activation HardSigmoid": Case("RNN", attributes={"activations": ["HardSigmoid"]}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason: str) -> None:
    limit = 4 if "limit" in reason else 1024
    after = run(REFUSED[reason].build(), [DecomposeRnn(longest=limit)], PROFILE)
    step = after.steps[-1]
    assert step.changes == 0
    assert [r.node for r in step.refusals] == ["cell"]
    assert reason in step.refusals[0].reason


def test_refuses_weights_that_are_inputs() -> None:
    program = Case("RNN").build()
    weight = program.model.graph.initializers["W"]
    program.model.graph.inputs.append(weight)
    after = run(Program.from_model(program.model), [DecomposeRnn()], PROFILE)
    assert "weight W ('W') is not a constant" in after.steps[-1].refusals[0].reason


def test_old_opset_is_an_error() -> None:
    with pytest.raises(PassError, match="needs opset 13"):
        run(Case("RNN", opset=12).build(), [DecomposeRnn()], PROFILE)


def test_second_run_changes_nothing() -> None:
    once = run(Case("LSTM", "bidirectional").build(), [DecomposeRnn()], PROFILE)
    assert run(once, [DecomposeRnn()], PROFILE).steps[-1].changes == 0
