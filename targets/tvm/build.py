"""Relax module → object files → shared library."""

import tempfile
from pathlib import Path
from typing import Any

from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.emit import WRITTEN
from npuc.targets.tvm.linker import Linker, link

PIPELINE = "npuc"


def compile_module(module: Any, level: Level) -> Any:
    """Legalise, schedule and compile a Relax module; returns TVM's executable."""
    return lowered(legalised(module, level), level)


def legalised(module: Any, level: Level) -> Any:
    """Return a module that calls nothing but kernels, and tells what they compute."""
    from npuc.targets.tvm import legalize, origins

    with level.target():
        return origins.record(legalize.run(module, level))


def lowered(module: Any, level: Level) -> Any:
    """Compile a module that calls nothing but kernels; returns TVM's executable."""
    import tvm

    target = level.target()
    tvm.tirx.register_tir_pipeline(PIPELINE, _tensor_pipeline)
    return tvm.relax.build(module, target, relax_pipeline=_lowering(), tir_pipeline=PIPELINE)


def export(executable: Any, linker: Linker) -> bytes:
    """Write the executable's object files and link them into one shared library."""
    objects: dict[str, bytes] = {}

    def collect(_: str, files: list[str], **__: Any) -> None:
        objects.update({Path(f).name: Path(f).read_bytes() for f in files})

    with tempfile.TemporaryDirectory(prefix="npuc-objects-") as folder:
        executable.export_library("model.so", fcompile=collect, workspace_dir=folder)
    return link(objects, linker)


def _tensor_pipeline() -> Any:
    """From TensorIR to LLVM: TVM's own passes, without those for GPUs and two more.

    Compacting allocations takes a third of a compilation and finds nothing: no schedule of
    npuc's moves a computation into another's loop. Rewriting storage would merge a kernel's
    registers into one buffer too big for the stack.

    What a kernel is called with is not asserted: nothing calls one but the virtual machine, whose
    main has checked types and shapes. The asserts would be three quarters of the machine code.
    """
    import tvm
    from tvm.tirx import transform as t
    from tvm.tirx.compilation_pipeline import finalize_device_passes, finalize_host_passes

    passes = [
        tvm.transform.module_pass(_flat, opt_level=0, name="npuc.flat"),
        t.AnnotateEntryFunc(),
        t.SplitHostDevice(),
        t.MakePackedAPI(),
        t.SkipAssert(),
    ]
    return tvm.transform.Sequential(passes), finalize_host_passes, finalize_device_passes


def _flat(module: Any, _: Any) -> Any:
    """Lower functions to loops over flat memory.

    Kernels that npuc wrote are such loops: of TVM's passes they need the one that knows which
    index is never negative. LLVM finds everything else.
    """
    import tvm
    from tvm.s_tir import transform as s
    from tvm.tirx import transform as t

    simple = [t.FlattenBuffer(), t.StmtSimplify(), s.RewriteUnsafeSelect()]
    scheduled = [
        s.CanonicalizeLoop(),
        s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(),
        s.LowerMatchBuffer(),
        s.StmtSimplify(),
        s.LowerOpaqueBlock(),
        t.FlattenBuffer(),
        t.NarrowDataType(32),
        s.LoopPartition(),
        t.VectorizeLoop(True),
        t.UnrollLoop(),
        s.RenormalizeSplitPattern(),
        t.StmtSimplify(),
        t.RemoveNoOp(),
        s.RewriteUnsafeSelect(),
        t.CommonSubexprElim(),
        t.VerifyMemory(),
    ]
    done = tvm.transform.Sequential(scheduled)(t.Filter(lambda f: not _written(f))(module))
    done.update(tvm.transform.Sequential(simple)(t.Filter(_written)(module)))
    return done


def _written(function: Any) -> bool:
    """Whether npuc wrote a function."""
    return WRITTEN in (function.attrs or {})


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
