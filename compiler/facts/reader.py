"""Read a profile from TOML, and refuse one that is malformed, with all its faults at once.

::

    name = "dx-h1"                 # the target's name
    title = "DEEPX DX-H1 Quattro"
    inherits = "dx-m1"             # optional: what is not stated here is as there

    [sources]                      # who says so
    docs = "developer.deepx.ai, ..."

    [facts]                        # `npuc.facts.schema` has the keys and what their values are
    "peak.int8_tops" = { value = 100, grade = "S", source = "docs" }
    "memory.gib" = "not public"    # takes back what was inherited

    [[limits]]                     # bounds on operators, see `npuc.profile.Limit`
    ops = ["Conv"]
    measure = "kernel"
    most = 15
    when = { depthwise = false }
    grade = "P"
    source = "docs"

A limit replaces the inherited ones of the same operator and measure; those of other operators stay.
"""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from npuc.errors import NpucError
from npuc.facts.conflicts import conflicts
from npuc.facts.limits import BOUNDS, about, faults, keys, limit
from npuc.facts.schema import fault, near, one_of
from npuc.profile import GRADES, Fact, Limit, Profile

NOT_PUBLIC = "not public"
_KEYS = {"name": str, "title": str, "inherits": str, "sources": dict, "facts": dict, "limits": list}


def read(text: str, load: Callable[[str], Profile] | None = None, expected: str = "") -> Profile:
    """Return the profile; `load` returns the one that it inherits from, `expected` is its name.

    Raises `NpucError`: for text that is not TOML, with the line; else with every fault there is.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what = f"profile {expected!r}" if expected else "the profile"
        raise NpucError(f"{what} is not valid TOML: {error}") from error
    if expected and data.get("name", expected) != expected:
        raise NpucError(f"profile {expected!r} says that its name is {data['name']!r}")
    return _Reader(data, load).profile()


class _Reader:
    """One reading: gathers faults, so that all of them can be shown at once."""

    def __init__(self, data: Mapping[str, Any], load: Callable[[str], Profile] | None) -> None:
        self.faults = list(_shape(data))
        self.data: dict[str, Any] = {
            k: v for k, v in data.items() if isinstance(v, _KEYS.get(k, ()))
        }
        self.base = self._inherited(load)
        self.own: dict[str, str] = dict(self.data.get("sources", {}))
        self.sources = {**(self.base.sources if self.base else {}), **self.own}
        self.orphan = "inherits" in data and self.base is None
        """What was to be inherited is unknown: what depends on it cannot be judged."""
        self.named: set[str] = set()
        """Sources that are cited at all, by right facts or by malformed ones."""

    def profile(self) -> Profile:
        """Return the profile; raises `NpucError` with all faults."""
        facts, stated = self._facts(), self._limits()
        kept = self._kept(stated)
        limits = (*kept, *stated)
        cited = {fact.source for fact in facts.values()} | {each.source for each in limits}
        idle = [key for key in self.own if key not in cited | self.named]
        self.faults += [f"source {key!r} is cited by no fact" for key in idle]
        self.faults += self._reworded(facts, kept)
        if self.faults:
            name, listed = self.data.get("name", "(no name)"), "\n  ".join(self.faults)
            raise NpucError(f"profile {name!r} is malformed:\n  {listed}")
        sources = {key: value for key, value in self.sources.items() if key in cited}
        return Profile(self.data["name"], self.data["title"], facts, sources, limits)

    def _inherited(self, load: Callable[[str], Profile] | None) -> Profile | None:
        if "inherits" not in self.data:
            return None
        name = self.data["inherits"]
        if load is None:
            self.faults.append(f"inherits {name!r}: there is nothing here to load it from")
            return None
        try:
            return load(name)
        except NpucError as error:
            self.faults.append(f"inherits {name!r}: {error.message}")
            return None

    def _facts(self) -> dict[str, Fact]:
        facts = dict(self.base.facts) if self.base else {}
        broken = set()
        for key, raw in self.data.get("facts", {}).items():
            if raw == NOT_PUBLIC:
                if facts.pop(key, None) is None and not self.orphan:
                    self.faults.append(f"{key}: takes back what was not inherited")
            elif wrong := self._said(raw, {"value"}, ()) or fault(key, raw["value"]):
                self.faults.append(f"{key}: {wrong}")
                facts.pop(key, None)
                broken.add(key)
            else:
                facts[key] = Fact(raw["value"], raw["grade"], raw["source"])
        if not self.orphan:
            self.faults += conflicts({key: fact.value for key, fact in facts.items()}, broken)
        return facts

    def _limits(self) -> list[Limit]:
        limits = []
        for number, raw in enumerate(self.data.get("limits", ()), 1):
            wrong = self._said(raw, {"ops", "measure"}, (*BOUNDS, "when"))
            if found := [wrong] if wrong else list(faults(raw)):
                self.faults += [f"limit {number}{about(raw)}: {each}" for each in found]
            else:
                limits.append(limit(raw))
        return limits

    def _kept(self, stated: Iterable[Limit]) -> list[Limit]:
        """Return the inherited limits, for those operators that none of `stated` is about."""
        named = {key for each in stated for key in keys(each)}
        kept = []
        for old in self.base.limits if self.base else ():
            ops = tuple(op for op in old.ops if (op, old.measure) not in named)
            kept += [replace(old, ops=ops)] if ops else []
        return kept

    def _said(self, raw: Any, needed: set[str], allowed: Iterable[str]) -> str:
        """Say what is wrong with a table's keys, its grade or its source."""
        needed = needed | {"grade", "source"}
        if not isinstance(raw, dict):
            return f"needs {', '.join(sorted(needed))}; is {raw!r}"
        self.named |= {raw["source"]} if isinstance(raw.get("source"), str) else set()
        if missing := sorted(needed - set(raw)):
            return f"needs {', '.join(missing)}"
        if extra := sorted(set(raw) - needed - set(allowed)):
            return f"unknown {extra[0]!r}{near(extra[0], needed | set(allowed))}"
        if not one_of(raw["grade"], GRADES):
            return f"grade {raw['grade']!r} is none of {', '.join(GRADES)}"
        if not one_of(raw["source"], self.sources) and not self.orphan:
            return f"source {raw['source']!r} is not listed under [sources]"
        return ""

    def _reworded(self, facts: Mapping[str, Fact], kept: Iterable[Limit]) -> Iterator[str]:
        """Yield sources that are worded anew, while inherited facts or limits still cite them."""
        if self.base is None:
            return
        cited = {fact.source for key, fact in facts.items() if self.base.facts.get(key) is fact}
        for key in sorted((cited | {old.source for old in kept}) & set(self.own)):
            if self.own[key] != self.base.sources[key]:
                yield f"source {key!r} is not what inherited facts cite by that name: rename it"


def _shape(data: Mapping[str, Any]) -> Iterator[str]:
    for key, value in data.items():
        if key not in _KEYS:
            yield f"unknown key {key!r}{near(key, _KEYS)}"
        elif not isinstance(value, _KEYS[key]):
            yield f"{key} is {value!r}, not a {_KEYS[key].__name__}"
    yield from (f"{key} is missing" for key in ("name", "title") if key not in data)
    if isinstance(sources := data.get("sources"), dict):
        for key, value in sources.items():
            if not isinstance(value, str) or not value.strip():
                yield f"source {key!r} is {value!r}, not a text"
