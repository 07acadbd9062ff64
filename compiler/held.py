"""What a policy asks of an artifact's answers beyond the bars of the steps, and what was found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from npuc.program import Tensors

if TYPE_CHECKING:  # reports hold findings, and are read where no model is
    from npuc.floors import Floor

State = Literal["ok", "failed", "undecided", "waived", "not run"]


@dataclass(frozen=True, slots=True)
class Held:
    """One demand on one output (or on all, ``""``) and whether it holds.

    `check` is the demand's key in parity.toml ("sqnr_db", "agreement", "metric.accuracy"), `value`
    what was found and `bar` what was asked, in the demand's own unit. For a rate `low` and `high`
    bound the true one at the confidence of the policy, and `needed` is how many more samples would
    decide it. `text` says all of that in one line. `waiver` is the reason it was waived for.
    """

    check: str
    output: str
    state: State
    text: str
    value: float
    bar: float
    low: float | None = None
    high: float | None = None
    samples: int = 0
    needed: int = 0
    waiver: str = ""


class Demand(Protocol):
    """One thing that must hold. Frozen and comparable: it is part of a cache's key."""

    def judge(
        self,
        samples: Sequence[Tensors],
        expected: Sequence[Tensors],
        got: Sequence[Tensors],
        floor: "Mapping[str, Floor]",
    ) -> Iterable[Held]:
        """Compare answers call by call; `expected` are the original's, `floor` its noise."""
        ...
