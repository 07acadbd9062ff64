"""What a device is, as data: facts with a source and a grade, read from TOML.

Passes see a `Profile` and never a vendor's name. A fact that is not public is absent; what npuc
must choose in its place is graded `A` (assumed), and every report repeats it.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from npuc.errors import NpucError

Grade = Literal["P", "S", "I", "A"]
GRADES: Mapping[str, str] = {
    "P": "vendor's own document or code",
    "S": "secondary source",
    "I": "inferred from primary evidence",
    "A": "assumed by npuc: not public",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One property of a device, with who says so."""

    value: Any
    grade: Grade
    source: str


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A binary float: 1 sign bit, `exponent` bits, `mantissa` explicit bits, IEEE-like specials."""

    exponent: int
    mantissa: int

    @property
    def name(self) -> str:
        """Return the format's short name, for example ``e8m7`` for bfloat16."""
        return f"e{self.exponent}m{self.mantissa}"


@dataclass(frozen=True, slots=True)
class IntScheme:
    """How a device represents tensors in integers. Ranges are inclusive codes."""

    weight_dtype: str
    weight_range: tuple[int, int]
    weight_per_channel: bool
    activation_dtype: str
    activation_range: tuple[int, int]
    activation_symmetric: bool
    observer: str
    percentile: float
    ops: frozenset[str]
    """Operators computed on integer inputs."""
    fixed_scales: Mapping[str, float] = field(default_factory=dict)
    """Operator → the scale its output always has, whatever the calibration saw."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A device as the passes know it."""

    name: str
    title: str
    facts: Mapping[str, Fact]
    sources: Mapping[str, str]

    @classmethod
    def load(cls, name: str, package: str = "npuc.targets") -> "Profile":
        """Read ``profiles/<name>.toml`` from a package; raises `NpucError` listing all faults."""
        text = (resources.files(package) / "profiles" / f"{name}.toml").read_text()
        return cls.parse(text)

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Read a profile from TOML text, reporting every malformed fact at once."""
        data = tomllib.loads(text)
        sources = {str(k): str(v) for k, v in data.get("sources", {}).items()}
        faults = [f"unknown key {k!r}" for k in data if k not in _KEYS]
        facts: dict[str, Fact] = {}
        for key, raw in data.get("facts", {}).items():
            if set(raw) != {"value", "grade", "source"}:
                faults.append(f"{key}: needs exactly value, grade, source; has {sorted(raw)}")
            elif raw["grade"] not in GRADES:
                faults.append(f"{key}: grade {raw['grade']!r} is none of {', '.join(GRADES)}")
            elif raw["source"] not in sources:
                faults.append(f"{key}: source {raw['source']!r} is not listed under [sources]")
            else:
                facts[key] = Fact(raw["value"], raw["grade"], raw["source"])
        if faults:
            raise NpucError(f"profile {data.get('name')!r} is malformed:\n  " + "\n  ".join(faults))
        return cls(data["name"], data["title"], facts, sources)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a fact's value, or `default` where it is not public."""
        fact = self.facts.get(key)
        return default if fact is None else fact.value

    @property
    def assumed(self) -> Mapping[str, Fact]:
        """Facts that no public source states: npuc's assumptions and inferences."""
        return {k: f for k, f in self.facts.items() if f.grade in ("A", "I")}

    @property
    def precisions(self) -> tuple[str, ...]:
        """What `--precision` accepts; the first is the default."""
        return tuple(self.get("precisions", ("float",)))

    @property
    def int_scheme(self) -> IntScheme | None:
        """The integer scheme, where the device has one."""
        if "int8.ops" not in self.facts:
            return None
        low, high = self.get("int8.weight_range")
        alow, ahigh = self.get("int8.activation_range")
        return IntScheme(
            weight_dtype=self.get("int8.weight_dtype", "int8"),
            weight_range=(low, high),
            weight_per_channel=self.get("int8.weight_per_channel"),
            activation_dtype=self.get("int8.activation_dtype", "int8"),
            activation_range=(alow, ahigh),
            activation_symmetric=self.get("int8.activation_symmetric"),
            observer=self.get("int8.observer", "min-max"),
            percentile=self.get("int8.percentile", 99.999),
            ops=frozenset(self.get("int8.ops")),
            fixed_scales=dict(self.get("int8.fixed_scales", {})),
        )

    @property
    def float_formats(self) -> tuple[FloatFormat, ...]:
        """Formats float results are stored in, pessimistic first; empty means float32."""
        return tuple(FloatFormat(e, m) for e, m in self.get("float.formats", ()))

    @property
    def opset_max(self) -> int | None:
        """The highest ONNX opset the device's toolchain accepts, where it takes ONNX."""
        value = self.get("onnx.opset_max")
        return None if value is None else int(value)

    @property
    def static_shapes(self) -> bool:
        """Whether every dimension must be a number before lowering."""
        return bool(self.get("shapes.static", True))


_KEYS = {"name", "title", "sources", "facts"}
