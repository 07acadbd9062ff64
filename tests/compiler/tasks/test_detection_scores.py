"""Mean average precision against hand-worked cases and a slow implementation of its own."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.errors import UsageError
from npuc.tasks import boxes, detection

Array = np.ndarray[Any, Any]
Rows = list[tuple[float, float, float, float, int, float]]
"""Detections as x1, y1, x2, y2, class, score."""


def answer(rows: Rows, size: int = 0) -> dict[str, Array]:
    """Return outputs with (1, n, ...) boxes, classes and scores, padded to `size`."""
    size = size or len(rows)
    places = np.zeros((1, size, 4), np.float32)
    kinds, scores = np.zeros((1, size), np.int64), np.full((1, size), -1.0, np.float32)
    for at, row in enumerate(rows):
        places[0, at], kinds[0, at], scores[0, at] = row[:4], row[4], row[5]
    return {"boxes": places, "classes": kinds, "scores": scores}


def label(*rows: tuple[float, ...]) -> Array:
    return np.array([[*rows, (0, 0, 0, 0, -1)]], np.float32)


def mean_ap(rows: list[Rows], labels: list[Array], **settings: Any) -> float:
    calls = [answer(r, 8) for r in rows]
    found = detection.measure(calls, calls, labels, classes="classes", **settings)
    assert found.means[0] == found.means[1]
    return found.means[0]


def test_precision_over_recall_by_hand() -> None:
    """Hit, miss, hit of two boxes: precision 1 up to recall ½, then ⅔: (51 + 50 · ⅔) / 101."""
    rows: Rows = [(0, 0, 10, 10, 1, 0.9), (50, 50, 60, 60, 1, 0.8), (20, 20, 30, 30, 1, 0.7)]
    truth = label((0, 0, 10, 10, 1), (20, 20, 30, 30, 1))
    assert mean_ap([rows], [truth]) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert mean_ap([rows[:2]], [truth]) == pytest.approx(51 / 101)
    assert mean_ap([[]], [truth]) == 0
    assert mean_ap([[*rows, (0, 0, 10, 10, 3, 0.99)]], [truth]) == mean_ap([rows], [truth])
    half = mean_ap([rows], [label((0, 0, 10, 10, 1), (20, 20, 30, 30, 1), (0, 0, 1, 1, 2))])
    assert half == pytest.approx(mean_ap([rows], [truth]) / 2), "a class never found scores 0"


def test_the_average_over_overlaps() -> None:
    """A box of overlap 0.72 is found at .5, .55, .6, .65 and .7: five of ten."""
    rows: Rows = [(0, 0, 10, 7.2, 0, 0.9)]
    truth = label((0, 0, 10, 10, 0))
    assert mean_ap([rows], [truth]) == pytest.approx(0.5)
    assert mean_ap([rows], [truth], overlaps=(0.5,)) == 1
    assert mean_ap([[(0, 0, 10, 7.5, 0, 0.9)]], [truth]) == pytest.approx(0.6), "0.75 is enough"


def test_each_box_is_found_once() -> None:
    """The second detection of a box is a miss; it comes before the hit in another image."""
    rows: list[Rows] = [
        [(0, 0, 10, 10, 0, 0.9), (0, 0, 10, 10, 0, 0.8)],
        [(0, 0, 10, 10, 0, 0.7)],
    ]
    truth = [label((0, 0, 10, 10, 0)), label((0, 0, 10, 10, 0))]
    assert mean_ap(rows, truth) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert mean_ap(rows, truth, nms=0.5) == 1


def test_equal_scores_count_together_in_any_order() -> None:
    hit, miss = (0, 0, 10, 10, 0, 0.5), (50, 50, 60, 60, 0, 0.5)
    truth = [label((0, 0, 10, 10, 0))]
    assert mean_ap([[hit, miss]], truth) == mean_ap([[miss, hit]], truth) == pytest.approx(0.5)


def test_without_labels_the_original_is_found_by_itself() -> None:
    rows: Rows = [(0, 0, 10, 10, 1, 0.9), (20, 20, 30, 30, 1, 0.6), (50, 50, 60, 60, 1, 0.2)]
    moved = answer([(0, 0, 10, 10, 1, 0.9), (20, 20, 30, 26, 1, 0.6)])
    before = [answer(rows)]
    same = detection.measure(before, before, [None], classes="classes")
    assert same.means == (1, 1)
    off = detection.measure(before, [moved], [None], classes="classes")
    assert off.means == pytest.approx((1, (3 * 101 + 7 * 51) / 1010))  # an overlap of 0.6
    shuffled = {name: array[:, ::-1] for name, array in before[0].items()}
    assert detection.measure(before, [shuffled], [None], classes="classes").means == (1, 1)


def test_scores_of_every_class_objectness_and_count() -> None:
    parts = {
        "b": np.array([[[5, 5, 10, 10], [25, 25, 10, 10], [55, 55, 10, 10]]], np.float32),
        "s": np.array([[[0.1, 0.9], [0.8, 0.1], [0.9, 0.9]]], np.float32),
        "o": np.array([[0.9, 0.5, 0.9]], np.float32),
        "n": np.array([2]),
    }
    truth = [
        {"boxes": np.array([[[5, 5, 10, 10], [25, 25, 10, 10]]]), "classes": np.array([[1, 0]])}
    ]
    named: dict[str, Any] = {"boxes": "b", "scores": "s", "objectness": "o", "layout": "cxcywh"}
    found = detection.measure([parts], [parts], truth, count="n", **named)
    assert found.means == (1, 1)
    read = boxes.detections({"boxes": parts["b"], "scores": parts["s"]}, "cxcywh", 0.05)
    assert read.classes.tolist() == [1, 0, 0]
    assert read.boxes[0].tolist() == [0, 0, 10, 10]
    assert detection.measure([parts], [parts], truth, **named, floor=0.5).means[0] == 0.5


def test_layouts_and_overlap() -> None:
    corner = np.array([[0.0, 0, 10, 20]])
    assert boxes.corners(np.array([[0, 0, 10, 20]]), "xywh").tolist() == corner.tolist()
    assert boxes.corners(np.array([[5, 10, 10, 20]]), "cxcywh").tolist() == corner.tolist()
    other = np.array([[5.0, 10, 15, 20], [10, 20, 20, 30], [5, 5, 5, 5]])
    assert boxes.overlap(corner, other).tolist() == [[50 / 250, 0, 0]]
    with pytest.raises(UsageError, match="layout"):
        boxes.corners(corner, "yx")


def slow_overlap(a: Any, b: Any) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(width * height / (both - width * height))


def slow(rows: list[Rows], truths: list[list[tuple[float, ...]]], least: float) -> float:
    """Return AP at one overlap the long way: for each recall, the best precision at or beyond."""
    kinds = sorted({int(t[4]) for truth in truths for t in truth})
    areas = []
    for kind in kinds:
        ranked = sorted(
            ((row[5], image, row) for image, found in enumerate(rows) for row in found
             if row[4] == kind),
            key=lambda item: -item[0],
        )  # fmt: skip
        free = {(i, j) for i, truth in enumerate(truths) for j, t in enumerate(truth)
                if t[4] == kind}  # fmt: skip
        total, right, curve = len(free), 0, []
        for rank, (_, image, row) in enumerate(ranked, 1):
            shares = [(slow_overlap(row, truths[image][j]), -j) for i, j in free if i == image]
            if shares and max(shares)[0] >= least:
                free.remove((image, -max(shares)[1]))
                right += 1
            curve.append((right / total, right / rank))
        areas.append(np.mean([max((p for r, p in curve if r >= step / 100), default=0)
                              for step in range(101)]))  # fmt: skip
    return float(np.mean(areas))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 4))
def test_it_agrees_with_the_slow_way(seed: int, images: int) -> None:
    generator = np.random.default_rng(seed)
    truths: list[list[tuple[float, ...]]] = []
    found: list[Rows] = []
    for _ in range(images):
        corner = generator.integers(0, 40, (generator.integers(1, 4), 2))
        size = generator.integers(5, 20, corner.shape)
        kinds = generator.integers(0, 3, len(corner))
        truths.append([(*map(float, (*c, *(c + s))), int(k))
                       for c, s, k in zip(corner, size, kinds, strict=True)])  # fmt: skip
        found.append([])
        for truth in truths[-1] * 2:
            moved = np.array(truth[:4]) + generator.integers(-3, 4, 4)
            # float32 of the outputs: scores that are distinct there, or the orders differ
            score = float(np.float32(generator.uniform(0.1, 1)))
            found[-1].append((*map(float, moved), int(generator.choice([truth[4], 1])), score))  # type: ignore[arg-type]
    labels = [label(*t) for t in truths]
    for overlaps in ((0.5,), (0.75,), detection.COCO):
        expected = np.mean([slow(found, truths, least) for least in overlaps])
        assert mean_ap(found, labels, overlaps=overlaps) == pytest.approx(float(expected))


def test_a_part_of_the_images_is_scored_as_if_there_were_no_others() -> None:
    generator = np.random.default_rng(4)
    rows, truths = [], []
    for _ in range(6):
        corner = generator.integers(0, 40, (3, 2))
        truths.append(label(*((*c, *(c + 10), k) for k, c in enumerate(corner))))
        rows.append([(*(c + generator.integers(-2, 3, 2)), *(c + 10), k, generator.random())
                     for k, c in enumerate(corner)])  # fmt: skip
    calls = [answer(r) for r in rows]
    whole = detection.measure(calls, calls, truths, classes="classes")
    for chosen in ([0], [1, 3, 5], [5, 4, 2, 0]):
        apart = mean_ap([rows[i] for i in chosen], [truths[i] for i in chosen])
        assert whole.score(np.array(chosen))[0] == pytest.approx(apart)


def test_the_hundred_best_count_after_suppression() -> None:
    doubles: Rows = [(0, 0, 10, 10, 0, 0.9 - at / 1000) for at in range(150)]
    rows = [[*doubles, (20, 20, 30, 30, 0, 0.3)]]
    truth = [label((0, 0, 10, 10, 0), (20, 20, 30, 30, 0))]
    calls = [answer(r) for r in rows]
    kept, lost = (
        detection.measure(calls, calls, truth, classes="classes", nms=nms).means[0]
        for nms in (0.5, 0.0)
    )
    assert kept == 1 and lost == pytest.approx(51 / 101)


def test_what_does_not_fit_is_refused() -> None:
    good = answer([(0, 0, 10, 10, 1, 0.9)])
    bad = {**good, "scores": np.ones((1, 3)), "boxes": np.ones((1, 2, 4))}
    with pytest.raises(UsageError, match=r"0 has 2 boxes.*scores \(1, 3\).*classes \(1, 1\)"):
        detection.measure([bad], [good], [None], classes="classes")
    with pytest.raises(UsageError, match="no output boxes"):
        detection.measure([{"x": np.ones(1)}], [good], [None])
    with pytest.raises(UsageError, match="not \\(boxes, 5\\)"):
        detection.measure([good], [good], [np.ones((1, 4))], classes="classes")
    with pytest.raises(UsageError, match="labels have no classes"):
        detection.measure([good], [good], [{"boxes": np.ones((1, 4))}], classes="classes")
    with pytest.raises(UsageError, match="nothing that scores at least"):
        detection.measure([good], [good], [None], classes="classes", truth=0.95)
    with pytest.raises(UsageError, match="no label has a box"):
        detection.measure([good], [good], [label()], classes="classes")


def test_a_gate_that_hangs_on_one_image_is_undecided() -> None:
    calls = [answer([(0, 0, 10, 10, 1, 0.9)]) for _ in range(40)]
    truths = [label((0, 0, 10, 10, 1)), *[label() for _ in range(39)]]
    found = detection.measure(calls, calls, truths, classes="classes")
    assert found.drop_at_most(0.5).state == "undecided"


def test_rows_of_nan_are_no_detections() -> None:
    rows: Rows = [(0, 0, 10, 10, 1, 0.9), (np.nan, 0, 1, 1, 1, 0.95), (0, 0, 1, 1, 1, np.nan)]
    assert mean_ap([rows], [label((0, 0, 10, 10, 1))]) == 1
