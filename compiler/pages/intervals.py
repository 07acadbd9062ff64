"""What a policy asks beside the steps: found, asked, and where the true value can lie."""

import math
from collections.abc import Sequence
from html import escape

from npuc.held import Held
from npuc.pages import drawing

_WIDE, _TALL, _EDGE = 220, 26, 8
"""Size of one drawing, and how far its ends lie from the border."""

_CLASSES = {"ok": "ok", "failed": "bad", "not run": "bad", "undecided": "warn", "waived": "warn"}


def table(found: Sequence[Held]) -> str:
    """Return the table of demands, or "" where there are none."""
    if not found:
        return ""
    rows = [
        (
            f"<b>{escape(held.check)}</b>",
            escape(held.output),
            f'<span class="{_CLASSES[held.state]}">{escape(held.state)}</span>',
            f"{held.value:.4g}",
            f"{held.bar:.4g}",
            _drawn(held),
            f"{held.samples:,}" if held.samples else "",
            escape("; ".join(filter(None, (held.text, held.waiver)))),
        )
        for held in found
    ]
    head = (
        "demand",
        "output",
        "verdict",
        "found",
        "bar",
        "interval and bar",
        "samples",
        "which says",
    )
    return drawing.table(head, rows, ("", "", "", "n", "n", "", "n", "t"), stack=True)


def _drawn(held: Held) -> str:
    """Draw the interval that holds the true value, what was found, and the bar."""
    ends = [end for end in (held.low, held.high) if end is not None]
    known = [held.value, held.bar, *ends]
    if not all(map(math.isfinite, known)):
        return ""
    low, high = min(known), max(known)
    span = high - low or 1.0

    def place(value: float) -> float:
        return _EDGE + (_WIDE - 2 * _EDGE) * (value - low) / span

    colour = {"ok": "good", "bad": "bad", "warn": "warn"}[_CLASSES[held.state]]
    middle = _TALL / 2
    parts = [drawing.line(_EDGE, middle, _WIDE - _EDGE, middle, "line")]
    if ends:
        # A one-sided interval has no other end: it goes on beyond the drawing.
        left = 0.0 if held.low is None else place(held.low)
        right = float(_WIDE) if held.high is None else place(held.high)
        parts.append(drawing.rect(left, middle - 4, right - left, 8, colour))
    said = f"found {held.value:.4g}, bar {held.bar:.4g}"
    if ends:
        said += f", true value {_bounds(held)}"
    parts.append(drawing.dot(place(held.value), middle, 5, "text", said))
    bar = place(held.bar)
    parts.append(drawing.line(bar, 2, bar, _TALL - 2, "bad", ' stroke-width="3"'))
    return drawing.picture(_WIDE, _TALL, said, parts, "tiny")


def _bounds(held: Held) -> str:
    if held.low is None:
        return f"at most {held.high:.4g}"
    if held.high is None:
        return f"at least {held.low:.4g}"
    return f"{held.low:.4g} to {held.high:.4g}"
