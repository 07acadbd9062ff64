"""An output is either the old file or the whole new one, whatever interrupts the writing."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from npuc.atomic import atomic_write
from npuc.errors import OutputError


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes fail as on a full disk (EFBIG in place of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_new_content_appears_whole_with_the_usual_permissions(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with atomic_write(out) as part:
        assert part.parent == tmp_path and not out.exists()
        part.write_bytes(b"new")
    plain = tmp_path / "plain"
    plain.touch()
    assert out.read_bytes() == b"new"
    assert out.stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "plain"]


def test_replacing_keeps_mode_and_symbolic_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    with atomic_write(link) as part:
        part.write_bytes(b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(3)])
def test_any_exception_leaves_the_old_content(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "a"
    out.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_write(out) as part:
        part.write_bytes(b"half")
        raise error
    assert out.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_full_disk_is_an_output_error(tmp_path: Path) -> None:
    out = tmp_path / "a"
    out.write_bytes(b"old")
    with (
        file_size_limit(10_000),
        pytest.raises(OutputError, match=str(out)) as caught,
        atomic_write(out) as part,
    ):
        part.write_bytes(bytes(20_000))
    assert caught.value.exit_code == 8
    assert out.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_reading_a_missing_input_in_the_body_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()


@pytest.mark.parametrize("name", ["missing/a", "folder", "file/a", "n" * 300])
def test_impossible_outputs_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    ran = False
    with pytest.raises(OutputError, match=name.split("/")[0]), atomic_write(tmp_path / name):
        ran = True
    assert not ran


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="Permission denied"), atomic_write(tmp_path / "a"):
            pass
    finally:
        tmp_path.chmod(0o755)


def test_leftovers_of_a_killed_writer_go_and_those_of_a_live_one_stay(tmp_path: Path) -> None:
    out = tmp_path / "a"
    out.write_bytes(b"old")
    code = f"""
        import time
        from npuc.atomic import atomic_write
        with atomic_write({str(out)!r}) as part:
            part.write_bytes(b"half")
            print("writing", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        (part,) = tmp_path.glob(".a.*")
        with atomic_write(out) as mine:
            mine.write_bytes(b"new")
        assert part.exists(), "a live writer lost its file"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert out.read_bytes() == b"new" and part.exists()
    deadline = time.monotonic() + 10
    while part.exists() and time.monotonic() < deadline:
        with atomic_write(out) as mine:
            mine.write_bytes(b"newer")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert out.read_bytes() == b"newer"
