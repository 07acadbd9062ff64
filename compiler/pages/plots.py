"""Drawings of layers: what is lost along the graph, and how tensors fill their codes."""

import math
from collections.abc import Callable
from html import escape

from npuc.layers.found import Coded, Histogram, Layer, Layers
from npuc.layers.text import decibels, interval
from npuc.pages import drawing

_LEFT, _HEIGHT = 44, 260
"""Where the plot of the graph begins, and its height."""

_STEP, _LEAST, _MOST = 12, 740, 1110
"""Pixels for each tensor along the graph, and the least and greatest width of the plot."""

_CEILING = 80.0
"""Decibels at which the plot ends: what lies above is as good as exact."""

_CHART, _BARS = 320, 90
"""Width and height of one histogram."""


def along(found: Layers) -> str:
    """Draw every tensor in graph order: lines for what has accumulated, dots for what is born."""
    layers = found.layers
    ranks = {culprit.tensor: at for at, culprit in enumerate(found.worst, 1)}
    values = [v for x in layers for v in (x.accumulated, x.born) if v is not None]
    top = min(max([20.0, *(v + 5 for v in values if math.isfinite(v))]), _CEILING)
    wide = min(max(_STEP * len(layers), _LEAST), _MOST)
    height: Callable[[float], float] = lambda v: 10 + _HEIGHT * (1 - _within(v, top) / top)  # noqa: E731
    across = [_LEFT + wide * (at + 0.5) / len(layers) for at in range(len(layers))]
    parts = []
    for mark in range(0, int(top) + 1, 10):
        parts.append(drawing.line(_LEFT, height(mark), _LEFT + wide, height(mark), "line"))
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
    picture = drawing.picture(
        _LEFT + wide + 10, _HEIGHT + 30, "SQNR of every tensor along the graph", parts, "probe"
    )
    return f"{_about(found, bool(device))}{picture}"


def _about(found: Layers, device: bool) -> str:
    keys = [("bar", "accumulated: all before it is quantized too")]
    keys += [("good", "accumulated, with the device's arithmetic (dashed)")] if device else []
    keys += [("memory", "born here: this layer alone"), ("bad", "where most is born, numbered")]
    legend = "".join(
        f'<span class="key" style="--of:var(--{colour})">{escape(words)}</span>'
        for colour, words in keys
    )
    about = (
        f"SQNR in dB of each tensor against the float program, in the order of the graph, over "
        f"{found.calls} calls: higher is better. A dot says its name when it is pointed at."
    )
    return f'<p>{about}</p><p class="dim">{legend}</p>'


def _within(value: float, top: float) -> float:
    """Bring an SQNR onto the plot: NaN, which stands for a fault, lies at its floor."""
    return 0.0 if math.isnan(value) else min(max(value, 0.0), top)


def _said(layer: Layer) -> str:
    device = f", on device {decibels(layer.device)}" if layer.device is not None else ""
    born = f", born here {decibels(layer.born)}" if layer.born is not None else ""
    place = f"\n{layer.place}" if layer.place else ""
    whole = f"accumulated {decibels(layer.accumulated)}"
    return f"{layer.title}\n{whole}{device}{born}{place}"


def histogram(chart: Histogram, coded: Coded) -> str:
    """Draw a tensor's values, the ends of its codes, and what one code is worth."""
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
    return drawing.picture(_CHART, _BARS + 34, f"values of {chart.tensor}", parts, "small")


def _step(coded: Coded, span: float) -> str:
    """Draw what one code is worth, to scale, under the middle."""
    wide = (_CHART - 4) * coded.step / span
    if not coded.step:
        return ""
    shown = drawing.rect((_CHART - wide) / 2, _BARS + 10, wide, 6, "memory", "one code")
    return shown + drawing.text(_CHART / 2, _BARS + 30, "one code", "middle")
