"""Compile model.pt2 beside this file into model.rbln with Rebellions' compiler.

    python compile.py

Needs the Python environment in which rebel-compiler and torch are installed, and nothing else:
npuc runs this file there, and puts it into every hand-over kit. `input_info.json` names the NPU,
the number of devices, and each input's shape and dtype.
"""

import inspect
import json
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Read model.pt2 and input_info.json in `folder`, write model.rbln there."""
    request = json.loads((folder / "input_info.json").read_text())
    import rebel  # pyright: ignore[reportMissingImports]
    import torch

    program = torch.export.load(folder / "model.pt2")
    # Guards would check sizes again, in code that the vendor's tracer may not take.
    module = program.module(check_guards=False)
    compiled = rebel.compile_from_torch(
        module,
        input_info=input_info(program.graph_signature.user_inputs, request["inputs"]),
        npu=request["npu"],
        **devices(rebel.compile_from_torch, request["devices"]),
    )
    compiled.save(str(folder / "model.rbln"))
    print(f"model.rbln: rebel-compiler {getattr(rebel, '__version__', 'of unknown version')}")


def input_info(names: Any, inputs: list[dict[str, Any]]) -> list[tuple[str, list[int], str]]:
    """Pair the module's own argument names with the shapes and dtypes npuc compiled for."""
    arguments = [name for name in names if isinstance(name, str)]
    if len(arguments) != len(inputs):
        raise SystemExit(
            f"the module takes {len(arguments)} tensors ({', '.join(arguments)}), "
            f"input_info.json lists {len(inputs)} ({', '.join(i['name'] for i in inputs)})"
        )
    return [
        (name, list(item["shape"]), item["dtype"])
        for name, item in zip(arguments, inputs, strict=True)
    ]


def devices(call: Any, count: int) -> dict[str, int]:
    """Name the number of devices as this version of the compiler does."""
    known = inspect.signature(call).parameters
    if "num_devices" not in known and "tensor_parallel_size" in known:
        return {"tensor_parallel_size": count}
    return {"num_devices": count}


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
