"""`npuc doctor` tries what npuc needs, and says the command for what is missing."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from npuc import doctor, plugins
from npuc.cli import main
from npuc.doctor import Check, examine
from npuc.errors import ToolchainError, UsageError
from npuc.progress import Silent
from npuc.targets.base import Toolchain
from npuc.targets.tvm import linker


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try one quick import; the slow ones differ only in their names."""
    monkeypatch.setattr(doctor, "_IMPORTS", {"safetensors": "safetensors"})


def found() -> dict[str, Check]:
    return {check.name: check for check in examine(Silent())}


def test_this_machine_has_what_npuc_requires() -> None:
    checks = found()
    assert [c for c in checks.values() if c.status == "missing"] == []
    assert {"python", "torch", "apache-tvm-ffi", "onnxsim", "linker", "target cpu"} <= set(checks)
    assert checks["linker"].found


def test_missing_and_wrong_versions_come_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = ["click>=99", "not-on-this-machine~=1.0", 'pytest>=99; extra == "test"', "numpy>=2"]
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    checks = found()
    assert checks["click"].fault == "npuc needs click>=99"
    assert checks["click"].remedy == f'{sys.executable} -m pip install "click>=99"'
    assert checks["not-on-this-machine"].fault == "not installed"
    assert checks["numpy"].status == "ok" and "pytest" not in checks
    assert main(["doctor", "-q"]) == 5


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('undefined symbol: TVMFFIAnyHash')", "undefined symbol"),
        ("import os; os.kill(os.getpid(), 11)", "exit code -11"),
        ("import time; time.sleep(60)", "takes more than 1 s"),
    ],
)
def test_a_library_that_breaks_on_import_is_found(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_IMPORTS", {"click": "breaks"})
    monkeypatch.setattr(doctor, "IMPORT_TIMEOUT", 1.0)
    check = found()["click"]
    assert check.status == "missing" and reason in check.fault
    assert "pip install" in check.remedy


def test_a_missing_linker_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise ToolchainError("no linker", hint="pip install ziglang")

    monkeypatch.setattr(linker, "find_linker", none)
    check = found()["linker"]
    assert (check.status, check.remedy) == ("missing", "pip install ziglang")


def test_a_vendors_sdk_is_required_only_for_the_target_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = Toolchain("sdk", missing="no module 'sdk'", remedy="pip install sdk")
    infos = (plugins.TargetInfo("atom", "A chip", "npuc", ("int8",), tool),)
    monkeypatch.setattr(plugins, "describe", lambda wanted=(): infos)
    assert main(["doctor", "-q"]) == 0
    assert "absent" in capsys.readouterr().out
    assert main(["doctor", "-q", "--target", "atom", "--json"]) == 5
    assert '"status": "missing"' in capsys.readouterr().out


def test_an_unknown_target_fails_before_the_slow_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_libraries", lambda: pytest.fail("too late"))
    with pytest.raises(UsageError, match="unknown target"):
        examine(Silent(), ["nope"])
