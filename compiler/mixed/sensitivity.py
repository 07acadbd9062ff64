"""Measure what quantizing some layers, and not others, does to a network's answers."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from npuc.metrics import Difference, differences
from npuc.passes.base import Pass, run
from npuc.policy import Policy
from npuc.program import Program, Tensors
from npuc.progress import Silent
from npuc.quantization.quantizer import Quantizer
from npuc.runners import OnnxRunner

CALLS = 16
"""Calibration calls that layers are measured on. Sums over a call's many values tell a layer's
noise to some percent; what is chosen is verified on the recorded samples."""

SWEEP = 0.5
"""Share of the budget that the sweep over all layers may take; the rest is for the search."""

Kept = frozenset[str]
"""An assignment: the nodes that stay in float."""

Burden = tuple[float, ...]
"""Per output, how much of what the policy allows is used up: noise power, 1.0 at the limit."""

WORST = 1e9
"""The burden of an answer that cannot be compared, and the greatest of any: sums stay finite."""


class OutOfTime(Exception):
    """The budget is spent. It never leaves the search."""


class Clock:
    """A budget of wall time in seconds; None is no limit."""

    def __init__(self, budget: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.budget, self._now = budget, now
        self._start = now()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    @property
    def left(self) -> float:
        """Seconds that are left; infinite without a budget."""
        return math.inf if self.budget is None else self.budget - self.spent

    def check(self) -> None:
        """Raise `OutOfTime` where the budget is spent."""
        if self.left <= 0:
            raise OutOfTime


def burden(found: Sequence[Difference], policy: Policy) -> Burden:
    """Return noise power over what the policy allows: 10^((limit - SQNR) / 10) for floats.

    For integers it is the share of values that differ over the share that may. At most `WORST`.
    """
    return tuple(min(WORST, _used(one, policy)) for one in found)


def _used(found: Difference, policy: Policy) -> float:
    if found.fault:
        return math.inf
    if found.integer:
        differ = 1 - (found.agreement if found.agreement is not None else 1.0)
        return differ / (1 - policy.equal) if policy.equal < 1 else math.inf if differ else 0.0
    return float(10 ** ((policy.sqnr_db - found.sqnr_db) / 10))


class Bench:
    """Measures integer programs of one float program on some of its calibration calls.

    Each assignment is measured once and kept in `measured`; `runs` counts all programs that ran.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        numerics: Sequence[Pass],
        calls: Sequence[Tensors],
        policy: Policy,
        clock: Clock,
    ) -> None:
        self.quantizer = copy.copy(quantizer)  # what it has measured comes along
        self.quantizer.progress = Silent()
        self.numerics, self.calls = tuple(numerics), _spread(calls, CALLS)
        self.policy, self.clock, self.runs = policy, clock, 0
        self.measured: dict[Kept, Burden] = {}
        exact = OnnxRunner(quantizer.original, "float")
        self._expected = [exact(call) for call in self.calls]

    def program(self, kept: Iterable[str]) -> Program:
        """Return the integer program that keeps some nodes in float."""
        return self.quantizer.program(tuple(sorted(kept)))

    def measure(self, kept: Kept) -> Burden:
        """Measure an assignment as the device computes it; raises `OutOfTime`."""
        if kept not in self.measured:
            program = run(self.program(kept), self.numerics, self.quantizer.profile)
            self.measured[kept] = self._of(program, len(self.calls))
        return self.measured[kept]

    def known(self, kept: Kept) -> Burden | None:
        """Return what was measured of an assignment, if it was."""
        return self.measured.get(kept)

    def least(self) -> Kept:
        """Return the assignment with the least error so far; plain int8 where there is none."""
        return min(self.measured, key=lambda k: max(self.measured[k]), default=frozenset())

    def sweep(
        self, names: Sequence[str], progress: Callable[[int, int], None]
    ) -> Mapping[str, Burden]:
        """Measure what each node does alone: it is quantized, all others stay in float32.

        Fewer calls are run where all would take more than `SWEEP` of the budget, and the last
        nodes are left out where one call is too much; raises nothing then.
        """
        found: dict[str, Burden] = {}
        start, count = self.clock.spent, len(self.calls)
        until = start + SWEEP * self.clock.left
        for done, name in enumerate(names):
            if self.clock.spent >= until:
                break
            program = self.program(set(names) - {name})
            before = self.clock.spent
            found[name] = self._of(program, count)
            each = (self.clock.spent - before) / count
            if done == 0:
                rest = (until - self.clock.spent) / max(1, len(names) - 1) - (before - start)
                count = max(1, min(count, int(rest / each))) if math.isfinite(rest) else count
            progress(done + 1, len(names))
        return found

    def _of(self, program: Program, count: int) -> Burden:
        runner = OnnxRunner(program, "candidate")
        self.runs += 1
        answers: list[Tensors] = []
        for call in self.calls[:count]:
            self.clock.check()
            answers.append(runner(call))
        return burden(differences(self._expected[:count], answers), self.policy)


def _spread(calls: Sequence[Tensors], count: int) -> list[Tensors]:
    """Take some calls, evenly over all: neighbours may be parts of one recorded call."""
    step = max(1.0, len(calls) / count)
    return [calls[int(i * step)] for i in range(min(count, len(calls)))]
