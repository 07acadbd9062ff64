"""Show the tensors of a program to observers, one call after the other, in flat memory."""

import operator
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, Protocol

import numpy as np

from npuc.errors import ParityError, UsageError
from npuc.program import Program, Tensors
from npuc.quantization.checkpoint import Checkpoint
from npuc.quantization.forecast import Forecast
from npuc.quantization.taps import Taps, cores

Array = np.ndarray[Any, Any]
AT_ONCE = 4
"""Most calls computed at once: one core for each is faster than all cores for one, and every call
holds its tensors in memory."""
TENSORS = 2**30
"""Bytes of tensors held by all calls that are computed at once, if one call leaves a choice."""


class Watcher(Protocol):
    """Sums up one tensor. What it keeps does not grow with the number of calls."""

    def digest(self, values: Array, /) -> Any:
        """Sum up one array without changing the watcher; None where it holds NaN or Inf.

        Runs on any thread.
        """
        ...

    def merge(self, digest: Any, /) -> None:
        """Take in what `digest` returned; called in the order of the calls."""
        ...

    def state(self) -> Mapping[str, Array]:
        """Return all that was seen, as arrays."""
        ...

    def restore(self, state: Mapping[str, Array], /) -> None:
        """Go on from what `state` returned."""
        ...


def stream(
    program: Program,
    samples: Iterable[Tensors],
    watchers: Mapping[str, Watcher],
    *,
    progress: Callable[[int, int], None] | None = None,
    forecast: Callable[[str], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> int:
    """Show every call's tensors to their watchers; returns the number of calls.

    Calls are computed on several threads and merged in their order, so the result does not depend
    on timing. `progress` is called with (calls done, calls in all or 0 where that is unknown);
    `forecast` once, after the first few calls, with what the rest will take. With `checkpoint`
    the work begins where an earlier process left it, and is saved from time to time and when it
    is interrupted.

    Raises `UsageError` without samples, for a name there is not, or a sample that lacks an input;
    `ParityError` where a tensor holds NaN or Inf or ONNX Runtime fails, naming tensor and sample.
    """
    workers = min(cores(), AT_ONCE)
    run = Taps(program, tuple(watchers), workers)
    total = operator.length_hint(samples, 0)
    done = start = checkpoint.resume(watchers) if checkpoint else 0
    told = Forecast(total - start, workers)

    def look(number: int, sample: Tensors) -> dict[str, Any]:
        values = run(sample, number)
        told.weigh(values)
        found = {name: watcher.digest(values.pop(name)) for name, watcher in watchers.items()}
        if bad := [name for name, digest in found.items() if digest is None]:
            raise ParityError(
                f"tensor {bad[0]!r} holds NaN or Inf on calibration sample {number}"
                + (f" (so do {len(bad) - 1} more)" if len(bad) > 1 else ""),
                hint="check that sample, and the original model on it",
            )
        return found

    numbered = enumerate(islice(samples, start, None), start)
    try:
        with closing(_ordered(look, numbered, workers, told)) as results:
            for found in results:
                for name, digest in found.items():
                    watchers[name].merge(digest)
                done += 1
                if progress is not None:
                    progress(done, total)
                if forecast is not None and (text := told.after(done - start)):
                    forecast(text)
                if checkpoint is not None:
                    checkpoint.tick(done, watchers)
    except BaseException as error:
        if checkpoint is not None and done > start:
            checkpoint.save(done, watchers)
            error.add_note(f"{done} of {total} samples are kept in {checkpoint.path}")
        raise
    if done == 0:
        raise UsageError(
            "no calibration samples", hint="save some with the model, or give --calibration"
        )
    return done


def _ordered(
    work: Callable[[int, Tensors], dict[str, Any]],
    items: Iterator[tuple[int, Tensors]],
    workers: int,
    told: Forecast,
) -> Generator[dict[str, Any], None, None]:
    """Yield what `work` makes of each item, in order, computing a few at once.

    The first is computed alone: it says how much memory one takes.
    """
    began = time.perf_counter()
    for number, sample in islice(items, 1):
        yield work(number, sample)
    told.start(time.perf_counter() - began)
    window = max(1, min(workers, TENSORS // max(told.bytes, 1)))
    waiting: deque[Future[dict[str, Any]]] = deque()
    with ThreadPoolExecutor(window) as pool:
        try:
            for number, sample in items:
                waiting.append(pool.submit(work, number, sample))
                if len(waiting) > window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
