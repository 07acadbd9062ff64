"""Measure what quantization costs: `python tests/benchmarks/quantize.py [MODEL…] [--write]`.

npuc beside ONNX Runtime's and NNCF's methods on the same float models and calls, by turns, each in
a fresh process. NNCF runs in the Python that NPUC_NNCF_PYTHON names (quantization/README.md says
how to make one). Without models: all trained ones, plain and rescaled; --full: the full-size ones.
What is measured replaces what results.json holds of the same model, method and samples.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from quantization import promises, table
from quantization import rows as store
from quantization.methods import BY_NAME, METHODS, QUICK, Method
from quantization.rows import Results, Row

from npuc import models

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
NNCF = "NPUC_NNCF_PYTHON"
TWINS = ("plain", "rescaled")
RELU = "relu-mobilenet"
"""Made by the benchmark: see quantization/relu_mobilenet.py."""

SHARE = 0.8
"""Of the free memory, what a method that keeps all activations may be forecast to take."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure. `held_out` calls are evaluated on; 0: all there are.

    `twins`: plain, rescaled; empty for both of a trained model and the plain full-size one.
    """

    methods: Sequence[Method]
    twins: Sequence[str]
    turns: int
    held_out: int
    work: Path


def known() -> dict[str, bool]:
    """Return the models by name, and whether each is trained."""
    found = {name: models.get(name).trained for name in models.names()}
    trained = [name for name, is_trained in found.items() if is_trained]
    order = (*trained[:2], RELU, *trained[2:])
    return {name: True for name in order} | found


def benchmark(name: str, samples: Sequence[int], settings: Settings) -> Results:
    """Prepare one model and measure every method on it, plain and rescaled."""
    folder = settings.work / name
    command = [str(folder), str(max(samples)), str(settings.held_out)]
    facts = _last(measure.run(_python("prepare", name, *command), HERE))
    kept: list[Row] = []
    twins = settings.twins or (TWINS if facts["trained"] else TWINS[:1])
    for count in samples:
        for source in (folder / f"{twin}.onnx" for twin in twins):
            if not source.exists():  # not every model can be rescaled
                continue
            found = [Row(name, source.stem, count, m.name) for m in settings.methods]
            done = [*_each(found, source, facts, settings)]
            about, done = _evaluated(source, done)
            facts |= about
            kept += done
    return Results(tuple(kept), {name: facts}, machine())


def _each(
    found: Iterable[Row], source: Path, facts: dict[str, Any], settings: Settings
) -> Iterator[Row]:
    """Run every method, in the other order every second turn."""
    costs: dict[str, Row] = {row.method: row for row in found}
    for turn in range(settings.turns):
        for name in sorted(costs, key=list(costs).index, reverse=turn % 2 == 1):
            row = costs[name]
            if not row.error:
                costs[name] = _once(row, source, facts)
                print(f"  {source.stem} {row.samples} {name}: {_said(costs[name])}", flush=True)
    yield from costs.values()


def _said(row: Row) -> str:
    return row.error or f"{row.seconds[-1]:.1f} s, {row.peak[-1]:.0f} MiB"


def _once(row: Row, source: Path, facts: dict[str, Any]) -> Row:
    """Quantize once and add what it cost."""
    method = BY_NAME[row.method]
    if method.keeps_all and (why := _too_much(facts["activations"] * row.samples)):
        return _with(row, error=why)
    target = _target(source, row)
    python = os.environ[NNCF] if method.side == "nncf" else sys.executable
    words = (method.variant, str(source), str(source.parent), str(row.samples), str(target))
    try:
        cost = measure.run([python, "-m", method.module, *words], HERE)
    except SystemExit as failed:  # killed, or it crashed outside of Python
        return _with(row, error=str(failed).partition("\n")[0].partition(": ")[2] or str(failed))
    said = _last(cost)
    if "error" in said:
        return _with(row, error=said["error"])
    return _with(
        row,
        seconds=(*row.seconds, said["seconds"]),
        prepared=(*row.prepared, said["prepared"]),
        peak=(*row.peak, cost.peak),
        before=(*row.before, said["before"]),
        anonymous=(*row.anonymous, cost.anonymous),
    )


def _too_much(needed: int) -> str:
    """Return why a calibration that keeps that many bytes is not run; empty where it fits."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    gib = needed / 2**30
    return f"not run: keeps {gib:.0f} GiB, {free:.0f} GiB are free" if gib > SHARE * free else ""


def _target(source: Path, row: Row) -> Path:
    return source.with_name(f"{source.stem}.{row.method}.{row.samples}.onnx")


def _evaluated(source: Path, found: Sequence[Row]) -> tuple[dict[str, Any], list[Row]]:
    """Add how good the answers are; return what is known of the float model as well."""
    paths = {row.method: _target(source, row) for row in found if not row.error}
    command = [str(source.parent), str(source), *map(str, paths.values())]
    said = _last(measure.run(_python("evaluate", *command), HERE))
    rows = [row if row.error else _with(row, **said[paths[row.method].stem]) for row in found]
    for path in paths.values():
        path.unlink()
    return said[source.stem], rows


def _with(row: Row, **values: Any) -> Row:
    kept = {name: getattr(row, name) for name in Row.__slots__}
    return Row(**{**kept, **values})


def _python(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"quantization.{module}", *words]


def _last(cost: measure.Cost) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cost.stdout.strip().splitlines()[-1])
    return found


def machine() -> dict[str, str]:
    """Describe where this runs, as far as it bears on the figures."""
    packages = ("npuc", "torch", "onnx", "onnxruntime")
    about = {"cores": str(os.cpu_count()), "python": platform.python_version()}
    about |= {name: importlib.metadata.version(name) for name in packages}
    if NNCF in os.environ:
        code = "import json, nncf; print(json.dumps({'nncf': nncf.__version__}))"
        about |= _last(measure.run([os.environ[NNCF], "-c", code], HERE))
    return about


def keep(results: Results) -> None:
    """Write results.json and results.md."""
    store.write(results)
    store.RESULTS.with_suffix(".md").write_text(table.every(results) + "\n")


def publish(results: Results) -> None:
    """Write the tables between README.md's markers."""
    before, mark, rest = README.read_text().partition(table.MARKS[0])
    _, end, after = rest.partition(table.MARKS[1])
    if not (mark and end):
        raise SystemExit(
            f"{README.name} has no {table.MARKS[0].strip()} … {table.MARKS[1].strip()}"
        )
    text = f"{table.quality(results)}\n\n{table.cost(results)}\n"
    README.write_text(before + mark + text + end + after)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(known())}")
    parser.add_argument("--methods", help=f"of {','.join(m.name for m in METHODS)}")
    parser.add_argument("--full", action="store_true", help="the full-size models")
    parser.add_argument("--samples", help="calibration samples (64; full-size: 64,512)")
    parser.add_argument("--twins", help="plain,rescaled (both; full-size: plain)")
    parser.add_argument("--turns", type=int, default=1, help="runs of each method")
    parser.add_argument("--held-out", type=int, default=0, help="calls to evaluate on (all)")
    parser.add_argument("--work", type=Path, help="folder for models and data (temporary)")
    parser.add_argument("--write", action="store_true", help="merge into results.json")
    parser.add_argument("--quick", action="store_true", help="three methods, few calls, no bars")
    parser.add_argument("--tables", action="store_true", help="only write README.md's tables")
    given = parser.parse_args(words)
    for kind, names, there in (
        ("model", given.models, known()),
        ("method", _words(given.methods), BY_NAME),
        ("twin", _words(given.twins), TWINS),
    ):
        if unknown := sorted(set(names) - set(there)):
            parser.error(f"unknown {kind}: {', '.join(unknown)}; there are {', '.join(there)}")
    if given.write and (given.quick or given.held_out):
        parser.error("what was evaluated on a few calls only cannot be written")
    return given


def _words(given: str | None) -> list[str]:
    return given.split(",") if given else []


def _methods(given: argparse.Namespace) -> list[Method]:
    chosen = _words(given.methods) or (QUICK if given.quick else BY_NAME)
    found = [BY_NAME[name] for name in chosen]
    if NNCF not in os.environ and any(m.side == "nncf" for m in found):
        if given.methods:
            raise SystemExit(f"{NNCF} does not name a Python that has nncf")
        print(f"NNCF is left out: {NNCF} does not name a Python that has it", file=sys.stderr)
        found = [method for method in found if method.side != "nncf"]
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure what was asked for; returns 1 where a promise is not kept."""
    given = _arguments(words)
    if given.tables:
        publish(store.read())
        return 0
    names = given.models or [n for n, trained in known().items() if trained != given.full]
    results = Results()
    with tempfile.TemporaryDirectory(prefix="npuc-quantize-") as temporary:
        work = given.work.resolve() if given.work else Path(temporary)
        held_out = 8 if given.quick else given.held_out
        twins = _words(given.twins)
        settings = Settings(_methods(given), twins, given.turns, held_out, work)
        for name in names:
            print(f"{name}:", flush=True)
            usual = "64" if known()[name] else "64,512"
            samples = "4" if given.quick else given.samples or usual
            new = benchmark(name, [int(n) for n in samples.split(",")], settings)
            results = results.merged(new)
            if given.write:  # after each model: a long run that is cut off leaves what it has
                keep(store.read().merged(new))
    print(f"\n{table.every(results)}")
    if given.quick:
        return 0
    short = [*promises.missed(results)]
    print("\n".join(["", "short of the promises:", *short] if short else ["", "all promises kept"]))
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
