"""What the search for a mixed precision found, and why each layer of it is above 8 bits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from npuc.text import size

SHOWN = 20
"""Exceptions that a text lists; JSON has all of them."""

End = Literal["complete", "out of time", "interrupted", "going on"]
_WHY: Mapping[End, str] = {
    "complete": "",
    "out of time": "the budget ended the search before it was done",
    "interrupted": "the search was interrupted",
    "going on": "written while the search was going on",
}


LEAST = 1e-4
"""The least share a layer costs: one that computes next to nothing is an exception all the same,
and among layers that cost nothing the one that gains most must come first."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A quantized node that could stay in float.

    `operations` are multiply-adds counted twice, as `npuc.estimate` counts. `share` is what float
    costs: of the estimated time of the int8 model where `timed`, else of its operations. `crossing`
    is what crosses between device and host in one call, in bytes, where float means the host; it
    counts as the share `moved` of all values that the layers read and make.
    """

    node: str
    op: str
    module: str
    line: str
    operations: int
    share: float
    timed: bool
    crossing: int = 0
    moved: float = 0.0

    @property
    def cost(self) -> float:
        """What the search adds up."""
        return max(self.share + self.moved, LEAST)

    @property
    def title(self) -> str:
        """Name it as in the user's model, as far as that is known."""
        about = [f"{self.op} {self.node}", *([self.line] if self.line else [])]
        return f"{self.module} ({', '.join(about)})" if self.module else ", ".join(about)

    @property
    def price(self) -> str:
        """Say what float costs."""
        share = f"{self.share:.1%}" if self.share >= 0.0005 else "<0.1%"
        if self.crossing:
            return f"{share} of the work and {size(self.crossing)} to cross per call"
        return f"+{share} estimated time" if self.timed else f"{share} of the work"


@dataclass(frozen=True, slots=True)
class Exempt:
    """One layer kept above 8 bits. `db` is what the worst output's SQNR gains by it, measured with
    all the other exceptions in place, or predicted where there was no time for that, or None where
    there was none even for that."""

    layer: Layer
    form: str
    db: float | None
    measured: bool

    @property
    def text(self) -> str:
        """Explain it."""
        about = "" if self.measured else "about "
        gain = "not measured" if self.db is None else f"{about}{self.db:+.1f} dB"
        return f"layer {self.layer.title} kept in {self.form}: {gain} for {self.layer.price}"


@dataclass(frozen=True, slots=True)
class Mixed:
    """What the search found. `layers` and `operations` count what could be integers; `kept` lists
    what stays in float, largest gain first, and `share` is its share of the operations. `valid`
    says that the policy held when it was measured. SQNRs are the least that were measured: of all
    outputs at every step that the report holds to the policy, and on calibration calls, less what
    plain int8 does worse on these. `seconds`
    is None in what must not differ between runs."""

    kept: tuple[Exempt, ...]
    layers: int
    operations: int
    share: float
    policy_db: float
    plain_db: float | None
    sqnr_db: float | None
    valid: bool
    end: End
    runs: int
    seconds: float | None
    budget: float | None
    note: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes kept in float."""
        return tuple(sorted(item.layer.node for item in self.kept))

    @property
    def timeless(self) -> "Mixed":
        """The same without what a clock said."""
        return replace(self, seconds=None)

    def handed(self) -> list[str]:
        """Say what a vendor's compiler is told of layers that a device itself has in float."""
        if all(item.layer.crossing for item in self.kept):
            return []
        return [
            f"layers are kept in {self.kept[0].form} in the twin; a vendor's compiler that "
            "quantizes by itself is not told to, and may code them"
        ]

    def lines(self) -> tuple[str, ...]:
        """Say it in a report."""
        count = f"{len(self.kept)} of {self.layers} layers above 8 bits"
        time = "" if self.seconds is None else f" in {self.seconds:.1f} s"
        head = (
            f"mixed precision: {count} ({self.share:.1%} of their operations); "
            f"{_spelled(self.plain_db)} without, {_spelled(self.sqnr_db)} with; "
            f"{self.runs} programs measured{time}"
        )
        shown = [item.text for item in self.kept[:SHOWN]]
        more = len(self.kept) - len(shown)
        rest = [f"and {more} layers more"] if more else []
        why = [text for text in (_WHY[self.end], self.note) if text]
        return (head, *(f"  {text}" for text in (*shown, *rest, *why)))


def _spelled(db: float | None) -> str:
    if db is None:
        return "not measured"
    return "exact" if db == math.inf else f"{db:.1f} dB"
