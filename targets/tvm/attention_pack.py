"""Pack keys and values of one head as a product's weights, applying what was between on the way."""

from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.attention import Product
from npuc.targets.tvm.dots import Dot
from npuc.targets.tvm.emit import Kernel, cast, constant, lanes_of, pieces, tirx
from npuc.targets.tvm.graph import number
from npuc.targets.tvm.plan import evaluate
from npuc.targets.tvm.regions import tensor_args
from npuc.targets.tvm.rows import each


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix in memory: rows `stride` apart, each of neighbours; `chain` applies to elements."""

    memory: Any
    start: Any
    stride: int
    rows: int
    columns: int
    chain: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights [vectors, steps, lanes, adds], and what integer sums start with."""

    memory: Any
    vectors: int
    steps: int
    start: Any = None


def apply(k: Kernel, value: Any, chain: tuple[Any, ...]) -> Any:
    """Apply operators on single values to a vector."""
    lanes = lanes_of(value)
    for expr in chain:
        args = [_operand(arg, value, lanes) for arg in tensor_args(expr)]
        value = k.hold(evaluate(expr, args, k))
    return value


def _operand(arg: Any, value: Any, lanes: int) -> Any:
    array = number(arg)
    if array is None:
        return value
    return constant(array.reshape(()).item(), array.dtype.name, lanes)


def lane_sum(value: Any) -> Any:
    """Return the int32 sum of a vector's integers."""
    t = tirx()

    lanes = lanes_of(value)
    wide = cast(value, "int32")
    if lanes == 1:
        return wide
    return t.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.add.v{lanes}i32", wide)


def pack_columns(k: Kernel, dot: Dot, s: Source, product: Product) -> Packed:
    """Pack a matrix whose rows are the product's columns: keys."""
    lanes, adds = k.level.lanes, dot.adds
    integer = product.scale is not None
    dtype = "int8" if integer else "float32"
    steps, vectors = -(-s.columns // adds), -(-s.rows // lanes)
    memory = k.scratch(vectors * steps * lanes * adds, dtype)
    line = k.scratch(steps * adds, dtype)
    if s.columns % adds:
        k.store(line, constant(0, dtype, adds), (steps - 1) * adds)
    if s.rows % lanes:
        _clear(k, memory, (vectors - 1) * steps * lanes * adds, steps, lanes * adds, dtype)
    with k.loop(s.rows) as row:
        start = k.let(s.start + row * s.stride)
        for at, width in each(k, s.columns):
            value = apply(k, k.load(s.memory, start + at, width), s.chain)
            k.store(line, _signed(value) if integer else value, at)
        target = k.let((row // lanes * steps * lanes + row % lanes) * adds)
        whole = steps // 4
        if whole:
            with k.loop(whole) as turn:
                for inner in range(4):
                    step = turn * 4 + inner
                    value = k.load(line, step * adds, adds)
                    k.store(memory, value, target + step * (lanes * adds))
        for step in range(whole * 4, steps):
            k.store(memory, k.load(line, step * adds, adds), target + step * (lanes * adds))
    return Packed(memory, vectors, steps, _start(k, dot, memory, vectors, steps, product))


def pack_rows(k: Kernel, dot: Dot, s: Source, product: Product) -> Packed:
    """Pack a matrix whose rows are the product's depth: values."""
    lanes, adds = k.level.lanes, dot.adds
    integer = product.scale is not None
    dtype = "int8" if integer else "float32"
    steps, vectors = -(-s.rows // adds), -(-s.columns // lanes)
    memory = k.scratch(vectors * steps * lanes * adds, dtype)
    if s.columns % lanes:
        _clear(k, memory, (vectors - 1) * steps * lanes * adds, steps, lanes * adds, dtype)
    full, left = divmod(s.rows, adds)

    def step(at: Any, count: int, vector: int) -> None:
        rows = [k.let(s.start + (at * adds + r) * s.stride) for r in range(count)]
        target = k.let((vector * steps + at) * (lanes * adds))
        for first, width in pieces(min(lanes, s.columns - vector * lanes), lanes):
            column, place = vector * lanes + first, target + first * adds
            _together(k, s, memory, rows, column, place, width, integer)

    for vector in range(vectors):
        with k.loop(full) as at:
            step(at, adds, vector)
        if left:
            step(full, left, vector)
    return Packed(memory, vectors, steps, _start(k, dot, memory, vectors, steps, product))


def _together(
    k: Kernel, s: Source, memory: Any, rows: list[Any], at: int, target: Any, width: int,
    integer: bool,
) -> None:  # fmt: skip
    """Store neighbours of up to four rows: of codes, each lane's four values next to each other."""
    t = tirx()

    if not integer:
        (row,) = rows
        k.store(memory, apply(k, k.load(s.memory, row + at, width), s.chain), target)
        return
    word: Any = constant(0, "int32", width)
    for position, row in enumerate(rows):
        code = _signed(apply(k, k.load(s.memory, row + at, width), s.chain))
        byte = cast(code, "int32") & constant(0xFF, "int32", width)
        word = k.hold(word | (byte << constant(8 * position, "int32", width)))
    k.store(memory, t.reinterpret(f"int8x{4 * width}", word), target)


def _signed(code: Any) -> Any:
    """Return a code as int8, 128 less where it is unsigned."""
    t = tirx()

    lanes = lanes_of(code)
    if str(code.ty.dtype).startswith("int8"):
        return code
    flipped = code ^ constant(128, "uint8", lanes)
    return t.reinterpret("int8" if lanes == 1 else f"int8x{lanes}", flipped)


def _clear(k: Kernel, memory: Any, start: int, steps: int, width: int, dtype: str) -> None:
    """Fill the last vector, whose lanes are not all used, with zeros."""
    with k.loop(steps) as step:
        k.store(memory, constant(0, dtype, width), start + step * width)


def _start(k: Kernel, dot: Dot, memory: Any, vectors: int, steps: int, product: Product) -> Any:
    """Return -za·Σ w of every column, as the sums have it: inputs are shifted by `dot.shift`."""
    if product.scale is None:
        return None
    lanes = k.level.lanes
    start = k.scratch(vectors * lanes, "int32")
    zero = product.zero + dot.shift
    ones = constant(1, dot.inputs, lanes * dot.adds)
    with k.loop(vectors) as vector:
        (total,) = k.registers(1, "int32")
        k.store(total, constant(0, "int32", lanes), 0)
        with k.loop(steps if zero else 0) as step:
            weights = k.let(dot.weights(k, memory, (vector * steps + step) * (lanes * dot.adds)))
            k.store(total, dot.multiply_add(ones, weights, k.load(total, 0, lanes)), 0)
        off = k.integer(("start", id(memory)), -zero, lanes)
        k.store(start, k.load(total, 0, lanes) * off, vector * lanes)
    return start
