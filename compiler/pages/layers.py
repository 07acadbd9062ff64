"""Layers on a page: the finding, the plots, the worst of them, and what those read."""

from collections.abc import Sequence
from html import escape

from npuc.layers.found import Coded, Culprit, Histogram, Layer, Layers
from npuc.layers.text import advice, decibels, finding, interval, number, share, tightest
from npuc.pages import drawing, plots


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
        plots.along(found),
        _worst(found),
        _charts(found),
        drawing.part(
            f"All {len(found.quantized)} layers that lose something of their own",
            _table(found),
            opened=False,
            level=3,
        ),
    ]
    return "".join(blocks)


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
    kinds = ("", "w", "", "n", "n", "n", "n", "t")
    return f"<h3>Where most is born</h3>{now}{drawing.table(head, rows, kinds)}"


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
        f"{escape(layer.node or layer.tensor)}</span>{plots.histogram(chart, coded)}"
        f"<p>{escape(words)}</p></div>"
    )


def _table(found: Layers) -> str:
    rows = [_row(layer, found) for layer in found.layers if layer.born is not None or layer.output]
    head = (
        "layer", "op", "accumulated", "born here", "on device", "reads", "codes reach", "seen",
        "clipped", "source",
    )  # fmt: skip
    return drawing.table(head, rows, ("w", "", "n", "n", "n", "w", "n", "n", "n", "t"))


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
