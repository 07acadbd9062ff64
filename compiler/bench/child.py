"""What a benchmark does in a process of its own: ``python -m npuc.bench.child JOB RESULT``.

Threads are started once per process, and memory is a process's: so each job is one.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npuc.bench import sides, timing
from npuc.bench.sides import OWN, Job, PeerError
from npuc.errors import NpucError
from npuc.jsonable import plain
from npuc.lean import lean

REPEATS = 9
"""Profiled runs, of which the least time of each kernel counts."""


def main(words: list[str]) -> int:
    """Do what a job's file says and write what was found; errors go into the result, too."""
    job, result = map(Path, words)
    asked = json.loads(job.read_text())
    with np.load(asked["inputs"]) as file:
        inputs = {name: file[f"arr_{at}"] for at, name in enumerate(asked["names"])}
    given = Job(
        Path(asked["artifact"]), Path(asked["model"]), inputs, asked["threads"], asked["source"]
    )
    task = {"time": _time, "memory": _memory}[asked["task"]]
    try:
        found = task(given, asked)
    except PeerError as error:
        found = {"why": error.message}
    except NpucError as error:
        found = {"error": [type(error).__name__, error.message, error.hint]}
    result.write_text(json.dumps(found))
    return 0


def _time(job: Job, asked: Mapping[str, Any]) -> dict[str, Any]:
    what, runner = sides.own(job)
    calls: dict[str, sides.Call] = {OWN: lambda: runner(job.inputs)}
    rows: dict[str, dict[str, Any]] = {OWN: {"what": what}}
    answer = {name: np.array(value) for name, value in calls[OWN]().items()}
    for name in asked["against"]:
        try:
            what, call = sides.peer(job, name)
            distance = sides.distance(answer, call())
        except PeerError as error:
            rows[name] = {"what": name, "why": error.message}
            continue
        calls[name] = call
        rows[name] = {"what": what, "difference": distance}
    for name, times in timing.race(calls, asked["seconds"]).items():
        rows[name]["calls"], rows[name]["cpu"] = list(times.calls), times.cpu
    return {"sides": rows, **_kernels(runner, job)}


def _kernels(runner: Any, job: Job) -> dict[str, Any]:
    """Profile the artifact where its runner has TVM's machine, and measure what it could reach."""
    from npuc.targets.tvm import instrument, peaks
    from npuc.targets.tvm.runtime import SegmentRunner

    inner = runner
    if not isinstance(inner, SegmentRunner):
        return {"note": f"no profile by kernel: {runner.name} runs this artifact"}
    timed = instrument.profile(inner, job.inputs, REPEATS)
    if timed is None:
        return {"note": "no profile by kernel: not all of the program is in one library"}
    return {"kernels": [plain(item) for item in timed], "peaks": plain(peaks.measure())}


def _memory(job: Job, asked: Mapping[str, Any]) -> dict[str, Any]:
    name = asked["side"]
    _imports(name)
    before = _resident()
    if name == OWN:
        _, runner = sides.own(job)
        for _ in range(3):
            runner(job.inputs)
    else:
        _, call = sides.peer(job, name)
        for _ in range(3):
            call()
    peak = _high_water()
    return {"peak": peak, "model": max(0, peak - before)}


def _imports(name: str) -> None:
    """Import what a side cannot do without, whatever the model."""
    if name == OWN:
        from npuc.targets.tvm import runtime

        with lean():  # as `npuc run`
            import tvm_ffi  # noqa: F401
        runtime.prepared()
    else:
        name = "onnxruntime" if sides.is_file(name) else name
        try:
            __import__(name)
        except ImportError as error:
            raise PeerError(f"{name} is not installed") from error


def _high_water() -> int:
    """Return the most resident bytes since this program began.

    Not rusage's figure, which a large parent hands on to its children at exec.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
