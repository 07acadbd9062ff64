"""What parity.toml asks of answers, on answers made by hand."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npuc.errors import UsageError
from npuc.floors import Floor
from npuc.gate import rows
from npuc.gate.demands import MaxNoise, MinAgreement, MinCosine, MinSqnr
from npuc.gate.pairs import Hold, Model
from npuc.gate.policies import policy
from npuc.held import Demand, Held
from npuc.policy import NOISE_FACTOR


def floats(values: Any) -> Any:
    return np.array(values, np.float32)


FLOOR = {n: Floor(1e-6, 1e-7, 1.0) for n in ("logits", "mask", "ids")}


def calls(*arrays: Any, name: str = "logits") -> list[dict[str, Any]]:
    return [{name: np.asarray(array)} for array in arrays]


def judge(demand: Demand, expected: Sequence[Any], got: Sequence[Any]) -> list[Held]:
    """Judge answers to calls of one input whose rows are those of the first output."""
    samples = [{"x": np.zeros((len(next(iter(call.values()))), 3))} for call in expected]
    return list(demand.judge(samples, expected, got, FLOOR))


def one_hot(*choices: int) -> Any:
    return np.eye(3, dtype=np.float32)[list(choices)]


def test_sqnr_and_cosine_of_each_output_of_floats() -> None:
    expected = [{"logits": floats([[3.0, 4.0]]), "mask": floats([[1.0, 0.0]]),
                 "ids": np.array([[1]])}]  # fmt: skip
    got = [{"logits": floats([[3.0, 4.5]]), "mask": floats([[1.0, 0.0]]),
            "ids": np.array([[2]])}]  # fmt: skip
    first, second = judge(MinSqnr(20.5), expected, got)
    assert (first.check, first.output, first.state, first.bar) == (
        "sqnr-db", "logits", "failed", 20.5,
    )  # fmt: skip
    assert first.value == pytest.approx(10 * math.log10(25 / 0.25))
    assert first.text == "logits: SQNR 20.0 dB < 20.5 dB"
    assert (second.state, second.value) == ("ok", math.inf)
    assert [h.output for h in judge(MinSqnr(0, but=("logits",)), expected, got)] == ["mask"]
    (cosine,) = judge(MinCosine(0.999, "logits"), expected, got)
    assert cosine.state == "failed" and cosine.value == pytest.approx(
        27 / (5 * 29.25**0.5), abs=1e-6
    )
    assert judge(MinCosine(0.99, "logits"), expected, got)[0].state == "ok"


def test_noise_is_counted_in_floors_of_the_output() -> None:
    expected, got = calls(floats([[1.0, 0.5]])), calls(floats([[1.0, 0.500004]]))
    (found,) = judge(MaxNoise(8), expected, got)
    assert found.state == "ok" and found.value == pytest.approx(4.0, rel=0.02)
    assert judge(MaxNoise(3), expected, got)[0].state == "failed"
    exact = {"logits": Floor(0.0, 0.0, 0.0)}
    (none,) = MaxNoise(8).judge([{}], expected, got, exact)
    assert none.state == "failed" and none.value == math.inf


def test_integers_count_only_where_they_are_asked_for() -> None:
    expected, got = calls([[1], [2]], name="ids"), calls([[1], [3]], name="ids")
    assert judge(MinSqnr(99), expected, got) == []
    assert judge(MinSqnr(99, "ids"), expected, got)[0].state == "failed"
    assert judge(MaxNoise(8), expected, got)[0].state == "failed"


@pytest.mark.parametrize(
    "demand", [MinSqnr(1), MinCosine(0.1), MaxNoise(8), MinAgreement(0.1, 0.9)]
)
def test_what_is_no_number_fails_whatever_is_asked(demand: Demand) -> None:
    (found,) = judge(demand, calls(one_hot(1)), calls(one_hot(1) * np.nan))
    assert found.state == "failed" and "NaN or Inf on one side" in found.text


def test_an_agreement_is_judged_for_all_samples_that_may_come() -> None:
    right = calls(*(one_hot(0, 1) for _ in range(150)))
    wrong = calls(*(one_hot(1, 0) if n < 15 else one_hot(0, 1) for n in range(150)))
    (found,) = judge(MinAgreement(0.85, 0.95), right, wrong)
    assert (found.state, found.samples, found.value) == ("ok", 300, 0.9)
    assert found.low is not None and found.high is not None
    assert 0.85 < found.low < 0.9 < found.high
    assert judge(MinAgreement(0.95, 0.95), right, wrong)[0].state == "failed"
    (unsure,) = judge(MinAgreement(0.89, 0.95), right, wrong)
    assert unsure.state == "undecided" and unsure.needed > 1000
    assert f"{unsure.needed:,} more samples needed" in unsure.text


def test_an_agreement_of_one_is_of_these_samples() -> None:
    expected = calls(one_hot(0), one_hot(1))
    assert judge(MinAgreement(1, 0.95), expected, expected)[0].state == "ok"
    (found,) = judge(MinAgreement(1, 0.95), expected, calls(one_hot(0), one_hot(2)))
    assert found.state == "failed" and found.value == 0.5


def test_ties_are_judged_on_values() -> None:
    expected = calls(floats([[0.5, 0.5000001, 0.1]]))
    assert judge(MinAgreement(1, 0.95), expected, calls(one_hot(0)))[0].state == "ok"
    assert judge(MinAgreement(1, 0.95), expected, calls(one_hot(2)))[0].state == "failed"


def test_tokens_of_one_text_are_one_sample() -> None:
    tokens = np.eye(3, dtype=np.float32)[np.zeros((2, 500), int)]
    changed = tokens.copy()
    changed[0, :100] = one_hot(2)
    (found,) = judge(MinAgreement(0.8, 0.95), calls(tokens), calls(changed))
    assert (found.samples, found.state) == (2, "undecided")
    assert found.value == pytest.approx(0.9)


def test_agreement_needs_something_to_choose() -> None:
    single = calls(floats([[0.3]]))
    with pytest.raises(UsageError, match="logits makes no choice"):
        judge(MinAgreement(0.9, 0.95), single, single)
    with pytest.raises(UsageError, match="no output 'logit'; did you mean 'logits'"):
        judge(MinSqnr(3, "logit"), single, single)


def test_a_call_is_one_sample_where_the_batch_is_not_the_first_axis_of_all() -> None:
    batch = {"x": np.zeros((4, 3)), "y": np.zeros((4, 2))}
    assert rows.counts([batch], [{"o": np.zeros((4, 5))}]) == [4]
    assert rows.counts([batch], [{"o": np.zeros((9, 4))}]) == [1]
    assert rows.counts([{"x": np.zeros((4, 3)), "s": np.zeros(())}], [{"o": np.zeros(4)}]) == [1]


def model(hold: Hold, **outputs: Hold) -> Model:
    return Model("m", "m.pt", ("cpu",), Path(), hold=hold, outputs=outputs)


def test_defaults_ask_nothing_beside_the_steps() -> None:
    found = policy(model(Hold()))
    assert (found.sqnr_db, found.noise_factor, found.demands) == (20.0, NOISE_FACTOR, ())


def test_bars_of_outputs_take_precedence_and_leave_those_of_others() -> None:
    found = policy(model(Hold(sqnr_db=30), logits=Hold(sqnr_db=12), mask=Hold(agreement=0.9)))
    assert found.sqnr_db == 12
    assert found.demands == (
        MinSqnr(30, "", ("logits", "mask")), MinSqnr(12, "logits"), MinSqnr(30, "mask"),
        MinAgreement(0.9, 0.95, "mask"),
    )  # fmt: skip


def test_a_lower_bar_for_one_output_leaves_the_default_for_others() -> None:
    found = policy(model(Hold(), logits=Hold(sqnr_db=12)))
    assert found.sqnr_db == 12
    assert found.demands == (MinSqnr(20, but=("logits",)), MinSqnr(12, "logits"))


def test_room_for_noise_is_room_for_the_steps_as_well() -> None:
    assert policy(model(Hold(max_noise=100))).noise_factor == 100
    found = policy(model(Hold(max_noise=2)))
    assert (found.noise_factor, found.demands) == (NOISE_FACTOR, (MaxNoise(2),))
