"""Read the ``[[limits]]`` of a profile."""

from collections.abc import Iterator, Mapping
from typing import Any

from npuc.facts.onnx_kinds import KINDS
from npuc.facts.schema import FLAGS, MEASURES, NAMES, fits, near, one_of
from npuc.profile import Limit

BOUNDS = ("least", "most", "multiple", "among")


def about(raw: Any) -> str:
    """Name a limit by what it bounds, as far as it says so."""
    if not isinstance(raw, dict) or not isinstance(raw.get("ops"), list):
        return ""
    return f", {raw.get('measure', '?')} of {', '.join(map(str, raw['ops']))}"


def faults(raw: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong with a limit whose grade and source are right."""
    ops, measure, when = raw["ops"], raw["measure"], raw.get("when", {})
    if not isinstance(ops, list) or not ops:
        yield f"ops is {ops!r}, not a list of ONNX operators"
        ops = []
    for kind in ops:
        if not one_of(kind, KINDS):
            yield f"{kind!r} is no ONNX operator{near(str(kind), KINDS)}"
    if not isinstance(when, dict):
        yield f"when is {when!r}, not a table of measures"
        when = {}
    for name in (measure, *when):
        if not one_of(name, MEASURES):
            yield f"no such measure: {name!r}{near(str(name), MEASURES)}"
        elif name in when and not fits(name, when[name]):
            yield f"{name} is never {when[name]!r}"
    given = [key for key in BOUNDS if key in raw]
    if not given:
        yield f"bounds nothing: give one of {', '.join(BOUNDS)}"
    if one_of(measure, MEASURES):
        yield from (wrong for key in given if (wrong := _bound(measure, key, raw[key])))
    low, high = raw.get("least"), raw.get("most")
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        yield f"least {low} is above most {high}"


def _bound(measure: str, key: str, value: Any) -> str:
    if key == "among":
        if not isinstance(value, list) or not value:
            return f"among is {value!r}, not a list of values"
        odd = [entry for entry in value if not fits(measure, entry)]
        return f"{measure} is never {odd[0]!r}" if odd else ""
    if measure in FLAGS | NAMES:
        return f"{key} bounds numbers, and {measure} is none: use among"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"{key} is {value!r}, not a number"
    if key == "multiple" and (isinstance(value, float) or value < 1):
        return f"multiple is {value!r}, not a whole number above 0"
    return ""


def limit(raw: Mapping[str, Any]) -> Limit:
    """Return what a table says that has no faults."""
    among = raw.get("among")
    return Limit(
        ops=tuple(raw["ops"]), measure=raw["measure"], grade=raw["grade"], source=raw["source"],
        least=raw.get("least"), most=raw.get("most"), multiple=raw.get("multiple"),
        among=None if among is None else tuple(among), when=dict(raw.get("when", {})),
    )  # fmt: skip


def keys(bound: Limit) -> list[tuple[str, str]]:
    """Return what a limit is about: a profile that states it anew replaces what it inherits."""
    return [(op, bound.measure) for op in bound.ops]
