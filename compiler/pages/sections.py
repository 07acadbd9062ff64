"""Parts of a report that several HTML pages show."""

import math
from html import escape

from npuc.estimate import Estimate, spelled
from npuc.metrics import Difference
from npuc.pages import drawing
from npuc.report import Report, Row


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
    """Return the table of what was compared, step by step."""
    rows = []
    for row in report.rows:
        found = worst(row)
        mark = {"ok": "ok", "failed": "bad"}.get(row.state, "dim")
        why = "; ".join(filter(None, [*row.faults, row.note]))
        rows.append(
            (
                escape(row.stage),
                "-" if found is None else drawing.decibels(found.sqnr_db),
                escape(row.bar.text if row.bar else "-"),
                f'<span class="{mark}">{escape(row.state)}</span> {escape(why)}',
            )
        )
    return drawing.table(("step", "SQNR dB", "held to", "verdict"), rows, ("", "n", "", "t"))


def notes(report: Report) -> str:
    """Return the notes as a list, or ""."""
    items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f"<ul>{items}</ul>" if items else ""


def assumed(report: Report) -> str:
    """Return what npuc had to assume of the device, or ""."""
    items = "".join(
        f"<li><code>{escape(k)}</code> {escape(v)}</li>" for k, v in report.assumed.items()
    )
    return f"<p>Not public, so assumed or inferred:</p><ul>{items}</ul>" if items else ""


def roofline(found: Estimate | None, most: int = 24) -> str:
    """Draw the layers' bounds in the order they run, compute and memory in two colours."""
    total = None if found is None else found.seconds
    if found is None or not total:
        return "<p>No time bound: no peak is public.</p>" if found is not None else ""
    timed = [(layer, layer.seconds or 0.0) for layer in found.layers]
    largest = sorted(timed, key=lambda item: -item[1])[:most]
    shown = [item for item in timed if item in largest][:most]
    top = max(seconds for _, seconds in shown) or 1.0
    parts = []
    for at, (layer, seconds) in enumerate(shown):
        y, width = 18 * at, 420 * seconds / top
        colour = "memory" if layer.limit == "memory" else "bar"
        name = layer.name if len(layer.name) <= 34 else "…" + layer.name[-33:]
        parts += [
            drawing.text(232, y + 13, name, "end"),
            drawing.rect(240, y + 2, width, 13, colour),
            drawing.text(246 + width, y + 13, f"{spelled(seconds)} {layer.limit}"),
        ]
    height = 18 * len(shown) + 4
    missing = f" Not public: {', '.join(found.missing)}." if found.missing else ""
    bound = (
        f"<p>At least {spelled(total)} per call: a bound, not a prediction; the {len(shown)} "
        f"longest of {len(found.layers)} layers.{escape(missing)}</p>"
    )
    return bound + drawing.picture(800, height, "roofline bound per layer", parts)
