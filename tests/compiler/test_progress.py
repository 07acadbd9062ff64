"""Progress is a bar on a terminal and lines elsewhere; text is the same everywhere."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from npuc import outputs, text
from npuc.errors import OutputError, UsageError
from npuc.progress import Bar, Lines, Progress, Silent, reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress) -> None:
    progress.stage("export [bold]")
    progress.advance(0, 0)
    progress.stage("calibrate")
    progress.advance(1, 2)
    progress.advance(2, 2)
    progress.close()


def test_pipes_get_one_line_per_stage() -> None:
    stream = io.StringIO()
    work(reporter(stream=stream))
    assert stream.getvalue() == "npuc: export [bold]\nnpuc: calibrate\n"


def test_terminals_get_a_bar_that_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    shown = reporter(stream=stream)
    assert isinstance(shown, Bar)
    work(shown)
    assert "calibrate" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # the line is erased


def test_terminals_that_cannot_move_the_cursor_get_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(reporter(stream=Terminal()), Lines)


def test_quiet_is_silent_even_on_a_terminal() -> None:
    stream = Terminal()
    shown = reporter(quiet=True, stream=stream)
    work(shown)
    assert isinstance(shown, Silent) and stream.getvalue() == ""
    assert isinstance(reporter(stream=io.StringIO()), Lines)


def test_rich_is_not_loaded_for_a_pipe() -> None:
    code = "import sys; from npuc.progress import reporter; reporter().stage('x'); "
    code += "sys.exit('rich' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "npuc: x\n")


def test_columns_are_aligned_and_not_padded_at_the_end() -> None:
    rows = [["a", "bb", "c"], ["dddd", "e"], ["", "", "long text"]]
    assert text.columns(rows) == "a     bb  c\ndddd  e\n          long text"
    assert text.columns([]) == "" and text.section("Empty", []) == ""
    assert text.section("T", [[1, 2]]) == "T\n  1  2\n"


@pytest.mark.parametrize(
    ("count", "spelled"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB")),
        *((999_960, "1.0 MB"), (10**15, "1000.0 TB")),
    ],
)
def test_sizes(count: int, spelled: str) -> None:
    assert text.size(count) == spelled


def test_counts_are_largest_first() -> None:
    assert text.counts({"Add": 1, "Conv": 3, "Abs": 1}) == "Conv 3, Abs 1, Add 1"


def test_artifacts_are_named_after_model_and_target(tmp_path: Path) -> None:
    paths = outputs.artifact_paths
    assert paths("a/b/net.v2.pt", ["cpu", "atom"], None) == (
        Path("net.v2.cpu.npuc"),
        Path("net.v2.atom.npuc"),
    )
    assert paths("zoo:digits-vit", ["cpu"], None) == (Path("digits-vit.cpu.npuc"),)
    assert paths("m.pt", ["cpu"], tmp_path) == (tmp_path / "m.cpu.npuc",)
    assert paths("m.pt", ["cpu"], tmp_path / "x") == (tmp_path / "x",)
    with pytest.raises(UsageError, match="one file, but there are 2 targets"):
        paths("m.pt", ["cpu", "atom"], tmp_path / "x")


def test_a_probe_leaves_nothing_and_keeps_what_is_there(tmp_path: Path) -> None:
    outputs.probe(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").write_text("old")
    outputs.probe(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"
    with pytest.raises(OutputError):
        outputs.probe(tmp_path / "none" / "x")
