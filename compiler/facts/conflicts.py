"""Facts of one profile that contradict each other."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from npuc.facts.schema import CODES
from npuc.profile import DERIVED, FLOATS

Values = Mapping[str, Any]


def conflicts(values: Values, broken: Collection[str] = ()) -> Iterator[str]:
    """Yield what contradicts what, in words; `values` are facts that are each right alone.

    Checks that need a fact of `broken`, which is malformed, are left out: it is reported already.
    """
    for keys, check in _CHECKS:
        if not set(keys) & set(broken):
            yield from check({key: values[key] for key in keys if key in values})


def _opsets(v: Values) -> Iterator[str]:
    low, high = v.get("onnx.opset_min"), v.get("onnx.opset_max")
    if low is not None and high is not None and low > high:
        yield f"onnx.opset_min {low} is above onnx.opset_max {high}"


def _codes(v: Values) -> Iterator[str]:
    for part in ("int8.weight", "int8.activation", *(f"{name}.weight" for name in DERIVED)):
        dtype, span = v.get(f"{part}_dtype", "int8"), v.get(f"{part}_range")
        if span is None:
            continue
        low, high = CODES[dtype]
        if span[0] < low or span[1] > high:
            yield f"{part}_range {span} is outside {dtype}, [{low}, {high}]"
        symmetric = part.endswith(".weight") or v.get("int8.activation_symmetric")
        if symmetric and span[1] - span[0] < 2:
            yield f"{part}_range {span} has no middle code, which a symmetric scheme needs"


_SCHEME = (
    "int8.ops", "int8.weight_range", "int8.weight_per_channel", "int8.activation_range",
    "int8.activation_symmetric",
)  # fmt: skip


def _scheme(v: Values) -> Iterator[str]:
    missing = [key for key in _SCHEME if key not in v]
    coded = [name for name in v.get("precisions", ()) if name not in FLOATS]
    if coded or len(missing) < len(_SCHEME):
        why = f"precisions has {coded[0]}" if coded else "int8 is described"
        yield from (f"{why}, but {key} is missing" for key in missing)


def _whole(v: Values) -> Iterator[str]:
    if v.get("int8.whole") and v.get("float.formats") and "float" not in v.get("precisions", ()):
        yield "int8.whole says that int8 needs no floats, but float.formats lists some for nothing"


def _per_channel(v: Values) -> Iterator[str]:
    listed = v.get("int8.per_channel_ops")
    if listed and not v.get("int8.weight_per_channel", True):
        yield "int8.per_channel_ops is given, but int8.weight_per_channel is false"
    if listed and (extra := sorted(set(listed) - set(v.get("int8.ops", listed)))):
        yield f"int8.per_channel_ops has {', '.join(extra)}, which int8.ops has not"


def _percentile(v: Values) -> Iterator[str]:
    observer = v.get("int8.observer", "min-max")
    if "int8.percentile" in v and observer != "percentile":
        yield f"int8.percentile is given, but int8.observer is {observer}"


def _formats(v: Values) -> Iterator[str]:
    for exponent, mantissa in v.get("float.formats", ()):
        name, bits = f"float.formats [{exponent}, {mantissa}]", 1 + exponent + mantissa
        if bits > v.get("float.bits", bits):
            yield f"{name} takes {bits} bits, but float.bits is {v['float.bits']}"
        if mantissa > v.get("float.mantissa_max", mantissa):
            yield f"{name} is above float.mantissa_max {v['float.mantissa_max']}"
    if "float.formats" not in v:
        for key in ("float.rounds", "float.subnormals"):
            if key in v:
                yield f"{key} is given, but there are no float.formats to round to"


def _places(v: Values) -> Iterator[str]:
    both = set(v.get("ops.supported", ())) & set(v.get("ops.on_host", ()))
    if both:
        yield f"{', '.join(sorted(both))}: both in ops.supported and in ops.on_host"
    coded = set(v.get("int8.ops", ()))
    if extra := sorted(coded - set(v.get("ops.supported", coded))):
        yield f"int8.ops has {', '.join(extra)}, which ops.supported has not"


def _memory(v: Values) -> Iterator[str]:
    usable, whole = v.get("memory.usable_mib"), v.get("memory.gib")
    if usable is not None and whole is not None and usable > whole * 1024:
        yield f"memory.usable_mib {usable} is more than memory.gib {whole}"


_CHECKS: tuple[tuple[tuple[str, ...], Callable[[Values], Iterator[str]]], ...] = (
    (("onnx.opset_min", "onnx.opset_max"), _opsets),
    (
        (
            "int8.weight_dtype", "int8.weight_range", "int8.activation_dtype",
            "int8.activation_range", "int8.activation_symmetric",
            *(f"{name}.weight_{part}" for name in DERIVED for part in ("dtype", "range")),
        ),
        _codes,
    ),
    (("precisions", *_SCHEME), _scheme),
    (("precisions", "int8.whole", "float.formats"), _whole),
    (("int8.per_channel_ops", "int8.weight_per_channel", "int8.ops"), _per_channel),
    (("int8.percentile", "int8.observer"), _percentile),
    (
        (
            "float.formats", "float.bits", "float.mantissa_max", "float.rounds",
            "float.subnormals",
        ),
        _formats,
    ),
    (("ops.supported", "ops.on_host", "int8.ops"), _places),
    (("memory.usable_mib", "memory.gib"), _memory),
)  # fmt: skip
"""The facts each check reads, and the check."""
