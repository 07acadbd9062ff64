"""`npuc toolchain`: environments are installed whole or not at all, from pins in a profile."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from npuc import plugins, toolchains
from npuc.cli import main
from npuc.errors import ToolchainError, UsageError
from npuc.profile import Profile
from npuc.targets import environments

PROFILE = """
name = "chip"
title = "A chip"
[sources]
us = "this test"
[facts]
"compiler.environment" = {{ value = "chipc", grade = "P", source = "us" }}
"compiler.package" = {{ value = "chipc", grade = "P", source = "us" }}
"compiler.requirements" = {{ value = {pins}, grade = "P", source = "us" }}
"compiler.python" = {{ value = "{python}", grade = "P", source = "us" }}
"compiler.licence" = {{ value = "{licence}", grade = "P", source = "us" }}
"""


class Chip:
    """As much of a target as the toolchains look at."""

    def __init__(self, pins: str = '["chipc==1.0"]', python: str = ">=3.8") -> None:
        text = PROFILE.format(pins=pins, python=python, licence="Apache-2.0")
        lines = [line for line in text.splitlines() if pins or "requirements" not in line]
        self.profile = Profile.parse("\n".join(lines))


def wheel(folder: Path, name: str = "chipc", version: str = "1.0") -> None:
    """Write a package that pip can install without any index."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "VALUE = 1\n")
        meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        file.writestr(f"{about}/METADATA", meta)
        file.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{about}/RECORD", "")


@pytest.fixture
def chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chip:
    """Return the only target of this machine, and an index that has its compiler."""
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels")
    monkeypatch.setenv("NPUC_TOOLCHAINS", str(tmp_path / "toolchains"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.delenv("NPUC_CHIPC_PYTHON", raising=False)
    target = Chip()
    monkeypatch.setattr(plugins, "names", lambda: ("chip",))
    monkeypatch.setattr(plugins, "find", lambda name: target)
    return target


def state() -> str:
    """Return the state of the only environment."""
    listed = json.loads(json.dumps(toolchains.listing()))
    (row,) = listed["toolchains"]
    return str(row["state"])


def test_install_list_use_and_remove(chip: Chip, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toolchain", "list"]) == 0
    text = capsys.readouterr().out
    assert "missing" in text and "→ npuc toolchain install chipc" in text
    assert "Apache-2.0" in text and "for chip" in text

    assert main(["toolchain", "install", "chip"]) == 0  # a target's name is good, too
    captured = capsys.readouterr()
    assert "Installing" in captured.err and "chipc →" in captured.out
    python = environments.python(environments.folder() / "chipc")
    done = subprocess.run([python, "-c", "import chipc; print(chipc.VALUE)"], capture_output=True)
    assert done.stdout.strip() == b"1"
    assert (environments.folder() / "chipc" / "install.log").stat().st_size

    assert main(["toolchain", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["toolchains"]
    assert row["state"] == "installed" and row["packages"]["chipc"] == "1.0" and row["bytes"] > 1000
    before = python.stat().st_mtime_ns
    assert main(["toolchain", "install", "chipc", "-q"]) == 0
    assert python.stat().st_mtime_ns == before, "what is installed is left alone"

    assert main(["toolchain", "remove", "chipc", "-q"]) == 0
    assert not (environments.folder() / "chipc").exists()
    assert main(["toolchain", "remove", "chipc", "-q"]) == 2


def test_a_failed_installation_leaves_nothing_but_its_log(chip: Chip) -> None:
    chip.profile = Chip('["chipc==9.9"]').profile
    with pytest.raises(ToolchainError, match="failed with exit status") as caught:
        toolchains.install("chipc", lambda line: None)
    assert "9.9" in caught.value.message
    log = Path(caught.value.hint.partition(": ")[2])
    assert "9.9" in log.read_text()
    assert not (environments.folder() / "chipc").exists()


def test_new_pins_replace_the_environment(chip: Chip, tmp_path: Path) -> None:
    toolchains.install("chipc", lambda line: None)
    wheel(tmp_path / "wheels", version="1.1")
    chip.profile = Chip('["chipc==1.1"]').profile
    assert state() == "has other pins"
    item = toolchains.install("chipc", lambda line: None)
    assert (item.environment.installed() or {})["chipc"] == "1.1"


def test_a_killed_installation_does_not_count_and_is_replaced(chip: Chip) -> None:
    path = environments.folder() / "chipc"
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").symlink_to(sys.executable)  # all but the marker
    assert state() == "incomplete"
    said: list[str] = []
    item = toolchains.install("chipc", said.append)
    assert item.environment.installed() is not None
    assert any("incomplete" in line for line in said)


def test_what_npuc_may_not_install_is_refused_with_the_licence(
    chip: Chip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real targets
    for name in ("dx-com", "dx-m1", "rknn-toolkit2", "rk3588"):
        with pytest.raises(UsageError, match=r"npuc does not install .* licence") as caught:
            toolchains.install(name, lambda line: pytest.fail("nothing may be done"))
        assert "install it yourself" in caught.value.hint


def test_pins_that_are_absent_are_refused(chip: Chip) -> None:
    chip.profile = Chip("").profile
    with pytest.raises(ToolchainError, match="pins no packages") as caught:
        toolchains.install("chipc", lambda line: None)
    assert "NPUC_CHIPC_PYTHON" in caught.value.hint


def test_an_unknown_name_lists_what_there_is(chip: Chip) -> None:
    with pytest.raises(UsageError, match="knows no toolchain 'nope'") as caught:
        toolchains.install("nope", lambda line: None)
    assert "chipc" in caught.value.hint


def test_no_python_that_fits(chip: Chip, monkeypatch: pytest.MonkeyPatch) -> None:
    chip.profile = Chip(python=">=3.98,<3.99").profile
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainError, match=r"needs Python >=3\.98"):
        toolchains.install("chipc", lambda line: None)


def test_a_folder_that_cannot_be_written(chip: Chip, tmp_path: Path) -> None:
    (tmp_path / "toolchains").write_text("a file")
    assert main(["toolchain", "install", "chipc", "-q"]) == 8


def test_ctrl_c_ends_pip_and_leaves_nothing(chip: Chip, tmp_path: Path) -> None:
    """A package whose build hangs is being installed when the user gives up."""
    source = tmp_path / "hang"
    source.mkdir()
    pid = tmp_path / "pid"
    (source / "backend.py").write_text(
        f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "hang"\nversion = "1"\n'
    )
    code = f"""
import sys
from npuc import installing
from npuc.targets.environments import Environment
environment = Environment("chipc", ({str(source)!r},))
installing.create(environment, sys.executable, print)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not pid.exists() or not pid.read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert not (environments.folder() / "chipc").exists()
    while Path(f"/proc/{pid.read_text()}").exists():
        assert time.monotonic() < deadline, "the build outlived npuc"
        time.sleep(0.1)


def test_the_list_says_what_is_used_instead(
    chip: Chip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NPUC_CHIPC_PYTHON", "/opt/python")
    assert main(["toolchain", "list"]) == 0
    assert "NPUC_CHIPC_PYTHON=/opt/python is used instead" in capsys.readouterr().out
    assert os.environ["NPUC_CHIPC_PYTHON"] == "/opt/python"
