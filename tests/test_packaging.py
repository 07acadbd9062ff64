"""What is installed: all of npuc, nothing else, and the data it reads at run time."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = SETUPTOOLS["package-dir"]


def test_the_package_list_names_every_package() -> None:
    """The list is written by hand, so a new package can be forgotten: it would not be shipped."""
    on_disk = {
        ".".join((package, *marker.parent.relative_to(ROOT / folder).parts))
        for package, folder in FOLDERS.items()
        for marker in (ROOT / folder).rglob("__init__.py")
    }
    assert on_disk == set(SETUPTOOLS["packages"])


def test_every_folder_with_modules_is_a_package() -> None:
    bare = {
        module.parent.relative_to(ROOT)
        for folder in FOLDERS.values()
        for module in (ROOT / folder).rglob("*.py")
        if not (module.parent / "__init__.py").exists()
    }
    assert bare == set()


def test_no_folder_of_ours_takes_a_users_name(tmp_path: Path) -> None:
    """Users have folders called models or passes; only npuc may be importable, from anywhere."""
    code = f"""
import importlib.util
import npuc
print([name for name in {sorted(FOLDERS.values())} if importlib.util.find_spec(name)])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build a wheel from a copy of the checkout, with the build tools that are here."""
    pytest.importorskip("setuptools", minversion="77")
    place = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "source" / name).write_bytes((ROOT / name).read_bytes())
    code = "import setuptools.build_meta as b; b.build_wheel('..')"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=place / "source", check=True, capture_output=True,
    )  # fmt: skip
    (built,) = place.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_all_of_npuc_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {"npuc", "npuc-0.1.0.dist-info"}
    ours = {
        "/".join((*package.split("."), *path.relative_to(ROOT / folder).parts))
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".toml", ".safetensors") and "__pycache__" not in path.parts
    }
    assert ours <= names
    assert any(name.startswith("npuc/targets/profiles/") for name in names)
    assert any(name.startswith("npuc/models/weights/") for name in names)
    assert "npuc/py.typed" in names
    assert "npuc-0.1.0.dist-info/licenses/LICENSE" in names


def test_the_wheel_declares_the_command_and_the_targets(wheel: zipfile.ZipFile) -> None:
    points = wheel.read("npuc-0.1.0.dist-info/entry_points.txt").decode()
    assert "npuc = npuc.cli:program" in points
    assert "cpu = npuc.targets.cpu:Cpu" in points
    assert "atom = npuc.targets.rebellions:atom" in points
