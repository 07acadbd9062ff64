"""Views say where numpy's own reshapes, transposes, slices and broadcasts find their elements."""

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from npuc.targets.tvm.views import View

Array = np.ndarray[Any, Any]


def seen(view: View) -> Array:
    """Read every element of a view of 0, 1, 2, ..."""
    places = itertools.product(*(range(size) for size in view.shape))
    return np.array([view.index(at) for at in places], np.int64).reshape(view.shape)


def shapes(size: int, draw: Any) -> tuple[int, ...]:
    """Draw a shape of as many elements."""
    shape: list[int] = []
    while size > 1 and len(shape) < 4:
        factor = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
        shape.append(factor)
        size //= factor
    return (*shape, size)


@st.composite
def moves(draw: Any) -> tuple[Array, View]:
    """Move an array and a view of it alike, leaving out what the view cannot do."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    array: Any = np.arange(math.prod(shape)).reshape(shape)
    view: View = View.contiguous(shape)
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["permute", "reshape", "slice", "broadcast"]))
        if kind == "permute":
            order = draw(st.permutations(range(array.ndim)))
            array, view = array.transpose(order), view.permuted(order)
        elif kind == "broadcast":
            wide = tuple(3 if d == 1 and draw(st.booleans()) else d for d in array.shape)
            array, view = np.broadcast_to(array, wide), view.broadcast(wide)
        elif kind == "slice":
            axis = draw(st.integers(0, array.ndim - 1))
            start = draw(st.integers(0, array.shape[axis] - 1))
            step = draw(st.integers(1, 3))
            count = -(-(array.shape[axis] - start) // step)
            made = view.sliced(axis, start, step, count)
            if made is not None:
                array, view = np.take(array, range(start, array.shape[axis], step), axis), made
        else:
            target = shapes(array.size, draw)
            made = view.reshaped(target)
            if made is not None:
                array, view = array.reshape(target), made
    return array, view


@given(moves())
@settings(max_examples=300, deadline=None)
def test_a_view_finds_what_numpy_finds(made: tuple[Array, View]) -> None:
    array, view = made
    assert view.shape == array.shape
    np.testing.assert_array_equal(seen(view), array)


def test_reshapes_of_what_lies_together_are_views() -> None:
    heads = View.contiguous((2, 5, 12)).reshaped((2, 5, 3, 4))
    assert heads is not None
    turned = heads.permuted((0, 2, 1, 3))
    assert turned.stride(2) == 12
    assert turned.stride(3) == 1
    together = turned.permuted((0, 2, 1, 3)).reshaped((10, 12))
    assert together == View.contiguous((10, 12))


def test_repeated_heads_are_one_axis_of_two_factors() -> None:
    keys = View.contiguous((1, 2, 5, 4)).reshaped((1, 2, 1, 5, 4))
    assert keys is not None
    repeated = keys.broadcast((1, 2, 3, 5, 4)).reshaped((1, 6, 5, 4))
    assert repeated is not None
    assert repeated.axes[1] == ((2, 20), (3, 0))
    assert repeated.stride(1) is None
    assert [repeated.index((0, head, 0, 0)) for head in range(6)] == [0, 0, 0, 20, 20, 20]


def test_what_strides_cannot_say_is_no_view() -> None:
    assert View.contiguous((5, 3)).permuted((1, 0)).reshaped((1, 15, 1)) is not None
    assert View.contiguous((4, 3)).permuted((1, 0)).reshaped((2, 6)) is None
