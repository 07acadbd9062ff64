"""What the HTML pages share: their frame, and how numbers and drawings are spelled."""

import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape

from npuc.pages.style import SCRIPT, STYLE
from npuc.text import harmless

TOP = 60.0
"""Decibels at which bars end: beyond it nothing is lost that anyone could see."""


def document(title: str, body: str) -> str:
    """Return a whole page that asks for nothing else; `title` is text, `body` is HTML.

    Its policy lets nothing be fetched and no script run but its own, whatever a name may hold.
    """
    seal = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{seal}'"
    return harmless(f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
{body}
<script>{SCRIPT}</script></body></html>
""")


def part(title: str, body: str, opened: bool = True, level: int = 2) -> str:
    """Return a part of a page that folds; "" without a body. `title` is text, `body` is HTML."""
    if not body:
        return ""
    return (
        f"<details{' open' * opened}><summary><h{level}>{escape(title)}</h{level}></summary>"
        f"{body}</details>"
    )


def tiles(items: Iterable[tuple[str, str]]) -> str:
    """Return numbers to be seen first, each with what it is below it; both are text."""
    shown = "".join(f"<div><b>{escape(n)}</b><span>{escape(w)}</span></div>" for n, w in items)
    return f'<div class="tiles">{shown}</div>' if shown else ""


def listed(items: Iterable[str]) -> str:
    """Return a list of texts, or "" where there are none."""
    shown = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>{shown}</ul>" if shown else ""


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str], stack: bool = False
) -> str:
    """Return a table that scrolls sideways; heads are text, cells HTML.

    `kinds` has a CSS class for each column: "n" for numbers, "t" for text that wraps, "w" for
    names that may break, or "". On a phone one to `stack` sets the cells of a row below one
    another, each with its head.
    """
    heads = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>'
        for name, kind in zip(head, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}" data-head="{escape(name)}">{cell}</td>'
            for cell, kind, name in zip(row, kinds, head, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    shown = f"<thead><tr>{heads}</tr></thead>" if any(head) else ""
    kind = ' class="stack"' if stack else ""
    return f'<div class="wide"><table{kind}>{shown}<tbody>{body}</tbody></table></div>'


def bars(
    rows: Iterable[tuple[str, float, str, str]], mark: float | None = None, marked: str = ""
) -> str:
    """Return horizontal bars: label, share of the full length, words beside it, and colour.

    `mark` is a share at which a line crosses them, and `marked` says what it is.
    """
    cells, longest = [], 0
    for label, share, words, colour in rows:
        longest = max(longest, len(words))
        ends = f"--share:{min(max(share, 0.0), 1.0):.4f};--of:var(--{colour})"
        cells.append(
            f'<span>{escape(label)}</span><div style="{ends}"><i></i>{escape(words)}</div>'
        )
    room = f"--full:100% - {0.8 + 0.55 * longest:.1f}rem"
    at = f' style="{room}{"" if mark is None else f";--mark:{mark:.4f}"}"'
    kind = "bars" if mark is None else "bars marked"
    key = f'<p class="dim"><span class="key" style="--of:var(--bad)">{escape(marked)}</span></p>'
    return f'{key if marked else ""}<div class="{kind}"{at}>{"".join(cells)}</div>'


def picture(width: int, height: int, label: str, parts: Iterable[str], kind: str = "") -> str:
    """Return an SVG drawing.

    A "small" one shrinks to its place and a "tiny" one keeps its size; others scroll on a phone.
    The dots of one to "probe" can be chosen, and say below it what they are.
    """
    focus = ' tabindex="0"' if kind == "probe" else ""
    if kind not in ("small", "tiny"):
        focus += f' style="min-width:{min(width, 840)}px"'
    drawing = (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(label)}"{focus}>{"".join(parts)}</svg>'
    )
    said = '<output aria-live="polite"></output>' if kind == "probe" else ""
    return drawing if kind in ("small", "tiny") else f'<div class="wide">{drawing}</div>{said}'


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
