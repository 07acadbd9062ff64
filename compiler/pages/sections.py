"""Parts of a report that several HTML pages show."""

import json
import math
from collections.abc import Sequence
from html import escape

from npuc.estimate import Estimate, spelled
from npuc.metrics import Difference
from npuc.pages import drawing
from npuc.partition import HOST
from npuc.report import Report, Row
from npuc.text import size

DOUBT = "doubtful reference: "
"""How a note begins that says why a reference should not be trusted."""


def final(report: Report) -> Row | None:
    """Return the row of what the user gets: the artifact, or the last that was compared."""
    compared = [row for row in report.rows if row.original and row.state != "shown"]
    named = [row for row in compared if row.stage == "artifact"]
    return next(reversed(named or compared), None)


def worst(row: Row | None) -> Difference | None:
    """Return the output that is furthest from the original's."""
    if row is None or not row.original:
        return None
    return min(row.original, key=lambda d: -math.inf if math.isnan(d.sqnr_db) else d.sqnr_db)


def steps(report: Report) -> str:
    """Return what was compared step by step; steps that keep the answer fold away."""
    rows = report.rows
    last = final(report)
    kept = [
        row.state == "ok" and row is not last and at > 0 and _same(row, rows[at - 1])
        for at, row in enumerate(rows)
    ]
    shown = _steps([row for row, same in zip(rows, kept, strict=True) if not same])
    quiet = [row for row, same in zip(rows, kept, strict=True) if same]
    title = f"{len(quiet)} more steps that keep the answer"
    return shown + (drawing.part(title, _steps(quiet), opened=False, level=3) if quiet else "")


def _same(row: Row, before: Row) -> bool:
    """Whether a step moves the answer by less than a tenth of a decibel."""
    found, was = worst(row), worst(before)
    return found is not None and was is not None and abs(found.sqnr_db - was.sqnr_db) < 0.1


_MARKS = {"ok": "ok", "failed": "bad", "waived": "warn", "not run": "warn"}


def _steps(shown: Sequence[Row]) -> str:
    rows = []
    for row in shown:
        found = worst(row)
        why = "; ".join(filter(None, [*row.faults, row.note]))
        same = None if found is None else found.agreement
        rows.append(
            (
                escape(row.stage),
                "-" if found is None else drawing.decibels(found.sqnr_db),
                "-" if found is None else f"{found.max_abs:.2e}",
                "-" if same is None else f"{same:.1%}",
                escape(row.bar.text if row.bar else "-"),
                f'<span class="{_MARKS.get(row.state, "dim")}">{escape(row.state)}</span> '
                f"{escape(why)}",
            )
        )
    head = ("step", "SQNR dB", "max abs", "same choice", "held to", "verdict")
    return drawing.table(head, rows, ("", "n", "n", "n", "", "t"), stack=True)


def outputs(report: Report) -> str:
    """Return how far each output of the artifact is from the original's, where there are some."""
    row = final(report)
    found = () if row is None else row.original
    if len(found) < 2:
        return ""
    rows = [
        (
            f"<b>{escape(d.output)}</b>", drawing.decibels(d.sqnr_db), f"{d.max_abs:.2e}",
            f"{d.peak:.2e}", f"{d.cosine:.6f}",
            "-" if d.agreement is None else f"{d.agreement:.1%}", escape(d.fault),
        )
        for d in found
    ]  # fmt: skip
    head = ("output", "SQNR dB", "max abs", "largest value", "cosine", "same choice", "")
    return drawing.table(head, rows, ("w", "n", "n", "n", "n", "n", "t"))


def assumed(report: Report) -> str:
    """Return what npuc had to assume of the device, or ""."""
    items = "".join(
        f"<li><code>{escape(k)}</code> {escape(v)}</li>" for k, v in report.assumed.items()
    )
    return f"<p>Not public, so assumed or inferred:</p><ul>{items}</ul>" if items else ""


def placement(report: Report) -> str:
    """Return which operators run where, and what crosses between the places."""
    if not report.placement:
        return ""
    places: dict[str, list[str]] = {}
    for op, place in report.placement.items():
        places.setdefault(place, []).append(op)
    rows = [(f"<b>{escape(at)}</b>", escape(", ".join(ops))) for at, ops in places.items()]
    crossed = ""
    if any(HOST in place.split("+") for place in report.placement.values()):
        total = sum(c.bytes for c in report.crossings)
        crossed = f"<p>Tensors that cross per call: {len(report.crossings)}, {size(total)}.</p>"
    if report.crossings:
        cells = [
            (escape(c.tensor), f"{c.dtype} {list(c.shape)}", size(c.bytes), escape(c.to))
            for c in report.crossings
        ]
        crossed += drawing.table(("tensor", "type", "bytes", "to"), cells, ("w", "", "n", ""))
    return drawing.table(("on", "runs"), rows, ("", "t")) + crossed


def fingerprint(report: Report) -> str:
    """Return what the answers were compared with, how that was computed, and what is doubtful."""
    rows = [
        (escape(name), f"<code>{escape(_spelled(value))}</code>")
        for name, value in report.fingerprint.items()
        if value not in (None, "")
    ]
    known = drawing.table(("", ""), rows, ("", "t")) if rows else ""
    doubts = [note for note in report.notes if note.startswith(DOUBT)]
    said = f'<div class="verdict warn">{drawing.listed(doubts)}</div>' if doubts else ""
    return f"<p>{escape(report.reference)}</p>{said}{known}"


def asked(report: Report) -> str:
    """Return the arguments that differ from npuc.compile's defaults, or ""."""
    rows = [(escape(k), f"<code>{escape(_spelled(v))}</code>") for k, v in report.call.items()]
    return drawing.table(("argument", "value"), rows, ("", "t")) if rows else ""


def _spelled(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:  # what was never in a file: a numpy number in a fingerprint made by hand
        return str(value)


def roofline(found: Estimate | None, most: int = 24) -> str:
    """Draw the layers' bounds in the order they run, compute and memory in two colours."""
    total = None if found is None else found.seconds
    if found is None or not total:
        return "<p>No time bound: no peak is public.</p>" if found is not None else ""
    timed = [(layer, layer.seconds or 0.0) for layer in found.layers]
    largest = sorted(timed, key=lambda item: -item[1])[:most]
    shown = [item for item in timed if item in largest][:most]
    top = max(seconds for _, seconds in shown) or 1.0
    bars = [
        (
            layer.name, seconds / top, f"{spelled(seconds)} {layer.limit}",
            "memory" if layer.limit == "memory" else "bar",
        )
        for layer, seconds in shown
    ]  # fmt: skip
    missing = f" Not public: {', '.join(found.missing)}." if found.missing else ""
    bound = (
        f"<p>At least {spelled(total)} per call: a bound, not a prediction; the {len(shown)} "
        f"longest of {len(found.layers)} layers.{escape(missing)}</p>"
    )
    return bound + drawing.bars(bars)
