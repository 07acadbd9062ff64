"""What a benchmark says of invented measurements: arithmetic, text and page."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from npuc.bench import origin, sides, text, timing
from npuc.bench.result import Bench, Kernel, Peaks, Side, Times
from npuc.pages.bench import page
from npuc.program import Program
from npuc.targets.tvm import names
from npuc.targets.tvm.instrument import KernelTime

GOLDEN = Path(__file__).parents[2] / "golden" / "bench.txt"
PEAKS = Peaks(float32=250e9, bfloat16=500e9, integer=1000e9, bandwidth=20e9)


def found(**changed: Any) -> Bench:
    own = Times(tuple(0.010 + 0.0001 * i for i in range(100)), 0.0101)
    other = Times(tuple(0.020 + 0.0001 * i for i in range(100)), 0.0202)
    values: dict[str, Any] = {
        "artifact": "net.cpu.npuc", "model": "zoo:net", "target": "cpu", "precision": "int8",
        "threads": 1, "batch": 8, "cpu": "A CPU",
        "sides": (
            Side("npuc", "cpu, int8", own, 100_000_000, 40_000_000),
            Side("onnxruntime", "onnxruntime 1.0", other, 90_000_000, 50_000_000, 0.0125),
            Side("openvino", "openvino", why="openvino is not installed"),
        ),
        "peaks": PEAKS,
        "kernels": (
            Kernel("conv3x3_int8", 0.004, 3_000_000_000, 2_000_000, "integer",
                   ("Conv a", "Add b", "Relu <c>")),
            Kernel("transpose", 0.001, 0, 8_000_000, "float32", ()),
            Kernel("matmul", 0.005, 500_000_000, 4_000_000, "float32", ("MatMul d",)),
        ),
        "notes": ("something to know",),
        "weight_bytes": 25_000_000,
    }  # fmt: skip
    return Bench(**{**values, **changed})


def test_percentiles_are_values_that_were_measured() -> None:
    times = Times((3.0, 1.0, 2.0, 4.0), 1.0)
    assert [times.percentile(p) for p in (0.25, 0.5, 0.75, 0.99, 1.0)] == [1.0, 2.0, 3.0, 4.0, 4.0]
    assert times.least == 1.0
    assert Times((5.0,), 0.0).percentile(0.5) == 5.0
    hundred = Times(tuple(map(float, range(1, 101))), 0.0)
    assert [hundred.percentile(p) for p in (0.5, 0.9, 0.99)] == [50.0, 90.0, 99.0]


def test_ratios_and_shares_of_peaks() -> None:
    bench = found()
    assert bench.ratio(bench.own) is None and bench.ratio(bench.sides[2]) is None
    assert bench.ratio(bench.sides[1]) == pytest.approx((14.9 / 24.9, 0.5))
    # 3 G operations at 1 T/s and 0.5 at 0.25 take 3 and 2 ms of the median's 14.9.
    assert bench.reached()["arithmetic"] == pytest.approx(5 / 14.9)
    assert bench.reached()["bandwidth"] == pytest.approx(25e6 / 20e9 / 0.0149)
    assert bench.kernels[0].share_of_peak(PEAKS) == pytest.approx(0.75)
    assert bench.kernels[1].share_of_peak(PEAKS) is None
    assert found(kernels=(), peaks=None).reached() == {}


def test_the_text_is_the_golden_one() -> None:
    assert text.text(found()) + "\n" == GOLDEN.read_text()


def test_json_holds_every_kernel_and_why_a_peer_did_not_run() -> None:
    data = json.loads(json.dumps(found().to_json()))
    own, ort, openvino = data["sides"]
    assert data["schema"] == "npuc-bench-1" and len(data["kernels"]) == 3
    assert own["ratio"] is None and ort["ratio"]["min"] == 0.5
    assert own["per_second"] == pytest.approx(8 / 0.0149)
    assert openvino["why"] == "openvino is not installed" and "seconds" not in openvino


def test_the_page_is_self_contained_and_escapes_names() -> None:
    shown = page(found(artifact="<b>.npuc"))
    assert "<svg" in shown and "Relu &lt;c&gt;" in shown and "<b>.npuc" not in shown
    assert "http" not in shown.replace("http-equiv", "")
    assert (
        "something to know" in shown and "openvino was not run: openvino is not installed" in shown
    )
    bare = page(found(kernels=(), peaks=None))
    assert "Every kernel" not in bare and "<svg" in bare


def test_sides_go_by_turns_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: order.append("pause"))
    order: list[str] = []
    times = timing.race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 1e-9)
    assert {name: len(t.calls) for name, t in times.items()} == {"a": 12, "b": 12}
    turns = "".join(o[0] for o in order).lstrip("ab").split("p")[1:]
    assert turns == ["aaaaa", "bbbbb"] * timing.ROUNDS


def test_distance_is_relative_and_refuses_other_shapes() -> None:
    a = {"x": np.array([1.0, -4.0]), "y": np.zeros(0)}
    assert sides.distance(a, {"p": np.array([1.0, -3.0]), "q": np.zeros(0)}) == 0.25
    assert sides.distance(a, {"p": np.zeros(3), "q": np.zeros(0)}) is None
    assert sides.distance(a, {"p": np.zeros(2)}) is None


@pytest.mark.parametrize("name", ["relu", "/conv.1/Conv_output_0", "x@3", "7", "a.b@", ""])
@pytest.mark.parametrize("count", ["", "1", "27"])
def test_a_variable_names_its_tensor(name: str, count: str) -> None:
    # TVM replaces dots; what it appends is digits.
    assert names.tensor(names.variable(name).replace(".", "_") + count) == name
    assert names.tensor("lv12") == "" and names.tensor("x@y") == ""


def test_kernels_get_their_operators_and_the_longest_of_several_the_work() -> None:
    program = _program()
    timed = [
        KernelTime("pack", "c", 1e-6, 10, ("float32",)),
        KernelTime("conv", "c", 5e-6, 10, ("uint8", "int8")),
        KernelTime("copy", "", 1e-6, 10, ("float32",)),
        KernelTime("relu", "r", 1e-6, 10, ("float32",)),
    ]
    kernels = origin.kernels(program, timed)
    # 2·(4·4 places)·(3·3·3 taps)·5 channels
    assert [k.operations for k in kernels] == [0, 2 * 16 * 27 * 5, 0, 0]
    assert [[o.split()[0] for o in k.operators] for k in kernels] == [
        ["Conv"], ["Conv"], [], ["Sigmoid", "Relu"]
    ]  # fmt: skip
    assert [k.arithmetic for k in kernels] == ["float32", "integer", "float32", "float32"]


def _program() -> Program:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 3, 6, 6)), ("r", (1, 5, 4, 4)))
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, (5, 3, 3, 3), [0.0] * 135)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(model)))


def test_torch_needs_the_module() -> None:
    job: Any = SimpleNamespace(source="net.onnx")
    with pytest.raises(sides.PeerError, match="reference models"):
        sides.torch(job)
