"""Find and call the score functions that users write, and say what is wrong with them.

::

    def accuracy(outputs, labels):          # one call: {name: array}, and the labels for it
        return outputs["logits"].argmax(-1) == labels        # a score for each of its samples

    def mean_iou(outputs, labels):          # corpus = true: lists of all calls
        ...
        return 0.71                                          # one score for all of them

Larger is better. `labels` is what the .npz of labels holds for the samples of that call: an array,
or a dict of arrays where the file holds several; None without a file.
"""

import ast
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from npuc.errors import UsageError
from npuc.facts.schema import near

_INSTALLED = frozenset({"npuc", "numpy", "onnx", "onnxruntime", "torch", "tvm", "__main__"})
"""What cannot be loaded twice into one process, whatever folders are called."""


def locate(function: str, folder: Path) -> Path:
    """Return the file of ``module:function`` without running it.

    Raises `UsageError` where the module is not in `folder`, or does not define the function.
    """
    module, _, name = function.partition(":")
    if not name.isidentifier() or not all(p.isidentifier() for p in module.split(".")):
        raise UsageError(f"is {function!r}, not module:function")
    base = folder.joinpath(*module.split("."))
    places = (base.with_name(f"{base.name}.py"), base / "__init__.py")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        others = [p.stem for p in folder.glob("*.py")]
        raise UsageError(f"there is no {places[0]}{near(module, others)}")
    try:
        tree = ast.parse(found.read_bytes(), str(found))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{found} is not Python: {error}") from error
    names, open_ended = _defined(tree)
    if name not in names and not open_ended:
        raise UsageError(f"{found} defines no {name}{near(name, names)}")
    return found


def _defined(tree: ast.Module) -> tuple[set[str], bool]:
    """Return the names that a module's text defines anywhere, and whether there may be others."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    return names, "*" in names or "__getattr__" in names


@contextlib.contextmanager
def loaded(function: str, folder: Path) -> Iterator[Callable[..., Any]]:
    """Import ``module:function`` from `folder`, and let it import more while it is in use.

    Modules of the same names that others have loaded from elsewhere are put aside meanwhile, and
    what was loaded here is forgotten: the next use reads the files again. Raises `UsageError` with
    what went wrong.
    """
    module, _, name = function.partition(":")
    path = locate(function, folder)
    with _importing(folder.resolve()):
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # the user's code runs here
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"{function} cannot be imported from {path}: {what}") from error
        if not callable(found):
            raise UsageError(f"{function} in {path} is {type(found).__name__}, not a function")
        yield found


@contextlib.contextmanager
def _importing(folder: Path) -> Iterator[None]:
    own = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/*.py")}

    def known() -> dict[str, ModuleType]:
        """Return loaded modules of the folder's names, those of installed packages left out."""
        return {
            name: module
            for name, module in sys.modules.items()
            if name.partition(".")[0] in own and name.partition(".")[0] not in _INSTALLED
        }

    before = known()
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have changed it
            sys.path.remove(str(folder))
        for name in known():
            del sys.modules[name]
        sys.modules.update(before)
