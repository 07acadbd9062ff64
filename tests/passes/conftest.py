"""Models from ONNX text, and the one check every exact pass must stand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from npuc.passes.base import Pass, run
from npuc.passes.decompose import Decompose
from npuc.profile import Fact, Limit, Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]
Parse = Callable[..., Program]
Feed = Callable[..., dict[str, Array]]
Keeps = Callable[..., Program]


@pytest.fixture(scope="session")
def profile() -> Profile:
    """A device of which nothing is known."""
    return Profile("test", "Test", {}, {})


@pytest.fixture(scope="session")
def integers() -> Callable[..., Profile]:
    """A device with an integer scheme: symmetric int8 unless facts say otherwise."""

    def make(**facts: Any) -> Profile:
        values = {
            "ops": ["Conv", "ConvTranspose", "Gemm", "MatMul"],
            "weight_range": [-128, 127],
            "weight_per_channel": True,
            "activation_range": [-128, 127],
            "activation_symmetric": True,
            **facts,
        }
        every = {f"int8.{key}": Fact(value, "A", "test") for key, value in values.items()}
        return Profile("test", "Test", every, {"test": "this test"})

    return make


@pytest.fixture(scope="session")
def device() -> Callable[..., Profile]:
    """A device that runs the operators named, within limits, with other facts by name."""

    def make(ops: str | None = None, *limits: Limit, **facts: Any) -> Profile:
        values = {name.replace("__", "."): value for name, value in facts.items()}
        if ops is not None:
            values["ops.supported"] = ops.split()
        every = {name: Fact(value, "A", "test") for name, value in values.items()}
        return Profile("test", "Test", every, {"test": "this test"}, limits)

    return make


@pytest.fixture(scope="session")
def parse() -> Parse:
    """Build a program from `(inputs) => (outputs) { nodes }`; inputs in `weights` are constants."""

    def make(body: str, weights: Mapping[str, Array] | None = None, opset: int = 20) -> Program:
        text = f'<ir_version: 10, opset_import: ["" : {opset}]> g {body}'
        proto = onnx.parser.parse_model(text)
        for name, array in (weights or {}).items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        kept = [value for value in proto.graph.input if value.name not in (weights or {})]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        for number, node in enumerate(proto.graph.node):
            node.name = node.name or f"{node.op_type.lower()}_{number}"
        onnx.checker.check_model(proto, full_check=True)
        return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))

    return make


@pytest.fixture(scope="session")
def feed() -> Feed:
    """Normal random inputs; every dynamic dimension takes `size`."""

    def make(program: Program, size: int = 2, seed: int = 0) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        values: dict[str, Array] = {}
        for port in program.inputs:
            shape = [d if isinstance(d, int) else size for d in port.shape]
            values[port.name] = rng.normal(size=shape).astype(port.dtype)
        return values

    return make


@pytest.fixture(scope="session")
def keeps(profile: Profile, feed: Feed) -> Keeps:
    """Run passes; the result must be valid, answer alike at every size, and be a fixed point."""

    def check(
        before: Program,
        passes: Sequence[Pass],
        atol: float = 0.0,
        sizes: Sequence[int] = (1, 3),
        on: Profile = profile,
    ) -> Program:
        after = run(before, passes, on)
        onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
        expect, answer = OnnxRunner(before), OnnxRunner(after)
        for size in sizes:
            values = feed(before, size)
            expected, got = expect(values), answer(values)
            assert list(got) == list(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(got[name], value, rtol=0, atol=atol, err_msg=name)
        again = run(after, passes, on)
        assert [s.changes for s in again.steps[len(after.steps) :]] == [0] * len(passes)
        return after

    return check


@pytest.fixture(scope="session")
def ops() -> Callable[[Program], list[str]]:
    """The operators of the main graph in order."""
    return lambda program: [node.op_type for node in program.model.graph]


@pytest.fixture(scope="session")
def decomposed(
    parse: Parse, keeps: Keeps, device: Callable[..., Profile], ops: Callable[[Program], list[str]]
) -> Callable[..., list[str]]:
    """Write a model in what a device has; its operators then, all of them among those."""

    def check(
        text: str,
        supported: str,
        *limits: Limit,
        weights: Mapping[str, Array] | None = None,
        atol: float = 0.0,
        opset: int = 20,
    ) -> list[str]:
        before = parse(text, weights, opset)
        after = keeps(before, [Decompose()], atol, (1,), device(supported, *limits))
        step = after.steps[0]
        assert step.changes > 0 and not step.refusals
        found = [kind for kind in ops(after) if kind != "Constant"]
        assert set(found) <= {*supported.split(), "Identity"}
        return found

    return check


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts alike for every test."""
    return np.random.default_rng(3)
