"""Which multiply-add a CPU gets, and that the code has it; test_random_* say that it is exact."""

import itertools
import platform
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from npuc.errors import UsageError
from npuc.targets import tvm
from npuc.targets.tvm import build, cpu_level, dots, emit, importer, prefetch, rewrites, tiles
from npuc.targets.tvm.staging import Geometry

WANTED = {
    "x86-64-v3": ("vpmaddwd", "vpmaddwd"),
    "x86-64-v3+avxvnni": ("vpdpbusd", "vpdpbusd"),
    "x86-64-v4": ("vpmaddwd", "vpmaddwd"),
    "x86-64-v4+avx512vnni": ("vpdpbusd", "vpdpbusd"),
    "aarch64:cortex-a76": ("sdot", "sdot"),
    "aarch64+dotprod": ("sdot", "sdot"),
    "aarch64+i8mm": ("usdot", "sdot"),
    "aarch64:neoverse-v1": ("usdot", "sdot"),
}
"""CPU → the instructions for unsigned and for signed codes."""


def products(graph: Callable[..., Any], dtype: str) -> Any:
    """Return a program: codes [6, 20] times int8 weights [20, 18]."""
    made = graph()
    x = np.zeros((6, 20), dtype)
    weights = np.arange(-180, 180).reshape(20, 18).clip(-128, 127).astype(np.int8)
    one, none = made.constant(np.float32(1)), made.constant(np.array(3, dtype))
    data = made.node("DequantizeLinear", made.input(x), one, none)
    zero = made.constant(np.int8(0))
    filters = made.node("DequantizeLinear", made.constant(weights), one, zero)
    made.output(made.node("MatMul", data, filters))
    return made.program()


@pytest.mark.parametrize("cpu", WANTED)
def test_the_instruction_is_in_the_code(graph: Callable[..., Any], cpu: str) -> None:
    for dtype, wanted in zip(("uint8", "int8"), WANTED[cpu], strict=True):
        relax = importer.to_relax(rewrites.prepare(products(graph, dtype).model))
        made: Any = build.compile_module(relax, cpu_level.resolve(cpu))
        (code,) = made.mod.imports
        lines = code.inspect_source("asm")
        instructions = set(re.findall(r"^\s+(?:\{vex\}\s+)?([a-z]\w+)", lines, re.MULTILINE))
        assert wanted in instructions, (cpu, dtype)
        assert "vpmaddubsw" not in instructions, "it saturates"


@pytest.mark.parametrize(
    ("cpu", "instruction"),
    [("x86-64-v3", "prefetcht1"), ("x86-64-v4", "prefetcht1"), ("aarch64", "prfm")],
)
def test_cold_weights_are_asked_for_ahead(
    cpu: str, instruction: str, graph: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    found = []
    for rows in (8, 300, 2000):  # the same weights, the next block's, and none
        made = graph()
        weights = floats((515, 131), 1)
        made.output(made.node("MatMul", made.input(floats((rows, 515), 2)), made.constant(weights)))
        relax = importer.to_relax(rewrites.prepare(made.program().model))
        compiled: Any = build.compile_module(relax, cpu_level.resolve(cpu))
        found.append(instruction in compiled.mod.imports[0].inspect_source("asm"))
    assert found == [True, True, False]


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
@pytest.mark.parametrize("rows", [1, 3, 8, 17, 49, 300])
def test_what_is_asked_for_ahead_changes_no_answer(
    cpu: str, rows: int, graph: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph()
    x, weights = floats((rows, 515), 2), floats((515, 131), 1)
    made.output(made.node("MatMul", made.input(x), made.constant(weights)))
    program = made.program()
    (got,) = tvm.load(tvm.lower(program, cpu=cpu).files, program)(made.feed).values()
    # 515 products summed one after the other in float32: less than their count of roundings.
    noise = 515 * np.finfo(np.float32).eps * (np.abs(x) @ np.abs(weights)).max()
    np.testing.assert_allclose(got, x.astype(np.float64) @ weights, atol=noise, rtol=0)


@pytest.mark.parametrize(
    ("cpu", "said"),
    [
        ("x86-64-v3+dotprod", "avx512vnni or avx512bf16 or avxvnni"),
        ("x86-64-v3+avx512vnni", "x86-64-v4"),
        ("aarch64+avxvnni", "dotprod or i8mm"),
        ("aarch64:cortex-a76+", "dotprod or i8mm"),
        ("native+avxvnni", "--cpu native"),
    ],
)
def test_features_that_a_cpu_cannot_have_are_refused(cpu: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        cpu_level.resolve(cpu)
    assert said in caught.value.hint


def test_what_a_hypervisor_hides_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM goes by the CPU's model, the machine by its flags."""
    from tvm.target import codegen

    monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: "znver5")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    flags = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "avx_vnni"}
    monkeypatch.setattr(cpu_level, "host_flags", lambda: frozenset(flags))
    level = cpu_level.resolve("native")
    assert (level.lanes, level.dot) == (8, "avxvnni")
    assert {"-avx512f", "-avx512vnni", "-avx512vpopcntdq"} <= set(level.features)
    assert not [f for f in level.features if f.startswith("-avxvnni")]
    assert set(level.requires) == flags
    monkeypatch.setattr(cpu_level, "host_flags", lambda: frozenset(flags - {"fma"}))
    with pytest.raises(UsageError, match="lacks fma"):
        cpu_level.resolve("native")


def test_what_arm_code_needs_is_required() -> None:
    assert cpu_level.resolve("aarch64").requires == ("asimd",)
    assert "asimddp" in cpu_level.resolve("aarch64+dotprod").requires
    needed = cpu_level.resolve("aarch64:neoverse-v1").requires
    assert {"asimddp", "i8mm", "sve", "atomics"} <= set(needed)


@pytest.mark.parametrize(("multiple", "adds"), [(0, 4), (8, 4), (6, 2), (3, 1)])
def test_runs_that_cannot_be_padded_get_narrower_instructions(multiple: int, adds: int) -> None:
    level = cpu_level.resolve("x86-64-v4+avx512vnni")
    assert dots.choose(level, signed=False, narrow=True, multiple=multiple).adds == adds
    # Weights of nine bits need int16.
    wide = dots.choose(level, signed=False, narrow=False, multiple=multiple)
    assert wide.adds == min(adds, 2)


@pytest.mark.parametrize(("step", "cut"), [(0.5, False), (1e-3, True)])
def test_what_an_integer_holds_is_not_cut_off(
    step: float, cut: bool, graph: Callable[..., Any]
) -> None:
    made = graph()
    one, none = made.constant(np.float32(0.1)), made.constant(np.uint8(3))
    data = made.node("DequantizeLinear", made.input(np.zeros((1, 8, 4, 4), np.uint8)), one, none)
    codes = made.constant(np.arange(512).reshape(64, 8, 1, 1).clip(0, 127).astype(np.int8))
    filters = made.node("DequantizeLinear", codes, one, made.constant(np.int8(0)))
    sums = made.node("Conv", data, filters)
    made.output(made.node("QuantizeLinear", sums, made.constant(np.float32(step)), none))
    relax = importer.to_relax(rewrites.prepare(made.program().model))
    compiled: Any = build.compile_module(relax, cpu_level.resolve("x86-64-v4"))
    assert ("vminps" in compiled.mod.imports[0].inspect_source("asm")) == cut


@pytest.mark.parametrize(
    ("cpu", "pixels", "rows"),
    [
        ("x86-64-v4", 14, 5),  # 5, 5 and 4, not 4, 4, 4 and 2
        ("x86-64-v4", 28, 4),
        ("x86-64-v4", 11, 4),  # 4, 4 and 3: no line of two tiles is worth as many registers
        ("x86-64-v4", 7, 4),
        ("x86-64-v3", 14, 5),  # two vectors, 12 sums: 5, 5 and 4 as it is
    ],
)
def test_no_line_ends_with_a_small_tile(cpu: str, pixels: int, rows: int) -> None:
    level = cpu_level.resolve(cpu)
    assert tiles.tile_for(pixels, 16, level, packed=True, line=True).rows == rows
    flat = tiles.tile_for(pixels, 16, level, packed=True)
    assert flat.rows * flat.vectors <= 16


@pytest.mark.parametrize("cpu", ["x86-64-v4", "x86-64-v3", "aarch64"])
def test_tiles_are_all_pixels_and_fit_registers(cpu: str) -> None:
    level = cpu_level.resolve(cpu)
    most = tiles.MORE if level.lanes == 16 else 16
    for pixels, vectors in itertools.product(range(1, 200), (1, 2, 3, 4, 9)):
        tile = tiles.tile_for(pixels, vectors, level, packed=True)
        whole, last = tiles.cut(pixels, tile, level)
        assert whole * tile.rows + last == pixels
        assert last * tile.vectors <= most


def test_a_rest_of_few_rows_is_no_tile_of_its_own() -> None:
    level = cpu_level.resolve("x86-64-v4")
    assert tiles.cut(49, tiles.Tile(4, 4), level) == (11, 5)
    assert tiles.cut(50, tiles.Tile(4, 4), level) == (11, 6)
    assert tiles.cut(51, tiles.Tile(4, 4), level) == (12, 3)
    assert tiles.cut(49, tiles.Tile(4, 4), cpu_level.resolve("x86-64-v3")) == (12, 1)


@pytest.mark.parametrize(("kind", "adds"), [("int8", 4), ("float32", 1)])
@pytest.mark.parametrize(("kernel", "count"), [((1, 1), 13), ((3, 3), 14), ((1, 1), 64)])
def test_all_of_the_next_block_is_asked_for(
    kernel: tuple[int, int], count: int, kind: str, adds: int
) -> None:
    edge = kernel[0] // 2
    g = Geometry(1, 7, 7, 512, 2048, kernel, pads=(edge, edge, edge, edge))
    k = emit.Kernel(cpu_level.resolve("x86-64-v4"))
    steps, stride = 512 // adds * kernel[0] * kernel[1], 16 * adds
    memory = k.tensor((128 * steps * stride,), kind)
    asked: list[int] = []
    recorder: Any = SimpleNamespace(let=int, prefetch=lambda _, place: asked.append(place))
    ahead = prefetch.Ahead(recorder, g, memory, stride, 4)
    share, base, block = ahead.share(4, count), 4 * steps * stride, 4 * steps * stride
    for turn in range(count):
        ask = ahead.next(base, turn * steps, share)
        for step in range(0, steps, 4):
            ask(step)
    line = 64 // np.dtype(kind).itemsize
    assert {*range(base // line, (base + block) // line)} <= {place // line for place in asked}
    # Shares are rounded up to whole values, and asked for in whole lines.
    assert max(asked) < base + block + count * steps + 4 * line
    assert ahead.share(4, 65) == 0


def test_packing_keeps_every_weight_and_pads_with_zeros() -> None:
    weights = np.arange(1, 1 + 2 * 8 * 5, dtype=np.int16).reshape(2, 8, 5)
    packed = dots.Dot(4, "int32", "uint8").pack(weights, 4)
    assert packed.shape == (2, 2, 2, 4, 4)
    for group, depth, column in np.ndindex(weights.shape):
        found = packed[group, column // 4, depth // 4, column % 4, depth % 4]
        assert found == weights[group, depth, column]
    assert packed.sum() == weights.sum()
