"""The key of a verdict: any change of anything it depends on changes it, and nothing else does."""

import os
import shutil
import time
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npuc.errors import UsageError
from npuc.gate import identity, machine
from npuc.gate.digests import RACY, Digests
from npuc.gate.machine import Machine
from npuc.gate.pairs import Hold, Metric, Model, Pair, Waiver

HERE = Machine("n", "p", "l", {"torch": "2"}, "k", "c", {"NPUC_X": "1"}, "t")


@pytest.fixture(autouse=True)
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters say nothing about themselves here: they are asked in a test of their own."""
    monkeypatch.setattr(machine, "finding", lambda target, *_: f"{target} is here")


def files(folder: Path) -> Model:
    """Write everything that a model may refer to, and refer to it."""
    for name in ("m.pt", "s.npz", "c.npz", "t.json", "r.npz", "l.npz", "d.txt"):
        (folder / name).write_text(name)
    (folder / "evaluate.py").write_text("import helper\ndef f(o, l): return 1\n")
    (folder / "helper.py").write_text("X = 1\n")
    (folder / "net").mkdir()
    (folder / "net" / "build.py").write_text("def make(): return None\n")
    (folder / "data").mkdir()
    (folder / "data" / "names.txt").write_text("a")
    options = {
        "samples": folder / "s.npz", "calibration": folder / "c.npz", "precision": "int8",
        "calibration_table": folder / "t.json", "reference": folder / "r.npz", "skip": ("a",),
        "dims": {"batch": 1}, "model": "build:make", "model_path": folder / "net",
    }  # fmt: skip
    metric = Metric("accuracy", 0.01, "evaluate:f", "", folder / "l.npz")
    return Model(
        "m", str(folder / "m.pt"), ("cpu", "atom"), folder, options, Hold(sqnr_db=20),
        {"logits": Hold(agreement=0.9)}, (metric,), (folder / "d.txt", folder / "data"),
    )  # fmt: skip


def key(pair: Pair, here: Machine = HERE) -> str:
    return identity.key(pair, here, Digests())


FILES = (
    "m.pt", "s.npz", "c.npz", "t.json", "r.npz", "l.npz", "d.txt", "evaluate.py", "helper.py",
    "net/build.py", "data/names.txt",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_any_byte_of_any_file_counts(tmp_path: Path, name: str) -> None:
    pair = Pair(files(tmp_path), "atom")
    before = key(pair)
    path = tmp_path / name
    path.write_bytes(path.read_bytes() + b" ")
    assert key(pair) != before


def test_files_that_come_or_go_count(tmp_path: Path) -> None:
    pair = Pair(files(tmp_path), "atom")
    keys = [key(pair)]
    (tmp_path / "net" / "more.py").write_text("")
    keys.append(key(pair))
    (tmp_path / "data" / "more.txt").write_text("")
    keys.append(key(pair))
    (tmp_path / "data" / "names.txt").rename(tmp_path / "data" / "other.txt")
    keys.append(key(pair))
    assert len(set(keys)) == 4


def test_every_option_and_bar_counts(tmp_path: Path) -> None:
    model = files(tmp_path)
    options = model.options
    (metric,) = model.metrics
    others = [
        *(replace(model, options={k: v for k, v in options.items() if k != n}) for n in options),
        replace(model, options={**options, "precision": "w4a8"}),
        replace(model, options={**options, "dims": {"batch": 2}}),
        replace(model, options={**options, "eval_mode": True}),
        *(replace(model, hold=replace(model.hold, **{f.name: 0.75})) for f in fields(Hold)),
        replace(model, outputs={}),
        replace(model, outputs={"other": Hold(agreement=0.9)}),
        replace(model, outputs={"logits": Hold(agreement=0.91)}),
        replace(model, metrics=()),
        replace(model, depends=()),
        *(
            replace(model, metrics=(replace(metric, **change),))
            for change in (
                {"name": "b"}, {"max_drop": 0.02}, {"labels": None}, {"corpus": True},
                {"span": (0.0, 2.0)}, {"confidence": 0.9}, {"function": "", "task": "detection"},
            )
        ),
    ]  # fmt: skip
    pairs = [Pair(m, "atom") for m in (model, *others)]
    pairs += [Pair(model, "cpu"), Pair(model, "atom", strict=True)]
    found = [key(pair) for pair in pairs]
    assert len(set(found)) == len(found)


def test_everything_of_the_machine_counts_but_what_only_leads_to_findings(tmp_path: Path) -> None:
    pair = Pair(files(tmp_path), "atom")
    before = key(pair)
    for item in fields(Machine):
        value = getattr(HERE, item.name)
        other: Any = {**value, "more": "1"} if isinstance(value, dict) else value + "x"
        same = key(pair, replace(HERE, **{item.name: other})) == before
        assert same == (item.name == "tools"), item.name


def test_packages_count_only_where_code_of_the_user_runs(tmp_path: Path) -> None:
    model = replace(files(tmp_path), options={}, metrics=(), depends=())
    assert key(Pair(model, "atom")) == key(Pair(model, "atom"), replace(HERE, packages="x"))
    trusted = replace(model, options={"trust_pickle": True})
    assert key(Pair(trusted, "atom")) != key(Pair(trusted, "atom"), replace(HERE, packages="x"))


def test_what_the_adapter_says_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(files(tmp_path), "atom")
    before = key(pair)
    monkeypatch.setattr(machine, "finding", lambda *_: "another version")
    assert key(pair) != before


def test_where_it_lies_when_it_was_touched_and_what_is_waived_does_not_count(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    before = key(Pair(files(first), "atom"))
    shutil.copytree(first, second)
    shutil.rmtree(first)
    first.mkdir()
    moved = files(first)
    os.utime(first / "m.pt", (1, 1))
    waiver = Waiver("m", "atom", "artifact", "r", date(2027, 1, 1))
    assert key(Pair(moved, "atom", (waiver,))) == before
    turned = replace(moved, options=dict(reversed(list(moved.options.items()))))
    assert key(Pair(turned, "atom")) == before


TEXTS = st.sampled_from(["a", "b", "a,b", "", "1"])
HOLDS = st.builds(
    Hold,
    *(st.sampled_from([None, 0.9, 1.0]) for _ in range(2)),
    agreement=st.sampled_from([None, 0.9]),
)
MODELS = st.builds(
    Model,
    name=st.just("m"),
    source=st.sampled_from(["zoo:a", "zoo:b"]),
    targets=st.just(("atom",)),
    folder=st.just(Path()),
    options=st.dictionaries(
        st.sampled_from(["precision", "rounding", "skip", "inputs"]),
        TEXTS | st.lists(TEXTS, max_size=2).map(tuple), max_size=2,
    ),
    hold=HOLDS,
    outputs=st.dictionaries(TEXTS, HOLDS, max_size=1),
    metrics=st.lists(
        st.builds(Metric, TEXTS, st.sampled_from([0.0, 0.1]), task=TEXTS), max_size=1
    ).map(tuple),
)  # fmt: skip
PAIRS = st.builds(Pair, MODELS, st.sampled_from(["atom", "cpu"]), strict=st.booleans())


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PAIRS, PAIRS)
def test_two_pairs_have_one_key_only_where_they_are_equal(first: Pair, second: Pair) -> None:
    assert (key(first) == key(second)) == (first == second)


def test_weights_beside_an_onnx_file_count(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    weight = ir.tensor(np.ones(4096, np.float32), name="w")
    value = ir.Value(
        name="w", const_value=weight, shape=ir.Shape([4096]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    node = ir.node("Identity", [value], name="n")
    node.outputs[0].name = "y"
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 20})
    ir.save(ir.Model(graph, ir_version=10), path, external_data="deep weights.bin")
    pair = Pair(Model("m", str(path), ("cpu",), tmp_path), "cpu")
    assert identity._externals(path) == "deep weights.bin"
    before = key(pair)
    data = bytearray((tmp_path / "deep weights.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "deep weights.bin").write_bytes(data)
    assert key(pair) != before


def test_what_is_gone_is_said(tmp_path: Path) -> None:
    model = files(tmp_path)
    (tmp_path / "s.npz").unlink()
    with pytest.raises(UsageError, match=r"cannot read .*s.npz: No such file"):
        key(Pair(model, "atom"))


def test_contents_are_read_once_per_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memo = tmp_path / "f", tmp_path / "memo.json"
    path.write_text("one")
    clock = time.time_ns()

    def of(after: int) -> str:
        monkeypatch.setattr(time, "time_ns", lambda: clock + after)
        digests = Digests(memo)
        found = digests.of(path)
        digests.save()
        return found

    first = of(0)  # so soon after the change it is not remembered
    assert not memo.exists()
    assert of(10 * RACY) == first and memo.exists()
    monkeypatch.setattr("npuc.gate.digests.sha256", forbidden)
    assert of(10 * RACY) == first
    monkeypatch.undo()
    stat = path.stat()
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if it had not been written
    assert of(10 * RACY) != first


def forbidden(path: Path) -> str:
    raise AssertionError(f"{path} was read again")


def test_a_damaged_memo_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "memo").write_text("{")
    (tmp_path / "f").write_text("one")
    assert Digests(tmp_path / "memo").of(tmp_path / "f") == Digests().of(tmp_path / "f")


def test_environments_and_hidden_folders_are_no_code_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = Digests().of(tmp_path, ".py")
    for name in ("venv/lib/x.py", ".git/x.py", "__pycache__/x.py", "notes.txt"):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("2")
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    assert Digests().of(tmp_path, ".py") == before
    (tmp_path / "b.py").write_text("2")
    assert Digests().of(tmp_path, ".py") != before


def test_this_machine_is_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = Digests()
    first = machine.here(digests)
    assert machine.here(digests) == first
    assert first.versions["torch"] and first.cpu
    monkeypatch.setenv("NPUC_ATOM_PYTHON", "/somewhere/python")
    second = machine.here(digests)
    assert second.variables != first.variables and second.tools != first.tools
    monkeypatch.setenv("NPUC_CACHE", str(tmp_path))
    assert machine.here(digests) == second
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert machine.here(digests).tools != second.tools
    assert replace(machine.here(digests), tools="") == replace(second, tools="")


def test_an_adapter_is_asked_once_per_state_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # of `adapters`
    digests, here = Digests(), replace(HERE, tools="one")
    first = machine.finding("cpu", here, digests, tmp_path)
    assert "TVM" in first
    monkeypatch.setattr("npuc.plugins.find", forbidden)
    assert machine.finding("cpu", here, digests, tmp_path) == first
    with pytest.raises(AssertionError):
        machine.finding("cpu", replace(here, tools="two"), digests, tmp_path)
