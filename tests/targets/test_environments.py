"""Environments of vendors' compilers: where they are, and what counts as installed."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from npuc.profile import Profile
from npuc.targets import environments
from npuc.targets.environments import MARKER, Environment
from npuc.targets.foreign import Package

PACKAGES = (Package("furiosa-torch", "furiosa.torch"),)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a folder of its own, and the commands that compilers call."""
    monkeypatch.setenv("NPUC_TOOLCHAINS", str(tmp_path / "toolchains"))
    monkeypatch.delenv("NPUC_FURIOSA_TORCH_PYTHON", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")


def rngd() -> Environment:
    found = environments.of(Profile.load("rngd"))
    assert found is not None
    return found


def installed(**changes: object) -> Path:
    """Make what an installation leaves."""
    path = rngd().path
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").symlink_to(sys.executable)
    about = {"requirements": list(rngd().requirements), "packages": {"furiosa-torch": "2026.4.0"}}
    (path / MARKER).write_text(json.dumps(about | changes))
    return path


def test_the_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments.folder() == tmp_path / "toolchains"
    monkeypatch.delenv("NPUC_TOOLCHAINS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert environments.folder() == Path("/x/npuc/toolchains")


def test_a_profile_describes_its_environment() -> None:
    environment = rngd()
    assert environment.variable == "NPUC_FURIOSA_TORCH_PYTHON"
    assert environment.requirements == ("furiosa-torch==2026.4.0",)
    assert environments.of(Profile.load("cpu")) is None


def test_what_is_installed_is_found_without_running_it() -> None:
    path = installed()
    found = environments.find("furiosa-torch", Profile.load("rngd"), PACKAGES)
    assert found.toolchain.version == "2026.4.0" and not found.toolchain.missing
    assert found.command == (str(path / "bin" / "python"),)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: (path / MARKER).unlink(),
        lambda path: (path / MARKER).write_text("{"),
        lambda path: (path / MARKER).write_text("[]"),
        lambda path: (path / MARKER).write_text('{"requirements": []}'),
        lambda path: (path / "bin" / "python").unlink(),
    ],
)
def test_half_an_installation_does_not_count(spoil: object) -> None:
    spoil(installed())  # type: ignore[operator]
    assert rngd().installed() is None
    found = environments.find("furiosa-torch", Profile.load("rngd"), PACKAGES)
    assert found.toolchain.remedy == "npuc toolchain install furiosa-torch"


def test_other_pins_do_not_count() -> None:
    installed(requirements=["furiosa-torch==2025.1.0"])
    assert rngd().installed() is None


def test_the_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    installed()
    monkeypatch.setenv("NPUC_FURIOSA_TORCH_PYTHON", f"{sys.executable} -I -S")
    found = environments.find("furiosa-torch", Profile.load("rngd"), PACKAGES)
    assert "not installed in NPUC_FURIOSA_TORCH_PYTHON" in found.toolchain.missing


def test_commands_that_are_missing_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    installed()
    found = environments.find("furiosa-torch", Profile.load("rngd"), PACKAGES)
    assert found.toolchain.missing == "aarch64-linux-gnu-gcc not on PATH"
    assert found.toolchain.remedy == "apt-get install gcc-aarch64-linux-gnu"
    assert found.command == ()
