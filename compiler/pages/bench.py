"""The page of a benchmark: latencies drawn beside each other, and the kernels behind them."""

from collections.abc import Iterator
from html import escape

from npuc.bench import text
from npuc.bench.result import Bench, Side, Times, worst_first
from npuc.estimate import spelled
from npuc.pages import drawing

_WIDTH, _ROW, _LEFT, _RIGHT = 760, 34, 120, 90
_KERNELS = 25
"""Kernels that are drawn; the table has them all."""


def page(found: Bench) -> str:
    """Return the page; it asks for nothing else and works offline."""
    blocks = [
        f"<h1>{escape(text.heading(found))}</h1>",
        _tiles(found),
        drawing.part("Latency", _latency(found) + _sides(found)),
        drawing.part("What it reaches", _reached(found)),
        drawing.part("Where the time goes", _bars(found)),
        drawing.part("Every kernel, in the order of time", _kernels(found), False),
        drawing.listed(found.notes),
    ]
    return drawing.document(f"npuc: {found.artifact}", "".join(blocks))


def _tiles(found: Bench) -> str:
    times = found.own.times
    items = [] if times is None else [(spelled(times.percentile(0.5)), "median latency")]
    for side in found.sides[1:]:
        ratio = found.ratio(side)
        if ratio is not None:
            items.append((f"{ratio[0]:.2f}", f"of {side.name}'s time"))
    if found.own.model_bytes is not None:
        items.append((text.row(found, found.own)[8], "memory for the model"))
    shares = found.reached()
    if shares:
        items.append((f"{shares['arithmetic']:.0%}", "of the arithmetic peak"))
    return drawing.tiles(items)


def _latency(found: Bench) -> str:
    """Draw each side's calls: a box from the least to p90, a line on to p99, a mark at p50."""
    timed = [(side, side.times) for side in found.sides if side.times is not None]
    top = max(times.percentile(0.99) for _, times in timed)
    scale = (_WIDTH - _LEFT - _RIGHT) / top
    parts = [
        part for at, (side, times) in enumerate(timed) for part in _box(at, side, times, scale)
    ]
    bottom = _ROW * len(timed) + 8
    parts.append(drawing.line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "line"))
    parts.append(drawing.text(_LEFT, bottom + 18, "0"))
    parts.append(drawing.text(_WIDTH - _RIGHT, bottom + 18, spelled(top), "end"))
    label = "latency: box from the least to p90, mark at the median, line to p99"
    return drawing.picture(_WIDTH, bottom + 26, label, parts) + f'<p class="dim">{label}</p>'


def _box(at: int, side: Side, times: Times, scale: float) -> Iterator[str]:
    least, median, high, most = (
        _LEFT + seconds * scale
        for seconds in (times.least, *(times.percentile(p) for p in (0.5, 0.9, 0.99)))
    )
    middle = _ROW * at + _ROW / 2 + 4
    said = f"{side.name}: median {spelled(times.percentile(0.5))}, {len(times.calls)} calls"
    yield drawing.text(_LEFT - 10, middle + 4, side.name, "end")
    yield drawing.line(least, middle, most, middle, "quiet")
    yield drawing.rect(least, middle - 9, max(high - least, 1), 18, "line" if at else "bar", said)
    yield drawing.line(median, middle - 12, median, middle + 12, "text", ' stroke-width="2"')
    yield drawing.text(most + 8, middle + 4, spelled(times.percentile(0.5)))


def _sides(found: Bench) -> str:
    rows = [[*map(escape, text.row(found, side))] for side in found.sides if side.times]
    table = drawing.table(text.HEAD, rows, ["", *["n"] * (len(text.HEAD) - 1)])
    absent = [f"{side.name} was not run: {side.why}" for side in found.sides if not side.times]
    return table + drawing.listed([*(line.strip() for line in text.sides(found)), *absent])


def _reached(found: Bench) -> str:
    return drawing.listed(f"{name}: {what}" for name, what in text.reached(found))


def _bars(found: Bench) -> str:
    if not found.kernels:
        return ""
    listed = worst_first(found.kernels)[:_KERNELS]
    total = sum(kernel.seconds for kernel in found.kernels)
    longest = listed[0].seconds
    rows = []
    for kernel in listed:
        share = kernel.share_of_peak(found.peaks) if found.peaks else None
        words = f"{spelled(kernel.seconds)}, {kernel.seconds / total:.1%}"
        words += "" if share is None else f", {share:.0%} of peak"
        rows.append((kernel.name, kernel.seconds / longest, words, "bar"))
    return drawing.bars(rows)


def _kernels(found: Bench) -> str:
    if not found.kernels:
        return ""
    total = sum(kernel.seconds for kernel in found.kernels)
    rows = []
    for kernel in worst_first(found.kernels):
        cells = text.kernel(found, kernel, total)
        rows.append([*map(escape, cells[:-1]), escape(", ".join(kernel.operators) or cells[-1])])
    return drawing.table(text.KERNEL_HEAD, rows, ["", "n", "n", "n", "n", "n", "w"])
