"""Compile every trained reference model for every target and print the README's table.

    python tests/benchmarks/zoo.py            # prints Markdown; exits 1 if any report fails

Numbers are each report's own: the artifact's row against the original's recorded answers.
"""

import json
import sys
import tempfile
from importlib import resources
from pathlib import Path

from npuc import models, pipeline
from npuc.report import Report

HEAD = (
    "| model | what it is | held-out metric | `cpu` (float): SQNR dB | `atom` (int8 twin): "
    "SQNR dB | same choice |\n|---|---|---|---|---|---|"
)


def main() -> int:
    """Print the table; return 1 where a report failed."""
    failed = []
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="npuc-zoo-") as folder:
        for name in models.names():
            zoo = models.get(name)
            if not zoo.trained:
                continue
            done = pipeline.compile(f"zoo:{name}", target=("cpu", "atom"), output=Path(folder))
            failed += [f"{name} {c.report.target}" for c in done if not c.passed]
            cpu, atom = (_artifact(c.report) for c in done)
            facts = json.loads(
                (resources.files("npuc.models") / "weights" / f"{name}.json").read_text()
            )
            metric = f"{facts['metric']} {facts['held_out']:.3f}"
            same = atom[1] if zoo.task in ("classification", "language") else "-"
            row = (f"`{name}`", zoo.title, metric, cpu[0], atom[0], same)
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}", file=sys.stderr)
    return 1 if failed else 0


def _artifact(report: Report) -> tuple[str, str]:
    """Return the worst output's SQNR and agreement of the artifact."""
    (row,) = [r for r in report.rows if r.stage == "artifact"]
    agreements = [d.agreement for d in row.original if d.agreement is not None]
    sqnr = min(d.sqnr_db for d in row.original)
    return f"{sqnr:.1f}", f"{min(agreements):.1%}" if agreements else "-"


if __name__ == "__main__":
    sys.exit(main())
