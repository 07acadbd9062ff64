"""The Ethos-U backend: what is compiled for, and what is delegated."""

from typing import Any

FAMILIES = {"ethos-u55": "Ethos_U55", "ethos-u65": "Ethos_U65", "ethos-u85": "Ethos_U85"}


class EthosUCompileSpec:
    """A device and Vela's configuration for it."""

    def __init__(self, target: str, *, system_config: str, memory_mode: str) -> None:
        family = FAMILIES[target.rpartition("-")[0]]
        if not system_config.startswith(family) or "ram" not in memory_mode.lower():
            raise ValueError(f"{target}: {system_config}, {memory_mode}")
        self.target = target


class EthosUPartitioner:
    """Decides what is delegated."""

    def __init__(self, spec: Any) -> None:
        if not isinstance(spec, EthosUCompileSpec):
            raise TypeError(f"no compile specification: {spec!r}")
        self.spec = spec
