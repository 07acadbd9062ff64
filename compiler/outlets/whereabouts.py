"""Find the file in a repository that a finding is about: the user's line, or what names the model.

An export keeps the last two parts of a path (``digits/net.py:42``), so that the same bytes come
out wherever the project lies; here they are looked for again.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from npuc.layers.text import largest
from npuc.outlets.entry import Entry

_LINE = re.compile(r"([\w./\\+@-]*\w\.py):(\d+)")
_SKIPPED = frozenset({"node_modules", "site-packages", "__pycache__"})
POLICY = "parity.toml"


@dataclass(frozen=True, slots=True)
class Spot:
    """A line of a file, relative to the root, and which layer it belongs to, if any."""

    uri: str
    line: int
    layer: str = ""


class Repository:
    """The files below a root, as far as findings can lie in them."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @cached_property
    def _sources(self) -> dict[str, tuple[str, ...]]:
        """Paths of Python files below the root by their last two parts."""
        found: dict[str, list[str]] = {}
        for folder, names, files in os.walk(self.root):
            names[:] = sorted(n for n in names if not n.startswith(".") and n not in _SKIPPED)
            for name in files:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    key = f"{path.parent.name}/{name}"
                    found.setdefault(key, []).append(path.relative_to(self.root).as_posix())
        return {key: tuple(paths) for key, paths in found.items()}

    def spots(self, entry: Entry, text: str = "") -> tuple[Spot, ...]:
        """Return where an entry's finding lies, the likeliest first; empty where nothing says.

        These are the lines that `text` names, else those of the layers where most is lost; where
        there is none, the model's line in the policy, or the model's file.
        """
        named = [spot for place in _LINE.findall(text) if (spot := self.line(*place))]
        found = named or list(self._layers(entry))
        if not found:
            found = [spot for spot in (self._policy(entry), self._file(entry)) if spot][:1]
        return tuple(dict.fromkeys(found))

    def line(self, path: str, number: str, layer: str = "") -> Spot | None:
        """Return the spot for a line as it is printed; None where it is no file of the root's.

        A path that fits several files is none of them: a finding at the wrong line is worse than
        one at none.
        """
        parts = path.strip().replace("\\", "/").split("/")
        own = self.root / "/".join(parts)
        if own.is_file() and own.resolve().is_relative_to(self.root):
            fits: Sequence[str] = [own.resolve().relative_to(self.root).as_posix()]
        else:
            fits = self._sources.get("/".join(parts[-2:]), ()) if len(parts) > 1 else ()
        if len(fits) != 1 or not 1 <= int(number) <= _length(self.root / fits[0]):
            return None
        return Spot(fits[0], int(number), layer)

    def _layers(self, entry: Entry) -> Iterator[Spot]:
        found = None if entry.report is None else entry.report.layers
        first = None if found is None else largest(found)
        if found is None or first is None:
            return
        for culprit in (first, *(c for c in found.worst if c is not first)):
            layer = found.find(culprit.tensor)
            path, _, number = layer.source.rpartition(":")
            if path and number.isdecimal() and (spot := self.line(path, number, layer.title)):
                yield spot

    def _policy(self, entry: Entry) -> Spot | None:
        path = self.root / POLICY
        if not path.is_file():
            return None
        name = re.escape(entry.model)
        table = re.compile(rf"""\s*\[\s*models\s*\.\s*(?:{name}|"{name}"|'{name}')\s*[].]""")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((Spot(POLICY, n) for n, line in enumerate(lines, 1) if table.match(line)), None)

    def _file(self, entry: Entry) -> Spot | None:
        if not entry.source or entry.source.startswith("zoo:"):
            return None
        path = (self.root / entry.source).resolve()
        if not path.is_file() or not path.is_relative_to(self.root):
            return None
        return Spot(path.relative_to(self.root).as_posix(), 1)


def _length(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
