"""Running a vendor's tool: whatever it does, one clear error and nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from npuc.errors import OutputError, ToolchainError
from npuc.targets import vendor


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep logs in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def python(code: str) -> list[str]:
    """Return a command that runs this code."""
    return [sys.executable, "-c", textwrap.dedent(code)]


def alive(pid: int) -> bool:
    """Whether a process still runs; one that was killed but not reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds, which is generous for a kill."""
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.1)
    return False


def test_success_returns_the_output_and_keeps_no_log(tmp_path: Path) -> None:
    """Both streams come back in one piece, whatever they say about errors."""
    result = tmp_path / "out.bin"
    code = f"""
        import sys
        print("E noise", file=sys.stderr)
        print("done")
        open({str(result)!r}, "w").write("x")
    """
    output = vendor.run("tool", python(code), produces=result, timeout=60)
    assert output == b"E noise\ndone\n"
    assert list(vendor.logs().iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('bad graph')", "exit status 1|bad graph"),
        ("import sys; sys.exit('no library')", "exit status 1|no library"),
        ("raise SystemExit(0)", "without writing out.bin"),
        ("import os; os._exit(7)", "exit status 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9 (SIGKILL)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11 (SIGSEGV)"),
        ("import os; os.abort()", "signal 6 (SIGABRT)"),
    ],
)
def test_failures_name_themselves_and_their_log(tmp_path: Path, code: str, words: str) -> None:
    """The error says how the tool ended and its last words; the log stays."""
    with pytest.raises(ToolchainError) as caught:
        vendor.run("tool", python(code), produces=tmp_path / "out.bin", timeout=60)
    for word in words.split("|"):
        assert word in caught.value.message
    (log,) = vendor.logs().iterdir()
    assert str(log) in caught.value.hint


def test_an_empty_result_is_a_failure(tmp_path: Path) -> None:
    """A file of no bytes is not a compiled model."""
    result = tmp_path / "out.bin"
    with pytest.raises(ToolchainError, match=r"without writing out\.bin"):
        vendor.run("tool", python(f"open({str(result)!r}, 'w')"), produces=result, timeout=60)


def test_a_tool_that_is_not_there(tmp_path: Path) -> None:
    """The message names the command, not npuc's own machinery."""
    with pytest.raises(ToolchainError, match="cannot start /no/such/tool"):
        vendor.run("tool", ["/no/such/tool"], produces=tmp_path / "x", timeout=60)


def test_a_hang_ends_with_its_whole_process_group(tmp_path: Path) -> None:
    """The limit kills the tool and what it started, and the error gives the limit."""
    pids = tmp_path / "pids"
    code = f"""
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
        print("still working", flush=True)
        time.sleep(600)
    """
    with pytest.raises(ToolchainError, match="no result in 3 s") as caught:
        vendor.run("tool", python(code), produces=tmp_path / "x", timeout=3)
    assert "still working" in caught.value.message
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_what_a_finished_tool_left_running_is_killed(tmp_path: Path) -> None:
    """A compiler's forgotten helper does not stay on the user's machine."""
    pid = tmp_path / "pid"
    code = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(pid)!r}, "w").write(str(child.pid))
    """
    vendor.run("tool", python(code), produces=pid, timeout=60)
    assert gone(int(pid.read_text()))


def test_killing_npuc_kills_the_tool(tmp_path: Path) -> None:
    """SIGKILL gives npuc no chance to clean up; the tool must end all the same."""
    pid = tmp_path / "pid"
    tool = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""
        import sys
        from pathlib import Path
        from npuc.targets import vendor
        vendor.run("tool", [sys.executable, "-c", {tool!r}], produces=Path("x"), timeout=600)
    """
    with subprocess.Popen(python(code)) as npuc:
        for _ in range(300):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.1)
        npuc.send_signal(signal.SIGKILL)
    assert gone(int(pid.read_text()))


def test_home_is_private_and_user_packages_stay_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool can cache what it likes in HOME; pip's user packages are found as before."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYTHONUSERBASE", raising=False)
    result = tmp_path / "out"
    code = f"""
        import os, site, tempfile
        open(os.path.expanduser("~/cache"), "w").write("x")
        seen = [os.environ["HOME"], tempfile.gettempdir(), site.getuserbase()]
        open({str(result)!r}, "w").write("|".join(seen))
    """
    vendor.run("tool", python(code), produces=result, timeout=60)
    home, temporary, user = result.read_text().split("|")
    assert home != str(tmp_path) and not Path(home).exists() and not Path(temporary).exists()
    outside = subprocess.run(
        python("import site; print(site.getuserbase())"), capture_output=True, text=True, check=True
    )
    assert user == outside.stdout.strip()


def test_no_place_for_the_log_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a log nothing is run: a failure could not be explained."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="no log can be kept"):
        vendor.run("tool", python("1"), produces=tmp_path / "x", timeout=60)
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "file")
