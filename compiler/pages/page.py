"""One self-contained HTML page: one model on one target, or a whole gate."""

from collections.abc import Mapping, Sequence
from html import escape

from npuc.errors import NpucError
from npuc.outlets import entry as entries_of
from npuc.outlets.entry import Entry
from npuc.pages import drawing
from npuc.pages import gate as gates
from npuc.pages.body import body
from npuc.report import Report


def fitting(reports: Sequence[Report], failed: Mapping[str, NpucError]) -> str:
    """Return the page of the only target, or that of several side by side (`gate`)."""
    if len(reports) == 1 and not failed:
        return page(reports[0])
    return gate(entries_of.of(reports, failed))


def page(report: Report) -> str:
    """Return the page for one report; it asks for nothing else, and works offline."""
    (entry,) = entries_of.of([report], {})
    about = f"<small>{escape(report.precision)}</small>"
    head = f"<h1>{escape(report.model)} → {escape(report.target)} {about}</h1>"
    title = f"{report.model} → {report.target} ({report.precision})"
    return drawing.document(title, head + body(entry))


def gate(entries: Sequence[Entry]) -> str:
    """Return the page for many pairs: one table, and each pair in full."""
    return gates.page(entries)
