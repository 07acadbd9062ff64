"""Recurrences as one kernel: cells of every kind answer like ONNX Runtime's own operators."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from npuc.passes.base import run
from npuc.passes.decompose_rnn import DecomposeRnn
from npuc.profile import Profile
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner
from npuc.targets import tvm
from npuc.targets.tvm import origins, runtime

Array = np.ndarray[Any, Any]
PROFILE = Profile("test", "Test", {}, {})
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ONCE = settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes minutes of compiling
)  # fmt: skip
# Sums of at most 70 float32 products, in another order than ONNX Runtime's, feed saturating
# functions within 2 units of the last place, for at most 9 steps.
NOISE = 3e-6


@dataclass(frozen=True)
class Cell:
    """A recurrent operator and its sizes."""

    op: str
    direction: str
    after: bool
    states: bool
    steps: int
    batch: int
    hidden: int
    features: int
    seed: int

    def write(self, graph: Callable[..., Any], floats: Callable[..., Array]) -> Any:
        """Return a graph of the operator, all of whose results are outputs."""
        made, two = graph(), 2 if self.direction == "bidirectional" else 1
        wide = GATES[self.op] * self.hidden
        shapes = ((two, wide, self.features), (two, wide, self.hidden), (two, 2 * wide))
        # States shrink on the whole: they would tell rounding errors apart, more with every step.
        factor = np.float32(0.8 / np.sqrt(self.hidden))
        held = [made.constant(floats(s, self.seed + at) * factor) for at, s in enumerate(shapes)]
        inputs = [made.input(floats((self.steps, self.batch, self.features), self.seed)), *held]
        if self.states:
            shape = (two, self.batch, self.hidden)
            count = 2 if self.op == "LSTM" else 1
            inputs += ["", *(made.input(floats(shape, self.seed + 7 + at)) for at in range(count))]
        attributes = {"linear_before_reset": int(self.after)} if self.op == "GRU" else {}
        outputs = made.node(
            self.op, *inputs, outputs=3 if self.op == "LSTM" else 2, hidden_size=self.hidden,
            direction=self.direction, **attributes,
        )  # fmt: skip
        made.output(*outputs)
        return made


CELLS = st.builds(
    Cell,
    st.sampled_from(sorted(GATES)),
    st.sampled_from(("forward", "reverse", "bidirectional")),
    st.booleans(),
    st.booleans(),
    st.sampled_from((5, 6, 9)),
    st.sampled_from((1, 2, 3, 5, 8, 11)),
    st.sampled_from((2, 5, 16, 17, 33, 64, 70)),
    st.sampled_from((1, 7)),
    st.integers(0, 2**16),
)


def kernels(lowered: tvm.Lowered) -> list[str]:
    """Return the kernels that a program calls, in order."""
    return [name for name, _ in origins.calls(runtime.opened(lowered.files[runtime.SHARED_OBJECT]))]


def loops(lowered: tvm.Lowered) -> int:
    """Return how many recurrences run as one kernel."""
    return sum(name.startswith("recurrence") for name in kernels(lowered))


def unrolled(made: Any) -> Program:
    """Return a graph's program without recurrent operators."""
    return run(made.program(), [DecomposeRnn()], PROFILE)


def check(program: Program, feed: Tensors, expected: Tensors, **options: Any) -> tvm.Lowered:
    lowered = tvm.lower(program, **options)
    got = tvm.load(lowered.files, program)(feed)
    for name, value in zip(got, expected.values(), strict=True):
        np.testing.assert_allclose(got[name], value, atol=NOISE, rtol=0)
    return lowered


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@ONCE
@given(cell=CELLS)
def test_cells_are_those_of_onnx(
    cell: Cell, cpu: str, graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made = cell.write(graph, floats)
    lowered = check(unrolled(made), made.feed, OnnxRunner(made.program())(made.feed), cpu=cpu)
    # A GRU that resets before its product has two products in a step, which no loop is made of.
    directions = 2 if cell.direction == "bidirectional" else 1
    assert loops(lowered) == (0 if cell.op == "GRU" and not cell.after else directions)


@pytest.mark.parametrize("op", sorted(GATES))
def test_a_layer_is_few_kernels(
    op: str, graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made = Cell(op, "forward", True, False, 40, 1, 48, 8, 3).write(graph, floats)
    lowered = check(unrolled(made), made.feed, OnnxRunner(made.program())(made.feed))
    assert loops(lowered) == 1
    assert len(kernels(lowered)) < 12


def test_the_first_step_copies_no_other(
    graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made = Cell("LSTM", "forward", True, False, 40, 8, 48, 8, 3).write(graph, floats)
    lowered = check(unrolled(made), made.feed, OnnxRunner(made.program())(made.feed))
    # Begun with zeros it multiplies none, so it is before the loop and slices what it reads.
    splits = [name for name in kernels(lowered) if "split" in name]
    assert splits and all("slice" in name for name in splits)


@pytest.mark.parametrize(("cpu", "rows"), [("native", 8), ("x86-64-v3", 11)])
def test_a_row_is_the_same_among_others(
    rows: int, cpu: str, graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    many, one = (
        unrolled(Cell("LSTM", "forward", True, False, 5, batch, 40, 7, 5).write(graph, floats))
        for batch in (rows, 1)
    )
    x = floats((5, rows, 7), 9)
    (name,) = (port.name for port in many.inputs)
    alone = tvm.load(tvm.lower(one, cpu=cpu).files, one)
    together = tvm.load(tvm.lower(many, cpu=cpu).files, many)({name: x})
    for row in range(rows):
        for got, key in zip(alone({name: x[:, row : row + 1]}).values(), together, strict=True):
            np.testing.assert_array_equal(got, together[key][..., row : row + 1, :])


def test_two_layers_are_two_loops(graph: Callable[..., Any], floats: Callable[..., Array]) -> None:
    made = graph()
    x = made.input(floats((6, 2, 5)))
    for at, depth in enumerate((5, 24)):
        held = [floats(s, at) * np.float32(0.15) for s in ((1, 96, depth), (1, 96, 24), (1, 192))]
        x, *_ = made.node("LSTM", x, *map(made.constant, held), outputs=3, hidden_size=24)
        x = made.node("Squeeze", x, made.constant(np.array([1])))
    made.output(x)
    lowered = check(unrolled(made), made.feed, OnnxRunner(made.program())(made.feed))
    assert loops(lowered) == 2


def chain(
    graph: Callable[..., Any], floats: Callable[..., Array], steps: int, middle: str
) -> tuple[Any, list[str]]:
    """Return x · W again and again, with an operator in between, and the name of every step."""
    made = graph()
    x, w = made.input(floats((1, 3, 20))), made.constant(floats((20, 20)) * np.float32(0.2))
    names = []
    for _ in range(steps):
        x = made.node(middle, made.node("MatMul", x, w))
        names.append(x)
    return made, names


def test_steps_read_one_by_one_are_right(
    graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made, names = chain(graph, floats, 6, "Tanh")
    made.output(*names)
    lowered = check(made.program(), made.feed, OnnxRunner(made.program())(made.feed))
    assert loops(lowered) == 0


def test_only_the_last_step_is_read(
    graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made, names = chain(graph, floats, 6, "Tanh")
    made.output(names[-1])
    lowered = check(made.program(), made.feed, OnnxRunner(made.program())(made.feed))
    assert loops(lowered) == 1


def test_other_operators_are_no_loop(
    graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made, names = chain(graph, floats, 5, "Softmax")
    made.output(names[-1])
    lowered = check(made.program(), made.feed, OnnxRunner(made.program())(made.feed))
    assert loops(lowered) == 0


def test_one_step_that_differs_is_no_loop(
    graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made = graph()
    x, w = made.input(floats((1, 2, 20))), made.constant(floats((20, 20)) * np.float32(0.2))
    for step in range(7):
        x = made.node("Relu" if step == 3 else "Tanh", made.node("MatMul", x, w))
    made.output(x)
    check(made.program(), made.feed, OnnxRunner(made.program())(made.feed))


def quantize(x: Array, scale: Array, zero: Array) -> Array:
    """Return codes as ONNX's QuantizeLinear says."""
    info = np.iinfo(zero.dtype)
    codes: Array = np.clip(np.rint(x / scale) + zero, info.min, info.max).astype(zero.dtype)
    return codes


@pytest.mark.parametrize(
    "cpu", ["native", "x86-64-v3", pytest.param("x86-64-v4", marks=pytest.mark.slow)]
)
@ONCE
@given(
    codes=st.sampled_from((np.uint8, np.int8)), channels=st.booleans(), batch=st.integers(1, 5),
    hidden=st.sampled_from((3, 4, 17, 33, 64)), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_codes_are_exact(
    codes: Any, channels: bool, batch: int, hidden: int, seed: int, cpu: str,
    graph: Callable[..., Any],
) -> None:  # fmt: skip
    """h' = relu(codes of h · R + x), every step with a scale and a zero point of its own."""
    draw, steps = np.random.default_rng(seed), 6
    made = graph()
    x = draw.normal(size=(steps, batch, hidden)).astype(np.float32)
    h = np.abs(draw.normal(size=(1, batch, hidden))).astype(np.float32)
    right = draw.integers(-127, 128, (hidden, hidden)).astype(np.int8)
    scales = draw.uniform(1e-3, 1e-2, hidden if channels else ()).astype(np.float32)
    parts = made.node("Split", made.input(x), made.constant(np.ones(steps, np.int64)),
                      outputs=steps, axis=0)  # fmt: skip
    zeros = made.constant(np.zeros(scales.shape, np.int8))
    weights = made.node(
        "DequantizeLinear", made.constant(right), made.constant(scales), zeros, axis=1
    )
    state, value, names, wanted = made.input(h), h, [], []
    for step in range(steps):
        scale = np.asarray(draw.uniform(0.02, 0.05), np.float32)
        zero = np.asarray(draw.integers(0, 20), codes)
        step_ = made.constant(scale), made.constant(zero)
        state = made.node("QuantizeLinear", state, *step_)
        state = made.node("DequantizeLinear", state, *step_)
        state = made.node("Add", made.node("MatMul", state, weights), parts[step])
        state = made.node("Relu", state)
        names.append(state)
        held = quantize(value, scale, zero).astype(np.int64) - int(zero)
        factor = np.asarray(scales * scale, np.float32)
        value = np.maximum((held @ right).astype(np.float32) * factor + x[step], 0)
        wanted.append(value)
    made.output(made.node("Concat", *names, axis=0))
    program = made.program()
    lowered = tvm.lower(program, cpu=cpu)
    (got,) = tvm.load(lowered.files, program)(made.feed).values()
    assert np.array_equal(got, np.concatenate(wanted))
    assert loops(lowered) == 1


RUN = """
import sys
from pathlib import Path
import numpy as np
from npuc.program import Program
from npuc.targets import tvm
folder = Path(sys.argv[1])
program = Program.load(folder / "model.onnx")
names = ("payload/model.so", "payload/index.json", "payload/model.constants")
files = {n: (folder / n).read_bytes() for n in names if (folder / n).exists()}
feed = {p.name: np.load(folder / f"{p.name}.npy") for p in program.inputs}
for value in tvm.load(files, program)(feed).values():
    print(value.tobytes().hex())
"""


@pytest.mark.parametrize(
    "op", ["GRU", *(pytest.param(op, marks=pytest.mark.slow) for op in ("LSTM", "RNN"))]
)
def test_threads_do_not_change_a_bit(
    op: str, tmp_path: Path, graph: Callable[..., Any], floats: Callable[..., Array]
) -> None:
    made = Cell(op, "forward", True, True, 6, 2, 200, 8, 11).write(graph, floats)
    program = unrolled(made)
    ir.save(program.model, tmp_path / "model.onnx")
    for name, data in tvm.lower(program).files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for name, array in made.feed.items():
        np.save(tmp_path / f"{name}.npy", array)
    answers = set()
    for threads in (1, 2, 3):
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TVM_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", RUN, str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        answers.add(done.stdout)
    assert len(answers) == 1 and len(answers.pop()) > 1000
