"""The same model gives the same bytes in any process; another byte anywhere is found."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from npuc import artifact
from npuc.cli import main


def compiled(source: Path, folder: Path, seed: int) -> dict[str, bytes]:
    """Compile in a process of its own: another hash seed, folder, temporary folder, random seed."""
    work, temporary = folder / f"work-{seed}", folder / f"temporary-{seed}"
    work.mkdir()
    temporary.mkdir()
    environment = {
        **os.environ, "PYTHONHASHSEED": str(seed), "TMPDIR": str(temporary),
        "XDG_CACHE_HOME": str(work / "cache"), "NPUC_ATOM_PYTHON": f"{sys.executable} -I -S",
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "npuc", "compile", source, "--target", "cpu,atom", "-q", "-o", ".",
         "--no-cache"],
        cwd=work, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # Importing onnxruntime writes a .ses there, which is none of our files.
    assert {path.name for path in temporary.iterdir()} <= {".ses"}
    return {path.name: path.read_bytes() for path in sorted(work.glob("*.npuc"))}


def test_two_processes_give_the_same_bytes(recorded: Path, tmp_path: Path) -> None:
    first, second = (compiled(recorded, tmp_path, seed) for seed in (1, 4242))
    assert list(first) == list(second) == ["net.atom.npuc", "net.cpu.npuc"]
    for name in first:
        (tmp_path / "1.npuc").write_bytes(first[name])
        (tmp_path / "2.npuc").write_bytes(second[name])
        one, two = (artifact.read(tmp_path / f"{i}.npuc") for i in (1, 2))
        assert [n for n in one if one[n] != two.get(n)] == [], name
        assert first[name] == second[name]


@pytest.fixture(params=["cpu", "atom"])
def copy(request: pytest.FixtureRequest, artifacts: Mapping[str, Path], tmp_path: Path) -> Path:
    path = tmp_path / "copy.npuc"
    shutil.copy(artifacts[request.param], path)
    return path


def test_a_flipped_bit_anywhere_is_found(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both ends byte by byte, where the format's own fields lie, and a sample in between."""
    size = copy.stat().st_size
    random = np.random.default_rng(17)
    ends = [*range(0, 60, 3), *range(size - 150, size, 5)]
    places = sorted({*ends, *map(int, random.integers(0, size, 150))})
    whole = copy.read_bytes()
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        copy.write_bytes(flipped)
        assert main(["verify", str(copy)]) == 7, f"byte {place} of {size}"
    copy.write_bytes(whole)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("→ ") >= len(places)
    assert main(["verify", str(copy)]) == 0


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -64, -5000])
def test_a_cut_file_is_found(copy: Path, cut: int) -> None:
    copy.write_bytes(copy.read_bytes()[:cut])
    assert main(["verify", str(copy)]) == 7


def test_added_bytes_are_found(copy: Path) -> None:
    whole = copy.read_bytes()
    for longer in (whole + b"\0", b"\0" + whole, whole + whole):
        copy.write_bytes(longer)
        assert main(["verify", str(copy)]) == 7
