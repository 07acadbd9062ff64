"""Say what is going on: a bar on a terminal, one line per stage elsewhere. Writes to stderr."""

import os
import sys
from typing import Protocol, TextIO


class Progress(Protocol):
    """What long work reports to. Calls are cheap; a stage ends where the next one begins."""

    def stage(self, name: str) -> None:
        """Begin a stage, named for people."""
        ...

    def advance(self, done: int, total: int) -> None:
        """Say that `done` of the stage's `total` units are finished; total 0 is unknown."""
        ...

    def close(self) -> None:
        """End the last stage; nothing is drawn after it."""
        ...


class Silent:
    """Reports to nobody."""

    def stage(self, name: str) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Lines:
    """One plain line per stage, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def stage(self, name: str) -> None:
        """Write the stage's name."""
        print(f"npuc: {name}", file=self._stream, flush=True)

    def advance(self, done: int, total: int) -> None:
        """Do nothing: a log needs no counter."""

    def close(self) -> None:
        """Do nothing: every line is complete."""


class Bar:
    """A live line with a spinner, the stage's name, a bar and the time, drawn by rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,  # the results below are what should stay on the screen
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def stage(self, name: str) -> None:
        """Show the stage's name and start its bar anew."""
        self._bar.reset(self._task, description=name, total=None)

    def advance(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total or None)

    def close(self) -> None:
        """Remove the bar from the screen."""
        self._bar.stop()


def reporter(quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """Return what suits `stream` (stderr by default); rich is imported for a terminal only."""
    if quiet:
        return Silent()
    where: TextIO = sys.stderr if stream is None else stream
    moves = where.isatty() and os.environ.get("TERM") != "dumb"
    return Bar(where) if moves else Lines(where)
