"""Time several runtimes by turns in one process, so that their ratio holds on a noisy machine."""

import time
from collections.abc import Callable, Mapping

from npuc.bench.result import Times

ROUNDS = 4
"""Turns of each side: a disturbance of seconds meets both."""

PAUSE = 0.25
"""Seconds between two sides: idle workers of the one spin for a while and would slow the other."""

WARM = 2
"""Calls at the start of a block that do not count: caches hold the other side's data."""

_LEAST, _MOST = 3, 500


def race(sides: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Call every side for about `seconds` altogether, in long blocks by turns."""
    counts = {name: _block_length(call, seconds / ROUNDS) for name, call in sides.items()}
    calls: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, call in sides.items():
            time.sleep(PAUSE)
            for _ in range(WARM):
                call()
            before = time.process_time()
            for _ in range(counts[name]):
                start = time.perf_counter()
                call()
                calls[name].append(time.perf_counter() - start)
            cpu[name].append((time.process_time() - before) / counts[name])
    return {name: Times(tuple(calls[name]), min(cpu[name])) for name in sides}


def _block_length(call: Callable[[], object], seconds: float) -> int:
    """Return how many calls fill a block, after the first ones, which allocate and compile."""
    for _ in range(WARM):
        call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    return max(_LEAST, min(_MOST, round(seconds / max(once, 1e-6))))
