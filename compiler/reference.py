"""The original's answers: recorded where it was trained, or computed here."""

from npuc.answers import Floor, Noise, Reference, check, from_module, from_program, of
from npuc.record import read, record, save

__all__ = [
    "Floor",
    "Noise",
    "Reference",
    "check",
    "from_module",
    "from_program",
    "of",
    "read",
    "record",
    "save",
]
