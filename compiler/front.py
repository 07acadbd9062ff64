"""A model as it is before any target is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass

from npuc.program import Program
from npuc.validate import Validator


@dataclass(frozen=True, slots=True)
class Front:
    """What is the same for every target: the program, and what was found on the way there.

    `dims` are what the dynamic dimensions of the validator's exported program are bound to.
    """

    validator: Validator
    program: Program
    dims: Mapping[str, int]
