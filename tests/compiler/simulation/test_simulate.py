"""A simulated module answers like the program a target gets, and trains the user's own model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, TensorDataset

import npuc
from npuc import models, plugins
from npuc.errors import UnsupportedError, UsageError
from npuc.export import export
from npuc.load import load
from npuc.passes import standard
from npuc.passes.base import run
from npuc.passes.quantize import Quantize
from npuc.passes.round_floats import RoundFloats
from npuc.per_target import prepare
from npuc.program import Program
from npuc.quantization import calibrate
from npuc.runners import OnnxRunner
from npuc.samples import sizes_of


def twin(
    name: str, target: str, precision: str, calls: list[Any], whole: bool = False
) -> OnnxRunner:
    """Return what runs a zoo model as a target does, made without simulation.

    `whole` adds the integer rules that simulation leaves out.
    """
    found = plugins.find(target)
    profile, program = found.profile.at(precision), export(load(f"zoo:{name}"))
    feeds = [named(program, call) for call in calls]
    program = run(program, standard(sizes_of(feeds[0], program)), profile)
    program = run(program, prepare(found), profile)
    scheme = profile.int_scheme
    assert scheme is not None
    ranges = calibrate.collect(program, feeds, scheme)
    numerics = found.numerics(precision)
    chosen = [item for item in numerics if whole or isinstance(item, RoundFloats)]
    return OnnxRunner(run(program, [Quantize(ranges), *chosen], profile))


def named(program: Program, call: Any) -> dict[str, Any]:
    return {p.name: t.numpy() for p, t in zip(program.inputs, call, strict=True)}


def decibels(wanted: list[Any], found: list[Any]) -> float:
    """Return the SQNR of all answers together."""
    a, b = (np.concatenate([np.asarray(v, np.float64).reshape(-1) for v in s])
            for s in (wanted, found))  # fmt: skip
    return float(10 * np.log10((a * a).sum() / max(((a - b) ** 2).sum(), 1e-30)))


CASES = [
    ("digits-mobilenet", "atom", "int8"),
    ("digits-resnet", "atom", "int8"),
    ("digits-vit", "atom", "int8"),
    ("text-bert", "atom", "int8"),
    ("digits-lstm", "cpu", "int8"),
    ("digits-mobilenet", "warboy", "int8"),
    ("digits-mobilenet", "cpu", "w4a8"),
]


@pytest.mark.parametrize(("name", "target", "precision"), CASES)
def test_it_answers_like_the_twin(name: str, target: str, precision: str) -> None:
    """Twenty decibels: a hundredth of the power of the quantization error.

    A value between two codes rounds one way or the other where float32 sums come in another
    order; the worst case so far differs by 1e-7 of the answer, and most do not differ at all.
    """
    zoo = models.get(name)
    model, calls = zoo.module(), zoo.calibration(16)
    simulated = npuc.simulate(model, target=target, precision=precision, calibration=calls)
    real, ours, theirs = answers(
        zoo.samples(8), model, simulated, twin(name, target, precision, calls)
    )
    lost = decibels(real, theirs)
    assert 10 < lost < 60  # it is quantized, and not to pieces
    assert decibels(theirs, ours) > lost + 20


def test_it_is_near_a_device_with_integer_rules_of_its_own() -> None:
    """Warboy multiplies, averages and requantizes in integers: some codes are off by one.

    That must not hide what quantization loses: half of its power is the bar.
    """
    zoo = models.get("digits-mobilenet")
    model, calls = zoo.module(), zoo.calibration(16)
    simulated = npuc.simulate(model, target="warboy", calibration=calls)
    runner = twin("digits-mobilenet", "warboy", "int8", calls, whole=True)
    real, ours, theirs = answers(zoo.samples(8), model, simulated, runner)
    assert decibels(theirs, ours) > decibels(real, theirs) + 3


def answers(
    calls: list[Any], model: nn.Module, simulated: nn.Module, runner: OnnxRunner
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the first output of every call: of the model, the simulation, the twin."""
    with torch.no_grad():
        real = [pytree.tree_leaves(model(*call))[0].numpy() for call in calls]
        ours = [pytree.tree_leaves(simulated(*call))[0].numpy() for call in calls]
    theirs = [next(iter(runner(named(runner.program, call)).values())) for call in calls]
    return real, ours, theirs


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(6 * 4 * 4, 3),
    )  # fmt: skip


def test_training_moves_the_original_which_then_compiles(net: nn.Module, tmp_path: Path) -> None:
    data = torch.randn(32, 1, 6, 6)
    truth = data.mean((1, 2, 3)).sign().long() + 1
    batches = DataLoader(TensorDataset(data, truth), 8)
    simulated = npuc.simulate(net, target="atom", precision="w4a8", calibration=batches)
    pairs = zip(simulated.parameters(), net.parameters(), strict=True)
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)

    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(simulated.parameters(), 0.05)
    losses = []
    for _ in range(3):
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(simulated(x), y)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    for name, tensor in net.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved == (name in dict(net.named_parameters())), name  # statistics stay

    simulated.eval()
    assert not net.training
    npuc.save(net, data[:1], tmp_path / "net.pt", calibration=data)
    (made,) = npuc.compile(tmp_path / "net.pt", target="cpu", output=tmp_path / "net.npuc")
    assert made.artifact_path.is_file()


def test_it_computes_alike_in_train_and_eval_mode(net: nn.Module) -> None:
    x = torch.randn(4, 1, 6, 6)
    simulated = npuc.simulate(net, x, target="cpu", precision="int8")
    assert torch.equal(simulated.train()(x), simulated.eval()(x))
    net.get_buffer("1.running_mean").add_(1.0)
    assert not torch.equal(simulated(x), simulated.train()(x.clone() * 0))


def test_weights_are_coded_as_they_are_at_each_call(net: nn.Module) -> None:
    x = torch.randn(4, 1, 6, 6)
    simulated = npuc.simulate(net, x, target="cpu", precision="int8")
    first = simulated(x)
    with torch.no_grad():
        net.get_parameter("5.weight").mul_(-2.0)
        net.get_parameter("5.bias").mul_(-2.0)
    # A power of two scales every scale and code exactly.
    assert torch.equal(simulated(x), -2 * first)


def test_other_shapes_take_the_ranges_of_the_calibration(net: nn.Module) -> None:
    x = torch.randn(6, 1, 6, 6)
    simulated = npuc.simulate(net, target="atom", calibration=[x[:4], x[4:]])
    ranges = dict(simulated.ranges)
    whole = simulated(x)
    parts = torch.cat([simulated(row[None]) for row in x])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)
    assert ranges == simulated.ranges
    simulated.calibrate([2 * x])
    assert simulated.ranges.keys() == ranges.keys() and simulated.ranges != ranges


class Keyed(nn.Module):
    """Keyword arguments, a flag, and a dict of results with a nested tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, *, shift: Tensor, double: bool = False) -> dict[str, Any]:
        y = torch.relu(self.a(x)) + shift
        return {"y": y, "more": (self.b(y), None)}


def test_calls_and_results_look_like_the_models() -> None:
    torch.manual_seed(0)
    model = Keyed()
    call = {"x": torch.randn(3, 4), "shift": torch.randn(3, 4)}
    batch = {**call, "labels": torch.zeros(3)}
    simulated = npuc.simulate(model, target="cpu", precision="int8", calibration=[batch])
    found = simulated(shift=call["shift"], x=call["x"])
    wanted = model(**call)
    assert list(found) == ["y", "more"] and found["more"][1] is None
    assert decibels([wanted["y"].detach()], [found["y"].detach()]) > 30
    assert decibels([wanted["more"][0].detach()], [found["more"][0].detach()]) > 30


def test_a_model_without_parameters_is_rounded_too() -> None:
    x = torch.linspace(-1, 1, 40).reshape(4, 10)
    simulated = npuc.simulate(nn.Softmax(-1), x, target="atom", precision="float")
    error = (simulated(x) - torch.softmax(x, -1)).abs().max()
    assert 0 < float(error) < 1e-2  # atom's floats have 8 to 11 significant bits


def test_bounds_can_be_trained() -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top = nn.Parameter(torch.tensor(0.5))
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(torch.minimum(x, self.top))
            return out

    torch.manual_seed(0)
    model, x = Clipped(), torch.randn(5, 3)
    simulated = npuc.simulate(model, x, target="cpu", precision="float")
    torch.autograd.backward(simulated(x).sum())
    found = model.top.grad
    model.zero_grad()
    torch.autograd.backward(model(x).sum())
    assert found is not None and model.top.grad is not None
    torch.testing.assert_close(found, model.top.grad)


def test_what_cannot_be_simulated_is_named(net: nn.Module) -> None:
    x = torch.randn(2, 1, 6, 6)
    with pytest.raises(UsageError, match="no inputs"):
        npuc.simulate(net, target="atom")
    with pytest.raises(UsageError, match="no inputs"):
        npuc.simulate(net, target="atom", calibration=[])
    with pytest.raises(UsageError, match="atom has int8, float"):
        npuc.simulate(net, x, target="atom", precision="int3")
    with pytest.raises(UsageError, match="'w4a16' is not simulated"):
        npuc.simulate(net, x, target="atom", precision="w4a16")
    with pytest.raises(UnsupportedError, match=r"0\.weight is float16"):
        npuc.simulate(net.half(), x.half(), target="atom")

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.linalg.det(x)[..., None, None] + x
            return out

    with pytest.raises(UnsupportedError, match="Det has no differentiable form"):
        npuc.simulate(Odd(), x, target="cpu", precision="float")(x)
