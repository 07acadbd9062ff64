"""One self-contained HTML page: a model on one target, and where its answer was lost."""

from collections.abc import Mapping, Sequence
from html import escape

from npuc.pages import drawing, layers, matrix, sections
from npuc.partition import HOST
from npuc.report import Report
from npuc.text import size


def fitting(reports: Sequence[Report], failed: Mapping[str, str]) -> str:
    """Return the page of the only target, or that of several side by side (`npuc.pages.matrix`)."""
    return page(reports[0]) if len(reports) == 1 and not failed else matrix.page(reports, failed)


def page(report: Report) -> str:
    """Return the page for one report; it asks for nothing else, and works offline."""
    blocks = [
        _head(report),
        "<h2>Step by step</h2>",
        sections.steps(report),
        sections.notes(report),
        "<h2>Layer by layer</h2>",
        layers.section(report.layers),
        "<h2>Where it runs</h2>",
        _placement(report),
        sections.roofline(report.estimate),
        sections.assumed(report),
        "<h2>What it was compared with</h2>",
        _fingerprint(report),
    ]
    return drawing.document(
        f"{report.model} → {report.target} ({report.precision})", "".join(blocks)
    )


def _head(report: Report) -> str:
    verdict = (
        '<span class="ok">passed</span>' if report.passed else '<span class="bad">FAILED</span>'
    )
    found = sections.worst(sections.final(report))
    sqnr = "" if found is None else f"; SQNR of the artifact {drawing.decibels(found.sqnr_db)} dB"
    dims = ", ".join(f"{name}={value}" for name, value in report.dims.items())
    mixed = report.mixed.lines() if report.mixed else ()
    evidence = "; ".join(filter(None, (report.evidence, report.vendor)))
    lines = [
        f"{verdict}{sqnr}",
        f"Evidence: {escape(evidence)}",
        *([f"Shapes: {escape(dims)}"] if dims else []),
        *map(escape, mixed),
    ]
    return "".join(f"<p>{line}</p>" for line in lines)


def _placement(report: Report) -> str:
    if not report.placement:
        return "<p>The target does not say where operators run.</p>"
    rows = [(escape(op), escape(place)) for op, place in report.placement.items()]
    crossed = ""
    if any(HOST in place.split("+") for place in report.placement.values()):
        total = sum(c.bytes for c in report.crossings)
        crossed = f"<p>Tensors that cross per call: {len(report.crossings)}, {size(total)}.</p>"
    return drawing.table(("operator", "runs on"), rows, ("", "")) + crossed


def _fingerprint(report: Report) -> str:
    rows = [
        (escape(name), escape(str(value)))
        for name, value in report.fingerprint.items()
        if value not in (None, "")
    ]
    known = drawing.table(("", ""), rows, ("", "t")) if rows else ""
    return f"<p>{escape(report.reference)}</p>{known}"
