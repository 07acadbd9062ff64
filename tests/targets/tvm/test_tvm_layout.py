"""Operators between two convolutions: the layout pass must keep them right in NHWC.

Each goes conv → operator → conv, so that its input is channels-last at home and its output is
wanted channels-last; and conv → operator → output, where it is not.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

TOLERANCE = 4e-6
"""Of the peak: two convolutions of 54 and 60 terms, summed in another order."""

R = np.random.default_rng(0)


def f(*shape: int) -> Any:
    return R.normal(size=shape).astype(np.float32)


def ints(g: Any, *values: int) -> str:
    name: str = g.constant(np.array(values, np.int64))
    return name


def scale(g: Any, value: float = 0.05) -> list[str]:
    return [g.constant(np.float32(value)), g.constant(np.uint8(120))]


MIDDLES: dict[str, Callable[[Any, str], str]] = {
    "relu": lambda g, x: g.node("Relu", x),
    "sigmoid-gate": lambda g, x: g.node("Mul", x, g.node("Sigmoid", x)),
    "hard-swish": lambda g, x: g.node("HardSwish", x),
    "clip": lambda g, x: g.node("Clip", x, g.constant(np.float32(0)), g.constant(np.float32(6))),
    "prelu": lambda g, x: g.node("PRelu", x, g.constant(f(6, 1, 1))),
    "residual": lambda g, x: g.node("Add", x, g.node("Tanh", x)),
    "add-vector": lambda g, x: g.node("Add", x, g.constant(f(6, 1, 1))),
    "add-row": lambda g, x: g.node("Add", x, g.constant(f(8))),
    "add-image": lambda g, x: g.node("Add", x, g.constant(f(1, 1, 10, 8))),
    "add-scalar": lambda g, x: g.node("Mul", x, g.constant(np.float32(0.3))),
    "add-input": lambda g, x: g.node("Add", x, g.input(f(6, 10, 8))),
    "where": lambda g, x: g.node(
        "Where", g.node("Less", x, g.constant(np.float32(0))), g.node("Neg", x), x
    ),
    "squeeze-excite": lambda g, x: g.node(
        "Mul",
        x,
        g.node(
            "HardSigmoid", g.node("Conv", g.node("GlobalAveragePool", x), g.constant(f(6, 6, 1, 1)))
        ),
    ),
    "excite-dense": lambda g, x: g.node(
        "Mul",
        x,
        g.node(
            "Reshape",
            g.node(
                "Gemm",
                g.node("Flatten", g.node("ReduceMean", x, ints(g, 2, 3))),
                g.constant(f(6, 6)),
            ),
            ints(g, 1, 6, 1, 1),
        ),
    ),
    "concat": lambda g, x: g.node(
        "Slice", g.node("Concat", x, g.node("Relu", x), axis=1), ints(g, 3), ints(g, 9), ints(g, 1)
    ),
    "concat-height": lambda g, x: g.node("Concat", x, x, axis=2),
    "concat-batch": lambda g, x: g.node("Concat", x, x, axis=-4),
    "max-pool": lambda g, x: g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "average-pool": lambda g, x: g.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "resize": lambda g, x: g.node(
        "Resize", x, "", g.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear"
    ),
    "pad": lambda g, x: g.node("Pad", x, ints(g, 0, 0, 1, 2, 0, 0, 0, 1)),
    "pad-channels": lambda g, x: g.node(
        "Slice",
        g.node("Pad", x, ints(g, 0, 1, 0, 0, 0, 1, 0, 0)),
        ints(g, 0),
        ints(g, 6),
        ints(g, 1),
    ),
    "transpose": lambda g, x: g.node("Transpose", x, perm=[0, 1, 3, 2]),
    "transpose-twice": lambda g, x: g.node(
        "Transpose", g.node("Relu", g.node("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2]
    ),
    "reshape": lambda g, x: g.node(
        "Reshape", g.node("Reshape", x, ints(g, 1, 12, 5, 8)), ints(g, 1, 6, 10, 8)
    ),
    "batch-norm": lambda g, x: g.node(
        "BatchNormalization", x, *(g.constant(np.abs(f(6))) for _ in range(4))
    ),
    "instance-norm": lambda g, x: g.node(
        "InstanceNormalization", x, g.constant(f(6)), g.constant(f(6))
    ),
    "layer-norm": lambda g, x: g.node("LayerNormalization", x, g.constant(f(8)), g.constant(f(8))),
    "softmax-channels": lambda g, x: g.node("Softmax", x, axis=1),
    "reduce-channels": lambda g, x: g.node("Mul", x, g.node("ReduceMax", x, ints(g, 1))),
    "reduce-height": lambda g, x: g.node("Add", x, g.node("ReduceMean", x, ints(g, 2))),
    "reduce-row": lambda g, x: g.node("Add", x, g.node("ReduceSum", x, ints(g, 1, 3))),
    "split": lambda g, x: g.node(
        "Concat", *reversed(g.node("Split", x, outputs=2, num_outputs=2, axis=1)), axis=1
    ),
    "depth-to-space": lambda g, x: g.node(
        "SpaceToDepth",
        g.node("DepthToSpace", g.node("Concat", x, x, axis=1), blocksize=2),
        blocksize=2,
    ),
    "deconvolve": lambda g, x: g.node(
        "ConvTranspose", x, g.constant(f(6, 6, 2, 2)), strides=[2, 2]
    ),
    "quantize": lambda g, x: g.node(
        "DequantizeLinear", g.node("QuantizeLinear", x, *scale(g)), *scale(g)
    ),
    "quantize-channels": lambda g, x: g.node(
        "DequantizeLinear",
        g.node(
            "QuantizeLinear",
            x,
            *[
                g.constant(np.linspace(0.02, 0.1, 6, dtype=np.float32)),
                g.constant(np.zeros(6, np.int8)),
            ],
            axis=1,
        ),
        g.constant(np.linspace(0.02, 0.1, 6, dtype=np.float32)),
        g.constant(np.zeros(6, np.int8)),
        axis=1,
    ),
}


@pytest.mark.parametrize("middle", sorted(MIDDLES))
def test_between_convolutions(
    graph: Callable[..., Any], answer: Callable[..., Any], middle: str
) -> None:
    made = graph()
    first = made.constant(f(6, 6, 3, 3)), made.constant(f(6))
    x = made.node("Conv", made.input(f(1, 6, 10, 8)), *first, pads=[1, 1, 1, 1])
    y = MIDDLES[middle](made, x)
    channels = 12 if middle == "depth-to-space" else 6
    last = made.node("Conv", y, made.constant(f(10, channels, 1, 1)))
    made.output(y, last)
    assert answer(made).faults(TOLERANCE) == []


def test_images_stay_channels_last_through_a_network(graph: Callable[..., Any]) -> None:
    """A residual network transposes nothing: its first convolution reads the image as it is."""
    from npuc.targets.tvm import cpu_level, importer, legalize, rewrites
    from npuc.targets.tvm.graph import bindings

    made = graph()
    x = made.input(f(1, 3, 16, 16))
    x = made.node("Conv", x, made.constant(f(8, 3, 3, 3)), made.constant(f(8)), pads=[1, 1, 1, 1])
    for _ in range(3):
        y = made.node("Relu", x)
        y = made.node("Conv", y, made.constant(f(8, 8, 3, 3)), made.constant(f(8)), pads=[1] * 4)
        x = made.node("Relu", made.node("Add", y, x))
    made.output(made.node("Flatten", made.node("GlobalAveragePool", x)))
    level = cpu_level.resolve("x86-64-v3")
    module = importer.to_relax(rewrites.prepare(made.program().model))
    with level.target():
        done = legalize.run(module, level)
    called = [str(expr.args[0].name_hint) for _, expr in bindings(done) if len(expr.args) > 1]
    assert not any("transpose" in name for name in called)
    # four convolutions with their additions, three Relu with two readers, pool, flatten
    assert len(called) <= 9, called
