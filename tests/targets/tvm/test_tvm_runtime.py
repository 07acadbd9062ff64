"""Runners, segments, CPU levels and linkers: what a caller sees, and what goes wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.errors import ArtifactError, ParityError, ToolchainError, UnsupportedError, UsageError
from npuc.passes.arithmetic.round_to import function
from npuc.profile import FloatFormat
from npuc.runners import OnnxRunner
from npuc.targets import tvm
from npuc.targets.base import LowerOptions
from npuc.targets.cpu import Cpu
from npuc.targets.tvm import cpu_level, linker

INDEX = "payload/index.json"


@pytest.fixture
def small(graph: Callable[..., Any], floats: Callable[..., Any]) -> Any:
    made = graph()
    x = made.input(floats((2, 5)))
    made.output(made.node("MatMul", x, made.constant(floats((5, 3)))), made.node("Relu", x))
    return made


def test_importing_the_target_imports_no_compiler() -> None:
    code = "import sys, npuc.targets.cpu as c; c.Cpu().toolchain(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert not loaded & {"tvm", "tvm_ffi", "torch", "onnxruntime"}


def test_running_imports_no_compiler(small: Any, tmp_path: Path) -> None:
    program = small.program()
    program.save(tmp_path / "model.onnx")
    files = tvm.lower(program).files
    for name, data in files.items():
        (tmp_path / Path(name).name).write_bytes(data)
    code = f"""
import sys
from pathlib import Path
import numpy as np
from npuc.program import Program
from npuc.targets import tvm
folder = Path({str(tmp_path)!r})
program = Program.load(folder / "model.onnx")
files = {{f"payload/{{n}}": (folder / n).read_bytes() for n in ("model.so", "index.json")}}
runner = tvm.load(files, program)
runner({{p.name: np.zeros(p.shape, p.dtype) for p in program.inputs}})
print("tvm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_outputs_and_inputs_are_copies(small: Any) -> None:
    program = small.program()
    runner = tvm.load(tvm.lower(program).files, program)
    first = runner(small.feed)
    kept = {name: value.copy() for name, value in first.items()}
    runner({name: value + 1 for name, value in small.feed.items()})
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])
        assert value.flags.writeable


@pytest.mark.parametrize("rows", [2, 600])  # 600 x 500 floats are not copied
def test_answers_outlive_the_next_call(
    rows: int, graph: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    """Whatever an answer is, it is the caller's: nothing that is computed later shows in it."""
    made = graph()
    x = made.input(floats((rows, 500)))
    held = made.constant(floats((rows, 500)))
    half = made.node("Add", x, held)
    made.output(half, made.node("Relu", half), made.node("Identity", x))
    made.output(made.node("Identity", held), made.node("Identity", half))
    program = made.program()
    run, oracle = tvm.load(tvm.lower(program).files, program), OnnxRunner(program)
    given = floats((rows, 500))
    calls = [{program.inputs[0].name: given * np.float32(n)} for n in range(1, 5)]
    wanted = [{k: v.copy() for k, v in oracle(call).items()} for call in calls]
    got = []
    for call in calls:
        answer = run(call)
        for array in answer.values():
            assert array.flags.writeable and array.flags.c_contiguous
        got.append(answer)
    del run
    for one, two in zip(got, wanted, strict=True):
        for name in two:
            np.testing.assert_array_equal(one[name], two[name])
    first = {name: array.copy() for name, array in got[0].items()}
    for name, array in got[0].items():
        array[...] = 7  # no two answers are one
        for other in first:
            if other != name:
                np.testing.assert_array_equal(got[0][other], first[other])
        array[...] = first[name]


def test_unaligned_strided_and_reversed_inputs(small: Any, floats: Callable[..., Any]) -> None:
    program = small.program()
    runner, reference = tvm.load(tvm.lower(program).files, program), OnnxRunner(program)
    wide = floats((2, 11))
    raw = np.frombuffer(b"x" + floats((2, 5)).tobytes(), np.uint8)[1:].view(np.float32)
    for value in (wide[:, 1::2], wide[::-1, :5], raw.reshape(2, 5), np.asfortranarray(wide[:, :5])):
        got, expected = runner({"x0": value}), reference({"x0": value})
        np.testing.assert_allclose(got["v0_0"], expected["v0_0"], rtol=1e-6, atol=1e-6)  # 5 terms


def test_wrong_calls_are_refused(small: Any) -> None:
    program = small.program()
    files = dict(tvm.lower(program).files)
    with pytest.raises(ParityError, match=r"x0.*was given shape \(3, 5\)"):
        tvm.load(files, program)({"x0": np.zeros((3, 5), np.float32)})
    with pytest.raises(ArtifactError, match=r"payload/model\.so"):
        tvm.load({INDEX: files[INDEX]}, program)
    with pytest.raises(ArtifactError, match="index"):
        tvm.load({}, program)


def test_every_refused_operator_is_named_at_once(
    graph: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph()
    x = made.input(floats((3, 4)))
    for _ in range(5):
        made.output(made.node("NonZero", x))
    made.output(made.node("Cast", x, to=10), made.node("Relu", x))
    with pytest.raises(UnsupportedError) as caught:
        tvm.lower(made.program())
    message = str(caught.value)
    assert "NonZero x5" in message and "Cast x1" in message and "Relu" not in message
    assert "--fallback ort" in message and "2 more" in message


def test_fallback_runs_what_tvm_cannot(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    """Alternating segments, a value used on both sides, data-dependent shapes, an early output."""
    made = graph()
    x = made.input(floats((1, 3, 8, 8)))
    a = made.node("Conv", x, made.constant(floats((4, 3, 3, 3))), pads=[1] * 4)
    count = made.node("ReduceSum", made.node("Cast", made.node("NonZero", a), to=1), keepdims=0)
    b = made.node("Add", made.node("Relu", a), count)
    c = made.node("MaxPool", b, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    made.output(a, made.node("Mul", made.node("Sigmoid", c), c), made.node("NonZero", x))
    done = answer(made, fallback="ort")
    assert done.faults(1e-6) == []  # 27 terms, and a sum of small whole numbers
    assert done.lowered.placement["NonZero"] == "onnxruntime"
    assert done.lowered.placement["Conv"] == "tvm"
    places = [s["place"] for s in json.loads(done.lowered.files[INDEX])["segments"]]
    assert places == ["tvm", "onnxruntime", "tvm", "onnxruntime", "tvm"]


def test_a_node_of_one_kind_may_run_in_both_places(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph()
    x = made.input(floats((3, 4)))
    made.output(made.node("Cast", made.node("Cast", x, to=10), to=1), made.node("Cast", x, to=7))
    done = answer(made, fallback="ort")
    assert done.faults(0) == []
    assert done.lowered.placement == {"Cast": "onnxruntime+tvm"}


def test_fallback_takes_roundings_of_unknown_shapes(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph()
    made.functions.append(ir.to_proto(function(FloatFormat(8, 7), 20)))
    x = made.node("RoundTo_e8m7", made.input(floats((3, 4))), domain="ai.npuc")
    above = made.node("Greater", made.input(floats((3,))), made.constant(np.float32(-9)))
    some = made.node("Compress", x, above)
    made.output(x, made.node("RoundTo_e8m7", some, domain="ai.npuc"))
    done = answer(made, fallback="ort")
    assert done.faults(0) == []
    assert done.lowered.placement["ai.npuc::RoundTo_e8m7"] == "onnxruntime+tvm"


@pytest.mark.parametrize("opset", [13, 17])
def test_roundings_in_older_opsets(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any], opset: int
) -> None:
    made = graph(opset)
    made.functions.append(ir.to_proto(function(FloatFormat(6, 9), opset)))
    x = made.node("ReduceMean", made.input(floats((3, 4, 5))), axes=[1])
    made.output(made.node("RoundTo_e6m9", x, domain="ai.npuc"))
    assert answer(made).faults(2.0**-9) == []  # one step of the format: means may straddle a tie


def test_names_that_are_no_identifiers(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph()
    made.feed["1 input.é:0"] = floats((2, 3))
    made.feed["1_input"] = floats((2, 3), 1)
    made.output(made.node("Sub", "1 input.é:0", "1_input"))
    assert answer(made).faults(0) == []


def test_fallback_keeps_control_flow_with_what_it_captures(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    from onnx import TensorProto, helper

    made = graph()
    x, flag = made.input(floats((2, 3))), made.input(np.array(True))
    inner = made.node("Relu", x)
    branches = {
        side: helper.make_graph(
            [helper.make_node(op, [inner], [f"{side}_out"])], side, [],
            [helper.make_tensor_value_info(f"{side}_out", TensorProto.FLOAT, (2, 3))],
        )
        for side, op in (("then", "Neg"), ("else", "Abs"))
    }  # fmt: skip
    chosen = made.node("If", flag, then_branch=branches["then"], else_branch=branches["else"])
    made.output(made.node("Tanh", chosen))
    done = answer(made, fallback="ort")
    assert done.faults(1e-6) == []  # one tanh, exact to 2 units in the last place
    assert done.lowered.placement["If"] == "onnxruntime"


def test_an_input_or_a_constant_may_be_an_output(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    made = graph()
    x = made.input(floats((2, 3)))
    made.output(made.node("Identity", x), made.node("Relu", x))
    made.output(made.node("Identity", made.constant(floats((4,)))))
    assert answer(made).faults(0) == []


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3", "x86-64-v4"])
def test_cpu_levels(
    graph: Callable[..., Any], answer: Callable[..., Any], floats: Callable[..., Any], cpu: str
) -> None:
    if set(cpu_level.resolve(cpu).requires) - cpu_level.host_flags():
        pytest.skip(f"this machine cannot run {cpu}")
    made = graph()
    x = made.input(floats((1, 20, 9, 9)))
    x = made.node("Conv", x, made.constant(floats((20, 1, 3, 3))), group=20, pads=[1] * 4)
    x = made.node("Gelu", made.node("Conv", x, made.constant(floats((37, 20, 1, 1)))))
    made.output(made.node("Softmax", made.node("Reshape", x, made.constant(np.array([37, 81])))))
    assert answer(made, cpu=cpu).faults(4e-6) == []  # of the peak: exp of sums of 20 terms


@pytest.mark.parametrize("cpu", ["aarch64", "aarch64:cortex-a76"])
def test_aarch64_is_compiled_and_not_run_here(small: Any, cpu: str) -> None:
    done = tvm.lower(small.program(), cpu=cpu)
    library = done.files["payload/model.so"]
    machine = int.from_bytes(library[18:20], "little")
    assert library[:4] == b"\x7fELF" and machine == 183  # EM_AARCH64
    assert "zig" in done.toolchain["linker"] or "aarch64" in done.toolchain["linker"]
    if cpu_level.host_flags() & {"avx2"}:
        assert not done.runs_here and done.evidence == "vendor-compiled" and done.notes
        with pytest.raises(ToolchainError, match="compiled for aarch64") as caught:
            tvm.load(done.files, small.program())
        assert "aarch64 machine" in caught.value.hint


@pytest.mark.parametrize("cpu", ["pentium", "aarch64:cortex-z1", "native:x", ""])
def test_unknown_cpus_are_refused(small: Any, cpu: str) -> None:
    with pytest.raises(UsageError):
        tvm.lower(small.program(), cpu=cpu)


def test_zig_links_where_there_is_no_other_linker(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = linker.find_linker()
    assert found.name == "zig"
    program = small.program()
    done = tvm.lower(program)
    assert done.toolchain["linker"].startswith("zig")
    tvm.load(done.files, program)(small.feed)


def test_no_linker_at_all(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolchainError) as caught:
        tvm.lower(small.program())
    assert "ziglang" in caught.value.hint
    assert tvm.status().missing and "ziglang" in tvm.status().remedy


def test_a_failing_linker_shows_its_log(tmp_path: Path) -> None:
    bad = linker.Linker("false", "1", (sys.executable, "-c", "raise SystemExit('no such luck')"))
    with pytest.raises(ToolchainError, match="no such luck"):
        linker.link({"a.o": b""}, bad)
    slow = linker.Linker("slow", "1", (sys.executable, "-c", "import time; time.sleep(60)"))
    with pytest.raises(ToolchainError, match="ran past"):
        linker.link({"a.o": b""}, slow, timeout=0.5)
    gone = linker.Linker("gone", "1", (str(tmp_path / "nothing"),))
    with pytest.raises(ToolchainError, match="could not start"):
        linker.link({"a.o": b""}, gone)
    mute = linker.Linker("mute", "1", (sys.executable, "-c", ""))
    with pytest.raises(ToolchainError, match="wrote no library"):
        linker.link({"a.o": b""}, mute)


def test_the_cpu_target(small: Any, tmp_path: Path) -> None:
    target = Cpu()
    assert target.profile.precisions[:3] == ("float", "bf16", "int8")
    assert target.numerics("float") == target.numerics("int8") == ()
    assert [item.name for item in target.numerics("bf16")] == ["round-floats"]
    assert [p.name for p in target.legalise()]
    assert target.toolchain().missing == ""
    program = small.program()
    payload = target.lower(program, LowerOptions(), tmp_path)
    assert payload.evidence == "device" and payload.toolchain["tvm"]
    expected = OnnxRunner(program)(small.feed)
    for name, value in target.runner(payload.files, program)(small.feed).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)  # 5 terms
    assert not list(tmp_path.iterdir())
