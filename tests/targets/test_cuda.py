"""The CUDA target as far as a machine without a GPU can show it: what is compiled, and said of it.

Nothing here ran on a GPU. Tests that need NVIDIA's compiler are skipped where it is not installed.
"""

import re
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import ArtifactError, ToolchainError, UnsupportedError, UsageError
from npuc.program import Program
from npuc.targets import nvcc, tvm
from npuc.targets.base import LowerOptions, Payload
from npuc.targets.cuda import Cuda
from npuc.targets.tvm import gpu, gpu_runtime, runtime

HEAD = '<ir_version: 10, opset_import: ["": 20, "other": 1]>\n'
NETS = {
    "conv": """
net (float[1, 3, 9, 8] x) => (float[1, 5] y)
<float[8, 3, 3, 3] w, float[8, 1, 3, 3] v, float[8, 5] u>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w)
  b = Relu (a)
  c = Conv <group = 8, strides = [2, 2]> (b, v)
  d = Sigmoid (c)
  e = GlobalAveragePool (d)
  f = Flatten (e)
  y = MatMul (f, u)
}""",
    "matmul": """
net (float[2, 6, 40] x) => (float[2, 6, 33] y)
<float[40, 33] w, float[33] v>
{
  a = MatMul (x, w)
  b = Add (a, v)
  y = Softmax <axis = -1> (b)
}""",
    "integer": """
net (uint8[1, 3, 9, 8] x) => (int8[1, 8, 9, 8] y)
<int8[8, 3, 3, 3] w, uint8 z = {7}, int64 m = {1073741824}, int64 d = {68719476736}>
{
  a = ConvInteger <pads = [1, 1, 1, 1]> (x, w, z)
  b = Cast <to = 7> (a)
  p = Mul (b, m)
  q = Div (p, d)
  y = Cast <to = 3> (q)
}""",
}
needs_nvcc = pytest.mark.skipif(nvcc.find() is None, reason="NVIDIA's nvcc is not installed")


def net(name: str) -> Program:
    proto = onnx.parser.parse_model(HEAD + NETS[name])
    draw = np.random.default_rng(1)
    for info in list(proto.graph.value_info):
        if info.name in "uvw":
            tensor = info.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            values = draw.normal(size=[d.dim_value for d in tensor.shape.dim]) * 0.3
            values = values * (100 if dtype.kind == "i" else 1)
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(values.astype(dtype), info.name)
            )
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def lower(name: str, folder: Path, **options: object) -> Payload:
    return Cuda().lower(net(name), LowerOptions(**options), folder)  # type: ignore[arg-type]


def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def fake_nvcc(folder: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """Put an nvcc first on PATH that knows its version and does `action` to compile."""
    script = folder / "nvcc"
    script.write_text(f"""#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 12.4, V12.4.99" ;;
  --list-gpu-code) printf 'sm_80\\nsm_90\\n' ;;
  *) {action} ;;
esac
""")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@needs_nvcc
@pytest.mark.parametrize("name", sorted(NETS))
def test_nvcc_makes_machine_code_for_the_architecture(name: str, tmp_path: Path) -> None:
    payload = lower(name, tmp_path)
    files = payload.files
    assert files["payload/cuda/kernels.cubin"].startswith(b"\x7fELF")
    assert b".target sm_80" in files["payload/cuda/kernels.ptx"]
    kernels = re.findall(r"__global__ [^{]*\{(.*?)\n\}", files["payload/cuda/kernels.cu"].decode(),
                         re.DOTALL)  # fmt: skip
    assert len(kernels) >= 1
    assert all("Idx" in body for body in kernels), "a kernel without threads"
    entries = re.findall(rb"\.visible \.entry", files["payload/cuda/kernels.ptx"])
    assert len(entries) == len(kernels)
    assert payload.toolchain["nvcc"] and payload.toolchain["tvm"]
    if gpu_runtime.no_gpu():
        assert payload.evidence == "vendor-compiled"
        assert "compiled for sm_80 by nvcc" in payload.vendor and "NOT run" in payload.vendor
        assert "host twin" in payload.vendor


@needs_nvcc
def test_the_architecture_is_chosen_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nvcc.ARCH, "sm_90")
    payload = lower("matmul", tmp_path)
    assert b".target sm_90" in payload.files["payload/cuda/kernels.ptx"]
    assert "sm_90" in payload.vendor and payload.settings["arch"] == "sm_90"


@pytest.mark.parametrize("arch", ["80", "compute_80", "sm_8", "gfx90a", "sm_80;rm"])
def test_a_name_that_is_no_architecture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    monkeypatch.setenv(nvcc.ARCH, arch)
    with pytest.raises(UsageError, match=nvcc.ARCH):
        lower("matmul", tmp_path)


@needs_nvcc
def test_an_architecture_nvcc_does_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nvcc.ARCH, "sm_20")
    with pytest.raises(UsageError, match=r"sm_90.*not for sm_20"):
        lower("matmul", tmp_path)


@needs_nvcc
def test_two_folders_give_the_same_bytes(tmp_path: Path) -> None:
    first = lower("conv", tmp_path / "one")
    second = lower("conv", tmp_path / "another" / "two")
    assert first.files == second.files


def test_without_nvcc_there_is_source_and_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_nvcc(monkeypatch)
    found = Cuda().toolchain()
    assert "nvcc" in found.missing and "toolkit" in found.remedy
    payload = lower("matmul", tmp_path)
    assert payload.evidence == "twin"
    assert "not compiled: nvcc is not on PATH" in payload.vendor
    assert b"__global__" in payload.files["payload/cuda/kernels.cu"]
    assert not {n for n in payload.files if n.endswith((".ptx", ".cubin"))}
    assert "nvcc" not in payload.toolchain
    with pytest.raises(ToolchainError, match="nvcc"):
        lower("matmul", tmp_path, vendor="require")


def test_the_user_may_leave_nvcc_out(tmp_path: Path) -> None:
    payload = lower("matmul", tmp_path, vendor="skip")
    assert payload.evidence == "twin" and "--no-vendor" in payload.vendor


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("echo 'ptxas fatal: out of luck' >&2; exit 3", "out of luck"),
        ("exit 0", "without writing kernels.ptx"),
        ("kill -SEGV $$", "SIGSEGV"),
    ],
)
def test_an_nvcc_that_fails_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, said: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake_nvcc(tmp_path, monkeypatch, action)
    with pytest.raises(ToolchainError, match=said):
        lower("matmul", tmp_path / "work")


def test_where_no_gpu_is_the_host_twin_answers(tmp_path: Path) -> None:
    if not gpu_runtime.no_gpu():
        pytest.skip("a GPU is here")
    program = net("integer")
    payload = lower("integer", tmp_path)
    x = {"x": np.random.default_rng(2).integers(0, 256, (1, 3, 9, 8)).astype(np.uint8)}
    twin = tvm.load({n: c for n, c in payload.files.items() if "cuda" not in n}, program)(x)
    got = Cuda().runner(payload.files, program)(x)
    np.testing.assert_array_equal(got["y"], twin["y"])
    with pytest.raises(ToolchainError, match="no GPU runs this"):
        gpu_runtime.load(b"", "", b"", b"", "sm_80", program)


def test_an_artifact_without_its_library_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"payload/cuda/model\.so"):
        Cuda().runner({"payload/cuda/kernels.cubin": b""}, net("conv"))


@pytest.mark.parametrize(
    ("own", "kind"), [("8.0", "cubin"), ("8.9", "cubin"), ("9.0", "ptx"), ("12.0", "ptx")]
)
def test_machine_code_runs_on_its_major_version_alone(own: str, kind: str) -> None:
    chosen = gpu_runtime.choose(b"cubin", b"ptx", "sm_80", own)
    assert chosen == (b"cubin" if kind == "cubin" else b"ptx\0")


def test_the_runner_copies_to_a_device_and_back() -> None:
    """The GPU's runner, on the one device that is here: the CPU."""
    import tvm as compiler

    program = net("conv")
    files = tvm.lower(program).files
    machine = runtime.opened(files[runtime.SHARED_OBJECT])
    x = {"x": np.random.default_rng(2).normal(size=(1, 3, 9, 8)).astype(np.float32)}
    got = gpu_runtime.GpuRunner(program, machine, compiler.cpu())(x)
    np.testing.assert_array_equal(got["y"], tvm.load(files, program)(x)["y"])


def test_operators_whose_kernels_fail_are_all_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that fails for two operators: both are in the message, the others are not."""
    real = gpu._executable

    def failing(model: ir.Model, *rest: object) -> object:
        if {"Sigmoid", "Relu"} & {node.op_type for node in model.graph}:
            raise RuntimeError("no such intrinsic")
        return real(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu, "_executable", failing)
    with pytest.raises(UnsupportedError) as caught:
        lower("conv", tmp_path)
    message = caught.value.message
    assert "Sigmoid x1" in message and "Relu x1" in message and "no such intrinsic" in message
    assert "Conv" not in message and "MatMul" not in message
    payload = lower("conv", tmp_path, fallback="ort")
    assert payload.evidence == "twin" and "no GPU kernels" in payload.vendor
    assert "Sigmoid" in payload.vendor
