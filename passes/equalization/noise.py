"""Predict what coding tensors and weights costs, as a function of the channels' factors.

Rounding to steps of Δ adds noise of power Δ²/12, spread evenly and uncorrelated with the signal
(Widrow and Kollár, "Quantization Noise", 2008). A product y_o = Σ_i w_oi·x_i passes the noise of
its input on with Σ_i w_oi² and that of its weights with Σ_i E[x_i²]. All noise is relative to the
signal E[y²], in the units that the factors give, so that it does not depend on the units that
the model happens to come in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """What a tensor held, channel by channel, float64: see `npuc.channel_stats`."""

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

    def noise(self, logs: Array, scheme: IntScheme, per_channel: bool) -> float:
        """Return noise power over signal power."""
        outs, per_group = self.norms.shape
        given = self.data.factors(logs).reshape(-1, per_group)
        reads = np.repeat(given, outs // given.shape[0], axis=0)
        squares = np.repeat(self.data.square.reshape(-1, per_group), outs // given.shape[0], axis=0)
        gives = self.out.factors(logs)[:, None]
        passed = float((self.norms * (reads / gives) ** 2).sum())
        steps = (self.peaks * reads / gives).max(axis=1) / scheme.weight_range[1]
        if not per_channel:
            steps = np.full_like(steps, steps.max())
        own = float((steps**2 / 12 * (squares / reads**2).sum(axis=1)).sum()) * self.positions
        signal = float((self.out.square / gives[:, 0] ** 2).sum())
        return (passed * self.data.power(logs, scheme) + own) / max(signal, TINY)

    def wants(self, logs: Array) -> Array:
        """Return log max_o |w_oi / s_o| per input channel: weights of one size want its inverse."""
        groups = self.data.roots.size // self.norms.shape[1]
        scaled = self.peaks / self.out.factors(logs)[:, None]
        outs = scaled.reshape(groups, -1, self.norms.shape[1])
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(outs.max(axis=1).reshape(-1)))


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
    """Return the axes along which each tensor must be observed for `terms`."""
    wanted: dict[str, tuple[int, ...]] = {}
    for site in sites(model, scheme)[0]:
        found = {value: _axes(value, site, channels) for value in _values(site, scheme)}
        wanted |= {v.name or "": axes for v, axes in found.items() if axes is not None}
    return wanted


def terms(
    model: ir.Model, channels: Channels, scheme: IntScheme, seen: Mapping[str, Statistics]
) -> list[tuple[Term, bool]]:
    """List what coding costs, each with whether its weights have a scale per channel."""
    roots, signs = channels.variables.resolved()
    found: list[tuple[Term, bool]] = []
    plain: dict[str, ir.Value] = {}
    for site in sites(model, scheme)[0]:
        data = [site.node.inputs[i] for i in site.activations]
        out = site.node.outputs[0]

        def held(value: ir.Value | None, site: Site = site) -> Coded | None:
            stats = seen.get("" if value is None else value.name or "")
            if value is None or stats is None:
                return None
            ids = _spread(channels.of(value), value, _axes(value, site, channels) or ())
            if ids.size != stats.square.size:
                return None
            return Coded(roots[ids], signs[ids], stats.low, stats.high, stats.square)

        first, last = held(data[0]) if data else None, held(out)
        if _is_weighted(site) and first is not None and last is not None:
            norms, peaks, positions = _weight(site)
            found.append((Weighted(first, last, norms, peaks, positions), site.axis is not None))
        elif site.node.op_type == "MatMul" and len(data) == 2 and _inner(data, channels):
            second = held(data[1])
            if first is not None and second is not None and last is not None:
                inner = (shape(data[0]) or (1,))[-1]
                found.append((Summed(first, second, float(last.square.mean()), inner), False))
        else:
            plain |= {v.name or "": v for v in data if v is not None}
        if scheme.whole:
            plain |= {v.name or "": v for v in coded(site, scheme) if v not in data}
        for value in plain.values():
            tensor = held(value)
            if tensor is not None and tensor.roots.any():
                found.append((Read(tensor), False))
        plain.clear()
    return found


def _values(site: Site, scheme: IntScheme) -> list[ir.Value]:
    data = [site.node.inputs[i] for i in site.activations]
    results = [v for v in coded(site, scheme) if scheme.whole]
    sources = [source(v, scheme) for v in results if fixed_origin(v, scheme) is None]
    return [v for v in (*data, site.node.outputs[0], *sources) if v is not None]


def _axes(value: ir.Value, site: Site, channels: Channels) -> tuple[int, ...] | None:
    """Return the axes of a tensor's channels: a product's are known, others follow the factors."""
    dims = shape(value)
    if dims is None:
        return None
    if _is_weighted(site) and value in (site.node.inputs[0], site.node.outputs[0]):
        return (1,) if site.node.op_type in ("Conv", "ConvTranspose") else (len(dims) - 1,)
    return tuple(axis for axis, size in enumerate(channels.of(value).shape) if size > 1)


def _spread(ids: Array, value: ir.Value, axes: tuple[int, ...]) -> Array:
    dims = shape(value) or ()
    wanted = [dims[axis] if axis in axes else 1 for axis in range(len(dims))]
    fits = all(size in (1, want) for size, want in zip(ids.shape, wanted, strict=True))
    return np.broadcast_to(ids, wanted).reshape(-1) if fits else np.zeros(0, np.int64)


def _is_weighted(site: Site) -> bool:
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


def _inner(data: list[ir.Value | None], channels: Channels) -> bool:
    """Whether a product of tensors has factors that are summed over."""
    left = channels.of(data[0])
    return left.ndim > 1 and left.shape[-1] > 1
