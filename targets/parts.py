"""Hand over a model in parts, where some operators stay on the host and the vendor's compiler
takes only models that the device runs whole.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from npuc.partition import DEVICE, crossings, cut, host_nodes
from npuc.profile import Profile
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner
from npuc.targets import kit as kits
from npuc.targets.base import Built, Handover, LowerOptions, Tool

PLAN = "partition.json"
"""Lists the parts in the order they run, and the tensors that cross between them."""


def kit(tool: Tool, job: Handover, profile: Profile) -> dict[str, bytes]:
    """Return the tool's kit; in a folder for each part where the model is cut.

    A vendor's compiler that places operators on the host by itself
    (fact ``compiler.places_host_ops``) gets the whole model.
    """
    model = job.program.model
    hosted = host_nodes(model)
    if not hosted or profile.get("compiler.places_host_ops", False):
        return dict(tool.kit(job, profile))
    files: dict[str, bytes] = {}
    listed = []
    calls: list[Tensors] = list(job.calibration)
    for number, part in enumerate(cut(model, hosted)):
        program = Program.from_model(part.model)
        folder = f"part-{number:02}/"
        inputs = [{p.name: call[p.name] for p in program.inputs} for call in calls]
        if part.place == DEVICE:
            own = replace(job, program=program, calibration=inputs, archive=None)
            made: Mapping[str, bytes] = tool.kit(own, profile)
        else:
            made = kits.onnx_model(program)
        files |= {folder + name: content for name, content in made.items()}
        listed.append(
            {
                "folder": folder,
                "place": part.place,
                "inputs": [p.name for p in program.inputs],
                "outputs": [p.name for p in program.outputs],
            }
        )
        runner = OnnxRunner(program, folder)
        calls = [{**call, **runner(given)} for call, given in zip(calls, inputs, strict=True)]
    plan = {"parts": listed, "crossings": [asdict(c) for c in crossings(model)]}
    files[PLAN] = json.dumps(plan, indent=1).encode() + b"\n"
    return files


def lacks(tool: Tool, files: Mapping[str, bytes]) -> str:
    """Say what the tool needs and a kit does not have, in any of its parts; or ""."""
    for folder in _folders(files.get(PLAN)):
        own = {n.removeprefix(folder): c for n, c in files.items() if n.startswith(folder)}
        if lacking := tool.lacks(own):
            return f"{folder}{lacking}" if folder else lacking
    return ""


def build(tool: Tool, folder: Path, profile: Profile, options: LowerOptions) -> Built:
    """Run the tool on a kit, on each part that the device runs; raises as `Tool.build` does."""
    plan = folder / PLAN
    prefixes = _folders(plan.read_bytes() if plan.exists() else None)
    done = [(prefix, tool.build(folder / prefix, profile, options)) for prefix in prefixes]
    files = {prefix + name: c for prefix, built in done for name, c in built.files.items()}
    _, first = done[0]
    parts = f" ({len(done)} parts of the model; the others run on the host)"
    return replace(first, files=files, said=first.said + (parts if prefixes != [""] else ""))


def _folders(plan: bytes | None) -> list[str]:
    """Return the folders of the parts for the device; the kit itself where there are none."""
    if plan is None:
        return [""]
    found = [str(p["folder"]) for p in json.loads(plan)["parts"] if p["place"] == DEVICE]
    return [name for name in found if _plain(name)] or [""]


def _plain(name: str) -> bool:
    """Whether a folder's name is one that `kit` gives: a plan may come from a stranger."""
    return name.startswith("part-") and name[5:-1].isdecimal() and name.endswith("/")
