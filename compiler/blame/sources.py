"""Blame from what is at hand: a report that failed, an artifact, or a model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from npuc import artifact, asked, plugins, stored
from npuc.answers import Reference
from npuc.artifact import Artifact
from npuc.blame.cause import Blame
from npuc.blame.finding import concluded, find
from npuc.blame.judge import Judge
from npuc.blame.steps import search
from npuc.blame.trail import Lowered, Made, Trail
from npuc.errors import ArtifactError, UsageError
from npuc.members import REFERENCE
from npuc.per_target import AUTO
from npuc.policy import Policy
from npuc.sniff import sniff
from npuc.targets.base import Evidence, Payload

STORED = "stored program"
"""The only step of an artifact's trail: all that was done before is not in it."""

_HERE = frozenset({"original", "both"})


def kind_of(source: str) -> str:
    """Say whether a source is a "report", an "artifact" or a "model"."""
    path = Path(source)
    if source.startswith("zoo:") or not path.is_file():
        return "model"
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"{"):
        return "report"
    return "artifact" if sniff(path).name == "npuc" else "model"


def from_report(path: Path, target: str = "", **options: Any) -> Blame:
    """Do again what a report of ``npuc compile --json`` tells of, and say what is to blame.

    Of several targets the first that failed is taken, or `target`. Steps that were rolled back are
    rolled back again. Raises `UsageError` where the report does not say how it was made.
    """
    report = _chosen(path, target)
    call = dict(report.get("call") or {})
    if not call.get("source"):
        raise UsageError(
            f"{path} does not say which model it is of", hint="npuc blame MODEL -t TARGET …"
        )
    memory = sorted(name for name, value in call.items() if value == asked.IN_MEMORY)
    if memory:
        raise UsageError(
            f"{path}: {', '.join(memory)} were given in memory, and a report does not hold them",
            hint="call npuc.blame.find with the same arguments",
        )
    rows = report.get("rows", ())
    undone = tuple(at for at, row in enumerate(rows) if row.get("state") == "rolled back")
    if call.get("precision") == AUTO:  # what the search found is done again, not the search
        kept = [item["layer"]["node"] for item in (report.get("mixed") or {}).get("kept", ())]
        call |= {"precision": "int8", "skip": [*call.get("skip", ()), *kept]}
        call.pop("budget", None)
    if (limit := _limit(rows)) is not None:
        call["policy"] = Policy(sqnr_db=limit)
    return find(call.pop("source"), target=str(report["target"]), undone=undone, **call, **options)


def _chosen(path: Path, target: str) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is no report: {error}") from error
    listed = data.get("compiled", [data]) if isinstance(data, dict) else []
    reports = [r for r in listed if isinstance(r, dict) and "rows" in r and "target" in r]
    failed = data.get("failed", {}) if isinstance(data, dict) else {}
    if target:
        reports = [r for r in reports if r["target"] == target]
    if not reports:
        ended = f"; {', '.join(failed)} ended with an error" if failed else ""
        raise UsageError(
            f"{path} holds no report{f' of {target}' if target else ''}{ended}",
            hint="npuc compile MODEL -t TARGET --json > report.json",
        )
    return next((r for r in reports if not r.get("passed")), reports[0])


def _limit(rows: Any) -> float | None:
    """Return the policy's limit that a report was held to."""
    bars = [row.get("bar") for row in rows if row.get("held") in _HERE]
    limits = [bar["sqnr_db"] for bar in bars if bar and bar.get("sqnr_db") is not None]
    return float(limits[0]) if limits else None


def from_artifact(
    path: Path, against: str = "", policy: Policy | None = None, **options: Any
) -> Blame:
    """Say what is to blame in an artifact, from the answers that it carries.

    Alone it decides between its program and its payload. `against` names the model it was
    compiled from: where the program is wrong already, that is compiled again to find the step.
    """
    opened = artifact.read(path)
    opened.verify()
    trail = _trail(opened)
    trail.policy = policy or Policy()
    judge = Judge(trail)
    found = search(trail, judge)
    manifest = opened.manifest
    if found is not None and found.index is None:
        call = {"precision": manifest.precision, **_settings(manifest.settings)}
        return concluded(trail, judge, found, manifest.target, call, **options)
    if against:
        settings = _settings(manifest.settings)
        again = find(
            against, target=manifest.target, precision=manifest.precision, policy=policy,
            **settings, **options,
        )  # fmt: skip
        return replace(again, runs=again.runs + judge.runs)
    if found is None:
        what = "it answers as the original did, on the calls that it carries"
        return Blame("", "", what, judge.runs, len(trail.names), tuple(found_lines(judge)))
    step = Blame(
        STORED, "pass", "; ".join(found.faults[:3]), judge.runs, len(trail.names),
        tuple(found.evidence), command=f"npuc blame {path} --against MODEL",
    )  # fmt: skip
    return replace(step, why_not="which step and operator, only the model can tell")


def found_lines(judge: Judge) -> list[str]:
    """Say what was compared, where all is well."""
    return [f"compared on {len(judge.reference.samples)} calls"]


def _trail(opened: Artifact) -> Trail:
    if REFERENCE not in opened:
        raise ArtifactError(f"{opened.path} holds no reference to compare with")
    manifest = opened.manifest
    reference: Reference = stored.decode(opened[REFERENCE])
    program = artifact.program(opened)
    floats = any(step.name == "round-floats" for step in manifest.steps)
    loss = manifest.precision != "float" or floats
    target = plugins.find(manifest.target)
    payload = Payload(
        {}, cast(Evidence, manifest.evidence), manifest.toolchain, manifest.vendor,
    )  # fmt: skip
    lowered = Lowered(
        target.runner(opened, program), program, loss, floats, payload, manifest.target
    )
    made = [Made(STORED, "pass", program, lossy=loss)]
    return Trail(program, reference, made=made, lowered=lowered)


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("cpu", "fallback") if name in settings}
