"""`npuc check`: what a target refuses, what passes mend, and what is printed of it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from torch import nn

from npuc import check_text, features, plugins, remedies
from npuc.check import Outcome, check
from npuc.cli import main
from npuc.errors import PassError, UsageError
from npuc.ledger import Ledger
from npuc.legality import Finding
from npuc.passes.base import Pass, Result
from npuc.passes.builder import Builder
from npuc.passes.graphs import Names
from npuc.profile import Fact, Limit, Profile

GOLDEN = Path(__file__).parents[1] / "golden"

MODEL = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[batch, 4, 8, 8] x) => (float[batch, 4, 8, 8] y) {
   [neg] a = Neg (x)
   [err] b = Erf (a)
   [act] c = Relu (b)
   [again] d = Erf (c)
   [last] y = Relu (d)
}
"""


@dataclass(frozen=True)
class NegByMul(Pass):
    """-x  ⇒  x·(-1)"""

    name: ClassVar[str] = "neg-by-mul"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        changes = 0
        for node in list(model.graph):
            if node.op_type == "Neg":
                build = Builder(model.graph, Names(model), node.name or "neg")
                source, minus = node.inputs[0], np.array([-1], np.float32)
                assert source is not None
                product = build.op("Mul", source, build.constant("minus", minus))
                build.replace(node, [product])
                changes += 1
        return Result(changes)


@dataclass(frozen=True)
class Fails(Pass):
    """Nothing can be done."""

    name: ClassVar[str] = "fails"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        raise PassError("nothing can be\n  done")


class Chip:
    """A target as far as check looks at it."""

    def __init__(
        self,
        facts: Mapping[str, Any],
        *passes: Pass,
        limits: tuple[Limit, ...] = (),
        name: str = "chip",
    ) -> None:
        self.name = name
        found = {key: Fact(value, "P", "manual") for key, value in facts.items()}
        self.profile = Profile(name, f"The {name}", found, {"manual": "its manual"}, limits)
        self.passes = passes

    def legalise(self) -> tuple[Pass, ...]:
        return self.passes


@pytest.fixture
def chips(monkeypatch: pytest.MonkeyPatch) -> dict[str, Chip]:
    """Targets by name, to be filled by a test."""
    found: dict[str, Chip] = {}
    monkeypatch.setattr(plugins, "find", found.__getitem__)
    monkeypatch.setattr(plugins, "names", lambda: tuple(sorted(found)))
    return found


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("model.onnx")
    onnx.save(ir.to_proto(ir.from_onnx_text(MODEL)), path)
    return path


def reasons(outcome: Outcome) -> list[tuple[str, str]]:
    return [(item.finding.node, item.finding.reason) for item in outcome.left]


ALL_OPS = ["Neg", "Erf", "Relu", "Mul"]


def test_a_model_that_a_chip_takes_whole(chips: dict[str, Chip], model: Path) -> None:
    chips["chip"] = Chip({"ops.supported": ALL_OPS})
    (outcome,) = check(model, target="chip")
    assert (outcome.passed, outcome.left, outcome.fixed, outcome.operators) == (True, (), (), 5)
    assert check_text.verdict(outcome) == "runs whole on chip"
    assert main(["check", str(model), "-t", "chip"]) == 0


def test_what_goes_to_the_host_with_what_it_costs(chips: dict[str, Chip], model: Path) -> None:
    """Between the Erfs is a Relu that goes with them: a goes there and d comes back, 4·8·8 each."""
    chips["chip"] = Chip({"ops.supported": ["Neg", "Relu"]})
    (outcome,) = check(model, target="chip", dims={"batch": 3})
    assert not outcome.passed
    assert outcome.host == {"err": "Erf", "act": "Relu", "again": "Erf"}
    size = 3 * 4 * 8 * 8 * 4
    assert [(c.tensor, c.bytes, c.to) for c in outcome.crossings] == [
        ("a", size, "host"), ("d", size, "device"),
    ]  # fmt: skip
    assert check_text.fixes(outcome.left[:1], outcome) == [
        "left as it is, it runs on the host: 1 tensor, 3.1 kB cross per call",
        "use GELU's tanh form (approximate='tanh')",
    ]
    assert "1 more stand between those" in check_text.text("m", [outcome])
    assert main(["check", str(model), "-t", "chip"]) == 4


def test_a_pass_that_mends_is_named_with_what_it_wrote(chips: dict[str, Chip], model: Path) -> None:
    chips["chip"] = Chip(
        {"ops.supported": ["Erf", "Relu", "Mul"], "shapes.static": True}, NegByMul()
    )
    (outcome,) = check(model, target="chip")
    assert outcome.passed
    assert [(f.finding.node, f.finding.measure, f.step, f.matched) for f in outcome.fixed] == [
        ("", "dimension", "fix-shapes", "node"),
        ("neg", "operator", "neg-by-mul", "node"),
    ]
    assert outcome.written == {("neg-by-mul", "neg"): {"Mul": 1}}
    assert check_text.verdict(outcome) == "runs after npuc's passes: fix-shapes, neg-by-mul"


def test_what_a_pass_brings_is_said_to_come_with_it(chips: dict[str, Chip], model: Path) -> None:
    chips["chip"] = Chip({"ops.supported": ["Erf", "Relu"]}, NegByMul())
    (outcome,) = check(model, target="chip")
    assert [(item.finding.op, item.came) for item in outcome.left] == [("Mul", "neg-by-mul")]
    assert "(came with neg-by-mul)" in check_text.text("m", [outcome])


def test_a_pass_that_fails_blocks(chips: dict[str, Chip], model: Path) -> None:
    chips["chip"] = Chip({"ops.supported": ALL_OPS}, Fails())
    (outcome,) = check(model, target="chip")
    assert reasons(outcome) == [("", "pass fails: nothing can be done")]
    assert (outcome.passed, check_text.takes(outcome)) == (False, "no")


def test_opsets_are_lowered_and_the_rest_is_an_edit(chips: dict[str, Chip], model: Path) -> None:
    chips["old"] = Chip({"ops.supported": ALL_OPS, "onnx.opset_max": 13})
    chips["new"] = Chip({"ops.supported": ALL_OPS, "onnx.opset_min": 21})
    old, new = check(model, target=["old", "new"])
    assert (old.passed, old.steps) == (True, ("lower-opset",))
    assert reasons(new) == [("", "opset 20: at least 21")]


def test_the_only_batch_is_asked_of_the_user(chips: dict[str, Chip], model: Path) -> None:
    """A dimension without a sample is 2 for compile; the device wants 1."""
    chips["chip"] = Chip({"ops.supported": ALL_OPS, "shapes.batch": 1})
    (outcome,) = check(model, target="chip")
    assert (outcome.passed, outcome.options) == (True, ("--dim batch=1",))
    (outcome,) = check(model, target="chip", dims={"batch": 1})
    assert (outcome.passed, outcome.options) == (True, ())
    (outcome,) = check(model, target="chip", dims={"batch": 4})
    assert reasons(outcome) == [("", "batch 4: only 1")]
    with pytest.raises(UsageError, match="no dimension 'n'"):
        check(model, target="chip", dims={"n": 4})


def test_an_absent_list_refuses_nothing_and_says_so(chips: dict[str, Chip], model: Path) -> None:
    chips["chip"] = Chip({})
    (outcome,) = check(model, target="chip")
    assert outcome.passed
    assert check_text.takes(outcome) == "as far as public"
    assert check_text.verdict(outcome).startswith("no operator list is public: nothing known")


def test_findings_name_the_line_of_a_torch_model(chips: dict[str, Chip], net: nn.Module) -> None:
    """Also after passes that write the graph anew."""
    chips["chip"] = Chip({"ops.supported": ["Relu", "Conv", "ReduceMean"]})
    (outcome,) = check(net, target="chip", inputs=["x:batch=2x1x6x6:float32"])
    (head,) = outcome.left
    lines = Path(__file__).with_name("conftest.py").read_text().splitlines()
    line = 1 + next(index for index, text in enumerate(lines) if "self.head(" in text)
    assert (head.finding.op, head.finding.line) == ("Gemm", f"compiler/conftest.py:{line}")
    assert head.finding.module == "head"


def test_nodes_without_names_are_told_apart(chips: dict[str, Chip], tmp_path: Path) -> None:
    """Two of one name, an Erf and a Relu, and one of none: findings are of the Erf."""
    text = MODEL.replace("[err]", "[same]").replace("[act]", "[same]").replace("[last]", "")
    onnx.save(ir.to_proto(ir.from_onnx_text(text)), tmp_path / "m.onnx")
    chips["chip"] = Chip({"ops.supported": ["Relu", "Neg"]})
    (outcome,) = check(tmp_path / "m.onnx", target="chip")
    assert sorted(item.finding.node for item in outcome.left) == ["again", "same"]


@pytest.fixture
def four(chips: dict[str, Chip]) -> None:
    narrow = Limit(("Relu",), "channels", "S", "manual", most=3)
    chips["a-whole"] = Chip({"ops.supported": ALL_OPS}, name="a-whole")
    chips["b-part"] = Chip(
        {"ops.supported": ["Relu", "Mul"], "shapes.static": True, "align.last_dim": 64},
        NegByMul(), limits=(narrow,), name="b-part",
    )  # fmt: skip
    chips["c-closed"] = Chip({}, name="c-closed")
    chips["d-blocked"] = Chip({"onnx.opset_min": 21, "onnx.opset_max": 22}, name="d-blocked")


def test_text(four: None, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(model), "--target", "all", "--dim", "batch=1"]) == 4
    printed = capsys.readouterr().out
    path = GOLDEN / "check.txt"
    if os.environ.get("NPUC_GOLDEN") == "write":
        path.write_text(printed, encoding="utf-8")
    assert printed == path.read_text(encoding="utf-8")


def test_json(four: None, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(model), "--target", "all", "--json"]) == 4
    data = json.loads(capsys.readouterr().out)
    assert (data["schema"], data["model"], data["passed"]) == (
        "npuc-check-1", "model.onnx", False,
    )  # fmt: skip
    whole, part, closed, blocked = data["targets"]
    assert [t["takes"] for t in data["targets"]] == ["whole", "in part", "as far as public", "no"]
    assert (whole["findings"], whole["operators_public"]) == ([], True)
    assert part["passes"] == ["fix-shapes", "neg-by-mul"]
    assert [f["written"] for f in part["fixed"]] == [{}, {"Mul": 1}]
    assert {f["node"] for f in part["findings"] if f["verdict"] == "host"} == {
        "err", "act", "again", "last",
    }  # fmt: skip
    relu = next(f for f in part["findings"] if f["measure"] == "channels")
    assert (relu["value"], relu["bound"], relu["grade"], relu["source"]) == (
        4, "at most 3", "S", "manual",
    )  # fmt: skip
    assert closed["findings"][0]["verdict"] == "unknown"
    assert blocked["findings"][0]["fix"] != []


def finding(node: str, measure: str = "operator", value: object = 1) -> Finding:
    return Finding(node, "Op", measure, value, "not there", "host", "P", "s")


def test_a_renamed_node_is_followed_by_its_kind_and_count() -> None:
    """One of two is gone, and which one nobody can tell: the other has a new name."""
    ledger = Ledger.of([finding("a"), finding("b")]).after("p", [finding("c")])
    assert [item.came for item in ledger.open] == [""]
    assert [(f.step, f.matched) for f in ledger.fixed] == [("p", "count")]


def test_a_node_that_keeps_its_name_is_followed_by_it() -> None:
    ledger = Ledger.of([finding("a"), finding("b", value=2)]).after("p", [finding("b", value=3)])
    assert [item.finding.value for item in ledger.open] == [3]
    assert [(f.finding.node, f.matched) for f in ledger.fixed] == [("a", "node")]


def test_what_comes_and_goes_again_is_not_fixed() -> None:
    ledger = Ledger.of([]).after("p", [finding("a")]).after("q", [])
    assert (ledger.open, ledger.fixed) == ((), ())


def test_what_unknown_shapes_hid_came_with_no_pass() -> None:
    ledger = Ledger.of([], ["a"]).after("p", [finding("a"), finding("b")])
    assert [(item.finding.node, item.came) for item in ledger.open] == [("a", ""), ("b", "p")]


def test_every_measure_has_a_remedy() -> None:
    whole = {"batch", "dimension", "memory", "opset", "pass", "shape"}
    assert set(remedies.MEASURES) == set(features.MEASURES) | whole
