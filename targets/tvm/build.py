"""Relax module → object files → shared library."""

import tempfile
from pathlib import Path
from typing import Any

from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.linker import Linker, link


def compile_module(module: Any, level: Level) -> Any:
    """Legalise, schedule and compile a Relax module; returns TVM's executable."""
    import tvm

    from npuc.targets.tvm import legalize

    target = level.target()
    with target:
        module = legalize.run(module, level)
    # Storage rewriting would merge a kernel's registers into one buffer too big for the stack.
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        return tvm.relax.build(module, target, relax_pipeline=_lowering())


def export(executable: Any, linker: Linker) -> bytes:
    """Write the executable's object files and link them into one shared library."""
    objects: dict[str, bytes] = {}

    def collect(_: str, files: list[str], **__: Any) -> None:
        objects.update({Path(f).name: Path(f).read_bytes() for f in files})

    with tempfile.TemporaryDirectory(prefix="npuc-objects-") as folder:
        executable.export_library("model.so", fcompile=collect, workspace_dir=folder)
    return link(objects, linker)


def _lowering() -> Any:
    """From calls of kernels to virtual machine code, for static shapes on a CPU."""
    import tvm
    from tvm.relax import transform as t

    passes = [
        t.ToNonDataflow(),
        t.RemovePurityChecking(),
        t.CallTIRRewrite(),
        t.StaticPlanBlockMemory(),
        t.LowerAllocTensor(),
        t.KillAfterLastUse(),
        t.LowerRuntimeBuiltin(),
        t.ComputePrimValue(),
        t.VMShapeLower(),
        t.AttachGlobalSymbol(),
    ]
    return tvm.transform.Sequential(passes)
