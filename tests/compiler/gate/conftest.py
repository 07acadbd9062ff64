"""Gates for the tests: a folder that holds a model, and one that was compiled once."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from npuc.gate import run, spec
from npuc.gate.cache import Cache
from npuc.gate.outcome import Outcome
from npuc.gate.pairs import Pair

TODAY = date(2026, 11, 21)

Write = Callable[..., Path]


@pytest.fixture
def parity(tmp_path: Path) -> Write:
    """Write a parity.toml beside what it may name, which is there but holds nothing real."""
    for name in ("model.pt", "samples.npz", "other.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    np.savez(tmp_path / "labels.npz", np.zeros(3))
    (tmp_path / "evaluate.py").write_text("def accuracy(outputs, labels):\n    return 1.0\n")

    def write(text: str) -> Path:
        path = tmp_path / "parity.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory, recorded: Path) -> tuple[Path, Cache]:
    """A repository with a model and its parity.toml, and a cache that has its verdicts."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "model.pt").write_bytes(recorded.read_bytes())
    path = folder / "parity.toml"
    path.write_text(
        'version = 1\n[models.net]\nfile = "model.pt"\ntargets = ["cpu", "atom"]\n'
        'precision = "int8"\n'
    )
    cache = Cache(folder / "cache")
    found = run.check_all(spec.read(path), cache=cache, today=TODAY)
    assert [outcome.state for outcome in found] == ["passed", "passed"], found[0].text()
    return path, cache


@pytest.fixture(scope="session")
def compiled(gated: tuple[Path, Cache]) -> Outcome:
    """The outcome for atom, as it comes out of the cache."""
    path, cache = gated
    found = run.check(_pair(path, "atom"), cache, today=TODAY)
    assert found.cached
    return found


def _pair(path: Path, target: str) -> Pair:
    return next(pair for pair in spec.read(path).pairs() if pair.target == target)
