"""check-batch: an error with the command to give, before anything is compiled."""

from collections.abc import Callable
from typing import Any

import pytest

from npuc.errors import UnsupportedError
from npuc.passes.base import run
from npuc.passes.check_batch import CheckBatch
from npuc.passes.fix_shapes import FixShapes
from npuc.program import Program

X = "(float[{0},3] x) => (float[{0},3] y) {{ y = Relu(x) }}"


def test_a_dimension_that_was_bound(parse: Callable[..., Program], device: Any) -> None:
    before = parse(X.format("batch"))
    with pytest.raises(
        UnsupportedError, match="takes batch 1 only, the model has x:8x3:float32"
    ) as caught:
        run(before, [FixShapes({"batch": 8}), CheckBatch()], device(shapes__batch=1))
    assert caught.value.hint == "compile with --dim batch=1"
    after = run(before, [FixShapes({"batch": 1}), CheckBatch()], device(shapes__batch=1))
    assert after.steps[-1].changes == 0


def test_an_image_that_is_in_the_model(parse: Callable[..., Program], device: Any) -> None:
    text = "(float[4,3,2,2] x) => (float[4,3,2,2] y) { y = Relu(x) }"
    with pytest.raises(UnsupportedError, match="x:4x3x2x2:float32") as caught:
        run(parse(text), [CheckBatch()], device(shapes__batch=1))
    assert caught.value.hint == "export the model with a batch of 1, or with a dynamic one"


def test_a_first_dimension_may_be_no_batch(parse: Callable[..., Program], device: Any) -> None:
    before = parse(X.format(4))
    assert run(before, [CheckBatch()], device(shapes__batch=1)).steps[-1].changes == 0


def test_nothing_happens_where_nothing_is_public(
    parse: Callable[..., Program], device: Any
) -> None:
    assert run(parse(X.format(4)), [CheckBatch()], device()).steps[-1].changes == 0
