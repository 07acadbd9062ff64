"""A user's own score: what is asked of the function, and what is said where it does not fit."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npuc.errors import UsageError
from npuc.floors import Floor
from npuc.gate.drops import MaxDrop, TaskDrop
from npuc.held import Held

Array = np.ndarray[Any, Any]

GOOD = """\
import helper

def accuracy(outputs, labels):
    from helper import best
    return best(outputs["o"]) == labels

def whole(outputs, labels):
    return float(np.mean([accuracy(o, l) for o, l in zip(outputs, labels)]))

import numpy as np
"""


def answers(*classes: Array) -> list[dict[str, Array]]:
    return [{"o": np.eye(4, dtype=np.float32)[group]} for group in classes]


def drop(folder: Path, function: str, text: str = GOOD, **others: Any) -> MaxDrop:
    (folder / "metrics_of_mine.py").write_text(text)
    (folder / "helper.py").write_text("def best(array):\n    return array.argmax(-1)\n")
    return MaxDrop("mine", others.pop("bar", 0.1), f"metrics_of_mine:{function}", folder, **others)


def judge(demand: MaxDrop, expected: Any, got: Any) -> Held:
    samples = [{"x": np.zeros((len(call["o"]), 2))} for call in expected]
    (found,) = demand.judge(samples, expected, got, {})
    return found


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    truth = np.arange(400) % 4
    np.savez(tmp_path / "labels.npz", truth)
    return tmp_path / "labels.npz"


def batches(wrong: int) -> list[dict[str, Array]]:
    """Four calls of 100; the first `wrong` samples are answered wrongly."""
    classes = np.arange(400) % 4
    classes[:wrong] = (classes[:wrong] + 1) % 4
    return answers(*classes.reshape(4, 100))


@pytest.mark.parametrize("corpus", [False, True])
def test_a_drop_is_ok_failed_or_undecided(tmp_path: Path, labelled: Path, corpus: bool) -> None:
    name = "whole" if corpus else "accuracy"
    demand = drop(tmp_path, name, labels=labelled, corpus=corpus)
    found = judge(demand, batches(0), batches(4))
    assert (found.check, found.output, found.state, found.samples) == (
        "metric.mine", "", "ok", 400,
    )  # fmt: skip
    assert found.value == pytest.approx(0.01) and found.bar == 0.1
    assert judge(demand, batches(0), batches(100)).state == "failed"
    unsure = judge(demand, batches(0), batches(39))
    assert unsure.state == "undecided" and unsure.needed > 0
    assert f"{unsure.needed:,} more samples needed" in unsure.text
    assert judge(demand, batches(100), batches(0)).state == "ok", "better is no drop"


def test_labels_may_be_several_arrays_and_dealt_by_call(tmp_path: Path) -> None:
    np.savez(tmp_path / "l.npz", a=np.zeros((400, 2)), b=np.arange(400).reshape(4, 100))
    text = (
        "def check(outputs, labels):\n"
        "    assert labels['a'].shape == (100, 2) and labels['b'].shape == (100,)\n"
        "    return 1.0\n"
    )
    found = judge(drop(tmp_path, "check", text, labels=tmp_path / "l.npz"), batches(0), batches(0))
    assert found.samples == 4, "one number for a call makes it one sample"


def test_without_labels_there_are_none(tmp_path: Path) -> None:
    text = "def check(outputs, labels):\n    assert labels is None\n    return outputs['o'][:, 0]\n"
    assert judge(drop(tmp_path, "check", text), batches(0), batches(0)).samples == 400


FAULTS = {
    "raises": ("    return outputs['logits']\n", "failed: .*metrics_of_mine.py:2: KeyError"),
    "shape": ("    return [1.0, 2.0]\n", r"float64 of shape \(2,\); asked are 100 scores"),
    "nothing": ("    pass\n", "returned object"),
    "nan": ("    return float('nan')\n", "returned nan, which is not from 0 to 1"),
    "span": ("    return 97.5\n", "returned 97.5, which is not from 0 to 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_function_does_wrong_is_said(tmp_path: Path, name: str) -> None:
    body, wanted = FAULTS[name]
    with pytest.raises(UsageError, match=wanted):
        judge(drop(tmp_path, "f", f"def f(outputs, labels):\n{body}"), batches(0), batches(0))


def test_a_corpus_score_is_one_number(tmp_path: Path) -> None:
    text = "def f(outputs, labels):\n    return [0.5] * len(outputs)\n"
    with pytest.raises(UsageError, match=r"shape \(400,\); with corpus = true it returns one"):
        judge(drop(tmp_path, "f", text, corpus=True), batches(0), batches(0))


def test_a_span_lets_a_score_be_larger(tmp_path: Path) -> None:
    text = "def f(outputs, labels):\n    return 97.5\n"
    demand = drop(tmp_path, "f", text, span=(0.0, 100.0), bar=99.0)
    assert judge(demand, batches(0), batches(0)).value == 0


def test_labels_of_another_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "l.npz", np.zeros(399))
    with pytest.raises(UsageError, match=r"labels for 400 samples \(in 4 calls\): arr_0 has shape"):
        judge(drop(tmp_path, "accuracy", labels=tmp_path / "l.npz"), batches(0), batches(0))
    (tmp_path / "l.npz").write_text("no archive")
    with pytest.raises(UsageError, match=r"l.npz does not hold labels"):
        judge(drop(tmp_path, "accuracy", labels=tmp_path / "l.npz"), batches(0), batches(0))


def test_an_import_that_fails_names_the_file(tmp_path: Path) -> None:
    text = "import no_such_thing_anywhere\ndef f(o, l): pass\n"
    with pytest.raises(UsageError, match=r"cannot be imported from .*ModuleNotFoundError"):
        judge(drop(tmp_path, "f", text), batches(0), batches(0))


def test_two_files_of_one_name_are_told_apart_and_nothing_stays(tmp_path: Path) -> None:
    scores = []
    for number in (0.25, 0.75):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = f"def f(outputs, labels):\n    return {number}\n"
        scores.append(judge(drop(folder, "f", text), batches(0), batches(0)).text)
    assert [text.split(" →")[0] for text in scores] == ["mine: 0.25", "mine: 0.75"]
    assert "metrics_of_mine" not in sys.modules and "helper" not in sys.modules
    assert not any(str(tmp_path) in place for place in sys.path)


def floats(values: Any) -> Any:
    return np.array(values, np.float32)


FLOOR = {"o": Floor(1e-6, 1e-7, 1.0)}


def task(demand: TaskDrop, expected: Any, got: Any) -> Held:
    samples = [{"x": np.zeros((len(call["o"]), 2))} for call in expected]
    (found,) = demand.judge(samples, expected, got, FLOOR)
    return found


def test_a_task_scores_with_labels_and_without(labelled: Path) -> None:
    found = task(TaskDrop("top", 0.1, "classification", labelled), batches(0), batches(4))
    assert (found.check, found.state, found.samples) == ("metric.top", "ok", 400)
    assert found.value == pytest.approx(0.01)
    assert found.text.startswith("top: accuracy 1 → 0.99, a drop of 0.01 on 400 samples")
    demand = TaskDrop("top", 0.1, "classification", settings=(("scores", "o"), ("k", 4)))
    assert task(demand, batches(0), batches(400)).value == 0, "the best is always among all four"
    bare = TaskDrop("top", 0.1, "classification")
    assert task(bare, batches(0), batches(100)).state == "failed"


def test_a_task_judges_ties_by_the_noise_of_the_output() -> None:
    near = [{"o": floats([[0.5, 0.5000005]] * 400)}]
    other = [{"o": floats([[0.6, 0.5]] * 400)}]
    demand = TaskDrop("top", 0.1, "classification")
    assert task(demand, near, other).value == 0
    assert task(demand, [{"o": floats([[0.5, 0.51]] * 400)}], other).value == 1


def test_a_task_that_does_not_fit_names_the_metric(labelled: Path) -> None:
    with pytest.raises(UsageError, match=r"metrics.top: there is no output q"):
        demand = TaskDrop("top", 0.1, "classification", labelled, (("scores", "q"),))
        task(demand, batches(0), batches(0))
