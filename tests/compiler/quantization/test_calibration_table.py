"""The calibration table: written, reviewed, edited, damaged, used again; and interrupted runs."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from npuc.errors import ArtifactError, OutputError, UsageError
from npuc.profile import Fact, IntScheme, Profile
from npuc.program import Program
from npuc.quantization import checkpoint, streaming
from npuc.quantization.calibrate import collect
from npuc.quantization.calibrator import Calibrator, path_of
from npuc.quantization.channel_stats import ChannelObserver
from npuc.quantization.checkpoint import Checkpoint
from npuc.quantization.observers import Importance, Observer
from npuc.quantization.ranges import Table, coding
from npuc.quantization.thresholds import METHODS

Array = np.ndarray[Any, Any]
FACTS = {
    "int8.ops": ["Conv", "MatMul"],
    "int8.weight_range": [-127, 127],
    "int8.weight_per_channel": True,
    "int8.activation_range": [0, 255],
    "int8.activation_dtype": "uint8",
    "int8.activation_symmetric": False,
    "int8.observer": "percentile",
    "int8.percentile": 99.9,
}
PROFILE = Profile("t", "T", {k: Fact(v, "A", "t") for k, v in FACTS.items()}, {"t": "test"})
NET = """(float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,1,1] w =
    {1,2,3,4,5,6,7,8,9,-10,11,-12}> {
    a = Conv(x, w) c = Relu(a) t = Transpose<perm=[0,1,3,2]>(c) y = MatMul(c, t) }"""


@pytest.fixture
def scheme() -> IntScheme:
    found = PROFILE.int_scheme
    assert found is not None
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.json"


def program(text: str = NET) -> Program:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def calls(count: int = 6, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def made(scheme: IntScheme, path: Path, **given: Any) -> Calibrator:
    return Calibrator(given.pop("calls", calls()), scheme, "t", table=path, **given)


def test_written_once_and_used_without_samples(scheme: IntScheme, path: Path) -> None:
    first = made(scheme, path)
    stats, ranges = first.channels(program(), {"x": 1}), first.ranges(program())
    assert first.notes == [f"calibration table written: {path}"] and not first.given
    again = made(scheme, path, calls=())
    assert again.given and again.ranges(program()) == ranges
    found = again.channels(program(), {"x": 1})["x"]
    for name in ("low", "high", "mean", "square", "count"):
        np.testing.assert_array_equal(getattr(found, name), getattr(stats["x"], name))
    assert f"ranges are those of {path} (percentile, 6 samples)" in again.notes[0]
    assert len(again.notes) == 1
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_a_line_for_each_tensor_in_the_order_of_the_graph(scheme: IntScheme, path: Path) -> None:
    ranges = made(scheme, path).ranges(program())
    text = path.read_text()
    lines = [line.strip().split(":")[0] for line in text.splitlines() if '"range"' in line]
    assert lines == ['"x"', '"c"', '"t"'] == [json.dumps(n) for n in ranges]
    data = json.loads(text)
    assert data["coding"] == "uint8 0..255 asymmetric" and data["samples"] == 6
    assert Table.from_json(text).to_json() == text


def test_an_edited_range_is_taken_as_it_is(scheme: IntScheme, path: Path) -> None:
    made(scheme, path).ranges(program())
    data = json.loads(path.read_text())
    data["tensors"]["c"] = {"range": [0, 12]}
    path.write_text(json.dumps(data))
    found = made(scheme, path).ranges(program())
    assert found["c"] == found.seen["c"] == (0, 12)


Change = Callable[[dict[str, Any]], None]


def edit(*keys: str, to: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


NONSENSE: Mapping[str, tuple[Change, str]] = {
    "order": (edit("tensors", "x", "range", to=[2, 1]), "the low end is above the high end"),
    "nan": (edit("tensors", "x", "range", to=[float("nan"), 1]), "expected two finite numbers"),
    "inf": (edit("tensors", "x", "seen", to=[0, float("inf")]), "expected two finite numbers"),
    "huge": (edit("tensors", "x", "range", to=[0, 1e39]), "expected two finite numbers"),
    "three": (edit("tensors", "x", "range", to=[0, 1, 2]), "expected two finite numbers"),
    "text": (edit("tensors", "x", "range", to=["0", "1"]), "expected two finite numbers"),
    "bool": (edit("tensors", "x", "range", to=[False, True]), "expected two finite numbers"),
    "null": (edit("tensors", "x", to=None), "'x': range is None"),
    "typo": (edit("tensors", "x", "rnage", to=[0, 1]), "has 'rnage'; is it 'range'?"),
    "samples": (edit("samples", to="6"), "'samples' is '6', expected int"),
    "tensors": (edit("tensors", to=[]), r"'tensors' is \[\], expected dict"),
    "extra": (edit("tensor", to={}), "has 'tensor'; is it 'tensors'?"),
    "format": (edit("format", to="npuc-calibration-9"), "has format 'npuc-calibration-9'"),
    "channels": (edit("channels", to={"x": {"rows": "?"}}), "channels of 'x' are damaged"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_refused(kind: str, scheme: IntScheme, path: Path) -> None:
    made(scheme, path).ranges(program())
    data = json.loads(path.read_text())
    change, message = NONSENSE[kind]
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=message):
        made(scheme, path)


def test_every_fault_is_listed_at_once(scheme: IntScheme, path: Path) -> None:
    made(scheme, path).ranges(program())
    text = path.read_text().replace('"c"', '"x"')
    path.write_text(text.replace('"samples": 6', '"samples": "many"'))
    with pytest.raises(ArtifactError) as caught:
        made(scheme, path)
    assert "'x' is given twice" in caught.value.message and "'samples'" in caught.value.message
    assert "delete the file" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\ufeff", "{}"])
def test_no_table_at_all(text: str, scheme: IntScheme, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"table\.json"):
        made(scheme, path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not a readable calibration table"):
        made(scheme, path)


def test_tensors_that_are_missing_and_unknown(scheme: IntScheme, path: Path) -> None:
    made(scheme, path).ranges(program())
    path.write_text(path.read_text().replace('"c"', '"cc"').replace('"t"', '"zebra"'))
    with pytest.raises(UsageError) as caught:
        made(scheme, path).ranges(program())
    for part in ("no range for tensor 'c'", "no range for tensor 't'", "'cc' to code; is it 'c'?",
                 "no tensor 'zebra' to code"):  # fmt: skip
        assert part in caught.value.message
    assert f"rm {path}" in caught.value.hint


def test_a_table_of_something_else_is_noted(scheme: IntScheme, path: Path) -> None:
    made(scheme, path).ranges(program())
    other = made(replace(scheme, activation_symmetric=True), path)
    other.ranges(program(NET.replace("{1,2,3", "{1,2,4")))
    assert any("made for uint8 0..255 asymmetric; this target codes" in n for n in other.notes)
    assert any("another version of this program" in note for note in other.notes)
    with pytest.raises(UsageError, match="found by percentile, not mse"):
        made(scheme, path, observer="mse")
    with pytest.raises(UsageError, match="has no channels of 'x'"):
        made(scheme, path).channels(program(), {"x": 1})


def test_shifts_belong_to_the_ranges_they_were_measured_with(scheme: IntScheme, path: Path) -> None:
    shifts = {"a": np.array([0.25, -1e-9]), "b": np.array([3.0])}
    first = made(scheme, path)
    first.ranges(program())
    assert first.shifts(lambda: shifts) is shifts
    again = made(scheme, path, calls=())
    again.ranges(program())
    found = again.shifts(lambda: pytest.fail("measured again"))
    assert {name: list(array) for name, array in found.items()} == {
        name: list(array) for name, array in shifts.items()
    }
    data = json.loads(path.read_text())
    data["tensors"]["c"]["range"][1] += 1
    path.write_text(json.dumps(data))
    edited = made(scheme, path, calls=())
    assert edited.shifts(lambda: pytest.fail("measured without samples")) == {}
    assert "biases are not corrected" in edited.notes[-1]
    assert made(scheme, path).shifts(lambda: shifts) is shifts  # on the samples that are given
    data["shifts"]["a"] = "?"
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="shifts of 'a' are damaged"):
        made(scheme, path)


def test_where_it_has_no_use_or_no_place(scheme: IntScheme, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        made(scheme, tmp_path / "no" / "table.json")
    assert path_of(None, ["a", "b"], {"float"}) is None
    with pytest.raises(UsageError, match="belongs to one target, and there are 2"):
        path_of("t.json", ["a", "b"], {"int8"})
    with pytest.raises(UsageError, match="nothing is calibrated in precision float"):
        path_of("t.json", ["a"], {"float"})


class Killed(BaseException):
    """Stands for Ctrl-C."""


def dying(count: int) -> Iterator[dict[str, Array]]:
    yield from calls()[:count]
    raise Killed


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_goes_on(name: str, scheme: IntScheme, tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "t.partial", "job")
    with pytest.raises(Killed) as caught:
        collect(program(), dying(4), scheme, observer=name, checkpoint=kept)
    assert str(kept.path) in caught.value.__notes__[0] and kept.path.exists()
    seen: list[int] = []
    resumed = collect(
        program(), calls(), scheme, observer=name, checkpoint=Checkpoint(kept.path, "job"),
        progress=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert 1 < seen[0] <= 5 and seen[-1] == 6
    assert resumed == collect(program(), calls(), scheme, observer=name)
    # A file of another job is left alone.
    seen.clear()
    collect(program(), calls(), scheme, observer=name, checkpoint=Checkpoint(kept.path, "other"),
            progress=lambda done, total: seen.append(done))  # fmt: skip
    assert seen[0] == 1


def test_a_killed_table_is_finished_from_where_it_was(
    scheme: IntScheme, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(scheme, path.with_name("whole.json"), observer="entropy").ranges(program())
    steps: list[int] = []
    first = made(scheme, path, observer="entropy")
    first.progress = Stop(after=3)
    with pytest.raises(KeyboardInterrupt) as caught:
        first.ranges(program())
    assert "3 of 6 samples are kept in" in caught.value.__notes__[0]
    assert not path.exists() and path.with_name("table.json.partial").exists()
    second = made(scheme, path, observer="entropy")
    second.progress = Stop(after=99, log=steps)
    assert second.ranges(program()) == whole and steps == [4, 5, 6]
    assert path.read_text() == path.with_name("whole.json").read_text()
    assert not path.with_name("table.json.partial").exists()


class Stop:
    """Progress that interrupts."""

    def __init__(self, after: int, log: list[int] | None = None) -> None:
        self.after, self.log = after, [] if log is None else log

    def stage(self, name: str) -> None:
        pass

    def advance(self, done: int, total: int) -> None:
        self.log.append(done)
        if done == self.after:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_other_samples_begin_anew(scheme: IntScheme, path: Path) -> None:
    first = made(scheme, path)
    first.progress = Stop(after=3)
    with pytest.raises(KeyboardInterrupt):
        first.ranges(program())
    log: list[int] = []
    second = made(scheme, path, calls=calls(seed=1))
    second.progress = Stop(after=99, log=log)
    second.ranges(program())
    assert log[0] == 1


def test_a_damaged_partial_file(scheme: IntScheme, tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "t.partial", "job")
    kept.path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ArtifactError, match="not an interrupted calibration") as caught:
        collect(program(), calls(), scheme, checkpoint=kept)
    assert caught.value.hint == f"rm {kept.path}"


def test_saved_from_time_to_time(tmp_path: Path, scheme: IntScheme) -> None:
    kept = Checkpoint(tmp_path / "t.partial", "job", every=0)
    sizes: list[bool] = []
    collect(program(), calls(), scheme, checkpoint=kept,
            progress=lambda done, total: sizes.append(kept.path.exists()))  # fmt: skip
    assert sizes == [False, True, True, True, True, True]


def test_state_is_all_there_is() -> None:
    rng = np.random.default_rng(0)
    importance = Importance(0, np.array([1, 200]))
    for make in (lambda: Observer(True), lambda: Observer(True, importance),
                 lambda: Observer(False), lambda: ChannelObserver(0)):  # fmt: skip
        one, other = make(), make()
        for observer in (one, other):
            assert observer.see(np.zeros((2, 3), np.float32))
        other = make()
        other.restore(one.state())
        later = rng.normal(size=(2, 50)).astype(np.float32)
        assert one.see(later) and other.see(later)
        np.testing.assert_equal(dict(one.state()), dict(other.state()))


def test_the_key_tells_jobs_apart() -> None:
    base = checkpoint.key(["a"], calls())
    assert base == checkpoint.key(["a"], calls())
    changed = calls()
    changed[3]["x"][0, 0, 0, 0] += 1
    others = [(["b"], calls()), (["a"], calls(5)), (["a"], changed), (["a"], calls()[::-1])]
    assert base not in {checkpoint.key(parts, data) for parts, data in others}


def test_a_forecast_before_the_long_part(
    scheme: IntScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "cores", lambda: 2)
    told: list[str] = []
    collect(program(), calls(40), scheme, forecast=told.append)
    (text,) = told
    assert text.startswith("40 samples, about 1 s, ") and text.endswith("MB")
    told.clear()
    collect(program(), calls(5), scheme, forecast=told.append)
    collect(program(), (call for call in calls(40)), scheme, forecast=told.append)
    assert not told  # over before it could be told, or of unknown length


def test_coding_is_said_in_words(scheme: IntScheme) -> None:
    assert coding(scheme) == "uint8 0..255 asymmetric"
