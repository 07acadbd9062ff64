"""What the HTML pages share: their style, their frame, and how numbers and drawings are spelled."""

import math
from collections.abc import Iterable, Sequence
from html import escape

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
svg.small{min-width:0;width:100%}
svg text{fill:currentColor;font:12px system-ui}
code{background:var(--soft);padding:0 .25em;border-radius:3px}li{margin:.15rem 0}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(22rem,100%),1fr))}
.cards>div{min-width:0;overflow-wrap:anywhere}.key{display:inline-block;margin-right:1em}.key::before{content:"";display:inline-block;width:.8em;
height:.8em;border-radius:50%;background:var(--of);margin-right:.3em}
"""

TOP = 60.0
"""Decibels at which bars end: beyond it nothing is lost that anyone could see."""


def document(title: str, body: str) -> str:
    """Return a whole page that asks for nothing else; `title` is text, `body` is HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{body}
</body></html>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str]) -> str:
    """Return a table that scrolls sideways; heads are text, cells HTML.

    `kinds` has a CSS class for each column: "n" for numbers, "t" for text that wraps, or "".
    """
    heads = "".join(
        f'<th class="{kind}">{escape(name)}</th>' if kind == "n" else f"<th>{escape(name)}</th>"
        for name, kind in zip(head, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{k}">{cell}</td>' for cell, k in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    whole = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{whole}</div>'


def picture(width: int, height: int, label: str, parts: Iterable[str], small: bool = False) -> str:
    """Return an SVG drawing; a small one shrinks to its place, others scroll on a phone."""
    kind = ' class="small"' if small else ""
    drawing = (
        f'<svg{kind} viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
    return drawing if small else f'<div class="wide">{drawing}</div>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    """Return a straight line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="var(--{colour})"{more}/>'


def rect(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    """Return a filled rectangle, with what it says when it is pointed at."""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    said = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect {box} fill="var(--{colour})">{said}</rect>'


def dot(x: float, y: float, radius: float, colour: str, title: str) -> str:
    """Return a filled circle, with what it says when it is pointed at."""
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="var(--{colour})"'
    return f"<circle {place}><title>{escape(title)}</title></circle>"


def path(points: Iterable[tuple[float, float]], colour: str, more: str = "") -> str:
    """Return a line through points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="var(--{colour})"{more}/>'


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def decibels(value: float) -> str:
    """Spell an SQNR without its unit."""
    if math.isnan(value):
        return "NaN"
    return "exact" if value == math.inf else f"{value:.1f}"
