"""One self-contained HTML page: a model on every target it was compiled for."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from npuc.estimate import Estimate, spelled
from npuc.layers.text import finding
from npuc.pages import drawing, sections
from npuc.pages.drawing import TOP
from npuc.pages.sections import final, worst
from npuc.partition import HOST
from npuc.report import Report

GRADES = {
    "twin": "npuc's model of the chip's arithmetic, run on this host",
    "vendor-compiled": "the vendor's compiler accepted the model; answers are the twin's",
    "vendor-simulator": "the vendor's simulator answered",
    "device": "the device itself answered",
}


def page(reports: Sequence[Report], failed: Mapping[str, str]) -> str:
    """Return the page for reports of one model; `failed` names targets that gave none, and why."""
    model = reports[0].model if reports else "no report"
    about = reports[0].reference if reports else ""
    ordered = sorted(reports, key=lambda r: r.target)
    used = [g for g in GRADES if any(r.evidence == g for r in reports)]
    grades = "; ".join(f"<b>{g}</b>: {escape(GRADES[g])}" for g in used)
    rows = "".join(map(_row, ordered)) + "".join(
        f'<tr><td>{escape(name)}</td><td class="t bad" colspan="8">not compiled: '
        f"{escape(why)}</td></tr>"
        for name, why in sorted(failed.items())
    )
    head = "".join(f"<th{' class=n' if name in _NUMBERS else ''}>{name}</th>" for name in _COLUMNS)
    body = f"""<p>Compared with: {escape(about)}.</p>
<p class="dim">Evidence: {grades}.</p>
<p class="dim">Time is a <b>lower bound</b> from public peaks, no prediction.</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>
<h2>SQNR of the artifact against the original</h2>
{_bars(ordered)}
<h2>Per target</h2>
{"".join(map(_details, ordered))}"""
    return drawing.document(f"{model} on {len(reports)} targets", body)


_COLUMNS = (
    "target", "precision", "SQNR dB", "max abs", "same choice", "evidence", "on the host",
    "time ≥", "verdict",
)  # fmt: skip
_NUMBERS = {"SQNR dB", "max abs", "same choice", "time ≥"}


def _row(report: Report) -> str:
    found = worst(final(report))
    sqnr = "-" if found is None else drawing.decibels(found.sqnr_db)
    far = "-" if found is None else f"{found.max_abs:.2e}"
    same = "-" if found is None or found.agreement is None else f"{found.agreement:.1%}"
    verdict = (
        '<span class="ok">passed</span>' if report.passed else '<span class="bad">FAILED</span>'
    )
    cells = [
        (f"<b>{escape(report.target)}</b>", ""),
        (report.precision, ""),
        (sqnr, "n"),
        (far, "n"),
        (same, "n"),
        (escape(report.evidence), ""),
        (escape(_host(report)), "t"),
        (_time(report.estimate), "n"),
        (verdict, ""),
    ]
    return "<tr>" + "".join(f'<td class="{c}">{text}</td>' for text, c in cells) + "</tr>"


def _host(report: Report) -> str:
    kinds = [op for op, place in report.placement.items() if HOST in place.split("+")]
    if not kinds:
        return "nothing"
    return f"{', '.join(kinds)} (tensors that cross: {len(report.crossings)})"


def _time(found: Estimate | None) -> str:
    seconds = None if found is None else found.seconds
    return "not public" if seconds is None else spelled(seconds)


def _bars(reports: Sequence[Report]) -> str:
    """Draw one horizontal bar per target; 20 dB, the default bar, is a line.

    Bars end at `TOP`: beyond it nothing is lost that anyone could see, and float targets would
    squeeze the others.
    """
    values = [(r, worst(final(r))) for r in reports]
    known = [(r, d.sqnr_db) for r, d in values if d is not None and not math.isnan(d.sqnr_db)]
    if not known:
        return "<p>nothing was compared</p>"
    height = 22 * len(known) + 24
    parts = []
    for at, (report, value) in enumerate(known):
        y, width = 22 * at, 620 * min(max(value, 0.0), TOP) / TOP
        parts += [
            drawing.text(108, y + 15, report.target, "end"),
            drawing.rect(116, y + 3, width, 15, "bar"),
            drawing.text(122 + width, y + 15, drawing.decibels(value)),
        ]
    x = 116 + 620 * 20 / TOP
    parts.append(drawing.line(x, 0, x, height - 20, "bad"))
    parts.append(drawing.text(x, height - 6, "20 dB", "middle"))
    return drawing.picture(800, height, "SQNR per target", parts)


def _details(report: Report) -> str:
    blocks = [
        f"<p>{escape(report.evidence)}{'; ' + escape(report.vendor) if report.vendor else ''}</p>",
        sections.notes(report),
        sections.steps(report),
        f"<p>{escape(finding(report.layers))}.</p>" if report.layers else "",
        sections.roofline(report.estimate),
        sections.assumed(report),
    ]
    opened = "" if report.passed else " open"
    return (
        f"<details{opened}><summary>{escape(report.target)} ({escape(report.precision)})"
        f"</summary>{''.join(blocks)}</details>"
    )
