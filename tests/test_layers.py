"""Modules import only from their own layer and those below it, lazily or not.

Imports for type checking alone are free: they name a value's type and move no data.
"""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    "errors archive asked beside grown jsonable kept lean progress quiet rnn_shapes text waits",
    "program profile facts atomic outputs members manifest pickles zips sniff pt2 hazards",
    "metrics runners inputs onnx_file signature partition source_lines nodes statistics",
    "passes features legality ledger remedies",
    "quantization layers capture torchscript weights calls floors held choices tasks policy "
    "answers batches inner summary switches trust record reference samples stored artifact models "
    "estimate",
    "targets",
    "plugins load export",
    "originals pipeline per_target simulate simulation recheck validate report execute look mixed "
    "update pages outlets bench front",
    "gate cache blame training",
    "pytest_plugin",
    "installing toolchains check check_text estimates doctor listing console options verbs cli "
    "__main__",
)
"""Lowest first. A package stands for all its modules; a new module must be placed here."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}


def sources() -> dict[str, str]:
    """Return the text of every module by its dotted name without the leading ``npuc.``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {}
    for package, folder in project["tool"]["setuptools"]["package-dir"].items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [*package.split("."), *path.relative_to(ROOT / folder).with_suffix("").parts]
            name = ".".join(parts[1:]).removesuffix("__init__").rstrip(".")
            if name:  # npuc/__init__ itself names all of the public API, lazily
                found[name] = path.read_text()
    return found


def imports(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names a module imports, functions included, type checking excluded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from imports(other)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from imports(child)


def faults(modules: Mapping[str, str]) -> list[str]:
    """List modules that are in no layer, and imports that go up."""
    listed = []
    for module, text in sorted(modules.items()):
        home = module.split(".")[0]
        if home not in RANK:
            listed.append(f"{module} is in no layer: place it in LAYERS")
            continue
        for name in sorted(set(imports(ast.parse(text)))):
            other = name.removeprefix("npuc.").split(".")[0]
            if name.startswith("npuc.") and RANK.get(other, -1) > RANK[home]:
                listed.append(f"{module} imports {name}, which lies above it")
    return listed


def test_lower_layers_never_import_higher_ones() -> None:
    assert faults(sources()) == []


def test_the_check_finds_what_it_is_for() -> None:
    lazy = "def f():\n    if x:\n        from npuc import pipeline\n"
    typed = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from npuc.load import Loaded\n"
    )
    assert faults({"program": lazy}) == ["program imports npuc.pipeline, which lies above it"]
    assert faults({"passes.fold": "import npuc.targets.cpu"}) != []
    assert faults({"nowhere": ""}) == ["nowhere is in no layer: place it in LAYERS"]
    assert faults({"program": typed, "cli": lazy, "load": "from npuc.errors import X"}) == []
