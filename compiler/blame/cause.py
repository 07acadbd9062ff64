"""What is to blame, and what shows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npuc.jsonable import plain

BLAMED = 6
"""The exit code where something is to blame: that of a parity failure."""


@dataclass(frozen=True, slots=True)
class Blame:
    """The first step that broke the answer, and the operator and tensor in it.

    `step` is "" where nothing is to blame; `kind` as `npuc.blame.trail.Kind`. `operator` is the
    node's name in the program after the step (before it, where it is gone), "" where no single one
    is to blame, for the reason in `why_not`. `place` is the user's source line, where it is known.
    `runs` counts evaluations of a program or artifact over the samples, `steps` what there was to
    choose from. `why` says by how much the step misses its bar; `evidence` is the chain that leads
    to it, one line each. `masked` says that later steps hide the error again; `rolled_back` that a
    compile undoes the step by itself, so that the artifact does not have the error.
    """

    step: str
    kind: str
    why: str
    runs: int
    steps: int
    evidence: tuple[str, ...] = ()
    operator: str = ""
    op_type: str = ""
    tensor: str = ""
    place: str = ""
    why_not: str = ""
    masked: bool = False
    rolled_back: bool = False
    bundle: Path | None = None
    randomized: bool = False
    command: str = ""

    @property
    def found(self) -> bool:
        """Whether anything is to blame."""
        return bool(self.step)

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong, else that of a parity failure."""
        return BLAMED if self.found and not self.rolled_back else 0

    def text(self) -> str:
        """Return the finding as plain text, the chain of evidence first."""
        lines = [*self.evidence, ""]
        if not self.found:
            return "\n".join([*lines, f"nothing to blame: {self.why} ({self.runs} runs)"])
        what = f"{self.kind} step {self.step!r}" if self.kind != self.step else f"the {self.step}"
        lines.append(f"BLAME: {what}: {self.why}")
        if self.operator or self.tensor:
            node = f"{self.op_type} {self.operator!r}" if self.operator else "(no node)"
            place = f" ({self.place})" if self.place else ""
            lines.append(f"  operator: {node}{place}")
            lines.append(f"  tensor: {self.tensor}")
        if self.why_not:
            lines.append(f"  {'and' if self.operator else 'operator'}: {self.why_not}")
        lines += ["  " + text for text in self._remarks()]
        lines.append(f"  found in {self.runs} runs; there were {self.steps} steps")
        if self.bundle is not None:
            drawn = ", with random weights" if self.randomized else ""
            lines.append(f"  reproduction: {self.bundle}{drawn}")
        lines.append(f"→ {self.command or self._next()}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all of it in JSON types."""
        data: dict[str, Any] = plain(self)
        return {"schema": "npuc-blame-1", "found": self.found, **data}

    def _next(self) -> str:
        """Say what to do where there is no bundle to run."""
        if self.kind == "reference":
            return "npuc record --update shows by how much the recorded answers moved"
        if self.kind == "quantization" and not self.operator:
            return "npuc compile --layers shows every layer; --precision auto keeps some in float"
        return "add -o fault.zip for a small file that shows it"

    def _remarks(self) -> list[str]:
        found = []
        if self.masked:
            found.append("later steps hide this error: the end of the chain looks good")
        if self.rolled_back:
            found.append("compile rolls this step back by itself: the artifact does without it")
        return found
