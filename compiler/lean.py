"""Keep torch out of a process that nobody needs it in: TVM imports it wherever it is installed."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_TVM = ("tvm", "tvm_ffi")


class _NoTorch:
    """Tells modules of TVM, and no others, that there is no torch to import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name == "torch" and _importer().partition(".")[0] in _TVM:
            raise ModuleNotFoundError("TVM does without torch here", name=name)


def _importer() -> str:
    """Return the name of the module whose import is being looked for."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")) if frame is not None else ""


@contextmanager
def lean() -> Iterator[None]:
    """Let TVM be imported without torch within: 2 s and 200 MB less where nothing else needs it.

    For processes of npuc's own: TVM then does not know torch's types. A torch that is loaded
    already stays in TVM's sight, and whoever else wants it, on whatever thread, imports it.
    """
    finder: Any = _NoTorch()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
