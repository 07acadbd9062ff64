"""What was compiled is taken again where nothing has changed, and only there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npuc import pipeline
from npuc.cache import whole
from npuc.cli import main
from npuc.gate import machine
from npuc.gate.cache import ARTIFACT, Cache
from npuc.policy import Policy
from npuc.progress import Silent
from npuc.report import Compiled, Report

SLOW = Path(__file__).with_name("slow_compile.py")


class Bench:
    """Compiles through a cache, with a compiler that writes down what it was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.calls = folder, 0
        self.store = Cache(folder / "cache")
        self.during: Callable[[], None] = lambda: None
        monkeypatch.setattr(pipeline, "compile", self._compile)
        self.model = folder / "net.onnx"
        self.model.write_bytes(b"first model" * 100)
        self.request = whole.Request(
            str(self.model), ("cpu",), folder / "out.npuc", Policy(), Silent(), {}, {}
        )

    def _compile(
        self, source: str, *, target: Sequence[str], output: Path, **options: Any
    ) -> list[Compiled]:
        self.calls += 1
        content = source.encode() if source.startswith("zoo:") else Path(source).read_bytes()
        self.during()
        found = []
        for name in target:
            path = output / f"{name}.npuc" if output.is_dir() else output
            path.write_bytes(b"%s for %s" % (content, name.encode()))
            found.append(Compiled(path, Report(source, name, "float", "device", "", "", ())))
        return found

    def run(self, request: whole.Request | None = None) -> tuple[int, bytes]:
        """Compile; returns how often the compiler ran, and the (last) artifact."""
        before = self.calls
        done = whole.compile(request or self.request, self.store)
        assert [d.report.target for d in done] == list((request or self.request).targets)
        return self.calls - before, Path(done[-1].artifact_path).read_bytes()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_what_did_not_change_is_not_compiled_again(bench: Bench) -> None:
    first, second = bench.run(), bench.run()
    assert (first[0], second[0]) == (1, 0)
    assert first[1] == second[1] == b"first model" * 100 + b" for cpu"
    elsewhere = replace(bench.request, output=bench.folder / "other.npuc")
    assert bench.run(elsewhere) == (0, first[1])


def test_another_model_of_the_same_name_size_and_time_is_another(bench: Bench) -> None:
    bench.run()
    stat = bench.model.stat()
    bench.model.write_bytes(b"other model" * 100)
    os.utime(bench.model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert bench.run() == (1, b"other model" * 100 + b" for cpu")
    folder = bench.folder / "elsewhere"
    folder.mkdir()
    (folder / "net.onnx").write_bytes(b"third model")
    assert bench.run(replace(bench.request, source=str(folder / "net.onnx")))[0] == 1
    bench.model.write_bytes(b"first model" * 100)
    assert bench.run() == (0, b"first model" * 100 + b" for cpu")


def test_the_same_content_by_another_name_says_its_name(bench: Bench) -> None:
    bench.run()
    copy = bench.folder / "copy.onnx"
    copy.write_bytes(bench.model.read_bytes())
    request = replace(bench.request, source=str(copy))
    assert bench.run(request)[0] == 1
    (again,) = whole.compile(request, bench.store)
    assert again.report.model == str(copy)


def test_models_of_the_zoo_are_told_apart(bench: Bench) -> None:
    for name in ("zoo:resnet18", "zoo:resnet50", "zoo:resnet18"):
        count, content = bench.run(replace(bench.request, source=name))
        assert content == f"{name} for cpu".encode()
    assert (count, bench.calls) == (0, 2)


CHANGES: dict[str, dict[str, Any]] = {
    "precision": {"precision": "int8"},
    "dims": {"dims": {"batch": 2}},
    "another size": {"dims": {"batch": 4}},
    "skip": {"skip": ("conv",)},
    "cpu": {"cpu": "x86-64-v3"},
    "opset": {"opset": 21},
    "equalize": {"equalize": False},
    "strict": {"strict": True},
    "layers": {"layers": "failed"},
    "vendor": {"vendor": "skip"},
    "fallback": {"fallback": "ort"},
}


def test_every_option_counts(bench: Bench) -> None:
    for options in CHANGES.values():
        assert bench.run(replace(bench.request, options=options))[0] == 1
    assert bench.run(replace(bench.request, policy=Policy(sqnr_db=30)))[0] == 1
    for options in CHANGES.values():
        assert bench.run(replace(bench.request, options=options))[0] == 0


@pytest.mark.parametrize("option", ["samples", "calibration", "reference"])
def test_what_other_files_hold_counts(bench: Bench, option: str) -> None:
    path = bench.folder / "data.npz"
    np.savez(path, x=np.zeros(3, np.float32))
    request = replace(bench.request, options={option: path})
    assert [bench.run(request)[0] for _ in range(2)] == [1, 0]
    np.savez(path, x=np.ones(3, np.float32))
    assert bench.run(request)[0] == 1


def test_code_versions_and_the_cpu_count(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    here = machine.here(bench.store.digests())
    for other in (
        replace(here, npuc="x"), replace(here, cpu="x"), replace(here, python="x"),
        replace(here, versions={**here.versions, "torch": "0"}),
        replace(here, variables={"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    ):  # fmt: skip
        monkeypatch.setattr(machine, "here", lambda _, found=other: found)
        assert bench.run()[0] == 1
    monkeypatch.setattr(machine, "now", lambda _: "code that was changed")
    assert bench.run()[0] == 1


def test_what_changes_while_it_is_compiled_is_not_kept(bench: Bench) -> None:
    def change() -> None:
        bench.model.write_text("changed meanwhile")

    bench.during = change
    assert bench.run()[0] == 1
    bench.model.write_bytes(b"first model" * 100)
    bench.during = lambda: None
    assert bench.run()[0] == 1


def test_each_target_is_kept_by_itself(bench: Bench) -> None:
    bench.run(replace(bench.request, output=bench.folder))
    both = replace(bench.request, targets=("cpu", "atom"), output=bench.folder)
    assert bench.run(both) == (1, b"first model" * 100 + b" for atom")
    assert bench.run(both)[0] == 0


def test_what_is_damaged_is_made_again(bench: Bench) -> None:
    bench.run()
    (entry,) = bench.store.entries.iterdir()
    with (entry / ARTIFACT).open("r+b") as file:
        file.write(b"X")
    assert bench.run() == (1, b"first model" * 100 + b" for cpu")
    assert bench.run()[0] == 0


def test_the_store_is_bounded(bench: Bench) -> None:
    bench.store.limit = 4000
    for index in range(5):
        bench.model.write_bytes(b"%d" % index * 1000)
        bench.run()
    assert 1 <= len(list(bench.store.entries.iterdir())) <= 2
    assert bench.run()[0] == 0


def test_options_that_write_files_write_them_each_time(bench: Bench) -> None:
    request = replace(bench.request, options={"dump": bench.folder / "dump"})
    assert [bench.run(request)[0] for _ in range(2)] == [1, 1]


def test_nothing_is_kept_where_that_is_asked(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPUC_CACHE", str(bench.store.folder))
    words = ["compile", str(bench.model), "--target", "cpu", "-o", str(bench.folder / "o.npuc")]
    for more, calls in ((["--no-cache"], 1), ([], 2), ([], 2), (["--no-cache"], 3)):
        main([*words, "--quiet", *more])
        assert bench.calls == calls
    assert "o.npuc" in capsys.readouterr().out


def _slow(folder: Path, output: str, seconds: float) -> "subprocess.Popen[str]":
    words = [folder / "net", folder / output, folder / "cache", folder / "log", seconds]
    return subprocess.Popen(
        [sys.executable, str(SLOW), *map(str, words)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_compile_once(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("one net")
    both = [_slow(tmp_path, name, 2) for name in ("a.npuc", "b.npuc")]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said == ["one net\n"] * 2
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_process_that_is_killed_leaves_nothing_to_be_taken(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("one net")
    killed = _slow(tmp_path, "a.npuc", 600)
    deadline = time.monotonic() + 120
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert not (tmp_path / "a.npuc").exists()
    after = _slow(tmp_path, "a.npuc", 0)
    assert after.communicate(timeout=120)[0] == "one net\n"
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    (entry,) = (tmp_path / "cache" / "entries").iterdir()  # and no half of one
    assert not entry.name.startswith(".")
