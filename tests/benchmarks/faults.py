"""Seed defects into the pipeline and see what is caught, named, and falsely accused.

    python tests/benchmarks/faults.py [FAULT…]                # detection and blame, prints a table
    python tests/benchmarks/faults.py --healthy [MODEL…]      # every model for every target
    python tests/benchmarks/faults.py --tables                # put the table into README.md

Each part stores what it found in faults_*.json, and --tables reads them. Exits with 1 where a fault
was missed or a healthy pair failed.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "faults"))

from catalogue import FAULTS  # noqa: E402
from detection import Found, attempt, blamed  # noqa: E402
from seams import Fault  # noqa: E402

from npuc import models, pipeline, plugins  # noqa: E402
from npuc.errors import NpucError, UnsupportedError  # noqa: E402
from npuc.report import Report  # noqa: E402

RESULTS = {"faults": HERE / "faults_seeded.json", "healthy": HERE / "faults_healthy.json"}
README = HERE.parents[1] / "README.md"
MARKS = ("<!-- faults -->\n", "<!-- /faults -->\n")


def main(words: Sequence[str]) -> int:
    """Do what the words ask; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--healthy", action="store_true")
    parser.add_argument("--tables", action="store_true")
    asked = parser.parse_args(words)
    if asked.tables:
        return tables()
    if asked.healthy:
        return healthy(asked.names)
    return faults(asked.names)


def faults(names: Sequence[str]) -> int:
    """Seed each fault, and store whether it was caught and what `npuc blame` made of it."""
    missed = 0
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="npuc-fault-") as folder:
            found = attempt(fault, Path(folder))
            named = blamed(fault, Path(folder))
        seconds = round(time.perf_counter() - start, 1)
        missed += not found.caught
        row = {**_facts(fault), "caught": found.caught, "how": found.how, **named}
        _store("faults", fault.name, {**row, "seconds": seconds})
        print(_line(fault, found, named), flush=True)
    return 1 if missed else 0


def healthy(names: Sequence[str]) -> int:
    """Compile each trained model for every target, as it is by default and in int8."""
    failed = 0
    trained = [name for name in models.names() if models.get(name).trained]
    for name in names or trained:
        for precision in (None, "int8"):
            for label, state in _compiled(name, precision):
                _store("healthy", f"{name} {label}", state)
                failed += state["state"] == "failed"
                print(f"{name} {label}: {state['state']} {state['why']}", flush=True)
    return 1 if failed else 0


def _compiled(name: str, precision: str | None) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield a label for each pair of target and precision, and how it ended."""
    every = [plugins.find(target) for target in plugins.names()]
    if precision is None:
        chosen = every
    else:  # what was not the default
        chosen = [
            t for t in every
            if precision in t.profile.precisions and t.profile.precisions[0] != precision
        ]  # fmt: skip
    errors: dict[str, NpucError] = {}
    with tempfile.TemporaryDirectory(prefix="npuc-healthy-") as folder:
        done = pipeline.compile(
            f"zoo:{name}", target=[t.name for t in chosen], precision=precision,
            output=Path(folder), vendor="skip", failed=lambda n, e: errors.update({n: e}),
        )  # fmt: skip
    reports = {c.report.target: c.report for c in done}
    for target in chosen:
        label = f"{target.name} {precision or target.profile.precisions[0]}"
        yield label, _state(reports.get(target.name), errors.get(target.name))


def _state(report: Report | None, error: NpucError | None) -> Mapping[str, str]:
    if report is None:
        state = "unsupported" if isinstance(error, UnsupportedError) else "failed"
        return {"state": state, "why": str(error)[:300]}
    undone = [row.stage for row in report.rows if row.state == "rolled back"]
    why = "; ".join(f"{row.stage}: {text}" for row in report.failures for text in row.faults)
    return {
        "state": "passed" if report.passed else "failed",
        "why": why or (f"rolled back: {', '.join(undone)}" if undone else ""),
    }


def tables() -> int:
    """Write the table into README.md; returns 2 where it has no place for it."""
    results = {part: json.loads(path.read_text()) for part, path in RESULTS.items()}
    text = "\n".join(table(results)) + "\n"
    before, mark, rest = README.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (mark and end):
        print(text)
        print(f"{README.name} has no {MARKS[0].strip()} … {MARKS[1].strip()}", file=sys.stderr)
        return 2
    README.write_text(before + mark + text + end + after)
    return 0


def table(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the README's table: one row for each kind of step, and one for all."""
    rows = [results["faults"][fault.name] for fault in FAULTS]
    yield "| fault in | faults | caught | right step | right operator | runs: median (most) |"
    yield "|---|---|---|---|---|---|"
    kinds = dict.fromkeys(row["kind"] for row in rows)
    for kind in (*kinds, "all"):
        some = [row for row in rows if kind in (row["kind"], "all")]
        sited = [row for row in some if row["sited"]]
        runs = [row["runs"] for row in some if row["runs"]]
        spent = f"{statistics.median(runs):g} ({max(runs)})" if runs else "-"
        named = f"{sum(row['operator'] for row in sited)}/{len(sited)}" if sited else "-"
        cells = (
            kind, len(some), f"{sum(row['caught'] for row in some)}/{len(some)}",
            f"{sum(row['step_right'] for row in some)}/{len(some)}", named, spent,
        )  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    states = [pair["state"] for pair in results["healthy"].values()]
    yield (
        f"Healthy models: {states.count('passed')} of {len(states)} pairs of model, target and "
        f"precision pass; {states.count('failed')} false alarms; {states.count('unsupported')} "
        "cannot be compiled (exit code 4)."
    )


def _facts(fault: Fault) -> dict[str, Any]:
    return {
        "model": fault.model, "target": fault.target, "precision": fault.precision,
        "kind": fault.kind, "step": fault.step, "what": fault.what, "like": fault.like,
    }  # fmt: skip


def _line(fault: Fault, found: Found, named: Mapping[str, Any]) -> str:
    marks = " ".join(f"{key}={named[key]}" for key in ("step_right", "operator", "runs", "said"))
    return f"{'caught' if found.caught else 'MISSED'} {fault.name} ({fault.kind}) {marks}"


def _store(part: str, name: str, value: Mapping[str, Any]) -> None:
    """Put one result into the file at once: a run that is stopped loses nothing."""
    held: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        held = json.loads(RESULTS[part].read_text())
    held[name] = dict(value)
    RESULTS[part].write_text(json.dumps(held, indent=1, sort_keys=True, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
