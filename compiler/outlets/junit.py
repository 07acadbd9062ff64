"""A gate as JUnit XML: what Jenkins, GitLab and most other CI show as tests.

One testsuite per model, one testcase per target. The dialect is Jenkins', which other readers are
subsets of: a testcase has no properties, so they are the suite's, named after the target.
"""

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape, quoteattr

from npuc.outlets.entry import Entry
from npuc.text import harmless

_TAGS = {"failed": "failure", "undecided": "failure", "error": "error"}
_KINDS = {"failed": "parity"}


def text(entries: Sequence[Entry]) -> str:
    """Return the XML document.

    An undecided pair is a failure of the type "undecided"; one that was not compared, which is
    waived, is skipped.
    """
    models = dict.fromkeys(entry.model for entry in entries)
    suites = [_suite(name, [e for e in entries if e.model == name]) for name in models]
    head = f'<testsuites name="npuc" {_counts(entries)}>'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', head, *suites, "</testsuites>"]
    return "\n".join(lines) + "\n"


def _suite(model: str, entries: Sequence[Entry]) -> str:
    properties = [
        f"    <property name={_quoted(f'{e.target}.{name}')} value={_quoted(value)}/>"
        for e in entries
        for name, value in _properties(e)
    ]
    listed = ["  <properties>", *properties, "  </properties>"] if properties else []
    head = f'  <testsuite name={_quoted(model)} {_counts(entries)} skipped="{_skipped(entries)}">'
    return "\n".join([head, *(f"  {x}" for x in listed), *map(_case, entries), "  </testsuite>"])


def _counts(entries: Sequence[Entry]) -> str:
    tags = [_TAGS.get(entry.state) for entry in entries]
    seconds = sum(entry.seconds for entry in entries)
    return (
        f'tests="{len(tags)}" failures="{tags.count("failure")}" errors="{tags.count("error")}" '
        f'time="{_time(seconds)}"'
    )


def _skipped(entries: Sequence[Entry]) -> int:
    return sum(entry.report is None and entry.state == "waived" for entry in entries)


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"


def _properties(entry: Entry) -> Iterable[tuple[str, str]]:
    """Yield what a reader may want to filter by."""
    if entry.report is None:
        return
    found = entry.worst
    yield "precision", entry.report.precision
    yield "evidence", entry.report.evidence
    if found is not None:
        yield "sqnr_db", f"{found.sqnr_db:.2f}"
        if found.agreement is not None:
            yield "agreement", f"{found.agreement:.6f}"
    yield "cached", str(entry.cached).lower()
    for at, waiver in enumerate(entry.waivers, 1):
        yield f"waiver.{at}", waiver


def _case(entry: Entry) -> str:
    head = (
        f"    <testcase classname={_quoted(entry.model)} name={_quoted(entry.target)} "
        f'time="{_time(entry.seconds)}">'
    )
    tag = _TAGS.get(entry.state, "skipped" if entry.report is None else "system-out")
    said = entry.report.table() if entry.report is not None else ""
    said = "\n\n".join(filter(None, [entry.error, said, *entry.notes, *entry.waivers]))
    about = ""
    if tag != "system-out":
        kind = _KINDS.get(entry.state, entry.state)
        message = (*entry.waivers, *entry.why)[0] if tag == "skipped" else entry.why[0]
        about = f" type={_quoted(kind)} message={_quoted(message)}"
    return f"{head}\n      <{tag}{about}>{_clean(said or entry.why[0])}</{tag}>\n    </testcase>"


def _clean(words: str) -> str:
    """Escape text. Characters that XML cannot hold, even as references, are not printable."""
    return escape(harmless(words))


def _quoted(words: str) -> str:
    """Return an attribute in quotes, on one line."""
    return quoteattr(harmless(words), {"\n": "&#10;"})
