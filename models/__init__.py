"""Reference models: small trained ones with real samples, and full-size ones for benchmarks."""

from npuc.models.zoo import ZooModel, get, names

__all__ = ["ZooModel", "get", "names"]
