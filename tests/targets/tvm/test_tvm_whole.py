"""Integer programs answer bit for bit like ONNX Runtime, in one kernel where they follow one.

The programs are written here, in the operators that integer twins use: ConvInteger and
MatMulInteger, int32 biases, requantization in int64 by model-local functions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

Array = np.ndarray[Any, Any]
LEVELS = ("native", "x86-64-v3")

MULTIPLY = """
<domain: "ai.npuc", opset_import: ["": 20]>
HighMul (a, m) => (y)
{
  up = Constant <value = int64 {1073741824}> ()
  down = Constant <value = int64 {-1073741823}> ()
  whole = Constant <value = int64 {2147483648}> ()
  zero = Constant <value = int64 {0}> ()
  p = Mul (a, m)
  below = Less (p, zero)
  nudge = Where (below, down, up)
  n = Add (p, nudge)
  y = Div (n, whole)
}
"""
REQUANTIZE = """
<domain: "ai.npuc", opset_import: ["": 20, "ai.npuc": 1]>
Requantize_double (acc, m, d, zero) => (y)
{
  two = Constant <value = int64 {2}> ()
  low = Constant <value = int64 {-128}> ()
  high = Constant <value = int64 {127}> ()
  none = Constant <value = int64 {0}> ()
  wide = Cast <to = 7> (acc)
  h = ai.npuc.HighMul (wide, m)
  size = Abs (h)
  half = Div (d, two)
  raised = Add (size, half)
  magnitude = Div (raised, d)
  opposite = Neg (magnitude)
  negative = Less (h, none)
  s = Where (negative, opposite, magnitude)
  z = Cast <to = 7> (zero)
  t = Add (s, z)
  under = Less (t, low)
  a = Where (under, low, t)
  over = Greater (a, high)
  b = Where (over, high, a)
  y = Cast <to = 3> (b)
}
"""
FLOATING = """
<domain: "ai.npuc", opset_import: ["": 20]>
Requantize_float (acc, m, d, zero) => (y)
{
  low = Constant <value = float {-256.0}> ()
  high = Constant <value = float {255.0}> ()
  least = Constant <value = int64 {-128}> ()
  most = Constant <value = int64 {127}> ()
  f = Cast <to = 1> (acc)
  w = Cast <to = 1> (m)
  v = Cast <to = 1> (d)
  r = Div (w, v)
  p = Mul (f, r)
  a = Max (p, low)
  b = Min (a, high)
  n = Round (b)
  i = Cast <to = 7> (n)
  z = Cast <to = 7> (zero)
  t = Add (i, z)
  c = Clip (t, least, most)
  y = Cast <to = 3> (c)
}
"""
EVEN = """
<domain: "ai.npuc", opset_import: ["": 20]>
Requantize_even (acc, m, d, zero) => (y)
{
  two = Constant <value = int64 {2}> ()
  least = Constant <value = int64 {-128}> ()
  most = Constant <value = int64 {127}> ()
  wide = Cast <to = 7> (acc)
  p = Mul (wide, m)
  half = Div (d, two)
  raised = Add (p, half)
  rest = Mod (raised, d)
  lower = Sub (raised, rest)
  up = Div (lower, d)
  none = Sub (rest, rest)
  tie = Equal (rest, none)
  odd = Mod (up, two)
  tied = Cast <to = 7> (tie)
  excess = Mul (odd, tied)
  s = Sub (up, excess)
  z = Cast <to = 7> (zero)
  t = Add (s, z)
  under = Less (t, least)
  a = Where (under, least, t)
  over = Greater (a, most)
  b = Where (over, most, a)
  y = Cast <to = 3> (b)
}
"""
RULES = {"double": REQUANTIZE, "float": FLOATING, "even": EVEN}


def codes(dtype: str, shape: tuple[int, ...], seed: int) -> Array:
    info = np.iinfo(dtype)
    made = np.random.default_rng(seed).integers(info.min, info.max + 1, size=shape)
    return made.astype(dtype)


class Writer:
    """Adds integer layers to a graph."""

    def __init__(self, made: Any, rule: str):
        self.made, self.rule = made, rule
        made.functions += [onnx.parser.parse_function(t) for t in (MULTIPLY, RULES[rule])]
        self._seed = 0

    def draw(self, low: int, high: int, shape: tuple[int, ...], dtype: Any) -> Array:
        self._seed += 1
        return np.random.default_rng(self._seed).integers(low, high, size=shape).astype(dtype)

    def requantize(self, acc: str, shape: tuple[int, ...], shift: int) -> str:
        """Scale int32 by m / 2^(31 + shift) per channel."""
        made = self.made
        if self.rule == "double":
            m, d = (
                self.draw(2**30, 2**31, shape, np.int64),
                2 ** self.draw(shift, shift + 2, shape, np.int64),
            )
        else:
            m, d = (
                self.draw(2**14, 2**15, shape, np.int64),
                2 ** self.draw(shift + 15, shift + 17, shape, np.int64),
            )
        zero = made.constant(np.array(-7, np.int32))
        result: str = made.node(
            f"Requantize_{self.rule}", acc, made.constant(m), made.constant(d), zero,
            domain="ai.npuc",
        )  # fmt: skip
        return result

    def conv(self, x: str, size: tuple[int, int, int, int], shift: int = 8, **more: Any) -> str:
        made = self.made
        w = made.constant(self.draw(-127, 128, size, np.int8))
        zero = made.constant(np.array(-7, np.int8))
        acc = made.node("ConvInteger", x, w, zero, **more)
        bias = made.constant(self.draw(-5000, 5000, (1, size[0], 1, 1), np.int32))
        return self.requantize(made.node("Add", acc, bias), (1, size[0], 1, 1), shift)

    def dense(self, x: str, size: tuple[int, int], shift: int = 8) -> str:
        made = self.made
        w = made.constant(self.draw(-127, 128, size, np.int8))
        acc = made.node("MatMulInteger", x, w, made.constant(np.array(-7, np.int8)))
        bias = made.constant(self.draw(-5000, 5000, (size[1],), np.int32))
        return self.requantize(made.node("Add", acc, bias), (size[1],), shift)


def residual(made: Any, rule: str) -> None:
    """Convolutions, a depthwise one, a sum of two tensors, a table, pooling, a dense layer."""
    net = Writer(made, rule)
    x = made.input(codes("int8", (1, 3, 18, 17), 0))
    a = net.conv(x, (24, 3, 3, 3), 5, pads=[1, 1, 1, 1], strides=[2, 2])
    b = net.conv(a, (24, 1, 3, 3), 3, pads=[1, 1, 1, 1], group=24)
    c = net.conv(b, (24, 24, 1, 1), 7)
    wide = [made.node("Cast", v, to=7) for v in (a, c)]
    total = made.node("Add", *wide)
    back = made.node("Clip", total, made.constant(np.int64(-128)), made.constant(np.int64(127)))
    row = made.node("Add", back, made.constant(np.int64(128)))
    looked = made.node("Gather", made.constant(net.draw(-128, 128, (256,), np.int8)), row)
    pooled = made.node("MaxPool", looked, kernel_shape=[3, 3], strides=[3, 3])
    flat = made.node("Flatten", pooled)
    made.output(net.dense(flat, (216, 11), 9), c, looked)


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_residual_network_is_exact(
    graph: Callable[..., Any], answer: Callable[..., Any], rule: str, cpu: str
) -> None:
    made = graph()
    residual(made, rule)
    done = answer(made, cpu=cpu)
    assert done.faults(0) == []
    for name, value in done.expected.items():
        assert len(np.unique(value)) > 5, f"{name} hardly varies: it would hide errors"
    assert done.lowered.placement["ConvInteger"] == "tvm"


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_product_is_rounded_before_it_is_added_to(
    graph: Callable[..., Any], answer: Callable[..., Any], kind: Any, cpu: str
) -> None:
    """A fused multiply-add would differ in the last bit of about a quarter of the results."""
    made = graph()
    code = 1 if kind is np.float32 else 11
    whole = made.node("Cast", made.input(codes("int32", (3, 1000), 0)), to=code)
    product = made.node("Mul", whole, made.constant(np.array(0.1234567, kind)))
    made.output(made.node("Add", product, made.constant(np.array(1e6 / 3, kind))))
    product = made.node("Mul", whole, made.constant(np.linspace(0.1, 1, 1000).astype(kind)))
    made.output(made.node("Sub", made.constant(np.array(1e6 / 3, kind)), product))
    done = answer(made, cpu=cpu)
    for name, expected in done.expected.items():
        np.testing.assert_array_equal(done.got[name], expected)
