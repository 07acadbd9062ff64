"""What a gate found, in JSON types."""

from collections.abc import Sequence
from typing import Any

from npuc.errors import worst
from npuc.outlets.entry import Entry
from npuc.outlets.schema import GATE


def gate(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what `npuc gate --json` prints; its schema is `npuc.outlets.schema.GATE`."""
    code = worst(entry.code for entry in entries)
    return {
        "schema": GATE,
        "passed": code == 0 and bool(entries),
        "exit_code": code,
        "pairs": [_pair(entry) for entry in entries],
    }


def _pair(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.model,
        "target": entry.target,
        "source": entry.source,
        "state": entry.state,
        "exit_code": entry.code,
        "cached": entry.cached,
        "seconds": entry.seconds,
        "error": entry.error,
        "waivers": list(entry.waivers),
        "notes": list(entry.notes),
        "report": None if entry.report is None else entry.report.to_json(),
    }
