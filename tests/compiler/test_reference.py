"""npuc.save records the original's answers, changes nothing, and never leaves half a file."""

import copy
import json
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import npuc
from npuc import floors, reference
from npuc.capture import capture
from npuc.errors import ExportError, LoadError, OutputError, UsageError
from npuc.export import export
from npuc.load import Loaded, load
from npuc.metrics import differences
from npuc.quiet import quiet
from npuc.runners import OnnxRunner


@pytest.fixture
def saved(net: Any, tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    torch.manual_seed(5)
    npuc.save(
        net, torch.randn(2, 1, 6, 6), path,
        samples=torch.randn(8, 1, 6, 6), calibration=torch.randn(6, 1, 6, 6),
        dynamic_shapes={"x": {0: "batch"}},
    )  # fmt: skip
    return path


def test_one_file_holds_model_and_answers(saved: Path, net: Any) -> None:
    loaded = load(saved)
    ref = loaded.reference
    assert ref is not None
    assert [s["x"].shape for s in ref.samples] == [(2, 1, 6, 6)] * 4
    assert len(ref.calibration) == 3
    for sample, output in zip(ref.samples, ref.outputs, strict=True):
        with torch.no_grad():
            want = net(torch.from_numpy(sample["x"])).numpy()
        assert np.array_equal(output["output"], want)
    program = export(loaded)
    reference.check(ref, program)
    assert program.symbols == ("batch",)
    assert reference.of(loaded, program) is ref


def test_torch_still_reads_it_and_no_member_is_a_pickle_of_ours(saved: Path) -> None:
    assert torch.export.load(saved).module()(torch.zeros(3, 1, 6, 6)).shape == (3, 5)
    with zipfile.ZipFile(saved) as archive:
        ours = [i for i in archive.infolist() if "/npuc/" in i.filename]
        header = json.loads(archive.read(ours[0]))
    assert [i.filename.rsplit("/", 1)[1] for i in ours] == ["reference.json", "samples.safetensors"]
    keys = {
        "device", "torch", "cuda", "cudnn", "driver", "tf32_matmul", "float32_matmul_precision",
        "autocast", "deterministic", "dtype", "seed", "sha256_weights", "sha256_inputs", "python",
        "platform", "noise_floor", "inputs",
    }  # fmt: skip
    assert keys <= set(header["fingerprint"])


def test_the_floor_is_rounding_and_onnx_stays_near_it(saved: Path) -> None:
    loaded = load(saved)
    ref = loaded.reference
    assert ref is not None
    floor = ref.floor["output"]
    eps = np.finfo(np.float32).eps
    assert 0 < floor.rms <= floor.max_abs < 100 * eps * floor.peak
    assert ref.fingerprint["noise_floor"] == "float64 run of the same model"
    runner = OnnxRunner(export(loaded))
    (gap,) = differences(ref.outputs, [runner(s) for s in ref.samples])
    # Another order of the same sums: a few times what rounding did to the original.
    assert gap.max_abs < 20 * floor.max_abs


def _state(net: Any) -> dict[str, Any]:
    return {
        "weights": {k: v.clone() for k, v in net.state_dict().items()},
        "ids": [id(p) for p in net.parameters()],
        "modes": [m.training for m in net.modules()],
        "grad flags": [p.requires_grad for p in net.parameters()],
        "grads": [p.grad is None for p in net.parameters()],
        "hooks": [len(m._forward_hooks) for m in net.modules()],
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False)["state"]["key"].tolist(),
        "torch": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "flags": (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cpu"),
        ),
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return bool(a == b)


@pytest.mark.parametrize("fails", [False, True])
def test_saving_changes_nothing(net: Any, tmp_path: Path, fails: bool) -> None:
    calls: list[int] = []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    net.conv.weight.requires_grad_(False)
    net(torch.randn(2, 1, 6, 6)).sum().backward()
    example = torch.randn(2, 1, 6, 6, requires_grad=True)
    kept = example.detach().clone()
    if fails:
        net.drop.train()
    before = _state(net)
    if fails:
        with pytest.raises(ExportError, match="train mode"):
            npuc.save(net, example, tmp_path / "a.pt")
    else:
        npuc.save(net, example, tmp_path / "a.pt")
    after = _state(net)
    assert not [key for key in before if not _equal(before[key], after[key])]
    assert torch.equal(example, kept) and example.grad is None and example.requires_grad


class Pair(nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (ids * mask).float().mean(1)


def _ids(n: int) -> torch.Tensor:
    return torch.arange(n * 3).reshape(n, 3)


@pytest.mark.parametrize(
    "calibration",
    [
        [(_ids(1), _ids(1)), (_ids(1), _ids(1))],
        [{"ids": _ids(1), "mask": _ids(1), "labels": torch.ones(1)}] * 2,
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(_ids(2), _ids(2), torch.ones(2))
        ),
        ((_ids(1).numpy(), _ids(1).numpy()) for _ in range(2)),
    ],
    ids=["tuples", "dicts with labels", "loader with labels", "generator of arrays"],
)
def test_what_users_have_becomes_calls(tmp_path: Path, calibration: Any) -> None:
    ref = npuc.save(Pair().eval(), (_ids(1), _ids(1)), tmp_path / "p.pt", calibration=calibration)
    assert len(ref.calibration) == 2 and len(ref.samples) == 1
    assert set(ref.calibration[0]) == {"ids", "mask"}
    back = load(tmp_path / "p.pt").reference
    assert back is not None
    assert np.array_equal(back.calibration[1]["mask"], ref.calibration[1]["mask"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"samples": [torch.randn(1, 1, 5, 6)]}, r"samples\[0\]: x has shape"),
        ({"samples": [torch.zeros(1, 1, 6, 6, dtype=torch.int64)]}, "x is int64"),
        ({"calibration": []}, "calibration: it is empty"),
        ({"calibration": ["a.png"]}, "not str"),
    ],
)
def test_wrong_samples(net: Any, tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        npuc.save(net, torch.randn(1, 1, 6, 6), tmp_path / "n.pt", **given)
    assert not (tmp_path / "n.pt").exists()


class Lucky(nn.Module):
    """Random, hidden from the graph: it draws with numpy."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + float(np.random.rand())


def test_a_model_that_answers_differently_twice(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differently on the same input"):
        npuc.save(Lucky().eval(), torch.zeros(2, 3), tmp_path / "l.pt")
    assert list(tmp_path.iterdir()) == []


def test_no_double_kernel_falls_back_to_perturbation(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.float() @ self.w).sum(1)  # float32 times float64 has no kernel

    torch.manual_seed(0)
    ref = npuc.save(Fixed().eval(), torch.randn(4, 3), tmp_path / "f.pt")
    assert ref.fingerprint["noise_floor"].startswith("one-ulp perturbation")
    floor = ref.floor["output"]
    assert 0 < floor.max_abs < 50 * np.finfo(np.float32).eps * floor.peak


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_survive_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    net = nn.Linear(4, 2).to(dtype).eval()
    ref = npuc.save(net, torch.randn(1, 4).to(dtype), tmp_path / "h.pt")
    back = load(tmp_path / "h.pt").reference
    assert back is not None
    assert back.outputs[0]["output"].tobytes() == ref.outputs[0]["output"].tobytes()
    assert back.outputs[0]["output"].dtype.name == str(dtype).removeprefix("torch.")
    assert ref.floor["output"].max_abs == 0 if dtype == torch.float64 else 1


def test_saving_twice_gives_the_same_bytes(net: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        npuc.save(net, torch.ones(1, 1, 6, 6), tmp_path / name)
    members = []
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            members.append({n.split("/", 1)[1]: archive.read(n) for n in archive.namelist()})
    assert members[0] == members[1]


# Damage and interruption ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("npuc/samples.safetensors", lambda d: d[:-1] + b"\x7f", "another hash"),
        ("npuc/reference.json", lambda d: b"{", "damaged"),
        ("npuc/reference.json", lambda d: d.replace(b'"format": 2', b'"format": 9'), "format 9"),
        ("npuc/reference.json", lambda d: d.replace(b'"floor"', b'"flour"'), "damaged"),
    ],
)
def test_a_damaged_reference(
    saved: Path, rewrite: Any, name: str, change: Callable[[bytes], bytes], words: str
) -> None:
    path = rewrite(saved, lambda m: m.__setitem__(name, change(m[name])))
    with pytest.raises(LoadError, match=words):
        load(path)


def test_a_flipped_byte_in_the_samples_is_found(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("samples.safetensors"))
    data = bytearray(saved.read_bytes())
    data[info.header_offset + 400] ^= 1
    saved.write_bytes(data)
    with pytest.raises(LoadError, match=r"checksum|damaged"):
        load(saved)


def test_a_full_disk_leaves_the_old_file(net: Any, tmp_path: Path) -> None:
    path = tmp_path / "n.pt"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OutputError, match=str(path)):
            npuc.save(net, torch.randn(1, 1, 6, 6), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["n.pt"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "n.pt"
    path.write_bytes(b"old")
    code = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import npuc, torch
        from npuc import record
        from conftest import make_net
        write = record._encode
        real = torch.export.save
        def slow(*args, **kwargs):
            real(*args, **kwargs)
            print("written", flush=True)
            sys.__stdout__.write("written\\n"); sys.__stdout__.flush()
            time.sleep(60)
        torch.export.save = slow
        npuc.save(make_net(), torch.randn(1, 1, 6, 6), {str(path)!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        time.sleep(0.2)
        process.send_signal(how)
        process.wait(20)
    assert path.read_bytes() == b"old"
    visible = [n for n in os.listdir(tmp_path) if not n.startswith(".")]
    assert visible == ["n.pt"]


# References computed here ---------------------------------------------------------------------


def test_without_a_record_the_model_runs_here_and_says_so(pt2: Path, net: Any) -> None:
    loaded = load(pt2)
    program = export(loaded)
    ref = reference.of(loaded, program)
    assert ref.fingerprint["inputs"] == "the file's example inputs"
    module = Loaded("module", "net", module=net, args=(torch.randn(2, 1, 6, 6),))
    assert reference.of(module, export(module)).fingerprint["inputs"] == "random inputs"
    given = ({"x": np.ones((2, 1, 6, 6), np.float32)},)
    assert reference.of(module, export(module), given).fingerprint["inputs"] == "given"


def test_an_exported_program_has_a_double_run_too(tmp_path: Path) -> None:
    """Its dtypes are written into the graph: the zeros an LSTM starts from, casts."""
    net = nn.LSTM(4, 5, batch_first=True).eval()
    with quiet():  # torch warns that an LSTM looks at its own weights
        torch.export.save(torch.export.export(net, (torch.randn(2, 3, 4),)), tmp_path / "l.pt2")
    loaded = load(tmp_path / "l.pt2")
    ref = reference.of(loaded, export(loaded))
    assert ref.fingerprint["noise_floor"] == "float64 run of the same model"
    assert 0 < ref.floor["output_0"].max_abs < 1e-5


def test_floors_by_perturbation_and_by_double_run_agree_in_size(net: Any) -> None:
    captured = capture(net, (torch.randn(4, 1, 6, 6),), {})
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((4, 1, 6, 6)).astype(np.float32)} for _ in range(4)]
    from npuc.answers import run

    outputs = [run(captured, s) for s in samples]
    double, _, _ = floors.of_module(captured, samples, [(o, {}) for o in outputs])
    loaded = Loaded("module", "net", module=net, args=(torch.randn(4, 1, 6, 6),))
    onnx = floors.of_program(export(loaded), samples, outputs)
    assert 0.1 < onnx["output"].max_abs / double["output"].max_abs < 100


def test_an_onnx_file_answers_for_itself(tmp_path: Path, net: Any) -> None:
    loaded = Loaded(
        "module", "n", module=net, args=(torch.randn(2, 1, 6, 6),),
        dynamic_shapes={"x": {0: "batch"}},
    )  # fmt: skip
    export(loaded).save(tmp_path / "n.onnx")
    onnx = load(tmp_path / "n.onnx")
    ref = reference.of(onnx, export(onnx))
    again = reference.of(onnx, export(onnx))
    assert ref.fingerprint["inputs"] == "random inputs"
    assert ref.floor == again.floor and ref.floor["output"].max_abs > 0


def test_record_from_a_loaded_model(net: Any, tmp_path: Path, npz: Any) -> None:
    inputs = npz({"x": np.ones((5, 2, 1, 6, 6), np.float32)})
    loaded = Loaded("module", "n", module=net, args=(torch.randn(2, 1, 6, 6),))
    reference.record(loaded, inputs, tmp_path / "out.pt")
    back = load(tmp_path / "out.pt").reference
    assert back is not None and len(back.samples) == 5
    assert back.fingerprint["inputs"] == "recorded by npuc record"


def test_names_that_do_not_match_are_an_error(saved: Path) -> None:
    loaded = load(saved)
    assert loaded.reference is not None
    wrong = replace(loaded.reference, outputs=({"other": np.ones(1)},))
    with pytest.raises(npuc.ParityError, match="other"):
        reference.check(wrong, export(loaded))


def test_the_example_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parents[2] / "examples" / "01_train_and_save.py"
    assert len([x for x in script.read_text().splitlines() if x.strip()]) <= 36
    out = tmp_path / "digits.pt"
    monkeypatch.setattr(sys, "argv", [str(script), str(out)])
    runpy.run_path(str(script))
    ref = load(out).reference
    assert ref is not None and len(ref.samples) == 32 and len(ref.calibration) == 64
    assert copy.copy(ref) == ref
