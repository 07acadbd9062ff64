"""Price what a layer costs where it computes in more than 8 bits."""

from collections.abc import Iterable, Mapping
from math import prod

import onnx_ir as ir

from npuc.estimate import Estimate, estimate
from npuc.mixed.outcome import Layer as Layer
from npuc.passes.graphs import constant, infer_types, label
from npuc.passes.qdq.results import absorbed, listed
from npuc.passes.qdq.sites import dequantized
from npuc.profile import IntScheme, Profile
from npuc.program import Program
from npuc.quantization.hosting import without_floats
from npuc.source_lines import line, module, restore

FORMS: Mapping[str, str] = {"e8m7": "bf16", "e5m10": "fp16"}
"""What people call float formats."""


def form(profile: Profile) -> str:
    """Name the float that a device computes in, where it computes no integers."""
    if without_floats(profile):
        return "float32 on the host"
    formats = profile.float_formats
    return FORMS.get(formats[0].name, formats[0].name) if formats else "float32"


def layers(
    floats: Program,
    integers: Program,
    profile: Profile,
    places: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[Layer, ...]:
    """List the layers that an integer program quantizes, with what each costs in float.

    `floats` is the program that `integers` was made of; `places` is what `source_lines.known` says
    of the model before passes.
    """
    scheme = profile.int_scheme
    if scheme is None:
        return ()
    copy = floats.clone()
    infer_types(copy.model)
    restore(copy.model, places or {})
    names = set(quantized(integers.model, scheme))
    nodes = {label(node): node for node in copy.model.graph if node.name in names}
    int8 = estimate(copy, profile, "int8")
    real = int8 if without_floats(profile) else estimate(copy, profile, "float")
    shares, timed = _shares(int8, real)
    operations = {layer.name: layer.operations for layer in int8.layers}
    host = without_floats(profile)
    crossing = {name: _crossing(node) if host else 0 for name, node in nodes.items()}
    whole = max(1, sum(crossing.values()))
    return tuple(
        Layer(
            name, node.op_type, module(node), line(node), operations.get(name, 0),
            shares.get(name, 0.0), timed, crossing[name], crossing[name] / whole,
        )
        for name, node in nodes.items()
    )  # fmt: skip


def quantized(model: ir.Model, scheme: IntScheme) -> Iterable[str]:
    """Name the nodes of an integer program that compute on codes, without what belongs to them."""
    ops, parts = listed(scheme), absorbed(model, scheme)
    for node in model.graph:
        known = node.domain == "" and node.op_type in ops and node not in parts
        if known and node.name and any(map(dequantized, node.inputs)):
            yield node.name


def _crossing(node: ir.Node) -> int:
    """Return the bytes of a node's activations in float32, each way."""
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and constant(v) is None]
    shapes = [v.shape.numpy() for v in values if v.shape is not None and v.shape.is_static()]
    return 4 * sum(map(prod, shapes))


def _shares(int8: Estimate, real: Estimate) -> tuple[dict[str, float], bool]:
    """Return what each layer costs in float, and whether that is time.

    Time needs both peaks: without the float one a layer would seem to cost nothing.
    """
    total = int8.seconds
    unknown = any(name.startswith("peak.") for name in (*int8.missing, *real.missing))
    if not total or unknown or real is int8:  # the host's time is not known
        work = max(1, int8.operations)
        return {layer.name: layer.operations / work for layer in int8.layers}, False
    before = {layer.name: layer.seconds or 0.0 for layer in int8.layers}
    after = {layer.name: layer.seconds or 0.0 for layer in real.layers}
    return {n: max(0.0, after.get(n, s) - s) / total for n, s in before.items()}, True
