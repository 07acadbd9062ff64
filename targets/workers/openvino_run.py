"""Answer calls with OpenVINO on the CPU, one after the other, until standard input ends.

    python openvino_run.py openvino.xml

A message, either way, is one byte of kind, eight of length (big-endian), and that many more: "N"
is an .npz of arrays named by their position, "E" an error's text. The first that is sent back
says that the model is ready, with no arrays.
"""

import io
import os
import sys
from typing import Any, BinaryIO

import numpy as np


def main(path: str) -> None:
    """Load the model and answer."""
    # What a library prints must not land between the messages.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
    except Exception as error:
        send(out, b"E", f"{type(error).__name__}: {error}".encode())
        return
    send(out, b"N", packed([]))
    while (call := receive(sys.stdin.buffer)) is not None:
        try:
            results = compiled(call)
            send(out, b"N", packed([np.asarray(results[port]) for port in compiled.outputs]))
        except Exception as error:
            send(out, b"E", f"{type(error).__name__}: {error}".encode())


def packed(arrays: "list[np.ndarray[Any, Any]]") -> bytes:
    """Return an .npz of arrays named by their position."""
    file = io.BytesIO()
    np.savez(file, **{str(i): array for i, array in enumerate(arrays)})  # type: ignore[arg-type]
    return file.getvalue()


def receive(source: BinaryIO) -> "list[np.ndarray[Any, Any]] | None":
    """Read one call, or None at the end."""
    head = source.read(9)
    if len(head) < 9:
        return None
    content = io.BytesIO(source.read(int.from_bytes(head[1:], "big")))
    with np.load(content, allow_pickle=False) as arrays:
        return [arrays[str(i)] for i in range(len(arrays.files))]


def send(sink: BinaryIO, kind: bytes, content: bytes) -> None:
    """Write one message."""
    sink.write(kind + len(content).to_bytes(8, "big") + content)
    sink.flush()


if __name__ == "__main__":
    main(sys.argv[1])
