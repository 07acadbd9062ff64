"""Run what `lower` wrote, with tvm's runtime library alone: the compiler is not imported."""

import ctypes
import functools
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npuc.errors import ArtifactError, ParityError, ToolchainError
from npuc.program import Port, Program, Tensors
from npuc.targets.base import Runner
from npuc.targets.tvm.cpu_level import host_flags

LIBRARY = "payload/model.so"
INDEX = "payload/index.json"
ALIGNMENT = 64
"""Bytes that TVM's code assumes every tensor starts at a multiple of; numpy gives 16."""

Array = np.ndarray[Any, Any]


class TvmRunner:
    """A compiled library. One instance runs one call at a time."""

    def __init__(self, library: bytes, inputs: tuple[Port, ...], outputs: tuple[Port, ...]):
        self.name = "tvm"
        self._outputs = outputs
        self._inputs = tuple((p, _aligned(p)) for p in inputs)
        self._main = _open(library)["main"]

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Run one call; raises `ParityError` where an input's shape is not the compiled one."""
        import tvm_ffi

        for port, buffer in self._inputs:
            value = np.asarray(inputs[port.name], port.dtype)
            if value.shape != buffer.shape:
                raise ParityError(f"input {port} was given shape {value.shape}")
            buffer[...] = value
        result = self._main(*(tvm_ffi.from_dlpack(buffer) for _, buffer in self._inputs))
        values = [result] if isinstance(result, tvm_ffi.Tensor) else list(result)
        return {
            port.name: np.array(np.from_dlpack(value))
            for port, value in zip(self._outputs, values, strict=True)
        }


def load(files: Mapping[str, bytes], program: Program) -> Runner:
    """Return a runner over an artifact's members; see `npuc.targets.tvm.load`."""
    missing = sorted({LIBRARY, INDEX} - set(files))
    if missing:
        raise ArtifactError(f"the artifact has no {', '.join(missing)}")
    index = json.loads(files[INDEX])
    fault = host_fault(index["arch"], index["requires"])
    if fault is not None:
        raise fault
    return TvmRunner(files[LIBRARY], program.inputs, program.outputs)


def host_fault(arch: str, requires: Sequence[str]) -> ToolchainError | None:
    """Say why this machine cannot run code compiled for `arch` with those CPU flags, or None."""
    machine = platform.machine()
    if machine != arch:
        return ToolchainError(
            f"compiled for {arch}, and this machine is {machine}",
            hint=f"run it on a {arch} machine, or compile with --cpu native",
        )
    missing = sorted(set(requires) - host_flags())
    if missing:
        return ToolchainError(
            f"compiled for a CPU with {', '.join(missing)}, which this one lacks",
            hint="compile with --cpu native, or with --cpu x86-64-v3",
        )
    return None


def _aligned(port: Port) -> Array:
    shape = tuple(int(d) for d in port.shape)
    dtype = np.dtype(port.dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _open(library: bytes) -> Any:
    """Load a library and start its virtual machine on the CPU."""
    import tvm_ffi

    _runtime()
    # dlopen needs a file; once it is mapped, the name can go.
    with tempfile.NamedTemporaryFile(prefix="npuc-", suffix=".so") as file:
        file.write(library)
        file.flush()
        module = tvm_ffi.load_module(file.name)
    machine = module["vm_load_executable"]()
    cpu, device, pooled = 1, 0, 2
    machine["vm_initialization"](cpu, device, pooled)
    return machine


@functools.cache
def _runtime() -> ctypes.CDLL:
    # Pinned workers collapse to a tenth of the speed when anything else uses their core.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ToolchainError("apache-tvm is not installed", hint="pip install apache-tvm")
    path = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_runtime.so"
    return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
