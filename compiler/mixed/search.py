"""Find the cheapest set of layers to keep in float so that an integer program meets a policy.

What quantizing a layer adds to the error of the answer is nearly independent of the other layers:
noise powers add. So every layer is measured alone, in one sweep, and the sum predicts the error of
any set, scaled to what was measured last. The cheapest set whose prediction holds is chosen, and
accepted only where the measured answers do: first on calibration calls, then on the samples that
the report is held to. All layers in float are the first valid set, so there is always a best.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from npuc.mixed.covering import cover
from npuc.mixed.outcome import End, Exempt, Mixed
from npuc.mixed.prices import Layer
from npuc.mixed.sensitivity import Bench, Burden, Kept, OutOfTime
from npuc.progress import Progress

MARGIN = 0.25
"""dB above the policy that the search asks for. Lowering flips ties of the rounding, and an answer
that is a hair above the bar would then be one below it: on four models of the zoo the artifact's
SQNR is up to 0.08 dB less than its program's. A policy that leaves less room than this is met
without a margin."""

STRICT = 0.999
"""What a prediction must reach of the limit: one that ends on it may fall on either side."""

HOPE = 1.25
"""How far above the limit a cheaper set's prediction may lie for it to be measured all the same:
predictions are off by some ten percent, and a measurement is cheap against a layer in float."""


@dataclass
class Search:
    """Searches one program's layers; `run` returns the best, whatever ends it.

    `judge` measures an assignment on the recorded samples, at every step the report looks at; it
    is asked about what holds on calibration calls, since it runs many more. `found` is told
    of a valid best at the end of a stage, so that it can be kept safe. `host` says that floats are
    the host's: then all layers in float are the last resort, not the first best.
    """

    bench: Bench
    layers: Sequence[Layer]
    form: str
    judge: Callable[[Kept], Burden]
    found: Callable[[Mixed], None]
    progress: Progress
    best: Kept | None = None
    end: End = "going on"
    note: str = ""
    host: bool = False
    _margin: float = MARGIN
    _lenient: bool = False
    _relative: Burden = ()
    _alone: Mapping[str, Burden] = field(default_factory=dict)
    _anchor: Kept = frozenset()
    _judged: dict[Kept, Burden] = field(default_factory=dict)

    def run(self) -> Mixed:
        """Search until nothing is cheaper, the budget is spent or Ctrl-C is pressed."""
        try:
            self._search()
            self.end = "complete"
        except OutOfTime:
            self.end = "out of time"
        except KeyboardInterrupt:
            self.end = "interrupted"
        return self.result()

    def result(self) -> Mixed:
        """Describe the best so far: the cheapest valid one, else the one with the least error."""
        bench = self.bench
        best = self.best if self.best is not None else bench.least()
        kept = [self._exempt(x, best) for x in self.layers if x.node in best]
        operations = sum(layer.operations for layer in self.layers)
        return Mixed(
            kept=tuple(sorted(kept, key=lambda item: -(item.db or 0.0))),
            layers=len(self.layers),
            operations=operations,
            share=sum(item.layer.operations for item in kept) / max(1, operations),
            policy_db=bench.policy.sqnr_db,
            plain_db=self._db(self._known(frozenset())),
            sqnr_db=self._db(self._known(best)),
            valid=self.best is not None,
            end=self.end,
            runs=bench.runs,
            seconds=bench.clock.spent,
            budget=bench.clock.budget,
            note=self.note,
        )

    def _search(self) -> None:
        none = frozenset[str]()
        self.progress.stage("search: measure plain int8")
        pairs = zip(self._judge(none), self.bench.measure(none), strict=True)
        self._relative = tuple(min(1.0, there / here) if here else 1.0 for there, here in pairs)
        if max(self._judge(none), default=0.0) <= self._limit:
            self._accept(none)  # whatever calibration calls say: nothing has to be chosen on them
            return
        if not self.layers:
            self._say("no layer can be kept in float")
            return
        if not self._start():
            return
        self._sweep()
        self.progress.stage("search: choose layers")
        self._climb(none)
        self._improve()
        self._explain()

    def _start(self) -> bool:
        """Begin with all layers in float; False where even that does not meet the policy."""
        self.progress.stage(f"search: measure all layers in {self.form}")
        self._judge(self._every)
        for self._margin, self._lenient in ((MARGIN, False), (0.0, False), (0.0, True)):
            if self._holds(self._every):
                break
        else:
            db = self._db(self._judged[self._every])
            self._say(
                f"the policy cannot be met: with all {len(self.layers)} layers in {self.form} "
                f"the SQNR is {db:.1f} dB"
            )
            return False
        if self._lenient:
            self._say("calibration calls do not meet the policy in float: they are not held to it")
        elif not self._margin:
            self._say(f"met without the usual margin of {MARGIN:g} dB")
        if not self.host:
            self._accept(self._every)
            self.found(self.result())
        return True

    def _sweep(self) -> None:
        """Measure each layer alone, cheap ones first: those make the better exceptions."""
        self.progress.stage(f"search: measure {len(self.layers)} layers, each alone")
        cheap = sorted(self.layers, key=lambda layer: (layer.cost, layer.node))
        names = [layer.node for layer in cheap]
        found = self.bench.sweep(names, self.progress.advance)
        alone = {n: tuple(np.multiply(b, self._relative).tolist()) for n, b in found.items()}
        left = [name for name in names if name not in alone]
        seen = [sum(column) for column in zip(*alone.values(), strict=True)]
        floats, plain = self._floats, self._worst(frozenset())
        seen = seen or [0.0] * len(plain)
        # What was not measured is taken to be alike: it shares what noise is not accounted for.
        rest = tuple(
            max(0.0, p - f - s) / max(1, len(left))
            for p, f, s in zip(plain, floats, seen, strict=True)
        )
        self._alone = alone | dict.fromkeys(left, rest)
        if left:
            self._say(f"there was time to measure {len(alone)} of {len(names)} layers")

    def _climb(self, kept: Kept) -> None:
        """Add layers until the measured answers hold."""
        while True:
            if self._holds(kept):
                break
            self._anchor = kept  # once it is measured: an interrupted search explains with it
            more = self._cover(kept, STRICT * self._limit)
            if more is None or more == self._every:
                self._accept(self._every)
                return
            kept = more
        self._accept(kept)
        self.found(self.result())

    def _improve(self) -> None:
        """Replace each layer, the dearest first, by cheaper ones or by none, while that holds."""
        at = 0
        while self.best is not None and at < len(self.best):
            self._anchor = self.best
            banned = frozenset({self._dearest(self.best)[at]})
            other = self._cover(frozenset(), HOPE * self._limit, banned)
            cheaper = other is not None and self._cost(other) < self._cost(self.best)
            at = 0 if other is not None and cheaper and self._try(other) else at + 1

    def _explain(self) -> None:
        """Measure each layer's gain; one that turns out not to be needed is dropped."""
        at = 0
        while self.best is not None and at < len(self.best):
            at = 0 if self._try(self.best - {self._dearest(self.best)[at]}) else at + 1

    def _try(self, kept: Kept) -> bool:
        if not self._holds(kept):
            return False
        self._accept(kept)
        return True

    def _accept(self, kept: Kept) -> None:
        self.best = kept
        self.progress.stage(f"search: {len(kept)} of {len(self.layers)} layers in {self.form} hold")

    def _holds(self, kept: Kept) -> bool:
        """Whether the policy holds, on calibration calls and then on the recorded samples.

        Calibration calls on which plain int8 does worse need not reach the policy, but must gain as
        much as the samples have to: what is chosen for the samples must be worth it elsewhere too.
        """
        if max(self._seen(kept), default=0.0) > self._limit and not self._lenient:
            return False
        return max(self._judge(kept), default=0.0) <= self._limit

    def _judge(self, kept: Kept) -> Burden:
        if kept not in self._judged:
            self._judged[kept] = self.judge(kept)
        return self._judged[kept]

    def _known(self, kept: Kept) -> Burden | None:
        """Return what is known of an assignment; nothing is measured."""
        return None if self.bench.known(kept) is None else self._worst(kept)

    def _seen(self, kept: Kept) -> Burden:
        """Measure an assignment on calibration calls, as if samples were at most as hard."""
        measured = self.bench.measure(kept)
        return tuple(np.multiply(measured, self._relative or 1.0).tolist())

    def _worst(self, kept: Kept) -> Burden:
        """Measure an assignment; its burden is the larger one where both are known."""
        seen = self._seen(kept)
        judged = self._judged.get(kept, seen)
        return judged if self._lenient else tuple(map(max, seen, judged))

    def _say(self, text: str) -> None:
        self.note = "; ".join(filter(None, [self.note, text]))

    @property
    def _every(self) -> Kept:
        return frozenset(layer.node for layer in self.layers)

    @property
    def _floats(self) -> Burden:
        return self._worst(self._every)

    @property
    def _limit(self) -> float:
        """The burden that the search allows: the policy's, less the margin."""
        return float(10 ** (-self._margin / 10))

    def _cover(self, kept: Kept, limit: float, banned: Kept = frozenset()) -> Kept | None:
        """Add layers, as cheap as can be, until the prediction holds; None where it never does."""
        excess = np.subtract(self._predict(kept), limit)
        free = [x for x in self.layers if x.node not in kept and x.node not in banned]
        saves = np.array([np.multiply(self._alone[x.node], self._scale()) for x in free])
        costs = np.array([x.cost for x in free])
        found = cover(excess, saves.reshape(len(free), len(excess)), costs)
        return None if found is None else kept | {free[i].node for i in found}

    def _predict(self, kept: Kept) -> Burden:
        """Predict a burden: that of floats, and what the quantized layers add."""
        return tuple(np.add(self._floats, np.multiply(self._sum(kept), self._scale())))

    def _scale(self) -> Burden:
        """Return what makes the sum right for the set that was measured last."""
        parts = zip(self._floats, self._worst(self._anchor), self._sum(self._anchor), strict=True)
        return tuple(max(0.0, at - base) / total if total > 0 else 1.0 for base, at, total in parts)

    def _sum(self, kept: Kept) -> Burden:
        alone = [self._alone[name] for name in sorted(self._every - kept)]
        return tuple(map(sum, zip(*alone, strict=True))) or (0.0,) * len(self._floats)

    def _cost(self, kept: Kept) -> float:
        return sum(layer.cost for layer in self.layers if layer.node in kept)

    def _dearest(self, kept: Kept) -> list[str]:
        some = [layer for layer in self.layers if layer.node in kept]
        return [x.node for x in sorted(some, key=lambda layer: (-layer.cost, layer.node))]

    def _exempt(self, layer: Layer, best: Kept) -> Exempt:
        """Say what a layer of the best set gains: as measured without it, or as predicted."""
        less = best - {layer.node}
        now, without = self._known(best), self._known(less)
        measured = without is not None
        if not measured and self._alone and now is not None:
            now, without = self._predict(best), self._predict(less)
        if not now or not without or not max(now) or not max(without):
            return Exempt(layer, self.form, None, False)
        return Exempt(layer, self.form, 10 * math.log10(max(without) / max(now)), measured)

    def _db(self, found: Burden | None) -> float | None:
        """Return the SQNR of the worst output, from the share of the policy it uses up."""
        if found is None:
            return None
        worst = max(found, default=0.0)
        return self.bench.policy.sqnr_db - 10 * math.log10(worst) if worst else math.inf
