"""Scripts that run in a vendor's own Python, without npuc: every hand-over kit has its own."""

from pathlib import Path


def source(name: str) -> bytes:
    """Return the text of a script of this folder."""
    return Path(__file__).with_name(name).read_bytes()
