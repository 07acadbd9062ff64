"""This product's own score: a reading counts where both of its digits are right."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def read_right(outputs: Mapping[str, Array], digits: Array) -> Array:
    """Return for each sample of a call whether it was read right; `digits` are its labels."""
    found = np.stack([outputs["tens"].argmax(-1), outputs["units"].argmax(-1)], axis=-1)
    right: Array = (found == digits).all(axis=-1)
    return right
