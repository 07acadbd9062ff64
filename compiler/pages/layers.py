"""Layers drawn: what is lost along the graph, and how the worst tensors fill their codes."""

import math
from collections.abc import Callable, Sequence
from html import escape

from npuc.layers.codings import Coded
from npuc.layers.culprits import Culprit, Histogram
from npuc.layers.found import Layer, Layers
from npuc.layers.text import advice, decibels, finding, interval, number, share, tightest
from npuc.pages import drawing

_LEFT, _WIDTH, _HEIGHT = 44, 744, 260
"""Where the plot of the graph begins, and its size within the drawing."""

_CEILING = 80.0
"""Decibels at which the plot ends: what lies above is as good as exact."""

_CHART, _BARS = 320, 90
"""Width and height of one histogram."""


def section(found: Layers | None) -> str:
    """Return the whole part of a page on layers."""
    if found is None:
        return "<p>Layers were not measured.</p>"
    if not found.quantized:
        return "<p>Nothing was quantized or rounded: no layer loses anything.</p>"
    tried = ""
    if (option := advice(found)) is not None:
        tried = f"<p>Try <code>{escape(option[0])}</code>, {escape(option[1])}.</p>"
    blocks = [
        f"<p>{escape(finding(found))}.</p>{tried}",
        _plot(found),
        _worst(found),
        _charts(found),
        f"<details><summary>All {len(found.quantized)} layers that lose something of their own"
        f"</summary>{_table(found)}</details>",
    ]
    return "".join(blocks)


def _plot(found: Layers) -> str:
    """Draw every tensor in graph order: lines for what has accumulated, dots for what is born."""
    layers = found.layers
    ranks = {culprit.tensor: at for at, culprit in enumerate(found.worst, 1)}
    values = [v for x in layers for v in (x.accumulated, x.born) if v is not None]
    top = min(max([20.0, *(v + 5 for v in values if math.isfinite(v))]), _CEILING)
    height: Callable[[float], float] = lambda v: 10 + _HEIGHT * (1 - _within(v, top) / top)  # noqa: E731
    across = [_LEFT + _WIDTH * (at + 0.5) / len(layers) for at in range(len(layers))]
    parts = []
    for mark in range(0, int(top) + 1, 10):
        parts.append(drawing.line(_LEFT, height(mark), _LEFT + _WIDTH, height(mark), "line"))
        parts.append(drawing.text(_LEFT - 6, height(mark) + 4, str(mark), "end"))
    whole = [(x, height(v.accumulated)) for x, v in zip(across, layers, strict=True)]
    parts.append(drawing.path(whole, "bar", ' stroke-width="2"'))
    device = [
        (x, height(v.device)) for x, v in zip(across, layers, strict=True) if v.device is not None
    ]
    if device:
        parts.append(drawing.path(device, "good", ' stroke-dasharray="4 3"'))
    for x, layer in zip(across, layers, strict=True):
        said = _said(layer)
        parts.append(drawing.dot(x, height(layer.accumulated), 2.5, "bar", said))
        if layer.born is None or layer.born == math.inf:
            continue
        rank = ranks.get(layer.tensor)
        y = height(layer.born)
        parts.append(drawing.dot(x, y, 4.5 if rank else 3.5, "bad" if rank else "memory", said))
        if rank:
            parts.append(drawing.text(x, y + 16, str(rank), "middle"))
    keys = [("bar", "accumulated: all before it is quantized too")]
    keys += [("good", "accumulated, with the device's arithmetic (dashed)")] if device else []
    keys += [("memory", "born here: this layer alone"), ("bad", "where most is born, numbered")]
    legend = "".join(
        f'<span class="key" style="--of:var(--{colour})">{escape(words)}</span>'
        for colour, words in keys
    )
    about = (
        f"<p>SQNR in dB of each tensor against the float program, in the order of the graph, over "
        f"{found.calls} calls: higher is better. Point at a dot for its name.</p>"
    )
    picture = drawing.picture(800, _HEIGHT + 30, "SQNR along the graph", parts)
    return f'{about}<p class="dim">{legend}</p>{picture}'


def _within(value: float, top: float) -> float:
    """Bring an SQNR onto the plot: NaN, which stands for a fault, lies at its floor."""
    return 0.0 if math.isnan(value) else min(max(value, 0.0), top)


def _said(layer: Layer) -> str:
    device = f", on device {decibels(layer.device)}" if layer.device is not None else ""
    born = f", born here {decibels(layer.born)}" if layer.born is not None else ""
    place = f"\n{layer.place}" if layer.place else ""
    whole = f"accumulated {decibels(layer.accumulated)}"
    return f"{layer.title}\n{whole}{device}{born}{place}"


def _worst(found: Layers) -> str:
    rows = []
    for at, culprit in enumerate(found.worst, 1):
        layer = found.find(culprit.tensor)
        numbers = (layer.born, culprit.weights, culprit.inputs, culprit.restored)
        rows.append(
            (
                str(at), f"<b>{escape(layer.node or layer.tensor)}</b>", escape(layer.op),
                *(number(value) for value in numbers), escape(layer.place),
            )
        )  # fmt: skip
    head = (
        "", "layer", "op", "born here", "weights alone", "inputs alone",
        "output, this in float", "source",
    )  # fmt: skip
    now = f"<p>The output has {escape(decibels(found.output))} now.</p>"
    return f"<h3>Where most is born</h3>{now}{drawing.table(head, rows, ('', '', '', *'nnnn', ''))}"


def _charts(found: Layers) -> str:
    """Draw each coded tensor that the worst layers read, once."""
    cards: dict[str, str] = {}
    for at, culprit in enumerate(found.worst, 1):
        for chart in culprit.histograms:
            if chart.tensor not in cards and chart.tensor in found.coded:
                cards[chart.tensor] = _card(chart, found.coded[chart.tensor], at, culprit, found)
    if not cards:
        return ""
    about = (
        "<p>Counts are on a logarithmic scale; red lines are the ends of the codes, and what lies "
        "beyond them is clipped.</p>"
    )
    return (
        f'<h3>What the worst layers read</h3>{about}<div class="cards">{"".join(cards.values())}'
        "</div>"
    )


def _card(chart: Histogram, coded: Coded, rank: int, culprit: Culprit, found: Layers) -> str:
    layer = found.find(culprit.tensor)
    wide = ""
    if chart.wide:
        wide = (
            f"; {chart.wide} of {chart.channels} channels are wide, up to {chart.ratio:.0f} times "
            "the median"
        )
    step = f"one code is worth {coded.step:.3g}" if coded.step else "codes are floats"
    words = (
        f"codes reach {interval(coded.low, coded.high)}, seen "
        f"{interval(coded.seen_low, coded.seen_high)}, clipped {share(coded.clipped)}; {step}; "
        f"{coded.used:.0%} of the span is used{wide}"
    )
    return (
        f"<div><b>{escape(chart.tensor)}</b> <span class=dim>read by {rank}. "
        f"{escape(layer.node or layer.tensor)}</span>{_histogram(chart, coded)}"
        f"<p>{escape(words)}</p></div>"
    )


def _histogram(chart: Histogram, coded: Coded) -> str:
    span = chart.high - chart.low
    place: Callable[[float], float] = lambda v: 2 + (_CHART - 4) * (v - chart.low) / span  # noqa: E731
    most = math.log1p(max(chart.counts, default=0)) or 1.0
    width = (_CHART - 4) / len(chart.counts)
    parts = []
    for at, count in enumerate(chart.counts):
        tall = _BARS * math.log1p(count) / most
        low = chart.low + span * at / len(chart.counts)
        said = f"{interval(low, low + span / len(chart.counts))}: {count}"
        parts.append(drawing.rect(2 + at * width, _BARS - tall + 4, width - 0.5, tall, "bar", said))
    for end in (coded.low, coded.high):
        parts.append(drawing.line(place(end), 0, place(end), _BARS + 8, "bad", ' stroke-width="2"'))
    parts.append(_step(coded, span))
    parts.append(drawing.text(0, _BARS + 30, f"{chart.low:.3g}"))
    parts.append(drawing.text(_CHART, _BARS + 30, f"{chart.high:.3g}", "end"))
    return drawing.picture(_CHART, _BARS + 34, f"values of {chart.tensor}", parts, small=True)


def _step(coded: Coded, span: float) -> str:
    """Draw what one code is worth, to scale, under the middle."""
    wide = (_CHART - 4) * coded.step / span
    if not coded.step:
        return ""
    shown = drawing.rect((_CHART - wide) / 2, _BARS + 10, wide, 6, "memory", "one code")
    return shown + drawing.text(_CHART / 2, _BARS + 30, "one code", "middle")


def _table(found: Layers) -> str:
    rows = [_row(layer, found) for layer in found.layers if layer.born is not None or layer.output]
    head = (
        "layer", "op", "accumulated", "born here", "on device", "reads", "codes reach", "seen",
        "clipped", "source",
    )  # fmt: skip
    return drawing.table(head, rows, ("", "", "n", "n", "n", "", "n", "n", "n", ""))


def _row(layer: Layer, found: Layers) -> Sequence[str]:
    coded = tightest(layer, found)
    numbers = (layer.accumulated, layer.born, layer.device)
    ends = ("", "", "")
    if coded is not None:
        reach, seen = interval(coded.low, coded.high), interval(coded.seen_low, coded.seen_high)
        ends = (reach, seen, share(coded.clipped))
    return (
        escape(layer.node or layer.tensor), escape(layer.op), *map(number, numbers),
        escape(", ".join(layer.reads)), *map(escape, ends), escape(layer.place),
    )  # fmt: skip
