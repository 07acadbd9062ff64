"""How far apart two answers are, computed in float64."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import ParityError
from npuc.program import Tensors

Array = np.ndarray[Any, Any]

BLOCK = 1 << 16
"""Values that are compared at once: what the cache next to a core holds in float64."""

Settle = Callable[[str, int, Array, Array], Array]
"""(output, position of the call, reference, candidate) → the candidate with ties settled."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of a candidate against the reference, over all samples.

    `max_abs`, `rms` are in the output's own unit; `sqnr_db` is 10·log10(Σref²/Σerr²) and infinite
    where the two are equal; `cosine` is over the flattened output; `agreement` is the share of
    rows whose top choice along the last axis is the same up to ties (None for a last axis of
    one), and for integers and booleans the share of equal values. `fault` is set where no number
    can excuse the difference: another shape, another dtype kind, NaN or Inf on one side.
    """

    output: str
    max_abs: float
    max_rel: float
    rms: float
    peak: float
    sqnr_db: float
    cosine: float
    agreement: float | None
    rows: int
    fault: str = ""
    integer: bool = False


def differences(
    reference: Sequence[Tensors],
    candidate: Sequence[Tensors],
    ties: float | Mapping[str, float] = 0.0,
    settle: Settle | None = None,
) -> tuple[Difference, ...]:
    """Compare two lists of calls output by output, matched by name.

    `ties` is the distance below the reference's top value within which another choice counts as
    the same choice, for all outputs or per output. `settle` does the same for outputs that hold
    indices (npuc.choices). Raises `ParityError` where nothing can be compared or the names differ.
    """
    if not reference or len(reference) != len(candidate):
        raise ParityError(f"nothing to compare: {len(reference)} and {len(candidate)} calls")
    names, others = set(reference[0]), set(candidate[0])
    if not names or names != others:
        raise ParityError(f"outputs differ by name: {sorted(names)} against {sorted(others)}")
    found = []
    for name in reference[0]:
        ref, got = [r[name] for r in reference], [c[name] for c in candidate]
        if settle is not None:
            got = [settle(name, i, a, b) for i, (a, b) in enumerate(zip(ref, got, strict=True))]
        near = ties.get(name, 0.0) if isinstance(ties, Mapping) else ties
        found.append(_one(name, ref, got, near))
    return tuple(found)


def _one(
    name: str, reference: Sequence[Array], candidate: Sequence[Array], ties: float
) -> Difference:
    total = peak = error = worst = relative = dot = power = 0.0
    agree = rows = 0
    integer = reference[0].dtype.kind in "biu"
    for ref, got in _blocks(list(map(_real, reference)), list(map(_real, candidate))):
        if _fault(ref, got):
            pairs = zip(map(_real, reference), map(_real, candidate), strict=True)
            return _broken(name, next(filter(None, (_fault(r, g) for r, g in pairs))))
        a, b = ref.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        finite = np.isfinite(a)
        a, b = a[finite], b[finite]
        gap = _steps(ref, got) if integer else np.abs(a - b)
        total, error = total + float(a @ a), error + float(gap @ gap)
        dot, power = dot + float(a @ b), power + float(b @ b)
        worst = max(worst, float(gap.max(initial=0.0)))
        peak = max(peak, float(np.abs(a).max(initial=0.0)))
        scale = np.maximum(np.abs(a), np.finfo(np.float32).tiny)
        relative = max(relative, float((gap / scale).max(initial=0.0)))
        if integer:
            agree, rows = agree + int((ref == got).sum()), rows + ref.size
        elif has_choice(ref):
            hits, size = _agreement(ref, got, ties)
            agree, rows = agree + hits, rows + size
    count = sum(int(r.size) for r in reference)
    if count == 0:
        return _broken(name, "the output is empty: nothing was compared")
    return Difference(
        output=name,
        max_abs=worst,
        max_rel=relative,
        rms=math.sqrt(error / count),
        peak=peak,
        sqnr_db=sqnr(total, error),
        cosine=1.0 if error == 0 else dot / math.sqrt(total * power) if total * power > 0 else 0.0,
        agreement=agree / rows if rows else None,
        rows=rows,
        integer=integer,
    )


def _blocks(
    reference: Sequence[Array], candidate: Sequence[Array]
) -> Iterator[tuple[Array, Array]]:
    """Yield pairs, small ones of one shape and type joined along their first axis.

    No number depends on it but for the order of sums; thousands of answers of ten values each take
    milliseconds then.
    """

    def kind(pair: tuple[Array, Array]) -> tuple[Any, ...]:
        return tuple((array.shape, array.dtype) for array in pair)

    for (left, right), group in itertools.groupby(zip(reference, candidate, strict=True), kind):
        pairs = list(group)
        (shape, _), size = left, max(1, math.prod(left[0]))
        most = max(1, BLOCK // size) if left[0] == right[0] else 1
        for at in range(0, len(pairs), most):
            part = pairs[at : at + most]
            if len(part) == 1:
                yield part[0]
            else:
                join = np.concatenate if shape else np.stack
                yield join([r for r, _ in part]), join([g for _, g in part])


def sqnr(signal: float, error: float) -> float:
    """Signal to quantization noise ratio in dB from sums of squares; inf where error is 0."""
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


def has_choice(array: Array) -> bool:
    """Whether a top choice along the last axis makes sense: floats, rank ≥ 2, last axis ≥ 2."""
    return array.dtype.kind == "f" and array.ndim >= 2 and array.shape[-1] >= 2


def _real(array: Array) -> Array:
    """View complex numbers as pairs of reals; widen bfloat16, which numpy takes for bytes."""
    if array.dtype.kind == "c":
        array = np.atleast_1d(array)
        return np.concatenate((array.real, array.imag), axis=-1)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _steps(ref: Array, got: Array) -> Array:
    """Return |ref - got| of integers: float64 holds them only up to 2^53."""
    # Numpy's unsigned subtraction wraps around, and so is right for negative values as well.
    ref, got = np.atleast_1d(ref), np.atleast_1d(got)  # numpy warns where single numbers do
    low, high = (f(ref, got).astype(np.uint64) for f in (np.minimum, np.maximum))
    gap: Array = (high - low).astype(np.float64).ravel()
    return gap


def _agreement(ref: Array, got: Array, ties: float) -> tuple[int, int]:
    choice = got.argmax(axis=-1, keepdims=True)
    chosen = np.take_along_axis(ref, choice, axis=-1).astype(np.float64)
    best = ref.max(axis=-1, keepdims=True).astype(np.float64)
    return int((chosen >= best - ties).sum()), int(best.size)


def _fault(ref: Array, got: Array) -> str:
    if ref.shape != got.shape:
        return f"shape {got.shape}, expected {ref.shape}"
    if ref.dtype.kind != got.dtype.kind:
        return f"dtype {got.dtype}, expected {ref.dtype}"
    if ref.dtype.kind != "f":
        return ""
    odd = ~(np.isfinite(ref) & np.isfinite(got))
    same = (ref == got) | (np.isnan(ref) & np.isnan(got))
    if (odd & ~same).any():
        return f"{int((odd & ~same).sum())} values are NaN or Inf on one side only"
    if np.isnan(ref).any():
        return f"{int(np.isnan(ref).sum())} values are NaN in the reference itself"
    return ""


def _broken(name: str, fault: str) -> Difference:
    nan = math.nan
    return Difference(name, nan, nan, nan, nan, nan, nan, None, 0, fault)
