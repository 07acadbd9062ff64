"""Build small ONNX programs, and run them through TVM and ONNX Runtime."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner
from npuc.targets import tvm
from npuc.targets.tvm import cpu_level, runtime

if TYPE_CHECKING:
    from tests.targets.tvm.emulated import harness
else:
    sys.path.insert(0, str(Path(__file__).parent / "emulated"))
    import harness

Array = np.ndarray[Any, Any]


@dataclass
class Graph:
    """An ONNX graph being written, with the inputs of one call."""

    opset: int = 20
    feed: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)

    def input(self, array: Array) -> str:
        """Add an input that this call gives the value of `array`."""
        name = f"x{len(self.feed)}"
        self.feed[name] = np.asarray(array)
        return name

    def constant(self, array: Any) -> str:
        """Add an initializer."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        """Add a node; returns its output's name, or a list of them."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attrs))
        return names if outputs > 1 else names[0]

    def output(self, *names: str) -> None:
        """Make values outputs."""
        self.outputs.extend(names)

    def program(self) -> Program:
        """Return the program, with the types of its outputs inferred."""
        inputs = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in self.feed.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(self.outputs)]
        graph = helper.make_graph(
            self.nodes,
            "test",
            inputs,
            outputs,
            [numpy_helper.from_array(v, k) for k, v in self.weights.items()],
        )
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("ai.npuc", 1)]
        model = helper.make_model(
            graph, opset_imports=domains, ir_version=10, functions=self.functions
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        return Program.from_model(ir.from_proto(model))


@dataclass(frozen=True)
class Answers:
    """What TVM and ONNX Runtime answered to the same call."""

    got: Tensors
    expected: Tensors
    lowered: tvm.Lowered

    def worst(self, name: str) -> float:
        """Return the largest difference of a float output, in units of its largest value."""
        got, expected = self.got[name], self.expected[name]
        assert got.shape == expected.shape and got.dtype == expected.dtype
        assert (np.isfinite(got) == np.isfinite(expected)).all()
        finite = np.isfinite(expected)
        peak = float(np.abs(expected[finite]).max(initial=0.0)) or 1.0
        gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))[finite]
        return float(gap.max(initial=0.0)) / peak

    def faults(self, tolerance: float) -> list[str]:
        """Return what differs: floats by more than `tolerance`, anything else at all."""
        result = []
        for name, expected in self.expected.items():
            got = self.got[name]
            if got.shape != expected.shape or got.dtype != expected.dtype:
                result.append(
                    f"{name}: {got.dtype}{got.shape}, not {expected.dtype}{expected.shape}"
                )
            elif expected.dtype.kind != "f":
                wrong = int((got != expected).sum())
                result += [f"{name}: {wrong} of {expected.size} differ"] if wrong else []
            elif not (np.isfinite(got) == np.isfinite(expected)).all():
                result.append(f"{name}: infinities differ")
            elif self.worst(name) > tolerance:
                result.append(f"{name}: off by {self.worst(name):.2g} of the peak")
        return result


@pytest.fixture
def graph() -> Callable[..., Graph]:
    """Return a maker of empty graphs."""
    return Graph


@pytest.fixture
def answer() -> Callable[..., Answers]:
    """Return a function that lowers a graph and runs one call in both."""

    def run(made: Graph, feed: Mapping[str, Array] | None = None, **options: Any) -> Answers:
        program = made.program()
        lowered = tvm.lower(program, **options)
        call = made.feed if feed is None else feed
        return Answers(tvm.load(lowered.files, program)(call), OnnxRunner(program)(call), lowered)

    return run


@pytest.fixture
def anywhere() -> Callable[[Graph, str], tuple[Tensors, Tensors]]:
    """Return a function that runs a graph compiled for a CPU, and the same in ONNX Runtime.

    aarch64 is emulated. Where that or an instruction is missing, the test is skipped.
    """

    def run(made: Graph, cpu: str) -> tuple[Tensors, Tensors]:
        level = cpu_level.resolve(cpu)
        foreign = level.arch == "aarch64"
        fault = runtime.host_fault(level.arch, level.requires)
        reason = harness.missing() if foreign else fault.message if fault else ""
        if reason:
            pytest.skip(reason)
        program = made.program()
        expected = OnnxRunner(program)(made.feed)
        if foreign:
            return harness.run(program, made.feed, cpu), expected
        files = tvm.lower(program, cpu=cpu).files
        return tvm.load(files, program)(made.feed), expected

    return run


def spread(shape: Sequence[int], seed: int = 0) -> Array:
    """Return normal floats of a shape."""
    return np.random.default_rng(seed).normal(size=tuple(shape)).astype(np.float32)


@pytest.fixture
def floats() -> Callable[..., Array]:
    """Return a maker of normal floats: (shape, seed)."""
    return spread
