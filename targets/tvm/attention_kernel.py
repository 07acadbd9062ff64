"""The kernel of attention: a tile of rows at a time, from scores to results.

Keys and values of one head are packed as a product's weights are, once; then a few rows of scores
are computed, pass through the softmax and are multiplied by the values. The matrix of all scores
never exists. Heads are what threads share, and no sum depends on how many of them there are.

Integer products are exact: Σ (a - za)·(w - zw) = Σ a·w - za·Σ w - zw·(Σ a - n·za).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.attention import Match, Product, Side
from npuc.targets.tvm.attention_pack import Packed, apply, lane_sum, pack_columns, pack_rows
from npuc.targets.tvm.dots import Dot
from npuc.targets.tvm.emit import Kernel, cast, constant, widen
from npuc.targets.tvm.graph import key, number
from npuc.targets.tvm.plan import Plan, evaluate
from npuc.targets.tvm.regions import tensor_args
from npuc.targets.tvm.rows import FLOOR, add, each, larger, reduce
from npuc.targets.tvm.tiles import tile_for
from npuc.targets.tvm.vecmath import Functions, in_kernel
from npuc.targets.tvm.views import View

UNROLL = 4


def planner(match: Match) -> Callable[[Plan], bool]:
    """Return what plans a match's kernel."""

    def plan(p: Plan) -> bool:
        _Attention(p, match).write()
        integer = match.scores.scale is not None and match.values.scale is not None
        return p.done("attention_int8" if integer else "attention")

    return plan


class _Attention:
    """One kernel being written."""

    def __init__(self, p: Plan, match: Match):
        assert match.scores.left is not None
        self.p, self.k, self.m = p, p.kernel, match
        self.query: Side = match.scores.left
        self.keys, self.values = match.scores.right, match.values.right
        *batch, self.rows, self.depth = self.query.read.view.shape
        self.batch = tuple(batch)
        self.width = self.keys.read.view.shape[-2]
        self.columns = self.values.read.view.shape[-1]
        self.lanes = self.k.level.lanes
        self.dots = match.scores.dot(p.level), match.values.dot(p.level)
        self.share = _shared(self.keys.read.view, self.values.read.view)
        self.memory: dict[int, Any] = {}
        for side in (self.query, self.keys, self.values):
            self._declare(side.read.base)
        self.leaves = {}
        inside = {key(match.first), *(key(var) for var, _ in match.chain)}
        for _, expr in match.chain:
            for arg in tensor_args(expr):
                array = number(arg)
                if (array is not None and array.size == 1) or key(arg) in inside:
                    continue
                self._declare(arg)
                shape = tuple(int(d) for d in arg.ty.shape)
                full = (*self.batch, self.rows, self.width)
                self.leaves[key(arg)] = View.contiguous(shape).broadcast(full)
        self.y = p.output()

    def _declare(self, expr: Any) -> None:
        if key(expr) not in self.memory:
            self.memory[key(expr)] = self.p.input(expr)

    def write(self) -> None:
        """Write the body."""
        k, count = self.k, 1
        for dim in self.batch:
            count *= dim
        work = count * self.rows * self.width * (self.depth + self.columns)
        with k.units(count // self.share, work) as unit:
            place = self._place(unit * self.share)
            keys = pack_columns(k, self.dots[0], self._source(self.keys, place), self.m.scores)
            values = pack_rows(k, self.dots[1], self._source(self.values, place), self.m.values)
            with k.loop(self.share) as turn:
                self._head(self._place(unit * self.share + turn), keys, values)

    def _source(self, side: Side, place: Sequence[Any]) -> Any:
        from npuc.targets.tvm.attention_pack import Source

        view = side.read.view
        rows, wide = view.shape[-2:]
        start = self.k.let(view.index((*place, 0, 0)))
        stride = view.stride(len(view.axes) - 2)
        assert stride is not None, "the finder takes rows of one stride only"
        memory = self.memory[key(side.read.base)]
        return Source(memory, start, stride, rows, wide, side.read.chain)

    def _place(self, head: Any) -> tuple[Any, ...]:
        """Return the position in the batch axes of a matrix by its number."""
        result, inner = [], 1
        for axis in reversed(range(len(self.batch))):
            at = head // inner if inner > 1 else head
            result.append(self.k.let(at % self.batch[axis] if axis else at))
            inner *= self.batch[axis]
        return tuple(reversed(result))

    def _head(self, place: tuple[Any, ...], keys: Packed, values: Packed) -> None:
        tile = tile_for(self.rows, max(keys.vectors, values.vectors), self.k.level)
        tiles, left = divmod(self.rows, tile.rows)
        source = self._source(self.query, place)
        with self.k.loop(tiles) as step:
            _Tile(self, place, self.k.let(step * tile.rows), tile.rows, tile.vectors).write(
                source, keys, values
            )
        if left:
            _Tile(self, place, tiles * tile.rows, left, tile.vectors).write(source, keys, values)


@dataclass(frozen=True)
class _Tile:
    """Some rows of one head."""

    a: _Attention
    place: tuple[Any, ...]
    first: Any
    rows: int
    vectors: int

    def write(self, query: Any, keys: Packed, values: Packed) -> None:
        """Compute the rows' results."""
        a, k = self.a, self.a.k
        dot = a.dots[0]
        pitch = -(-a.depth // dot.adds) * dot.adds
        rows = k.scratch(
            self.rows * pitch, "float32" if a.m.scores.scale is None else _code(a.m.scores)
        )
        terms = k.scratch(self.rows, "int32") if a.m.scores.scale is not None else None
        with k.loop(self.rows) as row:
            self._query(query, rows, terms, row, pitch, keys)
        wide = keys.vectors * a.lanes
        scores = k.scratch(self.rows * wide, "float32")
        self._product(dot, rows, pitch, keys, a.m.scores, terms, scores, wide)
        codes = a.m.values.scale is not None
        step = a.dots[1].adds
        across = -(-a.width // step) * step if codes else wide
        soft = k.scratch(self.rows * across, _code(a.m.values)) if codes else scores
        after = k.scratch(self.rows, "int32") if codes else None
        inverse = k.scratch(self.rows, "float32")
        with k.loop(self.rows) as row:
            self._softmax(scores, row, wide, soft, across, after, inverse)
        narrow = values.vectors * a.lanes
        result = k.scratch(self.rows * narrow, "float32")
        self._product(a.dots[1], soft, across, values, a.m.values, after, result, narrow)
        with k.loop(self.rows) as row:
            self._end(result, row, narrow, None if codes else k.let(k.load(inverse, row)))

    def _query(self, query: Any, rows: Any, terms: Any, row: Any, pitch: int, keys: Packed) -> None:
        """Copy a row of Q, and compute what the keys' zero point takes off its sums."""
        a, k = self.a, self.a.k
        start = k.let(query.start + (self.first + row) * query.stride)
        total = k.scratch(1, "int32")
        k.store(total, constant(0, "int32"), 0)
        for at, width in each(k, a.depth):
            value = apply(k, k.load(query.memory, start + at, width), query.chain)
            k.store(rows, value, row * pitch + at)
            if terms is not None and a.keys.zero:
                k.store(total, k.load(total, 0) + lane_sum(value), 0)
        if terms is not None:
            off = k.load(total, 0) - k.integer("query's zeros", a.depth * a.m.scores.zero)
            k.store(terms, off * k.integer("keys' zero", -a.keys.zero), row)

    def _product(
        self, dot: Dot, rows: Any, pitch: int, packed: Packed, product: Product, terms: Any,
        result: Any, wide: int,
    ) -> None:  # fmt: skip
        """Multiply the tile's rows by packed weights; write floats."""
        k, lanes = self.a.k, self.a.lanes
        for first, vectors in _panels(k, packed.vectors, self.vectors):
            total = [k.registers(vectors, dot.sums) for _ in range(self.rows)]
            for v in range(vectors):
                begin = dot.begin(lanes)
                if packed.start is not None:
                    begin = k.let(k.load(packed.start, (first + v) * lanes, lanes))
                for row in total:
                    k.store(row[v], begin, 0)
            _multiply(k, dot, total, rows, pitch, packed, first)
            for m, row in enumerate(total):
                term = None if terms is None else k.let(k.load(terms, m))
                for v, register in enumerate(row):
                    value = k.load(register, 0, lanes)
                    if term is not None:
                        which = ("factor", product is self.a.m.scores)
                        (factor,) = k.numbers(which, [product.scale or 0.0], lanes)
                        value = cast(value + widen(term, lanes), "float32") * factor
                    k.store(result, value, m * wide + (first + v) * lanes)

    def _softmax(
        self, scores: Any, row: Any, wide: int, soft: Any, across: int, after: Any, inverse: Any
    ) -> None:
        """Turn a row of scores into e^(x - max), and codes of its share where these are wanted."""
        a, k = self.a, self.a.k
        functions = Functions(in_kernel(k))
        base = k.let(row * wide)
        bases = {
            leaf: k.let(view.index((*self.place, self.first + row, 0)))
            for leaf, view in a.leaves.items()
        }

        def chained(at: Any, width: int) -> Any:
            value = k.load(scores, base + at, width)
            if a.m.chain:
                value = self._chained(value, at, width, bases)
                k.store(scores, value, base + at)
            return value

        top = reduce(k, a.width, FLOOR, larger, chained)

        def shifted(at: Any, width: int) -> Any:
            gap = k.load(scores, base + at, width) - widen(top, width)
            value = k.let(functions.exp_below(gap))
            k.store(scores, value, base + at)
            return value

        total = reduce(k, a.width, 0.0, add, shifted)
        share = k.let(constant(1.0, "float32") / total)
        if after is None:
            k.store(inverse, share, row)
            return
        sums = k.scratch(a.lanes, "int32")
        k.store(sums, constant(0, "int32", a.lanes), 0)
        scale, zero = (number(arg) for arg in a.m.quantize.args[1:3])
        for at, width in each(k, a.width):
            part = k.let(k.load(scores, base + at, width) * widen(share, width))
            numbers = [
                constant(array.reshape(()).item(), array.dtype.name, width)
                for array in (scale, zero)
                if array is not None
            ]
            code = k.hold(evaluate(a.m.quantize, [part, *numbers], k))
            k.store(soft, code, row * across + at)
            if a.values.zero:
                k.store(sums, k.load(sums, 0, width) + cast(code, "int32"), 0)
        zeros = k.integer("shares' zeros", a.width * a.m.values.zero)
        off = lane_sum(k.load(sums, 0, a.lanes)) - zeros
        k.store(after, off * k.integer("values' zero", -a.values.zero), row)

    def _chained(self, value: Any, at: Any, width: int, bases: dict[int, Any]) -> Any:
        """Apply what is between the scores and the softmax to neighbouring scores."""
        a, k = self.a, self.a.k
        known = {key(a.m.first): value}

        def read(arg: Any) -> Any:
            array = number(arg)
            if array is not None and array.size == 1:
                return constant(array.reshape(()).item(), array.dtype.name, width)
            if key(arg) in known:
                return known[key(arg)]
            memory, view = a.memory[key(arg)], a.leaves[key(arg)]
            if view.stride(len(view.axes) - 1):
                return k.load(memory, bases[key(arg)] + at, width)
            return widen(k.load(memory, bases[key(arg)]), width)

        for var, expr in a.m.chain:
            value = k.hold(evaluate(expr, [read(arg) for arg in tensor_args(expr)], k))
            known[key(var)] = value
        return value

    def _end(self, result: Any, row: Any, narrow: int, share: Any) -> None:
        """Finish a row of results and store it."""
        a, k = self.a, self.a.k
        start = k.let(a.m.out.index((*self.place, self.first + row, 0)))
        last = a.p.shape[-1]
        for at, width in each(k, a.columns):
            value = k.load(result, row * narrow + at, width)
            if share is not None:
                value = value * widen(share, width)
            out = k.let(start + at)
            channel = at if last == a.columns else k.let(out % last)
            k.store(a.y, a.p.finish(k.let(value), width, channel, out), out)


def _multiply(
    k: Kernel, dot: Dot, total: list[list[Any]], rows: Any, pitch: int, packed: Packed, first: Any
) -> None:
    """Add the products of some rows with some vectors of packed weights."""
    stride = k.level.lanes * dot.adds
    streams = [k.let((first + v) * (packed.steps * stride)) for v in range(len(total[0]))]

    def step(at: Any) -> None:
        weights = [k.let(dot.weights(k, packed.memory, s + at * stride)) for s in streams]
        for m, row in enumerate(total):
            value = k.let(dot.value(k, rows, m * pitch + at * dot.adds))
            for register, weight in zip(row, weights, strict=True):
                old = k.load(register, 0, k.level.lanes)
                k.store(register, dot.multiply_add(value, weight, old), 0)

    turns, left = divmod(packed.steps, UNROLL)
    if turns:
        with k.loop(turns) as turn:
            for inner in range(UNROLL):
                step(turn * UNROLL + inner)
    for inner in range(left):
        step(turns * UNROLL + inner)


def _panels(k: Kernel, vectors: int, wide: int) -> Iterator[tuple[Any, int]]:
    """Iterate over (first vector, how many), in a loop and then the rest."""
    whole, left = divmod(vectors, wide)
    if whole:
        with k.loop(whole) as step:
            yield k.let(step * wide), wide
    if left:
        yield whole * wide, left


def _shared(*views: View) -> int:
    """Return how many neighbouring matrices of the batch are the same ones in every view."""
    counts = set()
    for view in views:
        axis = view.axes[-3] if len(view.axes) > 2 else ()
        counts.add(axis[-1][0] if axis and axis[-1][1] == 0 else 1)
    return counts.pop() if len(counts) == 1 else 1


def _code(product: Product) -> str:
    return "int8" if product.signed else "uint8"
