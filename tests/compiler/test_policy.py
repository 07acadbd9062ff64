"""The bars: just inside passes, just outside fails, and the message says by how much."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from npuc.floors import Floor
from npuc.metrics import Difference
from npuc.policy import SHARE, Bar, Policy

EPS = float(np.finfo(np.float32).eps)
GOOD = Difference("y", 0.0, 0.0, 0.0, 1.0, math.inf, 1.0, 1.0, 1)
NOISE = {"y": Floor(1e-6, 1e-7, 1.0)}


def test_noise_is_eight_times_the_floor() -> None:
    bar = Policy().noise(NOISE)
    assert bar.max_abs == {"y": 8e-6}
    assert bar.faults([replace(GOOD, max_abs=8e-6, sqnr_db=-50, cosine=0)]) == ()
    (fault,) = bar.faults([replace(GOOD, max_abs=2.4e-5)])
    assert fault == "y: max abs 2.4e-05 > 8e-06 (3 times the bar)"
    assert "8x" in bar.text and bar.reason


def test_noise_is_one_float32_rounding_at_least() -> None:
    """An original that is exact in float32 still may be rounded once by another order of sums."""
    bar = Policy().noise({"y": Floor(0.0, 0.0, 100.0)})
    assert bar.max_abs["y"] == pytest.approx(8 * EPS * 100)
    assert bar.faults([replace(GOOD, max_abs=8 * EPS * 100)]) == ()
    assert bar.faults([replace(GOOD, max_abs=8.1 * EPS * 100)])


def test_an_output_that_is_always_zero_must_stay_zero() -> None:
    bar = Policy().noise({"y": Floor(0.0, 0.0, 0.0)})
    assert bar.faults([GOOD]) == ()
    (fault,) = bar.faults([replace(GOOD, max_abs=1e-30)])
    assert "inf times the bar" in fault


def test_the_noise_factor_is_the_users() -> None:
    assert Policy(noise_factor=2).noise(NOISE).max_abs == {"y": 2e-6}


def test_every_output_is_held_to_its_own_floor() -> None:
    bar = Policy().noise({"y": Floor(1e-6, 0, 1), "z": Floor(1.0, 0, 10)})
    big = replace(GOOD, max_abs=1e-3)
    faults = bar.faults([big, replace(big, output="z")])
    assert len(faults) == 1 and faults[0].startswith("y: ")


def test_loss_limits_sqnr_and_cosine() -> None:
    bar = Policy().loss()
    assert bar.faults([replace(GOOD, sqnr_db=20.0, cosine=0.99, max_abs=1e9)]) == ()
    faults = bar.faults([replace(GOOD, sqnr_db=19.94, cosine=0.98999)])
    assert faults == ("y: SQNR 19.9 dB < 20.0 dB", "y: cosine 0.98999 < 0.99")
    assert Policy(sqnr_db=30).loss().faults([replace(GOOD, sqnr_db=29)]) == (
        "y: SQNR 29.0 dB < 30.0 dB",
    )


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_nan_misses_every_bar(value: float) -> None:
    assert len(Policy().loss().faults([replace(GOOD, sqnr_db=value, cosine=value)])) == 2
    nan = replace(GOOD, max_abs=math.nan)
    assert Policy().noise(NOISE).faults([nan]) and Policy().lowering([], NOISE).faults([nan])


def test_a_fault_is_the_whole_message() -> None:
    broken = replace(GOOD, fault="shape (1,), expected (2,)", sqnr_db=math.nan)
    for bar in (Policy().loss(), Policy().noise(NOISE), Bar("any", "none")):
        assert bar.faults([broken]) == ("y: shape (1,), expected (2,)",)


def test_integers_are_held_to_the_share_of_equal_values() -> None:
    whole = replace(GOOD, integer=True, sqnr_db=-3.0, cosine=0.1)
    bar = Policy().loss()
    assert bar.faults([replace(whole, agreement=0.9)]) == ()
    (fault,) = bar.faults([replace(whole, agreement=0.899)])
    assert re.search(r"89\.90+% .*< 90\.0%", fault)
    assert bar.faults([replace(whole, agreement=None)])


def test_integers_that_rounding_does_not_move_may_not_move_at_all() -> None:
    """Eight float32 roundings of 10^8 are a distance of 95, which would hide other indices."""
    bar = Policy().noise({"y": Floor(0.0, 0.0, 1e8)})
    moved = replace(GOOD, integer=True, max_abs=1.0, agreement=0.999)
    (fault,) = bar.faults([moved])
    assert "99.900% of its values are equal < 100.0%" in fault
    assert bar.faults([replace(moved, max_abs=0.0, agreement=1.0)]) == ()
    flips = Policy().noise({"y": Floor(3.0, 0.1, 9.0)})  # an argmax with ties
    assert flips.faults([moved]) == ()
    assert flips.faults([replace(moved, agreement=0.5)])


def test_lowering_codes_may_add_a_quarter_of_the_errors_power() -> None:
    rounded = [replace(GOOD, max_abs=0.1, rms=0.02)]
    bar = Policy().lowering(rounded, NOISE)
    assert bar.rms["y"] == pytest.approx(SHARE**0.5 * 0.02) == pytest.approx(0.01)
    assert bar.faults([replace(GOOD, max_abs=0.249, rms=0.0099)]) == ()
    assert "rms 0.0101 > 0.01" in bar.faults([replace(GOOD, max_abs=0.1, rms=0.0101)])[0]
    assert "max abs 0.251 > 0.25" in bar.faults([replace(GOOD, max_abs=0.251, rms=0.0099)])[0]


def test_lowering_rounded_floats_may_end_in_independent_roundings() -> None:
    """Their errors add in power, which the artifact's own error does not."""
    rounded = [replace(GOOD, max_abs=0.1, rms=0.02)]
    bar = Policy().lowering(rounded, NOISE, floats=True)
    assert bar.rms["y"] == pytest.approx(2**0.5 * 0.02)
    own = Policy().kept(rounded, NOISE)
    assert own.faults([replace(GOOD, rms=0.0299)]) == ()
    assert "rms 0.0301 > 0.03" in own.faults([replace(GOOD, rms=0.0301)])[0]


def test_lowering_what_rounding_hardly_moved_is_held_to_the_noise() -> None:
    bar = Policy().lowering([replace(GOOD, max_abs=1e-7)], NOISE)
    assert bar.max_abs == Policy().noise(NOISE).max_abs
