"""From a model to artifacts and reports: sources, options, wrong passes, verify and finish."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from npuc import artifact, passes, per_target, pipeline, stored
from npuc.errors import OutputError, ParityError, ToolchainError, UnsupportedError, UsageError
from npuc.members import MODEL, PARITY, REFERENCE
from npuc.passes.base import Pass, Result
from npuc.pipeline import Compiled, compile, verify
from npuc.policy import Policy
from npuc.profile import Profile
from npuc.report import SCHEMA

Artifacts = Mapping[str, Path]
FAKE = Path(__file__).parents[1] / "targets" / "fake_rebel"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, without the vendor's SDK."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NPUC_ATOM_PYTHON", f"{sys.executable} -I -S")
    return tmp_path


def only(done: Sequence[Compiled]) -> Compiled:
    (one,) = done
    return one


def stages(done: Compiled) -> list[str]:
    return [row.stage for row in done.report.rows]


def write_onnx(text: str, name: str = "net.onnx") -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    onnx.save(model, name)
    return Path(name)


TANH = "net (float[n, 3] x) => (float[n, 3] y) { y = Tanh (x) }"


def test_a_recorded_model_for_both_targets(artifacts: Artifacts) -> None:
    """The report reaches from the recorded answers to the artifact, and is inside it."""
    for target, path in artifacts.items():
        opened = artifact.read(path)
        opened.verify()
        assert path.name == f"net.{target}.npuc"
        report = json.loads(opened[PARITY])
        assert report["schema"] == SCHEMA and report["passed"] is True
        names = [row["stage"] for row in report["rows"]]
        assert names[0] == "exported" and "artifact" in names
        assert ("quantize" in names) is (target == "atom")
        assert report["rows"][0]["sizes"] == 2 and report["dims"] == {"batch": 8}
        assert report["reference"].startswith("recorded by npuc.save (cpu, torch ")
        assert {"torch", "device", "sha256_weights"} <= set(report["fingerprint"])
        assert all(row["state"] in ("ok", "shown") for row in report["rows"])
        reference = stored.decode(opened[REFERENCE])
        assert len(reference.samples) == 3 and reference.samples[0]["x"].shape == (8, 1, 6, 6)
        assert opened.manifest.inputs[0].shape == (8, 1, 6, 6)
        assert opened.manifest.evidence == ("device" if target == "cpu" else "twin")


def test_the_artifacts_loss_is_measured_not_assumed(artifacts: Artifacts) -> None:
    """Against the stored original: float answers are near exact, int8 ones are not."""
    loss = {t: min(d.sqnr_db for d in verify(p).rows[0].original) for t, p in artifacts.items()}
    assert loss["cpu"] > 100 and 20 < loss["atom"] < 80


def test_a_module_in_memory(machine: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).eval()
    done = only(compile(net, target="cpu", inputs=["batch=2x3:float32"]))
    assert done.passed and done.artifact_path == Path("Sequential.cpu.npuc")
    assert done.report.reference.startswith("random inputs")
    assert any("RANDOM" in note for note in done.report.notes)
    given = [{"input": np.ones((5, 3), np.float32)}]
    real = only(compile(net, target="cpu", inputs=["batch=2x3:float32"], samples=given))
    assert real.report.dims == {"batch": 5} and not real.report.notes
    stored_calls = stored.decode(artifact.read(real.artifact_path)[REFERENCE])
    with torch.no_grad():
        want = net(torch.ones(5, 3)).numpy()
    assert np.array_equal(next(iter(stored_calls.outputs[0].values())), want)


def test_an_onnx_file_says_loudly_that_its_inputs_are_random() -> None:
    source = write_onnx(TANH)
    done = only(compile(source, target="atom"))
    assert "reference: random inputs" in done.report.table()
    assert [n for n in done.report.notes if "RANDOM" in n][1].startswith("ranges come from RANDOM")
    manifest = artifact.read(done.artifact_path).manifest
    assert manifest.precision == "int8"
    data = [{"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}]
    notes = only(compile(source, target="atom", calibration=data)).report.notes
    assert [n for n in notes if "RANDOM" in n] == [n for n in notes if "compared on RANDOM" in n]
    assert not any("RANDOM" in n for n in only(
        compile(source, target="atom", samples=data)).report.notes)  # fmt: skip


def test_scalars_stay_scalars() -> None:
    source = write_onnx(
        "net (float s, float[2, 3] x) => (float[2, 3] y, float z) { y = Mul (x, s) z = Exp (s) }"
    )
    for done in compile(source, target=["cpu", "atom"]):
        assert done.passed
        assert [p.shape for p in artifact.read(done.artifact_path).manifest.outputs] == [(2, 3), ()]
        assert verify(done.artifact_path).passed


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_smaller_batch_is_checked_on_the_recorded_answers(recorded: Path, size: int) -> None:
    done = only(compile(recorded, target="cpu", dims={"batch": size}))
    assert done.passed and done.report.dims == {"batch": size}
    assert done.report.reference.startswith("recorded by npuc.save (")
    reference = stored.decode(artifact.read(done.artifact_path)[REFERENCE])
    assert len(reference.samples) == min(per_target.STORED, 24 // size)


def test_a_batch_that_does_not_divide_is_answered_here(recorded: Path) -> None:
    done = only(compile(recorded, target="cpu", dims={"batch": 3}))
    assert done.passed
    assert "reference: recorded by npuc.save, resized and answered here" in done.report.table()


def test_an_unknown_dimension(recorded: Path, machine: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean batch\?"):
        compile(recorded, target="cpu", dims={"bach": 1})
    assert list(machine.glob("*.npuc")) == []


def test_precisions(recorded: Path) -> None:
    exact = only(compile(recorded, target="atom", precision="float"))
    assert exact.passed and "quantize" not in stages(exact) and "round-floats" in stages(exact)
    with pytest.raises(UsageError) as caught:
        compile(recorded, target=["cpu", "atom"], precision="int4")
    assert "precision 'int4' is not available: cpu has float" in str(caught.value)
    assert "atom has int8, float" in str(caught.value)


def ranges(done: Compiled) -> list[bytes]:
    model = artifact.program(artifact.read(done.artifact_path)).model
    kinds = ("QuantizeLinear",)
    return [n.inputs[1].const_value.tobytes() for n in model.graph if n.op_type in kinds]  # type: ignore[union-attr]


def test_observers_choose_other_ranges(recorded: Path) -> None:
    found = [
        ranges(only(compile(recorded, target="atom", observer=name))) for name in ("min-max", "mse")
    ]
    assert found[0] and len(found[0]) == len(found[1]) and found[0] != found[1]
    with pytest.raises(UsageError, match="min-max"):
        compile(recorded, target="atom", observer="maximal")


def quantized(done: Compiled) -> int:
    model = artifact.program(artifact.read(done.artifact_path)).model
    return sum(node.op_type == "DequantizeLinear" for node in model.graph)


def test_a_skipped_node_stays_in_float(recorded: Path, artifacts: Artifacts) -> None:
    program = artifact.program(artifact.read(artifacts["cpu"]))
    conv = next(n for n in program.model.graph if n.op_type == "Conv")
    assert conv.name
    one = only(compile(recorded, target="atom", skip=[conv.name]))
    assert 0 < quantized(one) < quantized(only(compile(recorded, target="atom")))
    with pytest.raises(UsageError) as caught:
        compile(recorded, target="atom", skip=[conv.name + "x", "gone"])
    assert f"no node '{conv.name}x', 'gone'" in str(caught.value)
    assert f"did you mean {conv.name!r}?" in caught.value.hint


def test_dump_writes_every_program(recorded: Path, machine: Path) -> None:
    done = compile(recorded, target=["cpu", "atom"], dump="dump")
    common = sorted(p.name for p in Path("dump").glob("*.onnx"))
    assert common[0] == "01-fold-constants.onnx" and "05-fix-shapes.onnx" in common
    atom = sorted(p.stem.split("-", 1)[1] for p in Path("dump/atom").glob("*.onnx"))
    assert "quantize" in atom and "round-floats" in atom
    for path in Path("dump").rglob("*.onnx"):
        onnx.checker.check_model(str(path))
    assert all(c.passed for c in done)
    Path("file").write_text("")
    with pytest.raises(OutputError, match="cannot write file"):
        compile(recorded, target="cpu", dump="file")


DET = """net (float[2, 3, 3] x) => (float[2] y, float[2] z)
{ y = Det (x)  a = Tanh (x)  z = Det (a) }"""


def test_every_unsupported_operator_is_named(machine: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        compile(write_onnx(DET), target="cpu")
    text = str(caught.value)
    assert "2 operators" in text and "  Det " in text and "Det_0" in text and "Det_2" in text
    assert "--fallback ort" in text and caught.value.exit_code == 4
    assert list(machine.glob("*.npuc")) == []


def test_fallback_says_what_runs_where() -> None:
    done = only(compile(write_onnx(DET), target="cpu", fallback="ort"))
    assert done.passed and done.report.placement == {"Det": "onnxruntime", "Tanh": "tvm"}
    assert artifact.read(done.artifact_path).manifest.placement == done.report.placement
    assert verify(done.artifact_path).passed


class Wrong(Pass):
    """Multiplies the first output; subclasses say by what."""

    name: ClassVar[str] = "wrong"
    factor: ClassVar[float] = 1.001

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Insert the factor behind the output."""
        value = model.graph.outputs[0]
        tensor = ir.tensor(np.array(self.factor, np.float32), name="wrong_factor")
        held = ir.Value(name="wrong_factor", shape=ir.Shape([]), type=ir.TensorType(tensor.dtype))
        held.const_value = tensor
        model.graph.register_initializer(held)
        name, value.name = value.name, "wrong_inner"
        node = ir.node("Mul", [value, held])
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = (
            name, value.shape, value.type,
        )  # fmt: skip
        model.graph.append(node)
        model.graph.outputs[0] = node.outputs[0]
        return Result(1)


class OptionalWrong(Wrong):
    """May be undone."""

    optional: ClassVar[bool] = True


class Lossy(Wrong):
    """May cost precision, and costs too much."""

    exact: ClassVar[bool] = False
    factor: ClassVar[float] = 2.0


def with_pass(monkeypatch: pytest.MonkeyPatch, item: Pass) -> None:
    """Put a pass behind the first standard one."""

    def standard(dims: Mapping[str, int]) -> tuple[Pass, ...]:
        first, *others = passes.standard(dims)
        return (first, item, *others)

    monkeypatch.setattr(pipeline, "standard", standard)


def test_a_wrong_required_pass_ends_the_compile(
    recorded: Path, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_pass(monkeypatch, Wrong())
    with pytest.raises(ParityError) as caught:
        compile(recorded, target=["cpu", "atom"])
    text = str(caught.value)
    assert "wrong changed the answer" in text and "times the bar" in text
    assert "in pass 'wrong', after ['fold-constants']" in text and caught.value.exit_code == 6
    assert list(machine.glob("*.npuc")) == []


def test_a_wrong_optional_pass_is_undone_and_reported(
    recorded: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_pass(monkeypatch, OptionalWrong())
    for done in compile(recorded, target=["cpu", "atom"]):
        assert done.passed
        row = done.report.rows[2]
        assert (row.stage, row.state) == ("wrong", "rolled back")
        assert "rolled back: wrong: wrong changed the answer" in done.report.table()
        opened = artifact.read(done.artifact_path)
        (step,) = [s for s in opened.manifest.steps if s.rolled_back]
        assert step.name == "wrong"
        right = artifact.read(artifacts[done.report.target])
        assert opened[MODEL] == right[MODEL]


def test_a_lossy_pass_that_costs_too_much_fails_the_report_and_is_written(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_pass(monkeypatch, Lossy())
    done = only(compile(recorded, target="cpu"))
    assert not done.passed and done.report.exit_code == 6 and done.artifact_path.exists()
    assert done.report.failures[0].stage == "wrong"
    assert not verify(done.artifact_path).passed


def test_a_policy_decides(recorded: Path) -> None:
    done = only(compile(recorded, target="atom", policy=Policy(sqnr_db=90)))
    assert done.report.exit_code == 6 and done.report.failures[0].stage == "correct-bias"
    assert "SQNR >= 90 dB" in done.report.table()
    assert verify(done.artifact_path).passed  # under the default policy


def test_verify_passes_on_what_was_just_compiled(artifacts: Artifacts, recorded: Path) -> None:
    for path in artifacts.values():
        report = verify(path)
        assert report.passed and [row.stage for row in report.rows] == ["artifact"]
        assert report.rows[0].calls == 3
        again = verify(path, against=recorded)
        assert again.passed and again.reference.startswith("given")


def doctored(path: Path, edit: Callable[[Any], Any]) -> Path:
    """Write an artifact anew, with all hashes right, and other answers in its reference."""
    opened = artifact.read(path)
    reference = edit(stored.decode(opened[REFERENCE]))
    files: dict[str, bytes | Path] = {**opened, REFERENCE: stored.encode(reference)}
    artifact.write(Path("doctored.npuc"), opened.manifest, files)
    return Path("doctored.npuc")


def test_verify_finds_answers_that_changed(artifacts: Artifacts, recorded: Path) -> None:
    """The hashes are right: only running it shows that the artifact answers otherwise."""

    def move(reference: Any) -> Any:
        *first, last = reference.outputs
        other = {k: v + np.float32(0.01) for k, v in last.items()}
        return replace(reference, outputs=(*first, other))

    path = doctored(artifacts["cpu"], move)
    report = verify(path)
    assert report.exit_code == 6 and "max abs 0.01 >" in report.table()
    assert "FAILED: artifact" in report.table()
    assert verify(path, against=recorded).passed  # the model itself disagrees with the doctored


def test_verify_against_another_model(artifacts: Artifacts) -> None:
    source = write_onnx(
        "other (float[batch, 1, 6, 6] x) => (float[batch, 5] output) "
        "<int64[2] s = {0, -1}, int64[2] a = {0, 0}, int64[2] e = {100, 5}, int64[2] i = {0, 1}> "
        "{ f = Reshape (x, s) output = Slice (f, a, e, i) }"
    )
    report = verify(artifacts["cpu"], against=source)
    assert report.exit_code == 6 and not report.passed


def test_verify_on_other_samples_needs_the_model(artifacts: Artifacts, recorded: Path) -> None:
    given = [{"x": np.ones((8, 1, 6, 6), np.float32)}]
    with pytest.raises(UsageError, match="--against"):
        verify(artifacts["cpu"], samples=given)
    report = verify(artifacts["cpu"], samples=given, against=recorded)
    assert report.passed and report.rows[0].calls == 1


def test_finish_adds_the_vendors_binary(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = artifacts["atom"]
    with pytest.raises(ToolchainError, match="not installed"):
        compile(source, target="atom")
    monkeypatch.setenv("NPUC_ATOM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    done = only(compile(source, target="atom"))
    assert done.passed and done.artifact_path == Path("net.atom.vendor.npuc")
    before, after = artifact.read(source), artifact.read(done.artifact_path)
    after.verify()
    assert after["vendor/model.rbln"].startswith(b"FAKE-RBLN")
    assert after.manifest.evidence == "vendor-compiled" == done.report.evidence
    assert set(after) - set(before) == {"vendor/model.rbln", "vendor/compile.log"}
    assert after[MODEL] == before[MODEL]
    assert after.manifest.steps == before.manifest.steps
    assert "FAKE" not in json.loads(after[PARITY])["vendor"]
    assert verify(done.artifact_path).passed


def test_an_artifact_cannot_be_compiled_for_something_else(artifacts: Artifacts) -> None:
    with pytest.raises(UsageError, match="is compiled for atom, not for cpu"):
        compile(artifacts["atom"], target="cpu")
    with pytest.raises(UsageError, match="nothing is left to do"):
        compile(artifacts["cpu"], target="cpu")


@pytest.mark.parametrize("name", ["cpu", "atom"])
def test_a_zoo_model(name: str) -> None:
    done = only(compile("zoo:digits-resnet", target=name))
    assert done.passed and done.artifact_path == Path(f"digits-resnet.{name}.npuc")
    assert done.report.reference.startswith("the zoo's held-out data")
    assert done.report.rows[-1].original[0].agreement is not None
