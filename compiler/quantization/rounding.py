"""Learn the codes of a quantized program's weights: `--rounding gptq` and `adaround`.

Quantization codes each weight as the nearest value there is. What counts is the error of the
product, and there errors of weights that are multiplied by similar numbers can cancel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import UsageError
from npuc.passes.learn_rounding import Learned, LearnRounding
from npuc.passes.qdq.products import Coded, coded
from npuc.profile import IntScheme, Profile
from npuc.program import Program, Refusal, Tensors
from npuc.progress import Progress, Silent
from npuc.quantization.adaround import adaround
from npuc.quantization.gptq import Grid, damped, gptq
from npuc.quantization.second_moments import Moments, collect, nbytes

Array = np.ndarray[Any, Any]
METHODS: Mapping[str, Callable[[Array, Array, Grid], Array]] = {"gptq": gptq, "adaround": adaround}
NEAREST = DEFAULT = "nearest"
NAMES = (NEAREST, *METHODS)
"""What `--rounding` takes."""
DEEPEST = 8192
"""Depth above which a weight keeps its nearest codes: its moments alone would take 256 MiB, and
their inverse hours."""
BUDGET = 2**29
"""Bytes of moments that are held at a time; more products than that are done in several goes."""
COARSE = 4
"""Bits up to which weights are learned one level after the other."""
CROSS_DAMPING = 0.05
"""Part of H's mean diagonal that holds W* back at W, in directions that were hardly seen."""


@dataclass(frozen=True)
class _Learning:
    program: Program
    reference: Program
    calls: Sequence[Tensors]
    scheme: IntScheme
    method: str
    stepwise: bool

    def goes(self, weights: Sequence[Coded]) -> Iterator[list[Coded]]:
        """Yield weights that are learned together, as many as `BUDGET` holds the moments of."""
        sums, go, held = 1 + self.stepwise, list[Coded](), 0
        for item in sorted(weights, key=lambda w: w.level * self.stepwise):
            groups, _, depth = item.shape
            need = sums * nbytes(groups, depth)
            if go and (held + need > BUDGET or (self.stepwise and item.level != go[0].level)):
                yield go
                go, held = [], 0
            go, held = [*go, item], held + need
        if go:
            yield go

    def learned(self, go: Sequence[Coded]) -> dict[str, Learned]:
        """Return what the weights of one go become, by the names of their codes."""
        wanted = {read: (w.shape[0], w.shape[2]) for w in go for read in w.reads}
        reference = self.reference if self.stepwise else None
        moments = collect(self.program, self.calls, wanted, reference=reference)
        return {w.codes_name: Learned(self._codes(w, moments), w.own_scales) for w in go}

    def _codes(self, weight: Coded, moments: Mapping[Any, Moments]) -> Array:
        first, *others = (moments[read] for read in weight.reads)
        for other in others:
            first = first.plus(other)
        rows = weight.layout.rows
        low, high = self.scheme.weight_range
        kind = first.total.dtype
        grid = Grid(rows(weight.scales).astype(kind), rows(weight.zeros), low, high)
        wanted = _wanted(rows(weight.weight).astype(kind), first)
        codes = METHODS[self.method](wanted, first.total / first.count, grid)
        return weight.layout.restored(codes, weight.codes)


def learn(
    program: Program,
    reference: Program,
    calls: Sequence[Tensors],
    profile: Profile,
    method: str,
    *,
    stepwise: bool | None = None,
    progress: Progress | None = None,
) -> LearnRounding:
    """Return the pass that gives the quantized program its learned codes, scales as they are.

    `reference` is the float program that `program` was made from; `method` one of `METHODS`.
    Weights of 8 bits are learned at once, from one run over the calls: their inputs hardly change
    by it. With 4 bits and fewer they are `stepwise`: level by level, on what the weights learned
    so far make of the calls, and each level also makes good what went wrong before it: its target
    is not W·x but W·x₀, x₀ being the float program's input. In second moments, that target is
    W* = W + W·(E[x₀ xᵀ] - H)·(H + λI)⁻¹ (the "asymmetric" calibration of Li et al., GPTAQ, 2025).
    It takes two runs over the calls for each level. Nothing is drawn at random.

    The pass also fits programs of the same ranges that leave some nodes in float. `progress`
    counts the goes. What keeps the nearest codes is reported, as the pass's refusals. Raises
    `UsageError` for another method, for no calls, or for a device without integers.
    """
    check(method)
    scheme = profile.int_scheme
    if scheme is None or method not in METHODS:
        why = f"target {profile.name!r} has no integer scheme"
        raise UsageError(why if scheme is None else f"{method!r} is not learned")
    step = scheme.weight_bits <= COARSE if stepwise is None else stepwise
    now = program.clone()
    work = _Learning(now, reference, calls, scheme, method, step)
    weights, refused = coded(now.model, reference.model)
    deep = [w for w in weights if w.shape[2] > DEEPEST]
    refusals = (*refused, *map(_too_deep, deep))
    shown, found = progress or Silent(), dict[str, Learned]()
    goes = list(work.goes([w for w in weights if w.shape[2] <= DEEPEST]))
    for number, go in enumerate(goes):
        new = work.learned(go)
        found |= new
        if step:
            LearnRounding(method, new).apply(now.model, profile)
        shown.advance(number + 1, len(goes))
    return LearnRounding(method, found, refusals)


def check(method: str) -> None:
    """Raise `UsageError` for a rounding that there is not."""
    if method not in NAMES:
        raise UsageError(f"there is no rounding {method!r}; npuc has {', '.join(NAMES)}")


def _too_deep(weight: Coded) -> Refusal:
    return Refusal(
        weight.name, f"its weight sums {weight.shape[2]} products, more than {DEEPEST}: "
        "it keeps the nearest codes",
    )  # fmt: skip


def _wanted(weight: Array, moments: Moments) -> Array:
    """Return the real weight whose product is to be met: W, or W* where there are cross sums."""
    if moments.cross is None:
        return weight
    own, cross = moments.total / moments.count, moments.cross / moments.count
    held = damped(own, CROSS_DAMPING)
    shift = np.linalg.solve(held, np.swapaxes(cross - own, 1, 2))  # (H + λI)⁻¹·(C - H)ᵀ
    return np.asarray(weight + weight @ np.swapaxes(shift, 1, 2))
