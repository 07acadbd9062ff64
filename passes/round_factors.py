"""Round what enters a product to an 8-bit float; sums and results stay the target's float."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.arithmetic import fp8
from npuc.passes.arithmetic.round_to import DOMAIN, function, function_name
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, constant, drop_if_unused, infer_types, initializer, label
from npuc.passes.qdq.sites import Site, sites
from npuc.passes.round_floats import PRODUCTS
from npuc.profile import IntScheme, Profile
from npuc.program import Refusal

SCHEME = IntScheme(
    weight_dtype="int8", weight_range=(-127, 127), weight_per_channel=True,
    activation_dtype="int8", activation_range=(-127, 127), activation_symmetric=True,
    observer="min-max", percentile=99.999,
    ops=PRODUCTS, per_channel_ops=PRODUCTS,
)  # fmt: skip
"""Which operators have factors that are rounded, and what of them is observed: as for codes, whose
ranges this says nothing else of."""


@dataclass(frozen=True)
class RoundFactors(Pass):
    """x · W  ⇒  r(x) · r(W),  r(v) = 2ᵏ · float8(v / 2ᵏ), saturating

    k is the least power that takes the calibrated range, or max|W| of an output channel, into the
    format's. Products are summed and returned in float32, which `RoundFloats` rounds to what the
    device stores. Biases are no factors.

    Refuses a node: in a control-flow body or function; with a weight that is not a constant; with
    a factor that is not float32; without a calibrated range, or with one that is only zero; named
    in `skip`. Raises `PassError` for NaN or Inf in a weight.
    """

    name: ClassVar[str] = "round-factors"
    exact: ClassVar[bool] = False

    ranges: Mapping[str, tuple[float, float]] = field(repr=False)
    format: str = "e4m3"
    activations: bool = True
    skip: tuple[str, ...] = ()

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Round in place; `changes` counts the products that now read rounded factors."""
        if self.format not in fp8.FORMATS:
            listed = ", ".join(fp8.FORMATS)
            raise PassError(f"there is no 8-bit float {self.format!r}", hint=f"use one of {listed}")
        infer_types(model)
        found, refused = sites(model, SCHEME, self.skip)
        work = _Factors(model, fp8.FORMATS[self.format])
        refusals, changes = list(refused), 0
        for site in found:
            reason = self._reason(site)
            if reason:
                refusals.append(Refusal(label(site.node), reason))
            else:
                changes += self._round(site, work)
        if work.calls:
            made = function(work.form.inner, model.opset_imports[""])
            model.functions[made.identifier()] = made
            model.opset_imports[DOMAIN] = 1
        return Result(changes, tuple(refusals))

    def _reason(self, site: Site) -> str:
        """Say why a product cannot be rounded."""
        for index in site.activations if self.activations else ():
            value = site.node.inputs[index]
            assert value is not None  # sites() lists only inputs that are there
            name = value.name or ""
            if _is_rounded(value):
                continue
            if name not in self.ranges:
                return f"tensor {name!r} has no calibrated range"
            if not any(self.ranges[name]):
                return f"tensor {name!r} was always zero on the calibration samples"
        return ""

    def _round(self, site: Site, work: "_Factors") -> bool:
        changed = False
        for index in site.activations if self.activations else ():
            value = site.node.inputs[index]
            assert value is not None  # sites() lists only inputs that are there
            if not _is_rounded(value):
                low, high = self.ranges[value.name or ""]
                peak = np.asarray(max(-low, high, 0.0))
                site.node.replace_input_with(index, work.activation(value, peak))
                changed = True
        for index in site.weights:
            changed = work.weight(site, index) or changed
        return changed


@dataclass
class _Factors:
    model: ir.Model
    form: fp8.Float8
    calls: int = 0

    def __post_init__(self) -> None:
        self.names = Names(self.model)
        self.done: dict[ir.Value, ir.Value] = {}

    def activation(
        self, value: ir.Value, peak: "np.ndarray[tuple[()], np.dtype[np.float64]]"
    ) -> ir.Value:
        """Return a tensor rounded, for all products that read it."""
        if value in self.done:
            return self.done[value]
        form, k = self.form, int(fp8.exponent(peak, self.form))
        end = np.ldexp(form.largest, form.shift)
        nodes: list[ir.Node] = []
        small = self._op(nodes, "Mul", value, [2.0 ** (form.shift - k)], value)
        inside = self._op(nodes, "Clip", small, [-end, end], value)
        short = self._op(nodes, function_name(form.inner), inside, [], value, DOMAIN)
        self.done[value] = self._op(nodes, "Mul", short, [2.0 ** (k - form.shift)], value)
        producer = value.producer()
        if producer is None:
            self.model.graph.insert_before(self.model.graph[0], nodes)
        else:
            self.model.graph.insert_after(producer, nodes)
        self.calls += 1
        return self.done[value]

    def weight(self, site: Site, index: int) -> bool:
        """Let a product read its weight rounded; returns whether that differs."""
        value = site.node.inputs[index]
        array = constant(value)
        assert value is not None and array is not None  # sites() lists constants only
        if not np.isfinite(array).all():
            raise PassError(f"weight {value.name!r} of {label(site.node)!r} holds NaN or Inf")
        axes = tuple(i for i in range(array.ndim) if i != site.axis)
        k = fp8.exponent(np.abs(array).max(axis=axes, keepdims=True), self.form)
        new = fp8.rounded(array, k, self.form)
        if np.array_equal(new, array):
            return False
        free = self.names.new(f"{value.name}_{self.form.name}")
        assert site.node.graph is not None  # it was found in one
        site.node.replace_input_with(index, initializer(self.model.graph, free, new))
        drop_if_unused(value)
        return True

    def _op(
        self, nodes: list[ir.Node], op: str, data: ir.Value, numbers: list[float], like: ir.Value,
        domain: str = "",
    ) -> ir.Value:  # fmt: skip
        constants = [
            initializer(
                self.model.graph, self.names.new(f"{like.name}_{op.lower()}_{i}"),
                np.asarray(number, np.float32),
            )
            for i, number in enumerate(numbers)
        ]  # fmt: skip
        free = self.names.new(f"{like.name}_{op.lower()}")
        output = ir.Value(name=free, shape=like.shape, type=like.type)
        nodes.append(ir.Node(domain, op, [data, *constants], outputs=[output], name=free))
        return output


def _is_rounded(value: ir.Value) -> bool:
    """Whether a value is a rounded tensor times its scale already."""
    producer = value.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Mul" else None
    made = None if source is None else source.producer()
    return made is not None and made.domain == DOMAIN
