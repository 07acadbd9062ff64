"""Say what a file is and holds, without running anything it contains."""

import json
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from npuc import artifact, stored, trust
from npuc.answers import Reference
from npuc.errors import ArtifactError
from npuc.jsonable import plain
from npuc.members import MODEL, PARITY
from npuc.program import Program, Refusal
from npuc.sniff import sniff
from npuc.text import counts, section, size

EVIDENCE = {
    "twin": "npuc's model of the chip's numerics, run on the host",
    "vendor-compiled": "the vendor's compiler accepted the model",
    "vendor-simulator": "the vendor's simulator ran it",
    "device": "the device itself ran it",
}


def look(source: str) -> dict[str, Any]:
    """Describe a file or ``zoo:NAME`` in JSON types; most is said of ONNX, exported programs and
    artifacts. Raises `LoadError`, `ArtifactError` or `UsageError`.
    """
    if source.startswith("zoo:"):
        return {"file": source, "kind": "zoo", "what": _title(source), **_exported(source)}
    path = Path(source)
    kind = sniff(path)
    about: dict[str, Any] = {"file": source, "kind": kind.name, "what": kind.what}
    if kind.name != "directory":
        about["bytes"] = path.stat().st_size
    match kind.name:
        case "npuc":
            about |= _artifact(path)
        case "onnx":
            from npuc.onnx_file import read_onnx

            about |= _program(read_onnx(path))
        case "pt2":
            about |= _exported(source)
        case "safetensors" if stored.is_reference(path):
            about |= {"kind": "reference", "what": "recorded answers, without a model"}
            about["recorded"] = _recorded_with(stored.read(path))
        case "safetensors":
            about["tensors"] = dict(_safetensors(path))
    if kind.imports:
        about["imports"] = list(kind.imports)
    return about


def _title(source: str) -> str:
    from npuc import models

    return f"a reference model: {models.get(source).title}"


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
        about["parity"] = _object(path, opened[PARITY])
    return about


def _object(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: {PARITY} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path}: {PARITY} holds no object")
    return data


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


def _exported(source: str) -> dict[str, Any]:
    """Describe a torch model, with the names its ONNX export gets."""
    from npuc.load import load
    from npuc.record import ports

    loaded = load(source)
    captured = loaded.captured
    graph = captured.program.graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    tensors = [*captured.program.state_dict.values(), *captured.program.constants.values()]
    inputs = ports(captured)
    about = {
        "inputs": plain(inputs),
        "outputs": [{"name": name} for name in captured.signature.output_names],
        "operators": dict(sorted(Counter(map(_called, calls)).items())),
        "weight_bytes": sum(getattr(tensor, "nbytes", 0) for tensor in tensors),
    }
    if loaded.reference is not None:
        about["recorded"] = _recorded_with(loaded.reference)
    return about


def _recorded_with(reference: Reference) -> dict[str, Any]:
    return {
        "samples": len(reference.samples),
        "calibration": len(reference.calibration),
        "id": reference.id,
        "fingerprint": {k: v for k, v in plain(reference.fingerprint).items() if k != "id"},
        "doubts": list(trust.doubts(reference)),
    }


def _called(node: Any) -> str:
    """Name what a graph node calls: ``aten.relu.default``, or a Python function such as getitem."""
    target = node.target
    return str(target) if hasattr(target, "namespace") else str(target.__name__)


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
        blocks.append(
            section(f"Operators{opset}", [[line] for line in _wrapped(about["operators"])])
        )
    if "weight_bytes" in about:
        blocks.append(section("Weights", [[size(about["weight_bytes"])]]))
    blocks.append(_recorded(about.get("recorded")))
    blocks.append(section("Tensors", about.get("tensors", {}).items()))
    blocks.append(section("Imports code", [[name] for name in about.get("imports", ())]))
    if about["kind"] == "npuc":
        blocks += _history(about)
    return "\n".join(filter(None, blocks))


def _wrapped(operators: Mapping[str, int]) -> list[str]:
    return textwrap.wrap(counts(operators), 96, break_long_words=False, break_on_hyphens=False)


def _recorded(about: Mapping[str, Any] | None) -> str:
    if about is None:
        return ""
    rows = [[k, about[k]] for k in ("samples", "calibration", "id") if k in about]
    stated = {k: v for k, v in about["fingerprint"].items() if v is not None}
    rows += [[k, ", ".join(v) if isinstance(v, list) else v] for k, v in stated.items()]
    rows += [["doubt", reason] for reason in about.get("doubts", ())]
    return section("Recorded with it", rows)


def _origin(about: Mapping[str, Any]) -> str:
    rows = [
        ["target", f"{about['target']}, precision {about['precision']}"],
        ["evidence", f"{about['evidence']}: {EVIDENCE.get(about['evidence'], 'unknown')}"],
        *([["vendor", about["vendor"]]] if about["vendor"] else []),
        ["written by", f"npuc {about['npuc']}, format {about['format']}"],
        *([["parity", _verdict(about["parity"])]] if "parity" in about else []),
        *([["reference", known]] if (known := _reference_id(about.get("parity"))) else []),
    ]
    return section("Artifact", rows)


def _reference_id(parity: Mapping[str, Any] | None) -> str:
    fingerprint = (parity or {}).get("fingerprint")
    return str(fingerprint.get("id", "")) if isinstance(fingerprint, dict) else ""


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
    if "shape" not in port:
        return str(port["name"])
    return f"{port['name']}:{'x'.join(map(str, port['shape'])) or 'scalar'}:{port['dtype']}"
