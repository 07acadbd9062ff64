"""Rebuild .typing/npuc, the one real directory in which static tools can read npuc.

setuptools maps compiler/ to npuc and passes/, targets/, models/ to its subpackages. Python
follows that mapping at run time; mypy and pyright cannot, so they read this view of links.
"""

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build() -> Path:
    """Write the view from pyproject.toml's package-dir and return its path."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    mapping: dict[str, str] = project["tool"]["setuptools"]["package-dir"]
    view = ROOT / ".typing"
    shutil.rmtree(view, ignore_errors=True)
    for package, source in mapping.items():
        place = view.joinpath(*package.split("."))
        if package == "npuc":
            place.mkdir(parents=True)
            for module in (ROOT / source).iterdir():
                (place / module.name).symlink_to(module)
        else:
            place.symlink_to(ROOT / source)
    return view


if __name__ == "__main__":
    print(build())
