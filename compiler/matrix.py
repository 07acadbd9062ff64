"""One self-contained HTML page: a model on every target it was compiled for."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from npuc.estimate import Estimate, spelled
from npuc.metrics import Difference
from npuc.partition import HOST
from npuc.report import Report, Row

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--good:#1a7f37;--bad:#cf222e;--bar:#2f6feb;
--memory:#bf8700}
@media(prefers-color-scheme:dark){:root{--good:#3fb950;--bad:#f85149;--bar:#58a6ff;--memory:#d29922}}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:76rem;padding:1.5rem}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2rem 0 .3rem}p{margin:.3rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
white-space:nowrap}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.t{white-space:normal;min-width:13rem}
.ok{color:var(--good)}.bad{color:var(--bad);font-weight:600}.dim{opacity:.7}
details{border-top:1px solid var(--line);padding:.5rem 0}summary{cursor:pointer;font-weight:600}
svg{display:block;max-width:100%;min-width:36rem;height:auto}
svg text{fill:currentColor;font:12px system-ui}
code{background:var(--soft);padding:0 .25em;border-radius:3px}li{margin:.15rem 0}
"""

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
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(model)} on {len(reports)} targets</title><style>{STYLE}</style></head><body>
<h1>{escape(model)} on {len(reports)} targets</h1>
<p>Compared with: {escape(about)}.</p>
<p class="dim">Evidence: {grades}.</p>
<p class="dim">Time is a <b>lower bound</b> from public peaks, no prediction.</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>
<h2>SQNR of the artifact against the original</h2>
{_bars(ordered)}
<h2>Per target</h2>
{"".join(map(_details, ordered))}
</body></html>
"""


TOP = 60.0
"""Decibels at which bars end."""

_COLUMNS = (
    "target", "precision", "SQNR dB", "max abs", "same choice", "evidence", "on the host",
    "time ≥", "verdict",
)  # fmt: skip
_NUMBERS = {"SQNR dB", "max abs", "same choice", "time ≥"}


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


def _row(report: Report) -> str:
    found = worst(final(report))
    sqnr = "-" if found is None else _decibels(found.sqnr_db)
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


def _decibels(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f}"


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
        parts.append(
            f'<text x="108" y="{y + 15}" text-anchor="end">{escape(report.target)}</text>'
            f'<rect x="116" y="{y + 3}" width="{width:.1f}" height="15" fill="var(--bar)"/>'
            f'<text x="{122 + width:.1f}" y="{y + 15}">{_decibels(value)}</text>'
        )
    x = 116 + 620 * 20 / TOP
    parts.append(
        f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height - 20}" stroke="var(--bad)"/>'
        f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">20 dB</text>'
    )
    return (
        f'<div class="wide"><svg viewBox="0 0 800 {height}" width="800" height="{height}" '
        f'role="img" aria-label="SQNR per target">{"".join(parts)}</svg></div>'
    )


def _details(report: Report) -> str:
    assumed = "".join(
        f"<li><code>{escape(k)}</code> {escape(v)}</li>" for k, v in report.assumed.items()
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    steps = "".join(_step(row) for row in report.rows)
    blocks = [
        f"<p>{escape(report.evidence)}{'; ' + escape(report.vendor) if report.vendor else ''}</p>",
        f"<ul>{notes}</ul>" if notes else "",
        '<div class="wide"><table><thead><tr><th>step</th><th class="n">SQNR dB</th>'
        f"<th>held to</th><th>verdict</th></tr></thead><tbody>{steps}</tbody></table></div>",
        _roofline(report.estimate),
        f"<p>Not public, so assumed or inferred:</p><ul>{assumed}</ul>" if assumed else "",
    ]
    opened = "" if report.passed else " open"
    return (
        f"<details{opened}><summary>{escape(report.target)} ({escape(report.precision)})"
        f"</summary>{''.join(blocks)}</details>"
    )


def _step(row: Row) -> str:
    found = worst(row)
    sqnr = "-" if found is None else _decibels(found.sqnr_db)
    held = row.bar.text if row.bar else "-"
    mark = {"ok": "ok", "failed": "bad"}.get(row.state, "dim")
    why = "; ".join(filter(None, [*row.faults, row.note]))
    return (
        f'<tr><td>{escape(row.stage)}</td><td class="n">{sqnr}</td><td>{escape(held)}</td>'
        f'<td class="t"><span class="{mark}">{escape(row.state)}</span> {escape(why)}</td></tr>'
    )


def _roofline(found: Estimate | None, most: int = 24) -> str:
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
        parts.append(
            f'<text x="232" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="240" y="{y + 2}" width="{width:.1f}" height="13" fill="var(--{colour})"/>'
            f'<text x="{246 + width:.1f}" y="{y + 13}">{spelled(seconds)} {layer.limit}</text>'
        )
    height = 18 * len(shown) + 4
    missing = f" Not public: {', '.join(found.missing)}." if found.missing else ""
    return (
        f"<p>At least {spelled(total)} per call: a bound, not a prediction; the {len(shown)} "
        f"longest of {len(found.layers)} layers.{escape(missing)}</p>"
        f'<div class="wide"><svg viewBox="0 0 800 {height}" width="800" height="{height}" '
        f'role="img" aria-label="roofline bound per layer">{"".join(parts)}</svg></div>'
    )
