"""Plain text for people: aligned columns and lists, the same on every terminal and in a pipe."""

from collections.abc import Iterable, Mapping, Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB")


def columns(rows: Iterable[Sequence[object]], gap: int = 2, indent: int = 0) -> str:
    """Align rows in columns, left; the last column is not padded and may be long."""
    table = [[str(cell) for cell in row] for row in rows]
    count = max((len(row) for row in table), default=0)
    widths = [max((len(r[i]) for r in table if i < len(r) - 1), default=0) for i in range(count)]
    lines = []
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append((" " * indent + (" " * gap).join([*cells, *row[-1:]])).rstrip())
    return "\n".join(lines)


def section(title: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a titled block of aligned rows, or "" where there are none."""
    body = columns(rows, indent=2)
    return f"{title}\n{body}\n" if body else ""


def counts(numbers: Mapping[str, int]) -> str:
    """Spell counts largest first: ``Conv 21, Add 8``."""
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


def size(count: int) -> str:
    """Spell a number of bytes: ``312 B``, ``4.2 kB``, ``1.3 GB`` (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    number, unit = float(count), 0
    while number >= 999.95 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.1f} {_UNITS[unit]}"


def harmless(text: str) -> str:
    """Spell out control characters: names in a stranger's file must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
