"""Compile a program: the whole of it through TVM, or in segments where ONNX Runtime helps out."""

import json
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from npuc.partition import Part, cut, host_nodes, kind
from npuc.program import Port, Program
from npuc.targets.tvm import allowed, build, cpu_level, importer, linker, mapped, rewrites, runtime
from npuc.targets.tvm.lowered import Lowered

TVM, ORT = "tvm", "onnxruntime"


def lower(program: Program, *, cpu: str, fallback: str) -> Lowered:
    """See `npuc.targets.tvm.lower`."""
    level = cpu_level.resolve(cpu)
    tool = linker.find_linker(level.arch)
    model = rewrites.prepare(program.model)
    found = allowed.refusals(model)
    # What a device leaves to its host runs in ONNX Runtime there, too: nobody need ask for that.
    # By the results' names, since converting an older opset drops the marks.
    hosted = {value.name for node in host_nodes(program.model) for value in node.outputs}
    unasked = {n: why for n, why in found.items() if n.outputs[0].name not in hosted}
    if unasked and fallback != "ort":
        raise allowed.refuse(unasked)
    segments = cut(model, found, TVM, ORT) if found else [Part(TVM, model)]
    files: dict[str, bytes] = {}
    entries = []
    for number, segment in enumerate(segments):
        suffix = "so" if segment.place == TVM else "onnx"
        path = f"payload/segments/{number:03}.{suffix}" if found else runtime.SHARED_OBJECT
        entry = _entry(segment, path)
        if segment.place == ORT:
            proto = ir.to_proto(segment.model)
            files[path] = bytes(proto.SerializeToString(deterministic=True))
        else:
            module = build.legalised(importer.to_relax(segment.model), level)
            module, constants = mapped.lift(module)
            files[path] = build.export(build.lowered(module, level), tool)
            if constants.tensors:
                name = path.removesuffix("so") + "constants"
                files[name] = constants.data
                entry["constants"] = {"file": name, "tensors": constants.to_json()}
        entries.append(entry)
    index = {
        "arch": level.arch,
        "cpu": level.name,
        "requires": list(level.requires),
        "segments": entries,
    }
    files[runtime.INDEX] = json.dumps(index, sort_keys=True, indent=1).encode()
    here = runtime.host_fault(level.arch, level.requires)
    notes = (f"compiled, not run here: {here.message}",) if here else ()
    return Lowered(files, toolchain(level, tool), _placement(model, set(found)), notes, not here)


def _entry(segment: Part, path: str) -> dict[str, Any]:
    program = Program.from_model(segment.model)

    def ports(items: Sequence[Port]) -> list[list[Any]]:
        return [[p.name, p.dtype, list(p.shape)] for p in items]

    return {
        "place": segment.place,
        "file": path,
        "inputs": ports(program.inputs),
        "outputs": ports(program.outputs),
    }


def _placement(model: ir.Model, refused: set[ir.Node]) -> dict[str, str]:
    """Say for each operator kind where it runs; both places where its nodes are split."""
    places: dict[str, set[str]] = {}
    for node in model.graph:
        places.setdefault(kind(node), set()).add(ORT if node in refused else TVM)
    return {name: "+".join(sorted(where)) for name, where in sorted(places.items())}


def toolchain(level: cpu_level.Level, tool: linker.Linker) -> dict[str, str]:
    """Name every tool that had a hand in the payload."""
    import tvm
    import tvm_ffi
    from tvm.target import codegen

    return {
        "tvm": tvm.__version__,
        "tvm-ffi": tvm_ffi.__version__,
        "llvm": str(codegen.llvm_version_major()),
        "cpu": f"{level.triple} {level.name}",
        "linker": f"{tool.name} {tool.version}",
    }
