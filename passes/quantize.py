"""Insert QuantizeLinear and DequantizeLinear pairs where a device computes in integers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import infer_types, label
from npuc.passes.qdq import codes
from npuc.passes.qdq.editor import Editor
from npuc.passes.qdq.results import results, source
from npuc.passes.qdq.sites import Site, coded, fixed_origin, sites
from npuc.profile import IntScheme, Profile
from npuc.program import Refusal

MASK = -1e3
"""What lies below hides an entry from Softmax: models use -1e4, -1e9 or the least float, and no
score of theirs is that low."""

SPAN = 10.0
"""How far below every score a hidden entry is coded: e to the -10 is less than a hundredth of a
code of Softmax's result."""


@dataclass(frozen=True)
class Quantize(Pass):
    """x → Conv(w, b) → y  ⇒  x → Q → DQ → Conv(DQ(w₈), DQ(b₃₂)) → y

    real = s·(q - z),  q = clip(round(real / s) + z, q_low, q_high), ties to even.
    Activations: one s, z per tensor from its calibrated range, shared by all its readers.
    Weights: z = 0 (the middle for unsigned codes), s = max|w| / q_high per output channel.
    Bias: int32 with s = s_x·s_w; a channel's s_w grows where its bias would not fit 2³⁰.
    All parameters follow the profile's integer scheme; operators it does not list stay in float.
    On a device without floats (`IntScheme.whole`) results are coded as well, the graph's outputs
    among them: after a MatMul's bias and after a clamp of `fused`, which belong to the operator
    before. What only moves values keeps their scale. Operators that stay in float are listed.

    Refuses a node: in a control-flow body or function; with a weight that is not a constant; with
    an input that is not float32; without a calibrated range, or with one that is only zero; whose
    summands differ so much that codes of one cannot show the other (a mask of -10⁹); named in
    `skip`. A bias that cannot be coded per channel stays in float and is reported.
    Raises `PassError` for NaN or Inf in a range or weight, or where no tensor has a range.
    """

    name: ClassVar[str] = "quantize"
    exact: ClassVar[bool] = False

    ranges: Mapping[str, tuple[float, float]] = field(repr=False)
    skip: tuple[str, ...] = ()

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Quantize in place; `changes` counts the operators that now have integer inputs."""
        scheme = profile.int_scheme
        if scheme is None:
            raise PassError(
                f"target {profile.name!r} has no integer scheme", hint="use --precision float"
            )
        _check_types(model, scheme)
        infer_types(model)
        found, refused = sites(model, scheme, self.skip)
        _check_ranges(found, self.ranges, scheme)
        editor = Editor(model, scheme)
        planned: list[Site] = []
        refusals = list(refused)
        for site in found:
            reason = self._plan(site, editor)
            if reason:
                refusals.append(Refusal(label(site.node), reason))
            else:
                planned.append(site)
        editor.plan_weights(planned)
        for site in planned:
            refusals += editor.edit(site)
        for site in planned:
            refusals += self._results(site, editor)
        return Result(len(planned), tuple(refusals))

    def _results(self, site: Site, editor: Editor) -> list[Refusal]:
        """Code what a site computed, for all its readers, where the device has no floats."""
        refusals = []
        for value in tuple(results(site.node, editor.scheme)):
            reason = self._choose(value, editor)
            if reason:
                refusals.append(Refusal(label(site.node), f"its result stays in float: {reason}"))
            else:
                editor.code(value)
        return refusals

    def _plan(self, site: Site, editor: Editor) -> str:
        """Choose the coding of each activation of a site; returns why it cannot be quantized."""
        for index in site.activations:
            value = site.node.inputs[index]
            assert value is not None  # sites() lists only inputs that are there
            if reason := self._choose(value, editor):
                return reason
        return _swamped(site, editor)

    def _choose(self, value: ir.Value, editor: Editor) -> str:
        """Choose the coding of one value; returns why there is none."""
        scheme = editor.scheme
        origin, name = fixed_origin(value, scheme), source(value, scheme).name or ""
        if origin is not None:
            affine = codes.fixed(scheme.fixed_scales[origin], origin, scheme)
        elif name not in self.ranges:
            return f"tensor {name!r} has no calibrated range"
        elif tuple(self.ranges[name]) == (0, 0):
            return f"tensor {name!r} was always zero on the calibration samples"
        else:
            low, high = self.ranges[name]
            if low <= MASK and all(node.op_type == "Softmax" for node in value.consumers()):
                low = self._least_score(value, high) - SPAN
            affine = codes.activation(low, high, scheme)
        editor.affine[value.name or ""] = affine
        return ""

    def _least_score(self, value: ir.Value, high: float) -> float:
        """Return the least of a masked tensor's scores: that of what the mask was put on.

        Where its range is not known, scores are taken to be as far below zero as above it.
        """
        producer = value.producer()
        masked = () if producer is None else producer.inputs
        names = [v.name or "" for v in masked if v is not None]
        known = [self.ranges[name][0] for name in names if name in self.ranges]
        return max((low for low in known if low > MASK), default=-abs(high))


def _swamped(site: Site, editor: Editor) -> str:
    """Say so where all codes of one summand are worth less than half a step of another."""
    names = [v.name or "" for v in (site.node.inputs[i] for i in site.activations) if v is not None]
    if site.node.op_type not in ("Add", "Sub") or not names:
        return ""
    coarse, fine = (f(names, key=lambda n: float(editor.affine[n].scale)) for f in (max, min))
    low, high = editor.scheme.activation_range
    step, span = float(editor.affine[coarse].scale), float(editor.affine[fine].scale) * (high - low)
    if span >= step / 2:
        return ""
    return (
        f"one step of {coarse!r} is {step:.3g}, all codes of {fine!r} are worth {span:.3g}: "
        "their sum is computed in float"
    )


def _check_types(model: ir.Model, scheme: IntScheme) -> None:
    """Raise `PassError` where the model's opset cannot write the scheme's integer types."""
    opset = model.opset_imports.get("", 0)
    wide = {scheme.weight_dtype, scheme.activation_dtype} - {"int8", "uint8"}
    needed = 21 if wide else 13
    if wide - {"int16", "uint16"}:
        raise PassError(f"integer types {sorted(wide)} are not supported")
    if opset < needed:
        kinds = sorted({scheme.weight_dtype, scheme.activation_dtype})
        raise PassError(
            f"QuantizeLinear for {', '.join(kinds)} needs opset {needed}; the model has {opset}",
            hint="export with a higher opset, or raise it before quantizing",
        )


def _check_ranges(
    found: tuple[Site, ...], ranges: Mapping[str, tuple[float, float]], scheme: IntScheme
) -> None:
    names = [
        source(value, scheme).name or ""
        for site in found
        for value in coded(site, scheme)
        if fixed_origin(value, scheme) is None
    ]
    bad = [n for n in dict.fromkeys(names) if n in ranges and not _sound(*ranges[n])]
    if bad:
        shown = ", ".join(f"{n} {ranges[n]}" for n in bad)
        raise PassError(f"ranges that are not finite and ordered: {shown}")
    if names and not any(name in ranges for name in names):
        raise PassError(
            f"none of the {len(set(names))} tensors to quantize has a calibrated range",
            hint="calibrate this very program: ranges belong to tensor names",
        )


def _sound(low: float, high: float) -> bool:
    return math.isfinite(low) and math.isfinite(high) and low <= high
