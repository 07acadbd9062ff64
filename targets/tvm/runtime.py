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
from typing import Any, Protocol, runtime_checkable

import numpy as np

from npuc.errors import ArtifactError, ParityError, ToolchainError
from npuc.program import Port, Program, Tensors
from npuc.targets.base import Runner
from npuc.targets.tvm import mapped
from npuc.targets.tvm.cpu_level import host_flags

SHARED_OBJECT = "payload/model.so"
INDEX = "payload/index.json"
ALIGNMENT = 64
"""Bytes that TVM's code assumes every tensor starts at a multiple of; numpy gives 16."""

WHOLE = 1 << 20
"""Bytes from which an answer is handed over where TVM put it, not copied: to touch that much fresh
memory takes as long as to compute it. Smaller ones may be constants that a library keeps."""

Array = np.ndarray[Any, Any]


class _Part(Protocol):
    outputs: tuple[Port, ...]

    def __call__(self, values: Tensors) -> list[Array]: ...


@runtime_checkable
class _Extracts(Protocol):
    """Files that can be copied without holding them: a library is as large as its weights."""

    def extract(self, name: str, path: Path) -> None: ...


class SegmentRunner:
    """Runs a program's segments in order. One instance runs one call at a time."""

    def __init__(self, parts: Sequence[_Part], program: Program, name: str):
        self.name = name
        self._parts = parts
        self._program = program

    @property
    def machine(self) -> Any:
        """TVM's virtual machine, where it runs all of the program; None where it does not."""
        (part,) = self._parts if len(self._parts) == 1 else (None,)
        return getattr(part, "machine", None)

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Run one call; raises `ParityError` where an input's shape is not the compiled one."""
        values = {p.name: np.asarray(inputs[p.name], p.dtype) for p in self._program.inputs}
        for port in self._program.inputs:
            if values[port.name].shape != port.shape:
                raise ParityError(f"input {port} was given shape {values[port.name].shape}")
        for part in self._parts:
            results = part(values)
            values.update({p.name: r for p, r in zip(part.outputs, results, strict=True)})
        return {p.name: values[p.name] for p in self._program.outputs}


class _Library:
    """A segment compiled by TVM."""

    def __init__(
        self, library: Path, inputs: tuple[Port, ...], outputs: tuple[Port, ...],
        constants: Sequence[Array],
    ):  # fmt: skip
        import tvm_ffi

        self.outputs = outputs
        self._inputs = tuple((p, _aligned(p)) for p in inputs)
        self._constants = [tvm_ffi.from_dlpack(array) for array in constants]
        self._held = [_place(buffer) for _, buffer in self._inputs]
        if constants:
            starts, ends = zip(*map(_place, constants), strict=True)
            self._held.append((min(starts), max(ends)))
        self.machine = started(library)
        self._main = self.machine["main"]

    def __call__(self, values: Tensors) -> list[Array]:
        import tvm_ffi

        for port, buffer in self._inputs:
            buffer[...] = values[port.name]
        given = (tvm_ffi.from_dlpack(buffer) for _, buffer in self._inputs)
        result = self._main(*given, *self._constants)
        tensors = [result] if isinstance(result, tvm_ffi.Tensor) else list(result)
        found: list[Array] = []
        for array in map(np.from_dlpack, tensors):
            whole = array.nbytes >= WHOLE and array.dtype.name in mapped.KINDS
            held = [*self._held, *map(_place, found)]
            apart = whole and not any(_meet(_place(array), place) for place in held)
            found.append(array if apart else np.array(array))
        return found


def _place(array: Array) -> tuple[int, int]:
    """Return where an array's memory begins and ends."""
    start = int(array.__array_interface__["data"][0])
    return start, start + array.nbytes


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


class _Session:
    """A segment run by ONNX Runtime."""

    def __init__(self, model: bytes, inputs: tuple[Port, ...], outputs: tuple[Port, ...]):
        import onnxruntime as ort

        self.outputs = outputs
        self._inputs = inputs
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads()
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, values: Tensors) -> list[Array]:
        feed = {p.name: np.ascontiguousarray(values[p.name], p.dtype) for p in self._inputs}
        answers: Any = self._session.run([p.name for p in self.outputs], feed)
        return list(answers)


def load(files: Mapping[str, bytes], program: Program) -> Runner:
    """Return a runner over an artifact's members; see `npuc.targets.tvm.load`."""
    if INDEX not in files:
        raise ArtifactError(f"the artifact has no {INDEX}")
    index = json.loads(files[INDEX])
    entries = index["segments"]
    named = {e["file"] for e in (*entries, *(e["constants"] for e in entries if "constants" in e))}
    missing = sorted(named - set(files))
    if missing:
        raise ArtifactError(f"the artifact has no {', '.join(missing)}")
    fault = host_fault(index["arch"], index["requires"])
    if fault is not None:
        raise fault
    parts = [_part(files, entry) for entry in index["segments"]]
    places = dict.fromkeys(entry["place"] for entry in index["segments"])
    return SegmentRunner(parts, program, "+".join(places))


def _part(files: Mapping[str, bytes], entry: Mapping[str, Any]) -> _Part:
    inputs, outputs = (
        tuple(Port(name, dtype, tuple(shape)) for name, dtype, shape in entry[side])
        for side in ("inputs", "outputs")
    )
    name = entry["file"]
    if entry["place"] != "tvm":
        return _Session(files[name], inputs, outputs)
    with tempfile.TemporaryDirectory(prefix="npuc-") as folder:
        path = _placed(files, name, Path(folder) / "model.so")
        constants: list[Array] = []
        if held := entry.get("constants"):
            data = _placed(files, held["file"], Path(folder) / "constants")
            constants = mapped.read(data, held["tensors"])
        return _Library(path, inputs, outputs, constants)


def _placed(files: Mapping[str, bytes], name: str, path: Path) -> Path:
    """Write a member to a file, from which it is mapped."""
    if isinstance(files, _Extracts):
        files.extract(name, path)
    else:
        path.write_bytes(files[name])
    return path


def host_fault(arch: str, requires: Sequence[str]) -> ToolchainError | None:
    """Say why this machine cannot run code compiled for `arch` with those CPU flags, or None."""
    machine = platform.machine()
    if machine != arch:
        return ToolchainError(
            f"compiled for {arch}, and this machine is {machine}",
            hint=f"run it on an {arch} machine, or compile with --cpu native",
        )
    missing = sorted(set(requires) - host_flags())
    if missing:
        return ToolchainError(
            f"compiled for a CPU with {', '.join(missing)}, which this one lacks",
            hint="compile with --cpu native, or with --cpu x86-64-v3",
        )
    return None


def threads() -> int:
    """Return how many threads to compute with: OMP_NUM_THREADS, else the CPUs this process has."""
    wanted = os.environ.get("TVM_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")
    return int(wanted) if wanted else len(os.sched_getaffinity(0))


def _aligned(port: Port) -> Array:
    shape = tuple(int(d) for d in port.shape)
    dtype = np.dtype(port.dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def opened(library: bytes) -> Any:
    """Load a library from memory and start its virtual machine on the CPU."""
    with tempfile.NamedTemporaryFile(prefix="npuc-", suffix=".so") as file:
        file.write(library)
        file.flush()
        return started(Path(file.name))


def started(library: Path) -> Any:
    """Load a library and start its virtual machine on the CPU; its file may be removed then."""
    import tvm_ffi

    prepared()
    module = tvm_ffi.load_module(str(library))
    machine = module["vm_load_executable"]()
    cpu, device, pooled = 1, 0, 2
    machine["vm_initialization"](cpu, device, pooled)
    return machine


@functools.cache
def prepared() -> ctypes.CDLL:
    """Load TVM's runtime library; raises `ToolchainError` where it is not installed."""
    # Pinned workers collapse to a tenth of the speed when anything else uses their core, and TVM
    # takes half the CPUs for hyperthreads. Both are read once, when its threads start.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(threads()))
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ToolchainError("apache-tvm is not installed", hint="pip install apache-tvm")
    path = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_runtime.so"
    return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
