"""The programs of a model that is being trained: exported once, filled with weights again."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from npuc.errors import UnsupportedError
from npuc.export import export
from npuc.load import Loaded
from npuc.program import Program
from npuc.signature import Signature
from npuc.simulate import Key, key_of
from npuc.simulation import structure
from npuc.simulation.structure import Structure

KEPT = 4
"""Shapes whose exports are kept per model: each holds the weights once or twice."""

_COUNTER = "num_batches_tracked"
"""What batch normalization counts as it trains, and does not read in eval mode."""


class Programs:
    """The exports of one model, by the shapes of a call and by all that is constant in them."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, Structure | str] = OrderedDict()

    def at(
        self, copy: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Program, Signature, str]:
        """Return the model's program for this shape of call, with the weights of `copy`.

        Also says why it had to be exported anew, and will be at every call; "" where it need not.
        """
        key = (_constants(copy), *key_of(args, kwargs))
        found = self._known.get(key)
        if found is None:
            found = _exported(copy, args, kwargs)
            self._known[key] = found
        self._known.move_to_end(key)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        if isinstance(found, Structure):
            return found.filled(copy), found.captured.signature, ""
        loaded = Loaded(
            "module", type(copy).__name__, module=copy, args=args, kwargs=dict(kwargs),
            eval_mode=True,
        )  # fmt: skip
        return export(loaded), loaded.captured.signature, found

    def forget(self) -> None:
        """Drop what is known, because it no longer holds."""
        self._known.clear()


_OF: "WeakKeyDictionary[nn.Module, Programs]" = WeakKeyDictionary()


def of(model: nn.Module) -> Programs:
    """Return the exports of a model, which live as long as it does."""
    return _OF.setdefault(model, Programs())


def _exported(copy: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Structure | str:
    """Export once for all weights, or say why the weights cannot be told from the rest."""
    try:
        return structure.exported(copy, args, kwargs)
    except UnsupportedError as error:
        return error.message


def _constants(copy: nn.Module) -> str:
    """Hash what an export takes as given: shapes of parameters, and the values of other buffers."""
    live = structure.parameters(copy)
    found = hashlib.sha256()
    for name, tensor in live.items():
        found.update(f"{name}{tuple(tensor.shape)}".encode())
    for name, buffer in copy.named_buffers(remove_duplicate=False):
        if name not in live and not name.endswith(_COUNTER):
            found.update(f"{name}{tuple(buffer.shape)}{buffer.dtype}".encode())
            found.update(buffer.contiguous().numpy().tobytes())
    return found.hexdigest()
