"""Say what a file is and holds, without running anything it contains."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from npuc import artifact
from npuc.errors import ArtifactError
from npuc.jsonable import plain
from npuc.members import MODEL, PARITY
from npuc.program import Program, Refusal
from npuc.sniff import Kind, sniff
from npuc.text import counts, section, size

EVIDENCE = {
    "twin": "npuc's model of the chip's numerics, run on the host",
    "vendor-compiled": "the vendor's compiler accepted the model",
    "vendor-simulator": "the vendor's simulator ran it",
    "device": "the device itself ran it",
}


def look(path: Path) -> dict[str, Any]:
    """Describe a file in JSON types; more is said of ONNX, exported programs and artifacts.

    Raises `LoadError` or `ArtifactError` where the file is damaged or unsafe.
    """
    kind = sniff(path)
    about: dict[str, Any] = {"file": str(path), "kind": kind.name, "what": kind.what}
    if kind.name != "directory":
        about["bytes"] = path.stat().st_size
    match kind.name:
        case "npuc":
            about |= _artifact(path)
        case "onnx":
            from npuc.onnx_file import read_onnx

            about |= _program(read_onnx(path))
        case "pt2":
            about |= _exported(path, kind)
        case "safetensors":
            about["tensors"] = dict(_safetensors(path))
    if kind.imports:
        about["imports"] = list(kind.imports)
    return about


def _artifact(path: Path) -> dict[str, Any]:
    import onnx
    import onnx_ir as ir

    opened = artifact.read(path)
    opened.verify()
    about: dict[str, Any] = plain(opened.manifest)
    for step in about["steps"]:
        del step["seconds"]
    if MODEL in opened:
        try:
            model = ir.from_proto(onnx.load_model_from_string(opened[MODEL]))
        except Exception as error:  # protobuf's and onnx_ir's errors share no base
            raise ArtifactError(f"{path}: {MODEL} is not an ONNX model: {error}") from error
        about["opset"] = model.opset_imports.get("", 0)
        about["operators"] = _operators(model.graph.all_nodes())
    if PARITY in opened:
        about["parity"] = json.loads(opened[PARITY])
    return about


def _program(program: Program) -> dict[str, Any]:
    return {
        "opset": program.opset,
        "inputs": plain(program.inputs),
        "outputs": plain(program.outputs),
        "operators": _operators(program.model.graph.all_nodes()),
        "weight_bytes": program.weight_bytes,
    }


def _operators(nodes: Iterator[Any]) -> dict[str, int]:
    names = (f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)
    return dict(sorted(Counter(names).items()))


def _exported(path: Path, kind: Kind) -> dict[str, Any]:
    from npuc import pt2

    program = pt2.load(path, kind.root)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    tensors = [*program.state_dict.values(), *program.constants.values()]
    return {
        "inputs": [_port(n, values.get(n)) for n in program.graph_signature.user_inputs],
        "outputs": [_port(n, values.get(str(n))) for n in program.graph_signature.user_outputs],
        "operators": dict(sorted(Counter(str(node.target) for node in calls).items())),
        "weight_bytes": sum(getattr(t, "nbytes", 0) for t in tensors),
    }


def _port(name: Any, value: Any) -> dict[str, Any]:
    shape = [d if isinstance(d, int) else str(d) for d in getattr(value, "shape", ())]
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    return {"name": str(name), "dtype": dtype, "shape": shape}


def _safetensors(path: Path) -> Iterator[tuple[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        for name in sorted(file.keys()):
            part = file.get_slice(name)
            shape = "x".join(map(str, part.get_shape())) or "scalar"
            yield name, f"{shape}:{part.get_dtype()}"


def text(about: Mapping[str, Any]) -> str:
    """Spell what `look` returned, for people."""
    size_of = f", {size(about['bytes'])}" if "bytes" in about else ""
    blocks = [f"{about['file']}: {about['what']}{size_of}\n"]
    if about["kind"] == "npuc":
        blocks.append(_origin(about))
    blocks.append(section("Inputs", [[_spelled(p)] for p in about.get("inputs", ())]))
    blocks.append(section("Outputs", [[_spelled(p)] for p in about.get("outputs", ())]))
    if about.get("operators"):
        opset = f" (opset {about['opset']})" if "opset" in about else ""
        blocks.append(section(f"Operators{opset}", [[counts(about["operators"])]]))
    if "weight_bytes" in about:
        blocks.append(section("Weights", [[size(about["weight_bytes"])]]))
    blocks.append(section("Tensors", about.get("tensors", {}).items()))
    blocks.append(section("Imports code", [[name] for name in about.get("imports", ())]))
    if about["kind"] == "npuc":
        blocks += _history(about)
    return "\n".join(filter(None, blocks))


def _origin(about: Mapping[str, Any]) -> str:
    rows = [
        ["target", f"{about['target']}, precision {about['precision']}"],
        ["evidence", f"{about['evidence']}: {EVIDENCE.get(about['evidence'], 'unknown')}"],
        *([["vendor", about["vendor"]]] if about["vendor"] else []),
        ["written by", f"npuc {about['npuc']}, format {about['format']}"],
        *([["parity", _verdict(about["parity"])]] if "parity" in about else []),
    ]
    return section("Artifact", rows)


def _verdict(parity: Mapping[str, Any]) -> str:
    passed = parity.get("passed")
    state = "not stated" if passed is None else "held" if passed else "broken"
    return f"{state} when it was compiled; to check again: npuc verify"


def _history(about: Mapping[str, Any]) -> list[str]:
    steps = [[step["name"], _outcome(step)] for step in about["steps"]]
    refusals = [
        [step["name"], line]
        for step in about["steps"]
        for line in _grouped([Refusal(**r) for r in step["refusals"]])
    ]
    places: dict[str, list[str]] = defaultdict(list)
    for op, place in about["placement"].items():
        places[place].append(op)
    members = about["members"].items()
    return [
        section("Steps", steps),
        section("Left alone, and why", refusals),
        section("Runs on", [[place, ", ".join(ops)] for place, ops in sorted(places.items())]),
        section("Toolchain", about["toolchain"].items()),
        section("Settings", [[k, json.dumps(v)] for k, v in about["settings"].items()]),
        section("Notes", [[note] for note in about["notes"]]),
        section("Members", [[name, size(member["size"])] for name, member in members]),
    ]


def _outcome(step: Mapping[str, Any]) -> str:
    if step["rolled_back"]:
        return f"undone: {step['rolled_back']}"
    return f"{step['changes']} change{'' if step['changes'] == 1 else 's'}"


def _grouped(refusals: Sequence[Refusal]) -> Iterator[str]:
    """Say each reason once, with the nodes it holds for (the first few of many)."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for refusal in refusals:
        reasons[refusal.reason].append(refusal.node)
    for reason, nodes in reasons.items():
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        yield f"{', '.join(nodes[:3])}{more}: {reason}"


def _spelled(port: Mapping[str, Any]) -> str:
    return f"{port['name']}:{'x'.join(map(str, port['shape'])) or 'scalar'}:{port['dtype']}"
