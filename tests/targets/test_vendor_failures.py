"""Every way in which a vendor's tool can be missing or fail, for every adapter that runs one.

The tools are stand-ins that check what they are handed (``fake_*``); a new adapter is a new row.
These are contract tests: they show what npuc does with a tool that behaves as documented or
breaks, not that the vendor's own tool accepts a model.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from npuc.errors import ArtifactError, LoadError, ToolchainError
from npuc.profile import Profile
from npuc.targets import vendor
from npuc.targets.base import Handover, Tool
from npuc.targets.deepx import DxCom
from npuc.targets.furiosa import FuriosaCompiler
from npuc.targets.mobilint import QbCompiler
from npuc.targets.rockchip import Rknn

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One adapter and its stand-in; `command` is the stand-in's, where it is no package."""

    target: str
    tool: Tool
    variable: str
    fake: str
    binary: str
    documented: str
    command: str = ""
    distribution: str = ""
    magic: bytes = b""


FURIOSA = str(HERE / "fake_furiosa" / "furiosa-compiler")
ROWS = (
    Row(
        "warboy", FuriosaCompiler(), "NPUC_WARBOY_COMPILER", "fake_furiosa", "model.enf",
        ">=0.10,<0.11", command=f"{sys.executable} '{FURIOSA}'",
    ),
    Row(
        "dx-m1", DxCom(), "NPUC_DXCOM_PYTHON", "fake_dxcom", "model.dxnn", ">=2.2,<3",
        distribution="dx-com",
    ),
    Row(
        "aries", QbCompiler(), "NPUC_MOBILINT_PYTHON", "fake_qbcompiler", "model.mxq", ">=1,<2",
        distribution="qbcompiler",
    ),
    Row(
        "rk3588", Rknn(), "NPUC_RKNN_PYTHON", "fake_rknn", "model.rknn", ">=2.3,<3",
        distribution="rknn-toolkit2", magic=b"RKNN",
    ),
)  # fmt: skip
FAILURES = {
    "import": "libvendor.so: cannot open shared object file",
    "exit": "fail to find the compiler library",
    "exit0": "without writing {binary}",
    "kill": "SIGKILL",
    "segv": "SIGSEGV",
    "raise": "NotSupportError: no such operator",
    "disk": "No space left on device",
    "nothing": "without writing {binary}",
    "empty": "without writing {binary}",
}


@pytest.fixture(params=ROWS, ids=lambda row: row.target)
def row(request: pytest.FixtureRequest) -> Row:
    """Return one adapter."""
    found: Row = request.param
    return found


@pytest.mark.parametrize("mode", FAILURES)
def test_every_failure_is_one_clear_error(
    row: Row, mode: str, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """The error names the tool, what happened and where the whole log is."""
    install(row.variable, row.fake, command=row.command, FAKE_MODE=mode)
    kit = bench(row.tool, row.target)
    with pytest.raises(ToolchainError) as caught:
        kit.build()
    assert caught.value.message.startswith(f"{row.tool.name} ")
    assert FAILURES[mode].format(binary=row.binary) in caught.value.message
    (log,) = vendor.logs().iterdir()
    assert str(log) in caught.value.hint


def test_garbage_is_refused_where_the_format_is_known(
    row: Row, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """A file that does not begin as documented is no result."""
    if not row.magic:
        pytest.skip("how the vendor's file begins is not public")
    install(row.variable, row.fake, command=row.command, FAKE_MODE="garbage")
    kit = bench(row.tool, row.target)
    with pytest.raises(ToolchainError, match=f"{row.binary} that does not begin with"):
        kit.build()


def test_noise_on_stderr_is_no_failure(
    row: Row, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """Vendors' compilers log errors for models they compile; the log is kept."""
    install(row.variable, row.fake, command=row.command, FAKE_MODE="noise")
    built = bench(row.tool, row.target).build()
    assert built.files[row.binary].startswith(row.magic or b"FAKE")
    assert built.files["compile.log"].count(b"unknown op target") == 1000
    assert row.tool.evidence == "vendor-compiled" and "not run" in built.said


def test_a_hang_is_ended_with_its_children(
    row: Row, bench: Callable[..., Any], install: Callable[..., None], tmp_path: Path
) -> None:
    """After the limit nothing that the tool started is there."""
    pids = tmp_path / "pids"
    install(row.variable, row.fake, command=row.command, FAKE_MODE="hang", FAKE_CHILD=str(pids))
    kit = bench(row.tool, row.target)
    with pytest.raises(ToolchainError, match="no result in 5 s"):
        kit.build(limit=5)
    deadline = time.monotonic() + 10
    running = [Path(f"/proc/{pid}/stat") for pid in pids.read_text().split()]
    while any(p.exists() and ") Z " not in p.read_text() for p in running):
        assert time.monotonic() < deadline, "a process outlived the limit by 10 s"
        time.sleep(0.1)


def test_an_earlier_result_is_not_taken_for_a_new_one(
    row: Row, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """A kit may come with a binary in it; a tool that writes nothing has still failed."""
    install(row.variable, row.fake, command=row.command, FAKE_MODE="nothing")
    kit = bench(row.tool, row.target)
    (kit.folder / row.binary).write_bytes(row.magic + b"of yesterday")
    with pytest.raises(ToolchainError, match=f"without writing {row.binary}"):
        kit.build()


def test_a_missing_tool_is_named_with_its_remedy(
    row: Row, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """Finding never raises; building says what is missing and how to get it."""
    install(row.variable, command="" if not row.command else "/no/such/tool")
    kit = bench(row.tool, row.target)
    found = row.tool.find(kit.profile)
    assert found.missing and row.variable in found.remedy
    with pytest.raises(ToolchainError, match="cannot run") as caught:
        kit.build()
    assert caught.value.hint == found.remedy


@pytest.mark.parametrize("bad", ["/no/such/tool", "false", "echo {}", "'unclosed", " ", "true"])
def test_finding_never_raises(row: Row, bad: str, install: Callable[..., None]) -> None:
    """Whatever the variable holds, one line says what is wrong."""
    install(row.variable, command=bad)
    found = row.tool.find(Profile.load(row.target))
    assert found.missing and found.remedy


@pytest.mark.parametrize("version", ["0.0.1", "99.0"])
def test_another_version_is_refused_with_the_documented_range(
    row: Row, version: str, install: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A release whose interface nobody has read is not driven."""
    install(row.variable, row.fake, command=row.command, FAKE_VERSION=version)
    if row.distribution:
        about = tmp_path / f"{row.distribution.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        text = f"Metadata-Version: 2.1\nName: {row.distribution}\nVersion: {version}\n"
        (about / "METADATA").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    found = row.tool.find(Profile.load(row.target))
    assert f"version {version}" in found.missing and row.documented in found.missing


def test_the_documented_version_is_found(row: Row, install: Callable[..., None]) -> None:
    """The stand-in's version is read without importing it."""
    install(row.variable, row.fake, command=row.command, FAKE_MODE="import")
    found = row.tool.find(Profile.load(row.target))
    assert not found.missing and found.version[0].isdigit()


def test_a_stranger_s_script_is_never_run(
    row: Row, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """An artifact's own script is replaced before anything runs."""
    install(row.variable, row.fake, command=row.command)
    kit = bench(row.tool, row.target)
    (kit.folder / "compile.py").write_text("raise SystemExit('executed')")
    built = kit.build()
    assert b"executed" not in built.files.get("compile.py", b"")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"not json", b'{"calls": 1, "settings": {}}'])
def test_a_damaged_request_is_an_artifact_error(
    row: Row, content: bytes, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """What an artifact asks is data, and checked."""
    install(row.variable, row.fake, command=row.command)
    kit = bench(row.tool, row.target)
    (kit.folder / "request.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        kit.build()


def test_a_damaged_model_is_refused_before_the_tool_runs(
    row: Row, bench: Callable[..., Any], install: Callable[..., None]
) -> None:
    """A stranger's model is checked as any other file."""
    install(row.variable, row.fake, command=row.command, FAKE_MODE="exit")
    kit = bench(row.tool, row.target)
    (kit.folder / "model.onnx").write_bytes(b"\x08\x07 no model")
    with pytest.raises(LoadError):
        kit.build()


def test_the_kit_is_whole_and_says_so(row: Row, job: Callable[..., Handover]) -> None:
    """Every file that is taken away is missed by name; nothing of this machine is in the kit."""
    profile = Profile.load(row.target)
    kit = dict(row.tool.kit(job("image", profile), profile))
    assert kit == row.tool.kit(job("image", profile), profile)
    assert row.tool.lacks(kit) == ""
    assert f"npuc compile MODEL.npuc --target {row.target}" in kit["README.txt"].decode()
    for name in set(kit) - {"README.txt", "compile.py", "config.json"}:
        assert row.tool.lacks({k: v for k, v in kit.items() if k != name}), name
    here = (str(Path.home()), str(HERE), sys.prefix)
    assert [k for k, v in kit.items() if any(place.encode() in v for place in here)] == []


def test_without_samples_the_kit_says_what_it_lacks(row: Row, job: Callable[..., Handover]) -> None:
    """These compilers quantize by themselves: without data there is nothing to do."""
    profile = Profile.load(row.target)
    kit = dict(row.tool.kit(job("image", profile, calls=0), profile))
    assert "calibrat" in row.tool.lacks(kit)
    assert "cannot be compiled as it is" in kit["README.txt"].decode()
