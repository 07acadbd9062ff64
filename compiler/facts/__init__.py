"""Profiles as TOML: what a fact may be, and the reader that reports every fault at once."""

from npuc.facts.reader import read

__all__ = ["read"]
