"""One kernel call being planned: its tensors in order, its code, and the region it ends with."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from npuc.targets.tvm import halves, markers, packing, whole
from npuc.targets.tvm.coded import coded, dequantize
from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.emit import Kernel, constant, lanes_of, rounded, widen
from npuc.targets.tvm.graph import Array, Walk, dtype_of, is_var, key, number, operator, shape_of
from npuc.targets.tvm.pointwise import (
    OPERATORS,
    SLOW,
    bounds,
    clip,
    known_step,
    quantize,
    quantize_by,
)
from npuc.targets.tvm.regions import Binding, Region, leaf_kind, shaped_args, tensor_args
from npuc.targets.tvm.rounding import round_to
from npuc.targets.tvm.vecmath import Functions, in_kernel

HEAVY = frozenset(f"relax.{name}" for name in SLOW)
"""Operators that are polynomials of dozens of instructions."""

_INT32, _CODES = 2.0**31, 255

_SURE = 0.999
"""Leaves more room than a dozen float32 roundings and a zero point take."""

LONG = 8
"""Operators after which any region is written once per tile."""


@dataclass
class Plan:
    """A region becoming one call. Planners declare inputs, then write the kernel."""

    level: Level
    items: list[Binding]
    region: Region
    sources: dict[int, Any]
    name: str = ""
    inputs: list[Any] = field(default_factory=list)
    function: Any = None
    factor: float = math.inf
    """What int32 sums are multiplied by to be the anchor's values, at most; infinity for floats."""

    def __post_init__(self) -> None:
        self.kernel = Kernel(self.level)
        self._leaves: dict[int, tuple[str, Any]] = {}
        self._skipped: dict[int, int] = {}
        self._kept: Any = None
        self._coded: dict[int, Any] = {}
        self._scales: dict[int, Any] = {}
        self._wide = False

    def pack(self) -> str:
        """Let `finish` give full vectors of codes as int32 for `packing`; return their type.

        Return "" where the region does not end with codes of a known step, or nothing packs them.
        """
        last = self.items[self.region.last][1]
        if len(self.region.members) < 2 or operator(last) != "relax.quantize":
            return ""
        self._wide = packing.possible(self.level) and known_step(last) is not None
        return str(last.attrs.out_dtype) if self._wide else ""

    @property
    def anchor(self) -> Any:
        """The operator at the region's start."""
        return self.items[self.region.members[0]][1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return shape_of(self.items[self.region.last][0])

    @property
    def heavy(self) -> bool:
        """Whether the region is long enough for its code to be written once per tile."""
        members = [self.items[m][1] for m in self.region.members[1:]]
        return len(members) > LONG or any(
            markers.rounding(e) is not None or operator(e) in HEAVY for e in members
        )

    def source(self, expr: Any) -> Any:
        """Return what a variable was computed by, or None."""
        return self.sources.get(key(expr)) if number(expr) is None else None

    def input(self, expr: Any) -> Any:
        """Declare a tensor of main as the kernel's next parameter."""
        self.inputs.append(expr)
        return self.kernel.tensor(shape_of(expr), dtype_of(expr))

    def weights(self, array: Array) -> Any:
        """Declare a constant as the kernel's next parameter."""
        from tvm import relax

        return self.input(relax.const(np.ascontiguousarray(array), array.dtype.name))

    def skip(self, member: int, stands_for: int) -> None:
        """Say that a member's work is done elsewhere: its value is another member's."""
        var, other = self.items[member][0], self.items[stands_for][0]
        self._skipped[key(var)] = key(other)

    def output(self, first: int = 1) -> Any:
        """Declare what members from `first` on read, and then the result: the last parameter."""
        for member in self.region.members[first:]:
            var, expr = self.items[member]
            if key(var) in self._skipped:
                continue
            for arg in shaped_args(expr):
                self._declare(arg)
            if operator(expr) == "relax.take" and key(expr.args[0]) not in self._leaves:
                self._leaves[key(expr.args[0])] = ("table", self.input(expr.args[0]))
        self._declare_codes(first)
        if self.region.kept is not None:
            self._kept = self.kernel.tensor(self.shape, dtype_of(self._stored[0]))
        return self.kernel.tensor(self.shape, dtype_of(self.items[self.region.last][0]))

    def _declare_codes(self, first: int) -> None:
        """Know what is dequantized here; take the scales of channels from memory."""
        for member in self.region.members[first:]:
            var, expr = self.items[member]
            if operator(expr) == "relax.dequantize":
                self._coded[key(var)] = coded(expr)
        for name, read in self._coded.items():
            if read.scale.size > 1:
                self._scales[name] = self.weights(read.scale)

    def _evaluate(self, var: Any, expr: Any, args: list[Any], channel: Any) -> Any:
        if key(var) in self._coded:
            return self._dequantize(var, args[0], channel)
        packs = self._wide and key(var) == key(self.items[self.region.last][0])
        if packs and (lanes := lanes_of(args[0])) == self.level.lanes:
            step = known_step(expr)
            assert step is not None, "pack() asks for one"
            numbers, zero = _step(expr, step, lanes, self.kernel)
            return packing.codes(args[0], numbers, zero, step[1] < 0, fits=self._fits)
        return evaluate(expr, args, self.kernel)

    @cached_property
    def _fits(self) -> bool:
        """Whether what is quantized last is surely no more than 2³¹ steps: sums of codes are.

        Of sums in int32 as they are, whatever they may hold, and of a few codes added to them.
        """
        step = number(self.items[self.region.last][1].args[1])
        most = self.factor * _INT32
        for member in self.region.members[1:]:
            var, expr = self.items[member]
            if key(var) in self._skipped or operator(expr) == "relax.nn.relu":
                continue
            codes = [self._coded[key(a)] for a in tensor_args(expr) if key(a) in self._coded]
            most += sum(2 * _CODES * float(np.abs(read.scale).max()) for read in codes)
            known = ("relax.add", 1), ("relax.quantize", 0), ("relax.dequantize", 0)
            if (operator(expr), len(codes)) not in known:
                return False
        return step is not None and most < _SURE * _INT32 * float(step.min())

    def _dequantize(self, var: Any, codes: Any, channel: Any) -> Any:
        k, read, lanes = self.kernel, self._coded[key(var)], lanes_of(codes)
        scales = self._scales.get(key(var))
        if scales is None:
            (scale,) = k.numbers(("scale", key(var)), read.scale.tolist(), lanes)
        else:
            scale = k.load(scales, channel, lanes)
        zero = k.integer(("zero", key(var)), read.zero, lanes) if read.zero else None
        return dequantize(codes, scale, zero)

    @property
    def _stored(self) -> list[Any]:
        """The variables whose values are stored, in the order of the kernel's outputs."""
        kept = self.region.kept
        return [
            self.items[m][0] for m in ((kept,) if kept is not None else ()) + (self.region.last,)
        ]

    def _declare(self, arg: Any) -> None:
        inside = {key(self.items[m][0]) for m in self.region.members}
        if number(arg) is None and (key(arg) in inside or key(arg) in self._leaves):
            return
        kind = leaf_kind(arg, self.shape)
        read = coded(self.source(arg)) if kind == "full" else None
        if read is not None:
            self._coded[key(arg)] = read
            self._leaves[key(arg)] = ("codes", self.input(read.codes))
        elif kind != "number":
            self._leaves[key(arg)] = (kind, self.input(arg))

    def finish(self, value: Any, lanes: int, channel: Any, index: Any) -> Any:
        """Apply the region to a value the anchor computed: a `direct.Finish`.

        Where `value` is None, the anchor is an elementwise operator like the others.
        """
        known = {} if value is None else {key(self.items[self.region.members[0]][0]): value}
        result = value
        if known and self.region.kept == self.region.members[0]:
            self.kernel.store(self._kept, value, index)
        for member in self.region.members[len(known) :]:
            var, expr = self.items[member]
            if key(var) in self._skipped:
                known[key(var)] = known[self._skipped[key(var)]]
            else:
                reads = [self._unclamped(expr, a) for a in tensor_args(expr)]
                args = [self._read(a, known, lanes, channel, index) for a in reads]
                result = self.kernel.hold(self._evaluate(var, expr, args, channel))
                known[key(var)] = result
            if member == self.region.kept:
                self.kernel.store(self._kept, known[key(var)], index)
        return result

    def _unclamped(self, expr: Any, arg: Any) -> Any:
        """Return what a Relu reads, where the codes of its result have none below zero's.

        What is below zero gets the lowest code either way, and NaN passes a Relu.
        """
        relu = self.source(arg) if operator(expr) == "relax.quantize" else None
        if relu is None or operator(relu) != "relax.nn.relu":
            return arg
        step, read = known_step(expr), relu.args[0]
        inside = {key(self.items[m][0]) for m in self.region.members}
        if step is None or not is_var(read) or key(read) not in inside:
            return arg
        return read if step[1] == np.iinfo(str(expr.attrs.out_dtype)).min else arg

    def _read(self, arg: Any, known: dict[int, Any], lanes: int, channel: Any, index: Any) -> Any:
        array = number(arg)
        if array is not None and array.size == 1:
            return constant(array.reshape(()).item(), array.dtype.name, lanes)
        if number(arg) is None and key(arg) in known:
            return known[key(arg)]
        kind, memory = self._leaves[key(arg)]
        if kind == "table":
            return memory
        if kind == "codes":
            codes = self.kernel.load(memory, index, lanes)
            return self.kernel.hold(self._dequantize(arg, codes, channel))
        if kind == "row":
            row = self.kernel.load(memory, index // self.shape[-1])
            return widen(row, lanes)
        return self.kernel.load(memory, channel if kind == "channel" else index, lanes)

    @property
    def reads(self) -> set[str]:
        """How declared tensors are read: kinds of `regions.leaf_kind`, "table" or "codes"."""
        kinds = {kind for kind, _ in self._leaves.values()}
        channels = any(read.scale.size > 1 for read in self._coded.values())
        return kinds | {"channel"} if channels else kinds

    def done(self, name: str) -> bool:
        """Close the kernel; always True, for planners to return."""
        from tvm import relax

        self.name = name
        table = self.kernel.table
        if table is not None:
            self.inputs.append(relax.const(table, "int32"))
        self.function = self.kernel.finish(len(self._stored))
        return True

    def emit(self, walk: Walk) -> Any:
        """Emit the call where the region's last operator was; bind what else it stores."""
        from tvm import ir, relax

        function = walk.bb.add_func(self.function, self.name)
        args: Any = [walk.substitute(a) for a in self.inputs]
        stored = self._stored
        if len(stored) == 1:
            return walk.emit(relax.call_tir(function, args, out_ty=stored[0].ty))
        both = walk.emit(relax.call_tir(function, args, out_ty=[var.ty for var in stored]))
        walk.bind(stored[0], walk.emit(ir.TupleGetItem(both, 0)))
        return walk.emit(ir.TupleGetItem(both, 1))


def evaluate(expr: Any, args: list[Any], kernel: Kernel) -> Any:
    """Apply an elementwise operator that `regions.supported` accepts to values."""
    fmt = markers.rounding(expr)
    if fmt is not None:
        return round_to(args[0], *fmt, in_kernel(kernel))
    if markers.name_of(expr) == halves.NARROW:
        return halves.narrowed(args[0])
    name = operator(expr)
    if name == "relax.clip":
        return clip(args[0], *bounds(expr))
    if name == "relax.quantize":
        data, scale, zero = args
        step, dtype = known_step(expr), str(expr.attrs.out_dtype)
        if step is None:
            return quantize(data, scale, zero, dtype)
        return quantize_by(data, *_step(expr, step, lanes_of(data), kernel), dtype)
    if name in OPERATORS and dtype_of(expr) == "float32":
        result = OPERATORS[name](expr, args, Functions(in_kernel(kernel)))
    else:
        result = whole.OPERATORS[name](expr, args)
    product = name == "relax.multiply" and dtype_of(expr) in whole.FLOATS
    return rounded(result) if product else result


def _step(expr: Any, step: tuple[Array, int], lanes: int, kernel: Kernel) -> tuple[list[Any], Any]:
    """Read a quantization's numbers from memory, and its zero point: None where it is 0."""
    numbers, zero = step
    wide = kernel.numbers(("step", key(expr)), numbers.tolist(), lanes)
    return wide, kernel.integer(("zero", key(expr)), zero, lanes) if zero else None
