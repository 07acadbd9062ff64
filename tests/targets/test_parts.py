"""A model that a device runs in parts: kits for its own, the host's beside them, a whole twin."""

import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import ArtifactError
from npuc.passes.base import run
from npuc.passes.place import Place
from npuc.profile import Profile
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner
from npuc.targets.base import Built, Handover, LowerOptions, Toolchain
from npuc.targets.kit import onnx_model
from npuc.targets.npu import Npu
from npuc.targets.undocumented import Undocumented

PROFILE = """
name = "chip"
title = "Chip"
[sources]
s = "someone"
[facts]
precisions = { value = ["float"], grade = "P", source = "s" }
"ops.supported" = { value = ["MatMul", "Relu", "Add", "Constant"], grade = "P", source = "s" }
"""
TEXT = """<ir_version: 10, opset_import: ["": 20]>
net (float[2, 4] x) => (float[2, 3] y, int64[2, 3] i)
<float[4, 4] w1, float[3, 3] w2, int64[1] k = {3}>
{
  [first] a = MatMul (x, w1)
  [top] t, i = TopK (a, k)
  [second] b = MatMul (t, w2)
  [last] y = Relu (b)
}"""


def net() -> Program:
    """Return two products with a TopK between them, which the device does not have."""
    proto = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(1)
    for name, size in (("w1", 4), ("w2", 3)):
        array = rng.normal(size=(size, size)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    inferred = onnx.shape_inference.infer_shapes(proto, True)
    return run(Program.from_model(ir.from_proto(inferred)), [Place()], Profile.parse(PROFILE))


def calls() -> list[Tensors]:
    rng = np.random.default_rng(2)
    return [{"x": rng.normal(size=(2, 4)).astype(np.float32)} for _ in range(3)]


class Compiler(Undocumented):
    """A tool that is here: it writes the size of the model of each folder it is given."""

    def find(self, profile: Profile) -> Toolchain:
        """Say that it is here."""
        return Toolchain(self.name, "1.0")

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Read the model and write a binary."""
        size = len((folder / "model.onnx").read_bytes())
        return Built({"model.bin": str(size).encode()}, "compiled model.bin", "1.0")


def lower(
    tool: Undocumented, facts: str = "", folder: Path = Path()
) -> tuple[Npu, dict[str, bytes]]:
    """Lower the model for a chip with this tool; `facts` are added to its profile."""
    target = Npu(Profile.parse(PROFILE + facts), tool)
    program = net()
    job = Handover(program, calls())
    payload = target.lower(program, LowerOptions(handover=job), folder)
    assert payload.placement == {"MatMul": "chip", "Relu": "chip", "TopK": "host"}
    return target, dict(payload.files)


def test_each_part_has_a_kit_with_its_own_calibration() -> None:
    """The second part's inputs are what the parts before it answer on the first one's."""
    _, files = lower(Undocumented("chipc", "Chip Inc."))
    plan = json.loads(files["vendor/partition.json"])
    assert [(p["place"], p["inputs"], p["outputs"]) for p in plan["parts"]] == [
        ("device", ["x"], ["a"]),
        ("host", ["a"], ["t", "i"]),
        ("device", ["t"], ["y"]),
    ]
    assert [(c["tensor"], c["to"], c["bytes"]) for c in plan["crossings"]] == [
        ("a", "host", 32),
        ("t", "device", 24),
    ]
    whole = OnnxRunner(net(), extra=["t"])
    for number, call in enumerate(calls()):
        stored = files[f"vendor/part-02/calibration/t/{number:04}.npy"]
        assert np.array_equal(np.load(io.BytesIO(stored)), whole(call)["t"])
    assert "vendor/part-00/README.txt" in files and "vendor/part-01/README.txt" not in files
    kinds = [
        n.op_type for n in onnx.load_from_string(files["vendor/part-01/model.onnx"]).graph.node
    ]
    assert kinds == ["TopK"]


def test_the_twin_runs_all_of_it_unasked() -> None:
    """The host's operators need no --fallback: they run in ONNX Runtime there, too."""
    target, files = lower(Undocumented("chipc", "Chip Inc."))
    runner, oracle = target.runner(files, net()), OnnxRunner(net())
    for call in calls():
        got, want = runner(call), oracle(call)
        assert np.array_equal(got["i"], want["i"])
        # Two products of four terms, summed in another order: a few units of float32.
        assert np.abs(got["y"] - want["y"]).max() < 1e-5


def test_a_compiler_that_places_operators_itself_gets_the_whole_model() -> None:
    fact = '"compiler.places_host_ops" = { value = true, grade = "P", source = "s" }\n'
    _, files = lower(Undocumented("chipc", "Chip Inc."), fact)
    assert files["vendor/model.onnx"] == onnx_model(net())["model.onnx"]
    assert "vendor/partition.json" not in files


def test_the_compiler_runs_on_every_part_of_the_device(tmp_path: Path) -> None:
    target, files = lower(
        Compiler("chipc", "Chip Inc.", evidence="vendor-compiled"), folder=tmp_path
    )
    made = {name for name in files if name.endswith("model.bin")}
    assert made == {"vendor/part-00/model.bin", "vendor/part-02/model.bin"}
    assert files["vendor/part-00/model.bin"] != files["vendor/part-02/model.bin"]
    again = target.finish(
        {k: v for k, v in files.items() if k not in made}, LowerOptions(), tmp_path / "again"
    )
    assert made <= set(again.files) and again.evidence == "vendor-compiled"


@pytest.mark.parametrize("name", ["../x/", "part-00/../", "/etc/", "part-x/"])
def test_a_stranger_s_plan_names_no_other_folder(name: str, tmp_path: Path) -> None:
    """Folders that npuc would not give are not entered; what is left is no kit."""
    target, files = lower(
        Compiler("chipc", "Chip Inc.", evidence="vendor-compiled"), folder=tmp_path
    )
    plan = json.loads(files["vendor/partition.json"])
    for part in plan["parts"]:
        part["folder"] = name
    hostile = {**files, "vendor/partition.json": json.dumps(plan).encode()}
    with pytest.raises(ArtifactError, match="no complete hand-over kit"):
        target.finish(hostile, LowerOptions(), tmp_path / "again")
