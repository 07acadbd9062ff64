"""A program against a profile: what goes to the host, what blocks, and what nobody says."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.legality import NOT_PUBLIC, Finding, bound, judge, place, weight_bytes, within
from npuc.passes.graphs import infer_shapes
from npuc.profile import Fact, Limit, Profile
from npuc.program import Program


def program(text: str, *weights: str) -> Program:
    """Read a model; inputs named in `weights` become constants of ones."""
    model = ir.from_onnx_text(text)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        assert value.shape is not None
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.ones(value.shape.numpy(), np.float32), name=value.name)
        model.graph.register_initializer(value)
    infer_shapes(model)
    return Program.from_model(model)


def profile(facts: Mapping[str, Any] | None = None, *limits: Limit) -> Profile:
    found = {key: Fact(value, "P", "s") for key, value in (facts or {}).items()}
    return Profile("chip", "Chip", found, {"s": "manual"}, limits)


def limit(op: str, measure: str, **bounds: Any) -> Limit:
    return Limit((op,), measure, "S", "t", **bounds)


def listed(*ops: str) -> dict[str, Any]:
    return {"ops.supported": list(ops)}


CNN = program(
    """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[1, 4, 8, 8] x, float[4, 4, 3, 3] w, float[4, 1, 5, 5] v) => (float[1, 4, 6, 6] y)
<int64[4] sizes = {1, 4, 6, 6}> {
   [wide] a = Conv <pads = [1, 1, 1, 1]> (x, w)
   [deep] b = Conv <pads = [1, 1, 1, 1], group = 4> (a, v)
   [act] c = Erf (b)
   [flat] y = Reshape (c, sizes)
}
""",
    "w",
    "v",
)


def said(found: tuple[Finding, ...]) -> list[tuple[str, str, str]]:
    return [(f.node, f.reason, f.verdict) for f in found]


def test_a_kind_that_is_not_listed_runs_on_the_host() -> None:
    chip = profile(listed("Conv", "Reshape"))
    (found,) = judge(CNN, chip)
    assert found == Finding(
        "act", "Erf", "operator", "Erf", "not among the operators the device runs",
        "host", "P", "s",
    )  # fmt: skip
    assert place(CNN, chip) == {"act": "not among the operators the device runs"}


def test_a_kind_that_the_vendor_runs_on_the_host_runs_there() -> None:
    """Whether or not its list of operators is public."""
    alone = profile({"ops.on_host": ["Erf"]})
    both = profile({"ops.on_host": ["Erf"], **listed("Conv", "Reshape", "Erf")})
    for chip in (alone, both):
        assert place(CNN, chip) == {"act": "run on the host, by the vendor's own table"}


def test_an_absent_list_is_counted_and_refuses_nothing() -> None:
    (found,) = judge(CNN, profile())
    assert (found.node, found.value, found.bound) == ("", 4, NOT_PUBLIC)
    assert found.verdict == "unknown"
    assert place(CNN, profile()) == {}


def test_a_limit_holds_for_every_entry_and_where_its_condition_does() -> None:
    narrow = limit("Conv", "kernel", among=(3,), when={"depthwise": True})
    chip = profile(listed("Conv", "Reshape", "Erf"), narrow)
    (found,) = judge(CNN, chip)
    assert said((found,)) == [("deep", "kernel 5x5: only 3 (where depthwise is true)", "host")]
    assert (found.grade, found.source) == ("S", "t")
    other = limit("Conv", "kernel", most=3, when={"depthwise": False})
    assert place(CNN, profile({}, other)) == {}


def test_bounds() -> None:
    def kept(value: object, **bounds: object) -> bool:
        return within(value, Limit(("Conv",), "kernel", "P", "s", **bounds))  # type: ignore[arg-type]

    assert kept(3, least=3, most=3)
    assert not kept(2, least=3)
    assert not kept((3, 4), most=3)
    assert kept((), most=3, among=(1,))
    assert kept(128, multiple=64)
    assert not kept(65, multiple=64)
    assert kept((3, 5), among=(3, 5))
    assert not kept((3, 5), among=([3, 3], [5, 5]))
    assert kept((2, 3), among=([1], [2, 3]))
    assert kept(1, among=([1], [2, 3]))
    assert not kept(False, among=(True,))


def test_bounds_are_spelled() -> None:
    made = Limit(("Conv",), "stride", "P", "s", least=1, most=8.5, when={"rank": 4})
    assert bound(made) == "at least 1, at most 8.5 (where rank is 4)"
    assert bound(Limit(("Conv",), "x", "P", "s", among=([1], [2, 3]))) == "one of 1, 2x3"


DYNAMIC = program("""
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[batch, 5] x) => (float[batch, 5] y) {
   [soft] y = Softmax <axis = 0> (x)
}
""")


def test_what_is_not_known_is_said_and_refuses_nothing() -> None:
    chip = profile(listed("Softmax"), limit("Softmax", "axis_length", most=4))
    (found,) = judge(DYNAMIC, chip)
    assert said((found,)) == [("soft", "axis_length unknown: at most 4", "unknown")]
    assert place(DYNAMIC, chip) == {}


def test_a_limit_with_an_unknown_condition_is_unknown_only_if_it_would_break() -> None:
    broken = limit("Softmax", "axis", least=1, when={"batch": 1})
    kept = limit("Softmax", "axis", most=1, when={"batch": 1})
    assert [f.verdict for f in judge(DYNAMIC, profile({}, broken)) if f.node] == ["unknown"]
    assert [f for f in judge(DYNAMIC, profile({}, kept)) if f.node] == []


def test_the_model_as_a_whole() -> None:
    chip = profile(
        {
            **listed("Softmax", "Conv", "Erf", "Reshape"),
            "onnx.opset_max": 13,
            "onnx.opset_min": 21,
            "shapes.static": True,
            "shapes.batch": 2,
        }
    )
    assert [f.reason for f in judge(DYNAMIC, chip)] == [
        "opset 20: at most 13",
        "opset 20: at least 21",
        "dimension batch: must be a number",
    ]
    found = judge(CNN, chip)
    assert [f.reason for f in found][2:] == ["batch 1: only 2"]
    assert {f.verdict for f in found} == {"blocked"}


def test_weights_count_as_the_device_stores_them() -> None:
    count = 4 * 4 * 3 * 3 + 4 * 5 * 5
    indices = 4 * 8
    assert weight_bytes(CNN, profile()) == 4 * count + indices
    assert weight_bytes(CNN, profile({"precisions": ["int8"]})) == count + indices
    short = profile({"float.formats": [[8, 7], [6, 9]]})
    assert weight_bytes(CNN, short) == 2 * count + indices


@pytest.mark.parametrize("fact", ["memory.gib", "memory.usable_mib"])
def test_weights_that_do_not_fit_block(fact: str) -> None:
    unit = 2**30 if fact == "memory.gib" else 2**20
    room = 1.01 * weight_bytes(CNN, profile()) / unit
    supported = listed("Conv", "Erf", "Reshape")
    assert judge(CNN, profile({**supported, fact: room})) == ()
    (found,) = judge(CNN, profile({**supported, fact: room / 2}))
    assert (found.measure, found.verdict) == ("memory", "blocked")


def test_rank_dtype_and_alignment() -> None:
    mixed = program("""
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[1, 2, 3, 4, 5] x, double[2, 64] d) => (float[1, 2, 3, 4, 5] y, double[2, 64] e) {
       [deep] y = Relu (x)
       [wide] e = Neg (d)
    }
    """)
    chip = profile(
        {
            **listed("Relu", "Neg"),
            "ops.rank_max": 4,
            "ops.dtypes": ["int8", "float16"],
            "align.last_dim": 64,
        }
    )
    assert said(judge(mixed, chip)) == [
        ("deep", "rank 5: at most 4", "host"),
        ("deep", "last_dim 5: a multiple of 64 runs faster", "note"),
        ("wide", "dtype float64: one of int8, float16", "host"),
    ]
    assert set(place(mixed, chip)) == {"deep", "wide"}


def test_shapes_and_codings_are_no_work() -> None:
    """Shape → Gather → Concat feeds only a Reshape; Range of constants is a table."""
    model = program("""
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[n, 6] x) => (float[n, m, 3] y, float[m] t)
    <int64[1] zero = {0}, int64[2] rest = {2, 3}, float start = {0}, float stop = {3},
     float step = {1}, float scale = {0.5}, int8 point = {0}> {
       [shape] s = Shape (x)
       [size] n = Gather (s, zero)
       [both] to = Concat <axis = 0> (n, rest)
       [code] q = QuantizeLinear (x, scale, point)
       [real] r = DequantizeLinear (q, scale, point)
       [same] i = Identity (r)
       [turn] y = Reshape (i, to)
       [table] t = Range (start, stop, step)
    }
    """)
    chip = profile(listed("Conv"))
    assert set(place(model, chip)) == {"turn"}


def test_data_dependent_sizes_go_to_the_host() -> None:
    model = program("""
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[4, 6] x) => (float[k] y) {
       [find] i = NonZero (x)
       [turn] t = Transpose (i)
       [take] y = GatherND (x, t)
    }
    """)
    chip = profile({"shapes.static": True})
    assert [f.node for f in judge(model, chip) if f.node] == ["find", "turn", "take"]
    assert judge(model, chip)[-1].reason == "shape ?: must not depend on the data"
    assert list(place(model, chip)) == ["find", "turn", "take"]


def test_sizes_that_are_not_bound_yet_do_not_depend_on_the_data() -> None:
    assert place(DYNAMIC, profile({"shapes.static": True})) == {}


def test_a_body_with_a_host_operator_takes_its_branch_to_the_host() -> None:
    model = program("""
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (bool c, float[4] x) => (float[4] y) {
       [branch] y = If (c) <
          then_branch = yes () => (float[4] a) { [inner] a = Erf (x) },
          else_branch = no () => (float[4] b) { b = Relu (x) }
       >
    }
    """)
    chip = profile(listed("If", "Relu"))
    expected = {"branch": "Erf in its body: not among the operators the device runs"}
    assert place(model, chip) == expected
    assert [f.node for f in judge(model, chip)] == ["inner"]


def test_a_foreign_domain_is_not_what_a_device_lists() -> None:
    model = program("""
    <ir_version: 9, opset_import: ["" : 20, "com.x" : 1]>
    agraph (float[4] x) => (float[4] y) { [odd] y = com.x.Relu (x) }
    """)
    (found,) = judge(model, profile(listed("Relu")))
    assert (found.node, found.op) == ("odd", "com.x::Relu")


def test_findings_say_where_in_the_users_model() -> None:
    """npuc's own mark, and the stack trace that torch writes; the innermost line not torch's."""
    model = program("""
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[4] x) => (float[4] z) { [one] y = Erf (x)  [two] z = Erf (y) }
    """)
    one, two = model.model.graph
    one.metadata_props["npuc.source"] = "pkg/net.py:7"
    one.metadata_props["npuc.module"] = "head"
    two.metadata_props["pkg.torch.onnx.stack_trace"] = (
        'File "/home/u/pkg/main.py", line 3, in forward\n    self.act(x)\n'
        'File "/home/u/pkg/net.py", line 42, in forward\n    torch.erf(x)\n'
        'File "/v/site-packages/torch/nn/functional.py", line 9, in erf\n'
    )
    two.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'act', 'erf']"
    found = judge(model, profile(listed()))
    assert [(f.line, f.module) for f in found] == [
        ("pkg/net.py:7", "head"),
        ("pkg/net.py:42", "act"),
    ]
