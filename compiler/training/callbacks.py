"""The callbacks by name; each loads its trainer's package only when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npuc.training.huggingface import HuggingFacePortability
    from npuc.training.lightning import LightningPortability
    from npuc.training.watch import Watch

__all__ = ["HuggingFacePortability", "LightningPortability", "Watch"]

_HOMES = {
    "HuggingFacePortability": "npuc.training.huggingface",
    "LightningPortability": "npuc.training.lightning",
    "Watch": "npuc.training.watch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
