"""Write one TensorIR function, statement by statement.

Kernels are written as explicit vector code: loops, loads, stores and local accumulators, with no
schedule in between. What is written is what LLVM gets.
"""

import functools
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from npuc.targets.tvm.cpu_level import Level

CHUNKS = 16
"""Pieces a parallel loop is cut into. A fixed number: who computes what, and so every sum, does
not depend on how many threads there are; 16 balance 2 to 16 threads."""

NUMBERS = 64
"""Room for numbers that kernels read from memory: the rest is written into their code."""

PARALLEL_WORK = 100_000
"""Multiply-adds below which starting the threads costs more than it saves (about 2 µs)."""

OPAQUE = 8
"""TVM's pattern kind for functions that nothing may be fused into."""

WRITTEN = "npuc.written"
"""Attribute of functions that a `Kernel` wrote: loops over flat memory, with nothing to lower."""


@functools.cache
def tirx() -> Any:
    """Return TVM's tensor IR; its annotations do not know the conversions it does."""
    from tvm import tirx

    return tirx


class Kernel:
    """A function under construction. Tensors are flat; the last ones declared are outputs."""

    def __init__(self, level: Level):
        self.level = level
        self._params: list[Any] = []
        self._views: list[Any] = []
        self._blocks: list[list[Any]] = [[]]
        self._count = 0
        self._code = ""
        self._numbers: list[int] = []
        self._places: dict[Hashable, int] = {}
        self._table: Any = None
        self._given: Any = None

    def tensor(self, shape: Sequence[int], dtype: str) -> Any:
        """Declare a parameter and return a flat view of it."""
        t = tirx()

        size = 1
        for dim in shape:
            size *= dim
        param = t.decl_buffer(tuple(shape), dtype, f"p{len(self._params)}")
        flat = t.decl_buffer((size,), dtype, f"f{len(self._params)}", data=param.data)
        self._params.append(param)
        self._views.append(t.DeclBuffer(flat, data=param.data))
        return flat

    def numbers(self, name: Hashable, values: Sequence[float], lanes: int = 1) -> list[Any]:
        """Read float32 from memory, in every lane, so that kernels which differ in them are one.

        `name` stands for these numbers wherever they are read.
        """
        t = tirx()

        bits = np.array(values, np.float32).view(np.int32)
        return [widen(t.reinterpret("float32", b), lanes) for b in self._words(name, bits)]

    def integer(self, name: Hashable, value: int, lanes: int = 1) -> Any:
        """Read an int32 from memory, in every lane, as `numbers` does."""
        (word,) = self._words(name, np.array([value], np.int32))
        return widen(word, lanes)

    def _words(self, name: Hashable, values: Any) -> list[Any]:
        if name not in self._places:
            if len(self._numbers) + len(values) > NUMBERS:
                return [constant(int(value), "int32") for value in values]
            self._places[name] = len(self._numbers)
            self._numbers += values.tolist()
        if self._table is None:
            self._table = self.tensor((NUMBERS,), "int32")
            self._given = self._params.pop()
        at = self._places[name]
        return [self.load(self._table, at + i) for i in range(len(values))]

    @property
    def table(self) -> np.ndarray[Any, Any] | None:
        """What the parameter before the outputs holds; None where `numbers` were not read."""
        if self._table is None:
            return None
        return np.array(self._numbers + [0] * (NUMBERS - len(self._numbers)), np.int32)

    def scratch(self, size: int, dtype: str) -> Any:
        """Allocate memory: on the stack below 1 KiB, where LLVM makes registers of it."""
        t = tirx()

        self._count += 1
        memory = t.decl_buffer((size,), dtype, f"s{self._count}", scope="global")
        self._blocks[-1].append(t.AllocBuffer(memory))
        return memory

    def registers(self, count: int, dtype: str) -> list[Any]:
        """Allocate vectors, each by itself: merged, they would outgrow the stack."""
        return [self.scratch(self.level.lanes, dtype) for _ in range(count)]

    @contextmanager
    def loop(self, extent: Any, *, parallel: bool = False) -> Iterator[Any]:
        """Repeat what is written inside; yields the loop variable, or 0 for a single turn."""
        t = tirx()

        if isinstance(extent, int) and extent == 1 and not parallel:
            yield 0
            return
        self._count += 1
        var = t.Var(f"i{self._count}", "int32")
        self._blocks.append([])
        yield var
        kind = t.ForKind.PARALLEL if parallel else t.ForKind.SERIAL
        body = _sequence(self._blocks.pop())
        self._blocks[-1].append(t.For(var, 0, extent, kind, body))

    @contextmanager
    def units(self, count: int, work: int) -> Iterator[Any]:
        """Loop over independent units of work, in parallel chunks where `work` is worth it."""
        chunks = min(count, CHUNKS)
        if work < PARALLEL_WORK or chunks == 1:
            with self.loop(count) as unit:
                yield unit
            return
        with self.loop(chunks, parallel=True) as chunk:
            start = self.let(chunk * count // chunks)
            stop = (chunk + 1) * count // chunks
            with self.loop(stop - start) as step:
                yield self.let(start + step)

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Do what is written inside only where the condition holds."""
        t = tirx()

        self._blocks.append([])
        yield
        body = _sequence(self._blocks.pop())
        self._blocks[-1].append(t.IfThenElse(condition, body, None))

    def let(self, value: Any) -> Any:
        """Give a value a name, so that it is computed once."""
        t = tirx()

        if isinstance(value, int):
            return value
        self._count += 1
        var = t.Var(f"v{self._count}", value.ty)
        self._blocks[-1].append(t.Bind(var, value))
        return var

    def hold(self, value: Any) -> Any:
        """Put a value into a register of its own: like `let`, but nothing can look inside.

        TVM's simplifier expands named integers where they are used, which takes it minutes for
        a chain of bit operations.
        """
        kind = str(value.ty.dtype).partition("x")[0]
        register = self.scratch(lanes_of(value), kind)
        self.store(register, value, 0)
        return self.load(register, 0, lanes_of(value))

    def load(self, memory: Any, index: Any, lanes: int = 1) -> Any:
        """Read `lanes` neighbours."""
        t = tirx()

        return t.BufferLoad(memory, [ramp(index, lanes)])

    def store(self, memory: Any, value: Any, index: Any) -> None:
        """Write as many neighbours as the value has lanes."""
        t = tirx()

        at = ramp(index, lanes_of(value))
        self._blocks[-1].append(t.BufferStore(memory, value, [at]))

    def prefetch(self, memory: Any, index: Any) -> None:
        """Ask for a cache line, which no answer depends on: `index` may lie behind the end."""
        from tvm import ir

        t = tirx()
        address = t.address_of(self.load(memory, index))
        read, near, data = (t.const(n, "int32") for n in (0, 2, 1))
        call = ir.Call("tirx.prefetch", [address, read, near, data], ret_ty="void")
        self._blocks[-1].append(t.Evaluate(call))

    def link(self, code: str) -> None:
        """Take a function of LLVM's own language in, for `call_extern`: it is inlined."""
        self._code = code

    def finish(self, outputs: int = 1) -> Any:
        """Return the function, the last of whose parameters are its `outputs`."""
        t = tirx()

        if self._table is not None:
            self._params.insert(len(self._params) - outputs, self._given)
        (statements,) = self._blocks
        body = _sequence([*self._views, *statements])
        if self._code:
            from tvm import ir

            none = t.IntImm("int32", 0)
            body = t.AttrStmt(none, "pragma_import_llvm", ir.StringImm(self._code), body)
        function = t.PrimFunc(self._params, body)
        return function.with_attr(
            {"tirx.noalias": True, "op_pattern": OPAQUE, "tirx.is_scheduled": True, WRITTEN: True}
        )


def _sequence(statements: list[Any]) -> Any:
    t = tirx()

    return statements[0] if len(statements) == 1 else t.SeqStmt(statements)


def dtype_of(memory: Any) -> np.dtype[Any]:
    """Return the element type of a tensor or of scratch memory."""
    return np.dtype(str(memory.ty.dtype.dtype))


def ramp(index: Any, lanes: int) -> Any:
    """Return the index of `lanes` neighbours."""
    t = tirx()

    index = t.IntImm("int32", index) if isinstance(index, int) else index
    return index if lanes == 1 else t.Ramp(index, 1, lanes)


def lanes_of(value: Any) -> int:
    """Return how many lanes a value has."""
    return int(value.ty.dtype.lanes)


def widen(value: Any, lanes: int) -> Any:
    """Repeat a scalar in every lane."""
    t = tirx()

    return value if lanes == 1 else t.Broadcast(value, lanes)


def constant(value: float, dtype: str, lanes: int = 1) -> Any:
    """Return a number in every lane."""
    t = tirx()

    return widen(t.const(value, dtype), lanes)


def cast(value: Any, dtype: str) -> Any:
    """Convert every lane."""
    t = tirx()

    lanes = lanes_of(value)
    return t.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def pieces(count: int, lanes: int) -> list[tuple[int, int]]:
    """Cut a range into (start, width): full vectors, then halves down to single elements."""
    result, start = [], 0
    while start < count:
        while lanes > count - start:
            lanes //= 2
        result.append((start, lanes))
        start += lanes
    return result


def fma(a: Any, b: Any, c: Any) -> Any:
    """Return a·b + c, rounded once."""
    t = tirx()

    lanes = lanes_of(c)
    if lanes == 1:
        return t.call_llvm_pure_intrin("float32", "llvm.fma.f32", a, b, c)
    return t.call_llvm_pure_intrin(f"float32x{lanes}", f"llvm.fma.v{lanes}f32", a, b, c)


def rounded(product: Any) -> Any:
    """Keep LLVM from adding to a float product before it is rounded: TVM allows it to."""
    t = tirx()

    lanes, kind = lanes_of(product), str(product.ty.dtype)
    short = kind.partition("x")[0].replace("float", "f")
    name = (
        f"llvm.arithmetic.fence.{short}" if lanes == 1 else f"llvm.arithmetic.fence.v{lanes}{short}"
    )
    return t.call_llvm_pure_intrin(kind, name, product)
