"""Precision auto on a real network: what is measured, what is written when, and what ends it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from npuc import artifact, pipeline, record
from npuc.errors import UsageError
from npuc.members import PARITY
from npuc.mixed.sensitivity import Bench, Clock, OutOfTime
from npuc.options import seconds
from npuc.pipeline import Compiled
from npuc.policy import Policy


class Uneven(nn.Module):
    """Three linears; only the first one's input is hard to code: it has rare large values.

    What is large saturates, so its answer hangs on the small values, which one scale rounds away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 256)
        self.third = nn.Linear(256, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.third(self.second(self.first(x).tanh()).tanh())
        return out


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as npuc.save writes it, with 24 calls of 4 for calibration and 8 to compare."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("uneven") / "net.pt"
    calls = [torch.randn(4, 16) ** 5 / 20 for _ in range(32)]
    record.save(Uneven().eval(), calls[0], path, samples=calls[:8], calibration=calls[8:])
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compiled(model: Path, target: str = "cpu", db: float = 30.0, **options: Any) -> Compiled:
    options = {"precision": "auto", "vendor": "skip", **options}
    (done,) = pipeline.compile(model, target=target, policy=Policy(sqnr_db=db), **options)
    return done


def stored(path: Path) -> Any:
    opened = artifact.read(path)
    opened.verify()
    return json.loads(opened[PARITY])


def test_a_policy_that_plain_int8_fails_is_met_twice_alike(uneven: Path) -> None:
    plain = compiled(uneven, precision="int8")
    assert not plain.passed and plain.report.mixed is None

    done, again = compiled(uneven), compiled(uneven, output="again.npuc")
    assert done.passed and again.artifact_path.read_bytes() == done.artifact_path.read_bytes()
    data = stored(done.artifact_path)["mixed"]
    assert data["kept"][0]["layer"]["module"] == "first" and 0 < data["share"] < 0.1
    assert done.report.mixed is not None and done.report.mixed.seconds is not None
    assert data["seconds"] is None  # bytes do not hang on the clock


def test_the_layer_that_needs_it_is_kept_in_the_devices_float(uneven: Path) -> None:
    done = compiled(uneven, "atom")
    mixed = done.report.mixed
    assert mixed is not None and done.passed and mixed.valid and mixed.end == "complete"
    (kept,) = mixed.kept
    assert kept.layer.module == "first" and kept.form == "bf16"
    assert kept.layer.line.endswith("test_auto.py:39")
    assert kept.measured and (kept.db or 0) > 5 and mixed.share < 0.1
    assert "kept in bf16: +" in done.report.table()
    steps = {step.name: step for step in artifact.read(done.artifact_path).manifest.steps}
    assert steps["quantize"].changes == 2
    assert any("quantizes by itself is not told" in note for note in done.report.notes)


def test_int8_that_meets_the_policy_is_left_alone(uneven: Path) -> None:
    done = compiled(uneven, db=5.0)
    assert done.passed and done.report.mixed is not None and done.report.mixed.kept == ()


def test_a_policy_that_nothing_meets_fails_with_the_reason(uneven: Path) -> None:
    done = compiled(uneven, "atom", db=90.0)
    assert not done.passed and done.report.exit_code == 6
    assert "the policy cannot be met: with all 3 layers in bf16" in done.report.table()
    assert stored(done.artifact_path)["passed"] is False


Stop = Callable[[], None]


def when_layers_are_measured(monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    """Call `stop` in the middle of the search: after the first valid set, within the sweep."""
    real = Bench.sweep

    def sweep(
        self: Bench, names: Sequence[str], progress: Callable[[int, int], None]
    ) -> Mapping[str, Any]:
        real(self, names[:1], progress)
        stop()
        raise AssertionError("the search went on")

    monkeypatch.setattr(Bench, "sweep", sweep)


def test_ctrl_c_ends_the_search_and_not_the_compile(
    uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    when_layers_are_measured(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    done = compiled(uneven)
    mixed = done.report.mixed
    assert mixed is not None and done.passed and mixed.end == "interrupted"
    assert len(mixed.kept) == 3  # the first valid set: all of them
    assert "the search was interrupted" in done.report.table()
    assert stored(done.artifact_path)["mixed"]["end"] == "interrupted"


def test_the_end_of_the_budget_is_said(uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise OutOfTime

    when_layers_are_measured(monkeypatch, stop)
    done = compiled(uneven, budget=60.0)
    assert done.passed and "the budget ended the search" in done.report.table()


def test_a_budget_that_is_too_short_for_anything_fails_honestly(uneven: Path) -> None:
    """Nothing was measured: plain int8 is what is left, and it misses the policy."""
    done = compiled(uneven, budget=1e-9)
    mixed = done.report.mixed
    assert mixed is not None and not mixed.valid and mixed.kept == () and not done.passed
    assert mixed.end == "out of time" and "not measured without" in done.report.table()


def test_an_artifact_is_there_while_the_search_goes_on(
    uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file holds in the middle of the search is whole, valid, and says so."""
    seen: list[Any] = []

    def look() -> None:
        seen.append(stored(Path("net.cpu.npuc")))
        raise KeyboardInterrupt

    when_layers_are_measured(monkeypatch, look)
    compiled(uneven)
    assert seen[0]["passed"] is True and seen[0]["mixed"]["end"] == "going on"


@pytest.mark.slow
def test_a_killed_process_leaves_a_valid_artifact(uneven: Path, here: Path) -> None:
    script = f"""
        import os, signal
        from npuc import cli
        from npuc.mixed import sensitivity
        def sweep(self, names, progress):
            os.kill(os.getpid(), signal.SIGKILL)
        sensitivity.Bench.sweep = sweep
        cli.main(["compile", {str(uneven)!r}, "-t", "cpu", "--precision", "auto",
                  "--min-sqnr", "30", "--budget", "5m", "-o", "killed.npuc"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=here, timeout=300,
        env=os.environ, capture_output=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert stored(here / "killed.npuc")["passed"] is True
    (row,) = pipeline.verify(here / "killed.npuc", policy=Policy(sqnr_db=30.0)).rows
    assert row.state == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["digits-resnet:cpu", "text-gpt:cpu", "digits-vit:atom", "digits-detector:dx-m1"],
)
def test_policies_that_plain_int8_fails_are_met_by_few_layers(case: str) -> None:
    """2.5 dB more than plain int8 reaches, with under a fifth of the work above 8 bits."""
    script = Path(__file__).parents[2] / "benchmarks" / "auto.py"
    words = [sys.executable, str(script), case, "--budget", "5m"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_layers_alone_add_up_to_what_they_do_together(
    uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the search rests on: noise powers of single layers sum to that of plain int8."""
    benches: list[Bench] = []
    real = Bench.sweep

    def sweep(self: Bench, *arguments: Any) -> Mapping[str, Any]:
        benches.append(self)
        found = real(self, *arguments)
        alone = np.array(list(found.values())).sum(axis=0)
        together = np.array(self.measure(frozenset()))
        assert 0.5 < float(alone[0] / together[0]) < 2, (alone, together)  # within 3 dB
        return found

    monkeypatch.setattr(Bench, "sweep", sweep)
    compiled(uneven)
    assert len(benches) == 1


def test_a_short_budget_measures_fewer_layers() -> None:
    """The sweep ends at its share of the budget; it raises nothing."""
    bench: Any = Bench.__new__(Bench)
    now = [0.0]
    bench.clock, bench.calls = Clock(10.0, lambda: now[0]), [{}] * 16
    bench.program = lambda kept: None
    asked: list[int] = []

    def of(program: None, count: int) -> tuple[float]:
        asked.append(count)
        now[0] += 0.1 * count
        return (1.0,)

    bench._of = of
    found = bench.sweep([f"n{i}" for i in range(12)], lambda done, total: None)
    assert asked == [16, *[3] * 11] and len(found) == 12  # 1.6 s, then 5 s shared by 11
    now[0] = 0.0
    asked.clear()
    found = bench.sweep([f"n{i}" for i in range(100)], lambda done, total: None)
    assert 30 < len(found) < 40 and set(asked[1:]) == {1}


def test_times_are_read() -> None:
    assert [seconds(t) for t in ("30s", "5m", "1h", "90", "1.5m")] == [30, 300, 3600, 90, 90]
    for text in ("", "5 minutes", "m", "-1s", "0", "infm", "nan"):
        with pytest.raises(UsageError, match="is no time"):
            seconds(text)


def test_what_cannot_be_searched_is_refused(uneven: Path) -> None:
    with pytest.raises(UsageError, match="--budget is for --precision auto"):
        compiled(uneven, precision="int8", budget=5.0)
    with pytest.raises(UsageError, match="'auto' is not available: tpu has float"):
        compiled(uneven, "tpu")
    with pytest.raises(UsageError, match="a search needs some time"):
        compiled(uneven, budget=0.0)
