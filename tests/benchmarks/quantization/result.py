"""What a quantizing child prints on its last line, and how: no packages beyond Python's own."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

LIMIT = 1800
"""Seconds after which a run is given up; the table says so."""


def report(work: Callable[[], None], prepared: float) -> None:
    """Run a quantization and print {seconds, prepared, before} or {error}.

    `prepared` is passed on; `before` is the memory that was taken when the quantization began.

    A quantizer may raise anything at all; the table says so in its own words, with the first line.
    """
    before = _resident()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LIMIT)
    start = time.perf_counter()
    try:
        work()
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        print(json.dumps({"error": f"{type(error).__name__}: {line}"[:200]}))
        return
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "prepared": prepared, "before": before}))


def _resident() -> float:
    """Return this process's resident memory in MiB: packages, and the model as it was read."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _late(*_: object) -> None:
    raise TimeoutError(f"not done after {LIMIT} s")
