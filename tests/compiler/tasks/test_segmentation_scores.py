"""Mean intersection over union against counting pixels one by one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.errors import UsageError
from npuc.tasks import segmentation

Array = np.ndarray[Any, Any]


def onehot(classes: Array, count: int) -> dict[str, Array]:
    """Return logits (1, classes, height, width) that choose a map (height, width)."""
    return {"y": np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, 0)[None]}


def test_by_hand() -> None:
    truth = np.array([[0, 0], [1, 1]])
    other = np.array([[0, 1], [1, 1]])  # class 0: 1 of 2, class 1: 2 of 3
    found = segmentation.measure([onehot(truth, 3)], [onehot(other, 3)], [truth[None]])
    assert found.means == pytest.approx((1, (1 / 2 + 2 / 3) / 2))
    free = segmentation.measure([onehot(truth, 3)], [onehot(other, 3)], [None])
    assert free.means == found.means, "the original's own map is the truth"


def slow(maps: list[Array], truths: list[Array], ignore: int) -> float:
    """Return mIoU by visiting pixels; classes that neither shows are left out."""
    shares = []
    for kind in range(4):
        shared = united = 0
        for first, truth in zip(maps, truths, strict=True):
            for a, t in zip(first.ravel(), truth.ravel(), strict=True):
                if t == ignore or t < 0:
                    continue
                shared += int(a == t == kind)
                united += int(kind in (a, t))
        if united:
            shares.append(shared / united)
    return float(np.mean(shares))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10_000), st.booleans())
def test_it_agrees_with_counting_pixels(count: int, seed: int, maps: bool) -> None:
    generator = np.random.default_rng(seed)
    first, second, truth = (
        [generator.integers(0, 4, (3, 5)) for _ in range(count)] for _ in range(3)
    )
    for label in truth:
        label[0, 0], label[0, 1] = 255, -1
        label[1, 1] = 0
    before, after = (
        [{"y": m[None]} if maps else onehot(m, 4) for m in side] for side in (first, second)
    )
    found = segmentation.measure(before, after, [t[None] for t in truth])
    chosen = generator.permutation(count)[: max(1, count - 1)]
    for indices in (np.arange(count), chosen):
        a, b, t = ([side[i] for i in indices] for side in (first, second, truth))
        expected = slow(a, t, 255), slow(b, t, 255)
        assert found.score(indices) == pytest.approx(expected)


def test_ties_are_shared_and_near_ties_of_the_original_are_right_either_way() -> None:
    even = {"y": np.zeros((1, 2, 1, 2), np.float32)}
    truth = np.array([[[0, 1]]])
    found = segmentation.measure([onehot(truth[0], 2)], [even], [truth])
    assert found.means == pytest.approx((1, (0.5 / 1.5 + 0.5 / 1.5) / 2))
    ref = {"y": np.array([[[[1.0, 0.0]], [[0.999, 1.0]]]])}
    got = {"y": np.array([[[[0.999, 0.0]], [[1.0, 1.0]]]])}
    assert segmentation.measure([ref], [got], [None]).means[1] < 1
    assert segmentation.measure([ref], [got], [None], ties=0.01).means == (1, 1)


def test_nan_is_no_class() -> None:
    truth = np.array([[0, 1]])
    broken = {"y": np.full((1, 2, 1, 2), np.nan, np.float32)}
    assert segmentation.measure([onehot(truth, 2)], [broken], [truth[None]]).means == (1, 0)


def test_what_does_not_fit_is_refused() -> None:
    answer = [onehot(np.array([[0, 1]]), 2)]
    with pytest.raises(UsageError, match="2 pixels and 3 labels"):
        segmentation.measure(answer, answer, [np.zeros((1, 1, 3), int)])
    with pytest.raises(UsageError, match="class 7"):
        segmentation.measure(answer, answer, [np.array([[[0, 7]]])])
    assert segmentation.measure(answer, answer, [np.array([[[0, 7]]])], ignore=7).means == (1, 1)
    with pytest.raises(UsageError, match="no pixel"):
        segmentation.measure(answer, answer, [np.full((1, 1, 2), 255)])
    with pytest.raises(UsageError, match="not \\(1, classes"):
        segmentation.measure([{"y": np.ones((1, 4))}], [{"y": np.ones((1, 4))}], [None])
