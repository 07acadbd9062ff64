"""Every error a user can cause, each with its exit code and a hint that says what to do next.

Exit codes are a contract (README, "Exit codes"):

====  ==================================================================
0     everything compiled and every parity bar held
2     usage: an option, a name or a file given on the command line
3     the model could not be read or exported
4     a pass failed, or the target cannot run an operator
5     a toolchain (compiler, linker, vendor SDK) is missing or failed
6     parity: the compiled model does not answer like the original
7     an artifact is damaged, unsafe or of another format
8     an output could not be written (permissions, disk full)
9     undecided: a gate on a rate needs more samples than there are
130   interrupted
====  ==================================================================

Of several codes `worst` names the one to end with.

Any other exception is a fault of npuc itself and shows its traceback (exit code 1).
"""

from collections.abc import Iterable
from typing import ClassVar

UNDECIDED = 9
"""The exit code of a gate that its samples cannot decide. It is no pass."""


def worst(codes: Iterable[int]) -> int:
    """Return the exit code for several results: a failure before "undecided" before 0."""
    return max(codes, key=lambda code: (code not in (0, UNDECIDED), code), default=0)


class NpucError(Exception):
    """Something the user can act on; the command line prints it without a traceback.

    `message` says what failed, on which op, tensor or file, with the values. `hint` is the next
    thing to do, as a command where there is one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(filter(None, [self.message, *self.notes, self.hint and f"→ {self.hint}"]))

    @property
    def notes(self) -> tuple[str, ...]:
        """Where it happened, as added on the way up with `add_note`."""
        return tuple(getattr(self, "__notes__", ()))


class UsageError(NpucError):
    """A bad option, an unknown name, or arguments that contradict each other."""

    exit_code = 2


class LoadError(NpucError):
    """A model file is unreadable, unsafe, or of a kind npuc does not take."""

    exit_code = 3


class ExportError(NpucError):
    """torch could not be captured as ONNX; names the line of the user's code."""

    exit_code = 3


class PassError(NpucError):
    """A pass could not do its work."""

    exit_code = 4


class UnsupportedError(PassError):
    """The target cannot run some operators: all of them at once, grouped, with reasons."""


class ToolchainError(NpucError):
    """A compiler, linker or vendor SDK is missing, failed or timed out."""

    exit_code = 5


class ParityError(NpucError):
    """Two programs that should answer alike do not, or nothing could be compared."""

    exit_code = 6


class ArtifactError(NpucError):
    """Not an npuc artifact, an unknown format, or damaged."""

    exit_code = 7


class OutputError(NpucError):
    """An output could not be written; nothing half-written is left behind."""

    exit_code = 8
