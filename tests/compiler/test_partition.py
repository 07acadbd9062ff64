"""Cutting a model between a device and its host."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import partition
from npuc.errors import UnsupportedError, UsageError
from npuc.program import Program
from npuc.runners import OnnxRunner

TEXT = """<ir_version: 10, opset_import: ["": 20]>
net (float[2, 4] x) => (float[2, 4] y, float[2, 4] z)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2}>
{
  [first] a = MatMul (x, w)
  [odd] b = Erf (a)
  [second] c = MatMul (b, w)
  [sum] y = Add (c, a)
  [tail] z = Erf (c)
}"""


def net(*hosted: str) -> ir.Model:
    """Return the model with some nodes marked for the host."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT), True))
    for node in model.graph:
        if node.name in hosted:
            node.metadata_props[partition.PLACE] = f"no {node.op_type}"
    return model


def test_parts_run_one_after_the_other_answer_like_the_whole() -> None:
    """Every part reads the model's inputs or what parts before it made."""
    model = net("odd", "tail")
    parts = partition.cut(model, partition.host_nodes(model))
    assert [p.place for p in parts] == ["device", "host", "device", "host"]
    x = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    values = dict(x)
    for part in parts:
        program = Program.from_model(part.model)
        assert {p.name for p in program.inputs} <= set(values)
        values |= OnnxRunner(program)({p.name: values[p.name] for p in program.inputs})
    want = OnnxRunner(Program.from_model(model))(x)
    assert all(np.array_equal(values[name], want[name]) for name in ("y", "z"))


def test_crossings_list_each_tensor_once_with_its_bytes() -> None:
    """`a` goes to the host and stays on the device, too; `b` comes back; outputs do not count."""
    found = partition.crossings(net("odd", "tail"))
    assert [(c.tensor, c.bytes, c.to) for c in found] == [
        ("a", 32, "host"),
        ("b", 32, "device"),
        ("c", 32, "host"),
    ]
    assert found[0].dtype == "float32" and found[0].shape == (2, 4)
    assert partition.crossings(net()) == ()


def test_placement_names_both_places_of_a_kind() -> None:
    assert partition.placement(net("odd"), "chip") == {
        "Add": "chip", "Erf": "chip+host", "MatMul": "chip",
    }  # fmt: skip


def test_without_fallback_all_that_would_stay_is_listed() -> None:
    with pytest.raises(UnsupportedError) as caught:
        partition.require(net("odd", "first"), "chip", fallback=False, contract={})
    assert "chip cannot run 2 of 5 operators" in caught.value.message
    assert "Erf: no Erf (1: odd)" in caught.value.message
    assert "MatMul: no MatMul (1: first)" in caught.value.message
    partition.require(net(), "chip", fallback=False, contract={})
    partition.require(net("odd"), "chip", fallback=True, contract={})


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        (("MatMul,Add=all",), ""),
        (("Erf=1",), ""),
        (("Erf=all",), "Erf: 1 of 2 are on the host"),
        (("Erf=2",), "Erf: 1 on the device, 2 wanted"),
        (("Conv=all",), "Conv: the model has none"),
    ],
)
def test_the_contract_on_what_runs_on_the_device(texts: tuple[str, ...], fault: str) -> None:
    wanted = partition.contract(texts)
    if not fault:
        partition.require(net("odd"), "chip", fallback=True, contract=wanted)
        return
    with pytest.raises(UnsupportedError) as caught:
        partition.require(net("odd"), "chip", fallback=True, contract=wanted)
    assert fault in caught.value.message


def test_a_bad_contract_names_every_fault() -> None:
    with pytest.raises(UsageError) as caught:
        partition.contract(["Conv", "=all", "MatMul=some", "Add=all"])
    lines = caught.value.message.splitlines()
    assert [line.split("'")[1] for line in lines] == ["Conv", "=all", "MatMul=some"]
