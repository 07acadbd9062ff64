"""What a stage found is taken by content, by whoever has equal inputs, or not at all."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from npuc import plugins
from npuc.cache.stages import Stages
from npuc.gate.cache import Cache
from npuc.kept import Arrays, Kept
from npuc.profile import IntScheme
from npuc.program import Program, Tensors
from npuc.progress import Silent
from npuc.quantization import channel_stats, ranges
from npuc.quantization.calibrator import Calibrator

SLOW = Path(__file__).with_name("slow_stage.py")
ODD = {
    "a/b\\c é": np.array([[-0.0, np.inf], [1e-310, np.pi]]),
    "names": np.zeros(0),
    "": np.arange(3, dtype=np.int64),
}


class Counted:
    """Makes arrays, and counts how often."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays, self.times = arrays, 0

    def __call__(self) -> Arrays:
        self.times += 1
        return self.arrays


@pytest.fixture(params=["memory", "disk"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "memory":
        return Kept()
    return Stages(Cache(tmp_path / "cache"), lambda: "npuc", Silent())


def test_what_was_found_is_given_again_to_the_last_bit(kept: Kept) -> None:
    make = Counted(ODD)
    for _ in range(2):
        found = kept.arrays("channels", ["a", 1], make)
        assert list(found) == list(ODD)
        for name, array in ODD.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes()
    assert make.times == 1


def test_other_inputs_are_other_stages(kept: Kept) -> None:
    make = Counted(ODD)
    kept.arrays("channels", ["ab", "c"], make)
    for stage, about in (("ranges", ["ab", "c"]), ("channels", ["a", "bc"]), ("channels", ["ab"])):
        kept.arrays(stage, about, make)
    assert make.times == 4


def test_an_error_is_not_kept(kept: Kept) -> None:
    def fail() -> Arrays:
        raise ValueError("no samples")

    with pytest.raises(ValueError, match="no samples"):
        kept.arrays("channels", [], fail)
    assert list(kept.arrays("channels", [], Counted({"a": np.ones(1)}))) == ["a"]


def test_other_versions_find_nothing(tmp_path: Path) -> None:
    store, make = Cache(tmp_path), Counted(ODD)
    for versions in ("1", "2", "1"):
        Stages(store, versions.strip, Silent()).arrays("ranges", [], make)
    assert make.times == 2


def test_what_code_that_changed_meanwhile_computed_is_not_kept(tmp_path: Path) -> None:
    store, said, make = Cache(tmp_path), iter(["1", "2", "1", "1"]), Counted(ODD)
    stages = Stages(store, lambda: next(said), Silent())
    stages.arrays("ranges", [], make)
    assert list(store.entries.iterdir()) == []
    stages.arrays("ranges", [], make)
    assert make.times == 2


@pytest.mark.parametrize("how", [lambda data: data[:-9], lambda data: b"X" + data[1:]])
def test_what_is_damaged_is_computed_again(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    store, make = Cache(tmp_path), Counted(ODD)
    stages = Stages(store, lambda: "npuc", Silent())
    stages.arrays("ranges", [], make)
    (file,) = store.entries.glob("*/found.npz")
    file.write_bytes(how(file.read_bytes()))
    for _ in range(2):
        assert stages.arrays("ranges", [], make)["names"].size == 0
    assert make.times == 2


def _slow(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    words = [folder / "cache", folder / "log", seconds]
    return subprocess.Popen(
        [sys.executable, str(SLOW), *map(str, words)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_compute_once(tmp_path: Path) -> None:
    both = [_slow(tmp_path, 2) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in both] == ["[1.5]\n"] * 2
    assert (tmp_path / "log").read_text() == "computed\n"


def test_a_process_that_is_killed_leaves_nothing_to_be_taken(tmp_path: Path) -> None:
    killed, deadline = _slow(tmp_path, 600), time.monotonic() + 120
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    after = _slow(tmp_path, 0)
    assert after.communicate(timeout=120)[0] == "[1.5]\n"
    assert (tmp_path / "log").read_text() == "computed\n" * 2


def _program(weight: float = 1.0, name: str = "w") -> Program:
    port = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, s])
        for n, s in zip("xy", (4, 3), strict=True)
    ]
    array = np.full((4, 3), weight, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], ["y"], "m")], "g", port[:1], port[1:],
        [onnx.numpy_helper.from_array(array, name)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Program.from_model(ir.from_proto(model))


def _calls(shift: float = 0.0) -> list[Tensors]:
    rng = np.random.default_rng(3)
    return [{"x": (rng.normal(size=(1, 4)) + shift).astype(np.float32)} for _ in range(3)]


@pytest.fixture
def scheme() -> Iterator[IntScheme]:
    found = plugins.find("cpu").profile.at("int8").int_scheme
    assert found is not None
    yield found


def test_ranges_are_those_of_this_program_these_calls_and_this_scheme(
    kept: Kept, scheme: IntScheme
) -> None:
    def ranged(
        program: Program, calls: list[Tensors], how: IntScheme, observer: str | None = None
    ) -> ranges.Ranges:
        found = Calibrator(calls, how, "t", observer=observer, kept=kept).ranges(program)
        assert found == Calibrator(calls, how, "t", observer=observer).ranges(program)
        return found

    base = ranged(_program(), _calls(), scheme)
    assert base == ranged(_program(), _calls(), scheme)
    assert base["x"] != ranged(_program(), _calls(0.5), scheme)["x"]
    other = ranged(_program(2.0), _calls(), scheme)  # one weight apart, in the same names
    assert other.seen.get("y") == (
        None if "y" not in base else tuple(2 * v for v in base.seen["y"])
    )
    assert ranged(_program(), _calls(), scheme, observer="percentile") != base
    ranged(_program(), _calls(), replace(scheme, observer="percentile", percentile=90.0))
    ranged(_program(), _calls(), replace(scheme, observer="percentile", percentile=60.0))


def test_channels_are_those_of_this_program_and_these_axes(kept: Kept, scheme: IntScheme) -> None:
    for program in (_program(), _program(3.0), _program(name="v")):
        for axes in ({"y": (1,)}, {"y": ()}, {"x": (1,), "y": (1,)}):
            for calls in (_calls(), _calls(0.5)):
                found = Calibrator(calls, scheme, "t", kept=kept).channels(program, axes)
                fresh = channel_stats.collect(program, calls, axes)
                assert found.keys() == fresh.keys()
                for name, seen in fresh.items():
                    assert found[name].count == seen.count
                    for field in ("low", "high", "mean", "square"):
                        np.testing.assert_array_equal(
                            getattr(found[name], field), getattr(seen, field)
                        )


def test_means_are_those_of_all_statistics() -> None:
    program, calls = _program(0.3), _calls()
    stats = channel_stats.collect(program, calls, {"x": 1, "y": 1})
    found = channel_stats.means(program, calls, {"x": 1, "y": 1})
    assert all(np.array_equal(found[name], stats[name].mean) for name in ("x", "y"))
