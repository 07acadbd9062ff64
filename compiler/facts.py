"""Read a profile from TOML, and refuse one that is malformed, with all its faults at once.

::

    name = "dx-h1"                 # the target's name
    title = "DEEPX DX-H1 Quattro"
    inherits = "dx-m1"             # optional: what is not stated here is as there

    [sources]                      # who says so
    docs = "developer.deepx.ai, ..."

    [facts]
    "peak.int8_tops" = { value = 100, grade = "S", source = "docs" }
    "memory.gib" = "not public"    # takes back what was inherited

    [[limits]]                     # bounds on operators, see `npuc.profile.Limit`
    ops = ["Conv"]
    measure = "kernel"
    most = 15
    when = { depthwise = false }
    grade = "P"
    source = "docs"
"""

import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from npuc.errors import NpucError
from npuc.profile import GRADES, Fact, Limit, Profile

NOT_PUBLIC = "not public"
_KEYS = {"name", "title", "inherits", "sources", "facts", "limits"}


def read(text: str, load: Callable[[str], Profile] | None = None) -> Profile:
    """Return the profile; `load` returns the one that it inherits from. Raises `NpucError`."""
    data = tomllib.loads(text)
    base = load(data["inherits"]) if "inherits" in data and load is not None else None
    sources = {str(k): str(v) for k, v in data.get("sources", {}).items()}
    faults = [f"unknown key {k!r}" for k in data if k not in _KEYS]
    facts = dict(base.facts) if base else {}
    for key, raw in data.get("facts", {}).items():
        if raw == NOT_PUBLIC:
            if facts.pop(key, None) is None:
                faults.append(f"{key}: takes back what was not inherited")
        elif fault := _fault(raw, {"value", "grade", "source"}, sources):
            faults.append(f"{key}: {fault}")
        else:
            facts[key] = Fact(raw["value"], raw["grade"], raw["source"])
    limits = []
    for raw in data.get("limits", ()):
        what = f"limit of {raw.get('measure')} for {', '.join(raw.get('ops', ['?']))}"
        if fault := _fault(raw, {"ops", "measure", "grade", "source"}, sources, _BOUNDS):
            faults.append(f"{what}: {fault}")
        else:
            limits.append(_limit(raw))
    if faults:
        raise NpucError(f"profile {data.get('name')!r} is malformed:\n  " + "\n  ".join(faults))
    if base is not None:
        cited = {f.source for f in facts.values()}
        inherited = {k: v for k, v in base.sources.items() if k in cited and k not in sources}
        sources = {**inherited, **sources}
        named = {limit_key for limit in limits for limit_key in _keys(limit)}
        limits = [m for m in base.limits if not named & set(_keys(m))] + limits
    return Profile(data["name"], data["title"], facts, sources, tuple(limits))


_BOUNDS = {"least", "most", "multiple", "among", "when"}


def _limit(raw: Mapping[str, Any]) -> Limit:
    among = raw.get("among")
    return Limit(
        ops=tuple(raw["ops"]), measure=raw["measure"], grade=raw["grade"], source=raw["source"],
        least=raw.get("least"), most=raw.get("most"), multiple=raw.get("multiple"),
        among=None if among is None else tuple(among), when=dict(raw.get("when", {})),
    )  # fmt: skip


def _keys(limit: Limit) -> list[tuple[str, str]]:
    """Return what a limit is about: a profile that states it anew replaces what it inherits."""
    return [(op, limit.measure) for op in limit.ops]


def _fault(
    raw: Any,
    needed: set[str],
    sources: Mapping[str, str],
    allowed: set[str] = frozenset(),  # type: ignore[assignment]
) -> str:
    if not isinstance(raw, dict):
        return f"needs {', '.join(sorted(needed))}; is {raw!r}"
    if not needed <= set(raw) or set(raw) - needed - allowed:
        return f"needs exactly {', '.join(sorted(needed))}; has {sorted(raw)}"
    if raw["grade"] not in GRADES:
        return f"grade {raw['grade']!r} is none of {', '.join(GRADES)}"
    if raw["source"] not in sources:
        return f"source {raw['source']!r} is not listed under [sources]"
    return ""
