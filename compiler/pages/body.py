"""What a page says of one model on one target: the verdict, then what is behind it."""

from html import escape

from npuc.layers.text import advice, largest
from npuc.outlets.entry import Entry
from npuc.pages import drawing, intervals, layers, sections
from npuc.report import Report

GRADES = {
    "twin": "npuc's model of the chip's arithmetic, run on this host",
    "vendor-compiled": "the vendor's compiler accepted the model; answers are the twin's",
    "vendor-simulator": "the vendor's simulator answered",
    "device": "the device itself answered",
}
"""What the last rows of a report rest on."""

CLASSES = {"passed": "ok", "waived": "warn", "undecided": "warn", "failed": "bad", "error": "bad"}
WORDS = {**{state: state for state in CLASSES}, "failed": "FAILED", "error": "ERROR"}

_REASONS = 6
"""Reasons that the head shows; the parts below have them all."""


def body(entry: Entry, level: int = 2) -> str:
    """Return all there is to say of an entry; its parts have headings of a level."""
    report = entry.report
    if report is None:
        return _head(entry)

    def part(title: str, content: str, opened: bool = True) -> str:
        return drawing.part(title, content, opened, level)

    runs = sections.placement(report) + sections.roofline(report.estimate)
    return "".join(
        [
            _head(entry),
            part("What it is held to", intervals.table(report.held)),
            part("Outputs", sections.outputs(report)),
            part("Step by step", sections.steps(report)),
            part("Layer by layer", layers.section(report.layers), report.layers is not None),
            part("Where it runs", runs or "<p>The target does not say where operators run.</p>"),
            part("What is assumed of the device", sections.assumed(report), False),
            part("What it was compared with", sections.fingerprint(report), _doubtful(report)),
            part("What was asked", sections.asked(report), False),
        ]
    )


def _doubtful(report: Report) -> bool:
    return any(note.startswith(sections.DOUBT) for note in report.notes)


def _head(entry: Entry) -> str:
    """Return the verdict with its reasons, the numbers, and what to know beside them."""
    reasons = entry.why if entry.code else ()
    first, *rest = reasons or ("",)
    more = len(rest) - _REASONS
    rest = rest[:_REASONS] + ([f"and {more} more, below"] if more > 0 else [])
    word = WORDS[entry.state]
    if entry.state == "passed" and _not_run(entry.report):
        word, first = "passed", "as far as it was run; the artifact itself was not"
    verdict = (
        f'<div class="verdict {CLASSES[entry.state]}"><b>{word}</b>{escape(first)}'
        f"{drawing.listed(rest)}</div>"
    )
    blocks = [verdict, _blame(entry.report), _waived(entry), _numbers(entry)]
    if entry.report is not None:
        blocks.append(_about(entry.report))
    notes = [*(entry.report.notes if entry.report else ()), *entry.notes]
    return "".join([*blocks, drawing.listed(notes)])


def _not_run(report: Report | None) -> bool:
    return report is not None and any(row.state == "not run" for row in report.rows)


def _blame(report: Report | None) -> str:
    """Say which layer is behind it, where layers were measured and something failed."""
    found = None if report is None or report.passed else report.layers
    culprit = None if found is None else largest(found)
    if found is None or culprit is None:
        return ""
    layer, tried = found.find(culprit.tensor), advice(found)
    place = f" (<code>{escape(layer.place)}</code>)" if layer.place else ""
    then = f" Try <code>{escape(tried[0])}</code>, {escape(tried[1])}." if tried else ""
    return f"<p>Most of it is lost in <b>{escape(layer.title)}</b>{place}.{then}</p>"


def _waived(entry: Entry) -> str:
    if not entry.waivers:
        return ""
    return f'<div class="verdict warn"><b>waived</b>{drawing.listed(entry.waivers)}</div>'


def _numbers(entry: Entry) -> str:
    found, report = entry.worst, entry.report
    if report is None:
        return ""
    items = [(report.evidence, "evidence")]
    if found is not None:
        where = f", output {found.output}" if len(_final(report)) > 1 else ""
        sqnr = drawing.decibels(found.sqnr_db)
        unit = "" if sqnr in ("NaN", "exact") else " dB"
        first = [(f"{sqnr}{unit}", f"SQNR of the artifact{where}")]
        if found.agreement is not None:
            first.append((f"{found.agreement:.1%}", f"same choice, {found.rows:,} rows"))
        items = [*first, (f"{found.max_abs:.2e}", f"max abs, of {found.peak:.3g}"), *items]
    return drawing.tiles(items)


def _final(report: Report) -> tuple[object, ...]:
    row = sections.final(report)
    return () if row is None else row.original


def _about(report: Report) -> str:
    dims = ", ".join(f"{name}={value}" for name, value in report.dims.items())
    mixed = report.mixed.lines() if report.mixed else ()
    grade = GRADES.get(report.evidence, "")
    evidence = "; ".join(filter(None, (grade, report.vendor)))
    lines = [
        f"Evidence: <b>{escape(report.evidence)}</b>{': ' * bool(evidence)}{escape(evidence)}.",
        *([f"Shapes: {escape(dims)}."] if dims else []),
        *map(escape, mixed),
    ]
    return "".join(f'<p class="dim">{line}</p>' for line in lines)
