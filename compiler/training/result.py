"""How well each target would serve a model, as numbers, as text, and for loggers."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npuc.errors import ParityError
from npuc.jsonable import plain
from npuc.layers.measure import Layer
from npuc.metrics import Difference

SCHEMA = "npuc-portability-1"

EXACT_DB = 150.0
"""What loggers get for equal answers: beyond float32's own 144 dB, and a number they can draw."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one target would answer, against the model's own float answers.

    `outputs` has every output's distance. `faults` are the ways they miss the bar. `layers` are
    those where most error is born, the one that costs most first; `finding` says in words what is
    behind that one. `drop` is what the user's metric loses, in its own unit. `host` names the
    kinds of operators that do not run on the device.
    """

    target: str
    precision: str
    outputs: tuple[Difference, ...]
    faults: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    finding: str = ""
    drop: float | None = None
    host: tuple[str, ...] = ()

    @property
    def worst(self) -> Difference:
        """The output that is farthest from the model's own."""
        return min(self.outputs, key=_rank)

    @property
    def sqnr_db(self) -> float:
        """The SQNR of the worst output in dB: inf where equal, NaN where it is no number."""
        return self.worst.sqnr_db

    @property
    def cosine(self) -> float:
        """The lowest cosine of any output; NaN where one is no number."""
        return _least([d.cosine for d in self.outputs])

    @property
    def agreement(self) -> float | None:
        """The lowest share of equal choices of any output that makes one."""
        shares = [d.agreement for d in self.outputs if d.agreement is not None]
        return min(shares, default=None)

    @property
    def below(self) -> bool:
        """Whether an output misses the bar."""
        return bool(self.faults)


@dataclass(frozen=True, slots=True)
class Portability:
    """A model's portability, one row per target, at the weights as they were.

    `samples` and `calibration` count the calls that it was judged and calibrated on, `seconds` is
    what it took, and `bar` is what every output was held to.
    """

    model: str
    rows: tuple[Row, ...]
    samples: int
    calibration: int
    bar: str
    seconds: float
    notes: tuple[str, ...] = ()

    def __getitem__(self, target: str) -> Row:
        found = {row.target: row for row in self.rows}
        return found[target]

    @property
    def worst(self) -> Row:
        """The target that is farthest from the model; raises `ParityError` without any."""
        if not self.rows:
            raise ParityError("no target could be judged")
        return min(self.rows, key=lambda row: _rank(row.worst))

    @property
    def below(self) -> tuple[Row, ...]:
        """The targets whose answers miss the bar."""
        return tuple(row for row in self.rows if row.below)

    @property
    def passed(self) -> bool:
        """Whether there are targets, and none misses the bar."""
        return bool(self.rows) and not self.below

    def scalars(self, prefix: str = "npuc") -> dict[str, float]:
        """Return numbers for a logger: ``npuc/atom/sqnr_db``, ``…/cosine``, ``…/agreement``,
        ``…/metric_drop``. Equal answers have `EXACT_DB`; what is no number is NaN.
        """
        found: dict[str, float] = {}
        for row in self.rows:
            numbers = {
                "sqnr_db": min(row.sqnr_db, EXACT_DB) if row.sqnr_db == row.sqnr_db else math.nan,
                "cosine": row.cosine,
                "agreement": row.agreement,
                "metric_drop": row.drop,
            }
            found |= {f"{prefix}/{row.target}/{k}": v for k, v in numbers.items() if v is not None}
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all of it in JSON types (`SCHEMA`)."""
        rows = [
            {
                **{name: getattr(row, name) for name in Row.__dataclass_fields__},
                "sqnr_db": row.sqnr_db, "cosine": row.cosine, "agreement": row.agreement,
                "output": row.worst.output, "below": row.below,
            }
            for row in self.rows
        ]  # fmt: skip
        own = {n: getattr(self, n) for n in self.__dataclass_fields__ if n != "rows"}
        found: Mapping[str, Any] = {
            "schema": SCHEMA, "passed": self.passed, **own, "rows": rows,
        }  # fmt: skip
        made: dict[str, Any] = plain(found)
        return made

    def table(self) -> str:
        """Return a line per target, and what is behind each one below the bar."""
        cells = [_HEADER, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if at in _NUMBERS else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        for row in self.below:
            said = [f"{row.target}: {fault}" for fault in row.faults]
            said += textwrap.wrap(f"{row.target}: {row.finding}", 100, subsequent_indent="  ")
            lines += said if row.finding else said[:-1]
        lines += [line for note in self.notes for line in textwrap.wrap(f"note: {note}", 100)]
        return "\n".join(lines)


_HEADER = ("target", "precision", "SQNR dB", "cosine", "agree", "drop", "bar", "costs most")
_NUMBERS = range(2, 6)


def _cells(row: Row) -> tuple[str, ...]:
    share, drop, sqnr = row.agreement, row.drop, row.sqnr_db
    layer = row.layers[0] if row.layers else None
    return (
        row.target,
        row.precision,
        "exact" if sqnr == math.inf else f"{sqnr:.1f}",
        f"{row.cosine:.5f}",
        "-" if share is None else f"{share:.1%}",
        "-" if drop is None else f"{drop:.4g}",
        "BELOW" if row.below else "ok",
        "-" if layer is None else layer.module or layer.node or layer.tensor,
    )  # fmt: skip


def _rank(found: Difference) -> float:
    """Order outputs, the worst first: what is no number is worse than any, integers by share."""
    if found.integer and not found.fault:
        return math.inf if found.agreement == 1 else found.sqnr_db
    return -math.inf if math.isnan(found.sqnr_db) else found.sqnr_db


def _least(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else min(values, default=math.nan)
