"""narrow-int64: int32 where the range is proved, the same answers, ports as they were."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.passes.base import run
from npuc.passes.integer_ranges import Ranges
from npuc.passes.narrow_int64 import NarrowInt64
from npuc.profile import Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

HAS = {"ops__dtypes": ["int8", "int32", "bool"]}
TABLE = "(int64[2,5] i, float[9,4] x) => "
# (model, inputs, operators then)
Cases = dict[str, tuple[str, dict[str, Any], str | None]]
TOKENS = np.array([[0, 8, 3, 3, 1], [7, 2, 0, 5, 4]])
FLOATS = np.arange(36, dtype=np.float32).reshape(9, 4) % 11
CASES: Cases = {
    "an embedding": (
        TABLE + "(float[2,5,4] y) { y = Gather(x, i) }",
        {"i": TOKENS},
        "Gather",
    ),
    "a mask of what is padding": (
        TABLE + "(float[2,5,4] y) <int64 zero = {0}, int64[1] a = {-1}> { h = Gather(x, i)"
        " p = Equal(i, zero) f = Cast<to=1>(p) g = Unsqueeze(f, a) y = Mul(h, g) }",
        {"i": TOKENS},
        "Cast Gather Equal Cast Unsqueeze Mul",
    ),
    "computed indices": (
        TABLE + "(float[2,5,4] y) <int64 one = {1}, int64 nine = {9}>"
        "{ a = Add(i, one) b = Mod(a, nine) q = Less(i, one) c = Where(q, b, i) y = Gather(x, c)"
        " z = Gather(x, i) }",
        {"i": TOKENS},
        "Cast Add Mod Less Where Gather Gather",
    ),
    "an ArgMax that is read": (
        "(float[9,4] x) => (float[9] y) { a = ArgMax<axis=1, keepdims=0>(x) b = Neg(a)"
        " y = Cast<to=1>(b) }",
        {},
        "ArgMax Cast Neg Cast",
    ),
    "an ArgMax that is the answer": (
        "(float[9,4] x) => (int64[9] y) { y = ArgMax<axis=1, keepdims=0>(x) }",
        {},
        "ArgMax",
    ),
    "an answer that is computed": (
        "(float[9,4] x) => (int64[9] y) { a = ArgMax<axis=1, keepdims=0>(x) y = Add(a, a) }",
        {},
        "ArgMax Cast Add Cast",
    ),
    "a float that is an index": (
        "(float[9,4] x, float[2] f) => (float[2,4] y) { i = Cast<to=7>(f) y = Gather(x, i) }",
        {"f": np.array([3, 8], np.float32)},
        "Cast Gather",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_alike(
    case: str, parse: Callable[..., Program], device: Any, ops: Callable[[Program], list[str]]
) -> None:
    text, inputs, becomes = CASES[case]
    before = parse(text)
    after = run(before, [NarrowInt64()], device(**HAS))
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    assert not after.steps[0].refusals
    assert becomes is not None and ops(after) == becomes.split()
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    values = {"x": FLOATS, **inputs}
    values = {port.name: values[port.name] for port in before.inputs}
    expected, got = OnnxRunner(before)(values), OnnxRunner(after)(values)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    again = run(after, [NarrowInt64()], device(**HAS))
    assert again.steps[-1].changes == 0
    wide = {
        v.name for n in after.model.graph if n.op_type not in ("Cast", "ArgMax") for v in n.outputs
        if v.dtype == ir.DataType.INT64
    }  # fmt: skip
    assert not wide


REFUSED = {
    "an input of any value": (
        "(int64[3] i) => (int64[3] y) { a = Add(i, i) y = Neg(a) }",
        "'a' stays int64: its range is not proved",
    ),
    "too large": (
        "(float[9,4] x) => (int64[9] y) <int64 c = {3000000000}>"
        "{ a = ArgMax<axis=1, keepdims=0>(x) b = Mul(a, c) y = Neg(b) }",
        "'b' stays int64: its range is (0, 9000000000)",
    ),
    "a float of any value": (
        "(float[3] x) => (int64[3] y) { a = Cast<to=7>(x) y = Neg(a) }",
        "'a' stays int64: its range is not proved",
    ),
    "a size found in the data": (
        "(float[3] x) => (float[N] y) { a = NonZero(x) b = Neg(a) c = Neg(b) d = Transpose(c)"
        " y = GatherND(x, d) }",
        "'a' stays int64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_by_name(case: str, parse: Callable[..., Program], device: Any) -> None:
    text, reason = REFUSED[case]
    step = run(parse(text), [NarrowInt64()], device(**HAS)).steps[0]
    assert reason in " / ".join(r.reason for r in step.refusals)


@pytest.mark.parametrize("dtypes", [None, ["int32", "int64"], ["int8"]], ids=str)
def test_nothing_happens_unless_the_device_says_so(
    dtypes: list[str] | None, parse: Callable[..., Program], device: Any
) -> None:
    has: Profile = device() if dtypes is None else device(ops__dtypes=dtypes)
    step = run(parse(CASES["an embedding"][0]), [NarrowInt64()], has).steps[0]
    assert step.changes == 0 and not step.refusals


SMALL = st.integers(-6, 9)
RULES = "Add Sub Mul Div Mod Max Min Abs Neg Sign ReduceSum CumSum"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kinds=st.lists(
        st.sampled_from(RULES.split()),
        min_size=1,
        max_size=5,
    ),
    table=st.lists(SMALL, min_size=3, max_size=3),
    other=st.lists(SMALL, min_size=3, max_size=3),
)
def test_ranges_hold(
    kinds: list[str], table: list[int], other: list[int], parse: Callable[..., Program]
) -> None:
    """Values of random integer chains lie within the bounds that were proved."""
    lines, last = ["h0 = Gather(t, i)"], "h0"
    for number, kind in enumerate(kinds, 1):
        second = {"Div": ", p", "Mod": ", p", "CumSum": ", axis", "Abs": "", "Neg": "", "Sign": ""}
        tail = second.get(kind, "" if kind == "ReduceSum" else ", o")
        lines.append(f"h{number} = {kind}({last}{tail})")
        last = f"h{number}"
    weights = {
        "t": np.array(table),
        "o": np.array(other),
        "p": np.abs(np.array(other)) + 1,
        "axis": np.array(0, np.int64),
    }
    text = (
        "(int64[3] i, int64[3] t, int64[3] o, int64[3] p, int64 axis) => (int64[A] y)"
        f"{{ {' '.join(lines)} y = Identity({last}) }}"
    )
    program = parse(text, weights)
    found = Ranges(program.model.graph).of(program.model.graph.outputs[0])
    runner = OnnxRunner(program)
    for start in range(3):
        got = runner({"i": (np.arange(3) + start) % 3})["y"]
        if found is not None:
            assert found[0] <= got.min() and got.max() <= found[1]
    assert found is not None or {"Div", "Mod"} & set(kinds)
