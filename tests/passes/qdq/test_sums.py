"""Of an image sum, the summand that would be stored is coded; the other ends its convolution."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.qdq.sites import coded, sites
from npuc.passes.quantize import Quantize

SIZE = "float[1,4,5,5]"
W = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4, 1, 1)
STREAM = """
    r = Relu(x)
    c = Conv(r, w)
    s = Add(c, r)
    y = Conv(s, w)
"""
DOWN = """
    a = Conv(x, w)
    b = Conv(x, w)
    s = Add(b, a)
    y = Relu(s)
"""
ACTIVATED = """
    r = Relu(x)
    c = Conv(r, w)
    g = Sigmoid(c)
    h = Mul(c, g)
    s = Add(r, h)
    y = Conv(s, w)
"""


def sums(program: Any, profile: Any) -> list[tuple[str, ...]]:
    """Return the names of what each Add reads as codes."""
    found, _ = sites(program.model, profile.int_scheme)
    return [
        tuple(value.name or "" for value in coded(site, profile.int_scheme))
        for site in found
        if site.node.op_type == "Add"
    ]


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (STREAM, [("r",)]),
        (DOWN, [("b",)]),
        (ACTIVATED, [("r",)]),
        # Nobody reads the codes of r: only the sum would.
        (STREAM.replace("Conv(r, w)", "Conv(x, w)"), []),
        # No convolution ends with the sum.
        ("r = Relu(x) c = Tanh(r) s = Add(c, r) y = Conv(r, w)", []),
        # The convolution's result is stored for another reader anyway.
        (STREAM.replace("Conv(s, w)", "Mul(s, c)"), []),
        ("r = Relu(x) c = Conv(r, w) m = GlobalAveragePool(r) s = Add(c, m) y = Conv(s, w)", []),
    ],
)
def test_what_is_coded(
    parse: Callable[..., Any], integers: Callable[..., Any], body: str, read: list[tuple[str, ...]]
) -> None:
    text = f"({SIZE} x, float[4,4,1,1] w) => ({SIZE} y) {{ {body} }}"
    program = parse(text, {"w": W})
    assert sums(program, integers(coded_sums=True)) == read
    assert sums(program, integers()) == []


def test_vectors_stay_floats(parse: Callable[..., Any], integers: Callable[..., Any]) -> None:
    """A transformer's residual stream has no images in it."""
    text = """(float[1,6,4] x, float[4,4] w) => (float[1,6,4] y)
    { r = Relu(x) c = MatMul(r, w) s = Add(c, r) y = MatMul(s, w) }"""
    program = parse(text, {"w": W.reshape(4, 4)})
    assert sums(program, integers(coded_sums=True)) == []


def test_a_summand_shares_its_codes(
    parse: Callable[..., Any], integers: Callable[..., Any]
) -> None:
    """The sum reads what the convolution reads, and a second look finds nothing to do."""
    program = parse(f"({SIZE} x, float[4,4,1,1] w) => ({SIZE} y) {{ {STREAM} }}", {"w": W})
    profile = integers(coded_sums=True)
    Quantize({"r": (0.0, 1.0), "s": (-1.0, 1.0)}).apply(program.model, profile)
    nodes = {node.op_type: node for node in program.model.graph if node.op_type != "Conv"}
    first = next(node for node in program.model.graph if node.op_type == "Conv")
    assert nodes["Add"].inputs[1] is first.inputs[0]
    assert first.inputs[0].producer().op_type == "DequantizeLinear"
    assert sites(program.model, profile.int_scheme)[0] == ()
