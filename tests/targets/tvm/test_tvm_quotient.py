"""A division's codes without dividing: every number beside a tie, and factors that will not do."""

from fractions import Fraction

import numpy as np
import pytest

from npuc.targets.tvm.quotient import exact, factors, fused

SCALES = np.exp(np.random.default_rng(0).uniform(-34, 34, 24)).astype(np.float32)


def nearest(value: Fraction) -> np.float32:
    """Return the float32 next to a number, the even one of two."""
    middle = np.float32(float(value))
    around = [np.nextafter(middle, np.float32(to)) for to in (-np.inf, np.inf)]
    return min(
        (middle, *around),
        key=lambda v: (abs(Fraction(float(v)) - value), int(v.view(np.int32)) & 1),
    )


def of(value: np.float32) -> Fraction:
    """Return a number as it is."""
    return Fraction(float(value))


@pytest.mark.parametrize("scale", SCALES)
def test_codes_beside_ties_are_those_of_a_division(scale: np.float32) -> None:
    found = factors(scale, -128, 255)
    assert found is not None
    head, rest = found
    for tie in (-128, -77, -1, 0, 1, 100, 254):
        x = np.float32((tie + 0.5) * float(scale))
        for at in range(-2, 3):
            y = np.float32(x)
            for _ in range(abs(at)):
                y = np.nextafter(y, np.float32(np.copysign(np.inf, at)))
            got = nearest(of(y) * of(head) + of(nearest(of(y) * of(rest))))
            assert np.rint(got) == np.rint(nearest(of(y) / of(scale))), (tie, at)


def test_a_reciprocal_alone_is_found_out() -> None:
    failing = 0
    for scale in SCALES:
        found = factors(scale, 0, 255)
        assert found is not None
        failing += not exact(scale, found[0], np.float32(0), 0, 255)
    assert failing > len(SCALES) // 2
    assert exact(np.float32(0.25), np.float32(4), np.float32(0), -128, 127)


def test_sums_are_rounded_once() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal(400).astype(np.float32)
    b = np.float32(rng.standard_normal())
    # Beside the middle of two float32, where a sum that was rounded before goes the other way.
    middle = (a.astype(np.float64) * b).astype(np.float32) * np.float32(2.0**-24)
    for c in (middle, -middle, middle * np.float32(2.0**-25), np.zeros_like(a)):
        want = [nearest(of(x) * of(b) + of(z)) for x, z in zip(a, c, strict=True)]
        np.testing.assert_array_equal(fused(a, b, c), want)
