"""Compile the graph beside this file into model.pte with ExecuTorch and Vela, for an Arm Ethos-U.

    python compile.py

Needs the Python environment in which executorch and ethos-u-vela are installed, and the files of
this folder. `request.json` names the device and Vela's configuration. ExecuTorch quantizes by
itself, with the inputs in calibration.npz. `summary.json` says what runs where, and what Vela
estimates: nothing is run on a device or a simulator.
"""

import csv
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Read the kit in this folder, write model.pte and summary.json there."""
    settings = json.loads((FOLDER / "request.json").read_text())["settings"]
    import torch
    from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner
    from executorch.backends.arm.quantizer import (
        EthosUQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )
    from onnx_in_torch import Module, read
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    module = Module(read(FOLDER)).eval()
    inputs = module.examples()
    spec = EthosUCompileSpec(
        settings["npu"],
        system_config=settings["system_config"],
        memory_mode=settings["memory_mode"],
    )
    quantizer = EthosUQuantizer(spec)
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    # Guards would be calls of modules, which the Arm passes refuse.
    captured = torch.export.export(module, inputs).module(check_guards=False)
    prepared = prepare_pt2e(captured, quantizer)
    for call in calls(len(inputs)):
        prepared(*module.examples(call))
    quantized = torch.export.export(convert_pt2e(prepared), inputs)
    estimates = watch_vela()
    edge = to_edge_transform_and_lower(
        quantized,
        partitioner=[EthosUPartitioner(spec)],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    program = edge.to_executorch(config=ExecutorchBackendConfig(extract_delegate_segments=False))
    summary = {
        "device": dict(settings),
        "delegation": delegation(edge.exported_program().graph_module),
        "vela": estimates,
        "versions": {n: metadata.version(n) for n in ("executorch", "ethos-u-vela", "torch")},
    }
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    (FOLDER / "model.pte").write_bytes(program.buffer)
    shutil.rmtree(FOLDER / "vela", ignore_errors=True)
    print(json.dumps(summary["delegation"]))


def calls(inputs: int) -> "list[list[Any]]":
    """Read calibration.npz: the arrays of every call, in the order of the inputs."""
    import numpy as np

    with np.load(FOLDER / "calibration.npz", allow_pickle=False) as arrays:
        numbers = sorted({int(key.split("/")[0]) for key in arrays.files})
        return [[arrays[f"{n}/{i}"] for i in range(inputs)] for n in numbers]


def watch_vela() -> "list[dict[str, Any]]":
    """Have Vela's own summary of every part of the graph kept; returns the list that fills."""
    from executorch.backends.arm.ethosu import backend

    compiled: list[dict[str, Any]] = []
    original = backend.vela_compile

    def compile_part(tosa: bytes, args: "list[str]", **options: Any) -> Any:
        folder = FOLDER / "vela" / str(len(compiled))
        folder.mkdir(parents=True)
        options["intermediate_path"] = str(folder)
        result = original(tosa, args, **options)
        compiled.append(estimate(folder))
        return result

    backend.vela_compile = compile_part
    return compiled


def estimate(folder: Path) -> "dict[str, Any]":
    """Return the numbers of Vela's summary file: cycles, memory in KiB, seconds at its clock."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*_summary_*.csv")):
        with path.open() as file:
            row = next(csv.DictReader(file))
        for key, text in row.items():
            try:
                found[key] = float(text)
            except (TypeError, ValueError):
                continue
    return found


def delegation(module: Any) -> "dict[str, Any]":
    """Count what is delegated, and list what stays on the host, by operator."""
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(module)
    table = info.get_operator_delegation_dataframe()
    host = {
        str(row["op_type"]): int(row["occurrences_in_non_delegated_graphs"])
        for _, row in table.iterrows()
        if row["op_type"] != "Total" and int(row["occurrences_in_non_delegated_graphs"])
    }
    return {
        "subgraphs": info.num_delegated_subgraphs,
        "delegated_nodes": info.num_delegated_nodes,
        "host_nodes": info.num_non_delegated_nodes,
        "host": host,
    }


if __name__ == "__main__":
    main()
