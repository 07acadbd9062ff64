"""Gradients of a simulated module: the float ones where nothing clips, zero where codes end."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import npuc
from npuc import plugins
from npuc.passes.arithmetic.round_to import round_to
from npuc.passes.qdq import codes
from npuc.profile import FloatFormat
from npuc.simulation.origins import unique
from npuc.simulation.rounding import quantize, round_float


class Attention(nn.Module):
    """Packed weights that are cut up, a bias that is not used alone, and a parameter added."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 5, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x + self.place)
        out: Tensor = self.attention(y, y, y, need_weights=False)[0]
        return out


class Recurrent(nn.Module):
    """Two biases per gate that a device adds up once."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gru(self.lstm(x)[0])[0]
        return out


class Tied(nn.Module):
    """One weight for looking up and for scoring."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.score = nn.Linear(6, 11, bias=False)
        self.score.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.score(torch.tanh(self.embed(ids)))
        return out


def norms() -> nn.Module:
    """Batch normalization after every kind of layer it folds into, and where it cannot."""
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, groups=2), nn.BatchNorm2d(6, affine=False), nn.Hardswish(),
        nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Flatten(),
        nn.Linear(24, 5), nn.BatchNorm1d(5),
    )  # fmt: skip


def normed_weights() -> nn.Module:
    """Weights that are computed from others at every call."""
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.GELU(), nn.Linear(6, 3))


def image() -> Tensor:
    return torch.randn(2, 3, 5, 5)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "norms": (norms, image),
    "attention": (Attention, lambda: torch.randn(2, 5, 8)),
    "recurrent": (Recurrent, lambda: torch.randn(2, 3, 4)),
    "tied": (Tied, lambda: torch.randint(0, 11, (2, 3))),
    "normed-weights": (normed_weights, lambda: torch.randn(2, 4)),
}


def gradients(module: nn.Module, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    y = module(x)
    torch.autograd.backward((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum())
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_without_rounding_gradients_are_those_of_the_model(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    model, x = build().eval(), inputs()
    for buffer in model.buffers():  # running statistics that are not 0 and 1
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    simulated = npuc.simulate(model, x, target="cpu", precision="float")
    wanted = gradients(model, model, x)
    found = gradients(simulated, model, x)
    assert found.keys() == wanted.keys() == dict(model.named_parameters()).keys()
    for key in wanted:
        # float32 sums in another order: 1e-7 a term, of sums of up to 100 terms that cancel.
        bar = 1e-5 * float(wanted[key].abs().max()) + 1e-7
        assert float((found[key] - wanted[key]).abs().max()) < bar, key


def test_equal_parameters_stay_apart() -> None:
    """Fresh normalizations and biases are all ones and zeros: each moves its own way."""
    torch.manual_seed(0)
    model = norms().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    x = image()
    simulated = npuc.simulate(model, x, target="cpu", precision="float")
    for _ in range(3):
        gradients(simulated, model, x)
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.05 * parameter.grad)
    with torch.no_grad():
        torch.testing.assert_close(simulated(x), model(x), rtol=1e-4, atol=1e-5)


def test_codes_let_gradients_through_and_clipping_stops_them() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    scheme = plugins.find("cpu").profile.int_scheme
    assert scheme is not None
    calibration = torch.tensor([[-1.0, 1.0, 0.5, -0.5], [0.2, -0.3, 0.4, 0.1]])
    simulated = npuc.simulate(model, target="cpu", precision="int8", calibration=[calibration])
    weight = model.weight.detach().numpy()
    scales = codes.weight_scales(weight, 0, scheme, np.zeros(()))
    coded = codes.weight_codes(weight, scales, 0, scheme) * scales[:, None]

    x = torch.tensor([[0.5, -0.25, 3.0, -2.0], [0.1, 0.2, 0.3, 1.5]], requires_grad=True)
    inside = (x.detach().abs() <= 1).numpy()
    up = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.0]])
    torch.autograd.backward((simulated(x) * up).sum())
    assert x.grad is not None
    assert model.weight.grad is not None and model.bias.grad is not None
    # 1e-6: sums of three float32 products.
    np.testing.assert_allclose(x.grad.numpy(), up.numpy() @ coded * inside, atol=1e-6)
    affine = codes.activation(-1.0, 1.0, scheme)
    numbers = np.rint(x.detach().numpy() / affine.scale) + affine.zero
    real = (np.clip(numbers, affine.low, affine.high) - affine.zero) * affine.scale
    np.testing.assert_allclose(model.weight.grad.numpy(), up.numpy().T @ real, atol=1e-6)
    np.testing.assert_allclose(model.bias.grad.numpy(), up.numpy().sum(0), atol=1e-6)


def test_codes_end_where_the_gradient_does() -> None:
    x = torch.tensor([-1.6, -1.0, 0.2, 1.27, 1.4], requires_grad=True)
    y = quantize(x, torch.tensor(0.01), torch.tensor(0.0), -128, 127)
    torch.autograd.backward(y.sum())
    assert y.tolist() == [-128, -100, 20, 127, 127]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 100, 100, 100, 0]))


FORMATS = [FloatFormat(8, 7), FloatFormat(5, 10), FloatFormat(6, 9), FloatFormat(4, 3)]


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_floats_are_rounded_as_passes_round_them(fmt: FloatFormat, flush: bool) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 65519, 65520], np.float32)
    array: Any = np.concatenate([bits.view(np.float32), special])
    x = torch.from_numpy(array.copy()).requires_grad_()
    found = round_float(x, fmt, flush)
    wanted = round_to(array, fmt, flush=flush)
    numbers = ~np.isnan(wanted)
    assert np.array_equal(np.isnan(found.detach().numpy()), ~numbers)
    same = found.detach().numpy()[numbers].view(np.uint32) == wanted[numbers].view(np.uint32)
    assert same.all()
    torch.autograd.backward(found[torch.from_numpy(numbers)].sum())
    assert x.grad is not None and np.array_equal(x.grad.numpy(), numbers.astype(np.float32))


def test_numbers_never_repeat_and_no_short_float_holds_them() -> None:
    found = unique([(3, 5), (), (70_000,)])
    assert [a.shape for a in found] == [(3, 5), (), (70_000,)]
    flat = np.concatenate([a.reshape(-1) for a in found])
    assert np.unique(flat).size == flat.size and flat.min() > 0.5 and flat.max() < 2
    assert not np.equal(round_to(flat, FloatFormat(8, 22)), flat).any()
