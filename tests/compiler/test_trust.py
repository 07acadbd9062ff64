"""A doubtful reference says so, is as wide as what was measured, or is refused."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import npuc
import npuc.look
from npuc import answers, pipeline, record, switches, trust
from npuc.answers import Reference
from npuc.capture import capture
from npuc.errors import ExportError, ParityError
from npuc.floors import Floor, Noise
from npuc.load import load


class Small(nn.Module):
    """Linear layers: what TF32, autocast and reduced matmuls touch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


class Mixed(Small):
    """Cannot run in float64: a dtype is fixed in its code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


def make(kind: type[Small] = Small) -> Small:
    torch.manual_seed(0)
    return kind().eval()


def data() -> torch.Tensor:
    return torch.randn(16, 64, generator=torch.Generator().manual_seed(1))


def save(path: Path, net: nn.Module | None = None, **options: Any) -> Reference:
    shapes = {"x": {0: "batch"}}
    found = net if net is not None else make()
    return npuc.save(found, data()[:8], path, samples=data(), dynamic_shapes=shapes, **options)


@pytest.fixture
def plain(tmp_path: Path) -> Reference:
    return save(tmp_path / "plain.pt")


@pytest.fixture
def medium() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def test_a_plain_reference_has_no_doubts(plain: Reference, tmp_path: Path) -> None:
    assert trust.doubts(plain) == ()
    save(tmp_path / "strict.pt", strict=True)


def test_autocast_says_so_and_is_as_wide_as_it_was_measured(
    plain: Reference, tmp_path: Path
) -> None:
    path = tmp_path / "cast.pt"
    with torch.autocast("cpu", torch.bfloat16):
        found = save(path)
    (doubt,) = trust.doubts(found)
    assert "autocast to torch.bfloat16" in doubt and "from float64" in doubt
    # The float64 run has no autocast: what bfloat16 lost is in the floor, and no constant.
    noise = found.floor["output"]
    with torch.no_grad():
        exact = make().double()(data().double()).numpy()
    got = np.concatenate([o["output"] for o in found.outputs]).astype(np.float64)
    assert noise.max_abs == pytest.approx(np.abs(got - exact).max(), rel=1e-6)
    assert noise.max_abs > 100 * plain.floor["output"].max_abs
    (done,) = pipeline.compile(path, target="cpu", output=tmp_path, dims={"batch": 8})
    assert done.passed and any("autocast" in note for note in done.report.notes)


def test_strict_lists_every_reason_and_its_remedy(tmp_path: Path, medium: None) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ParityError) as caught:
        npuc.save(make(), data()[:1], tmp_path / "no.pt", strict=True)
    text = str(caught.value)
    for part in (
        "autocast to torch.bfloat16", "float32_matmul_precision medium", "1 different sample: few",
        'torch.set_float32_matmul_precision("highest")', 'torch.autocast("cpu", enabled=False)',
    ):  # fmt: skip
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_strict_in_compile_and_verify(tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        save(tmp_path / "cast.pt", reference=tmp_path / "cast.ref")
    call: dict[str, Any] = {"target": "cpu", "output": tmp_path, "dims": {"batch": 8}}
    with pytest.raises(ParityError, match="autocast"):
        pipeline.compile(tmp_path / "cast.pt", strict=True, **call)
    save(tmp_path / "fine.pt")
    (done,) = pipeline.compile(tmp_path / "fine.pt", strict=True, **call)
    assert done.passed
    with pytest.raises(ParityError, match="autocast"):
        pipeline.verify(done.artifact_path, reference=tmp_path / "cast.ref", strict=True)


def test_reduced_matmul_precision_is_measured(
    plain: Reference, tmp_path: Path, medium: None
) -> None:
    found = save(tmp_path / "m.pt")
    assert any("float32_matmul_precision medium" in d for d in trust.doubts(found))
    # Whatever this CPU makes of it: the recorded answers and their floor belong together.
    with torch.no_grad():
        exact = make().double()(data().double()).numpy()
    got = np.concatenate([o["output"] for o in found.outputs]).astype(np.float64)
    assert found.floor["output"].max_abs == pytest.approx(np.abs(got - exact).max(), rel=1e-6)
    assert torch.get_float32_matmul_precision() == "medium"  # restored after the exact run


def test_without_a_float64_run_the_estimate_still_sees_autocast(tmp_path: Path) -> None:
    plain = save(tmp_path / "p.pt", make(Mixed))
    with torch.autocast("cpu", torch.bfloat16):
        cast = save(tmp_path / "c.pt", make(Mixed))
    assert any("estimated" in doubt for doubt in trust.doubts(plain))
    assert cast.floor["output"].max_abs > 100 * plain.floor["output"].max_abs


def test_the_new_switches_of_torch_do_not_break_recording(tmp_path: Path) -> None:
    """torch refuses to read the old names once the new ones were set."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        found = save(tmp_path / "m.pt")
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before
    assert any("mkldnn.matmul bf16" in doubt for doubt in trust.doubts(found))


def test_noise_is_kept_in_two_parts_and_the_larger_counts(plain: Reference) -> None:
    assert plain.noise is not None
    rounding, spread = plain.noise.rounding["output"], plain.noise.spread["output"]
    assert spread.max_abs == 0 < rounding.max_abs == plain.floor["output"].max_abs
    wide = Noise(plain.noise.rounding, {"output": replace(spread, max_abs=0.5, rms=0.1)})
    assert wide.floor["output"].max_abs == 0.5
    assert any("2 runs differ in output by 0.5" in d for d in trust.doubts(_with(plain, wide)))


def _with(reference: Reference, noise: Noise, **about: Any) -> Reference:
    fingerprint = {**reference.fingerprint, **about}
    return replace(reference, noise=noise, floor=noise.floor, fingerprint=fingerprint)


# A GPU that is not here ------------------------------------------------------------------------

_GPU: dict[str, Any] = {"device": "NVIDIA H100", "cuda": "12.8", "cudnn": 91002}


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"tf32_matmul": True}, ["TF32 was on for matmul", "10 bits"]),
        ({"tf32_matmul": True, "tf32_cudnn": True}, ["matmul and cuDNN"]),
        ({"cudnn_benchmark": True}, ["cudnn.benchmark"]),
        ({"variables": ["NVIDIA_TF32_OVERRIDE=1"]}, ["NVIDIA_TF32_OVERRIDE=1"]),
        ({"cudnn_benchmark": True, "cudnn_deterministic": True}, []),
        ({"noise_floor": "one-ulp perturbation"}, ["estimated"]),
        ({"inputs": "random inputs"}, ["random inputs"]),
        ({}, []),
    ],
)
def test_what_a_gpu_reference_says(
    plain: Reference, about: dict[str, Any], words: list[str]
) -> None:
    assert plain.noise is not None
    base = {**_GPU, "tf32_matmul": False, "tf32_cudnn": False}
    found = _with(plain, plain.noise, **{**base, **about})
    text = "\n".join(trust.doubts(found))
    assert all(word in text for word in words) and bool(text) is bool(words)


def test_tf32_on_a_cpu_is_no_doubt(plain: Reference) -> None:
    assert plain.fingerprint["tf32_cudnn"] is True  # torch's default, which no CPU looks at
    assert trust.doubts(plain) == ()


def test_tf32_noise_widens_the_bar_by_what_was_measured(tmp_path: Path) -> None:
    """Answers with ten bits of mantissa: refused at float32's noise, accepted at their own."""
    clean = save(tmp_path / "c.pt")
    assert clean.noise is not None
    bits = [o["output"].view(np.uint32) & np.uint32(0xFFFFE000) for o in clean.outputs]
    rounded = tuple({"output": b.view(np.float32)} for b in bits)
    gap = max(
        float(np.abs(a["output"] - b["output"]).max())
        for a, b in zip(rounded, clean.outputs, strict=True)
    )
    measured = Floor(gap, gap / 2, clean.floor["output"].peak)
    noise = Noise({"output": measured}, clean.noise.spread)
    about = {**_GPU, "tf32_matmul": True}
    for floor, passes in ((clean.noise, False), (noise, True)):
        found = replace(_with(clean, floor, **about), outputs=rounded)
        from npuc import stored

        stored.write(answers.identified(found), tmp_path / "gpu.ref")
        (done,) = pipeline.compile(
            tmp_path / "c.pt", target="cpu", output=tmp_path, reference=tmp_path / "gpu.ref"
        )
        assert done.passed is passes
        assert any("TF32 was on for matmul" in note for note in done.report.notes)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Answer what is asked of a CUDA device."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setitem(os.environ, "NVIDIA_TF32_OVERRIDE", "1")
    return torch.device("cuda", 0)


def test_the_fingerprint_of_a_cuda_device(cuda: torch.device) -> None:
    found = switches.environment(cuda)
    assert found["device"] == "NVIDIA H100" and found["capability"] == "9.0"
    assert found["cuda"] == "12.8" and found["cudnn"] == 91002 and found["driver"]
    assert found["variables"] == ["NVIDIA_TF32_OVERRIDE=1"]
    assert {"fp32_precision.cuda.matmul", "fp32_precision.cudnn.conv"} <= set(found)
    assert "float16" in found["reduced_precision_reduction"]


def test_a_program_captured_on_a_gpu_is_stored_for_any_machine(tmp_path: Path) -> None:
    """torch.export.load needs the device that a program's tensors and nodes name."""

    class Places(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.arange(64, device=x.device))

    captured = capture(make(Places), (data()[:8],), {})
    samples = ({"x": data()[:8].numpy()},)
    found = answers.record(captured, samples, samples, "test")
    gpu = captured.program.graph
    (node,) = [n for n in gpu.nodes if "arange" in str(n.target)]
    node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    assert (
        "cuda:0" in str(gpu) and answers._program(captured) == found.fingerprint["sha256_program"]
    )
    record.write(captured, found, tmp_path / "gpu.pt")
    loaded = load(tmp_path / "gpu.pt")
    assert "cuda" not in str(loaded.captured.program.graph)
    again = record.answered(loaded, found.samples)
    assert np.array_equal(again.outputs[0]["output"], found.outputs[0]["output"])


def test_a_gpu_may_differ_by_rounding_and_not_by_chance() -> None:
    refuse = answers._refuse_random
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    small, large = ({"y": Floor(gap, gap, 1.0)} for gap in (1e-5, 0.02))
    refuse(small, gpu, 2.0**-23)
    refuse(large, gpu, 2.0**-7)  # bfloat16's own step is nearly that
    for spread, device in ((small, cpu), (large, gpu)):
        with pytest.raises(ExportError, match="differently"):
            refuse(spread, device, 2.0**-23)


# What is recorded ------------------------------------------------------------------------------


def test_outputs_that_never_change_are_a_doubt(tmp_path: Path) -> None:
    class Dead(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.0

    found = save(tmp_path / "d.pt", make(Dead))
    assert any("the answer is the same for all 2 samples" in d for d in trust.doubts(found))


def test_the_id_is_that_of_the_content(plain: Reference, tmp_path: Path) -> None:
    again = save(tmp_path / "again.pt", reference=tmp_path / "again.ref")
    back = load(tmp_path / "again.pt").reference
    assert back is not None and plain.id == again.id == back.id and len(plain.id) == 64
    changed = [dict(o) for o in plain.outputs]
    changed[1]["output"] = changed[1]["output"] + np.float32(1e-7)
    others: list[Callable[[], Reference]] = [
        lambda: replace(plain, outputs=tuple(changed)),
        lambda: replace(plain, fingerprint={**plain.fingerprint, "tf32_matmul": True}),
        lambda: replace(plain, floor={"output": Floor(1, 1, 1)}),
        lambda: replace(plain, calibration=plain.calibration[:1]),
        lambda: replace(plain, axes={}),
    ]
    ids = {answers.identified(make_other()).id for make_other in others}
    assert len(ids) == len(others) and plain.id not in ids


def test_the_report_names_the_reference(plain: Reference, tmp_path: Path) -> None:
    (done,) = pipeline.compile(
        tmp_path / "plain.pt", target="cpu", output=tmp_path, dims={"batch": 4}
    )
    assert done.report.fingerprint["id"] == plain.id
    assert pipeline.verify(done.artifact_path).fingerprint["id"] == plain.id
    seen = SimpleNamespace(**npuc.look.look(str(done.artifact_path)))
    assert seen.parity["fingerprint"]["id"] == plain.id
