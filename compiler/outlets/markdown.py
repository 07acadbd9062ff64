"""A gate as a Markdown comment for a pull request: what failed first, all of it one click away."""

import re
from collections.abc import Iterator, Sequence
from html import escape

from npuc.held import Held
from npuc.layers.text import decibels
from npuc.outlets.entry import Entry
from npuc.text import harmless

LIMIT = 60_000
"""Bytes: GitHub refuses a comment of more than 65,536 characters, and other text may be put
before it."""

CELL, LINE, BLOCK = 160, 400, 8_000
"""Characters of a message in a table and in a list, and bytes of one failure's report."""

_ORDER = ("failed", "error", "undecided", "waived", "passed")
_MARKS = {
    "passed": "✅ passed",
    "failed": "❌ failed",
    "undecided": "❔ undecided",
    "error": "⛔ error",
    "waived": "⚠️ waived",
}


def text(entries: Sequence[Entry], limit: int = LIMIT) -> str:
    """Return the comment, of at most `limit` bytes; it says what was left out."""
    ordered = sorted(entries, key=lambda entry: _ORDER.index(entry.state))
    blocks = [_head(entries), *_rows(ordered, limit // 2), *_notes(ordered)]
    details = [block for entry in ordered for block in _details(entry)]
    kept = "\n".join(blocks) + "\n"
    kept = kept if _size(kept) <= limit // 4 * 3 else _cut(kept, limit // 4 * 3)
    for at, block in enumerate(details):
        rest = f"\n{len(details) - at} more reports were left out to keep this comment short.\n"
        if _size(kept + block + rest) > limit:
            return kept + rest
        kept += block
    return kept


def _head(entries: Sequence[Entry]) -> str:
    states = [entry.state for entry in entries]
    counts = ", ".join(f"{states.count(s)} {s}" for s in _ORDER if s in states)
    whole = "passed" if states and set(states) <= {"passed", "waived"} else "did not pass"
    return f"## npuc: the parity gate {whole}\n\n{counts or 'nothing was compared'}\n"


_HEADER = ("model", "target", "verdict", "SQNR dB", "agreement", "evidence", "held to")


def _rows(entries: Sequence[Entry], room: int) -> Iterator[str]:
    if not entries:
        return
    yield f"| {' | '.join(_HEADER)} |"
    yield "| --- | --- | --- | ---: | ---: | --- | --- |"
    used = 0
    for at, entry in enumerate(entries):
        line = f"| {' | '.join(_cells(entry))} |"
        used += _size(line)
        if used > room:
            yield f"\n{len(entries) - at} more pairs were left out to keep this comment short."
            return
        yield line


def _cells(entry: Entry) -> tuple[str, ...]:
    names = (_code(entry.model), _code(entry.target), _MARKS[entry.state])
    report, found = entry.report, entry.worst
    if report is None or found is None:
        return (*names, "", "", "", _shown((*entry.waivers, *entry.why, "")[0]))
    agreement = "" if found.agreement is None else f"{found.agreement:.1%}"
    sqnr = decibels(found.sqnr_db).removesuffix(" dB")
    evidence = f"{report.evidence}{', cached' if entry.cached else ''}"
    return (*names, sqnr, agreement, _shown(evidence), _shown(entry.bars))


def _notes(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what must not be hidden in a fold: what is undecided, and what is waived."""
    undecided = [(e, _about(h)) for e in entries for h in e.held if h.state == "undecided"]
    waived = [(e, waiver) for e in entries for waiver in e.waivers]
    noted = [(e, note) for e in entries for note in e.notes]
    for title, found in (("Undecided", undecided), ("Waived", waived), ("Notes", noted)):
        if found:
            yield f"\n**{title}**\n"
            yield from (f"- {_code(e.name)}: {_shown(text, LINE)}" for e, text in found)


def _about(held: Held) -> str:
    needed = f"{held.needed:,}"
    more = "" if not held.needed or needed in held.text else f"; {needed} more samples needed"
    return held.text + more


def _details(entry: Entry) -> Iterator[str]:
    """Yield the whole report of a pair that did not pass, folded."""
    if entry.code == 0:
        return
    report = "" if entry.report is None else entry.report.table()
    body = _cut("\n\n".join(filter(None, [entry.error, report])), BLOCK)
    body = harmless(body or entry.why[0])
    # A fence must be longer than any run of backticks in it.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    # Within a line of HTML nothing is taken for Markdown, and within code no name is called.
    why = " ".join(f"<code>{escape(_line(part))}</code>" for part in (entry.name, entry.why[0]))
    yield (
        f"\n<details><summary>{_MARKS[entry.state]}: {why}</summary>\n\n"
        f"{fence}text\n{body}\n{fence}\n\n</details>\n"
    )


def _line(words: str, most: int = CELL) -> str:
    line = harmless(" ".join(words.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def _shown(words: str, most: int = CELL) -> str:
    """Return text as a line that Markdown and HTML take for text alone, and that calls nobody."""
    line = re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", _line(words, most))
    return escape(line, quote=False).replace("@", "@&#8203;")


def _code(words: str) -> str:
    """Return a name as code, or as text where it has what would end the code or the cell."""
    return _shown(words) if re.search(r"[`|\\\s]", words) or not words else f"`{harmless(words)}`"


def _cut(words: str, limit: int) -> str:
    """Cut text to a number of bytes, and say so."""
    if _size(words) <= limit:
        return words
    kept = words.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
    return f"{kept}\n… ({_size(words) - limit:,} bytes more were left out)\n"


def _size(words: str) -> int:
    return len(words.encode("utf-8", "replace"))
