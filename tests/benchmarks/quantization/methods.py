"""The methods that are compared, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """One way to quantize: who (`npuc`, `ort`, `nncf`), the variant, and what it is."""

    side: str
    variant: str
    title: str
    keeps_all: bool = False
    per_tensor: bool = True

    @property
    def name(self) -> str:
        """What --methods and results.json call it."""
        return f"{self.side}-{self.variant}"

    @property
    def module(self) -> str:
        """The module that runs it."""
        return {"npuc": "quantization.ours"}.get(self.side, f"quantization.peers_{self.side}")


METHODS: Sequence[Method] = (
    Method("npuc", "default", "npuc"),
    Method("npuc", "min-max", "npuc, ranges by min-max"),
    Method("npuc", "percentile", "npuc, ranges by percentile"),
    Method("npuc", "entropy", "npuc, ranges by entropy"),
    Method("ort", "minmax", "ONNX Runtime MinMax"),
    Method("ort", "percentile", "ONNX Runtime Percentile", keeps_all=True),
    Method("ort", "entropy", "ONNX Runtime Entropy", keeps_all=True),
    Method("ort", "minmax-products", "ONNX Runtime MinMax, products only"),
    Method("nncf", "default", "NNCF default", per_tensor=False),
    Method("nncf", "mixed", "NNCF MIXED", per_tensor=False),
    Method("nncf", "transformer", "NNCF TRANSFORMER", per_tensor=False),
    Method("nncf", "accurate", "NNCF MIXED, accurate bias correction", per_tensor=False),
    Method("nncf", "transformer-accurate", "NNCF TRANSFORMER, accurate", per_tensor=False),
    Method("nncf", "per-tensor", "NNCF default, activations held per tensor"),
)
"""`keeps_all`: calibration keeps every activation of every sample. `per_tensor`: activations."""

BY_NAME: Mapping[str, Method] = {method.name: method for method in METHODS}

QUICK = ("npuc-default", "ort-minmax", "nncf-default")
PEERS = tuple(m.name for m in METHODS if m.side != "npuc")
