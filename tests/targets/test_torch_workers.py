"""The adapters that run a worker in an environment of npuc's: RNGD, Ethos-U and OpenVINO.

Their vendors' packages are stand-ins here (``fake_*``), which check the calls they get. What the
real ones do with npuc's models is in ``tests/vendor``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from npuc.errors import ArtifactError, ToolchainError
from npuc.profile import Profile
from npuc.targets import vendor
from npuc.targets.arm import ExecuTorch
from npuc.targets.base import Tool
from npuc.targets.furiosa_torch import FuriosaTorch
from npuc.targets.openvino import Converter


@dataclass(frozen=True)
class Row:
    """One adapter and its stand-in; `lost` is the file that is missed where none is written."""

    target: str
    tool: Tool
    variable: str
    fake: str
    binary: str
    magic: bytes
    lost: str


ROWS = (
    Row("ethos-u55", ExecuTorch(), "NPUC_ETHOS_U_PYTHON", "fake_executorch", "model.pte",
        b"\x20\0\0\0ET12", "summary.json"),
    Row("rngd", FuriosaTorch(), "NPUC_FURIOSA_TORCH_PYTHON", "fake_furiosa_torch", "model.edf",
        b"\1\1EDF", "summary.json"),
    Row("openvino", Converter(), "NPUC_OPENVINO_PYTHON", "fake_openvino", "openvino.xml",
        b"<?xml", "openvino.xml"),
)  # fmt: skip


@pytest.fixture(params=ROWS, ids=lambda row: row.target)
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Row:
    """Return one adapter, on a machine that has the commands its compiler calls."""
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    found: Row = request.param
    return found


def test_a_kit_becomes_a_binary(
    row: Row, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """The worker runs in the other Python, in a HOME of its own, and its log is kept."""
    install(row.variable, row.fake, FAKE_MODE="noise")
    built = bench(row.tool, row.target).build()
    assert built.files[row.binary].startswith(row.magic)
    seen = json.loads(built.files[row.binary].removeprefix(row.magic))
    assert seen["home"] not in ("", str(Path.home()))
    assert b"unknown op target" in built.files["compile.log"]
    assert "not run" in built.said or row.tool.evidence == "device"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("import", "libvendor.so: cannot open shared object file"),
        ("exit", "fail to find the compiler library"),
        ("exit0", "without writing {lost}"),
        ("kill", "SIGKILL"),
        ("segv", "SIGSEGV"),
        ("raise", "NotSupportError: no such operator"),
        ("disk", "No space left on device"),
    ],
)
def test_every_failure_is_one_clear_error(
    row: Row, mode: str, words: str, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """The error names the tool, what happened and where the whole log is."""
    install(row.variable, row.fake, FAKE_MODE=mode)
    kit = bench(row.tool, row.target)
    with pytest.raises(ToolchainError) as caught:
        kit.build()
    assert caught.value.message.startswith(f"{row.tool.name} ")
    assert words.format(lost=row.lost) in caught.value.message
    (log,) = vendor.logs().iterdir()
    assert str(log) in caught.value.hint


@pytest.mark.parametrize("mode", ["garbage", "empty", "nothing"])
def test_a_result_that_is_none_is_refused(
    row: Row, mode: str, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """Whatever the vendor's package writes in place of a binary."""
    install(row.variable, row.fake, FAKE_MODE=mode)
    kit = bench(row.tool, row.target)
    (kit.folder / row.binary).write_bytes(row.magic + b"of yesterday")
    with pytest.raises(ToolchainError):
        kit.build()


def test_a_hang_is_ended(
    row: Row, bench: Callable[..., Any], install: Callable[..., None], tmp_path: Path
) -> None:
    """After the limit, one error says so."""
    install(row.variable, row.fake, FAKE_MODE="hang", FAKE_CHILD=str(tmp_path / "pids"))
    kit = bench(row.tool, row.target)
    with pytest.raises(ToolchainError, match="no result in 8 s"):
        kit.build(limit=8)


def test_scripts_and_settings_of_a_stranger_are_not_used(
    row: Row, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """An artifact's own code is replaced before anything runs."""
    install(row.variable, row.fake)
    kit = bench(row.tool, row.target)
    scripts = [path for path in kit.folder.iterdir() if path.suffix == ".py"]
    assert scripts
    for path in scripts:
        path.write_text("raise SystemExit('executed')")
    built = kit.build()
    assert built.files[row.binary].startswith(row.magic)
    assert b"executed" not in built.files["compile.py"]


def test_a_missing_tool_comes_with_the_commands(
    row: Row, bench: Callable[..., Any], install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """The environment, and every program on PATH that is missing beside it."""
    install(row.variable)
    monkeypatch.setattr("shutil.which", lambda name: None)
    profile = Profile.load(row.target)
    found = row.tool.find(profile)
    name = profile.get("compiler.environment")
    assert "not installed" in found.missing
    assert f"npuc toolchain install {name}" in found.remedy
    for command in profile.get("compiler.commands", ()):
        assert f"{command} not on PATH" in found.missing
    for package in profile.get("compiler.debian", ()):
        assert package in found.remedy and "apt-get install" in found.remedy
    kit = bench(row.tool, row.target)
    with pytest.raises(ToolchainError, match="cannot run"):
        kit.build()


@pytest.mark.parametrize("bad", ["/no/such/tool", "false", "'unclosed"])
def test_finding_never_raises(row: Row, bad: str, install: Callable[..., None]) -> None:
    """Whatever the variable holds, one line says what is wrong."""
    install(row.variable, command=bad)
    assert row.variable in row.tool.find(Profile.load(row.target)).missing


@pytest.mark.parametrize("name", ["graph.json", "weights.npz", "request.json"])
def test_a_kit_that_is_not_whole_says_what_is_missing(
    name: str, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    install("NPUC_ETHOS_U_PYTHON")
    kit = bench(ExecuTorch(), "ethos-u55")
    files = {p.name: p.read_bytes() for p in kit.folder.iterdir()}
    assert ExecuTorch().lacks(files) == ""
    del files[name]
    assert name in ExecuTorch().lacks(files)


def test_the_request_of_a_stranger_is_checked(
    bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    install("NPUC_OPENVINO_PYTHON", "fake_openvino")
    kit = bench(Converter(), "openvino")
    (kit.folder / "request.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"request\.json is damaged"):
        kit.build()
