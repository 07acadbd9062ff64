"""Programs in older opsets: the same operators, said differently."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.errors import PassError
from npuc.targets import tvm

TOLERANCE = 1e-6
"""Of the peak: sums of at most 12 terms."""


def vector(*values: float) -> Any:
    return np.array(values, np.float32)


FORMS: list[tuple[int, str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = [
    (7, "Clip", (2, 3), (), {"min": -0.5, "max": 0.5}),
    (10, "Clip", (2, 3), (), {"min": -0.5}),
    (11, "Clip", (2, 3), (np.float32(-0.5), np.float32(0.5)), {}),
    (11, "ReduceMean", (2, 3, 4), (), {"axes": [1], "keepdims": 0}),
    (13, "ReduceMax", (2, 3, 4), (), {"axes": [-1]}),
    (17, "ReduceL2", (2, 3, 4), (), {"axes": [0, 2]}),
    (11, "ReduceSum", (2, 3, 4), (), {"axes": [1]}),
    (11, "Softmax", (2, 3, 4), (), {"axis": 1}),
    (12, "LogSoftmax", (2, 3, 4), (), {}),
    (13, "Softmax", (2, 3, 4), (), {"axis": 1}),
    (11, "Squeeze", (2, 1, 4), (), {"axes": [1]}),
    (11, "Unsqueeze", (2, 4), (), {"axes": [0, 3]}),
    (10, "Pad", (2, 4), (), {"pads": [0, 1, 0, 1], "value": 2.0}),
    (11, "Pad", (2, 4), (np.array([0, 1, 0, 1]),), {}),
    (10, "Dropout", (2, 4), (), {"ratio": 0.5}),
    (9, "BatchNormalization", (2, 4, 3, 3), tuple(vector(1, 2, 3, 4) for _ in range(4)), {}),
    (9, "Upsample", (1, 2, 3, 3), (vector(1, 1, 2, 2),), {"mode": "nearest"}),
    (10, "Resize", (1, 2, 3, 3), (vector(1, 1, 2, 2),), {"mode": "nearest"}),
    (9, "Slice", (2, 4), (), {"starts": [1], "ends": [3], "axes": [1]}),
    (9, "Gemm", (2, 4), (np.ones((4, 3), np.float32), vector(1, 2, 3)), {}),
    (8, "MaxPool", (1, 2, 4, 4), (), {"kernel_shape": [2, 2]}),
    (7, "AveragePool", (1, 2, 4, 4), (), {"kernel_shape": [2, 2]}),
    (9, "Flatten", (2, 3, 4), (), {"axis": 2}),
    (7, "Add", (2, 3), (vector(1, 2, 3),), {}),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form[1]}-{form[0]}")
def test_older_forms(graph: Callable[..., Any], answer: Callable[..., Any],
                     floats: Callable[..., Any], form: Any) -> None:  # fmt: skip
    opset, op, shape, constants, attributes = form
    made = graph(opset)
    x = made.input(floats(shape))
    made.output(made.node(op, x, *(made.constant(c) for c in constants), **attributes))
    assert answer(made).faults(TOLERANCE) == []


def test_split_into_equal_parts(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph(11)
    made.output(*made.node("Split", made.input(floats((2, 6))), outputs=3, axis=1))
    assert answer(made).faults(0) == []


def test_what_cannot_be_raised_is_refused(
    graph: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph(11)
    made.output(made.node("Hardmax", made.input(floats((2, 3, 4)))))
    with pytest.raises(PassError, match="below 13"):
        tvm.lower(made.program())
