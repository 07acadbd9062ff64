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
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from npuc.errors import UsageError
from npuc.facts.schema import near


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


def load(function: str, folder: Path) -> Callable[..., Any]:
    """Import ``module:function`` from `folder`; raises `UsageError` with what went wrong."""
    module, _, name = function.partition(":")
    path = locate(function, folder)
    with _importing(folder, module):
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # the user's code runs here
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"{function} cannot be imported from {path}: {what}") from error
    if not callable(found):
        raise UsageError(f"{function} in {path} is {type(found).__name__}, not a function")
    call: Callable[..., Any] = found
    return call


@contextlib.contextmanager
def _importing(folder: Path, module: str) -> Iterator[None]:
    """Let imports start in `folder`, whatever modules of the same names others have loaded."""
    place, before = str(folder.resolve()), dict(sys.modules)
    own = {p.stem for p in folder.glob("*.py")} | {module.partition(".")[0]}
    own |= {p.parent.name for p in folder.glob("*/__init__.py")}
    for name in list(sys.modules):
        if name.partition(".")[0] in own and name not in ("__main__",):
            del sys.modules[name]
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(place)
        for name in list(sys.modules):
            if name.partition(".")[0] in own:
                del sys.modules[name]
        sys.modules.update({n: m for n, m in before.items() if n.partition(".")[0] in own})
