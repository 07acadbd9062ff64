"""Write the graph beside this file as StableHLO for a TPU: model.mlir.

    python compile.py

Needs the Python environment in which torchax and jax are installed, and the files of this folder.
The module is lowered for the platform "tpu"; XLA, on the TPU's host, compiles it from there. The
weights are constants in it, so its only arguments are the model's inputs.
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Read the kit in this folder, write model.mlir and summary.json there."""
    import torch
    from onnx_in_torch import Module, read

    module = Module(read(FOLDER)).eval()
    inputs = module.examples()
    exported = torch.export.export(module, inputs)
    tolerate_dropped_overloads()
    import jax
    from torchax.export import exported_program_to_jax

    weights, function = exported_program_to_jax(exported)
    shapes = [jax.ShapeDtypeStruct(x.shape, str(x.dtype).removeprefix("torch.")) for x in inputs]
    lowered = jax.export.export(
        jax.jit(lambda *given: function(weights, given)), platforms=["tpu"]
    )(*shapes)
    text = str(lowered.mlir_module())
    versions = {name: metadata.version(name) for name in ("torchax", "jax", "jaxlib", "torch")}
    summary = {
        "platforms": list(lowered.platforms),
        "calling_convention": lowered.calling_convention_version,
        "operations": operations(text),
        "versions": versions,
    }
    (FOLDER / "model.mlir").write_text(text)
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    print(json.dumps(summary["operations"]))


def operations(text: str) -> "dict[str, int]":
    """Count the StableHLO operations of a module's text."""
    import re
    from collections import Counter

    return dict(sorted(Counter(re.findall(r"\bstablehlo\.([a-z_]+)", text)).items()))


def tolerate_dropped_overloads() -> None:
    """Let torchax 0.0.13 name overloads with named dimensions, which torch 2.13 no longer has.

    It lists them in tables of what it could rewrite; a placeholder there is never looked up.
    """
    import torch._ops

    packet: Any = torch._ops.OpOverloadPacket
    original = packet.__getattr__

    def found(self: Any, name: str) -> Any:
        try:
            return original(self, name)
        except AttributeError:
            if "imname" in name or "names" in name:
                return (str(self), name)
            raise

    packet.__getattr__ = found


if __name__ == "__main__":
    main()
