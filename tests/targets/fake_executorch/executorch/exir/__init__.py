"""Lowering: from an exported program to a file."""

from pathlib import Path
from typing import Any

import misbehave
import torch


class EdgeCompileConfig:
    """How strictly the graph is checked."""

    def __init__(self, *, _check_ir_validity: bool) -> None:
        self.checks = _check_ir_validity


class ExecutorchBackendConfig:
    """How the file is laid out."""

    def __init__(self, *, extract_delegate_segments: bool) -> None:
        self.extract = extract_delegate_segments


class Edge:
    """A program with delegates in it."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def exported_program(self) -> Any:
        """Return the program."""
        return self._program

    def to_executorch(self, config: ExecutorchBackendConfig) -> Any:
        """Return the program as a file's content."""
        from torchao.quantization.pt2e.quantize_pt2e import CALLS

        class Done:
            buffer = b""

        path = Path.home() / "content"
        seen = {"calls": len(CALLS), "shapes": CALLS[0]}
        misbehave.write(path, b"\x20\0\0\0ET12", **seen)
        Done.buffer = path.read_bytes()
        return Done


def to_edge_transform_and_lower(
    program: Any, *, partitioner: Any, compile_config: EdgeCompileConfig
) -> Edge:
    """Delegate, which calls Vela."""
    from executorch.backends.arm.ethosu import EthosUPartitioner, backend

    misbehave.in_call()
    if not isinstance(program, torch.export.ExportedProgram) or compile_config.checks:
        raise TypeError(f"{type(program)}")
    if [type(p) for p in partitioner] != [EthosUPartitioner]:
        raise TypeError(f"{partitioner}")
    nowhere: Any = None  # whoever watches Vela says where
    backend.vela_compile(b"tosa", [], verbose=False, intermediate_path=nowhere, block_placements={})
    return Edge(program)
