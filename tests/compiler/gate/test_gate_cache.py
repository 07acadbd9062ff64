"""The cache: whole or not at all, bounded, for many processes, and never silently wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from npuc.errors import OutputError, UsageError
from npuc.gate import cache as caches
from npuc.gate import locks
from npuc.gate.cache import ARTIFACT, USED, VERDICT, Cache, Damaged
from npuc.gate.outcome import Outcome

KEYS = ["a" * 64, "b" * 64, "c" * 64]


def silent(key: str) -> None:
    """Nobody waits in these tests."""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def put(cache: Cache, key: str, outcome: Outcome, used: int | None = None) -> Path:
    """Keep a copy of an outcome; `used` is when, in seconds."""
    assert outcome.report is not None and outcome.artifact is not None
    copy = cache.folder / "copy.npuc"
    shutil.copy(outcome.artifact, copy)
    place = cache.put(key, outcome.report, copy).artifact.parent
    if used is not None:
        os.utime(place / USED, (used, used))
    return place


def test_what_was_put_comes_back_equal(cache: Cache, compiled: Outcome) -> None:
    assert cache.get(KEYS[0]) is None
    put(cache, KEYS[0], compiled)
    kept = cache.get(KEYS[0])
    assert kept is not None and compiled.artifact is not None
    assert kept.report == compiled.report
    assert kept.artifact.read_bytes() == compiled.artifact.read_bytes()
    assert cache.get(KEYS[1]) is None
    assert sorted(path.name for path in cache.entries.iterdir()) == [KEYS[0]]


@pytest.mark.parametrize("name", [ARTIFACT, VERDICT])
@pytest.mark.parametrize("change", ["flip", "cut", "empty", "remove"])
def test_any_damage_is_found(cache: Cache, compiled: Outcome, name: str, change: str) -> None:
    path = put(cache, KEYS[0], compiled) / name
    data = path.read_bytes()
    if change == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": data[:middle], "empty": b""}[change])
    with pytest.raises(Damaged):
        cache.get(KEYS[0])


def test_an_entry_under_another_key_is_damage(cache: Cache, compiled: Outcome) -> None:
    put(cache, KEYS[0], compiled).rename(cache.entries / KEYS[1])
    with pytest.raises(Damaged):
        cache.get(KEYS[1])


def test_a_damaged_entry_is_replaced(cache: Cache, compiled: Outcome) -> None:
    (put(cache, KEYS[0], compiled) / VERDICT).write_text("{}")
    put(cache, KEYS[0], compiled)
    assert cache.get(KEYS[0]) is not None
    assert [p.name for p in cache.entries.iterdir()] == [KEYS[0]]


def test_what_was_used_longest_ago_goes_first(cache: Cache, compiled: Outcome) -> None:
    places = [put(cache, key, compiled, used) for key, used in zip(KEYS, (2, 1, 3), strict=True)]
    size = sum(file.stat().st_size for file in places[0].iterdir())
    cache.limit = 2 * size + 100
    cache.trim()
    assert [place.exists() for place in places] == [True, False, True]
    cache.get(KEYS[0])  # used now
    cache.limit = size + 100
    cache.trim()
    assert [place.exists() for place in places] == [True, False, False]
    cache.limit = 0
    cache.trim(keep=[KEYS[0]])
    assert places[0].exists(), "what this run uses stays, whatever the limit"
    cache.trim()
    assert list(cache.entries.iterdir()) == []


def test_what_others_work_on_is_not_removed(cache: Cache, compiled: Outcome) -> None:
    place = put(cache, KEYS[0], compiled, 1)
    cache.limit = 0
    with cache.locked([KEYS[0]], silent):
        cache.trim()
    assert place.exists()
    assert list(cache.locks.iterdir()) == [], "locks leave nothing behind"


def test_what_killed_processes_left_is_removed(cache: Cache) -> None:
    left = cache.entries / f".part-{KEYS[0]}-1234"
    left.mkdir()
    other = cache.entries / f".part-{KEYS[1]}-1234"
    other.mkdir()
    (cache.entries / ".trash-12").mkdir()
    with cache.locked([KEYS[0]], silent):
        assert not left.exists() and other.exists()
    with cache.locked([KEYS[1]], silent), cache.workplace(KEYS[1]) as place:
        assert not other.exists()
        cache.trim()
        assert place.exists(), "somebody is at work there"
    (cache.entries / f".part-{KEYS[2]}-1234").mkdir()
    cache.trim()
    assert list(cache.entries.iterdir()) == []


def test_a_lock_is_held_by_one_and_its_file_may_go_meanwhile(tmp_path: Path) -> None:
    with locks.held(tmp_path, ["k"], silent):
        with locks.tried(tmp_path, "k") as free:
            assert not free
        (tmp_path / "k").unlink()
        with locks.tried(tmp_path, "k") as free:
            assert free, "another file of that name is another lock"
    with locks.tried(tmp_path, "k") as free:
        assert free
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NPUC_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot write to the cache") as caught:
        Cache.own()
    assert "NPUC_CACHE" in caught.value.hint and "--no-cache" in caught.value.hint


@pytest.mark.parametrize(
    "text, size", [("1000", 1000), ("2G", 2 << 30), ("1.5 MiB", 3 << 19), ("3kB", 3 << 10)]
)
def test_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, size: int) -> None:
    monkeypatch.setenv("NPUC_CACHE_SIZE", text)
    assert Cache(tmp_path).limit == size
    monkeypatch.setenv("NPUC_CACHE_SIZE", f"{text} apples")
    with pytest.raises(UsageError, match="is no size"):
        Cache(tmp_path)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NPUC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert Cache.own().folder == tmp_path / "x" / "npuc" / "gate"
    monkeypatch.setenv("NPUC_CACHE", str(tmp_path / "y"))
    assert Cache.own().folder == tmp_path / "y"
    assert Cache(tmp_path / "z").limit == caches.SIZE


@pytest.fixture
def command(gated: tuple[Path, Cache], compiled: Outcome, tmp_path: Path) -> list[str]:
    """The command of a stand-in gate for one pair; its last word is how long a compile takes."""
    parity = tmp_path / "parity.toml"
    shutil.copy(gated[0].parent / "model.pt", tmp_path)
    text = '[models.net]\nfile = "model.pt"\ntargets = ["atom"]\n'
    parity.write_text(f"version = 1\n{text}")
    assert compiled.artifact is not None
    return [
        sys.executable, str(Path(__file__).with_name("stand_in.py")), str(parity),
        str(tmp_path / "cache"), str(compiled.artifact),
        str(compiled.artifact.with_name(VERDICT)), str(tmp_path / "log"),
    ]  # fmt: skip


def started(command: Sequence[str], seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*command, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answers(process: "subprocess.Popen[str]") -> list[str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines()


def test_of_two_processes_one_compiles_and_the_other_waits(
    command: list[str], tmp_path: Path
) -> None:
    both = [started(command, 1.0) for _ in range(2)]
    found = sorted(line for process in both for line in answers(process))
    assert found == ["passed", "passed cached"]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert list((tmp_path / "cache" / "locks").iterdir()) == []


def test_a_process_killed_in_the_middle_leaves_nothing_that_counts(
    command: list[str], tmp_path: Path
) -> None:
    process = started(command, 60.0)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("entries/.part-*/half")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    entries = tmp_path / "cache" / "entries"
    assert [path.name[:6] for path in entries.iterdir()] == [".part-"]
    assert answers(started(command, 0)) == ["passed"]
    (entry,) = entries.iterdir()
    assert {file.name for file in entry.iterdir()} == {ARTIFACT, VERDICT, USED}
    assert answers(started(command, 0)) == ["passed cached"]
