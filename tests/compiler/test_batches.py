"""Thousands of calls are answered together only where that changes nothing."""

import numpy as np
import pytest
import torch

from npuc import batches
from npuc.answers import from_module, run
from npuc.load import load
from npuc.metrics import differences
from npuc.program import Tensors


class Plain(torch.nn.Module):
    """Answers each row by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.linear(x).tanh()
        return answer


class Mixing(Plain):
    """Answers each row by what the others are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


def _calls(count: int) -> list[Tensors]:
    generator = np.random.default_rng(3)
    return [{"x": generator.normal(size=(1, 6)).astype(np.float32)} for _ in range(count)]


def _loaded(module: torch.nn.Module, dynamic: bool = True):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    found = load(module.eval())
    shapes = {"x": {0: "batch"}} if dynamic else None
    return replace(found, args=(torch.zeros(2, 6),), dynamic_shapes=shapes)


@pytest.mark.parametrize("count", [batches.LEAST, batches.LEAST + 1, 1500])
def test_many_calls_have_the_answers_they_have_alone(count: int) -> None:
    loaded, calls = _loaded(Plain()), _calls(count)
    found = from_module(loaded, calls)
    assert found.fingerprint["batches"] == -(-count // batches.TOGETHER)
    assert len(found.outputs) == count
    (off,) = differences([run(loaded.captured, c) for c in calls], found.outputs)
    assert off.max_abs <= 8 * max(found.floor["output"].max_abs, 1.2e-7)


def test_a_model_whose_batch_matters_is_asked_call_by_call() -> None:
    loaded, calls = _loaded(Mixing()), _calls(batches.LEAST)
    found = from_module(loaded, calls)
    assert "batches" not in found.fingerprint
    for call, answer in zip(calls, found.outputs, strict=True):
        assert np.array_equal(run(loaded.captured, call)["output"], answer["output"])


def test_few_calls_and_fixed_or_unlike_ones_are_not_joined() -> None:
    captured = _loaded(Plain()).captured
    assert batches.joined(captured, _calls(batches.LEAST - 1)) is None
    unlike = [*_calls(batches.LEAST), {"x": np.zeros((2, 6), np.float32)}]
    assert batches.joined(captured, unlike) is None
    assert batches.joined(_loaded(Plain(), dynamic=False).captured, _calls(300)) is None


def test_the_last_call_may_not_differ_either() -> None:
    calls = _calls(20)
    answers: list[Tensors] = [{"output": call["x"]} for call in calls]

    def alone(call: Tensors) -> Tensors:
        return {"output": call["x"]}

    assert batches.agree(alone, calls, answers, {"output": 0.0})
    answers[-1] = {"output": answers[-1]["output"] + 1}
    assert not batches.agree(alone, calls, answers, {"output": 0.5})
