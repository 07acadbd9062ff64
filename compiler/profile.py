"""What a device is, as data: facts with a source and a grade, read from TOML.

Passes see a `Profile` and never a vendor's name. A fact that is not public is absent; what npuc
must choose in its place is graded `A` (assumed), and every report repeats it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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

DERIVED: Mapping[str, Mapping[str, Any]] = {
    # Symmetric four bits: -8 has no counterpart. Stored as int8, so that every runner takes them.
    "w4a8": {"weight_dtype": "int8", "weight_range": (-7, 7)},
}
"""Precision → the ``int8.*`` facts that differ at it, as npuc assumes them.

A profile that knows better states ``<precision>.<fact>`` instead (see `Profile.at`).
"""

WEIGHTS: Mapping[str, int] = {"w4a16": 4, "w8a16": 8}
"""Precision → the bits of its weights, which alone are coded: it computes in the target's float."""

FLOAT8: Mapping[str, str] = {"fp8": "e4m3", "fp8-e5m2": "e5m2"}
"""Precision → the 8-bit float that the factors of products are rounded to."""

SHORT: Mapping[str, Mapping[str, Any]] = {
    "bf16": {"formats": [[8, 7]], "rounds": "operands"},
}
"""Precision → the ``float.*`` facts that hold at it: which short float the factors of products are
rounded to. Sums and everything else stay float32."""

UNCODED = ("float", *SHORT)
"""Precisions at which nothing is coded or scaled: floats are rounded, if anything is."""

FLOATS = (*UNCODED, *WEIGHTS, *FLOAT8)
"""Precisions without an integer scheme."""


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
class Limit:
    """A bound on what a device takes: `measure` of every node of `ops` must lie within it.

    `measure` and the keys of `when` are what `npuc.features` measures of a node. The limit holds
    where all of `when` do. `least`, `most` and `multiple` are inclusive numbers; `among` lists the
    only values there may be.
    """

    ops: tuple[str, ...]
    measure: str
    grade: Grade
    source: str
    least: float | None = None
    most: float | None = None
    multiple: int | None = None
    among: tuple[Any, ...] | None = None
    when: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IntScheme:
    """How a device represents tensors in integers. Ranges are inclusive codes.

    `requantize` names the rule by which an accumulator becomes codes (see
    `npuc.passes.arithmetic.requantize`); `accumulator_bits` and `overflow` ("wrap" or "saturate")
    say what it is summed in. `whole` is true where int8 programs have no floats: the results of
    `ops` are codes too, the graph's outputs among them. `fused` are the operators that
    clamp a producer's result before it is coded.
    """

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
    per_channel_ops: frozenset[str] = frozenset()
    """Operators whose weights have a scale per output channel, where `weight_per_channel`."""
    whole: bool = False
    fused: frozenset[str] = frozenset()
    requantize: str = "float32-even"
    accumulator_bits: int = 32
    overflow: str = "wrap"
    constant_range: tuple[int, int] | None = None
    """Codes of constants that are no weights, such as a summand; None: those of weights."""
    elementwise: str = "float"
    """Arithmetic of Add, Mul, pooling and Softmax on codes: "float" (computed in float32 and
    coded) or "tflite" (the reference kernels' integer rules)."""
    coded_sums: bool = False
    """Whether convolutions that end with a sum of images read the codes of its other summand,
    where `ops` has no Add (`npuc.passes.qdq.sums`)."""

    @property
    def weight_bits(self) -> int:
        """Bits that a weight's code takes on the device; its dtype here may be wider."""
        low, high = self.weight_range
        return (high - low).bit_length()


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """Weights in integer codes, dequantized where they are read; everything else stays a float.

    `group` values along a weight's input axis share a scale, 0 for all of them. Up to a part
    `wide` of all weights takes 8 bits: those that lose the most for their size.
    """

    bits: int
    group: int
    symmetric: bool
    wide: float = 0.0

    def size(self, depth: int) -> int:
        """Return how many values share a scale, of an input axis `depth` long."""
        return min(self.group, depth) if self.group else depth


@dataclass(frozen=True, slots=True)
class Profile:
    """A device as the passes know it."""

    name: str
    title: str
    facts: Mapping[str, Fact]
    sources: Mapping[str, str]
    limits: tuple[Limit, ...] = ()

    @classmethod
    def load(
        cls, name: str, package: str = "npuc.targets", heirs: tuple[str, ...] = ()
    ) -> "Profile":
        """Read ``profiles/<name>.toml`` from a package; raises `NpucError` listing all faults.

        `heirs` are the profiles that are being read because they inherit from this one.
        """
        path = resources.files(package) / "profiles" / f"{name}.toml"
        chain = (*heirs, name)
        if name in heirs:
            raise NpucError(f"profiles inherit in a circle: {' from '.join(chain)}")
        if not path.is_file():
            raise NpucError(f"there is no profile {name!r} in {package}/profiles")
        return cls.parse(path.read_text("utf-8"), lambda base: cls.load(base, package, chain), name)

    @classmethod
    def parse(
        cls, text: str, load: "Callable[[str], Profile] | None" = None, name: str = ""
    ) -> "Profile":
        """Read a profile from TOML text (`npuc.facts` says how); raises `NpucError`.

        `name` is what the profile must be called, where its file already says.
        """
        from npuc import facts

        read: Any = facts.read  # type checkers may see this very file under two names
        profile: Profile = read(text, load, name)
        return profile

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

    def at(self, precision: str) -> "Profile":
        """Return the same device as it is at a precision; raises `NpucError` for one unknown.

        At "int8" and at `FLOATS` that is this profile, at `SHORT` with other ``float.*`` facts:
        they are what the precision means. At a precision of `DERIVED` the facts that
        differ stand in place of the ``int8.*`` ones, so that whatever follows reads `int_scheme`
        (and any fact) as always, and need not know the precision's name. What the profile states
        as ``<precision>.<fact>`` takes the place of ``int8.<fact>`` with its grade and source;
        the rest of `DERIVED` is npuc's assumption, graded A.

        A new precision takes: a row in `DERIVED`, its ``<precision>.*`` facts in
        `npuc.facts.schema`, its name in the ``precisions`` of the profiles that have it, and, for
        what `IntScheme` cannot say yet, a field there that is read from an ``int8.*`` fact.
        """
        if precision in SHORT:
            chosen = {f"float.{k}": Fact(v, "P", "npuc") for k, v in SHORT[precision].items()}
            return replace(self, facts={**self.facts, **chosen})
        if precision == "int8" or precision in FLOATS:
            return self
        if precision not in DERIVED:
            listed = ", ".join(("int8", *FLOATS, *DERIVED))
            raise NpucError(f"there is no precision {precision!r}; npuc has {listed}")
        assumed = {f"int8.{k}": Fact(v, "A", "npuc") for k, v in DERIVED[precision].items()}
        start = f"{precision}."
        stated = {
            f"int8.{key.removeprefix(start)}": fact
            for key, fact in self.facts.items()
            if key.startswith(start)
        }
        # Four bits are for what is multiplied and summed: other constants keep their eight.
        kept = self.facts.get("int8.constant_range", self.facts.get("int8.weight_range"))
        others = {} if kept is None else {"int8.constant_range": kept}
        return replace(self, facts={**self.facts, **others, **assumed, **stated})

    def scheme(self, precision: str) -> IntScheme | None:
        """Return the integer scheme of a precision; None where it computes in floats alone."""
        return None if precision in FLOATS else self.at(precision).int_scheme

    def weight_scheme(self, precision: str) -> WeightScheme | None:
        """Return how weights are coded at a precision of `WEIGHTS`; None at any other."""
        if precision not in WEIGHTS:
            return None
        return WeightScheme(
            WEIGHTS[precision],
            int(self.get(f"{precision}.group", 0)),
            bool(self.get(f"{precision}.symmetric", True)),
            float(self.get(f"{precision}.wide", 0.0)),
        )

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
            per_channel_ops=frozenset(self.get("int8.per_channel_ops", self.get("int8.ops"))),
            whole=bool(self.get("int8.whole", False)),
            fused=frozenset(self.get("int8.fused", ())),
            requantize=self.get("int8.requantize", "float32-even"),
            accumulator_bits=int(self.get("int8.accumulator_bits", 32)),
            overflow=self.get("int8.overflow", "wrap"),
            constant_range=_pair(self.get("int8.constant_range")),
            elementwise=self.get("int8.elementwise", "float"),
            coded_sums=bool(self.get("int8.coded_sums", False)),
        )

    @property
    def float_formats(self) -> tuple[FloatFormat, ...]:
        """Formats float results are stored in, pessimistic first; empty means float32."""
        return tuple(FloatFormat(e, m) for e, m in self.get("float.formats", ()))

    @property
    def rounds_operands_only(self) -> bool:
        """Whether floats are rounded where they enter a matrix unit, and results stay float32."""
        return bool(self.get("float.rounds", "results") == "operands")

    @property
    def supported(self) -> frozenset[str] | None:
        """Operators the device runs itself, or None where the list is not public."""
        listed = self.get("ops.supported")
        return None if listed is None else frozenset(listed)

    @property
    def opset_max(self) -> int | None:
        """The highest ONNX opset the device's toolchain accepts, where it takes ONNX."""
        value = self.get("onnx.opset_max")
        return None if value is None else int(value)

    @property
    def static_shapes(self) -> bool:
        """Whether every dimension must be a number before lowering."""
        return bool(self.get("shapes.static", True))


def _pair(value: Any) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))
