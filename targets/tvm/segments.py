"""Compile a program: the whole of it through TVM, or in segments where ONNX Runtime helps out."""

import json

from npuc.program import Program
from npuc.targets.tvm import Lowered, build, cpu_level, importer, linker, rewrites, runtime


def lower(program: Program, *, cpu: str, fallback: str) -> Lowered:
    """See `npuc.targets.tvm.lower`."""
    level = cpu_level.resolve(cpu)
    tool = linker.find_linker(level.arch)
    model = rewrites.prepare(program.model)
    library = build.export(build.compile_module(importer.to_relax(model), level), tool)
    index = {"arch": level.arch, "cpu": level.mcpu, "requires": list(level.requires)}
    files = {
        runtime.LIBRARY: library,
        runtime.INDEX: json.dumps(index, sort_keys=True).encode(),
    }
    kinds = sorted({node.op_type for node in program.model.graph})
    here = runtime.host_fault(level.arch, level.requires)
    notes = (f"compiled, not run here: {here.message}",) if here else ()
    return Lowered(files, toolchain(level, tool), dict.fromkeys(kinds, "tvm"), notes, not here)


def toolchain(level: cpu_level.Level, tool: linker.Linker) -> dict[str, str]:
    """Name every tool that had a hand in the payload."""
    import tvm
    import tvm_ffi
    from tvm.target import codegen

    return {
        "tvm": tvm.__version__,
        "tvm-ffi": tvm_ffi.__version__,
        "llvm": str(codegen.llvm_version_major()),
        "cpu": f"{level.triple} {level.mcpu}",
        "linker": f"{tool.name} {tool.version}",
    }
