"""Large constants leave the library for a file that is mapped; small ones stay."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import pytest

from npuc.errors import ArtifactError
from npuc.program import Program
from npuc.runners import OnnxRunner
from npuc.targets import tvm
from npuc.targets.tvm import mapped, runtime

FILE = "payload/model.constants"
rng = np.random.default_rng(0)
BIG = rng.standard_normal((160, 160)).astype(np.float32)


def program(*weights: np.ndarray[Any, Any]) -> Program:
    """x @ w0 @ w1 …, with a shift that is small."""
    value, nodes, held = "x", [], []
    for at, array in enumerate(weights):
        held.append(onnx.numpy_helper.from_array(array, f"w{at}"))
        nodes.append(oh.make_node("MatMul", [value, f"w{at}"], [f"y{at}"]))
        value = f"y{at}"
    held.append(onnx.numpy_helper.from_array(np.array([0.5], np.float32), "shift"))
    nodes.append(oh.make_node("Add", [value, "shift"], ["y"]))
    ports = [oh.make_tensor_value_info(n, 1, [3, 160]) for n in ("x", "y")]
    graph = oh.make_graph(nodes, "g", ports[:1], ports[1:], held)
    made = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(made)))


def call() -> dict[str, np.ndarray[Any, Any]]:
    return {"x": rng.standard_normal((3, 160)).astype(np.float32)}


def test_large_constants_are_in_a_file_of_their_own_at_aligned_places() -> None:
    files = tvm.lower(program(BIG, BIG + 1)).files
    (entry,) = json.loads(files[runtime.INDEX])["segments"]
    offsets = [offset for _, _, offset in entry["constants"]["tensors"]]
    assert len(offsets) == 2 and all(offset % mapped.ALIGNMENT == 0 for offset in offsets)
    assert len(files[FILE]) >= 2 * BIG.nbytes > len(files[runtime.SHARED_OBJECT])


def test_answers_are_right_and_the_file_is_not_written_to() -> None:
    whole = program(BIG, BIG + 1)
    files = dict(tvm.lower(whole).files)
    before = files[FILE]
    run, x = tvm.load(files, whole), call()
    want = OnnxRunner(whole)(x)["y"]
    for _ in range(2):
        # Either side is 3.1e-4 from float64 at most, where answers reach 750.
        np.testing.assert_allclose(run(x)["y"], want, rtol=0, atol=1e-3)
    assert files[FILE] == before


def test_equal_constants_are_stored_once() -> None:
    twice = tvm.lower(program(BIG, BIG)).files
    assert len(twice[FILE]) == len(tvm.lower(program(BIG)).files[FILE])


def test_small_constants_stay_in_the_library() -> None:
    small = np.eye(160, dtype=np.float32)[:, :8]
    assert small.nbytes < mapped.LEAST
    made = program(np.ascontiguousarray(small), np.ascontiguousarray(small.T))
    files = tvm.lower(made).files
    assert FILE not in files and "constants" not in json.loads(files[runtime.INDEX])["segments"][0]


def test_an_artifact_without_its_constants_says_so() -> None:
    whole = program(BIG)
    files = {name: data for name, data in tvm.lower(whole).files.items() if name != FILE}
    with pytest.raises(ArtifactError, match=r"no payload/model\.constants"):
        tvm.load(files, whole)


def test_running_an_artifact_loads_neither_torch_nor_onnx(tmp_path: Path) -> None:
    from npuc import artifact
    from npuc.manifest import Manifest

    whole = program(BIG)
    path, inputs = tmp_path / "x.npuc", tmp_path / "x.npz"
    lowered = tvm.lower(whole)
    manifest = Manifest("cpu", "float", "device", whole.inputs, whole.outputs)
    members: dict[str, bytes | Path] = {**artifact.model_files(whole, tmp_path), **lowered.files}
    artifact.write(path, manifest, members)
    np.savez(inputs, allow_pickle=False, **call())
    code = (
        "import sys\nfrom npuc.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print(sorted({'torch', 'tvm', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "run", str(path), "--inputs", str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
