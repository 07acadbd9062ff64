"""The interface of the zoo: names, samples, labels, refusals; nothing about accuracy."""

import subprocess
import sys

import pytest
import torch

from npuc import models
from npuc.errors import UsageError

TRAINED = tuple(name for name in models.names() if models.get(name).trained)
FULL_SIZE = tuple(name for name in models.names() if not models.get(name).trained)
TASKS = {"classification", "segmentation", "detection", "language", "embedding"}


def test_listing_the_zoo_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from npuc import models; models.get(models.names()[0]).dynamic_shapes;"
        "print([m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_running_a_trained_model_needs_no_sklearn() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None; from npuc import models\n"
        "for n in models.names()[:10]: z = models.get(n); z.module()(*z.example()); z.labels(2)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_answers_its_samples(name: str) -> None:
    model = models.get(name)
    assert model.name == name and model.task in TASKS
    module = model.module()
    assert not any(part.training for part in module.modules())
    samples = model.samples(3)
    assert len(samples) == 3
    for inputs in samples:
        assert len(inputs) == len(model.input_names)
        assert all(tensor.shape[0] == 1 for tensor in inputs)
    joined = tuple(torch.cat(column) for column in zip(*samples, strict=True))
    with torch.no_grad():
        apart = [_outputs(module, inputs) for inputs in samples]
        together = _outputs(module, joined)
    for i, one in enumerate(apart):
        for a, b in zip(one, together, strict=True):
            assert a.dtype == b.dtype == torch.float32
            # Other kernels may run at another batch size: rounding of a few dozen terms.
            assert torch.allclose(a[0], b[i], rtol=1e-4, atol=1e-4)
    assert float((apart[0][0] - apart[1][0]).std()) > 1e-3, "the answer ignores the input"


@pytest.mark.parametrize("name", models.names())
def test_input_names_are_the_parameters_of_forward(name: str) -> None:
    from npuc.models import fullsize, recipes

    model = models.get(name)
    build = recipes.RECIPES[name].build if model.trained else fullsize.BUILD[name]
    with torch.device("meta"):
        module = build()
    parameters = tuple(
        parameter for parameter in type(module).forward.__annotations__ if parameter != "return"
    )
    assert parameters == model.input_names
    axes = {0: "batch", 1: "time"} if name == "digits-lstm" else {0: "batch"}
    assert model.dynamic_shapes == dict.fromkeys(model.input_names, axes)


@pytest.mark.parametrize("name", models.names())
def test_samples_are_the_same_each_time_and_disjoint_from_calibration(name: str) -> None:
    model = models.get(name)
    samples, calibration = model.samples(6), model.calibration(6)
    for a, b in zip(model.example(), samples[0], strict=True):
        assert torch.equal(a, b)
    for again, before in zip(model.samples(6), samples, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(again, before, strict=True))
    for one in samples:
        for other in calibration:
            assert not torch.equal(one[0], other[0])
    samples[0][0].zero_()
    assert not torch.equal(model.example()[0], samples[0][0]), "a caller can damage the samples"


@pytest.mark.parametrize("name", TRAINED)
def test_labels_go_with_the_samples(name: str) -> None:
    model = models.get(name)
    labels = model.labels(4)
    assert labels.dtype == torch.int64 and labels.shape[0] == 4
    image = model.example()[0]
    expected = {
        "classification": (4,),
        "embedding": (4,),
        "segmentation": (4, *image.shape[2:]),
        "language": (4, *image.shape[1:]),
        "detection": (4, 4, 5),
    }
    assert tuple(labels.shape) == expected[model.task]


def test_module_leaves_the_random_state_alone() -> None:
    for name in ("digits-lstm", "mobilenet-v2"):
        before = torch.get_rng_state()
        models.get(name).module()
        assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    assert models.get("zoo:digits-vit") == models.get("digits-vit")
    with pytest.raises(UsageError) as caught:
        models.get("digit-mobilnet")
    assert "digits-mobilenet" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        models.get("zzz")
    assert all(name in caught.value.hint for name in models.names())


@pytest.mark.parametrize("count", [0, -1, 798])
def test_more_samples_than_there_are_is_refused(count: int) -> None:
    for ask in (models.get("digits-resnet").samples, models.get("digits-resnet").labels):
        with pytest.raises(UsageError, match=str(count)):
            ask(count)


def test_random_weights_have_no_labels() -> None:
    with pytest.raises(UsageError, match="no labels"):
        models.get(FULL_SIZE[0]).labels(1)


def _outputs(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    from npuc.models.scoring import tuples

    return tuples(module(*inputs))
