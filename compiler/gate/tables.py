"""Read the tables of a parity.toml one value at a time, and gather every fault with its place."""

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from npuc.facts.schema import near

Value = Callable[[Any], Any]
"""Turns what TOML holds into what npuc takes; raises `ValueError` saying what is wrong."""


class Faults:
    """The faults of one file, by the key they are about."""

    def __init__(self, lines: Mapping[str, int]) -> None:
        self.lines = lines
        self.found: list[tuple[int, str]] = []

    def add(self, key: str, what: str) -> None:
        """Note a fault of a dotted key; its line is that of the nearest table that has one."""
        parts = key.split(".")
        places = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        line = next((self.lines[place] for place in places if place in self.lines), 0)
        self.found.append((line, f"{key}: {what}" if key else what))

    def listed(self) -> tuple[str, ...]:
        """Return them in the order of the file, with their lines."""
        ordered = sorted(self.found, key=lambda fault: fault[0])
        return tuple(f"line {line}: {what}" if line else what for line, what in ordered)


class Table:
    """One table: keys are taken from it by name; those nobody takes are faults (`done`)."""

    def __init__(self, data: Any, key: str, faults: Faults) -> None:
        self.key, self.faults = key, faults
        self.known: list[str] = []
        self.data: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
        if not isinstance(data, Mapping):
            faults.add(key, f"is {spelled(data)}, not a table")

    def take(self, name: str, value: Value, default: Any = None) -> Any:
        """Return a value, or `default` where it is absent or wrong."""
        self.known.append(name)
        if name not in self.data:
            return default
        try:
            return value(self.data[name])
        except ValueError as error:
            self.fault(name, str(error))
            return default

    def need(self, name: str, value: Value, why: str = "") -> Any:
        """Return a value that must be there; None where it is absent or wrong."""
        if name not in self.data:
            self.known.append(name)
            self.faults.add(self.key, f"needs {name}" + (f": {why}" if why else ""))
            return None
        return self.take(name, value)

    def table(self, name: str) -> "Table":
        """Return a table in this one, empty where there is none."""
        self.known.append(name)
        return Table(self.data.get(name, {}), self.of(name), self.faults)

    def tables(self, name: str) -> dict[str, "Table"]:
        """Return the tables in a table, by name."""
        inner = self.table(name)
        return {key: Table(data, inner.of(key), self.faults) for key, data in inner.data.items()}

    def fault(self, name: str, what: str) -> None:
        """Note a fault of one of its keys."""
        self.faults.add(self.of(name), what)

    def of(self, name: str) -> str:
        """Return the dotted key of one of its entries."""
        return f"{self.key}.{name}" if self.key else name

    def done(self) -> None:
        """Note every key that was not asked for."""
        for name in self.data:
            if name not in self.known:
                self.fault(name, f"unknown key{near(name, self.known)}")


def spelled(value: Any) -> str:
    """Spell a value as TOML would, for a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    return "an array" if isinstance(value, list) else repr(value)


def text(value: Any) -> str:
    """Take a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {spelled(value)}, not a text")
    return value


def flag(value: Any) -> bool:
    """Take true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"is {spelled(value)}, neither true nor false")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """Take an array of texts, or one text for an array of one."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(v, str) and v.strip() for v in listed):
        raise ValueError(f"is {spelled(value)}, not an array of texts")
    if len(set(listed)) < len(listed):
        twice = sorted({v for v in listed if listed.count(v) > 1})
        raise ValueError(f"names {', '.join(twice)} twice")
    return tuple(listed)


def count(value: Any) -> int:
    """Take a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"is {spelled(value)}, not a whole number from 1")
    return value


def sizes(value: Any) -> dict[str, int]:
    """Take a table of sizes: ``{ batch = 1 }``."""
    if not isinstance(value, Mapping):
        raise ValueError(f"is {spelled(value)}, not a table such as {{ batch = 1 }}")
    for name, size in value.items():
        try:
            count(size)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
    return dict(value)


def one_of(*known: str) -> Value:
    """Take one of some words."""

    def take(value: Any) -> str:
        if value not in known:
            guess = near(value, known) if isinstance(value, str) else ""
            raise ValueError(f"{spelled(value)} is none of {', '.join(known)}{guess}")
        return str(value)

    return take


def number(low: float, high: float, hint: str = "", above: bool = False) -> Value:
    """Take a finite number of `low` to `high`; with `above` `low` itself is too little."""

    def take(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"is {spelled(value)}, not a number")
        if not low <= value <= high or not math.isfinite(value) or (above and value == low):
            least = f"above {low:g}" if above else f"from {low:g}"
            most = "" if high == math.inf else f" to {high:g}"
            raise ValueError(f"is {value:g}, not {least}{most}" + (f": {hint}" if hint else ""))
        return float(value)

    return take


def span(value: Any) -> tuple[float, float]:
    """Take the least and the largest score there can be."""
    wrong = f"is {spelled(value)}, not the least and the largest score, as [0, 1]"
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(wrong)
    try:
        low, high = (number(-math.inf, math.inf)(v) for v in value)
    except ValueError as error:
        raise ValueError(wrong) from error
    if not low < high:
        raise ValueError(wrong)
    return low, high


def like(default: Any) -> Value:
    """Take what is of the kind of a default: a text, a number, whole numbers, or numbers."""
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        return _numbers

    def take(value: Any) -> float | int:
        found = number(-math.inf, math.inf)(value)
        if isinstance(default, int) and found != int(found):
            raise ValueError(f"is {value:g}, not a whole number")
        return int(found) if isinstance(default, int) else float(found)

    return take


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"is {spelled(value)}, not an array of numbers")
    return tuple(number(-math.inf, math.inf)(each) for each in value)


def day(value: Any) -> date:
    """Take a date; a time of day is none."""
    if isinstance(value, datetime) or not isinstance(value, date):
        hint = "without quotes" if isinstance(value, str) else "without a time"
        raise ValueError(f"is {value!s}, not a date: write 2027-01-31, {hint}")
    return value


def path(folder: Path, *, directory: bool | None = False, within: Iterable[str] = ()) -> Value:
    """Take a path that is there, relative to `folder`.

    It must be a file, a directory where `directory` is True, or either where it is None. Texts
    that begin as one of `within` are taken as they are.
    """

    def take(value: Any) -> Path | str:
        name = text(value)
        if name.startswith(tuple(within)):
            return name
        found = folder / name
        if not found.exists():
            raise ValueError(f"there is no {found}{_beside(found)}")
        if directory is not None and found.is_dir() != directory:
            what = "a folder" if found.is_dir() else "a file"
            raise ValueError(f"{found} is {what}, not {'a folder' if directory else 'a file'}")
        return found

    return take


def paths(folder: Path) -> Value:
    """Take an array of files and folders that are there."""

    def take(value: Any) -> tuple[Path, ...]:
        return tuple(Path(path(folder, directory=None)(name)) for name in texts(value))

    return take


def _beside(missing: Path) -> str:
    """Guess what was meant from what lies beside it."""
    try:
        return near(missing.name, [p.name for p in missing.parent.iterdir()])
    except OSError:  # its folder is missing as well
        return ""
