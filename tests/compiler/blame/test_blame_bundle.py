"""The bundle shows the fault by its own command, in a fresh process."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import blame
from npuc.blame.bundle import LIMIT
from npuc.passes.fix_shapes import FixShapes
from npuc.targets import tvm

MEMBERS = {
    "README.txt", "__main__.py", "bad.onnx", "environment.json", "expected.npz", "got.npz",
    "inputs.npz", "reproduce.py", "settings.json",
}  # fmt: skip


def shown(path: Path, *before: str) -> "subprocess.CompletedProcess[str]":
    """Run a bundle as its README says."""
    command = [sys.executable, *before, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def softmax_axis(model: ir.Model) -> None:
    """Let a softmax run along another axis."""
    for node in model.graph:
        if node.op_type == "Softmax":
            node.attributes.pop("axis", None)
            node.attributes.add(ir.convenience.convert_attributes({"axis": 2})[0])


@pytest.fixture(scope="module")
def made(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a pass that breaks a convolution's weight, with its weights drawn anew."""
    from unittest import mock

    path = tmp_path_factory.mktemp("bundle") / "fault.zip"
    plain = FixShapes.apply

    def wrong(self: Any, model: ir.Model, profile: Any) -> Any:
        outcome = plain(self, model, profile)
        node = [n for n in model.graph if n.op_type == "Conv"][2]
        node.attributes.pop("pads", None)
        node.attributes.add(ir.convenience.convert_attributes({"pads": [0, 0, 2, 2]})[0])
        return outcome

    with mock.patch.object(FixShapes, "apply", wrong):
        found = blame.find(blocks, target="cpu", precision="float", bundle=path, randomize=True)
    assert found.bundle == path and found.randomized and found.command == f"python {path}"
    return path


def test_it_shows_the_fault_in_a_fresh_process_without_npuc(made: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "npuc.py"
    blocked.write_text("raise ImportError('npuc is not needed here')")
    done = subprocess.run(
        [sys.executable, str(made)], capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG" in done.stdout and "FAULT: it is there" in done.stdout


def test_it_is_small_and_says_what_it_is(made: Path) -> None:
    assert made.stat().st_size < LIMIT
    with zipfile.ZipFile(made) as archive:
        assert set(archive.namelist()) == MEMBERS | {"good.onnx"}
        environment = json.loads(archive.read("environment.json"))
        readme = archive.read("README.txt").decode()
        bad, good = (onnx.load_from_string(archive.read(f"{n}.onnx")) for n in ("bad", "good"))
    assert environment["target"] == "cpu" and "onnxruntime" in environment["versions"]
    assert "sha256_weights" in environment["fingerprint"]
    assert "Weights and inputs are random" in readme and "fix-shapes" in readme
    assert [n.op_type for n in bad.graph.node] == [n.op_type for n in good.graph.node] == ["Conv"]


def test_one_sample_is_left_of_the_batch(made: Path) -> None:
    with zipfile.ZipFile(made) as archive, archive.open("inputs.npz") as file:
        arrays = np.load(file)
        assert [arrays[name].shape[0] for name in arrays.files] == [1]


def test_it_ends_well_once_the_graph_is_mended(made: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "bad.onnx").write_bytes((tmp_path / "good.onnx").read_bytes())
    done = shown(tmp_path / "reproduce.py")
    assert done.returncode == 0 and "the fault is gone" in done.stdout


def test_a_lowering_fault_is_compiled_again_by_its_bundle(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tvm.lower

    def wrong(program: Any, **options: Any) -> Any:
        copy = program.clone()
        softmax_axis(copy.model)
        return plain(copy, **options)

    path = tmp_path / "lowering.zip"
    monkeypatch.setattr(tvm, "lower", wrong)
    found = blame.find(blocks, target="cpu", precision="float", bundle=path)
    assert found.kind == "lowering" and path.stat().st_size < LIMIT
    monkeypatch.undo()
    healthy = shown(path)  # this process's fault is not in a fresh one's compiler
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
        assert set(archive.namelist()) == MEMBERS
    monkeypatch.setattr(tvm, "lower", wrong)
    monkeypatch.syspath_prepend(str(tmp_path))
    import reproduce  # type: ignore[import-not-found]

    assert reproduce.main() == 1


def test_nothing_to_blame_writes_nothing(blocks: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.zip"
    found = blame.find(blocks, target="cpu", precision="float", bundle=path)
    assert not found.found and not path.exists()
