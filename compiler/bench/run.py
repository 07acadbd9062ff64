"""Measure an artifact beside other runtimes on this machine."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npuc import artifact, errors, plugins, stored
from npuc.artifact import Artifact
from npuc.bench import origin
from npuc.bench.result import Bench, Peaks, Side, Times
from npuc.bench.sides import PEERS, is_file
from npuc.errors import NpucError, ToolchainError, UsageError
from npuc.members import MODEL, PARITY, REFERENCE, WEIGHTS
from npuc.program import Program, Tensors


def bench(
    path: Path,
    *,
    against: Sequence[str] = ("onnxruntime",),
    threads: int | None = None,
    seconds: float = 2.0,
    inputs: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Bench:
    """Time an artifact and its peers by turns in one process; memory in a process for each.

    A peer is one of `sides.PEERS` or the path of an ONNX file, which ONNX Runtime runs.
    `threads` is by default the number of CPUs that this process may use. `seconds` is how long
    each side is timed altogether. Inputs are the first stored sample's, or an ``.npz`` file's
    first call. Raises `UsageError`, `ArtifactError`, and `ToolchainError` where the artifact
    cannot run here; a peer that cannot says so in its row.
    """
    _check(against, threads, seconds)
    count = len(os.sched_getaffinity(0)) if threads is None else threads
    opened = artifact.read(path)
    plugins.find(opened.manifest.target)
    program = artifact.program(opened)
    source, dims = _told(opened)
    given = _inputs(path, opened, program, inputs)
    with tempfile.TemporaryDirectory(prefix="npuc-bench-") as name:
        folder = Path(name)
        asked = {**_job(folder, opened, given), "threads": count, "source": source}
        peers = [str(Path(name).resolve()) if is_file(name) else name for name in against]
        progress("timing by turns")
        timed = _child(folder, {**asked, "task": "time", "against": peers, "seconds": seconds})
        memory = {}
        for side, row in timed["sides"].items():
            if "calls" in row:
                progress(f"memory of {Path(side).name}")
                memory[side] = _child(folder, {**asked, "task": "memory", "side": side})
    kernels = origin.kernels(program, _times(timed.get("kernels", ())))
    notes = [timed.get("note", "")]
    if kernels and not any(kernel.operators for kernel in kernels):
        notes.append("an older npuc compiled this: its kernels do not say what they compute")
    return Bench(
        artifact=path.name,
        model=source,
        target=opened.manifest.target,
        precision=opened.manifest.precision,
        threads=count,
        batch=dims.get("batch", 1),
        cpu=_cpu(),
        sides=tuple(_side(n, row, memory.get(n, {})) for n, row in timed["sides"].items()),
        peaks=_peaks(timed.get("peaks")),
        kernels=kernels,
        notes=tuple(filter(None, notes)),
        weight_bytes=program.weight_bytes,
    )


def _check(against: Sequence[str], threads: int | None, seconds: float) -> None:
    unknown = [n for n in against if n not in PEERS and not (is_file(n) and Path(n).is_file())]
    if unknown:
        raise UsageError(
            f"npuc cannot compare with {', '.join(unknown)}",
            hint=f"--against {','.join(PEERS)}, or an .onnx file",
        )
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot compute", hint="--threads 1")
    if not seconds > 0:
        raise UsageError(f"nothing can be timed in {seconds} seconds", hint="--seconds 2")


def _job(folder: Path, opened: Artifact, inputs: Tensors) -> dict[str, Any]:
    """Write what every process reads, and return where it is."""
    # By position: an input may be called like a parameter of savez.
    np.savez(folder / "inputs.npz", *inputs.values(), allow_pickle=False)
    for member in (MODEL, WEIGHTS):
        if member in opened:
            opened.extract(member, folder / Path(member).name)
    return {
        "artifact": str(opened.path.resolve()),
        "model": str(folder / Path(MODEL).name),
        "inputs": str(folder / "inputs.npz"),
        "names": list(inputs),
    }


def _inputs(path: Path, opened: Artifact, program: Program, given: Path | None) -> Tensors:
    if given is not None:
        from npuc.samples import load_inputs

        return load_inputs(given, program.inputs)[0]
    if REFERENCE not in opened:
        raise UsageError(
            f"{path} holds no sample to run", hint=f"npuc bench {path} --inputs FILE.npz"
        )
    sample = stored.decode(opened[REFERENCE]).samples[0]
    return {port.name: np.asarray(sample[port.name], port.dtype) for port in program.inputs}


def _told(opened: Artifact) -> tuple[str, dict[str, int]]:
    """Return what the artifact was made of, and its sizes, as its report has them."""
    if PARITY not in opened:
        return "", {}
    report = json.loads(opened[PARITY])
    return str(report.get("model", "")), dict(report.get("dims", {}))


def _child(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    job, result = folder / "job.json", folder / "result.json"
    job.write_text(json.dumps(asked))
    result.unlink(missing_ok=True)
    count = str(asked["threads"])
    env = {**os.environ, "OMP_NUM_THREADS": count, "TVM_NUM_THREADS": count}
    command = [sys.executable, "-m", "npuc.bench.child", str(job), str(result)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode or not result.exists():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ToolchainError(f"the process of the benchmark ended early: {last}")
    found: dict[str, Any] = json.loads(result.read_text())
    if "error" in found:
        kind, message, hint = found["error"]
        known = getattr(errors, kind, ToolchainError)
        raise known(message, hint=hint) if issubclass(known, NpucError) else ToolchainError(message)
    return found


def _side(name: str, row: Mapping[str, Any], memory: Mapping[str, Any]) -> Side:
    times = Times(tuple(row["calls"]), row["cpu"]) if "calls" in row else None
    why = row.get("why", "") or memory.get("why", "")
    return Side(
        Path(name).name if is_file(name) else name, row["what"], times, memory.get("peak"),
        memory.get("model"), row.get("difference"), why,
    )  # fmt: skip


def _peaks(found: Mapping[str, Any] | None) -> Peaks | None:
    if found is None:
        return None
    return Peaks(found["float32"], found["bfloat16"], found["integer"], found["bandwidth"])


def _times(found: Sequence[Mapping[str, Any]]) -> list[Any]:
    from npuc.targets.tvm.instrument import KernelTime

    return [KernelTime(**{**item, "dtypes": tuple(item["dtypes"])}) for item in found]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
