"""The benchmark of quantization measures what it says; nothing is timed and no peer is run here."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def _model(nodes: list[Any], weights: dict[str, Any], shapes: dict[str, list[int]]) -> Any:
    """Build a float model from x to y; `shapes` are those of all values computed."""
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    graph = helper.make_graph(
        nodes, "g", [infos.pop("x")], [infos.pop("y")],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
        value_info=list(infos.values()),
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _answers(model: Any, folder: Path, calls: list[dict[str, Any]]) -> list[Any]:
    from quantization.measures import answers

    onnx.save(model, folder / "m.onnx")
    return answers(folder / "m.onnx", calls)


def _random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _cnn(activation: str) -> Any:
    """Conv → activation → depthwise Conv, added to what it took → Conv."""
    wide = [1, 6, 5, 5]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4),
        helper.make_node(activation, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], group=6, pads=[1] * 4),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Conv", ["d", "w3"], ["y"]),
    ]
    weights = {
        "w1": _random(6, 3, 3, 3), "b1": _random(6), "w2": _random(6, 1, 3, 3, seed=1),
        "w3": _random(4, 6, 1, 1, seed=2),
    }  # fmt: skip
    shapes = {"x": [1, 3, 5, 5], "y": [1, 4, 5, 5]} | {n: wide for n in "abcd"}
    return _model(nodes, weights, shapes)


@pytest.mark.parametrize(("activation", "reached"), [("Relu", 2), ("HardSwish", 0)])
def test_channels_are_rescaled_where_the_function_stays(
    tmp_path: Path, activation: str, reached: int
) -> None:
    from quantization import rescale_channels
    from quantization.measures import sqnr

    plain = _cnn(activation)
    model = ir.from_proto(plain)
    assert rescale_channels.rescale(model) == (reached, 3)
    calls = [{"x": _random(1, 3, 5, 5, seed=9)}]
    twin = ir.to_proto(model)
    assert sqnr(_answers(plain, tmp_path, calls)[0], _answers(twin, tmp_path, calls)[0]) > 100
    wide = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    for one in (plain, twin):
        one.graph.output.append(wide)
    before, after = (_answers(one, tmp_path, calls)[1] for one in (plain, twin))
    spread = np.ptp(np.log(np.abs(after).max((0, 2, 3)) / np.abs(before).max((0, 2, 3))))
    assert spread > 1 if reached else spread < 1e-6


def _transformer(other: str | None) -> Any:
    """Norm → two linear layers, one behind a transposition; `other` reads the norm as well."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], epsilon=1e-5),
        helper.make_node("MatMul", ["n", "w1"], ["p"]),
        helper.make_node("Transpose", ["n"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w1"], ["q"]),
        helper.make_node("Transpose", ["q"], ["r"], perm=[1, 0, 2]),
        helper.make_node("Add", ["p", "r"], ["y" if other is None else "s"]),
    ]
    if other is not None:
        nodes += [
            helper.make_node("Mul", ["n", "n"], ["o"]),
            helper.make_node("Add", ["s", "o"], ["y"]),
        ]
    weights = {"g": _random(8), "b": _random(8, seed=1), "w1": _random(8, 8, seed=2)}
    shapes = {name: [2, 3, 8] for name in "xnpyrso"} | {"t": [3, 2, 8], "q": [3, 2, 8]}
    return _model(nodes, weights, {n: s for n, s in shapes.items() if other or n not in "so"})


@pytest.mark.parametrize(("other", "reached"), [(None, 1), ("Mul", 0)])
def test_norms_are_rescaled_where_only_linear_layers_read_them(
    tmp_path: Path, other: str | None, reached: int
) -> None:
    from quantization import rescale_norms
    from quantization.measures import sqnr

    plain = _transformer(other)
    model = ir.from_proto(plain)
    assert rescale_norms.rescale(model) == (reached, 1)
    calls = [{"x": _random(2, 3, 8, seed=9)}]
    twin = ir.to_proto(model)
    assert sqnr(_answers(plain, tmp_path, calls)[0], _answers(twin, tmp_path, calls)[0]) > 100
    (gamma,) = [w for w in twin.graph.initializer if w.name.startswith("g")]
    grown = numpy_helper.to_array(gamma) / _random(8)
    assert sorted(grown > 19.9) == [False] * (8 - 3 * reached) + [True] * 3 * reached


def _qdq(kind: int, through: str | None = None) -> Any:
    """One product whose left operand is coded as `kind`, its right one as int8."""
    zero = np.zeros((), helper.tensor_dtype_to_np_dtype(kind))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["f"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
    ]
    if through:
        nodes.append(helper.make_node(through, ["f"], ["h"]))
    nodes += [
        helper.make_node("MatMul", ["h" if through else "f", "v"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    weights = {"s": np.float32(0.1), "z": zero, "w": np.ones((4, 4), np.int8)}
    return _model(nodes, weights, {"x": [4, 4], "y": [4, 4]})


@pytest.mark.parametrize(
    ("kind", "through", "coded"),
    [
        (TensorProto.UINT8, None, 1),
        (TensorProto.UINT8, "Transpose", 1),
        (TensorProto.UINT8, "Relu", 0),
        (TensorProto.UINT16, None, 0),
    ],
)
def test_only_products_of_two_bytes_count_as_8_bit(
    tmp_path: Path, kind: int, through: str | None, coded: int
) -> None:
    from quantization.shares import share

    onnx.save(_qdq(kind, through), tmp_path / "m.onnx")
    assert share(tmp_path / "m.onnx") == (coded, 2)


def test_ties_of_the_original_are_left_out_of_the_agreement() -> None:
    from quantization.measures import agreement

    original = np.array([[1.0, 0.0], [0.5, 0.5001], [0.0, 1.0], [3.0, 1.0]])
    other = np.array([[0.9, 0.0], [0.5001, 0.5], [1.0, 0.9], [2.0, 1.0]])
    assert agreement(original, other, 1, noise=1e-3) == (2 / 3, 1)
    assert agreement(original, other, 1, noise=0.0) == (0.5, 0)


def test_sqnr_is_in_db_and_ends_at_300() -> None:
    from quantization.measures import sqnr

    signal = np.full((4,), 10.0, np.float32)
    assert sqnr(signal, signal + 1) == pytest.approx(20.0)
    assert sqnr(signal, signal) == 300.0


def test_calls_are_read_back_one_by_one(tmp_path: Path) -> None:
    from quantization.data import Calls, write

    write(tmp_path / "c.npz", [{"a": np.full(2, i), "b": np.array([-i])} for i in range(5)])
    calls = Calls(tmp_path / "c.npz", 3)
    assert [int(call["a"][0]) for call in calls] == [0, 1, 2]
    assert int(calls[-1]["b"][0]) == -2
    assert len(calls[:2]) == 2
    with pytest.raises(IndexError):
        calls[3]
    with pytest.raises(SystemExit, match="holds 5 calls, 6 were asked for"):
        Calls(tmp_path / "c.npz", 6)


def _row(method: str, sqnr: float, twin: str = "plain", **more: Any) -> Any:
    from quantization.rows import Row

    return Row("m", twin, 64, method, sqnr=(sqnr, sqnr + 1), share=(1, 2), metric=0.9, **more)


def _results(*rows: Any) -> Any:
    from quantization.rows import Results

    about = {"trained": True, "task": "classification", "metric": 0.95}
    return Results(rows, {"m": about}, {"cores": "2"})


def test_a_new_run_replaces_the_same_case_only(tmp_path: Path) -> None:
    from quantization import rows

    kept = _results(_row("npuc-default", 30.0), _row("ort-minmax", 20.0))
    new = kept.merged(_results(_row("npuc-default", 31.0)))
    rows.write(new, tmp_path / "r.json")
    again = rows.read(tmp_path / "r.json")
    assert {row.method: row.worst for row in again.rows} == {
        "npuc-default": 31.0,
        "ort-minmax": 20.0,
    }
    assert (again.models, again.machine) == (new.models, new.machine)


def test_every_promise_that_is_not_kept_is_named() -> None:
    from quantization import promises

    kept = _results(
        _row("npuc-default", 30.0, agreement=0.995),
        _row("ort-minmax", 29.0),
        _row("npuc-default", 29.5, "rescaled", agreement=1.0),
        _row("ort-minmax", 26.4, "rescaled"),
    )
    assert not [*promises.missed(kept)]
    short = _results(
        _row("npuc-default", 30.0, agreement=0.98),
        _row("nncf-mixed", 30.5),
        _row("npuc-default", 28.0, "rescaled", agreement=1.0),
        _row("ort-minmax", 26.0, "rescaled"),
    )
    assert [*promises.missed(short)] == [
        "m plain: 30.0 dB, 30.5 dB are needed beside the best peer",
        "m plain: agreement 0.9800, 0.99 is needed",
        "m rescaled: 28.0 dB, 29.0 dB are needed beside the best peer",
        "m rescaled: 28.0 dB, the plain twin has 30.0 dB",
    ]


def test_what_it_costs_is_held_against_the_promises() -> None:
    from dataclasses import replace

    from quantization import promises

    ours = _row("npuc-default", 30.0, seconds=(4.0,), peak=(300.0,))
    rows = (
        ours,
        replace(ours, samples=512, peak=(340.0,)),
        _row("npuc-min-max", 30.0, seconds=(6.0, 4.0, 5.1), peak=(300.0,)),
        _row("ort-minmax", 20.0, seconds=(10.0,), peak=(900.0,)),
        _row("nncf-mixed", 20.0, seconds=(10.0,), peak=(290.0,)),
    )
    assert [*promises.missed(_results(*rows))] == [
        "m plain 64: peak 300 MiB, NNCF's least is 290 MiB",
        "m plain: memory grows from 300 to 340 MiB at 512 samples",
    ]


def test_a_crash_is_a_cell_with_its_first_line() -> None:
    from quantization import table
    from quantization.rows import Row

    crashed = Row("m", "plain", 64, "nncf-accurate", error="RuntimeError: no node | 7")
    text = table.every(_results(_row("npuc-default", 30.0), crashed))
    assert "| nncf-accurate | RuntimeError: no node / 7 |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert "NNCF" not in table.quality(_results(crashed)).splitlines()[-1]


def test_the_memory_forecast_refuses_what_cannot_fit() -> None:
    import quantize

    assert not quantize._too_much(2**20)
    assert quantize._too_much(2**60).startswith("not run: keeps 1073741824 GiB, ")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nothing",), "unknown model: nothing; there are digits-resnet, digits-mobilenet, relu-"),
        (("--methods", "ort-best"), "unknown method: ort-best; there are npuc-default"),
        (("--quick", "--write"), "what was evaluated on a few calls only cannot be written"),
    ],
)
def test_it_says_what_it_cannot_do(words: tuple[str, ...], why: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "quantize.py"), *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert why in done.stderr


@pytest.mark.slow
def test_a_quick_run_measures_every_twin_with_every_method() -> None:
    words = ["digits-mobilenet", "--quick", "--methods", "npuc-default,ort-minmax"]
    done = subprocess.run(
        [sys.executable, str(HERE / "quantize.py"), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| `")]
    assert [(row[1], row[3]) for row in rows] == [
        (twin, method)
        for twin in ("plain", "rescaled")
        for method in ("npuc-default", "ort-minmax")
    ]
    assert all(row[8].startswith("23/23 (") for row in rows)
