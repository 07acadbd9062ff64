"""Next tokens, the first other one, and divergence in nats."""

import math
from typing import Any

import numpy as np
import pytest

from npuc.tasks import generation

Array = np.ndarray[Any, Any]


def test_divergence_by_hand() -> None:
    """Even against 3:1 over two tokens: ½ ln(½/¾) + ½ ln(½/¼)."""
    even, odd = np.array([[[0.0, 0.0]]]), np.array([[[math.log(3), 0.0]]])
    assert generation.kl(even, odd) == pytest.approx([0.5 * math.log(4 / 3)])
    assert generation.kl(odd, even) == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])


def test_divergence_does_not_see_an_offset_and_sees_what_is_ruled_out() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 5, 9)).astype(np.float32)
    assert generation.kl(logits, logits + 100) == pytest.approx(np.zeros(5), abs=1e-6)
    out = logits.copy()
    out[0, 2, 4] = -np.inf
    assert generation.kl(logits, out)[2] == math.inf
    assert np.isfinite(generation.kl(out, logits)).all()
    assert (generation.kl(out, out) == 0).all()
    out[0, 1, 0] = np.nan
    assert np.isnan(generation.kl(logits, out)[1])


def test_the_first_other_token() -> None:
    ref = np.eye(4, dtype=np.float32)[None]
    got = ref.copy()
    got[0, 2] = [5, 0, 0, 0]
    assert generation.first_divergence(ref, got) == 2
    assert generation.first_divergence(ref, ref) is None
    near = ref.copy()
    near[0, 2] = [0.999, 0, 1, 0]
    swapped = near.copy()
    swapped[0, 2] = [1, 0, 0.999, 0]
    assert generation.first_divergence(near, swapped) == 2
    assert generation.first_divergence(near, swapped, ties=0.01) is None
    assert generation.first_divergence(np.array([1, 2, 3]), np.array([1, 2, 4])) == 2
    got[0, 0, 0] = np.nan
    assert generation.first_divergence(ref, got) == 0


def test_each_sequence_has_one_score() -> None:
    first, second = np.eye(4, dtype=np.float32)[None], np.eye(4, dtype=np.float32)[None, ::-1]
    off = second.copy()
    off[0, 1] = [9, 0, 0, 0]
    before, after = [{"y": first}, {"y": second}], [{"y": first}, {"y": off}]
    found = generation.measure(before, after, [None, None])
    assert found.reference.tolist() == [1, 1] and found.candidate.tolist() == [1, 0.75]
    assert "1 of 2 sequences" in found.note and "position 1 of sequence 1" in found.note
    assert "nats" in found.note
    same = generation.measure(before, before, [None, None])
    assert same.note == "every next token is the original's; mean KL divergence 0 nats"
    labelled = generation.measure(
        before, after, [np.array([[0, 1, 2, 0]]), np.array([[3, 2, 1, 0]])]
    )
    assert labelled.reference.tolist() == [0.75, 1] and labelled.candidate.tolist() == [0.75, 0.75]


def test_tokens_are_compared_by_number() -> None:
    before, after = [{"y": np.array([[1, 2, 3, 4]])}], [{"y": np.array([[1, 2, 9, 9]])}]
    found = generation.measure(before, after, [None], logits="y")
    assert found.candidate.tolist() == [0.5] and "nats" not in found.note
