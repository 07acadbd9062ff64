"""What must hold between two answers, and why that much."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from npuc.held import Demand
from npuc.metrics import Difference, sqnr

if TYPE_CHECKING:  # reports hold bars, and are read where no model is
    from npuc.floors import Floor
    from npuc.layers.expected import Cost

NOISE_FACTOR = 8.0
"""Two float32 programs that compute the same function each lie about one noise floor from the
exact answer, on either side of it: a factor 2. The floor is a maximum over few values, and sums in
another order (blocked, fused, unrolled) carry a few times more or less rounding: a factor 4."""

SHARE, APART = 0.25, 2.0
"""What lowering a program with rounded tensors may add, as a share of the error power that rounding
had brought. Sums in another order flip roundings that lie on a tie. Where only codes are rounded
flips are few: a quarter (-6 dB). Where every float result is rounded they multiply, since each
value reads many others: of a transformer's values 0.3 % differ after its first layer and 9 % after
its third (half precision). At the end the two programs round independently of one another, and
independent errors add: twice."""

FLIP = 2.5
"""Rounding is off by at most half a step, a flip moves a value by a whole one: twice the largest
error; and a quarter more, since the largest of a few samples falls short of all values'."""

KEPT = 1.5
"""How much larger the artifact's own error may be than its program's. Flips move an error, they do
not add to it: what is left is how well a few dozen values tell an rms (to some ten percent)."""


OTHER = 64.0
"""Another device's float32 differs by a few times the rounding; TF32, the next shorter format, by
2^13 times, and other weights by more: the middle, on a scale of powers."""

EXCESS = 16.0
"""How many times the error power that its codes should cost an operator may have. Ranges are
measured on a few samples here, calibration saw others: a tensor's scale is up to twice as large
then, its error power four times. And errors are added up as if they were independent: where few
values carry the result (a mean over an image) they hang together, for another factor of four. The
same holds for one tensor's codes, of which an observer of percentiles cuts a few off."""


SHIFTED = 2.0
"""The power of a product's mean error: 1 where codes are not corrected, less where they are, and 4
where a correction goes the wrong way. The middle, on a scale of powers."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Limits for the difference of two answers; `text` is what a table shows, `reason` its why.

    `max_abs` and `rms` hold per output, in the output's unit. `sqnr_db` and `cosine` hold for
    every float output; `equal` is the share of values that must be equal in outputs of integers,
    and `still` names those that may not move at all if they hold integers.
    """

    text: str
    reason: str
    max_abs: Mapping[str, float] = field(default_factory=dict)
    rms: Mapping[str, float] = field(default_factory=dict)
    sqnr_db: float | None = None
    cosine: float | None = None
    equal: float | None = None
    still: frozenset[str] = frozenset()

    def faults(self, differences: Iterable[Difference]) -> tuple[str, ...]:
        """Say for every output by how much it misses the bar; () where all hold."""
        return tuple(f"{d.output}: {why}" for d in differences for why in self._faults(d))

    def _faults(self, found: Difference) -> Iterable[str]:
        if found.fault:
            yield found.fault
            return
        for name, limits, value in (
            ("max abs", self.max_abs, found.max_abs),
            ("rms", self.rms, found.rms),
        ):
            limit = limits.get(found.output)
            if limit is not None and not value <= limit:
                times = value / limit if limit else float("inf")
                yield f"{name} {value:.3g} > {limit:.3g} ({times:.3g} times the bar)"
        if found.integer:
            share = found.agreement if found.agreement is not None else 0.0
            least = 1.0 if found.output in self.still else self.equal
            if least is not None and not share >= least:
                yield f"{share:.3%} of its values are equal < {least:.1%}"
            return
        if self.sqnr_db is not None and not found.sqnr_db >= self.sqnr_db:
            yield f"SQNR {found.sqnr_db:.1f} dB < {self.sqnr_db:.1f} dB"
        if self.cosine is not None and not found.cosine >= self.cosine:
            yield f"cosine {found.cosine:.7g} < {self.cosine:.7g}"


@dataclass(frozen=True, slots=True)
class Policy:
    """The bars of a run. `sqnr_db` and `equal` are for what quantization and rounding may cost.

    `demands` are what the user asks of the artifact's answers beside them.

    The default of 20 dB lets the error have a tenth of the answer's own magnitude. Healthy int8
    networks stay above it; a wrong scale, axis or zero point falls far below.
    """

    sqnr_db: float = 20.0
    equal: float = 0.9
    noise_factor: float = NOISE_FACTOR
    demands: tuple[Demand, ...] = ()

    @property
    def cosine(self) -> float:
        """The cosine that goes with `sqnr_db`, 0.99 at 20 dB.

        An error at a right angle to the answer, at that power p, leaves 1 - p/2: half the room.
        """
        return float(1 - 10 ** (-self.sqnr_db / 10))

    def noise(self, floor: "Mapping[str, Floor]") -> Bar:
        """Return the bar for steps that should change nothing: the original's own rounding."""
        eps = float(np.finfo(np.float32).eps)
        limits = {n: self.noise_factor * max(f.max_abs, eps * f.peak) for n, f in floor.items()}
        return Bar(
            f"{self.noise_factor:g}x noise",
            "the original's distance from its own float64 run, and one float32 rounding at least",
            limits,
            equal=self.equal,
            still=_still(floor),
        )

    def loss(self) -> Bar:
        """Return the bar for what quantization and rounding may cost against the original."""
        return Bar(
            f"SQNR >= {self.sqnr_db:g} dB of original",
            "the policy's limit on what precision may cost",
            sqnr_db=self.sqnr_db,
            cosine=self.cosine,
            equal=self.equal,
        )

    def original(self, here: "Iterable[Difference]") -> Bar:
        """Return the bar for recorded answers against the original's own here.

        `here` is what the exported program differs by from these: rounding of float32 alone, if
        anything is sound.
        """
        eps = float(np.finfo(np.float32).eps)
        limits = {d.output: OTHER * max(d.max_abs, eps * d.peak) for d in here}
        return Bar(
            f"{OTHER:g}x float32's rounding",
            "what was recorded is the original's answer, and in float32",
            limits,
        )

    def coding(self, costs: "Iterable[Cost]") -> tuple[str, ...]:
        """Say which operators' codes cost more than `EXCESS` times what they should; worst first.

        What cannot be told from float32's own rounding is no error.
        """
        least = float(np.finfo(np.float32).eps)
        due = [(c, max(c.expected, least * c.signal)) for c in costs]
        bad = [item for item in due if not item[0].found <= EXCESS * item[1]]
        bad.sort(key=lambda item: -item[0].found / item[1])
        return tuple(
            f"{f'{c.op} {c.node}' if c.op else f'codes of {c.tensor}'}: SQNR "
            f"{sqnr(c.signal, c.found):.1f} dB where {sqnr(c.signal, usual):.1f} dB is due, "
            f"{c.found / usual:.3g} > {EXCESS:g} times the error"
            for c, usual in bad
        )

    def shifts(self, costs: "Iterable[Cost]") -> tuple[str, ...]:
        """Say so where products' answers are shifted more than codes without a correction do."""
        ratios = [c.shift / c.due for c in costs if c.due > 0]
        if not ratios or not (found := float(np.median(ratios))) > SHIFTED:
            return ()
        return (
            f"products' answers are shifted by {found**0.5:.2g} times what their codes do by "
            f"themselves, in the median of {len(ratios)} (at most {SHIFTED**0.5:.2g} is allowed)",
        )

    def lowering(
        self, rounded: Iterable[Difference], floor: "Mapping[str, Floor]", floats: bool = False
    ) -> Bar:
        """Return the bar for lowering a rounded program, given its own distance from the original.

        `floats` says whether it rounds every float result, not only codes. An output that
        rounding moved by less than the noise floor is held to the floor. One that holds integers
        is held to `equal` alone: how far apart two indices are says nothing.
        """
        share = APART if floats else SHARE
        so_far = {d.output: d for d in rounded}
        noise = _of_floats(self.noise(floor).max_abs, so_far)
        worst = {n: max(noise[n], FLIP * so_far[n].max_abs) for n in noise if n in so_far}
        power = {n: max(noise[n], share**0.5 * so_far[n].rms) for n in noise if n in so_far}
        return Bar(
            f"{share**0.5:.2g}x the loss so far",
            "lowering may flip ties of the rounding, no more",
            {**noise, **worst},
            power,
            equal=self.equal,
        )

    def arithmetic(
        self, rounded: Iterable[Difference], floor: "Mapping[str, Floor]", share: float = 0.0
    ) -> Bar:
        """Return the bar for computing a quantized program by a device's own rules.

        They round where the program rounds, independently of it: at most as much again, and one
        code of an output's 256 at least. `share` is the error power that rounding floats adds, as a
        share of the answer's.
        """
        so_far = tuple(rounded)
        noise = _of_floats(self.noise(floor).max_abs, {d.output: d for d in so_far})
        code = {d.output: 2 * d.peak / 255 for d in so_far}
        worst, power = {}, {}
        for d in (d for d in so_far if d.output in noise):
            added = share * _power(d)
            # Two roundings of a code each, evenly spread: its width over the root of 12, twice.
            least = max(noise[d.output], code[d.output] / 6**0.5)
            power[d.output] = max(least, (APART * (d.rms**2 + added)) ** 0.5)
            if not added:
                worst[d.output] = max(noise[d.output], code[d.output], FLIP * d.max_abs)
        return Bar(
            f"{APART**0.5:.2g}x the loss so far",
            "arithmetic rounds as often as the program does, not more",
            worst,
            power,
        )

    def kept(self, rounded: Iterable[Difference], floor: "Mapping[str, Floor]") -> Bar:
        """Return the bar for the artifact's own error, given that of the program it comes from."""
        so_far = {d.output: d for d in rounded}
        noise = _of_floats(self.noise(floor).max_abs, so_far)
        limits = {n: max(noise[n], KEPT * so_far[n].rms) for n in noise if n in so_far}
        return Bar(
            f"{KEPT:g}x its program's error", "lowering adds no error of its own", rms=limits
        )


def _of_floats(limits: Mapping[str, float], found: Mapping[str, Difference]) -> Mapping[str, float]:
    return {n: most for n, most in limits.items() if n not in found or not found[n].integer}


def _power(found: Difference) -> float:
    """Return the mean square of the reference, from its SQNR; the square of its peak for none."""
    known = found.rms > 0 and np.isfinite(found.sqnr_db)
    return float(found.rms**2 * 10 ** (found.sqnr_db / 10)) if known else found.peak**2


def _still(floor: "Mapping[str, Floor]") -> frozenset[str]:
    """Name the outputs that rounding does not move: integers among them have no noise at all."""
    return frozenset(name for name, found in floor.items() if found.max_abs == 0)
