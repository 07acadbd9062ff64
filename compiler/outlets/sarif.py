"""A gate as SARIF 2.1.0: what GitHub code scanning, GitLab and editors show beside the source.

One result for each step that missed its bar, each demand that does not hold or was waived, and
each pair that npuc could not compile.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from npuc.errors import worst
from npuc.jsonable import plain
from npuc.layers.text import largest
from npuc.outlets import rules
from npuc.outlets.entry import NOTHING, Entry
from npuc.outlets.whereabouts import Repository, Spot
from npuc.text import harmless

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_BASE = "%SRCROOT%"

Json = dict[str, Any]


@dataclass(frozen=True)
class _Finding:
    """One result before it has a place. `key` tells it from the others of its pair."""

    entry: Entry
    rule: str
    key: str
    text: str
    waiver: str = ""
    values: Json = field(default_factory=dict)


def text(entries: Sequence[Entry], root: Path) -> str:
    """Return the log. Files are named relative to `root`, the repository's folder."""
    import npuc

    found = list(_told_apart(finding for entry in entries for finding in _findings(entry)))
    used = sorted({finding.rule for finding in found})
    repository = Repository(root)
    code = worst(entry.code for entry in entries)
    run = {
        "tool": {
            "driver": {
                "name": "npuc",
                "version": npuc.__version__,
                "semanticVersion": npuc.__version__,
                "rules": [rules.rule(name) for name in used],
            }
        },
        "originalUriBaseIds": {_BASE: {"description": {"text": "The repository's folder."}}},
        "automationDetails": {"id": "npuc/"},
        "invocations": [
            {
                "executionSuccessful": not any(entry.state == "error" for entry in entries),
                "exitCode": code,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": _said(entry.why)}}
                    for entry in entries
                    if entry.state == "error"
                ],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, used.index(finding.rule), repository) for finding in found],
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _findings(entry: Entry) -> Iterator[_Finding]:
    report = entry.report
    for row in () if report is None else report.rows:
        if row.state in ("failed", "waived"):
            values = {"bar": row.bar.text} if row.bar is not None else {}
            waiver = row.note or "waived" if row.state == "waived" else ""
            yield _Finding(entry, rules.parity(row.stage), "", _said(row.faults), waiver, values)
    for held in entry.held:
        if held.state != "ok":
            undecided = held.state == "undecided"
            rule = rules.UNDECIDED if undecided else rules.demand(held.check)
            names = ("value", "bar", "low", "high", "samples", "needed")
            values = {name: plain(getattr(held, name)) for name in names}
            key = f"{held.check} {held.output}"
            yield _Finding(entry, rule, key, held.text, held.waiver, values)
    if entry.error or report is None or (not report.passed and entry.why == NOTHING):
        yield _Finding(entry, rules.error(entry.code), "", _said(entry.why), entry.waived)


def _told_apart(findings: Iterable[_Finding]) -> Iterator[_Finding]:
    """Number what would have one fingerprint: services keep one finding for each."""
    seen: Counter[str] = Counter()
    for finding in findings:
        seen[same := _fingerprint(finding)] += 1
        yield finding if seen[same] == 1 else replace(finding, key=f"{finding.key} {seen[same]}")


def _said(lines: Iterable[str]) -> str:
    return harmless("\n".join(lines)) or "it does not answer like the original"


def _result(finding: _Finding, index: int, repository: Repository) -> Json:
    entry = finding.entry
    spots = repository.spots(entry, finding.text)
    about = "\n".join(filter(None, [f"{entry.name}: {finding.text}", _culprit(entry)]))
    found: Json = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": "warning" if finding.waiver else "error",
        "kind": "fail",
        "message": {"text": harmless(about)},
        "locations": [_location(entry, spots[0] if spots else None)],
        "partialFingerprints": {"npucFinding/v1": _fingerprint(finding)},
        "properties": _properties(finding),
    }
    if len(spots) > 1:
        found["relatedLocations"] = [
            {"id": at, "message": {"text": spot.layer or "here as well"}, **_place(spot)}
            for at, spot in enumerate(spots[1:], 1)
        ]
    if finding.waiver:
        found["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": finding.waiver}
        ]
    return found


def _culprit(entry: Entry) -> str:
    """Name the layer where most is lost, where something is and layers were measured."""
    layers = None if entry.report is None or entry.report.passed else entry.report.layers
    culprit = None if layers is None else largest(layers)
    if layers is None or culprit is None:
        return ""
    layer = layers.find(culprit.tensor)
    return f"Most of it is lost in {layer.title}{f' ({layer.place})' if layer.place else ''}."


def _location(entry: Entry, spot: Spot | None) -> Json:
    """Return where to show it; GitHub refuses what has no file, so the model stands for one."""
    names = [{"name": entry.target, "fullyQualifiedName": entry.name, "kind": "module"}]
    place = _place(spot) if spot else _elsewhere(entry.source) if entry.source else {}
    return {**place, "logicalLocations": names}


def _elsewhere(source: str) -> Json:
    """Name a model that is not in the repository: a file with its whole path, or ``zoo:NAME``."""
    zoo = source.startswith("zoo:")
    uri = f"zoo:{quote(source[4:])}" if zoo else Path(source).resolve().as_uri()
    return {"physicalLocation": {"artifactLocation": {"uri": uri}}}


def _place(spot: Spot) -> Json:
    file = {"uri": quote(spot.uri), "uriBaseId": _BASE}
    return {
        "physicalLocation": {"artifactLocation": file, "region": {"startLine": spot.line}},
    }


def _fingerprint(finding: _Finding) -> str:
    """Name a finding by what it is about: it stays the same while numbers and lines move."""
    entry = finding.entry
    about = "\0".join((finding.rule, entry.model, entry.target, finding.key))
    return hashlib.sha256(about.encode("utf-8", "surrogatepass")).hexdigest()


def _properties(finding: _Finding) -> Json:
    entry = finding.entry
    about: Json = {"model": entry.model, "target": entry.target, **finding.values}
    if entry.report is not None:
        about |= {"precision": entry.report.precision, "evidence": entry.report.evidence}
    if entry.worst is not None:
        about["sqnr_db"] = plain(entry.worst.sqnr_db)
    return about
