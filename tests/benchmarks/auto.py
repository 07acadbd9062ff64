"""Compile with --precision auto for policies that plain int8 fails, and print what it took.

    python tests/benchmarks/auto.py [MODEL:TARGET…] [--budget 5m]

The policy is what plain int8 reaches plus `MORE` dB, so that plain int8 fails by as much whatever
it reaches. The table says which share of the layers and of their operations is above 8 bits, how
many programs the search ran, and how long. Exit code 1 where fewer than `MODELS` cases (or all,
where fewer are asked for) meet their policy with less than `SHARE` of the operations above 8 bits.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npuc import pipeline
from npuc.mixed.outcome import Mixed
from npuc.options import seconds
from npuc.pipeline import Compiled
from npuc.policy import Policy
from npuc.text import columns

CASES = (
    "digits-resnet:cpu", "text-gpt:cpu", "digits-embed:cpu", "digits-unet:cpu",
    "digits-vit:atom", "text-bert:atom", "digits-mobilenet:rk3588", "digits-lstm:rngd",
    "digits-detector:dx-m1",
)  # fmt: skip

MORE = 2.5
"""dB above plain int8: its noise power must fall by almost a half."""

SHARE, MODELS = 0.2, 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model on one target: the SQNR of both artifacts in dB, and what the search found."""

    model: str
    target: str
    policy: float
    plain: float
    plain_passed: bool
    auto: float
    passed: bool
    mixed: Mixed

    @property
    def good(self) -> bool:
        """Whether auto met what plain int8 failed, with few operations above 8 bits, in time."""
        held = self.passed and not self.plain_passed and self.mixed.end == "complete"
        return held and self.mixed.share < SHARE


def measure(model: str, target: str, budget: float, folder: Path) -> Outcome:
    """Compile for plain int8, ask for `MORE`, and compile for both again."""
    before = _sqnr(_compile(model, target, "int8", 0.0, folder))
    policy = round(before + MORE, 1)
    plain = _compile(model, target, "int8", policy, folder)
    auto = _compile(model, target, "auto", policy, folder, budget)
    assert auto.report.mixed is not None  # precision auto always searches
    return Outcome(
        model, target, policy, _sqnr(plain), plain.passed, _sqnr(auto), auto.passed,
        auto.report.mixed,
    )  # fmt: skip


def _compile(
    model: str,
    target: str,
    precision: str,
    policy: float,
    folder: Path,
    budget: float | None = None,
) -> Compiled:
    (done,) = pipeline.compile(
        f"zoo:{model}", target=target, precision=precision, budget=budget, vendor="skip",
        policy=Policy(sqnr_db=policy), output=folder,
    )  # fmt: skip
    return done


def _sqnr(done: Compiled) -> float:
    """Return the worst output's SQNR of the artifact itself."""
    (row,) = [row for row in done.report.rows if row.stage == "artifact"]
    return min(found.sqnr_db for found in row.original)


def cells(found: Outcome) -> Sequence[str]:
    """Return one row of the table."""
    mixed = found.mixed
    return (
        found.model, found.target, f"{found.policy:.1f}", f"{found.plain:.1f}",
        f"{found.auto:.1f}" if found.passed else f"{found.auto:.1f} FAILED",
        f"{len(mixed.kept)} of {mixed.layers}", f"{mixed.share:.1%}", mixed.kept[0].form
        if mixed.kept else "-", str(mixed.runs), f"{mixed.seconds or 0:.0f}",
    )  # fmt: skip


HEADER = (
    "model", "target", "policy dB", "int8 dB", "auto dB", "layers", "operations", "kept in",
    "programs", "seconds",
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Print a row per case as it is done, then all in one table."""
    budget = seconds(words[words.index("--budget") + 1]) if "--budget" in words else 300.0
    cases = [word for word in words if ":" in word] or list(CASES)
    found = []
    for case in cases:
        model, target = case.split(":")
        with tempfile.TemporaryDirectory() as folder:
            outcome = measure(model, target, budget, Path(folder))
        found.append(outcome)
        print("\n".join([f"{case}, policy {outcome.policy:.1f} dB", *outcome.mixed.lines(), ""]))
        sys.stdout.flush()
    print(columns([HEADER, *map(cells, found)]))
    good = sum(outcome.good for outcome in found)
    print(f"{good} of {len(found)} with less than {SHARE:.0%} of the operations above 8 bits")
    return 0 if good >= min(MODELS, len(found)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
