"""Layers as plain text: a table in graph order, the worst, and what is behind the largest loss."""

import math
import shlex
import textwrap
from collections.abc import Sequence

from npuc.layers.found import FLOATS, Coded, Culprit, Histogram, Layer, Layers

CLIPPED = 1e-3
"""The share of values beyond the codes from which clipping is named as a reason."""

UNUSED = 0.25
"""The share of the codes' span below which what is not used is named: two bits are lost."""

GAIN = 1.0
"""Decibels that a layer left in float must bring to be called the cause: less is noise."""

APART = 3.0
"""Decibels by which weights must be worse than inputs, or the reverse, to be the larger part."""

_WIDTH = 34
_NUMBERS = frozenset({"accumulated", "born here", "on device", "clipped"})


def table(found: Layers | None) -> str:
    """Return the table of quantized layers in graph order, the worst of them, and the finding."""
    if found is None:
        return "layers: not measured: there is no float program to compare with"
    rows = [layer for layer in found.layers if layer.born is not None or layer.output]
    device = any(layer.device is not None for layer in rows)
    other = len(found.layers) - len(rows)
    others = f"{other} other adds" if other == 1 else f"{other} others add"
    lines = [
        f"layers: SQNR in dB of each against the float program, over {found.calls} calls",
        f"  accumulated: all before it is quantized; born here: it alone is; {others} nothing",
        "",
        *_columns([_head(device), *(_cells(layer, found, device) for layer in rows)]),
        *_worst(found),
        "",
        *textwrap.wrap(finding(found), 100, subsequent_indent="  ", break_on_hyphens=False),
        *([f"→ try {', '.join(tried)}"] if (tried := advice(found)) else []),
    ]
    return "\n".join(lines)


def finding(found: Layers) -> str:
    """Say in words which layer costs most, why as far as it was measured, and what to try."""
    culprit = largest(found)
    if culprit is None:
        return "nothing is lost in any layer"
    layer = found.find(culprit.tensor)
    place = f" ({layer.place})" if layer.place else ""
    most = "costs most" if _helps(culprit, found) else "is where most is born"
    said = f"{layer.title}{place} {most}: {decibels(layer.born)} on its own"
    reasons = [*_gain(culprit, found), *_reasons(layer, culprit, found)]
    return "; ".join([said, *reasons])


def largest(found: Layers) -> Culprit | None:
    """Return the layer that gives most back when it is left in float, else where most is born."""
    helping = [culprit for culprit in found.worst if _helps(culprit, found)]
    if helping:
        return max(helping, key=lambda culprit: culprit.restored or 0.0)
    return next(iter(found.worst), None)


def _helps(culprit: Culprit, found: Layers) -> bool:
    """Whether leaving a layer in float brings more than noise."""
    if culprit.restored is None or math.isnan(culprit.restored):
        return False
    return math.isnan(found.output) or culprit.restored >= found.output + GAIN


def advice(found: Layers) -> tuple[str, str] | None:
    """Return the option to try next and why, or None where there is nothing to try."""
    culprit = largest(found)
    if culprit is None or not found.observer:
        return None
    layer = found.find(culprit.tensor)
    left = layer.node and _helps(culprit, found)
    if found.observer == FLOATS and not left:
        return None
    clipped = any(found.coded[r].clipped > CLIPPED for r in layer.reads if r in found.coded)
    if clipped and found.observer != "min-max":
        return "--observer min-max", "which cuts nothing off that calibration saw"
    if clipped:
        return "--calibration FILE", "with data like these samples: they go beyond what it saw"
    if left:
        return f"--skip {shlex.quote(layer.node)}", "which leaves it in float"
    return "--precision auto", "which finds the layers that must stay in float"


def decibels(value: float | None) -> str:
    """Spell an SQNR: ``12.1 dB``, ``exact``, ``NaN``, ``-``."""
    text = number(value)
    return text if text in ("-", "exact", "NaN") else f"{text} dB"


def number(value: float | None) -> str:
    """Spell an SQNR without its unit."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    return "exact" if value == math.inf else f"{value:.1f}"


def tightest(layer: Layer, found: Layers) -> Coded | None:
    """Return the coded input that fits its codes worst: most is clipped, else least is used."""
    reads = [found.coded[name] for name in layer.reads if name in found.coded]
    return max(reads, key=lambda c: (c.clipped, -c.used), default=None)


def interval(low: float, high: float) -> str:
    """Spell a range: ``[-1.25, 3]``."""
    return f"[{low:.3g}, {high:.3g}]"


def share(part: float) -> str:
    """Spell a share of values: ``0``, ``<0.01%``, ``3.2%``."""
    if part == 0:
        return "0"
    return "<0.01%" if part < 1e-4 else f"{part:.2%}" if part < 0.01 else f"{part:.1%}"


def _gain(culprit: Culprit, found: Layers) -> list[str]:
    if culprit.restored is None:
        return []
    became, was = decibels(culprit.restored), decibels(found.output)
    if _helps(culprit, found):
        return [f"left in float, it brings the output from {was} to {became}"]
    return [
        "but no layer alone is to blame: left in float, it brings the output from "
        f"{was} to {became}"
    ]


def _reasons(layer: Layer, culprit: Culprit, found: Layers) -> list[str]:
    said = []
    if layer.born is not None and math.isnan(layer.born):
        said.append("it makes NaN or Inf where the float program does not")
    said += _parts(culprit)
    for name in layer.reads:
        if (coded := found.coded.get(name)) is None:
            continue
        seen = interval(coded.seen_low, coded.seen_high)
        if coded.clipped > CLIPPED:
            codes = interval(coded.low, coded.high)
            said.append(f"{share(coded.clipped)} of {name!r} lies beyond its codes {codes}")
        if coded.used < UNUSED:
            said.append(f"{name!r} uses {coded.used:.0%} of its codes, {seen}")
    said += [text for chart in culprit.histograms if (text := _wide(chart))]
    return said


def _parts(culprit: Culprit) -> list[str]:
    weights, inputs = culprit.weights, culprit.inputs
    if weights is None or inputs is None or abs(weights - inputs) < APART:
        return []
    worse, of = ("weights", weights) if weights < inputs else ("inputs", inputs)
    return [f"its {worse} are the larger part ({decibels(of)} alone)"]


def _wide(chart: Histogram) -> str:
    if not chart.wide:
        return ""
    some = f"{chart.wide} of {chart.channels} channels of {chart.tensor!r}"
    reach = "reaches" if chart.wide == 1 else "reach up to"
    return f"{some} {reach} {chart.ratio:.0f} times as far as the median channel"


def _head(device: bool) -> tuple[str, ...]:
    shown = ("on device",) if device else ()
    ends = ("reads", "codes reach", "seen", "clipped", "source")
    return ("layer", "op", "accumulated", "born here", *shown, *ends)


def _cells(layer: Layer, found: Layers, device: bool) -> tuple[str, ...]:
    coded = tightest(layer, found)
    shown = (number(layer.device),) if device else ()
    more = len(layer.reads) - 1
    ends = ("", "", "", "")
    if coded is not None:
        reads = short(coded.tensor, 24) + (f" +{more}" if more else "")
        reach, seen = interval(coded.low, coded.high), interval(coded.seen_low, coded.seen_high)
        ends = (reads, reach, seen, share(coded.clipped))
    name = short(layer.node or layer.tensor, _WIDTH)
    numbers = (number(layer.accumulated), number(layer.born))
    return (name, layer.op, *numbers, *shown, *ends, layer.place)


def short(name: str, width: int) -> str:
    """Cut a name from the left: its end tells one layer from another."""
    return name if len(name) <= width else "…" + name[1 - width :]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [name in _NUMBERS for name in rows[0]]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _worst(found: Layers) -> list[str]:
    if not found.worst:
        return []
    lines = ["", f"most is born in (the output has {decibels(found.output)}):"]
    for at, culprit in enumerate(found.worst, 1):
        layer = found.find(culprit.tensor)
        parts = [f"{at}. {layer.title} {decibels(layer.born)}"]
        if culprit.weights is not None:
            parts.append(f"weights alone {decibels(culprit.weights)}")
        if culprit.inputs is not None:
            parts.append(f"inputs alone {decibels(culprit.inputs)}")
        if culprit.restored is not None:
            parts.append(f"left in float, the output has {decibels(culprit.restored)}")
        lines.append("  " + "; ".join(parts))
    return lines
