"""What parity.toml asks of an artifact's answers, output by output."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from npuc import metrics, statistics
from npuc.errors import UsageError
from npuc.facts.schema import near
from npuc.gate import rows
from npuc.gate.wording import judged, share
from npuc.held import Held
from npuc.metrics import Difference
from npuc.program import Tensors

if TYPE_CHECKING:
    from npuc.floors import Floor

EPS = float(np.finfo(np.float32).eps)


class _Outputs(Protocol):
    """A demand on one output, or with ``""`` on all that `but` does not name."""

    @property
    def output(self) -> str: ...

    @property
    def but(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class MinSqnr:
    """The answer's power over the error's, in dB, over all samples of an output of floats."""

    db: float
    output: str = ""
    but: tuple[str, ...] = ()

    def judge(
        self,
        samples: Sequence[Tensors],
        expected: Sequence[Tensors],
        got: Sequence[Tensors],
        floor: "Mapping[str, Floor]",
    ) -> Iterator[Held]:
        """Yield one finding per output."""
        for found in _differences(self, "sqnr-db", expected, got):
            value = f"SQNR {found.sqnr_db:.1f} dB"
            fine = found.sqnr_db >= self.db
            yield _held("sqnr-db", found, fine, value, found.sqnr_db, self.db, f"{self.db:g} dB")


@dataclass(frozen=True, slots=True)
class MinCosine:
    """The cosine between the answers, each taken as one vector over all samples."""

    cosine: float
    output: str = ""
    but: tuple[str, ...] = ()

    def judge(
        self,
        samples: Sequence[Tensors],
        expected: Sequence[Tensors],
        got: Sequence[Tensors],
        floor: "Mapping[str, Floor]",
    ) -> Iterator[Held]:
        """Yield one finding per output."""
        for found in _differences(self, "cosine", expected, got):
            value = f"cosine {found.cosine:.6f}"
            fine = found.cosine >= self.cosine
            yield _held("cosine", found, fine, value, found.cosine, self.cosine, f"{self.cosine:g}")


@dataclass(frozen=True, slots=True)
class MaxNoise:
    """The largest error in units of the output's noise floor: how far rounding alone moves it.

    The floor is at least one float32 rounding of the answer's largest value, as in
    `npuc.policy.Policy.noise`.
    """

    times: float
    output: str = ""
    but: tuple[str, ...] = ()

    def judge(
        self,
        samples: Sequence[Tensors],
        expected: Sequence[Tensors],
        got: Sequence[Tensors],
        floor: "Mapping[str, Floor]",
    ) -> Iterator[Held]:
        """Yield one finding per output."""
        for found in _differences(self, "max-noise", expected, got, integers=True):
            unit = max(floor[found.output].max_abs, EPS * floor[found.output].peak)
            exact = 0.0 if found.max_abs == 0 else float("inf")
            times = found.max_abs / unit if unit else exact
            value = f"max abs {found.max_abs:.3g} is {times:.3g} times its noise floor {unit:.3g}"
            asked = f"{self.times:g} times"
            fine = times <= self.times
            yield _held("max-noise", found, fine, value, times, self.times, asked, least=False)


@dataclass(frozen=True, slots=True)
class MinAgreement:
    """The rate of samples that choose alike: the top entry of the last axis, up to ties.

    Two entries closer than what rounding moves either by are a tie. Of outputs of integers all
    values must be equal. A sample is a row of the batch axis, the unit that is independent of
    others; one that makes several choices (a token's each) counts with the share that agrees. A
    rate of 1 asks it of these very samples; any other is judged for all that may come.
    """

    rate: float
    confidence: float
    output: str = ""
    but: tuple[str, ...] = ()

    def judge(
        self,
        samples: Sequence[Tensors],
        expected: Sequence[Tensors],
        got: Sequence[Tensors],
        floor: "Mapping[str, Floor]",
    ) -> Iterator[Held]:
        """Yield one finding per output that chooses."""
        names = _named(self, "agreement", expected)
        choosing = [n for n in names if metrics.has_choice(expected[0][n]) or _whole(expected, n)]
        wrong = names if self.output or not choosing else []
        if bad := [n for n in wrong if n not in choosing]:
            raise UsageError(
                f"agreement: {', '.join(bad)} makes no choice: its last axis has one entry",
                hint="ask for sqnr-db, or name an output: [models.NAME.outputs.OUTPUT]",
            )
        for name in choosing:
            yield self._one(name, samples, expected, got, 2 * floor[name].max_abs)

    def _one(
        self, name: str, samples: Sequence[Tensors], expected: Any, got: Any, ties: float
    ) -> Held:
        fault = _difference(name, expected, got).fault
        if fault:
            nan = float("nan")
            return Held("agreement", name, "failed", f"{name}: {fault}", nan, self.rate)
        shares = rows.agreement(name, samples, expected, got, ties)
        if self.rate == 1:
            state: Literal["ok", "failed"] = "ok" if shares.min() == 1 else "failed"
            agree, count = float(shares.mean()), shares.size
            text = f"{name}: agreement {share(agree)} of {count:,} samples; all of them asked"
            return Held("agreement", name, state, text, agree, 1.0, samples=count)
        whole = np.isin(shares, (0, 1)).all()
        if whole:
            hits = int(shares.sum())
            found = statistics.rate_at_least(hits, shares.size, self.rate, self.confidence)
        else:
            ones, most = np.ones_like(shares), 1 - self.rate
            found = statistics.drop_at_most(ones, shares, most, self.confidence)
            found = statistics.Verdict(
                found.state, max(0.0, 1 - found.high), min(1.0, 1 - found.low), 1 - found.estimate,
                found.samples, found.needed,
            )  # fmt: skip
        what = f"{name}: agreement {share(found.estimate)}"
        return judged("agreement", name, found, what, self.rate, self.confidence, at_least=True)


def _held(
    check: str,
    found: Difference,
    fine: bool,
    value: str,
    number: float,
    bar: float,
    asked: str,
    least: bool = True,
) -> Held:
    if found.fault:
        return Held(check, found.output, "failed", f"{found.output}: {found.fault}", number, bar)
    sign = (">=" if fine else "<") if least else ("<=" if fine else ">")
    text = f"{found.output}: {value} {sign} {asked}"
    return Held(check, found.output, "ok" if fine else "failed", text, number, bar)


def _named(demand: _Outputs, key: str, expected: Sequence[Tensors]) -> list[str]:
    """Return the outputs that a demand is about; raises `UsageError` for a name that is none."""
    known = list(expected[0])
    for name in filter(None, (demand.output, *demand.but)):
        if name not in known:
            raise UsageError(
                f"{key}: the model has no output {name!r}{near(name, known)}",
                hint=f"its outputs are {', '.join(known)}",
            )
    return [demand.output] if demand.output else [n for n in known if n not in demand.but]


def _differences(
    demand: _Outputs,
    key: str,
    expected: Sequence[Tensors],
    got: Sequence[Tensors],
    integers: bool = False,
) -> Iterable[Difference]:
    """Compare the outputs that a demand is about; integers only where named or asked for."""
    for name in _named(demand, key, expected):
        if integers or demand.output or not _whole(expected, name):
            yield _difference(name, expected, got)


def _difference(name: str, expected: Sequence[Tensors], got: Sequence[Tensors]) -> Difference:
    want, have = ([{name: call[name]} for call in calls] for calls in (expected, got))
    return metrics.differences(want, have)[0]


def _whole(calls: Sequence[Tensors], name: str) -> bool:
    return calls[0][name].dtype.kind in "biu"
