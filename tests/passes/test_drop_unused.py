"""drop-unused: nothing without effect stays, no port changes its name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.passes.base import run
from npuc.passes.drop_unused import DropUnused
from npuc.profile import Profile
from npuc.program import Program

FIRES = {
    "identities": (
        "(float[N] x) => (float[N] y) { a = Identity(x) b = Identity(a) y = Relu(b) }",
        ["Relu"],
    ),
    "an identity before an output": (
        "(float[N] x) => (float[N] y) { a = Relu(x) y = Identity(a) }",
        ["Relu"],
    ),
    "a dropout in inference": (
        "(float[N] x) => (float[N] y) { a = Dropout(x) y = Relu(a) }",
        ["Relu"],
    ),
    "a dropout told not to train": (
        """(float[N] x) => (float[N] y) <float r = {0.5}, bool t = {0}>
        { a, mask = Dropout(x, r, t) y = Relu(a) }""",
        ["Relu"],
    ),
    "dead nodes": (
        "(float[N] x) => (float[N] y) { y = Relu(x) a = Exp(x) b = Neg(a) }",
        ["Relu"],
    ),
    "equal nodes": (
        "(float[N] x) => (float[N] y) { a = Exp(x) b = Exp(x) y = Add(a, b) }",
        ["Exp", "Add"],
    ),
    "an identity between input and output stays": (
        "(float[N] x) => (float[N] y, float[N] z) { y = Identity(x) z = Relu(x) }",
        ["Identity", "Relu"],
    ),
    "an identity between two outputs stays": (
        "(float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Identity(y) }",
        ["Relu", "Identity"],
    ),
    "equal nodes that are both outputs": (
        "(float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Relu(x) }",
        ["Relu", "Identity"],
    ),
}


@pytest.mark.parametrize("case", FIRES)
def test_fires(
    case: str, parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    text, expected = FIRES[case]
    assert ops(keeps(parse(text), [DropUnused()])) == expected


def test_equal_weights_become_one(
    parse: Callable[..., Program], keeps: Callable[..., Program], rng: np.random.Generator
) -> None:
    weight = rng.normal(size=(4, 4)).astype(np.float32)
    before = parse(
        "(float[N,4] x, float[4,4] a, float[4,4] b, float[4,4] c) => (float[N,4] y)"
        "{ h = MatMul(x, a) i = MatMul(h, b) y = MatMul(i, c) }",
        {"a": weight, "b": np.asfortranarray(weight), "c": weight.T},
    )
    before.model.graph.initializers["b"].const_value = _strided(before, "b")
    after = keeps(before, [DropUnused()])
    assert set(after.model.graph.initializers) == {"a", "c"}


def _strided(program: Program, name: str) -> Any:
    import onnx_ir as ir

    tensor = program.model.graph.initializers[name].const_value
    assert tensor is not None
    return ir.tensor(np.asfortranarray(tensor.numpy()), name=name)


def test_unused_weights_go_and_unused_inputs_stay(
    parse: Callable[..., Program], keeps: Callable[..., Program]
) -> None:
    after = keeps(
        parse("(float[N] x, float[N] u) => (float[N] y) <float[2] w = {1, 2}> { y = Relu(x) }"),
        [DropUnused()],
    )
    assert [port.name for port in after.inputs] == ["x", "u"]
    assert not after.model.graph.initializers


REFUSES = {
    "in training mode": (
        """(float[N] x) => (float[N] y) <float r = {0.5}, bool t = {1}>
        { y = Dropout(x, r, t) }"""
    ),
    "its mask is read": "(float[N] x) => (float[N] y, bool[N] m) { y, m = Dropout(x) }",
    "decided at run time": (
        "(float[N] x, bool t) => (float[N] y) <float r = {0.5}> { y = Dropout(x, r, t) }"
    ),
}


@pytest.mark.parametrize("reason", REFUSES)
def test_refuses(reason: str, parse: Callable[..., Program], profile: Profile) -> None:
    step = run(parse(REFUSES[reason]), [DropUnused()], profile).steps[-1]
    assert step.changes == 0
    assert [r.node for r in step.refusals] == ["dropout_0"]
    assert reason in step.refusals[0].reason
