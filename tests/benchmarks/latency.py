"""Time npuc's CPU code beside ONNX Runtime's over the full-size models, and print the tables.

    python tests/benchmarks/latency.py [MODEL…] [--precision float,int8] [--batch 1,8]
        [--threads 1,2] [--folder FOLDER] [--seconds S] [--against NAME,…] [--again] [--list]
    python tests/benchmarks/latency.py --tables [--write]

A model is compiled once per precision and batch into FOLDER (default: ~/.cache/npuc-latency), and
its program is lowered anew by every run: what is timed is the code of this tree. A row is stored
in latency.json as soon as it is measured, and rows that are there are left alone: a run that was
cut off goes on. Sides take turns in long blocks in one process; memory is that of a fresh process
each. --tables prints the README's tables from what is stored, --write puts them there.

Both sides run the same program of the same precision. An int8 row also has the file that ONNX
Runtime's own `quantize_static` makes of the float program: npuc's program keeps some sums in
float, where ONNX Runtime then runs their convolutions in float, too. A bf16 row is held against
the float program, since ONNX Runtime has no bfloat16 on CPUs. A float row of a recurrent
model also has torch's own export, whose LSTM, GRU or RNN ONNX Runtime runs as one operator, where
npuc's program is unrolled. Ratios are to the faster.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

STORE = Path(__file__).with_name("latency.json")
README = Path(__file__).resolve().parents[2] / "README.md"
MARKS = ("<!-- latency -->\n", "<!-- /latency -->\n")

MODELS = (
    "resnet18", "resnet50", "mobilenet-v2", "efficientnet-b0", "bert-base", "vit-base", "unet",
    "llama", "llama-decode", "lstm",
)  # fmt: skip
PRECISIONS, BATCHES, THREADS = ("float", "int8"), (1, 8), (1, 2)
SHOWN = ("float", "bf16", "int8")
OTHERS = {"openvino": "OpenVINO", "torch": "torch.compile, float32"}
"""Peers that are shown beside ONNX Runtime where they were measured, by their sides' names."""

BARS = {"float": 1.0, "int8": 0.85}
"""Geometric mean of npuc's time over ONNX Runtime's, at most."""

WORST = 1.15
"""Ratio that no row may exceed."""

KEPT = 12
"""Kernels stored of every row: those that take the most time."""

Row = dict[str, Any]


def main(words: Sequence[str]) -> int:
    """Measure what is missing, or print the tables; return 2 for what cannot be done."""
    asked = _parser().parse_args(words)
    if asked.tables:
        return _tables(asked.write)
    unknown = sorted(set(asked.models) - set(MODELS))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(MODELS)}", file=sys.stderr)
        return 2
    models = asked.models or MODELS
    kinds: list[tuple[str, str]] = list(product(models, asked.precision))
    programs = [(*kind, batch) for batch in asked.batch for kind in kinds]
    done = {} if asked.again else stored()
    missing = [
        (program, [t for t in asked.threads if name(*program, t) not in done])
        for program in programs
    ]
    if asked.list:
        print("\n".join(name(*program, t) for program, threads in missing for t in threads))
        return 0
    for program, threads in missing:
        with tempfile.TemporaryDirectory(prefix="npuc-latency-") as fresh:
            for count in threads:
                key = name(*program, count)
                row = measure(*program, count, asked, Path(fresh))
                keep(key, row)
                print(line(key, row), flush=True)
    return 0


def name(model: str, precision: str, batch: int, threads: int) -> str:
    """Return a row's name in the store."""
    return f"{model}/{precision}/batch {batch}/{threads} threads"


def stored() -> dict[str, Row]:
    """Return the rows measured so far."""
    return dict(json.loads(STORE.read_text())) if STORE.exists() else {}


def keep(key: str, row: Row) -> None:
    """Add a row to the store at once; a kill leaves the store as it was or with the row."""
    from npuc.atomic import atomic_write

    rows = {**stored(), key: row}
    with atomic_write(STORE) as part:
        part.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")


def measure(
    model: str, precision: str, batch: int, threads: int, asked: argparse.Namespace, fresh: Path
) -> Row:
    """Measure one row: compile where needed, lower anew into `fresh`, time by turns."""
    from npuc.bench.run import bench

    artifact = _artifact(model, precision, batch, asked.folder)
    peers = list(asked.against)
    if precision == "int8":
        peers.append(str(_theirs(model, batch, asked.folder)))
    elif precision == "bf16":
        peers = [str(_float(model, batch, asked.folder))]
    elif plain := _plain(artifact, model, batch, asked.folder):
        peers.append(str(plain))
    lowered = fresh / artifact.name
    if not lowered.exists():
        _lowered(artifact, lowered)
    found = bench(lowered, against=peers, threads=threads, seconds=asked.seconds)
    data = found.to_json()
    kernels = sorted(data["kernels"], key=lambda kernel: -kernel["seconds"])
    return {
        "cpu": data["cpu"],
        "sides": data["sides"],
        "peaks": data["peaks"],
        "reached": data["reached"],
        "kernel seconds": sum(kernel["seconds"] for kernel in kernels),
        "kernels": kernels[:KEPT],
    }


def _artifact(model: str, precision: str, batch: int, folder: Path) -> Path:
    from npuc import pipeline

    path = folder / f"{model}.{precision}.b{batch}.npuc"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (done,) = pipeline.compile(
            f"zoo:{model}", target="cpu", precision=precision, output=path, dims={"batch": batch}
        )
        verdict = "passed" if done.passed else "FAILED parity"
        print(f"{path.name}: {verdict}", file=sys.stderr, flush=True)
    return path


def _theirs(model: str, batch: int, folder: Path) -> Path:
    """Quantize the float program with ONNX Runtime's own tool, as its guide shows: QDQ, 8 bits,
    weights per channel, ranges by min-max; one sample, since nothing but the speed is looked at."""
    from npuc import artifact as artifacts
    from npuc import stored as samples
    from npuc.members import REFERENCE

    path = folder / f"{model}.onnxruntime-int8.b{batch}.onnx"
    if path.exists():
        return path
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    given = _float(model, batch, folder)
    opened = artifacts.read(_artifact(model, "float", batch, folder))
    sample = dict(samples.decode(opened[REFERENCE]).samples[0])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [sample]

        def get_next(self) -> Any:
            return self._left.pop() if self._left else None

    with tempfile.TemporaryDirectory(prefix="npuc-latency-") as name:
        made = Path(name) / "int8.onnx"
        quantize_static(
            given, made, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        shutil.copyfile(made, path)
    return path


def _float(model: str, batch: int, folder: Path) -> Path:
    """Return the float program as one ONNX file."""
    from npuc import artifact as artifacts

    path = folder / f"{model}.float.b{batch}.onnx"
    if not path.exists():
        whole = artifacts.program(
            artifacts.read(_artifact(model, "float", batch, folder))
        ).serialized()
        assert whole is not None, f"{model} does not fit one protobuf message"
        path.write_bytes(whole)
    return path


def _plain(artifact: Path, model: str, batch: int, folder: Path) -> Path | None:
    """Return torch's export of a recurrent model at the batch; None where npuc unrolled nothing."""
    from npuc import artifact as artifacts
    from npuc import models

    path = folder / f"{model}.exported.b{batch}.onnx"
    steps = artifacts.read(artifact).manifest.steps
    if not any(step.name == "decompose-rnn" and step.changes for step in steps):
        return None
    if not path.exists():
        entry = models.get(f"zoo:{model}")
        example = tuple(
            tensor.repeat(batch, *[1] * (tensor.dim() - 1)) for tensor in entry.example()
        )
        write_export(entry.module().eval(), example, path)
    return path


def write_export(module: Any, example: tuple[Any, ...], path: Path) -> None:
    """Export a torch module as it is, at its example's sizes, to one ONNX file."""
    import warnings

    import torch

    with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as name:
        warnings.simplefilter("ignore")  # of torch's own internals
        made = Path(name) / path.name
        torch.onnx.export(
            module, example, made, dynamo=True, opset_version=20, external_data=False, verbose=False
        )
        shutil.copyfile(made, path)


def _lowered(artifact: Path, path: Path) -> None:
    """Write the artifact with its program lowered by this tree's code."""
    from npuc import artifact as artifacts
    from npuc.targets import tvm

    opened = artifacts.read(artifact)
    done = tvm.lower(artifacts.program(opened))
    kept = {n: opened[n] for n in opened if not n.startswith("payload/")}
    manifest = replace(opened.manifest, members={}, toolchain=done.toolchain)
    artifacts.write(path, manifest, {**kept, **done.files})


def line(key: str, row: Row) -> str:
    """Spell a row for who waits for it."""
    own, *others = row["sides"]
    cells = [f"{key}: {own['seconds']['p50'] * 1e3:.3g} ms"]
    for side in others:
        ratio = side.get("ratio")
        cells.append(
            f"{side['name']}: {side['why']}" if ratio is None
            else f"{ratio['p50']:.2f} of {side['name']} (minima {ratio['min']:.2f})"
        )  # fmt: skip
    return ", ".join(cells)


def _tables(write: bool) -> int:
    text = "\n".join(tables(stored())) + "\n"
    if not write:
        print(text, end="")
        return 0
    before, mark, rest = README.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (mark and end):
        print(f"{README.name} has no {MARKS[0].strip()} … {MARKS[1].strip()}", file=sys.stderr)
        return 2
    README.write_text(before + mark + text + end + after)
    return 0


def tables(rows: dict[str, Row]) -> Iterator[str]:
    """Yield Markdown: a summary per precision, then a line per model and precision."""
    columns = list(product(BATCHES, THREADS))
    yield (
        "| npuc's time / ONNX Runtime's | rows | geometric mean of medians (of minima) | bar "
        "| worst row | bar |"
    )
    yield "|---|---:|---:|---|---|---|"
    for precision in SHOWN:
        found = {key: _ratio(row) for key, row in rows.items() if key.split("/")[1] == precision}
        known = {key: ratio for key, ratio in found.items() if ratio is not None}
        if known:
            yield _summary(precision, known)
    yield ""
    heads = " | ".join(f"batch {b}, {t} thread{'s' * (t > 1)}" for b, t in columns)
    yield f"| model | {heads} | ms (batch 1, 1 thread) | of peak | memory, of ONNX Runtime's |"
    yield "|---|" + "---:|" * (len(columns) + 3)
    for precision, model in product(SHOWN, MODELS):
        every = [rows.get(name(model, precision, *column)) for column in columns]
        if any(every):
            yield f"| {model}, {precision} | {' | '.join(_cells(every))} |"
    yield from _others(rows)


def _others(rows: dict[str, Row]) -> Iterator[str]:
    """Yield a table of npuc's time over that of other peers, where there are any."""
    found: dict[str, dict[str, float]] = {}
    for key, row in rows.items():
        for side in row["sides"]:
            if side["name"] in OTHERS and side.get("ratio"):
                found.setdefault(key, {})[side["name"]] = side["ratio"]["p50"]
    if not found:
        return
    yield ""
    yield f"| npuc's time / that of | {' | '.join(OTHERS.values())} |"
    yield "|---|" + "---:|" * len(OTHERS)
    for precision, model in product(SHOWN, MODELS):
        for column in product(BATCHES, THREADS):
            ratios = found.get(name(model, precision, *column))
            if ratios:
                cells = [f"{ratios[n]:.2f}" if n in ratios else "-" for n in OTHERS]
                yield f"| {_place(name(model, precision, *column))} | {' | '.join(cells)} |"


def _summary(precision: str, known: dict[str, dict[str, float]]) -> str:
    medians, minima = (_mean(r[kind] for r in known.values()) for kind in ("p50", "min"))
    worst = max(known, key=lambda key: known[key]["p50"])
    most, bar = known[worst]["p50"], BARS.get(precision)
    place = _place(worst).replace(f", {precision},", ",")
    held = "-" if bar is None else _held(medians, bar)
    return (
        f"| {precision} | {len(known)} | {medians:.2f} ({minima:.2f}) | {held} | "
        f"{most:.2f}: {place} | {_held(most, WORST)} |"
    )


def _place(key: str) -> str:
    return key.replace("/", ", ").replace("1 threads", "1 thread")


def _held(value: float, bar: float) -> str:
    return f"≤ {bar}, {'held' if value <= bar else 'MISSED'}"


def _mean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _ratio(row: Row) -> dict[str, float] | None:
    """Return npuc's time over the faster of ONNX Runtime's, of medians and of minima."""
    found = [side["ratio"] for side in _onnxruntime(row) if side.get("ratio")]
    return max(found, key=lambda ratio: float(ratio["p50"])) if found else None


def _onnxruntime(row: Row) -> list[Row]:
    """Return ONNX Runtime's sides: on the artifact's program, and on its own quantized file."""
    return [s for s in row["sides"] if s["name"] == "onnxruntime" or s["name"].endswith(".onnx")]


def _cells(every: Sequence[Row | None]) -> Iterator[str]:
    for row in every:
        ratio = None if row is None else _ratio(row)
        yield "-" if ratio is None else f"{ratio['p50']:.2f}"
    first = every[0]
    if first is None:
        yield from ("-", "-", "-")
        return
    own = first["sides"][0]
    yield f"{own['seconds']['p50'] * 1e3:.3g}"
    reached = first["reached"].get("arithmetic")
    yield "-" if reached is None else f"{reached:.0%}"
    theirs = [side["peak_bytes"] for side in _onnxruntime(first) if side.get("peak_bytes")]
    yield f"{own['peak_bytes'] / min(theirs):.2f}" if theirs else "-"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time npuc's CPU code beside ONNX Runtime's.")
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    texts = lambda text: text.split(",")  # noqa: E731
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--precision", type=texts, default=PRECISIONS)
    parser.add_argument("--batch", type=numbers, default=BATCHES)
    parser.add_argument("--threads", type=numbers, default=THREADS)
    parser.add_argument("--folder", type=Path, default=cache / "npuc-latency")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--against", type=texts, default=["onnxruntime"])
    parser.add_argument("--again", action="store_true", help="measure rows that are stored, too")
    parser.add_argument("--list", action="store_true", help="name the rows that are missing")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--write", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
