"""Write what was found to files, in every form that was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npuc import outputs
from npuc.errors import NpucError
from npuc.outlets import entry
from npuc.outlets.entry import Entry
from npuc.report import Report


@dataclass(frozen=True, slots=True)
class Files:
    """Where each form goes; None where it is not asked for."""

    html: Path | None = None
    junit: Path | None = None
    sarif: Path | None = None
    markdown: Path | None = None

    @classmethod
    def taken(cls, options: dict[str, Any]) -> "Files":
        """Take the files out of a verb's options, and raise `OutputError` for one that cannot be
        written: now, and not after the work."""
        found = cls(**{name: options.pop(name) for name in cls.__dataclass_fields__})
        for path in found.paths.values():
            outputs.probe(path)
        return found

    @property
    def paths(self) -> Mapping[str, Path]:
        """The files that are asked for, by their form."""
        listed = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {name: path for name, path in listed if path is not None}

    def write_reports(
        self, reports: Sequence[Report], failures: Mapping[str, NpucError], source: str
    ) -> None:
        """Write what one verb found of one model; `failures` names targets without a report."""
        if self.paths:
            self.write(entry.of(reports, failures, source))

    def write(self, entries: Sequence[Entry]) -> None:
        """Write them; paths in SARIF are relative to the current folder."""
        if self.html is not None:
            from npuc.pages import page

            outputs.text(self.html, page.fitting(entries))
        if self.junit is not None:
            from npuc.outlets import junit

            outputs.text(self.junit, junit.text(entries))
        if self.sarif is not None:
            from npuc.outlets import sarif

            outputs.text(self.sarif, sarif.text(entries, Path.cwd()))
        if self.markdown is not None:
            from npuc.outlets import markdown

            outputs.text(self.markdown, markdown.text(entries))
