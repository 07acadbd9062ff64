"""Every example runs as its text says, in an empty folder, and leaves what it promises.

What the example repository does is in examples/test_known_bad_changes.py.
"""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NPUC = Path(sys.executable).with_name("npuc")
PASSED = "PASSED: every step answers like the original, within its bar"


def _run(folder: Path, *command: str | Path) -> str:
    """Run a command in `folder` and return what it prints; its failure shows all of it."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _stages(printed: str) -> list[str]:
    """Return the first words of the lines between each table's rule and the next empty line."""
    tables = [part.split("\n\n")[0] for part in printed.split("\n---")[1:]]
    return [line.split()[0] for table in tables for line in table.splitlines()[1:]]


def test_train_save_and_compile(tmp_path: Path) -> None:
    printed = _run(tmp_path, sys.executable, EXAMPLES / "01_train_and_save.py").splitlines()
    assert float(printed[0].removeprefix("accuracy ")) > 0.85  # untrained: 0.1
    assert printed[1] == "saved digits.pt; next: npuc compile digits.pt --target atom"

    words = printed[1].split("next: npuc ")[1].replace("atom", "atom,cpu").split()
    printed_by_npuc = _run(tmp_path, NPUC, *words, "--quiet")
    assert printed_by_npuc.count(PASSED) == 2
    assert "reference: recorded by npuc.save" in printed_by_npuc
    stages = _stages(printed_by_npuc)
    assert stages.count("exported") == stages.count("artifact") == 2
    assert stages.count("quantize") == 1  # atom is int8 by default, cpu is float
    assert {p.name for p in tmp_path.glob("*.npuc")} == {"digits.atom.npuc", "digits.cpu.npuc"}


def test_compile_from_python(tmp_path: Path) -> None:
    printed = _run(tmp_path, sys.executable, EXAMPLES / "02_compile_from_python.py", "built")
    assert printed.count(PASSED) == 2
    arrows = [line.removeprefix("→ ") for line in printed.splitlines() if line.startswith("→ ")]
    assert arrows == ["built/model.cpu.npuc", "built/model.atom.npuc"]
    assert all((tmp_path / artifact).is_file() for artifact in arrows)


def test_an_onnx_file_with_data(tmp_path: Path) -> None:
    printed = _run(tmp_path, sys.executable, EXAMPLES / "03_onnx_file.py")
    assert PASSED in printed
    assert {"exported", "quantize", "artifact"} <= set(_stages(printed))
    assert PASSED in _run(tmp_path, NPUC, "verify", "out/digits.npuc")


def test_fine_tune_for_the_chip(tmp_path: Path) -> None:
    printed = _run(tmp_path, sys.executable, EXAMPLES / "05_finetune_for_the_chip.py")
    rows = [line.rsplit(maxsplit=3)[1:3] for line in printed.splitlines()[1:]]
    right, sqnr = zip(*((float(r.rstrip("%")), float(s)) for r, s in rows), strict=True)
    assert len(rows) == 4 and min(right) > right[0] - 1
    _, before, tuned, compiled = sqnr
    assert tuned > before + 6 and abs(compiled - tuned) < 1
    assert (tmp_path / "out" / "digits.npuc").is_file()


def test_watch_portability(tmp_path: Path) -> None:
    """One run drifts below the bar while its accuracy stays; the other stays above it."""
    printed = _run(tmp_path, sys.executable, EXAMPLES / "06_watch_portability.py")
    drifting, bounded = (part.splitlines() for part in printed.split("members that differ in ")[1:])
    runs = []
    for lines in (drifting, bounded):
        rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
        assert len(rows) == 6
        accuracy = [float(row[2].rstrip("%")) for row in rows]
        assert min(accuracy[1:]) > 95 and accuracy[-1] >= accuracy[0]
        runs.append([float(row[5]) for row in rows])  # warboy; the fourth column is atom
    assert max(runs[0][:2]) > 30 and runs[0][-1] < 20 and min(runs[1]) > 30
    at = 100 * (1 + next(i for i, db in enumerate(runs[0]) if db < 20))
    assert f"warboy: BELOW at step {at}" in drifting and "atom: above the bar" in drifting
    assert "warboy: above the bar" in bounded
    assert any(line.startswith("warboy: ReduceSum") for line in drifting)  # what is to blame
