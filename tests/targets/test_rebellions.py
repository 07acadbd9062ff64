"""The ATOM adapter: without the SDK, and against a fake `rebel` that enforces the documented calls.

These are contract tests. They show that npuc calls the vendor's compiler as documented and copes
with what it may do; they do not show that the vendor's compiler accepts a model.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load as load_safetensors

from npuc.errors import ArtifactError, LoadError, ToolchainError, UsageError
from npuc.profile import FloatFormat
from npuc.program import Program
from npuc.targets import tvm, vendor
from npuc.targets.base import Handover, LowerOptions, Payload
from npuc.targets.rebellions import atom

FAKE = Path(__file__).parent / "fake_rebel"
TEXT = """<ir_version: 10, opset_import: ["": 20]>
net (float[2, 4] x, int64[2, 1] i) => (float[2, 3] y)
<float s = {0.05}, int8 z = {0}, float[3] sw = {0.01, 0.02, 0.03}, int8[3] zw = {0, 0, 0},
 int8[4, 3] w_quantized = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  w = DequantizeLinear <axis = 1> (w_quantized, sw, zw)
  m = MatMul (d, w)
  f = Cast <to = 1> (i)
  e = Erf (f)
  y = Add (m, e)
}"""


class Net(torch.nn.Module):
    """The module of the archive: two inputs, one of them integer."""

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        """Return [2, 3]."""
        return x[:, :3] + i


@pytest.fixture(scope="module")
def program() -> Program:
    """Return a quantized program of two inputs."""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT), True)
    return Program.from_model(ir.from_proto(proto))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a torch.export archive of a model with the same inputs."""
    path = tmp_path_factory.mktemp("archive") / "model.pt2"
    example = (torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.int64))
    torch.export.save(torch.export.export(Net(), example), path)
    return path


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own, no SDK, and a twin that costs nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Neither this interpreter's packages nor PYTHONPATH: no rebel there, wherever this runs.
    monkeypatch.setenv("NPUC_ATOM_PYTHON", f"{sys.executable} -I -S")
    for name in ("NPUC_ATOM_NPU", "NPUC_ATOM_DEVICES", "RBLN_FORCE_NPU_NAME", "RBLN_TARGET_SOC"):
        monkeypatch.delenv(name, raising=False)
    done = tvm.Lowered({"payload/model.so": b"twin"}, {"tvm": "0"}, {"MatMul": "tvm"})
    monkeypatch.setattr(tvm, "lower", lambda program, *, cpu, fallback: done)


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Install the fake SDK for the worker; FAKE_REBEL_* choose how it behaves."""
    monkeypatch.setenv("NPUC_ATOM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    return monkeypatch


def lower(
    program: Program, archive: Path | None, folder: Path, require: bool = False, limit: float = 120
) -> Payload:
    """Lower as `npuc compile` does."""
    job = Handover(program, (), "int8", program, archive)
    options = LowerOptions(
        precision="int8", vendor="require" if require else "use", timeout=limit, handover=job
    )
    return atom().lower(program, options, folder)


def test_without_the_sdk_there_is_a_kit(program: Program, archive: Path, tmp_path: Path) -> None:
    """The payload says twin, and the kit holds the model, the call and the calibration."""
    payload = lower(program, archive, tmp_path)
    assert payload.evidence == "twin"
    assert payload.vendor.startswith("rebel-compiler was not run: not installed")
    assert "hand-over kit in vendor/" in payload.vendor
    assert payload.files["vendor/model.pt2"] == archive.read_bytes()
    assert payload.files["payload/model.so"] == b"twin"
    assert "vendor/model.rbln" not in payload.files
    request = json.loads(payload.files["vendor/input_info.json"])
    assert request == {
        "npu": "RBLN-CA22",
        "devices": 1,
        "inputs": [
            {"name": "x", "shape": [2, 4], "dtype": "float32"},
            {"name": "i", "shape": [2, 1], "dtype": "int64"},
        ],
    }
    text = payload.files["vendor/README.txt"].decode()
    for words in ("npuc compile MODEL.npuc --target atom", "rebel.compile_from_torch(module"):
        assert words in text
    for words in ("('i', [2, 1], 'int64')", "no public int8 path", "float.formats", "A: assumed"):
        assert words in text
    assert any("e8m7" in note for note in payload.notes)
    assert any("host CPU: Erf" in note for note in payload.notes)


def test_the_kit_holds_every_scale(program: Program, archive: Path, tmp_path: Path) -> None:
    """Activations by tensor, weights by initializer, in the names the model had."""
    payload = lower(program, archive, tmp_path)
    scales = load_safetensors(payload.files["vendor/quantization.safetensors"])
    assert sorted(scales) == ["w.scale", "w.zero_point", "x.scale", "x.zero_point"]
    assert scales["x.scale"] == np.float32(0.05)
    assert np.array_equal(scales["w.scale"], np.array([0.01, 0.02, 0.03], np.float32))


def test_the_same_kit_twice(program: Program, archive: Path, tmp_path: Path) -> None:
    """Same inputs, same bytes."""
    first, second = (lower(program, archive, tmp_path / name) for name in "ab")
    assert first.files == second.files


def test_an_onnx_source_is_told_what_to_do(program: Program, tmp_path: Path) -> None:
    """Rebellions' compiler takes torch: the kit says so and how to complete it."""
    payload = lower(program, None, tmp_path)
    assert "vendor/model.pt2" not in payload.files
    assert "npuc.save" in payload.files["vendor/README.txt"].decode()
    assert payload.evidence == "twin"


def test_requiring_the_vendor_without_the_sdk(
    program: Program, archive: Path, tmp_path: Path
) -> None:
    """--require-vendor turns the hand-over into an error with the remedy."""
    with pytest.raises(ToolchainError, match="not installed") as caught:
        lower(program, archive, tmp_path, require=True)
    assert "RBLN Portal" in caught.value.hint


def test_requiring_the_vendor_for_an_onnx_source(
    program: Program, tmp_path: Path, sdk: pytest.MonkeyPatch
) -> None:
    """The SDK is there, the torch module is not."""
    with pytest.raises(ToolchainError, match=r"takes torch modules.*npuc\.save"):
        lower(program, None, tmp_path, require=True)


@pytest.mark.parametrize("keyword", ["num_devices", "tensor_parallel_size"])
def test_the_documented_call(
    program: Program, archive: Path, tmp_path: Path, sdk: pytest.MonkeyPatch, keyword: str
) -> None:
    """Both generations of the compiler are called by their own keyword, for the wanted NPU."""
    sdk.setenv("FAKE_REBEL_API", keyword)
    sdk.setenv("NPUC_ATOM_NPU", "RBLN-CA25")
    sdk.setenv("NPUC_ATOM_DEVICES", "4")
    payload = lower(program, archive, tmp_path, require=True)
    assert payload.evidence == "vendor-compiled"
    assert payload.toolchain == {"tvm": "0", "rebel-compiler": "0.12.0"}
    assert "from the float module" in payload.vendor and "not run" in payload.vendor
    binary = payload.files["vendor/model.rbln"]
    assert binary.startswith(b"FAKE-RBLN")
    call = json.loads(binary.removeprefix(b"FAKE-RBLN"))
    assert call[keyword] == 4 and call["npu"] == "RBLN-CA25"
    assert call["input_info"] == [["x", [2, 4], "float32"], ["i", [2, 1], "int64"]]
    assert call["env"]["RBLN_FORCE_NPU_NAME"] == "RBLN-CA25"
    assert call["env"]["HOME"] != os.environ.get("HOME")
    assert b"rebel-compiler 0.12.0" in payload.files["vendor/compile.log"]
    assert "vendor/model.pt2" in payload.files


def test_noise_on_stderr_is_no_failure(
    program: Program, archive: Path, tmp_path: Path, sdk: pytest.MonkeyPatch
) -> None:
    """Vendors' compilers log errors for models they compile; the log is kept."""
    sdk.setenv("FAKE_REBEL_MODE", "noise")
    payload = lower(program, archive, tmp_path)
    assert payload.evidence == "vendor-compiled"
    assert payload.files["vendor/compile.log"].count(b"unknown op target") == 1000


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("import", "librbln-ccl.so"),
        ("exit", "fail to find the compiler library"),
        ("exit0", "without writing model.rbln"),
        ("kill", "SIGKILL"),
        ("segv", "SIGSEGV"),
        ("raise", "DEVICE_GRAPH_CONVERSION"),
        ("empty", "without writing model.rbln"),
    ],
)
def test_every_way_to_crash_is_one_clear_error(
    program: Program, archive: Path, tmp_path: Path, sdk: pytest.MonkeyPatch, mode: str, words: str
) -> None:
    """The error names the compiler, what happened and where the log is."""
    sdk.setenv("FAKE_REBEL_MODE", mode)
    with pytest.raises(ToolchainError) as caught:
        lower(program, archive, tmp_path)
    assert caught.value.message.startswith("rebel-compiler ") and words in caught.value.message
    (log,) = vendor.logs().iterdir()
    assert str(log) in caught.value.hint


def test_a_hang_is_ended_with_its_children(
    program: Program, archive: Path, tmp_path: Path, sdk: pytest.MonkeyPatch
) -> None:
    """After the limit neither the worker nor what the compiler started is there."""
    pids = tmp_path / "pids"
    sdk.setenv("FAKE_REBEL_MODE", "hang")
    sdk.setenv("FAKE_REBEL_CHILD", str(pids))
    with pytest.raises(ToolchainError, match="no result in 5 s"):
        lower(program, archive, tmp_path, limit=5)
    deadline = time.monotonic() + 10
    running = [Path(f"/proc/{pid}/stat") for pid in pids.read_text().split()]
    while any(p.exists() and ") Z " not in p.read_text() for p in running):
        assert time.monotonic() < deadline, "a process outlived the limit by 10 s"
        time.sleep(0.1)


def test_an_artifact_is_finished_where_the_sdk_is(
    program: Program, archive: Path, tmp_path: Path, sdk: pytest.MonkeyPatch
) -> None:
    """The members of a twin artifact plus the SDK give the .rbln; nothing else changes."""
    sdk.setenv("NPUC_ATOM_PYTHON", f"{sys.executable} -I -S")
    files = lower(program, archive, tmp_path).files
    # An artifact is a stranger's: its script must not run, ours does.
    hostile = {**files, "vendor/compile.py": b"raise SystemExit('executed')"}
    sdk.setenv("NPUC_ATOM_PYTHON", sys.executable)
    payload = atom().finish(hostile, LowerOptions(), tmp_path / "finish")
    assert payload.evidence == "vendor-compiled"
    assert payload.files["vendor/model.rbln"].startswith(b"FAKE-RBLN")
    assert {k: payload.files[k] for k in files} == dict(files)
    assert set(payload.files) - set(files) == {"vendor/model.rbln", "vendor/compile.log"}


def test_finishing_needs_the_sdk_and_a_whole_kit(
    program: Program, archive: Path, tmp_path: Path, sdk: pytest.MonkeyPatch
) -> None:
    """Each missing part is named with what to do."""
    files = dict(lower(program, None, tmp_path).files)
    with pytest.raises(ArtifactError, match=r"model\.pt2.*npuc\.save"):
        atom().finish(files, LowerOptions(), tmp_path)
    files["vendor/model.pt2"] = archive.read_bytes()
    with pytest.raises(ArtifactError, match="damaged"):
        atom().finish({**files, "vendor/input_info.json": b"{}"}, LowerOptions(), tmp_path)
    sdk.setenv("NPUC_ATOM_PYTHON", f"{sys.executable} -I -S")
    with pytest.raises(ToolchainError, match="not installed"):
        atom().finish(files, LowerOptions(), tmp_path)


def test_a_hostile_archive_never_reaches_the_compiler(
    program: Program, tmp_path: Path, sdk: pytest.MonkeyPatch
) -> None:
    """What torch.export.load would execute is refused before the worker starts."""
    path = tmp_path / "evil.pt2"
    torch.save({"x": Net()}, path)
    with pytest.raises(LoadError):
        lower(program, path, tmp_path)


def test_a_module_of_other_inputs_is_refused(
    program: Program, tmp_path: Path, sdk: pytest.MonkeyPatch
) -> None:
    """Ports and arguments that cannot be paired stop the compile with both lists."""
    path = tmp_path / "one.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),)), path)
    with pytest.raises(ToolchainError, match=r"takes 1 tensors \(input\).*lists 2 \(x, i\)"):
        lower(program, path, tmp_path)


def test_toolchain_never_raises(monkeypatch: pytest.MonkeyPatch, sdk: pytest.MonkeyPatch) -> None:
    """Found, missing, or configured wrongly: one line and a remedy."""
    assert atom().toolchain().version == "0.12.0" and not atom().toolchain().missing
    for bad in ("/no/such/python", "false", "echo {}", "'unclosed", f"{sys.executable} -I -S"):
        monkeypatch.setenv("NPUC_ATOM_PYTHON", bad)
        found = atom().toolchain()
        assert found.missing and "RBLN Portal" in found.remedy
    monkeypatch.delenv("NPUC_ATOM_PYTHON")
    monkeypatch.syspath_prepend(str(FAKE))
    assert atom().toolchain().version == "0.12.0"


@pytest.mark.parametrize("devices", ["0", "-1", "two", "1.5"])
def test_a_bad_number_of_devices(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    """The variable is named with its value."""
    monkeypatch.setenv("NPUC_ATOM_DEVICES", devices)
    with pytest.raises(UsageError, match=devices):
        lower(program, None, tmp_path)


def test_the_twin_rounds_to_the_chosen_format() -> None:
    """The default is the pessimistic format; the optimistic one can be asked for."""
    assert [p.options for p in atom().numerics("int8")] == [{"format": "e8m7"}]
    assert [
        p.options for p in replace(atom(), float_format=FloatFormat(6, 9)).numerics("float")
    ] == [{"format": "e6m9"}]
