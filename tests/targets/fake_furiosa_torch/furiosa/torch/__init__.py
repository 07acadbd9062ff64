"""A stand-in for furiosa-torch that enforces the calls npuc makes of it; it compiles nothing.

It refuses the operators that FAKE_REFUSES names, and more nodes than FAKE_NODES, as the compiler
does. It keeps failures in its cache, as the compiler does.
"""

import os
from pathlib import Path
from typing import Any

import misbehave

import torch

misbehave.at_start()
REFUSED = set(filter(None, os.environ.get("FAKE_REFUSES", "").split(",")))
LIMIT = int(os.environ.get("FAKE_NODES", "1000"))


class UnsupportedOpError(Exception):
    """What the compiler says of a graph that it does not take."""


class Runnable:
    """A compiled graph."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        """Return the bytes of it."""
        return self.content

    @classmethod
    def deserialize(cls, content: bytes) -> "Runnable":
        """Read it back."""
        if not content.startswith(b"\1\1EDF"):
            raise ValueError("no such format")
        return cls(content)


class _C:
    class ir:
        Runnable = Runnable


class CompileModule:
    """The result of a compilation."""

    def __init__(self, inner: Runnable) -> None:
        self.runnable = type("Outer", (), {"_inner": inner})()

    @classmethod
    def from_module(cls, module: Any, args: tuple[Any, ...]) -> "CompileModule":
        """Capture, check and compile."""
        failed = Path.home() / ".cache" / "furiosa" / "compiler" / "failed"
        if failed.exists():
            raise UnsupportedOpError("cached: an earlier compilation failed")
        failed.parent.mkdir(parents=True, exist_ok=True)
        failed.write_text("")
        misbehave.in_call()
        program = torch.export.export(module, args)
        if any(t.dtype == torch.float32 for t in (*args, *program.state_dict.values())):
            raise UnsupportedOpError("float32")
        ops = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
        found = sorted(r for r in REFUSED if any(f"aten.{r}." in op for op in ops))
        if found or len(ops) > LIMIT:
            raise UnsupportedOpError(f"Tactic failure summary: {found or len(ops)}")
        path = Path(os.environ["HOME"]) / "edf"
        misbehave.write(path, b"\1\1EDF", ops=ops, inputs=[tuple(a.shape) for a in args])
        failed.unlink()
        return cls(Runnable(path.read_bytes()))
