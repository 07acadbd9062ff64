"""What is the same for every target is made once, and is the same as if it were made again."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.cache import front, whole
from npuc.errors import NpucError, OutputError, UsageError
from npuc.gate import locks
from npuc.gate.cache import Cache, Damaged
from npuc.policy import Policy
from npuc.program import Program
from npuc.progress import Silent
from npuc.report import Compiled


class Asked(Silent):
    """Writes the stages down."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)


def _run(
    source: Path, output: Path, store: Cache | None, target: str = "cpu", **options: Any
) -> tuple[Compiled, list[str]]:
    shown = Asked()
    request = whole.Request(str(source), (target,), output, Policy(), shown, options, {})
    (done,) = whole.compile(request, store)
    return done, shown.stages


@pytest.fixture(scope="module")
def begun(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cache]:
    """A model that was compiled for one target, and the store that has its front."""
    folder = tmp_path_factory.mktemp("fronts")
    (folder / "net.pt").write_bytes(recorded.read_bytes())
    store = Cache(folder / "cache")
    _, stages = _run(folder / "net.pt", folder / "first.npuc", store, precision="float")
    assert "export" in stages
    return folder / "net.pt", store


def test_a_second_target_takes_the_first_ones_export(
    begun: tuple[Path, Cache], tmp_path: Path
) -> None:
    source, store = begun
    for target in ("atom", "cpu"):
        done, stages = _run(source, tmp_path / "a.npuc", store, target, precision="int8")
        assert "export" not in stages and "reference" not in stages
        fresh, stages = _run(source, tmp_path / "b.npuc", None, target, precision="int8")
        assert "export" in stages
        assert done.report.to_json() == fresh.report.to_json()
        assert done.artifact_path.read_bytes() == fresh.artifact_path.read_bytes()


@pytest.mark.parametrize("options", [{"opset": 19}, {"eval_mode": True}, {"dims": {"batch": 2}}])
def test_what_changes_the_export_is_exported(
    begun: tuple[Path, Cache], tmp_path: Path, options: dict[str, Any]
) -> None:
    source, store = begun
    known = {
        whole._front_key(
            whole.Request(str(source), (target,), None, policy, Silent(), asked, {}), store
        )
        for target, policy, asked in (
            ("cpu", Policy(), {}),
            ("atom", Policy(), {"precision": "int8", "cpu": "x86-64-v3", "skip": ("n",)}),
            ("cpu", Policy(), options),
            ("cpu", Policy(sqnr_db=30), {}),
        )
    }
    assert len(known) == 3  # the first two are one


def test_a_damaged_export_is_made_again(begun: tuple[Path, Cache], tmp_path: Path) -> None:
    source, store = begun
    (entry,) = [p for p in store.entries.iterdir() if (p / "program.onnx").exists()]
    path = entry / "program.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Damaged, match=r"program.onnx is not what was kept"):
        store.files(entry.name)
    _, stages = _run(source, tmp_path / "a.npuc", store, precision="float", cpu="x86-64-v3")
    assert "export" in stages and any("damaged" in stage for stage in stages)
    assert store.files(entry.name) is not None


def test_an_export_of_what_changed_meanwhile_is_not_kept(tmp_path: Path) -> None:
    store, keys = Cache(tmp_path / "cache"), iter(["a" * 64, "b" * 64])
    fronts = front.Fronts(store, lambda: next(keys))
    with fronts.found(Policy(), Silent()) as found:
        assert found is None
        fronts.put(None)  # type: ignore[arg-type]
    assert list(store.entries.iterdir()) == []


def test_an_export_is_written_beside_what_follows_and_locked_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, key, go = Cache(tmp_path / "cache"), "a" * 64, threading.Event()

    def write(front: Any, folder: Path) -> None:
        assert go.wait(60)
        (folder / "made").write_bytes(b"1")

    monkeypatch.setattr(front, "_write", write)
    with front.Fronts(store, lambda: key) as fronts:
        with fronts.found(Policy(), Silent()):
            fronts.put(object())  # type: ignore[arg-type]
        assert store.files(key) is None
        with locks.tried(store.locks, key) as free:
            assert not free
        go.set()
    place = store.files(key)
    assert place is not None and (place / "made").exists()
    with locks.tried(store.locks, key) as free:
        assert free


def test_what_stops_the_writing_is_raised_unless_the_work_failed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, key = Cache(tmp_path / "cache"), "a" * 64

    def write(front: Any, folder: Path) -> None:
        raise OutputError("the disk is full")

    def compiled(fails: bool) -> None:
        with front.Fronts(store, lambda: key) as fronts:
            with fronts.found(Policy(), Silent()):
                fronts.put(object())  # type: ignore[arg-type]
            if fails:
                raise UsageError("the work failed")

    monkeypatch.setattr(front, "_write", write)
    for fails, text in ((False, "the disk is full"), (True, "the work failed")):
        with pytest.raises(NpucError, match=text):
            compiled(fails)
        with locks.tried(store.locks, key) as free:
            assert free and store.files(key) is None


def test_two_models_have_two_fronts(begun: tuple[Path, Cache], tmp_path: Path) -> None:
    source, store = begun
    other = tmp_path / "net.pt"
    other.write_bytes(source.read_bytes() + b"\0")
    asked = [
        whole.Request(str(p), ("cpu",), None, Policy(), Silent(), {}, {}) for p in (source, other)
    ]
    assert whole._front_key(asked[0], store) != whole._front_key(asked[1], store)


def test_a_second_target_takes_what_the_first_observed(recorded: Path, tmp_path: Path) -> None:
    source, store = tmp_path / "net.pt", Cache(tmp_path / "cache")
    source.write_bytes(recorded.read_bytes())
    _, first = _run(source, tmp_path / "a.npuc", store, precision="int8")
    assert "channels: take what was kept" not in first
    done, stages = _run(source, tmp_path / "b.npuc", store, precision="int8", correct_bias=False)
    assert "channels: take what was kept" in stages and "ranges: take what was kept" in stages
    fresh, _ = _run(source, tmp_path / "b.npuc", None, precision="int8", correct_bias=False)
    assert done.report.to_json() == fresh.report.to_json()


def _net(**weights: np.ndarray[Any, Any]) -> Program:
    x = ir.Value(name="x", shape=ir.Shape([64, 64]), type=ir.TensorType(ir.DataType.FLOAT))
    values = [ir.Value(name=n, const_value=ir.Tensor(a, name=n)) for n, a in weights.items()]
    node = ir.node("Sum", [x, *values])
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "y", x.shape, x.type
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=values, opset_imports={"": 20})
    return Program.from_model(ir.Model(graph, ir_version=10))


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_weights_of_both_programs_are_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Equal ones of one name; what a pass made anew, renamed or transposed is kept for itself."""
    monkeypatch.setattr(front, "PROTO_LIMIT", limit)
    drawn = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    drawn[0, 0] = np.nan
    exported = _net(same=drawn, turned=drawn, changed=drawn, gone=drawn + 1)
    program = _net(new=drawn + 2, same=drawn.copy(), turned=drawn.T, changed=drawn + 3)
    exported.save(tmp_path / "exported.onnx")
    front._write_program(program, exported, tmp_path)
    assert (tmp_path / "program.safetensors").exists() == (limit == 0)
    read = front._program(tmp_path / "exported.onnx", [])
    again = front._program(tmp_path / "program.onnx", [], read)
    for path in tmp_path.iterdir():
        path.unlink()
    mine, theirs = (p.model.graph.initializers for p in (again, read))
    assert list(mine) == list(program.model.graph.initializers)
    for name, value in program.model.graph.initializers.items():
        found, wanted = mine[name].const_value, value.const_value
        assert found is not None and wanted is not None
        assert np.array_equal(found.numpy(), wanted.numpy(), equal_nan=True)
        assert (name in theirs and found is theirs[name].const_value) == (
            name == "same" and limit > 0
        )
