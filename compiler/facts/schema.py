"""The facts that a profile may state, and what each of them must look like.

A fact that is not in `SCHEMA` is a fault, except under `FREE`: what a vendor tells of its card and
its compiler, which no pass reads. ``variants.<name>.<fact>`` is checked like ``<fact>``: a figure
of a sister device.
"""

import re
from collections.abc import Container, Iterable
from difflib import get_close_matches
from typing import Any

from npuc.facts.kinds import (
    CODE_RANGE,
    COUNT,
    FLAG,
    FORMATS,
    NAMED_FILES,
    OPERATORS,
    PERCENT,
    PINS,
    POSITIVE,
    PYTHON,
    SCALES,
    SHARE,
    TEXT,
    TEXTS,
    TOLERANCE,
    WATTS,
    Kind,
    between,
    is_number,
    named,
    some_of,
)
from npuc.facts.onnx_kinds import KINDS
from npuc.profile import DERIVED, FLOATS

FREE = ("compiler.", "devices.", "hardware.", "thermal.")
"""Prefixes of facts that are not listed one by one."""

FLAGS = frozenset({"depthwise", "integer_scale", "ceil_mode", "constant_weights", "trans_a"})
NAMES = frozenset({"dtype", "mode", "coordinates"})
_NUMBERS = """
kernel kernel_area stride dilation pad output_padding group rank batch channels height width
last_dim axis axis_length reduced_axes k output_channels index_rank weight_abs_sum p alpha beta
inputs
"""
MEASURES = FLAGS | NAMES | frozenset(_NUMBERS.split())
"""What a limit may bound: the names in `npuc.features.MEASURES`, which is too heavy to load here.

`FLAGS` are true or false and `NAMES` are texts: only `among` can bound them.
"""

RULES = (
    "float32-even", "tflite-double", "tflite-single", "two-stage", "int16-even", "fp19-truncate",
    "q16",
)  # fmt: skip
CODES = {"int8": (-128, 127), "uint8": (0, 255)}
_DTYPES = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64"
DTYPES = frozenset(_DTYPES.split())


def near(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" where a known name is close, else nothing."""
    close = get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {close[0]!r}?" if close else ""


def fault(key: str, value: Any) -> str:
    """Say what is wrong with a fact, without its key; "" where nothing is."""
    known = re.sub(r"^variants\.[^.]+\.", "", key)
    kind = SCHEMA.get(known)
    if kind is None:
        # A free fact that is nearly a listed one is a listed one misspelled.
        hint = near(known, SCHEMA)
        if not known.startswith(FREE) or get_close_matches(known, SCHEMA, n=1, cutoff=0.93):
            return f"no such fact{hint}"
        return ""
    if kind.holds(value):
        return ""
    names = [v for v in value if isinstance(v, str)] if isinstance(value, list | dict) else []
    wrong = [n for n in names if kind in (OPERATORS, SCALES) and n not in KINDS]
    if wrong:
        return f"{wrong[0]!r} is no ONNX operator{near(wrong[0], KINDS)}"
    return f"{value!r} is not {kind.words}"


def one_of(value: Any, names: Container[str]) -> bool:
    """Whether a value is a text among `names`; whatever else TOML holds is not."""
    return isinstance(value, str) and value in names


def fits(measure: str, value: Any) -> bool:
    """Whether a value, or each value of a list, is of the sort that a measure has."""
    if isinstance(value, list):
        return bool(value) and all(fits(measure, entry) for entry in value)
    if measure in FLAGS:
        return isinstance(value, bool)
    return isinstance(value, str) if measure in NAMES else is_number(value)


OPSET = between(1, 99)

SCHEMA: dict[str, Kind] = {
    # --- what npuc compiles
    "precisions": some_of(("int8", *FLOATS, *DERIVED)),
    "notes.int8": TEXT,
    "notes.bf16": TEXT,
    "notes.float": TEXT,
    "shapes.static": FLAG,
    "shapes.batch": COUNT,
    "onnx.opset_min": OPSET,
    "onnx.opset_max": OPSET,
    # --- operators
    "ops.supported": OPERATORS,
    "ops.on_host": OPERATORS,
    "ops.rank_max": between(1, 64),
    "ops.dtypes": some_of(DTYPES),
    "ops.layers": TEXTS,
    "ops.complex": FLAG,
    "ops.cumsum_last_dim_multiple": COUNT,
    "align.last_dim": COUNT,
    "align.sdpa": COUNT,
    "align.memory_bytes": COUNT,
    # --- integers
    "int8.weight_dtype": named(CODES),
    "int8.weight_range": CODE_RANGE,
    "int8.weight_per_channel": FLAG,
    "int8.weight_symmetric": FLAG,
    "int8.weight_observer": TEXT,
    "int8.weight_observer_language": TEXT,
    "int8.per_channel_ops": OPERATORS,
    "int8.scale_divisor": COUNT,
    "int8.constant_range": CODE_RANGE,
    "int8.activation_dtype": named(CODES),
    "int8.activation_range": CODE_RANGE,
    "int8.activation_symmetric": FLAG,
    "int8.activation_per_channel": FLAG,
    "int8.observer": named(("min-max", "percentile")),
    "int8.percentile": PERCENT,
    "int8.ops": OPERATORS,
    "int8.fixed_scales": SCALES,
    "int8.whole": FLAG,
    "int8.fused": OPERATORS,
    "int8.requantize": named(RULES),
    "int8.requantize_ties": TEXT,
    "int8.multiplier_bits": between(2, 32),
    "int8.accumulator": TEXT,
    "int8.accumulator_bits": between(16, 64),
    "int8.overflow": named(("wrap", "saturate")),
    "int8.coded_sums": FLAG,
    "int8.elementwise": named(("float", "tflite")),
    "int8.quantize_ties": TEXT,
    "int8.bias": TEXT,
    "int4.weights": FLAG,
    # --- in place of the int8 facts of the same names (`npuc.profile.Profile.at`)
    "notes.w4a8": TEXT,
    "w4a8.weight_dtype": named(CODES),
    "w4a8.weight_range": CODE_RANGE,
    "w4a8.weight_per_channel": FLAG,
    "w4a8.per_channel_ops": OPERATORS,
    "int16.activations": TEXT,
    # --- weights alone in integers (`npuc.profile.Profile.weight_scheme`)
    "notes.w4a16": TEXT,
    "w4a16.group": COUNT,
    "w4a16.symmetric": FLAG,
    "w4a16.wide": SHARE,
    "notes.w8a16": TEXT,
    "w8a16.group": COUNT,
    "w8a16.symmetric": FLAG,
    # --- floats
    "notes.fp8": TEXT,
    "notes.fp8-e5m2": TEXT,
    "float.name": TEXT,
    "float.bits": between(8, 32),
    "float.mantissa_max": between(1, 23),
    "float.formats": FORMATS,
    "float.rounds": named(("results", "operands")),
    "float.rounding": TEXT,
    "float.rounded_after": TEXT,
    "float.ties": TEXT,
    "float.subnormals": named(("kept", "flushed")),
    "float.specials": TEXT,
    "float.accumulator": TEXT,
    "float.bf16": FLAG,
    "float.graph_path": TEXT,
    "float.vendor_tolerance": TOLERANCE,
    "float.vendor_tolerance_bmm": TOLERANCE,
    "fp8.format": TEXT,
    "fp8.formats": TEXTS,
    "fp8.w8a8": FLAG,
    "fp4.mxfp4_weights": FLAG,
    # --- the device
    "peak.int4_tops": POSITIVE,
    "peak.int8_tops": POSITIVE,
    "peak.fp8_tflops": POSITIVE,
    "peak.fp16_tflops": POSITIVE,
    "peak.bf16_tflops": POSITIVE,
    "peak.fp32_tflops": POSITIVE,
    "memory.type": TEXT,
    "memory.gib": POSITIVE,
    "memory.usable_mib": POSITIVE,
    "memory.gb_per_s": POSITIVE,
    "sram.mb_total": POSITIVE,
    "sram.mb_shared": POSITIVE,
    "sram.mb_per_engine": POSITIVE,
    "engines": COUNT,
    "power.w": WATTS,
    "host_link": TEXT,
    # --- its compiler
    "compiler.package": TEXT,
    "compiler.version": TEXT,
    "compiler.public": FLAG,
    "compiler.licence": TEXT,
    "compiler.inputs": TEXTS,
    "compiler.accepts": TEXTS,
    "compiler.artifact": NAMED_FILES,
    "compiler.environment": TEXT,
    "compiler.requirements": PINS,
    "compiler.python": PYTHON,
    "compiler.commands": TEXTS,
    "compiler.debian": TEXTS,
    "compiler.npu": TEXT,
    "compiler.npus": TEXTS,
    "compiler.devices_default": COUNT,
    "compiler.places_host_ops": FLAG,
}
