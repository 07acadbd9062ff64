"""Compile a trained model for any NPU, and prove that it still answers like the original.

Importing npuc is cheap: each name below loads its module when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npuc.errors import (
        ArtifactError,
        ExportError,
        LoadError,
        NpucError,
        OutputError,
        ParityError,
        PassError,
        ToolchainError,
        UnsupportedError,
        UsageError,
    )
    from npuc.load import load
    from npuc.pipeline import compile, verify
    from npuc.reference import save
    from npuc.simulate import simulate
    from npuc.training.portability import portability

    __version__: str

__all__ = [
    "ArtifactError",
    "ExportError",
    "LoadError",
    "NpucError",
    "OutputError",
    "ParityError",
    "PassError",
    "ToolchainError",
    "UnsupportedError",
    "UsageError",
    "compile",
    "load",
    "portability",
    "save",
    "simulate",
    "verify",
]

_HOMES = {
    "compile": "npuc.pipeline",
    "load": "npuc.load",
    "portability": "npuc.training.portability",
    "save": "npuc.reference",
    "simulate": "npuc.simulate",
    "verify": "npuc.pipeline",
}


class _Package(ModuleType):
    """Keeps `npuc.load` the function: importing the submodule of that name would replace it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("npuc")
    elif name in __all__:
        value = getattr(import_module(_HOMES.get(name, "npuc.errors")), name)
    else:
        raise AttributeError(f"module 'npuc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
