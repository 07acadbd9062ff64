"""Run a program on samples and choose the range each tensor is quantized over."""

import operator
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from npuc.passes.graphs import infer_types
from npuc.passes.qdq.sites import observed
from npuc.profile import IntScheme
from npuc.program import Program, Tensors
from npuc.quantization import importance
from npuc.quantization.checkpoint import Checkpoint
from npuc.quantization.observers import Observer
from npuc.quantization.ranges import Range, Ranges
from npuc.quantization.streaming import AT_ONCE, stream
from npuc.quantization.taps import cores
from npuc.quantization.thresholds import method

__all__ = ["Ranges", "collect"]


def collect(
    program: Program,
    samples: Iterable[Tensors],
    scheme: IntScheme,
    *,
    observer: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    forecast: Callable[[str], None] | None = None,
    checkpoint: Checkpoint | None = None,
    known: Mapping[str, Range] | None = None,
) -> Ranges:
    """Observe every tensor that `scheme` quantizes, one sample at a time, in one pass.

    `samples` yields one call's inputs each; `observer` overrides the scheme's. `progress` is
    called with (samples done, samples in all or 0 where that is unknown). Peak memory is the
    program, its tensors for one sample and a histogram per tensor. `known` are the least and
    greatest values that tensors hold on these samples: where no histogram is wanted, these are
    not observed again.

    Raises `UsageError` without samples, for a sample that lacks an input, or an unknown observer;
    `ParityError` where a tensor holds NaN or Inf or ONNX Runtime fails, naming tensor and sample.
    """
    name = observer or scheme.observer
    chosen = method(name)
    copy = program.clone()
    infer_types(copy.model)
    names = observed(copy.model, scheme)
    matters = importance.of(copy.model, scheme) if chosen.weighted else {}
    watching = {tensor: Observer(chosen.bins, matters.get(tensor)) for tensor in names}
    told = {t: ends for t, ends in (known or {}).items() if t in watching and not chosen.bins}
    for tensor, (low, high) in told.items():
        watching[tensor].low, watching[tensor].high = low, high
    unseen = {tensor: seen for tensor, seen in watching.items() if tensor not in told}
    done = operator.length_hint(samples)
    if unseen or not told:
        done = stream(
            copy, samples, unseen, progress=progress, forecast=forecast, checkpoint=checkpoint
        )
    watched = {t: seen for t, seen in watching.items() if seen.low <= seen.high}
    with ThreadPoolExecutor(min(cores(), AT_ONCE)) as pool:
        found = list(pool.map(lambda seen: chosen.choose(seen, scheme), watched.values()))
    return Ranges(
        dict(zip(watched, found, strict=True)),
        {t: (seen.low, seen.high) for t, seen in watched.items()},
        done,
        name,
    )
