"""Which answers a compile is checked on, and at which sizes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from npuc import originals, record
from npuc.answers import Reference
from npuc.errors import UsageError
from npuc.export import export
from npuc.load import Loaded, load
from npuc.passes import standard
from npuc.passes.base import run
from npuc.pipeline import ANY
from npuc.program import Program, Tensors

Npz = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded net: three calls of 8 rows, two calibration calls of 4, dynamic batch."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("saved") / "net.pt"
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    record.save(
        net, torch.randn(8, 3), path, samples=[torch.randn(8, 3) for _ in range(3)],
        calibration=[torch.randn(4, 3) for _ in range(2)], dynamic_shapes=({0: "batch"},),
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def model(saved: Path) -> tuple[Loaded, Program]:
    loaded = load(saved)
    return loaded, export(loaded)


def test_recorded_answers_are_taken_as_they_are(model: tuple[Loaded, Program]) -> None:
    reference = originals.find(*model, None, None)
    assert reference is model[0].reference
    assert len(reference.samples) == 3 and len(reference.calibration) == 2


def name_of(program: Program) -> str:
    return program.inputs[0].name


@pytest.mark.parametrize("kind", ["arrays", "file", "folder"])
def test_samples_given_are_answered_by_the_original_here(
    model: tuple[Loaded, Program], kind: str, tmp_path: Path, npz: Npz
) -> None:
    loaded, program = model
    x = np.ones((6, 3), np.float32)
    given: originals.Calls = [{name_of(program): x}]
    if kind != "arrays":
        path = npz({name_of(program): x})
        given = path if kind == "file" else path.parent
    reference = originals.find(loaded, program, given, None)
    assert [s[name_of(program)].shape for s in reference.samples] == [(6, 3)]
    assert reference.fingerprint["inputs"] == "given"
    native = originals.native(loaded)
    assert native is not None
    for name, value in native(reference.samples[0]).items():
        assert np.array_equal(value, reference.outputs[0][name])
    assert len(reference.calibration) == 2  # the recorded ones still
    assert set(reference.floor) == set(reference.outputs[0])


def test_calibration_given_leaves_the_recorded_answers(
    model: tuple[Loaded, Program], npz: Npz
) -> None:
    loaded, program = model
    data = npz({name_of(program): np.zeros((5, 4, 3), np.float32)})
    reference = originals.find(loaded, program, None, data)
    assert loaded.reference is not None
    assert reference.samples is loaded.reference.samples
    assert len(reference.calibration) == 5 and reference.fingerprint["calibration"] == "given"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"wrong": np.ones((2, 3), np.float32)}, "is missing"),
        ({"input": np.ones((2, 4), np.float32)}, "has shape 2x4"),
        ({"input": np.ones((2, 3), np.int64)}, "is int64, expected float32"),
    ],
)
def test_calls_that_do_not_fit(model: tuple[Loaded, Program], call: Tensors, words: str) -> None:
    name = name_of(model[1])
    call = {name if k == "input" else k: v for k, v in call.items()}
    with pytest.raises(UsageError, match=words):
        originals.find(*model, [call], None)
    with pytest.raises(UsageError, match=words):
        originals.find(*model, None, [call])


def bind(
    model: tuple[Loaded, Program], dims: Mapping[str, int]
) -> tuple[Mapping[str, int], Reference]:
    reference = originals.find(*model, None, None)
    return originals.bind(*model, reference, dims)


def test_sizes_come_from_the_first_sample(model: tuple[Loaded, Program]) -> None:
    loaded, program = model
    samples = [{name_of(program): np.ones((8, 3), np.float32)}]
    reference = originals.find(loaded, program, samples, samples)
    bound, same = originals.bind(loaded, program, reference, {})
    assert bound == {"batch": 8} and same is reference


def test_a_recorded_batch_is_cut_where_it_divides(model: tuple[Loaded, Program]) -> None:
    loaded, program = model
    for size in (1, 2, 4):
        bound, reference = bind(model, {"batch": size})
        assert bound == {"batch": size} and loaded.reference is reference
        fixed = run(program, standard(bound), ANY)
        cut = originals.cut(reference, fixed, program, 5)
        assert len(cut.samples) == len(cut.outputs) == min(5, 24 // size)
        whole = np.concatenate([o[program.outputs[0].name] for o in reference.outputs])
        parts = np.concatenate([o[program.outputs[0].name] for o in cut.outputs])
        assert np.array_equal(parts, whole[: len(parts)])
        assert cut.calibration == () and cut.floor == reference.floor


def test_a_batch_that_does_not_divide_is_answered_again(model: tuple[Loaded, Program]) -> None:
    loaded, program = model
    bound, reference = bind(model, {"batch": 3})
    assert bound == {"batch": 3} and loaded.reference is not None
    name, native = name_of(program), originals.native(loaded)
    assert native is not None
    assert [s[name].shape[0] for s in reference.samples] == [3, 3, 3]
    assert [c[name].shape[0] for c in reference.calibration] == [3, 3]
    assert np.array_equal(reference.samples[0][name], loaded.reference.samples[0][name][:3])
    for sample, output in zip(reference.samples, reference.outputs, strict=True):
        assert all(np.array_equal(v, output[k]) for k, v in native(sample).items())
    assert reference.fingerprint["inputs"] == ("recorded by npuc.save, resized and answered here")


def test_a_calibration_batch_that_does_not_divide_counts_too(
    model: tuple[Loaded, Program],
) -> None:
    """8 divides the samples' 8, but not the calibration's 4."""
    _, reference = bind(model, {"batch": 8})
    assert {c[name_of(model[1])].shape[0] for c in reference.calibration} == {8}


def test_a_larger_batch_takes_the_other_samples(model: tuple[Loaded, Program]) -> None:
    loaded, name = model[0], name_of(model[1])
    assert loaded.reference is not None
    _, reference = bind(model, {"batch": 12})
    first, second = (s[name] for s in loaded.reference.samples[:2])
    x = reference.samples[0][name]
    assert x.shape == (12, 3) and np.array_equal(x, np.concatenate([first, second])[:12])


def test_a_batch_larger_than_all_samples_repeats_them(model: tuple[Loaded, Program]) -> None:
    loaded, name = model[0], name_of(model[1])
    assert loaded.reference is not None
    every = np.concatenate([s[name] for s in loaded.reference.samples])
    _, reference = bind(model, {"batch": len(every) + 4})
    x = reference.samples[0][name]
    assert np.array_equal(x[len(every) :], every[:4])


def test_an_unknown_dimension_is_explained_by_the_pass(model: tuple[Loaded, Program]) -> None:
    bound, _ = bind(model, {"bacth": 1})
    with pytest.raises(UsageError) as caught:
        run(model[1], standard(bound), ANY)
    assert "no dimension 'bacth'" in str(caught.value) and "did you mean batch?" in str(
        caught.value
    )


@pytest.fixture
def onnx_model(tmp_path: Path) -> tuple[Loaded, Program]:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[n, 3] x) => (float[n, 3] y) { y = Tanh (x) }"""
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    loaded = load(path)
    return loaded, export(loaded)


def test_an_onnx_file_is_its_own_original(onnx_model: tuple[Loaded, Program]) -> None:
    assert originals.native(onnx_model[0]) is None
    reference = originals.find(*onnx_model, None, None)
    assert reference.fingerprint["inputs"] == "random inputs"
    again = originals.find(*onnx_model, None, None)
    for first, second in zip(reference.samples, again.samples, strict=True):
        assert np.array_equal(first["x"], second["x"])  # random, and the same every time
    given = [{"x": np.full((2, 3), 0.5, np.float32)}]
    real = originals.find(*onnx_model, given, None)
    assert np.allclose(real.outputs[0]["y"], np.tanh(0.5)) and real.calibration == tuple(given)


def test_random_inputs_are_called_random_after_a_resize_too(
    onnx_model: tuple[Loaded, Program],
) -> None:
    data = [{"x": np.full((5, 3), 0.5, np.float32)}]
    for calibration in (None, data):
        reference = originals.find(*onnx_model, None, calibration)
        _, resized = originals.bind(*onnx_model, reference, {"n": 5})
        assert resized.samples[0]["x"].shape == (5, 3)
        assert resized.fingerprint["inputs"].startswith("random inputs")
        assert ("calibration" in resized.fingerprint) is (calibration is not None)
