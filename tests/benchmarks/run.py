"""Measure npuc against what it replaces: `python tests/benchmarks/run.py [NAME…] [--write]`.

Both sides run in one session, by turns, each in a fresh process; ratios are what to read. Without
names everything is measured (half an hour on two quiet cores). --write stores the figures in
results.json and results.md beside this file. --quick only shows that everything runs.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
LENIENT = ("--min-sqnr", "10")
"""Full-size models have random weights, whose int8 loses more than the default policy allows; what
is timed is the same."""

PACKAGES = ("npuc", "torch", "onnxruntime", "onnxsim", "apache-tvm")


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of both sides over all repeats. `ours` and `theirs` are in turn order.

    `bar` is the largest ratio of the medians allowed; None where there is no promise.
    """

    item: str
    what: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    bar: float | None = None

    @property
    def ratio(self) -> float:
        """Median of ours over median of theirs."""
        return statistics.median(self.ours) / statistics.median(self.theirs)

    @property
    def best(self) -> float:
        """Least of ours over least of theirs: what other work on the machine disturbs least."""
        return min(self.ours) / min(self.theirs)

    @property
    def missed(self) -> bool:
        """Whether the ratio is above the bar."""
        return self.bar is not None and self.ratio > self.bar


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure. `quick` and `full` as on the command line."""

    repeats: int | None
    quick: bool
    full: bool

    def turns(self, usual: int) -> int:
        """Return how often to repeat what is usually repeated `usual` times."""
        return self.repeats or (1 if self.quick else usual)


def _npuc() -> str:
    path = Path(sys.executable).with_name("npuc")
    if not path.exists():
        sys.exit(f"no npuc beside {sys.executable}: pip install -e .")
    return str(path)


def _by_turns(
    sides: Sequence[Callable[[], measure.Cost]], turns: int
) -> tuple[list[measure.Cost], ...]:
    """Run the sides by turns, the other one first every second time."""
    found: tuple[list[measure.Cost], ...] = tuple([] for _ in sides)
    for turn in range(turns):
        for side in sorted(range(len(sides)), reverse=turn % 2 == 1):
            found[side].append(sides[side]())
            print(f"  {'ours' if side == 0 else 'theirs'} {found[side][-1].wall:.2f} s", flush=True)
    return found


def start(settings: Settings, work: Path) -> list[Row]:
    """Time what a user waits for before any work: the help and the list of targets."""
    bare = [sys.executable, "-c", "pass"]
    commands = {"--help": 4.0, "targets": None}
    times: dict[str, list[float]] = {name: [] for name in commands}
    python: list[float] = []
    for turn in range(settings.turns(20) + 1):
        rounds = [(python, bare)] + [(times[n], [_npuc(), n]) for n in commands]
        for kept, command in rounds:
            seconds = measure.blocking(command, work)
            if turn:  # the first one fills the file cache
                kept.append(1000 * seconds)
    return [
        Row("start", f"`npuc {name}` / `python -c pass`", "ms", tuple(found), tuple(python), bar)
        for (name, bar), found in zip(commands.items(), times.values(), strict=True)
    ]


def _compile(name: str, settings: Settings, work: Path, bar: float | None = None) -> list[Row]:
    """Compile to int8 for the CPU, against the same job by hand."""
    # 64 calibration samples are what a reference model carries, and what by_hand.py is told.
    ours = [
        _npuc(), "compile", f"zoo:{name}", "--target", "cpu", "--precision", "int8",
        "--dim", "batch=1", "--quiet", "--no-cache", *LENIENT,
    ]  # fmt: skip
    theirs = [sys.executable, str(HERE / "by_hand.py"), name, "4" if settings.quick else "64"]
    sides = [lambda: measure.run(ours, work), lambda: measure.run(theirs, work)]
    mine, other = _by_turns(sides, settings.turns(5))
    print("  " + other[-1].stdout.strip().replace("\n", "\n  "))
    table = mine[-1].stdout.splitlines()
    print("\n".join(f"  {line}" for line in table if line.startswith(("quantize", "artifact"))))
    what = f"compile {name}, int8, by hand"
    return [
        _row(name.removeprefix("digits-"), f"{what}: wall", "s", mine, other, "wall", bar),
        _row(name.removeprefix("digits-"), f"{what}: CPU", "s", mine, other, "cpu"),
        _row(name.removeprefix("digits-"), f"{what}: peak memory", "MiB", mine, other, "peak"),
    ]


def _row(
    item: str, what: str, unit: str, ours: Sequence[measure.Cost],
    theirs: Sequence[measure.Cost], field: str, bar: float | None = None,
) -> Row:  # fmt: skip
    values = [tuple(float(getattr(c, field)) for c in costs) for costs in (ours, theirs)]
    return Row(item, what, unit, values[0], values[1], bar)


def mobilenet(settings: Settings, work: Path) -> list[Row]:
    """Compile a small trained model."""
    return _compile("digits-mobilenet", settings, work)


def resnet18(settings: Settings, work: Path) -> list[Row]:
    """Compile a full-size model."""
    return _compile("resnet18", settings, work)


def resnet50(settings: Settings, work: Path) -> list[Row]:
    """Compile the model whose compile time is promised."""
    return _compile("resnet50", settings, work, 1.5)


def cache(settings: Settings, work: Path) -> list[Row]:
    """Compile for a second target, and again what has not changed, against the first time."""
    name = "digits-mobilenet" if settings.quick else "resnet50"
    folders = iter(range(1000))

    def compiled(target: str, store: str) -> measure.Cost:
        command = [
            _npuc(), "compile", f"zoo:{name}", "--target", target, "--precision", "int8",
            "--no-vendor", "--quiet", *LENIENT,
        ]  # fmt: skip
        return measure.run(["env", f"NPUC_CACHE={work / store}", *command], work)

    first, second, again = [], [], []
    for _ in range(settings.turns(3)):
        store = f"cache-{next(folders)}"
        first.append(compiled("cpu", store))
        second.append(compiled("aries", store))
        again.append(compiled("cpu", store))
        print(f"  {first[-1].wall:.2f}, {second[-1].wall:.2f}, {again[-1].wall:.2f} s", flush=True)
    what = f"compile {name}, int8, for cpu and then for aries / for cpu"
    more = f"compile {name}, int8, again, unchanged / the first time"
    return [
        _row("cache", f"{what}: wall", "s", second, first, "wall", 0.4),
        _row("cache", f"{more}: wall", "s", again, first, "wall"),
    ]


def verify(settings: Settings, work: Path) -> list[Row]:
    """Verify an artifact on many samples, against plain inference on them in ONNX Runtime."""
    script, count = str(HERE / "gated.py"), 300 if settings.quick else 10_000
    name, noise = "digits-mobilenet", "0.1"
    measure.run([sys.executable, script, "prepare", name, str(count), str(work), noise], work)
    command = ["compile", "model.pt", "--target", "cpu", "--precision", "int8", "--quiet"]
    measure.run([_npuc(), *command, "--no-cache"], work)
    check = [
        _npuc(), "verify", "model.cpu.npuc", "--samples", "samples.npz", "--against", "model.pt",
    ]  # fmt: skip
    ours, theirs = check, [sys.executable, script, "infer", str(work)]
    sides = [partial(measure.run, ours, work), partial(measure.run, theirs, work)]
    mine, plain = _by_turns(sides, settings.turns(3))
    what = f"`npuc verify --against` on {count} samples / ONNX Runtime on the same: wall"
    return [_row("verify", what, "s", mine, plain, "wall")]


METHODS = ("min-max", "percentile", "entropy")
FASTER = {"resnet18": METHODS, "text-bert": METHODS, "bert-base": ("min-max",)}
"""What is calibrated by which method on both sides. ONNX Runtime keeps every tensor of every sample
for the other two, which on BERT-base is more memory than there is."""


def calibration(settings: Settings, work: Path) -> list[Row]:
    """Calibrate by every method against ONNX Runtime: seconds, and peak memory by samples.

    ONNX Runtime needs 8 GB for the percentile of 256 samples, so that is left to --full.
    """
    script, turns = str(HERE / "calibrate_peak.py"), settings.turns(3)

    def calibrate(side: str, name: str, method: str, count: int) -> measure.Cost:
        model = str(work / f"{name}.onnx")
        cost = measure.run([sys.executable, script, side, method, model, str(count)], work)
        # Starting Python and importing is the same on both sides, and no part of calibration.
        return replace(cost, wall=float(cost.stdout.split()[-2]))

    first, *more = (2, 4, 8) if settings.quick else (64, 256, 1024)
    rows: list[Row] = []
    for name, methods in list(FASTER.items())[: 1 if settings.quick else None]:
        measure.run([sys.executable, script, "export", name, str(work / f"{name}.onnx")], work)
        for method in methods:
            sides = [partial(calibrate, side, name, method, first) for side in ("npuc", "ort")]
            mine, ort = _by_turns(sides, turns)
            what = f"calibrate {name} on {first} samples by {method} / ONNX Runtime"
            rows.append(_row("calibration", f"{what}: wall", "s", mine, ort, "wall", 0.5))
            peaks = _row("calibration", f"{what}: peak anonymous memory", "MiB", mine, ort,
                         "anonymous")  # fmt: skip
            rows.append(peaks)
            print(f"  npuc: {mine[-1].stdout.strip()}; ort: {ort[-1].stdout.strip()}")
    npuc = partial(calibrate, "npuc", "resnet18", "percentile")
    for count in more:
        grown, few = _by_turns([partial(npuc, count), partial(npuc, first)], turns)
        what = f"npuc calibrates on {count} samples / on {first}: peak anonymous memory"
        rows.append(_row("calibration", what, "MiB", grown, few, "anonymous", 1.1))
    if settings.full or settings.quick:
        theirs = partial(calibrate, "ort", "resnet18", "percentile", more[0])
        mine, ort = _by_turns([partial(npuc, more[0]), theirs], turns)
        what = f"calibrate on {more[0]} samples / ONNX Runtime: peak anonymous memory"
        rows.append(_row("calibration", what, "MiB", mine, ort, "anonymous"))
    return rows


def gate(settings: Settings, work: Path) -> list[Row]:
    """Gate a model for two targets, cold and cached, against plain inference on its samples."""
    script, count = str(HERE / "gated.py"), 32 if settings.quick else 360
    measure.run(
        [sys.executable, script, "prepare", "digits-mobilenet", str(count), str(work)], work
    )
    infer = [sys.executable, script, "infer", str(work)]
    caches = iter(range(1000))
    filled = str(work / "filled")

    def gated(cache: str) -> measure.Cost:
        return measure.run(["env", f"NPUC_CACHE={cache}", _npuc(), "gate", "--quiet"], work)

    def cold() -> measure.Cost:
        return gated(str(work / f"cold-{next(caches)}"))

    gated(filled)
    turns = settings.turns(5)
    plain = partial(measure.run, infer, work)
    rows = []
    for what, side, bar in (("cold", cold, None), ("cached", partial(gated, filled), 3.0)):
        mine, theirs = _by_turns([side, plain], turns)
        title = f"`npuc gate`, {what}, 2 targets / ONNX Runtime on the same {count} samples: wall"
        rows.append(_row("gate", title, "s", mine, theirs, "wall", bar))
    return rows


ITEMS: Mapping[str, Callable[[Settings, Path], list[Row]]] = {
    "start": start,
    "mobilenet": mobilenet,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "cache": cache,
    "verify": verify,
    "calibration": calibration,
    "gate": gate,
}


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; seconds, milliseconds and MiB are medians."""
    lines = [
        "| ours / theirs | ours | theirs | ratio of medians | of minima | bar |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        ours, theirs = (f"{statistics.median(v):.4g} {row.unit}" for v in (row.ours, row.theirs))
        bar = "-" if row.bar is None else f"≤ {row.bar:g}, {'MISSED' if row.missed else 'held'}"
        cells = (row.what, ours, theirs, f"{row.ratio:.2f}", f"{row.best:.2f}", bar)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """Describe where this runs, as far as it bears on a ratio."""
    about = {"cores": str(os.cpu_count()), "arch": platform.machine()}
    about["python"] = platform.python_version()
    return {**about, **{name: importlib.metadata.version(name) for name in PACKAGES}}


def write(rows: Sequence[Row]) -> None:
    """Store rows; those of items that were not measured this time stay as they are."""
    path = HERE / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for item in ITEMS:
        mine = [asdict(row) for row in rows if row.item == item]
        if mine:
            known[item] = {"machine": machine(), "rows": mine}
    path.write_text(json.dumps(known, indent=1) + "\n")
    kept = [
        Row(**{**row, "ours": tuple(row["ours"]), "theirs": tuple(row["theirs"])})
        for item in ITEMS
        for row in known.get(item, {}).get("rows", ())
    ]
    (HERE / "results.md").write_text(table(kept) + "\n")


def main() -> int:
    """Measure what was asked for; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ITEMS)}")
    parser.add_argument("--write", action="store_true", help="store results.json and results.md")
    parser.add_argument("--full", action="store_true", help="also what needs 8 GB of memory")
    parser.add_argument("--quick", action="store_true", help="one tiny turn each, no bars")
    parser.add_argument("--repeats", type=int, help="turns per side")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(ITEMS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ITEMS)}")
    if given.write and given.quick:
        parser.error("--quick measures too little to be written")
    settings = Settings(given.repeats, given.quick, given.full)
    rows: list[Row] = []
    for name in given.names or ITEMS:
        print(f"{name}:", flush=True)
        with tempfile.TemporaryDirectory(prefix="npuc-bench-") as work:
            rows += ITEMS[name](settings, Path(work))
    print("\n" + table(rows))
    if given.write:
        write(rows)
    return int(any(row.missed for row in rows) and not settings.quick)


if __name__ == "__main__":
    sys.exit(main())
