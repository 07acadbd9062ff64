"""What a gate checks: models, the targets each is held on, what must hold, and what is waived."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from npuc.errors import UsageError
from npuc.facts.schema import near

CONFIDENCE = 0.95
"""How sure a verdict on a rate must be: one in twenty healthy rates at the bar may be refused."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Bars as parity.toml states them; None where it does not.

    `sqnr_db` in dB, `max_noise` in noise floors of the output, `cosine` of -1 to 1, `agreement` a
    share of samples, judged at `confidence`.
    """

    sqnr_db: float | None = None
    max_noise: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    confidence: float | None = None

    def over(self, base: "Hold") -> "Hold":
        """Return these bars, and those of `base` where nothing is stated here."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Hold(**{n: getattr(base, n) if v is None else v for n, v in own.items()})

    @property
    def sure(self) -> float:
        """The confidence, where none is stated the default."""
        return CONFIDENCE if self.confidence is None else self.confidence


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of the user's, or of one of npuc's tasks, that may drop by `max_drop` at most.

    Exactly one of `function` (``module:function``) and `task` is set. `labels` is an .npz file, or
    None where the original's own answers are the truth. `span` bounds a function's score from below
    and above, `corpus` says that it scores all samples together. `settings` are keys of a task.
    """

    name: str
    max_drop: float
    function: str = ""
    task: str = ""
    labels: Path | None = None
    corpus: bool = False
    span: tuple[float, float] = (0.0, 1.0)
    confidence: float = CONFIDENCE
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """One model: where it comes from, how it is compiled, and what its answers are held to.

    `source` is a file or ``zoo:NAME``. `options` are arguments of `npuc.compile`. `outputs` are
    bars for single outputs, which take precedence over `hold`. `depends` are files and folders
    that the user's own code reads.
    """

    name: str
    source: str
    targets: tuple[str, ...]
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    hold: Hold = Hold()
    outputs: Mapping[str, Hold] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    depends: tuple[Path, ...] = ()

    @property
    def path(self) -> Path | None:
        """The model's file, None for one of the zoo."""
        return None if self.source.startswith("zoo:") else Path(self.source)


@dataclass(frozen=True, slots=True)
class Waiver:
    """A failure that is known: it does not count until `expires` has passed.

    `check` is a stage of the report ("artifact"), a demand's key ("agreement",
    "metric.accuracy"), or "compile" where there is no artifact at all. `output` narrows a demand
    to one output.
    """

    model: str
    target: str
    check: str
    reason: str
    expires: date
    output: str = ""

    def expired(self, today: date) -> bool:
        """Whether its last day is over."""
        return today > self.expires


@dataclass(frozen=True, slots=True)
class Pair:
    """One model on one target. `strict` refuses references that are in doubt."""

    of: Model
    target: str
    waivers: tuple[Waiver, ...] = ()
    strict: bool = False

    @property
    def model(self) -> str:
        """The model's name in parity.toml."""
        return self.of.name

    @property
    def name(self) -> str:
        """What it is called everywhere: ``model::target``."""
        return f"{self.of.name}::{self.target}"


@dataclass(frozen=True, slots=True)
class Spec:
    """All that one gate checks; `path` is the parity.toml, None where there is none."""

    path: Path | None
    models: tuple[Model, ...]
    waivers: tuple[Waiver, ...] = ()
    strict: bool = False

    def pairs(self) -> tuple[Pair, ...]:
        """Return every model on each of its targets, in the order of the file."""
        return tuple(self._pairs())

    def only(self, models: Sequence[str] = (), targets: Sequence[str] = ()) -> "Spec":
        """Return the part about some models and targets; none named stands for all.

        Raises `UsageError` for names that are in no pair of this gate.
        """
        faults = [
            f"this gate has no {what} {name!r}{near(name, known)}: it has {', '.join(known)}"
            for what, names, known in (
                ("model", models, [model.name for model in self.models]),
                ("target", targets, list(dict.fromkeys(p.target for p in self.pairs()))),
            )
            for name in names
            if name not in known
        ]
        kept = []
        for model in self.models if not faults else ():
            held = tuple(t for t in model.targets if not targets or t in targets)
            if held and (not models or model.name in models):
                kept.append(replace(model, targets=held))
        if not kept:
            raise UsageError("\n".join(faults) or "these models are on none of these targets")
        return replace(self, models=tuple(kept))

    def _pairs(self) -> Iterator[Pair]:
        for model in self.models:
            for target in model.targets:
                waivers = tuple(
                    w for w in self.waivers if (w.model, w.target) == (model.name, target)
                )
                yield Pair(model, target, waivers, self.strict)
