"""One self-contained HTML page: one model on one target, or a whole gate."""

from collections.abc import Sequence
from html import escape

from npuc.outlets import entry as entries_of
from npuc.outlets.entry import Entry
from npuc.pages import drawing
from npuc.pages import gate as gates
from npuc.pages.body import body
from npuc.report import Report


def fitting(entries: Sequence[Entry]) -> str:
    """Return the page of the only pair that has a report, or that of a gate."""
    if len(entries) == 1 and entries[0].report is not None:
        return _alone(entries[0], entries[0].report)
    return gate(entries)


def page(report: Report) -> str:
    """Return the page for one report; it asks for nothing else, and works offline."""
    (entry,) = entries_of.of([report], {})
    return _alone(entry, report)


def _alone(entry: Entry, report: Report) -> str:
    about = f"<small>{escape(report.precision)}</small>"
    head = f"<h1>{escape(entry.model)} → {escape(report.target)} {about}</h1>"
    title = f"{entry.model} → {report.target} ({report.precision})"
    return drawing.document(title, head + body(entry))


def gate(entries: Sequence[Entry]) -> str:
    """Return the page for many pairs: one table, and each pair in full."""
    return gates.page(entries)
