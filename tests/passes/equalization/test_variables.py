"""Factors that are equal, inverse or held, against a brute-force model."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.passes.equalization.variables import Variables

Array = np.ndarray[Any, Any]
COUNT = 7
# (first, second, sign), numbers from 1; 0 is the factor that is held.
Relation = tuple[int, int, int]
NUMBERS = st.integers(0, COUNT)
RELATIONS = st.lists(st.tuples(NUMBERS, NUMBERS, st.sampled_from([1, -1])), max_size=12)


def closure(relations: list[Relation], held: set[int]) -> tuple[Array, Array]:
    """Which pairs must be equal, and which inverse, by following relations until nothing is new."""
    equal, inverse = np.eye(COUNT + 1, dtype=bool), np.zeros((COUNT + 1, COUNT + 1), bool)
    for number in held | {0}:
        equal[0, number] = equal[number, 0] = True
        inverse[number, number] = True
    for first, second, sign in relations:
        side = equal if sign > 0 else inverse
        side[first, second] = side[second, first] = True
    while True:
        more = equal | (equal @ equal) | (inverse @ inverse)
        other = inverse | (equal @ inverse) | (inverse @ equal)
        # Its own inverse is 1, and there is one 1.
        ones = np.diag(other)
        more, other = more | np.outer(ones, ones), other | np.outer(ones, ones)
        if (more == equal).all() and (other == inverse).all():
            return equal, inverse
        equal, inverse = more, other


@settings(max_examples=100, deadline=None, derandomize=True)
@given(relations=RELATIONS, held=st.sets(NUMBERS, max_size=2))
def test_exactly_what_was_said_follows(relations: list[Relation], held: set[int]) -> None:
    variables = Variables()
    assert variables.fresh(COUNT).tolist() == list(range(1, COUNT + 1))
    for first, second, sign in relations:
        variables.join(np.array([first]), np.array([second]), sign)
    variables.hold(np.array(sorted(held), np.int64))
    roots, signs = variables.resolved()
    equal, inverse = closure(relations, held)
    free = roots > 0
    np.testing.assert_array_equal(free, ~np.diag(inverse))
    same = roots[:, None] == roots[None]
    agree = signs[:, None] == signs[None]
    both = free[:, None] & free[None]
    np.testing.assert_array_equal((same & agree)[both], equal[both])
    np.testing.assert_array_equal((same & ~agree)[both], inverse[both])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(relations=RELATIONS, order=st.randoms(use_true_random=False))
def test_the_order_does_not_matter(relations: list[Relation], order: Any) -> None:
    def partition(told: list[Relation]) -> set[frozenset[tuple[int, int]]]:
        variables = Variables()
        variables.fresh(COUNT)
        for first, second, sign in told:
            variables.join(np.array([first]), np.array([second]), sign)
        roots, signs = variables.resolved()
        groups: dict[int, list[int]] = {}
        for number, root in enumerate(roots):
            groups.setdefault(int(root), []).append(number)
        return {
            frozenset((n, 0 if not root else int(signs[n] * signs[members[0]])) for n in members)
            for root, members in groups.items()
        }

    mixed = list(relations)
    order.shuffle(mixed)
    assert partition(mixed) == partition(relations)


def test_arrays_are_joined_pair_by_pair_as_they_broadcast() -> None:
    variables = Variables()
    rows, columns = variables.fresh(2), variables.fresh(3)
    variables.join(rows[:, None], columns[None])
    roots, _ = variables.resolved()
    assert len(set(roots[1:])) == 1
    assert roots[0] == 0 < roots[1]


def test_a_long_chain_is_followed() -> None:
    """Deeper than Python's stack, and each link an inverse."""
    variables = Variables()
    ids = variables.fresh(5000)
    for one, other in zip(ids[::-1][:-1], ids[::-1][1:], strict=True):
        variables.join(one[None], other[None], -1)
    roots, signs = variables.resolved()
    assert len(set(roots[1:])) == 1
    assert (signs[1:-1] * signs[2:] == -1).all()


def test_what_is_known_to_be_equal_has_one_number() -> None:
    variables = Variables()
    ids = variables.fresh(6)
    variables.join(ids[:1], ids[1:2])
    variables.join(ids[2:3], ids[3:4], -1)
    variables.hold(ids[4:5])
    found = variables.known(ids.reshape(2, 3)).ravel()
    assert found[0] == found[1] != 0
    assert found[4] == 0
    # The inverse of a factor, and what nothing is known of, keep numbers of their own.
    assert len({0, *found[[0, 2, 3, 5]].tolist()}) == 5
