"""Measure what this machine can do at most: multiply-adds out of registers, bytes out of memory.

A kernel of independent accumulators reads nothing but registers, so nothing but the arithmetic
units bounds it. It runs on TVM's own threads, as compiled programs do.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.targets.tvm import build, cpu_level, dots, linker, runtime
from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.emit import CHUNKS, Kernel

ACCUMULATORS = 12
"""Independent sums: more than latency (4 cycles) times units (2) of any CPU in use."""

_TURNS = 1 << 17
"""Turns of the loop per chunk: a call takes milliseconds, its start microseconds."""

_STREAM = 192 << 20
"""Bytes summed for the bandwidth: far more than caches hold."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Operations per second (a multiply-add counts two) and bytes read per second, on `threads`.

    `bfloat16` and `integer` are those of the multiply-adds of bfloat16 and of 8-bit codes that
    npuc's kernels use on this CPU.
    """

    threads: int
    float32: float
    bfloat16: float
    integer: float
    bandwidth: float
    instruction: str


def measure(seconds: float = 0.3) -> Peaks:
    """Measure for about `seconds` each, on as many threads as compiled programs use."""
    level = cpu_level.resolve("native")
    dot = dots.choose(level, signed=False, narrow=True)
    half = dots.of_halves(level)
    machine = runtime.opened(_library(level, dot, half))
    threads = runtime.threads()
    work = 2 * CHUNKS * _TURNS * ACCUMULATORS * level.lanes
    float32 = work / _least(_caller(machine, "real"), seconds)
    bfloat16 = work * half.adds / _least(_caller(machine, "short"), seconds)
    integer = work * dot.adds / _least(_caller(machine, "coded"), seconds)
    memory = _aligned(_STREAM)
    read = _STREAM / _least(_caller(machine, "stream", memory), seconds)
    return Peaks(threads, float32, bfloat16, integer, read, dot.instruction)


def _least(call: Callable[[], Any], seconds: float) -> float:
    call()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def _aligned(size: int) -> Any:
    memory = np.empty(size + runtime.ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % runtime.ALIGNMENT
    held = memory[start : start + size].view(np.float32)
    held[...] = 1.0  # pages that were never written share one of zeros
    return held


def _caller(machine: Any, name: str, *inputs: Any) -> Callable[[], Any]:
    import tvm_ffi

    given = [tvm_ffi.from_dlpack(array) for array in inputs]
    function = machine[name]
    return lambda: function(*given)


def _library(level: Level, dot: dots.Dot, half: dots.Dot) -> bytes:
    from tvm import relax as typed

    relax: Any = typed  # its annotations do not know the conversions it does
    builder = relax.BlockBuilder()
    kinds = {
        name: _arithmetic(level, kind)
        for name, kind in (("real", dots.FLOAT), ("short", half), ("coded", dot))
    }
    for name, (kernel, dtype) in kinds.items():
        with builder.function(name, []):
            function = builder.add_func(kernel, f"{name}_kernel")
            out = relax.TensorType((CHUNKS * level.lanes,), dtype)
            builder.emit_func_output(builder.emit(relax.call_tir(function, [], out_ty=out)))
    data = relax.Var("data", relax.TensorType((_STREAM // 4,), "float32"))
    with builder.function("stream", [data]):
        function = builder.add_func(_stream(level), "stream_kernel")
        out = relax.TensorType((CHUNKS * level.lanes,), "float32")
        builder.emit_func_output(builder.emit(relax.call_tir(function, [data], out_ty=out)))
    return build.export(build.lowered(builder.get(), level), linker.find_linker(level.arch))


def _arithmetic(level: Level, dot: dots.Dot) -> tuple[Any, str]:
    """Return a kernel that adds to every accumulator in turn, and its result's type."""
    k = Kernel(level)
    result = k.tensor((CHUNKS * level.lanes,), dot.sums)
    with k.loop(CHUNKS, parallel=True) as chunk:
        totals = k.registers(ACCUMULATORS, dot.sums)
        for total in totals:
            k.store(total, dot.begin(level.lanes), 0)
        weights = k.scratch(level.lanes * dot.adds, dot.stored[0])
        value = k.scratch(dot.adds, dot.stored[1])
        for memory in (weights, value):
            for at in range(dot.adds * (level.lanes if memory is weights else 1)):
                k.store(memory, _one(memory, chunk), at)
        with k.loop(_TURNS):
            for total in totals:
                term = dot.multiply_add(
                    dot.value(k, value, 0),
                    dot.weights(k, weights, 0),
                    k.load(total, 0, level.lanes),
                )
                k.store(total, term, 0)
        end = k.load(totals[0], 0, level.lanes)
        for total in totals[1:]:
            end = end + k.load(total, 0, level.lanes)
        k.store(result, end, chunk * level.lanes)
    return k.finish(), dot.sums


def _one(memory: Any, chunk: Any) -> Any:
    """Return a number that the compiler does not know."""
    from npuc.targets.tvm.emit import cast, dtype_of

    return cast(chunk % 2, dtype_of(memory).name)


def _stream(level: Level) -> Any:
    """Return a kernel that sums everything it is given."""
    k = Kernel(level)
    data = k.tensor((_STREAM // 4,), "float32")
    result = k.tensor((CHUNKS * level.lanes,), "float32")
    wide = 8 * level.lanes
    turns = _STREAM // 4 // wide // CHUNKS
    with k.loop(CHUNKS, parallel=True) as chunk:
        totals = k.registers(8, "float32")
        for total in totals:
            k.store(total, dots.FLOAT.begin(level.lanes), 0)
        with k.loop(turns) as turn:
            for at, total in enumerate(totals):
                place = (chunk * turns + turn) * wide + at * level.lanes
                value = k.load(total, 0, level.lanes) + k.load(data, place, level.lanes)
                k.store(total, value, 0)
        end = k.load(totals[0], 0, level.lanes)
        for total in totals[1:]:
            end = end + k.load(total, 0, level.lanes)
        k.store(result, end, chunk * level.lanes)
    return k.finish()
