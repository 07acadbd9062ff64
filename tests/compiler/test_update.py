"""Recording again: what moved by how much, and whether a reference is out of date."""

import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import npuc
from npuc import stored, summary, update
from npuc.cli import main
from npuc.errors import OutputError, UsageError

CODE = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
"""


class Wrong(nn.Module):
    def forward(self, other: torch.Tensor) -> torch.Tensor:
        return other


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.pt, m.ref with their summaries, and the training's other files."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "trained_here.py").write_text(CODE)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x = torch.randn(40, 6)
    npuc.save(
        net, x[:4], folder / "m.pt", samples=x, reference=folder / "m.ref",
        dynamic_shapes=({0: "batch"},), intermediates=["0"],
    )  # fmt: skip
    torch.save(net.state_dict(), folder / "same.pt")
    with torch.no_grad():
        net[2].bias[1] += 1e-4  # type: ignore[index,operator]
    torch.save(net.state_dict(), folder / "next.pt")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "work"
    shutil.copytree(original, place)
    monkeypatch.chdir(place)
    return place


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str]:
        code = main(["record", *words])
        caught = capsys.readouterr()
        return code, caught.out + caught.err

    return call


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_nothing_moved(folder: Path, run: Run) -> None:
    before = bytes_of(folder)
    assert run("--check", "m.pt")[0] == 0
    assert bytes_of(folder) == before
    code, text = run("--update", "m.pt")
    assert code == 0 and "m.pt: the same" in text and "output  did not move" in text
    after = bytes_of(folder)
    assert after.pop("m.pt.txt") == before["m.ref.txt"] and after == before


def test_weights_that_were_trained_on(folder: Path, run: Run) -> None:
    model = ("next.pt", "--model", "trained_here:make")
    before = bytes_of(folder)
    code, text = run(*model, "--update", "m.pt", "--check")
    assert code == 6 and bytes_of(folder) == before
    for part in ("m.pt: STALE", "moved by 0.0001: ", "times its noise, SQNR", "agreement",
                 "sha256_weights", "stale: recorded with weights", "without --check"):  # fmt: skip
        assert part in text
    for name in ("m.pt", "m.ref"):
        assert run(*model, "--update", name)[0] == 0
        assert run(*model, "--update", name, "--check")[0] == 0
    assert run("--check", "m.pt")[0] == 0
    whole, alone = stored.read(folder / "m.pt"), stored.read(folder / "m.ref")
    assert whole.id == alone.id and whole.axes == stored.read(folder / "m.pt").axes
    assert (folder / "m.pt.txt").read_text() == summary.text(whole)
    assert [set(c) for c in whole.intermediates] == [{"0"}] * 4
    # The same weights as at first are the same reference as at first.
    assert run("same.pt", "--model", "trained_here:make", "--update", "m.ref", "--check")[0] == 6


def test_the_same_weights_in_another_file(run: Run) -> None:
    code, text = run("same.pt", "--model", "trained_here:make", "--update", "m.ref", "--check")
    assert code == 0 and "did not move" in text and "STALE" not in text


def test_other_inputs(folder: Path, run: Run, npz: Any) -> None:
    data = str(npz({"input": np.ones((9, 4, 6), np.float32)}))
    code, text = run("--update", "m.pt", "--inputs", data, "--check")
    assert code == 6 and "not compared" in text and "recorded on inputs" in text
    assert run("--update", "m.pt", "--inputs", data)[0] == 0
    assert len(stored.read(folder / "m.pt").samples) == 9


def test_a_summary_that_was_left_behind(folder: Path, run: Run) -> None:
    text = folder / "m.ref.txt"
    text.write_text(text.read_text().replace("samples", "sample"))
    words = ("m.pt", "--update", "m.ref")
    code, said = run(*words, "--check")
    assert code == 6 and "m.ref.txt is not the summary of m.ref" in said
    assert run(*words)[0] == 0 and run(*words, "--check")[0] == 0
    text.unlink()  # nobody wants one: not stale
    assert run(*words, "--check")[0] == 0


def test_answers_within_noise_are_no_reason(folder: Path) -> None:
    """Another machine rounds otherwise: shown, and not stale."""
    old = stored.read(folder / "m.ref")
    noise = old.floor["output"].max_abs
    for factor, stale in ((3, False), (30, True)):
        outputs = tuple({"output": c["output"] + np.float32(factor * noise)} for c in old.outputs)
        new = replace(old, outputs=outputs, fingerprint={**old.fingerprint, "device": "GPU"})
        found = update.compare(Path("m.ref"), old, new)
        assert bool(found.stale) is stale and "cpu → GPU" in found.text
        assert ("STALE" in found.text) is stale


def test_outputs_of_other_names_and_shapes(folder: Path) -> None:
    old = stored.read(folder / "m.ref")
    renamed = replace(old, outputs=tuple({"y": c["output"]} for c in old.outputs))
    assert "outputs are y" in update.compare(Path("m"), old, renamed).stale[0]
    cut = replace(old, outputs=tuple({"output": c["output"][:2]} for c in old.outputs))
    assert "shape (2, 3)" in update.compare(Path("m"), old, cut).stale[0]


def test_several_files_are_checked(folder: Path, run: Run) -> None:
    shutil.copy(folder / "m.pt", folder / "n.pt")
    (folder / "n.pt.txt").write_text("old\n")
    code, text = run("--check", "m.pt", "n.pt")
    assert code == 6 and "m.pt: the same" in text and "n.pt: STALE" in text
    assert "npuc record --update n.pt" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--update", "m.ref"), "npuc record MODEL --update m.ref"),
        (("--check",), "which file"),
        (("--update", "m.pt", "-o", "x.pt"), "--update and --check name theirs"),
        (("a.pt", "b.pt", "--update", "m.pt"), "one MODEL, not 2"),
        (("--check", "absent.pt"), "absent.pt"),
    ],
)
def test_what_cannot_be_meant(run: Run, words: tuple[str, ...], said: str) -> None:
    code, text = run(*words)
    assert code == 2 and said in text


def test_a_model_with_other_inputs(folder: Path) -> None:
    loaded = npuc.load(Wrong().eval())
    with pytest.raises(UsageError, match="forward\\(\\) does not have: input"):
        update.update(folder / "m.ref", loaded)
    narrow = npuc.load(nn.Linear(5, 3).eval(), inputs=["input:batch=2x5"])
    with pytest.raises(UsageError, match="has shape 4x6"):
        update.update(folder / "m.ref", narrow)


def test_a_full_disk_leaves_the_old_files(folder: Path) -> None:
    before = bytes_of(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OutputError, match=r"m\.pt"):
            update.update(folder / "m.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bytes_of(folder) == before


def test_saving_keeps_a_committed_summary_fresh(folder: Path) -> None:
    (folder / "k.pt.txt").write_text("old\n")
    found = npuc.save(nn.Linear(2, 2).eval(), torch.ones(1, 2), folder / "k.pt")
    assert (folder / "k.pt.txt").read_text() == summary.text(found)
    npuc.save(nn.Linear(2, 2).eval(), torch.ones(1, 2), folder / "j.pt")
    assert not (folder / "j.pt.txt").exists()
