"""The original's answers: computed here, recorded where it was trained, and read back."""

from npuc.answers import Floor, Reference, check, from_module, from_program, of
from npuc.record import read, record, save

__all__ = [
    "Floor",
    "Reference",
    "check",
    "from_module",
    "from_program",
    "of",
    "read",
    "record",
    "save",
]
