"""Find the lines on which a TOML file states its keys, which Python's parser does not tell."""

import re
from collections.abc import Mapping

_TABLE = re.compile(r"^\s*(\[\[?)\s*(?P<key>[^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_ENTRY = re.compile(r"^\s*(?P<key>(?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*[^=\s]+)*)\s*=")
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")


def lines(text: str) -> Mapping[str, int]:
    """Map dotted keys to the line, from 1, that first states them.

    An array of tables counts its entries from 1: ``waivers.2.reason``. A line within a
    multi-line string may be taken for a key; only what error messages point at depends on it.
    """
    found: dict[str, int] = {}
    table: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            table = _parts(match["key"])
            if match[1] == "[[":
                name = ".".join(table)
                counts[name] = counts.get(name, 0) + 1
                table = (*table, str(counts[name]))
            found.setdefault(".".join(table), number)
        elif match := _ENTRY.match(line):
            key = (*table, *_parts(match["key"]))
            for end in range(len(table) + 1, len(key) + 1):
                found.setdefault(".".join(key[:end]), number)
    return found


def _parts(key: str) -> tuple[str, ...]:
    return tuple(a or b or c for a, b, c in _PART.findall(key))
