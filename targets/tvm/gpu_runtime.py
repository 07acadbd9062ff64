"""Run what `npuc.targets.tvm.gpu` compiled on an NVIDIA GPU, with the kernels nvcc made of it.

A library holds its kernels as CUDA source. TVM's CUDA runtime asks for their machine code when it
loads one; it is answered from the artifact here, so that no compiler runs.
"""

import ctypes
import functools
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npuc.errors import ParityError, ToolchainError
from npuc.program import Program, Tensors
from npuc.targets.tvm.runtime import prepared

COMPILE = "tvm_callback_cuda_compile"
"""The function that TVM's CUDA runtime gets machine code from."""

_DRIVER = "libcuda.so.1"
Array = np.ndarray[Any, Any]
_binaries: dict[str, bytes] = {}
"""CUDA source → its machine code, of every library loaded."""


@functools.cache
def no_gpu() -> str:
    """Say why there is no GPU to run on, by asking NVIDIA's driver; "" where there is one."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return f"no NVIDIA driver ({_DRIVER})"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "NVIDIA's driver does not start"
    return "" if count.value else "no NVIDIA GPU"


def unusable(arch: str) -> str:
    """Say why this machine cannot run kernels compiled for `arch` (``sm_80``), or ""."""
    if reason := no_gpu():
        return reason
    import tvm

    if reason := _runtime():
        return reason
    device: Any = tvm.cuda(0)
    if not device.exist:
        return "TVM's CUDA runtime finds no GPU"
    own = str(device.compute_version)
    return "" if _number(own) >= _number(arch) else f"the GPU here is of {own}, older than {arch}"


def device_name() -> str:
    """Name the first GPU."""
    import tvm

    device: Any = tvm.cuda(0)
    return str(device.device_name)


def choose(cubin: bytes, ptx: bytes, arch: str, own: str) -> bytes:
    """Return what a GPU of compute capability `own` (``8.6``) loads.

    Machine code runs on its own major version from its minor version on; for later ones the
    driver compiles PTX, which is text that ends with a zero byte.
    """
    same = _number(own) // 10 == _number(arch) // 10
    return cubin if same and _number(own) >= _number(arch) else ptx + b"\0"


def load(library: bytes, source: str, cubin: bytes, ptx: bytes, arch: str, program: Program) -> Any:
    """Return a runner on the first GPU; raises `ToolchainError` where there is none it runs on."""
    import tvm

    if reason := unusable(arch):
        raise ToolchainError(f"no GPU runs this: {reason}", hint="run the host twin instead")
    device: Any = tvm.cuda(0)
    machine = open_library(library, source, choose(cubin, ptx, arch, str(device.compute_version)))
    gpu, cpu, pooled = 2, 1, 2
    machine["vm_initialization"](gpu, 0, pooled, cpu, 0, pooled)
    return GpuRunner(program, machine, device)


def open_library(library: bytes, source: str, binary: bytes) -> Any:
    """Load a library whose kernels have `source`, with `binary` as their machine code."""
    import tvm_ffi

    _binaries[source] = binary
    tvm_ffi.register_global_func(COMPILE, _machine_code, override=True)
    with tempfile.NamedTemporaryFile(prefix="npuc-", suffix=".so") as file:
        file.write(library)
        file.flush()
        return tvm_ffi.load_module(file.name)["vm_load_executable"]()


def _machine_code(source: str) -> bytes:
    if source not in _binaries:
        raise ToolchainError(
            "the artifact has no machine code for these kernels", hint="compile the model again"
        )
    return _binaries[source]


class GpuRunner:
    """Runs a program on one device: inputs are copied to it, and outputs back."""

    name = "cuda"

    def __init__(self, program: Program, machine: Any, device: Any):
        self._program = program
        self._main = machine["main"]
        self._device = device

    def __call__(self, inputs: Tensors) -> Mapping[str, Array]:
        """Run one call; raises `ParityError` where an input's shape is not the compiled one."""
        import tvm
        import tvm_ffi

        given = []
        for port in self._program.inputs:
            array = np.ascontiguousarray(inputs[port.name], port.dtype).reshape(
                np.shape(inputs[port.name])
            )
            if array.shape != port.shape:
                raise ParityError(f"input {port} was given shape {array.shape}")
            given.append(tvm.runtime.tensor(array, device=self._device))
        result = self._main(*given)
        tensors: Sequence[Any] = [result] if isinstance(result, tvm_ffi.Tensor) else list(result)
        ports = self._program.outputs
        return {p.name: np.array(t.numpy()) for p, t in zip(ports, tensors, strict=True)}


@functools.cache
def _runtime() -> str:
    """Load TVM's CUDA runtime, which `import tvm` does not; say why it cannot be, or ""."""
    prepared()
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        return "apache-tvm is not installed"
    path = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"TVM's CUDA runtime does not load: {error}"
    return ""


def _number(version: str) -> int:
    """Return 86 for ``8.6`` and for ``sm_86``."""
    return int("".join(c for c in version if c.isdigit()))
