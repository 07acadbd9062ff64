"""Ask OpenVINO, in the environment that has it, for the answers of a model."""

import contextlib
import io
import selectors
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from npuc.errors import ToolchainError
from npuc.program import Program, Tensors
from npuc.targets import workers
from npuc.targets.foreign import Found
from npuc.targets.workers.openvino_run import packed

SECONDS = 600.0
"""What loading the model, or one call, may take."""

LIMIT = 1 << 33
"""Bytes of one answer above which it is no answer."""


class OpenVinoRunner:
    """Runs a model in a process of OpenVINO's own, which ends with this object."""

    def __init__(self, found: Found, model: Mapping[str, bytes], program: Program) -> None:
        """Load ``openvino.xml`` of `model`; raises `ToolchainError` where OpenVINO refuses it."""
        self.name = f"openvino {found.toolchain.version}"
        self._inputs = [port.name for port in program.inputs]
        self._outputs = program.outputs
        self._folder = tempfile.TemporaryDirectory(prefix="npuc-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        for name, content in model.items():
            (folder / name).write_bytes(content)
        self._log = folder / "log"
        script = workers.source("openvino_run.py")
        (folder / "run.py").write_bytes(script)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*found.command, str(folder / "run.py"), str(folder / "openvino.xml")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd=folder,
            )
        self._close = weakref.finalize(self, _end, self._process, self._folder)
        self._answer()

    def __call__(self, inputs: Tensors) -> Tensors:
        """Run one call; raises `ToolchainError` where OpenVINO fails, hangs or ends."""
        content = packed([np.ascontiguousarray(inputs[name]) for name in self._inputs])
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: reading says why
            _write(self._process.stdin, b"N" + len(content).to_bytes(8, "big") + content)
        arrays = self._answer()
        if len(arrays) != len(self._outputs):
            raise self._fault(f"gave {len(arrays)} outputs, not {len(self._outputs)}")
        answers = {}
        for port, array in zip(self._outputs, arrays, strict=True):
            if array.dtype.name != port.dtype:
                raise self._fault(f"gave {port.name} as {array.dtype.name}, not {port.dtype}")
            answers[port.name] = array
        return answers

    def _answer(self) -> "list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]":
        end = time.monotonic() + SECONDS
        head = self._read(9, end)
        size = int.from_bytes(head[1:], "big")
        if head[:1] not in (b"N", b"E") or size > LIMIT:
            raise self._fault(f"answered with {head!r}")
        content = self._read(size, end)
        if head[:1] == b"E":
            raise self._fault(content.decode(errors="replace"))
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return [arrays[str(i)] for i in range(len(arrays.files))]
        except (ValueError, KeyError, OSError) as error:
            raise self._fault(f"answered with what is no .npz: {error}") from error

    def _read(self, size: int, end: float) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        content = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while len(content) < size:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise self._fault(f"gave no answer in {SECONDS:g} s")
                part = stream.read(size - len(content))
                if not part:
                    raise self._fault(f"ended ({_status(self._process)})")
                content += part
        return bytes(content)

    def _fault(self, reason: str) -> ToolchainError:
        words = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        self._close()
        shown = "".join(f"\n  {''.join(c for c in w if c.isprintable())[:300]}" for w in words)
        return ToolchainError(f"{self.name} {reason}{shown}")


def _write(stream: "IO[bytes]", content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) or 0 :]


def _status(process: "subprocess.Popen[bytes]") -> str:
    try:
        status = process.wait(5)
    except subprocess.TimeoutExpired:
        return "its output is closed, it still runs"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _end(process: "subprocess.Popen[bytes]", folder: "tempfile.TemporaryDirectory[str]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    folder.cleanup()
