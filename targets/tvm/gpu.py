"""Compile a program for an NVIDIA GPU: host code by LLVM, kernels as CUDA source by TVM.

TVM's own schedules give kernels their threads; npuc's packed kernels are for CPUs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from npuc.errors import PassError, UnsupportedError
from npuc.partition import extract
from npuc.targets.tvm import allowed, build, importer, pointwise, rewrites
from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.graph import Walk
from npuc.targets.tvm.legalize import take
from npuc.targets.tvm.linker import Linker

LIMITS = {
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 49152,
    "thread_warp_size": 32,
}
"""What every GPU since sm_20 offers without asking; schedules stay within it."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A shared library that starts the kernels, and their CUDA source."""

    library: bytes
    source: str


def compile_program(model: ir.Model, arch: str, level: Level, linker: Linker) -> Compiled:
    """Compile a static model for `arch`, for example ``sm_80``, with host code for `level`.

    Raises `UnsupportedError` listing every operator that cannot be, with the reason.
    """
    prepared = rewrites.prepare(model)
    found = allowed.refusals(prepared)
    if found:
        raise allowed.refuse(found)
    try:
        return _compile(prepared, arch, level, linker)
    except Exception as error:  # TVM raises whatever its passes and generators raise
        raise _blame(prepared, arch, level, error) from error


def _compile(model: ir.Model, arch: str, level: Level, linker: Linker) -> Compiled:
    executable = _executable(model, arch, level)
    return Compiled(build.export(executable, linker), source(executable))


def source(executable: Any) -> str:
    """Return the CUDA source of an executable; "" where it has no kernels."""
    waiting, found = list(executable.mod.imports), []
    while waiting:
        module = waiting.pop(0)
        waiting.extend(module.imports)
        if module.kind == "cuda":
            found.append(str(module.inspect_source("cuda")))
    if len(found) > 1:
        raise PassError(
            f"TVM made {len(found)} modules of CUDA kernels, and not one",
            hint="report this as a bug; --target cpu still works",
        )
    return "".join(found)


def _executable(model: ir.Model, arch: str, level: Level) -> Any:
    import tvm
    from tvm.relax import transform as t
    from tvm.relax.backend.cuda import pipeline

    target = tvm.target.Target({"kind": "cuda", "arch": arch, **LIMITS}, host=level.target())
    module = importer.to_relax(model, named=False)
    with target:
        module = _Kernels(t.DecomposeOpsForInference()(module)).run()
        overrides = {**pointwise.legalizations(), "relax.take": take}
        passes = [
            t.LegalizeOps(overrides),
            t.AnnotateTIROpPattern(),
            t.FoldConstant(),
            t.FuseOps(),
            t.FuseTIR(),
            t.DeadCodeElimination(),
        ]
        module = _threads(tvm.transform.Sequential(passes)(module), target)
        lowering = tvm.transform.Sequential(
            [*pipeline.dataflow_lower_passes(target), *pipeline.finalize_passes(target)]
        )
        with _source_only():
            return tvm.relax.build(module, target, relax_pipeline=lowering)


def _threads(module: Any, target: Any) -> Any:
    """Give every kernel threads, by the first of TVM's rules that takes it.

    A rule may fail instead of declining a kernel that is not for it; the last one takes all.
    """
    from tvm import tirx
    from tvm.s_tir import dlight as dl

    rules = [dl.gpu.Matmul(), dl.gpu.GEMV(), dl.gpu.Reduction(), dl.gpu.GeneralReduction()]
    for var, function in list(module.functions.items()):
        if not isinstance(function, tirx.PrimFunc) or function.attrs.get("tirx.is_scheduled"):
            continue
        name = {"global_symbol": var.name_hint}
        for rule in rules:
            try:
                done = rule.apply(function.with_attr(name), target, False)
            except Exception:  # assertions and schedule errors alike; see above
                continue
            if done is not None:
                break
        else:
            plain: Any = function.with_attr(name)
            done = dl.gpu.Fallback().apply(plain, target, False)
        module[var] = done.mod["main"].with_attrs({**function.attrs, "tirx.is_scheduled": True})
    return module


@contextmanager
def _source_only() -> Iterator[None]:
    """Keep TVM from compiling kernels by itself, as it does once its CUDA runtime is loaded.

    Without this the library would depend on what this process did before.
    """
    import tvm_ffi

    name = "ffi.Module.create.cuda"
    create = tvm_ffi.get_global_func(name, allow_missing=True)
    if create is None:
        yield
        return
    tvm_ffi.registry.remove_global_func(name)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(name, create)


class _Kernels(Walk):
    """Replaces npuc's own operators by their definitions, which any target compiles."""

    def visit(self, var: Any, expr: Any) -> None:
        call = self.substitute(expr)
        kernel = pointwise.marker(self.bb, call)
        self.bind(var, self.emit(call if kernel is None else kernel))


def _blame(model: ir.Model, arch: str, level: Level, error: Exception) -> Exception:
    """Compile every operator by itself, to name all that cannot be."""
    found: dict[ir.Node, str] = {}
    everything = [("", list(model.graph))]
    for node in model.graph:
        try:
            _executable(extract(model, [node], everything), arch, level)
        except Exception as reason:  # as above
            found[node] = f"TVM's CUDA code generation: {_last_line(reason)}"
    if found:
        listed = allowed.refuse(found)
        return UnsupportedError(
            listed.message, hint="compile for the host alone: --fallback ort, or --target cpu"
        )
    return PassError(
        f"TVM's CUDA code generation fails: {_last_line(error)}",
        hint="every operator compiles alone: report this as a bug; --target cpu still works",
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__
