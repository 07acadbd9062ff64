"""Small networks with uneven weights, equalized and compared."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.passes.base import run
from npuc.passes.equalize import Equalize, observed
from npuc.profile import Profile
from npuc.program import Program
from npuc.quantization import channel_stats
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
Build = Callable[..., Any]
RNG = np.random.default_rng(17)


def wide(*shape: int, axis: int = 0) -> Any:
    """Weights whose size differs from channel to channel as those of real networks do."""
    each = RNG.lognormal(0, 1.3, [d if i == axis else 1 for i, d in enumerate(shape)])
    return (RNG.normal(size=shape) * each).astype(np.float32)


WEIGHTS: dict[str, Array] = {
    "w": wide(8, 4, 3, 3),
    "b": wide(8),
    "v": wide(6, 8, 1, 1),
    "c": wide(6),
    "t": wide(8, 8, 1, 1),
    "t1": wide(8, 8, 1, 1),
    "u": wide(8, 1, 3, 3),  # depthwise
    "g": wide(8, 4, 1, 1),  # two groups
    "d": wide(8, 3, 2, 2),  # transposed, two groups of three outputs
    "e": wide(6, 6, 1, 1),
    "p": np.abs(wide(8, 1, 1)),
    "k": wide(8, 5),
    "l": wide(5, 32, axis=1),
    "s": np.abs(wide(8)),
    "o": wide(8),
    "q": wide(8, 8, axis=1),
    "r": wide(8, 8, axis=1),
    "m": wide(8, 8, axis=1),
    "n": wide(8, 8, axis=1),
    "f": wide(8, 4, axis=1),
    "h": wide(8, 4, axis=1),
    "g0": wide(8, 4, 1, 1),
    "big": wide(136, 136, 1, 1),  # 74 KB
    "half": wide(8, 1, 1).astype(np.float16),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "two": np.array(2, np.float32),
    "tiny": np.array(1e-4, np.float32),
    "root": np.array(0.5, np.float32),
    "last": np.array([-1]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 1, 1]),
    "halves": np.array([3, 5]),
    "pairs": np.array([1, 2, 4, 6, 6]),
    "whole": np.array([1, 8, 6, 6]),
    "heads": np.array([1, 5, 2, 4]),
    "head": np.array([1, 5, 1, 4]),
    "words": np.array([1, 5, 8]),
    "spread": np.array([1, 2, 5, 4]),
    "repeats": np.array([1, 2, 1, 1]),
    "x6": wide(6, 5),
}


@pytest.fixture(scope="session")
def build(parse: Build) -> Build:
    """Make a program of nodes; those of the weights that they name are its constants."""

    def make(x: str, y: str, nodes: str, opset: int = 20) -> Program:
        words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
        used = {name: np.asarray(array) for name, array in WEIGHTS.items() if name in words}
        kinds = {"float32": "float", "float16": "float16", "int64": "int64", "bool": "bool"}
        ports = "".join(
            f", {kinds[str(a.dtype)]}{list(a.shape) or ''} {name}" for name, a in used.items()
        )
        program: Program = parse(f"({x} x{ports}) => ({y} y) {{ {nodes} }}", used, opset)
        return program

    return make


@pytest.fixture(scope="session")
def equalized(feed: Build) -> Callable[[Program, Profile], Program]:
    """Observe and equalize; the model stays valid, with the same answer."""

    def make(program: Program, profile: Profile) -> Program:
        scheme = profile.int_scheme
        assert scheme is not None
        samples = [feed(program, 1, seed) for seed in range(6)]
        axes = observed(program.model.clone(), scheme)
        statistics = channel_stats.collect(program, samples, axes) if axes else {}
        after = run(program, [Equalize(statistics)], profile)
        assert after.steps[-1].rolled_back == ""
        onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
        expect, answer = OnnxRunner(program), OnnxRunner(after)
        for sample in samples:
            expected, got = expect(sample), answer(sample)
            for name, value in expected.items():
                # A dozen roundings of float32 at most, relative to the largest sums.
                atol = 4e-6 * max(float(np.abs(value).max(initial=0)), 1e-3)
                np.testing.assert_allclose(got[name], value, rtol=0, atol=atol, err_msg=name)
        return after

    return make


@pytest.fixture(scope="session")
def scaled() -> Callable[[Program], dict[str, Array]]:
    """Return by what each constant was multiplied, by its name before."""

    def make(program: Program) -> dict[str, Array]:
        ending = "_equalized"
        arrays = {
            name: value.const_value.numpy()
            for name, value in program.model.graph.initializers.items()
            if value.const_value is not None
        }
        return {
            name.removesuffix(ending): array / WEIGHTS[name.removesuffix(ending)]
            for name, array in arrays.items()
            if name.endswith(ending)
        }

    return make
