"""What `npuc targets`, `npuc passes` and `npuc doctor` print: as data, and as text."""

import inspect
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from npuc import passes as passes_package
from npuc import plugins
from npuc.doctor import Check
from npuc.text import columns


def targets() -> dict[str, Any]:
    """Return all installed targets as JSON types."""
    return {"targets": [asdict(info) for info in plugins.describe()]}


def targets_text() -> str:
    """Return the targets, with what is missing and the command that gets it below each."""
    return columns(row for info in plugins.describe() for row in _target(info))


def _target(info: plugins.TargetInfo) -> list[list[str]]:
    lines = [[info.name, info.title or f"from {info.distribution}"]]
    if info.precisions:
        first, *others = info.precisions
        lines.append(["", f"precision: {', '.join([f'{first} (default)', *others])}"])
    if info.evidence:
        lines.append(["", f"evidence here: {info.evidence}"])
    fault, remedy = info.fault, info.remedy
    if info.toolchain is not None:
        tool = info.toolchain
        fault, remedy = tool.missing, tool.remedy
        if not fault:
            lines.append(["", f"toolchain: {tool.name} {tool.version}".rstrip()])
        else:
            fault = f"{tool.name}: {fault}"
    if fault:
        lines.append(["", f"not here: {fault}" if info.toolchain else f"broken: {fault}"])
    if fault and remedy:
        lines.append(["", f"→ {remedy}"])
    return lines


def passes() -> dict[str, Any]:
    """Return all passes as JSON types."""
    return {
        "passes": [
            {
                "name": name,
                "exact": kind.exact,
                "optional": kind.optional,
                "options": [f.name for f in fields(kind) if f.repr],
                "about": inspect.cleandoc(kind.__doc__ or ""),
            }
            for name, kind in passes_package.catalogue().items()
        ]
    }


def passes_text() -> str:
    """Return every pass with its drawing."""
    blocks = []
    for item in passes()["passes"]:
        traits = ["exact" if item["exact"] else "inexact", "optional" if item["optional"] else ""]
        head = f"{item['name']} ({', '.join(filter(None, traits))})"
        blocks.append("\n".join([head, *(f"    {line}" for line in item["about"].splitlines())]))
    return "\n\n".join("\n".join(line.rstrip() for line in b.splitlines()) for b in blocks)


def checks(found: Iterable[Check]) -> dict[str, Any]:
    """Return the checks as JSON types."""
    listed = [asdict(check) | {"status": check.status} for check in found]
    return {"ok": all(c["status"] != "missing" for c in listed), "checks": listed}


def checks_text(found: Iterable[Check]) -> str:
    """Return one line per check, and below it the command that mends what is wrong."""
    rows: list[list[str]] = []
    for check in found:
        about = "; ".join(filter(None, [check.found, check.fault]))
        rows.append([check.status, check.name, about])
        if check.fault and check.remedy:
            rows.append(["", "", f"→ {check.remedy}"])
    return columns(rows)
