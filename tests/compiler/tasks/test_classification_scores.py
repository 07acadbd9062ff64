"""Top-1 and top-k accuracy, with ties shared out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npuc.errors import UsageError
from npuc.tasks import classification
from npuc.tasks.catalogue import TASKS

Array = np.ndarray[Any, Any]


def calls(*rows: list[float]) -> list[dict[str, Array]]:
    return [{"y": np.array([row], np.float32)} for row in rows]


def test_accuracy_by_hand() -> None:
    before = calls([0, 1, 2], [5, 1, 2], [0, 3, 1], [1, 2, 3])
    after = calls([0, 1, 2], [1, 5, 2], [9, 3, 1], [1, 3, 2])
    labels = [np.array([c]) for c in (2, 0, 1, 1)]
    found = classification.measure(before, after, labels)
    assert found.reference.tolist() == [1, 1, 1, 0]
    assert found.candidate.tolist() == [1, 0, 0, 1]
    assert found.means == (0.75, 0.5)
    twice = classification.measure(before, after, labels, k=2)
    assert twice.reference.tolist() == [1, 1, 1, 1]
    assert twice.candidate.tolist() == [1, 0, 1, 1]


def test_without_labels_the_original_is_right() -> None:
    before, after = calls([0, 1], [1, 0]), calls([0, 2], [0, 1])
    found = classification.measure(before, after, [None, None])
    assert found.means == (1, 0.5)


def test_a_near_tie_of_the_original_lets_either_class_be_right() -> None:
    before, after = calls([1.0, 0.999, 0.0]), calls([0.9, 1.0, 0.0])
    strict, fair, other = (
        classification.measure(before, to, [None], ties=ties).candidate.tolist()
        for to, ties in ((after, 0.0), (after, 0.01), (calls([0, 0.1, 1]), 0.01))
    )
    assert (strict, fair, other) == ([0], [1], [0])
    both = classification.measure(before, calls([1, 1, 0]), [None], ties=0.01)
    assert both.candidate.tolist() == [1], "whichever of the two it picks is right"


def test_a_model_that_answers_all_alike_scores_by_chance() -> None:
    found = classification.measure(calls([0, 1, 0, 0]), calls([7, 7, 7, 7]), [np.array([1])])
    assert found.candidate.tolist() == [0.25]
    found = classification.measure(calls([0, 1, 0, 0]), calls([7, 7, 7, 7]), [None], k=2)
    assert found.candidate.tolist() == [0.5]


def test_nan_is_never_right() -> None:
    bad = calls([np.nan, 1, 0])
    for label in (None, np.array([1])):
        assert classification.measure(calls([0, 1, 0]), bad, [label]).candidate.tolist() == [0]


def test_several_positions_make_one_score_and_negative_labels_are_left_out() -> None:
    before = [{"y": np.eye(3, dtype=np.float32)[None]}]
    found = classification.measure(before, before, [np.array([[0, 2, -1]])])
    assert found.reference.tolist() == [0.5]


def test_outputs_of_classes_are_compared_by_number() -> None:
    before, after = [{"y": np.array([3, 4])}], [{"y": np.array([3, 5])}]
    assert classification.measure(before, after, [None], scores="y").candidate.tolist() == [0.5]
    labels = [np.array([9, 5])]
    found = classification.measure(before, after, labels, scores="y")
    assert (found.reference.tolist(), found.candidate.tolist()) == ([0], [0.5])


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=6),
    st.integers(0, 5),
    st.integers(1, 4),
)
def test_credit_is_the_mean_over_all_orders_of_ties(row: list[int], label: int, k: int) -> None:
    label %= len(row)
    generator = np.random.default_rng(0)
    scores = np.array(row, float)
    hits = [label in np.lexsort((generator.random(len(row)), -scores))[:k] for _ in range(400)]
    found = classification.credit(scores[None], np.array([label]), k)[0]
    # Five standard errors of 400 draws at the most: 12.5 points.
    assert abs(found - np.mean(hits)) <= 0.125
    if len(set(row)) == len(row):
        assert found == hits[0]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (np.array([0, 1]), "1 answers and 2 labels"),
        (np.array([3]), "of class 3; scores are for 3"),
        (np.array([-1]), "no label"),
        ({"a": np.array([1])}, "one array"),
    ],
)
def test_labels_that_do_not_fit_are_refused(label: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        classification.measure(calls([0, 1, 2]), calls([0, 1, 2]), [label])


def test_the_catalogue_checks_what_it_is_given() -> None:
    task, answers = TASKS["classification"], calls([0, 1])
    assert task.measure(answers, answers).means == (1, 1)
    with pytest.raises(UsageError, match="2 labels"):
        task.measure(answers, answers, [np.array([0])] * 2)
    with pytest.raises(UsageError, match="unknown: boxes"):
        task.measure(answers, answers, boxes="b")
    with pytest.raises(UsageError, match="cannot be compared"):
        task.measure(answers, [])
    with pytest.raises(UsageError, match="no output z"):
        task.measure(answers, answers, scores="z")
    two = [{"a": np.ones((1, 2)), "b": np.ones((1, 2))}]
    with pytest.raises(UsageError, match="which output holds the scores"):
        task.measure(two, two)
    with pytest.raises(UsageError, match="shapes"):
        task.measure(calls([0, 1]), calls([0, 1, 2]))
    for known in TASKS.values():
        assert set(known.options).isdisjoint(known.outputs)
        assert known.score
