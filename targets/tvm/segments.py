"""Compile a program: the whole of it through TVM, or in segments where ONNX Runtime helps out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from npuc.partition import host_nodes
from npuc.program import Port, Program
from npuc.targets.tvm import allowed, build, cpu_level, importer, linker, rewrites, runtime
from npuc.targets.tvm.lowered import Lowered

TVM, ORT = "tvm", "onnxruntime"


@dataclass(frozen=True, slots=True)
class Segment:
    """Nodes that run in one place, as a model of their own."""

    place: str
    model: ir.Model


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
    segments = cut(model, set(found)) if found else [Segment(TVM, model)]
    files: dict[str, bytes] = {}
    entries = []
    for number, segment in enumerate(segments):
        suffix = "so" if segment.place == TVM else "onnx"
        path = f"payload/segments/{number:03}.{suffix}" if found else runtime.LIBRARY
        files[path] = _compile(segment, level, tool)
        entries.append(_entry(segment, path))
    index = {
        "arch": level.arch,
        "cpu": level.mcpu,
        "requires": list(level.requires),
        "segments": entries,
    }
    files[runtime.INDEX] = json.dumps(index, sort_keys=True, indent=1).encode()
    here = runtime.host_fault(level.arch, level.requires)
    notes = (f"compiled, not run here: {here.message}",) if here else ()
    return Lowered(files, toolchain(level, tool), _placement(model, set(found)), notes, not here)


def _compile(segment: Segment, level: cpu_level.Level, tool: linker.Linker) -> bytes:
    if segment.place == ORT:
        return bytes(ir.to_proto(segment.model).SerializeToString(deterministic=True))
    return build.export(build.compile_module(importer.to_relax(segment.model), level), tool)


def _entry(segment: Segment, path: str) -> dict[str, Any]:
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
        places.setdefault(allowed.kind(node), set()).add(ORT if node in refused else TVM)
    return {name: "+".join(sorted(where)) for name, where in sorted(places.items())}


def cut(model: ir.Model, refused: set[ir.Node]) -> list[Segment]:
    """Cut a model into alternating segments, as few as its dependencies allow."""
    groups: list[tuple[str, list[ir.Node]]] = []
    waiting = list(model.graph)
    done = {v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    place = ORT if waiting[0] in refused else TVM
    while waiting:
        taken, left = [], []
        for node in waiting:
            fits = (node in refused) == (place == ORT)
            if fits and all(v in done for v in _reads(node)):
                taken.append(node)
                done.update(node.outputs)
            else:
                left.append(node)
        if taken:
            groups.append((place, taken))
        waiting, place = left, (TVM if place == ORT else ORT)
    return [Segment(where, extract(model, nodes, groups)) for where, nodes in groups]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield every value of the main graph that a node reads, also inside its bodies."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            own = {*body.inputs, *body.initializers.values()}
            own |= {v for inner in body.all_nodes() for v in inner.outputs}
            for inner in body.all_nodes():
                yield from (v for v in inner.inputs if v is not None and v not in own)
            yield from (v for v in body.outputs if v not in own)


def extract(
    model: ir.Model, nodes: list[ir.Node], groups: list[tuple[str, list[ir.Node]]]
) -> ir.Model:
    """Return a model of some nodes: its inputs and outputs are what crosses its edges."""
    inside = set(nodes)
    made = {v for node in nodes for v in node.outputs}
    read = {v: None for node in nodes for v in _reads(node)}
    weights = set(model.graph.initializers.values())
    inputs = [v for v in read if v not in made and v not in weights]
    elsewhere = {v for _, group in groups for n in group if n not in inside for v in _reads(n)}
    outputs = [
        v for n in nodes for v in n.outputs if v in elsewhere or v in set(model.graph.outputs)
    ]
    names = {v.name for v in (*inputs, *outputs, *made, *(w for w in read if w in weights))}
    proto = ir.to_proto(model)
    graph = proto.graph
    kept = {node.outputs[0].name for node in nodes}
    keep = [n for n in graph.node if n.output[0] in kept]
    infos = {i.name: i for i in (*graph.input, *graph.output, *graph.value_info)}
    tensors = [t for t in graph.initializer if t.name in names]
    del graph.node[:], graph.input[:], graph.output[:], graph.initializer[:]
    graph.node.extend(keep)
    graph.initializer.extend(tensors)
    graph.input.extend(infos[v.name] for v in inputs if v.name is not None)
    graph.output.extend(infos[v.name] for v in outputs if v.name is not None)
    return ir.from_proto(proto)


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
