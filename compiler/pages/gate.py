"""The page of a gate: every model on every target in one table, and each of them in full below."""

import math
from collections.abc import Sequence
from html import escape

from npuc.estimate import Estimate, spelled
from npuc.outlets.entry import Entry
from npuc.pages import drawing
from npuc.pages.body import CLASSES, GRADES, WORDS, body
from npuc.pages.drawing import TOP
from npuc.partition import HOST
from npuc.report import Report

_ORDER = ("failed", "error", "undecided", "waived", "passed")
_COLUMNS = (
    ("model", ""), ("target", ""), ("verdict", ""), ("SQNR dB", "n"), ("same choice", "n"),
    ("max abs", "n"), ("precision", ""), ("evidence", ""), ("held to", "t"),
    ("on the host", ""), ("time ≥", "n"),
)  # fmt: skip

_BARS = 60
"""Pairs that the drawing of SQNRs holds, the worst first."""


def page(entries: Sequence[Entry]) -> str:
    """Return the page; it asks for nothing else, works offline, and mostly without its script."""
    ordered = sorted(entries, key=lambda e: (_ORDER.index(e.state), e.model, e.target))
    models = dict.fromkeys(entry.model for entry in entries)
    targets = dict.fromkeys(entry.target for entry in entries)
    title = f"{_count(models, 'model')} on {_count(targets, 'target')}"
    if len(models) == 1:
        title = f"{next(iter(models))} on {_count(targets, 'target')}"
    blocks = [
        f"<h1>{escape(title)}</h1>",
        _verdict(entries),
        _table(ordered),
        _legend(entries),
        drawing.part("SQNR of the artifacts against the original", _bars(ordered), level=2),
        '<h2 class="dim">Per model and target</h2>' if entries else "",
        *(_pair(at, entry) for at, entry in enumerate(ordered)),
    ]
    return drawing.document(f"npuc: {title}", "".join(blocks))


def _count(found: Sequence[str] | dict[str, None], what: str) -> str:
    return f"{len(found)} {what}{'s' * (len(found) != 1)}"


def _verdict(entries: Sequence[Entry]) -> str:
    states = [entry.state for entry in entries]
    counts = ", ".join(f"{states.count(s)} {s}" for s in _ORDER if s in states)
    kind = next((CLASSES[s] for s in _ORDER if s in states), "bad")
    passed = bool(states) and set(states) <= {"passed", "waived"}
    word = "passed" if passed else "undecided" if kind == "warn" else "FAILED"
    return f'<div class="verdict {kind}"><b>{word}</b>{counts or "nothing was compared"}</div>'


def _table(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    states = [entry.state for entry in entries]
    chips = "".join(
        f'<button type="button" data-only="{s}" aria-pressed="false">{s} {states.count(s)}</button>'
        for s in _ORDER
        if s in states
    )
    tools = (
        '<div class="tools" hidden><button type="button" data-only="" aria-pressed="true">all '
        f'{len(entries)}</button>{chips}<input type="search" placeholder="model or target" '
        'aria-label="Show only these models or targets">'
        '<button type="button" data-open="yes">open all</button>'
        '<button type="button" data-open="no">close all</button></div>'
    )
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in _COLUMNS)
    rows = "".join(_row(at, entry) for at, entry in enumerate(entries))
    return (
        f'{tools}<div class="wide"><table class="sort pinned"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(at: int, entry: Entry) -> str:
    """Return one line; numbers carry what they are sorted by."""
    report, found = entry.report, entry.worst
    cells = [
        (f'<a href="#pair-{at}">{escape(entry.model)}</a>', entry.model),
        (escape(entry.target), entry.target),
        (f'<span class="{CLASSES[entry.state]}">{WORDS[entry.state]}</span>',
         str(_ORDER.index(entry.state))),
    ]  # fmt: skip
    if report is None or found is None:
        why = escape((*entry.waivers, *entry.why, "")[0])
        cells += [("", "")] * 5 + [(why, why)] + [("", "")] * 2
    else:
        same = found.agreement
        seconds = _seconds(report.estimate)
        cached = ", cached" if entry.cached else ""
        cells += [
            (drawing.decibels(found.sqnr_db), _key(found.sqnr_db)),
            ("-" if same is None else f"{same:.1%}", "" if same is None else str(same)),
            (f"{found.max_abs:.2e}", _key(found.max_abs)),
            (escape(report.precision), report.precision),
            (escape(report.evidence) + cached, report.evidence),
            (escape(entry.bars), ""),
            (escape(_host(report)), str(len(report.crossings))),
            ("not public" if seconds is None else spelled(seconds),
             "Infinity" if seconds is None else str(seconds)),
        ]  # fmt: skip
    shown = "".join(
        f'<td class="{kind}" data-key="{escape(key)}">{cell}</td>'
        for (cell, key), (_, kind) in zip(cells, _COLUMNS, strict=True)
    )
    return f"<tr{_state(entry)}>{shown}</tr>"


def _state(entry: Entry) -> str:
    return f' data-state="{entry.state}" data-name="{escape(entry.name)}"'


def _key(value: float) -> str:
    """Spell a number for JavaScript; NaN, a fault, comes before the least."""
    if math.isfinite(value):
        return str(value)
    return "Infinity" if value == math.inf else "-Infinity"


def _host(report: Report) -> str:
    kinds = [op for op, place in report.placement.items() if HOST in place.split("+")]
    if not kinds:
        return "nothing"
    return f"{', '.join(kinds)} (tensors that cross: {len(report.crossings)})"


def _seconds(found: Estimate | None) -> float | None:
    return None if found is None else found.seconds


def _legend(entries: Sequence[Entry]) -> str:
    reports = [entry.report for entry in entries if entry.report is not None]
    used = [g for g in GRADES if any(r.evidence == g for r in reports)]
    lines = [f"<b>{g}</b>: {escape(GRADES[g])}" for g in used]
    if any(_seconds(r.estimate) is not None for r in reports):
        lines.append("<b>time</b>: a lower bound from public peaks, no prediction")
    compared = dict.fromkeys(r.reference for r in reports)
    lines += [f"Reference: {escape(one)}" for one in compared] if len(compared) == 1 else []
    return "".join(f'<p class="dim">{line}.</p>' for line in lines)


def _bars(entries: Sequence[Entry]) -> str:
    """Draw one horizontal bar per pair, and a line where all are held to the same SQNR.

    Bars end at `TOP`: beyond it nothing is lost that anyone could see, and float targets would
    squeeze the others.
    """
    values = [(e, e.worst.sqnr_db) for e in entries if e.worst is not None]
    known = sorted((v for v in values if not math.isnan(v[1])), key=lambda v: v[1])[:_BARS]
    if not known:
        return "<p>Nothing was compared.</p>"
    one = len({entry.model for entry, _ in known}) == 1
    colours = {"ok": "bar", "bad": "bad", "warn": "memory"}
    bars = [
        (
            entry.target if one else entry.name, value / TOP, drawing.decibels(value),
            colours[CLASSES[entry.state]],
        )
        for entry, value in known
    ]  # fmt: skip
    held = {_asked(entry.report) for entry, _ in known if entry.report is not None} - {None}
    bar = held.pop() if len(held) == 1 else None
    if bar is None or not 0 < bar < TOP:
        return drawing.bars(bars)
    return drawing.bars(bars, bar / TOP, f"{bar:g} dB, what they are held to")


def _asked(report: Report) -> float | None:
    """Return the SQNR that the last step is held to; None for one held to noise."""
    bars = [row.bar.sqnr_db for row in report.rows if row.bar is not None]
    return bars[-1] if bars else None


def _pair(at: int, entry: Entry) -> str:
    opened = " open" if entry.code else ""
    report = entry.report
    precision = f" ({report.precision})" if report is not None else ""
    title = escape(f"{entry.model} → {entry.target}{precision}")
    word = f'<span class="{CLASSES[entry.state]}">{WORDS[entry.state]}</span>'
    return (
        f'<details class="pair" id="pair-{at}"{_state(entry)}{opened}><summary><h2>{title}</h2> '
        f"{word}</summary>{body(entry, 3)}</details>"
    )
