"""Bound from below how long one call takes on a device, from its peaks: a roofline per layer.

bound(layer) = max(operations / peak, bytes / bandwidth); bound(model) = sum over its layers.

What is counted, and why it stays a bound: two operations per multiply-add and one per element
elsewhere, at the peak rate for the precision; the bytes that must cross the memory interface:
weights, once per call, unless all of them fit on the chip together; a layer's activations only as
far as they exceed on-chip memory. Peaks are vendors' figures and are not reached in practice.
The sum holds for a device that runs one layer after the other.

Source of the model: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from npuc.profile import FLOAT8, Fact, Profile
from npuc.program import Program
from npuc.text import section, size

if TYPE_CHECKING:  # reports hold estimates, and are read where no model is
    import onnx_ir as ir

ASSUMPTIONS = (
    "every rate is the vendor's peak",
    "one layer runs after the other",
    "weights are read once per call, unless all fit on the chip",
    "activations stay on the chip as far as they fit",
    "on-chip memory that is not public holds everything",
    "what stays on the host takes no time",
)

FREE = frozenset(
    {"Constant", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Shape",
     "Squeeze", "Unsqueeze"}
)  # fmt: skip
"""Operators that need not compute or move anything: they rename, or belong to their reader."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator's work. `bytes` cross the memory interface; seconds are lower bounds."""

    name: str
    op: str
    operations: int
    weight_bytes: int
    activation_bytes: int
    bytes: int
    compute_seconds: float | None
    memory_seconds: float | None

    @property
    def seconds(self) -> float | None:
        """The layer's bound, from what is public; None where neither rate is."""
        known = [s for s in (self.compute_seconds, self.memory_seconds) if s is not None]
        return max(known, default=None)

    @property
    def limit(self) -> str:
        """Return what bounds it: "compute", "memory", or "" where nothing is known or needed."""
        if not self.seconds:
            return ""
        return "compute" if self.seconds == self.compute_seconds else "memory"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A model's bound on one device. `facts` are the rates it rests on, `missing` those absent."""

    target: str
    precision: str
    layers: tuple[Layer, ...]
    weight_bytes: int
    peak_activation_bytes: int
    fits: bool | None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    host: int = 0

    @property
    def operations(self) -> int:
        """Operations of one call."""
        return sum(layer.operations for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes that cross the memory interface in one call."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def seconds(self) -> float | None:
        """The bound of one call in seconds, or None where no rate is public."""
        known = [layer.seconds for layer in self.layers if layer.seconds is not None]
        return sum(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """Return the estimate in JSON types."""
        from npuc.jsonable import plain

        return {
            "schema": "npuc-estimate-1",
            "bound_seconds": self.seconds,
            "operations": self.operations,
            "bytes": self.bytes,
            "assumptions": list(ASSUMPTIONS),
            **{n: plain(getattr(self, n)) for n in self.__dataclass_fields__ if n != "layers"},
            "layers": [{**plain(x), "seconds": x.seconds, "limit": x.limit} for x in self.layers],
        }


def estimate(program: Program, profile: Profile, precision: str) -> Estimate:
    """Bound one call of a static float program on a device; nothing is run.

    The operators of the profile's integer scheme count at its integer rate, with one byte per
    value and a weight's own bits; at "fp8" products count at its rate and one byte per value.
    Where weights alone are coded they count their bits, without scales; everything else counts at
    the float rate and width.
    """
    from npuc.partition import on_host
    from npuc.passes.graphs import label

    rates = _Rates.of(profile, precision)
    nodes = [node for node in program.model.graph if node.op_type not in FREE]
    here = [node for node in nodes if not on_host(node)]
    works = [_work(node, rates) for node in here]
    weights = sum(w for _, w, _ in works)
    most = max((a for _, _, a in works), default=0)
    # Where on-chip memory is not public the bound must allow that all of it fits.
    resident = rates.sram is None or weights <= rates.sram
    layers = []
    for node, (operations, weight, activation) in zip(here, works, strict=True):
        spilled = max(0, activation - rates.sram) if rates.sram is not None else 0
        moved = (0 if resident else weight) + spilled
        rate = rates.rate(node)
        layers.append(
            Layer(
                label(node), node.op_type, operations, weight, activation, moved,
                operations / rate if rate else None,
                moved / rates.bandwidth if rates.bandwidth else None,
            )
        )  # fmt: skip
    return Estimate(
        profile.name, precision, tuple(layers), weights, most,
        None if rates.sram is None else resident and weights + most <= rates.sram,
        rates.facts, rates.missing, len(nodes) - len(here),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rates:
    """Operations and bytes per second, on-chip bytes, and the width of values in bytes."""

    coded: float | None
    real: float | None
    bandwidth: float | None
    sram: int | None
    coded_ops: frozenset[str]
    width: int
    data_bits: int
    weight_bits: int
    facts: Mapping[str, Fact]
    missing: tuple[str, ...]

    @classmethod
    def of(cls, profile: Profile, precision: str) -> _Rates:
        from npuc.passes.round_floats import PRODUCTS

        scheme, weights = profile.scheme(precision), profile.weight_scheme(precision)
        short = precision in FLOAT8
        whole = scheme is not None and scheme.whole
        formats = profile.float_formats
        width = 1 if whole else 2 if formats else 4
        names = ["peak.fp16_tflops", "peak.bf16_tflops"] if formats else ["peak.fp32_tflops"]
        real = next((n for n in names if n in profile.facts), names[0])
        used = {"sram": "sram.mb_total", "bandwidth": "memory.gb_per_s"}
        used |= {"coded": "peak.int8_tops"} if scheme is not None else {}
        used |= {"coded": "peak.fp8_tflops"} if short else {}
        used |= {} if whole else {"real": real}
        value = {role: profile.get(name) for role, name in used.items()}
        found = {name: profile.facts[name] for name in used.values() if name in profile.facts}

        def scaled(role: str, unit: float) -> float | None:
            return None if value.get(role) is None else float(value[role]) * unit

        coded, sram = scaled("coded", 1e12), scaled("sram", 1e6)
        real_rate = coded if whole else scaled("real", 1e12)
        ops = PRODUCTS if short or weights is not None else frozenset[str]()
        return cls(
            real_rate if weights is not None else coded,
            real_rate,
            scaled("bandwidth", 1e9),
            None if sram is None else int(sram),
            scheme.ops if scheme is not None else ops,
            width,
            8 if weights is None else 8 * width,
            scheme.weight_bits
            if scheme is not None
            else weights.bits
            if weights is not None
            else 8,
            found,
            tuple(name for name in used.values() if name not in found),
        )

    def rate(self, node: ir.Node) -> float | None:
        return self.coded if node.op_type in self.coded_ops else self.real


def _work(node: ir.Node, rates: _Rates) -> tuple[int, int, int]:
    """Return (operations, bytes of weights, bytes of activations) of one node."""
    from npuc.passes.graphs import constant

    coded = node.op_type in rates.coded_ops
    bits = rates.data_bits if coded else 8 * rates.width
    weights = activations = 0
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype is None:
            continue
        fixed = constant(value) is not None
        if not value.dtype.is_floating_point():
            size = 8 * max(1, int(value.dtype.itemsize))
        else:
            size = rates.weight_bits if coded and fixed else bits
        held = ceil(_elements(value) * size / 8)
        if fixed:
            weights += held
        else:
            activations += held
    return operations(node), weights, activations


def operations(node: ir.Node) -> int:
    """Return a node's operations: two per multiply-add of a product, else one per element."""
    out = _elements(node.outputs[0])
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = node.inputs[1]
        assert weight is not None
        dims = _dims(weight)
        data = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
        return 2 * _elements(data) * prod(dims[1:]) if dims else 0
    if node.op_type in ("MatMul", "Gemm"):
        first = _dims(node.inputs[0])
        transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", False))
        inner = first[-2 if transposed else -1] if first else 0
        return 2 * out * inner
    return sum(map(_elements, node.outputs))


def _elements(value: ir.Value | None) -> int:
    dims = _dims(value)
    return prod(dims) if dims is not None else 0


def _dims(value: ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else 0 for d in value.shape]


def text(found: Estimate, count: int = 8) -> str:
    """Return the estimate for people: the total, the layers that bound it, what it rests on."""
    head = f"{found.target} ({found.precision})"
    total = found.seconds
    if total is None:
        bound = f"no bound: {', '.join(found.missing)} not public"
    else:
        bound = f"bound: at least {spelled(total)} per call"
        bound += f" ({', '.join(found.missing)} not public)" if found.missing else ""
    fits = {None: "not public: taken to fit", True: "fits on the chip", False: "does not fit"}
    rows = [
        ["operations", _count(found.operations)],
        ["weights", f"{size(found.weight_bytes)}"],
        ["activations", f"{size(found.peak_activation_bytes)} at the widest layer"],
        ["on chip", fits[found.fits]],
        ["off chip", f"{size(found.bytes)} per call"],
        *([["on the host", f"{found.host} operators, not counted"]] if found.host else []),
    ]
    blocks = [f"{head}: {bound}", section("Model", rows)]
    if total:
        worst = sorted(found.layers, key=lambda x: -(x.seconds or 0))[:count]
        layers = [
            [x.op, x.name, spelled(x.seconds or 0), f"{(x.seconds or 0) / total:.0%}", x.limit]
            for x in worst
        ]
        blocks.append(section(f"Largest of {len(found.layers)} layers", layers))
    facts = [[key, f"{f.value} [{f.grade}: {f.source}]"] for key, f in found.facts.items()]
    blocks.append(section("Rates", facts))
    blocks.append(section("A lower bound, no prediction. Assumed", [[a] for a in ASSUMPTIONS]))
    return "\n".join(filter(None, blocks)).rstrip()


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def spelled(seconds: float) -> str:
    """Spell a time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
