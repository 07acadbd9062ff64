"""Time the kernels of a compiled program one by one, in the order they run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npuc.program import Tensors
from npuc.targets.tvm import origins
from npuc.targets.tvm.runtime import SegmentRunner

_OWN = "vm.builtin."
"""How TVM's runtime calls what is no kernel: it allocates, checks shapes, makes tuples."""

_RUN = 0
"""What a hook answers for the call to go on."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One call of a kernel. `tensor` is the program's tensor that it computes, "" if unknown.

    `seconds` is the least of all runs; `bytes` is the size of all tensors that the kernel is
    given, each counted once; `dtypes` are their element types.
    """

    kernel: str
    tensor: str
    seconds: float
    bytes: int
    dtypes: tuple[str, ...]


def profile(runner: SegmentRunner, inputs: Tensors, repeats: int) -> tuple[KernelTime, ...] | None:
    """Run a call `repeats` times and time every kernel; None where not all of it is TVM's.

    Each kernel is timed from the moment TVM's machine has its arguments to its return: about
    2 µs of the machine's own time are left out, and 1 µs of Python's is added.
    """
    machine = runner.machine
    if machine is None:
        return None
    rounds = [_once(runner, machine, inputs) for _ in range(repeats + 1)][1:]
    told = [tensor for _, tensor in origins.calls(machine)]
    first = rounds[0]
    tensors = told if len(told) == len(first) else [""] * len(first)
    return tuple(
        KernelTime(
            name,
            tensor,
            min(run[at][1] for run in rounds),
            sum(size for size, _ in arguments),
            tuple(dtype for _, dtype in arguments),
        )
        for at, ((name, _, arguments), tensor) in enumerate(zip(first, tensors, strict=True))
    )


def _once(
    runner: SegmentRunner, machine: Any, inputs: Tensors
) -> list[tuple[str, float, list[tuple[int, str]]]]:
    import tvm_ffi

    done: list[tuple[str, float, list[tuple[int, str]]]] = []
    started = 0.0

    def hook(function: Any, name: Any, before: bool, result: Any, *arguments: Any) -> int:
        nonlocal started
        if before:
            started = time.perf_counter()
            return _RUN
        seconds = time.perf_counter() - started
        if not str(name).startswith(_OWN):
            done.append((str(name), seconds, _sizes(arguments)))
        return _RUN

    machine["set_instrument"](tvm_ffi.convert(hook))
    try:
        runner(inputs)
    finally:
        machine["set_instrument"](tvm_ffi.convert(lambda *_: _RUN))
    return done


def _sizes(arguments: Sequence[Any]) -> list[tuple[int, str]]:
    """Return bytes and element type of every tensor, each piece of memory once."""
    seen: dict[int, tuple[int, str]] = {}
    for argument in arguments:
        if hasattr(argument, "data_ptr"):
            count = 1
            for dim in argument.shape:
                count *= int(dim)
            dtype = str(argument.dtype)
            seen[argument.data_ptr()] = (count * _width(dtype), dtype)
    return list(seen.values())


def _width(dtype: str) -> int:
    import numpy as np

    return 1 if dtype == "bool" else np.dtype(dtype).itemsize
