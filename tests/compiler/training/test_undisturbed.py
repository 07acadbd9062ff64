"""A training run goes to the same bits, whether anyone looked at it or not."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import npuc
from npuc.errors import ExportError, UnsupportedError
from npuc.training.undisturbed import copied, undisturbed, unwrapped


def trained(task: Any, look: Callable[[nn.Module, int], None]) -> dict[str, Any]:
    """Train with dropout, batch norm, momentum and three sources of noise; return all state."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    model = task.model()
    model[0].requires_grad_(False)
    model[3].eval()
    optimizer = torch.optim.SGD(model[1:].parameters(), 0.05, momentum=0.9)
    loss = torch.zeros(())
    for step in range(4):
        at = random.randrange(48)
        x, y = task.images[at : at + 16], task.labels[at : at + 16]
        x = x + 0.1 * torch.randn_like(x) + float(np.random.randn())
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).float(), y)
            look(model, step)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        look(model, step)
        optimizer.step()
    return {
        **model.state_dict(),
        **{f"{n}.grad": p.grad for n, p in model.named_parameters()},
        "loss": loss,
        "modes": [module.training for module in model.modules()],
        "learned": [p.requires_grad for p in model.parameters()],
        "drawn": [torch.rand(3), torch.tensor(np.random.rand(3)), random.random()],
    }


def test_training_ends_in_the_same_bits(task: Any) -> None:
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(task.images, task.labels), 16, shuffle=True
    )
    seen = []

    def look(model: nn.Module, step: int) -> None:
        options: dict[str, Any] = {"samples": batches, "layers": 1}
        seen.append(npuc.portability(model, task.images[:16], "atom", **options))

    alone, watched = trained(task, lambda model, step: None), trained(task, look)
    assert len(seen) == 8 and all(found.rows[0].sqnr_db > 20 for found in seen)
    torch.testing.assert_close(watched, alone, rtol=0, atol=0)


def test_inside_it_computes_as_outside_of_a_training_step() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        before = torch.get_rng_state()
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
            with undisturbed():
                made = torch.rand(3, 3)
                assert (made.dtype, made.device.type) == (torch.float32, "cpu")
                assert (made @ made).dtype == torch.float32
                assert not made.is_inference() and not torch.is_grad_enabled()
                np.random.rand()
                random.random()
            assert torch.zeros(1).is_inference() and torch.zeros(1).is_meta
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
        assert torch.equal(before, torch.get_rng_state())
    finally:
        torch.set_default_dtype(torch.float32)


def test_random_states_are_restored_after_a_failure() -> None:
    drawn, numbers, own = (
        torch.get_rng_state(),
        np.random.get_state(legacy=False),
        random.getstate(),
    )
    with pytest.raises(ZeroDivisionError), undisturbed():
        _ = torch.rand(1), np.random.rand(), random.random()
        raise ZeroDivisionError
    assert torch.equal(drawn, torch.get_rng_state()) and own == random.getstate()
    assert repr(numbers) == repr(np.random.get_state(legacy=False))


class Kept(nn.Module):
    """Keeps what it computed, as modules with an auxiliary loss do, and shares a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)))
        return y


def test_a_copy_of_what_torch_refuses_to_copy() -> None:
    model, x = Kept().bfloat16(), torch.randn(2, 4)
    model.seen = [model(x.bfloat16())]
    assert model.seen[0].grad_fn is not None
    made = copied(model)
    assert isinstance(made, Kept)
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert made.a.weight is made.b.weight and made.a.weight is not model.a.weight
    assert not made.seen[0].requires_grad and not made.training and model.training
    # In float32 the same weights answer as in bfloat16, up to its 8 bits.
    torch.testing.assert_close(made(x), model(x.bfloat16()).float(), rtol=0.05, atol=0.05)
    seen = npuc.portability(model, x.bfloat16(), "atom", layers=0)
    assert seen.rows[0].sqnr_db > 20


def test_wrappers_of_torch_are_taken_off(task: Any) -> None:
    model, compiled = task.model(), partial[Any](torch.compile, backend="eager")
    inner: Any = compiled(model)
    wrapped: Any = torch.nn.DataParallel(inner)
    assert unwrapped(wrapped) is model
    first, *others = model.children()
    made = copied(nn.Sequential(*[compiled(first), *others]))
    assert type(made.get_submodule("0")) is nn.Conv2d
    x = task.images[:4]
    torch.testing.assert_close(made(x), model.eval()(x), rtol=0, atol=0)


def test_weights_that_are_not_here_are_named() -> None:
    with pytest.raises(UnsupportedError, match=r"0: a tensor is not initialized"):
        copied(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(UnsupportedError, match=r"Linear: a tensor is on the meta device"):
        copied(nn.Linear(2, 2, device="meta"))

    class Single(nn.Module):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("there is one of me")

    with pytest.raises(ExportError, match="cannot be copied: TypeError: there is one of me"):
        copied(Single())
    with pytest.raises(UnsupportedError, match="float64"):
        npuc.portability(nn.Linear(2, 2).double(), torch.zeros(1, 2).double(), "atom")
