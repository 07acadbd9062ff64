"""Predict what coding tensors and weights costs, as a function of the channels' factors.

Rounding to steps of Δ adds noise of power Δ²/12, spread evenly and uncorrelated with the signal
(Widrow and Kollár, "Quantization Noise", 2008). A product y_o = Σ_i w_oi·x_i passes the noise of
its input on with Σ_i w_oi² and that of its weights with Σ_i E[x_i²]. All noise is relative to the
signal E[y²], in the units that the factors give, so that it does not depend on the units that
the model happens to come in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from npuc.passes.equalization.channels import Channels, shape
from npuc.passes.graphs import constant
from npuc.passes.qdq.results import source
from npuc.passes.qdq.sites import Site, coded, fixed_origin, sites
from npuc.profile import IntScheme

Array = np.ndarray[Any, Any]
TINY = 1e-30


class Statistics(Protocol):
    """What a tensor held, channel by channel, float64: see `npuc.quantization.channel_stats`."""

    @property
    def low(self) -> Array: ...
    @property
    def high(self) -> Array: ...
    @property
    def square(self) -> Array: ...


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor that is coded: the factor number of each channel, with sign, and what it held."""

    roots: Array
    signs: Array
    low: Array
    high: Array
    square: Array

    def factors(self, logs: Array) -> Array:
        """Return s per channel."""
        return np.asarray(np.exp(logs[self.roots] * self.signs))

    def power(self, logs: Array, scheme: IntScheme) -> float:
        """Return Δ²/12 of the tensor divided by its factors."""
        scale = self.factors(logs)
        low = min(float((self.low / scale).min(initial=0.0)), 0.0)
        high = max(float((self.high / scale).max(initial=0.0)), 0.0)
        bottom, top = scheme.activation_range
        if scheme.activation_symmetric:
            low, high = -max(-low, high), max(-low, high)
        return ((high - low) / (top - bottom)) ** 2 / 12


@dataclass(frozen=True, slots=True)
class Weighted:
    """A product with constant weights. `norms` and `peaks` are Σ w² and max|w| over positions,
    (outputs, inputs of a group); `positions` is their number."""

    data: Coded
    out: Coded
    norms: Array
    peaks: Array
    positions: int
    _kept: dict[bytes, tuple[Array, Array]] = field(default_factory=dict, compare=False, repr=False)

    def noise(self, logs: Array, scheme: IntScheme, per_channel: bool) -> float:
        """Return noise power over signal power."""
        given = self._split(self.data.factors(logs))
        gives = self.out.factors(logs)
        rows, peaks = self._read(given)
        steps = peaks / gives / scheme.weight_range[1]
        if not per_channel:
            steps = np.full_like(steps, steps.max())
        power = (self._split(self.data.square) / given**2).sum(axis=1)
        own = float((steps.reshape(len(given), -1) ** 2 / 12 * power[:, None]).sum())
        passed = float((rows / gives**2).sum()) * self.data.power(logs, scheme)
        signal = float((self.out.square / gives**2).sum())
        return (passed + own * self.positions) / max(signal, TINY)

    def _read(self, given: Array) -> tuple[Array, Array]:
        """Return Σ w² and max|w| of each output's weights, for factors of what they read.

        Those of the last factors are kept: what is chosen next is often those of the result.
        """
        key = given.tobytes()
        if key not in self._kept:
            rows = np.einsum("goi,gi->go", self._grouped(self.norms), given**2).reshape(-1)
            peaks = (self._grouped(self.peaks) * given[:, None]).max(axis=2).reshape(-1)
            self._kept.clear()
            self._kept[key] = rows, peaks
        return self._kept[key]

    def wants(self, logs: Array) -> Array:
        """Return log max_o |w_oi / s_o| per input channel: weights of one size want its inverse."""
        scaled = self._grouped(self.peaks / self.out.factors(logs)[:, None])
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(scaled.max(axis=1).reshape(-1)))

    def _split(self, channels: Array) -> Array:
        return channels.reshape(-1, self.norms.shape[1])

    def _grouped(self, weight: Array) -> Array:
        """Return [outputs, inputs of a group] as [groups, outputs of a group, inputs of it]."""
        groups = self.data.roots.size // weight.shape[1]
        return weight.reshape(groups, -1, weight.shape[1])


@dataclass(frozen=True, slots=True)
class Summed:
    """A product of two tensors; the one's noise is weighted with the other's power."""

    left: Coded
    right: Coded
    signal: float
    inner: int

    def noise(self, logs: Array, scheme: IntScheme, per_channel: bool) -> float:
        """Return noise power over signal power, where both sides' factors are summed over."""
        left, right = (side.square / side.factors(logs) ** 2 for side in (self.left, self.right))
        one, other = (side.power(logs, scheme) for side in (self.left, self.right))
        passed = one * float(right.mean()) + other * float(left.mean())
        return self.inner * passed / max(self.signal, TINY)


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor that is coded for an operator of another kind: each channel matters alike."""

    data: Coded

    def noise(self, logs: Array, scheme: IntScheme, per_channel: bool) -> float:
        """Return the mean over channels of noise power over signal power."""
        signal = self.data.square / self.data.factors(logs) ** 2
        some = signal > signal.max(initial=0.0) * 1e-6  # a silent channel has nothing to lose
        ratio = 1 / np.maximum(signal[some], TINY)
        return self.data.power(logs, scheme) * float(ratio.mean()) if some.any() else 0.0


Term = Weighted | Summed | Read


def axes_of(model: ir.Model, channels: Channels, scheme: IntScheme) -> dict[str, tuple[int, ...]]:
    """Return the axes along which each tensor must be observed for `terms`.

    Those of a product with weights are known; others are where factors differ.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    products: dict[str, set[tuple[int, ...]]] = {}
    for site in sites(model, scheme)[0]:
        for value in _values(site, scheme):
            dims, name = shape(value), value.name or ""
            if dims is None:
                continue
            if is_weighted(site) and value in (site.node.inputs[0], site.node.outputs[0]):
                conv = site.node.op_type in ("Conv", "ConvTranspose")
                products.setdefault(name, set()).add((1,) if conv else (len(dims) - 1,))
            elif value in channels.ids:
                ids = channels.of(value)
                wanted[name] = tuple(axis for axis, size in enumerate(ids.shape) if size > 1)
            elif value is site.node.outputs[0] and site.node.op_type == "MatMul":
                wanted[name] = ()
    for name, every in products.items():
        wanted.pop(name, None)
        if len(every) == 1:  # one that is read both ways has no channels to speak of
            wanted[name] = next(iter(every))
    return wanted


def terms(
    model: ir.Model, channels: Channels, scheme: IntScheme, seen: Mapping[str, Statistics]
) -> list[tuple[Term, bool]]:
    """List what coding costs, each with whether its weights have a scale per channel."""
    roots, signs = channels.variables.resolved()
    axes = axes_of(model, channels, scheme)

    def held(value: ir.Value) -> Coded | None:
        name = value.name or ""
        if name not in seen or name not in axes:
            return None
        ids, stats = spread(channels.of(value), value, axes[name]), seen[name]
        if ids.size != stats.square.size:
            return None
        return Coded(roots[ids], signs[ids], stats.low, stats.high, stats.square)

    found: list[tuple[Term, bool]] = []
    priced: set[ir.Value] = set()
    others: list[ir.Value] = []
    for site in sites(model, scheme)[0]:
        data = [v for v in (site.node.inputs[i] for i in site.activations) if v is not None]
        term = _product(site, data, channels, held)
        if term is not None:
            found.append((term, site.axis is not None))
            priced |= set(data)
        others += [v for v in _values(site, scheme) if scheme.whole or v in data]
    for value in dict.fromkeys(others):
        tensor = held(value)
        if value not in priced and tensor is not None and tensor.roots.any():
            found.append((Read(tensor), False))
    return found


def tensors(term: Term) -> tuple[Coded, ...]:
    """Return what a product codes, or a reading operator reads."""
    return (term.left, term.right) if isinstance(term, Summed) else (term.data,)


def _product(
    site: Site, data: list[ir.Value], channels: Channels, held: Callable[[ir.Value], Coded | None]
) -> Term | None:
    known = [tensor for value in data if (tensor := held(value)) is not None]
    out = held(site.node.outputs[0])
    if out is None or len(known) < len(data):
        return None
    if is_weighted(site):
        return Weighted(known[0], out, *_weight(site))
    inner = channels.of(data[0])
    if site.node.op_type == "MatMul" and len(data) == 2 and inner.ndim > 1 and inner.shape[-1] > 1:
        return Summed(known[0], known[1], float(out.square.mean()), (shape(data[0]) or (1,))[-1])
    return None


def _values(site: Site, scheme: IntScheme) -> list[ir.Value]:
    data = [site.node.inputs[i] for i in site.activations]
    results = [source(v, scheme) for v in coded(site, scheme) if scheme.whole]
    results = [v for v in results if fixed_origin(v, scheme) is None]
    return [v for v in (*data, site.node.outputs[0], *results) if v is not None]


def spread(ids: Array, value: ir.Value, axes: tuple[int, ...]) -> Array:
    """Return a tensor's factor numbers channel by channel; empty where they lie along others."""
    dims = shape(value) or ()
    wanted = [dims[axis] if axis in axes else 1 for axis in range(len(dims))]
    fits = all(size in (1, want) for size, want in zip(ids.shape, wanted, strict=True))
    return np.broadcast_to(ids, wanted).reshape(-1) if fits else np.zeros(0, np.int64)


def is_weighted(site: Site) -> bool:
    """Whether a site multiplies what it reads with one constant matrix or kernel."""
    product = site.node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    if not product or 1 not in site.weights or 0 not in site.activations:
        return False
    weight = constant(site.node.inputs[1])
    return weight is not None and (site.node.op_type != "MatMul" or weight.ndim == 2)


def _weight(site: Site) -> tuple[Array, Array, int]:
    """Return Σ w² and max|w| as (outputs, inputs of a group), and the positions summed over."""
    node = site.node
    weight = constant(node.inputs[1])
    assert weight is not None
    array = weight.astype(np.float64)
    if node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)
    ):
        array = array.T
    if node.op_type == "ConvTranspose":
        groups = node.attributes.get_int("group", 1)
        split = array.reshape(groups, array.shape[0] // groups, *array.shape[1:])
        array = np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *array.shape[2:])
    flat = array.reshape(*array.shape[:2], -1)
    return (flat**2).sum(axis=2), np.abs(flat).max(axis=2), flat.shape[2]
