"""What is measured of one method on one model, and the file it is kept in."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
HELD_OUT_MODELS = ("chirp-keyword", "digits-detector")
"""Models nobody looked at while npuc's quantization was developed."""

Case = tuple[str, str, int]
"""Model, twin (plain or rescaled), calibration samples."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one case. `error` is set where it did not finish, and then nothing else is.

    `sqnr` in dB for each output; `share` operators with 8-bit operands, and all;
    `kernels` what ONNX Runtime's CPU provider runs on integers of them; `seconds` of
    quantization, `prepared` of what goes before it; `peak` and `anonymous` memory in MiB of the
    whole process, `before` what it took when quantization began; one each turn. `agreement` and
    `ties`: see `measures.agreement`.
    """

    model: str
    twin: str
    samples: int
    method: str
    error: str = ""
    sqnr: Sequence[float] = ()
    share: Sequence[int] = ()
    kernels: int | None = None
    metric: float | None = None
    agreement: float | None = None
    ties: int = 0
    seconds: Sequence[float] = ()
    prepared: Sequence[float] = ()
    peak: Sequence[float] = ()
    before: Sequence[float] = ()
    anonymous: Sequence[float] = ()

    @property
    def case(self) -> Case:
        """What it was measured on."""
        return self.model, self.twin, self.samples

    @property
    def worst(self) -> float:
        """SQNR of the worst output in dB; minus infinity where the method did not finish."""
        return min(self.sqnr) if self.sqnr else -float("inf")

    @property
    def wall(self) -> float:
        """Median seconds of quantization."""
        return statistics.median(self.seconds)

    @property
    def memory(self) -> float:
        """Median peak of resident memory in MiB."""
        return statistics.median(self.peak)


@dataclass(frozen=True, slots=True)
class Results:
    """All rows, what is known of the float models by name, and the machine of the last run."""

    rows: tuple[Row, ...] = ()
    models: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)

    def merged(self, other: "Results") -> "Results":
        """Return these results with `other`'s in the place of those of the same case and method."""
        rows = {(*row.case, row.method): row for row in (*self.rows, *other.rows)}
        return Results(
            tuple(rows.values()), {**self.models, **other.models}, other.machine or self.machine
        )

    def cases(self) -> list[Case]:
        """Return what was measured, in order of appearance."""
        return list(dict.fromkeys(row.case for row in self.rows))

    def of(self, case: Case) -> dict[str, Row]:
        """Return a case's rows by method."""
        return {row.method: row for row in self.rows if row.case == case}


def read(path: Path = RESULTS) -> Results:
    """Read stored results; empty where there are none."""
    if not path.exists():
        return Results()
    stored = json.loads(path.read_text())
    return Results(tuple(Row(**row) for row in stored["rows"]), stored["models"], stored["machine"])


def write(results: Results, path: Path = RESULTS) -> None:
    """Store results, one row a line; what a row leaves at its default is left out."""
    lines = ",\n".join("  " + json.dumps(_slim(row)) for row in _sorted(results.rows))
    models = json.dumps(dict(sorted(results.models.items())))
    path.write_text(
        f'{{\n "machine": {json.dumps(results.machine)},\n "models": {models},\n'
        f' "rows": [\n{lines}\n ]\n}}\n'
    )


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (*row.case, row.method))


def _slim(row: Row) -> dict[str, Any]:
    default = asdict(Row("", "", 0, ""))
    return {key: _rounded(value) for key, value in asdict(row).items() if value != default[key]}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
