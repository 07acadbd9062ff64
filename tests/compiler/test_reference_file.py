"""A reference in a file of its own: another machine, no torch, no model."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import npuc
import npuc.trust
from npuc import floors, inner, pipeline, record, stored, summary
from npuc.answers import Reference
from npuc.cli import main
from npuc.errors import ExportError, LoadError, ParityError, UsageError
from npuc.export import export
from npuc.load import load


class Blocks(nn.Module):
    """A body of two layers, called twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.split = Halves()
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.split(self.features(self.features(x)))
        out: torch.Tensor = self.head(torch.cat((high, low), 1))
        return out


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :3], x[:, 3:]


def make() -> Blocks:
    torch.manual_seed(0)
    return Blocks().eval()


def save(folder: Path, **options: Any) -> Reference:
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
    call: dict[str, Any] = {"dynamic_shapes": {"x": {0: "batch"}}, "samples": x, **options}
    return npuc.save(make(), x[:4], folder / "m.pt", reference=folder / "m.ref", **call)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.pt, m.ref with twenty calls of four, and artifacts for batch 1 and 4."""
    folder = tmp_path_factory.mktemp("compiled")
    save(folder)
    for batch in (1, 4):
        pipeline.compile(
            folder / "m.pt", target="cpu", output=folder / f"b{batch}.npuc", dims={"batch": batch}
        )
    return folder


NO_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("no torch on this machine")

sys.meta_path.insert(0, Absent())
try:
    import torch
except ImportError:
    from npuc.cli import main
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("batch", [1, 4])
def test_verify_without_torch_and_without_the_model(
    compiled: Path, tmp_path: Path, batch: int
) -> None:
    for name in (f"b{batch}.npuc", "m.ref"):
        (tmp_path / name).write_bytes((compiled / name).read_bytes())
    words = ["verify", f"b{batch}.npuc", "--reference", "m.ref", "--strict", "--json"]
    run = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr + run.stdout
    import json

    report = json.loads(run.stdout)
    assert report["passed"] and report["rows"][-1]["calls"] == 20  # the artifact itself holds 16
    assert report["fingerprint"]["id"] == stored.read(compiled / "m.ref").id


def test_a_wrong_answer_anywhere_is_found(compiled: Path, tmp_path: Path) -> None:
    """In the last sample, which the artifact does not hold."""
    found = stored.read(compiled / "m.ref")
    outputs = [dict(call) for call in found.outputs]
    outputs[-1] = {"output": outputs[-1]["output"] + np.float32(1e-3)}
    fingerprint = {k: v for k, v in found.fingerprint.items() if k != "id"}
    stored.write(
        replace(found, outputs=tuple(outputs), fingerprint=fingerprint), tmp_path / "x.ref"
    )
    report = pipeline.verify(compiled / "b4.npuc", reference=tmp_path / "x.ref")
    assert not report.passed and "max abs" in report.failures[0].faults[0]
    assert pipeline.verify(compiled / "b4.npuc", reference=compiled / "m.pt").passed


def test_a_reference_of_another_model_lists_every_misfit(compiled: Path, tmp_path: Path) -> None:
    class Other(nn.Module):
        def forward(self, x: torch.Tensor, extra: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"output": x * 2, "more": extra}

    npuc.save(
        Other().eval(), (torch.zeros(4, 7).double(), torch.zeros(2)), tmp_path / "o.pt",
        reference=tmp_path / "o.ref",
    )  # fmt: skip
    with pytest.raises(ParityError) as caught:
        pipeline.verify(compiled / "b4.npuc", reference=tmp_path / "o.ref")
    for part in (
        "no input 'extra'", "input x is 4x7", "input x is float64", "no output 'more'",
        "output output is 4x7", "npuc record MODEL",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_calls_that_cannot_be_cut(compiled: Path, tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    save(tmp_path, samples=[x])
    with pytest.raises(ParityError, match="cannot be split"):
        pipeline.verify(compiled / "b4.npuc", reference=tmp_path / "m.ref")


def test_other_weights_are_named(compiled: Path, tmp_path: Path) -> None:
    found = stored.read(compiled / "m.ref")
    about = {k: v for k, v in found.fingerprint.items() if k != "id"} | {"sha256_weights": "f" * 64}
    stored.write(replace(found, fingerprint=about), tmp_path / "x.ref")
    report = pipeline.verify(compiled / "b1.npuc", reference=tmp_path / "x.ref")
    assert any("weights ffffffffffff" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["onnx", "weights"])
def test_a_model_compiled_with_a_reference_from_elsewhere(
    compiled: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: dict[str, Any] = {}
    if kind == "onnx":
        path = tmp_path / "m.onnx"
        onnx.save(onnx.load_from_string(export(load(compiled / "m.pt")).serialized() or b""), path)
    else:
        path = tmp_path / "w.pt"
        torch.save(make().state_dict(), path)
        (tmp_path / "blocks_here.py").write_text(
            "import sys\nmake = sys.modules['under_test'].make\n"
        )
        monkeypatch.setitem(sys.modules, "under_test", sys.modules[__name__])
        call = {"model": "blocks_here:make", "model_path": str(tmp_path)}
    (done,) = pipeline.compile(
        path, target="cpu", output=tmp_path, reference=compiled / "m.ref", **call
    )
    assert done.passed and done.report.rows[0].calls == 8
    assert done.report.fingerprint["inputs"] == "recorded by npuc.save"
    with pytest.raises(UsageError, match="cannot be other samples"):
        pipeline.compile(
            path, target="cpu", output=tmp_path, reference=compiled / "m.ref",
            samples=[{"x": np.zeros((4, 6), np.float32)}], **call,
        )  # fmt: skip


@pytest.mark.parametrize("place", [40, -3])
def test_damage_is_found(compiled: Path, tmp_path: Path, place: int) -> None:
    data = bytearray((compiled / "m.ref").read_bytes())
    data[place] ^= 2
    (tmp_path / "bad.ref").write_bytes(data)
    with pytest.raises(LoadError, match="damaged"):
        stored.read(tmp_path / "bad.ref")


def test_an_edited_noise_is_found(compiled: Path, tmp_path: Path) -> None:
    """A bar made wider by hand, in a file that is whole."""
    found = stored.read(compiled / "m.ref")
    floor = {name: replace(f, max_abs=1.0) for name, f in found.floor.items()}
    stored.write(replace(found, floor=floor), tmp_path / "wide.ref")
    with pytest.raises(LoadError, match="it was recorded as"):
        stored.read(tmp_path / "wide.ref")


def test_what_is_no_reference(compiled: Path, tmp_path: Path, pt2: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, error in ((tmp_path / "text", LoadError), (tmp_path / "none", UsageError)):
        with pytest.raises(error):
            stored.read(path)
    with pytest.raises(LoadError, match="no recorded answers"):
        stored.read(pt2)
    assert not stored.is_reference(pt2) and not stored.is_reference(tmp_path)
    with pytest.raises(UsageError, match="holds answers, not a model"):
        pipeline.verify(compiled / "b1.npuc", against=compiled / "m.ref")
    with pytest.raises(UsageError, match="not one sample"):
        record.answered(load(compiled / "m.pt"), [])


def test_files_of_format_1_load(compiled: Path) -> None:
    """As npuc 0.1 wrote them: one floor, no id, no calibration in artifacts."""
    found = stored.read(compiled / "m.ref")
    stated = stored.about(found)
    old = {k: stated[k] for k in ("inputs", "outputs", "floor", "fingerprint", "axes")}
    old["fingerprint"] = {k: v for k, v in old["fingerprint"].items() if k != "id"}
    arrays = stored.tensors(found)
    header = stored.build({**old, "format": 1, "samples": 20, "calibration": None}, arrays)
    member = stored.build({**old, "calls": 20}, arrays)
    for back, count in ((header, 20), (member, 0)):
        assert back.floor == found.floor and back.noise is None
        assert len(back.samples) == 20 and len(back.calibration) == count
        assert any("older npuc" in doubt for doubt in npuc.trust.doubts(back))
    with pytest.raises(ValueError, match="format 3"):
        stored.build({**stated, "format": 3}, arrays)


# Intermediates ---------------------------------------------------------------------------------


def test_intermediates_are_kept_with_their_noise(tmp_path: Path) -> None:
    names = ["features.0", "features", "split", "head"]
    found = save(tmp_path, intermediates=names)
    assert len(found.intermediates) == 4 < len(found.samples)
    call = found.intermediates[0]
    assert set(call) == {
        "features.0", "features.0@1", "features", "features@1", "split:0", "split:1", "head",
    }  # fmt: skip
    with torch.no_grad():
        want = make().features(torch.from_numpy(found.samples[0]["x"])).numpy()
    assert np.array_equal(call["features"], want)
    assert np.array_equal(call["head"], found.outputs[0]["output"])
    assert found.inner is not None and found.noise is not None
    assert 0 < found.inner.rounding["features"].max_abs < 1e-6
    assert found.inner.spread["features"].max_abs == 0
    back = stored.read(tmp_path / "m.ref")
    assert back.id == found.id and back.inner == found.inner
    assert np.array_equal(back.intermediates[3]["split:1"], found.intermediates[3]["split:1"])


def test_unknown_intermediates_are_all_listed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        save(tmp_path, intermediates=["head", "feature.0", "hed"])
    assert "'feature.0' (did you mean 'features.0'?), 'hed' (did you mean 'head'?)" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []


def test_the_exported_program_is_compared_inside(tmp_path: Path) -> None:
    found = save(tmp_path, intermediates=["features.0", "head"])
    program = export(load(tmp_path / "m.pt"))
    (line,) = inner.compare(found, program)
    assert "head " in line and "times its noise" in line
    wrong = [{**c, "head": c["head"] + np.float32(0.25)} for c in found.intermediates]
    (line,) = inner.compare(replace(found, intermediates=tuple(wrong)), program)
    assert "head 2.50e-01" in line


def test_a_captured_graph_gives_the_same_intermediates(tmp_path: Path) -> None:
    found = save(tmp_path, intermediates=["features", "head"])
    loaded = load(tmp_path / "m.pt")
    again = record.answered(loaded, found.samples, (), ["features", "head"])
    for one, other in zip(found.intermediates, again.intermediates, strict=True):
        assert set(one) == set(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert again.inner == found.inner
    graph: Any = loaded.captured.native
    assert not [n for n in graph.graph.nodes if getattr(n.target, "__name__", "") == "keep"]


# Size ------------------------------------------------------------------------------------------


def test_a_reference_that_is_too_large_says_what_would_fit(tmp_path: Path) -> None:
    each = 4 * (6 + 3) * 4
    with pytest.raises(UsageError) as caught:
        save(tmp_path, max_bytes=7 * each + 10)
    assert "7 of the 20 samples would fit" in str(caught.value)
    assert "record the first 7" in str(caught.value) and "--max-size 1MB" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    save(tmp_path, max_bytes=20 * each)


def test_too_large_is_said_before_the_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("all samples were run")

    monkeypatch.setattr(record, "record_reference", never)
    with pytest.raises(UsageError, match="would fit"):
        save(tmp_path, max_bytes=100)


def test_record_writes_reference_and_summary(
    compiled: Path, tmp_path: Path, npz: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = npz({"x": np.ones((9, 4, 6), np.float32)})
    model, out, ref = compiled / "m.pt", tmp_path / "r.pt", tmp_path / "r.ref"
    tuning = npz({"x": np.ones((3, 4, 6), np.float32)}, "tuning.npz")
    words = ["record", str(model), "--inputs", str(data), "--calibration", str(tuning)]
    assert main([*words, "-o", str(out), "--reference", str(ref), "--intermediate", "head"]) == 0
    assert "9 calls" in capsys.readouterr().out
    found = stored.read(ref)
    assert found.id == stored.read(out).id and len(found.intermediates) == 4
    assert len(found.samples) == 9 and len(found.calibration) == 3
    text = summary.beside(ref).read_text()
    assert text == summary.text(found) == summary.beside(out).read_text()
    lines = text.splitlines()
    assert lines[0] == "npuc reference" and lines[1:] == sorted(lines[1:])
    for part in (found.id, "intermediate.head.rounding", "float32 batchx6", "doubt.1"):
        assert part in text
    for bad in (
        [*words, "--reference", str(ref), "--max-size", "100B"],
        [*words, "--reference", str(ref), "--max-size", "lots"],
        words,
        ["record", "--inputs", str(data), "-o", str(out)],
    ):
        assert main(bad) == 2
    # Nine times the same input: strict refuses, for every answer is the same.
    assert main([*words, "--reference", str(tmp_path / "s.ref"), "--strict"]) == 6
    assert not (tmp_path / "s.ref").exists()


def test_an_onnx_model_has_a_reference_alone(
    compiled: Path, tmp_path: Path, npz: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load_from_string(export(load(compiled / "m.pt")).serialized() or b""), path)
    data = npz({"x": np.ones((9, 4, 6), np.float32)})
    words = ["record", str(path), "--inputs", str(data)]
    assert main([*words, "-o", str(tmp_path / "o.pt")]) == 2
    assert main([*words, "--reference", str(tmp_path / "o.ref")]) == 0
    assert pipeline.verify(compiled / "b4.npuc", reference=tmp_path / "o.ref").passed
    assert main(["record", str(path), "--update", str(tmp_path / "o.ref"), "--check"]) == 0
    assert main(["inspect", str(tmp_path / "o.ref")]) == 0
    assert stored.read(tmp_path / "o.ref").id in capsys.readouterr().out


class Best(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.topk(x, 2)


def test_containers_that_torch_cannot_name_in_a_file_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"topk.*\n→ return plain tuples"):
        npuc.save(Best().eval(), torch.randn(2, 8), tmp_path / "best.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_example_cut_from_a_data_set_does_not_take_it_along(tmp_path: Path) -> None:
    everything = torch.randn(50_000, 8)
    npuc.save(nn.Linear(8, 2).eval(), everything[:1], tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 100_000 < everything.nbytes


def test_answers_of_other_lengths_have_no_distance() -> None:
    kept, fewer = {"kept": np.array([[0, 0, 7]])}, {"kept": np.zeros((0, 3), np.int64)}
    assert floors.distance([kept], [fewer])["kept"] == floors.Floor(0.0, 0.0, 7.0)
