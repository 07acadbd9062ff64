"""Run a program compiled for aarch64 on this machine: its kernels under qemu, in order.

Nothing of TVM's runtime exists for aarch64 here, so `main.c` stands in for it, and the calls that
TVM's virtual machine would make are written out for it by `run`.
"""

import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npuc.program import Program, Tensors
from npuc.targets.tvm import build, cpu_level, importer, legalize, rewrites
from npuc.targets.tvm.graph import (
    bindings,
    is_var,
    key,
    number,
    operator,
)

Array = np.ndarray[Any, Any]

HERE = Path(__file__).parent
KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}
"""numpy's letter → DLPack's type code."""
MACHINES = {"": "cortex-a53", "dotprod": "cortex-a76", "i8mm": "max"}
"""A level's dot product → the machine to emulate: the first two have no more than that."""


def missing() -> str:
    """Say what is not installed, or return ""."""
    if shutil.which("qemu-aarch64") is None:
        return "qemu-aarch64 is not installed (Debian: qemu-user)"
    return "" if importlib.util.find_spec("ziglang") else "ziglang is not installed"


def run(program: Program, feed: Tensors, cpu: str) -> dict[str, Array]:
    """Compile a program for an aarch64 CPU and run one call of it under qemu."""
    level = cpu_level.resolve(cpu)
    relax = importer.to_relax(rewrites.prepare(program.model))
    with level.target():
        calls = _Calls(legalize.run(relax, level))
    for port, param in zip(program.inputs, calls.params, strict=True):
        calls.values[key(param)] = [calls.add(np.asarray(feed[port.name], port.dtype))]
    outputs = calls.make()
    with tempfile.TemporaryDirectory(prefix="npuc-qemu-") as name:
        folder = Path(name)
        _link(build.compile_module(relax, level), calls.kernels, folder)
        command = ["qemu-aarch64", "-cpu", MACHINES[level.dot], str(folder / "main")]
        done = subprocess.run(command, input=calls.script(), capture_output=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.decode()}")
    results, at = {}, 0
    for port, index in zip(program.outputs, outputs, strict=True):
        shape, dtype = calls.tensors[index][:2]
        array = np.frombuffer(done.stdout, dtype, int(np.prod(shape)), at).reshape(shape)
        results[port.name] = array
        at += array.nbytes
    assert at == len(done.stdout)
    return results


class _Calls:
    """The calls of kernels that a legalised module's main makes, and their tensors."""

    def __init__(self, module: Any):
        self.module = module
        self.params = list(module["main"].params)
        self.tensors: list[tuple[tuple[int, ...], np.dtype[Any], Array | None]] = []
        self.kernels: list[str] = []
        self.calls: list[tuple[int, list[int]]] = []
        self.outputs: list[int] = []
        self.values: dict[int, list[int]] = {}

    def add(self, array: Array) -> int:
        """Add a tensor whose values are known."""
        self.tensors.append((array.shape, array.dtype, array))
        return len(self.tensors) - 1

    def make(self) -> list[int]:
        """Read every call; returns main's outputs."""
        for var, expr in bindings(self.module):
            self.values[key(var)] = self._value(expr)
        self.outputs = self._value(self.module["main"].body.body)
        return self.outputs

    def _value(self, expr: Any) -> list[int]:
        """Return the tensors that an expression stands for: one, or a tuple's."""
        array = number(expr)
        if array is not None:
            return [self.add(array)]
        if is_var(expr):
            return self.values[key(expr)]
        if hasattr(expr, "fields"):
            return [tensor for field in expr.fields for tensor in self._value(field)]
        if hasattr(expr, "tuple_value"):
            return [self._value(expr.tuple_value)[int(expr.index)]]
        if operator(expr) != "relax.call_tir":
            raise NotImplementedError(f"a call that is no kernel's: {expr}")
        return self._call(expr)

    def _call(self, expr: Any) -> list[int]:
        name = str(expr.args[0].name_hint)
        if name not in self.kernels:
            self.kernels.append(name)
        results = []
        arguments = self._value(expr.args[1])
        for result in getattr(expr.ty, "fields", [expr.ty]):
            shape = tuple(int(d) for d in result.shape)
            self.tensors.append((shape, np.dtype(str(result.dtype.dtype)), None))
            results.append(len(self.tensors) - 1)
        self.calls.append((self.kernels.index(name), [*arguments, *results]))
        return results

    def script(self) -> bytes:
        """Return what main.c reads."""
        written = [_words(len(self.tensors), len(self.calls), len(self.outputs))]
        for shape, dtype, array in self.tensors:
            kind = KINDS[dtype.kind], dtype.itemsize * 8
            written.append(_words(*kind, len(shape), *shape, array is not None))
            written.append(b"" if array is None else np.ascontiguousarray(array).tobytes())
        for kernel, arguments in self.calls:
            written.append(_words(kernel, len(arguments), *arguments))
        return b"".join((*written, _words(*self.outputs)))


def _words(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def _link(executable: Any, kernels: Sequence[str], folder: Path) -> None:
    """Link an executable's kernels with main.c."""
    objects: list[str] = []

    def collect(_: str, files: list[str], **__: Any) -> None:
        for file in files:
            if Path(file).name.startswith("lib"):
                objects.append(shutil.copy(file, str(folder)))

    executable.export_library(
        "model.so", fcompile=collect, workspace_dir=tempfile.mkdtemp(dir=folder)
    )
    (folder / "kernels.h").write_text("".join(f"KERNEL({name})\n" for name in kernels))
    command = [
        sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-nostdlib",
        "-ffreestanding", "-fno-builtin", "-static", "-O1", "-fno-sanitize=undefined", "-Wall",
        "-Werror", "-I", str(folder), "-o", str(folder / "main"), str(HERE / "main.c"), *objects,
    ]  # fmt: skip
    cache = _cache().name
    places = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    done = subprocess.run(
        command, env=places | {"HOME": cache, "PATH": "/usr/bin:/bin"}, capture_output=True,
        timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.decode())


@functools.cache
def _cache() -> "tempfile.TemporaryDirectory[str]":
    """Return a folder for what zig keeps from one link to the next, until Python ends."""
    return tempfile.TemporaryDirectory(prefix="npuc-zig-")
