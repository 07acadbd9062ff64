"""Compile the graph beside this file into model.edf with furiosa-torch, for FuriosaAI RNGD.

    python compile.py

Needs the Python environment in which furiosa-torch is installed, aarch64-linux-gnu-gcc on PATH,
and the files of this folder. The graph is compiled whole in bfloat16 where the compiler takes
it; else in parts, model.000.edf and so on, and the rest is for the host.
`request.json` limits the time; `summary.json` says which nodes are in which part, and for the
rest the compiler's own words. Nothing is run: that takes the card.
"""

import collections
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
CHUNK = 8
"""Nodes of the runs that are tried first where the whole graph does not compile."""

LEAST = 10.0
"""Seconds below which no part is tried: capturing one takes some."""

VIEWS = {"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that compute nothing: no part is made of these alone."""


def main() -> None:
    """Read the kit in this folder, write the parts and summary.json there."""
    settings = json.loads((FOLDER / "request.json").read_text())["settings"]
    end = time.monotonic() + float(settings["budget_s"])
    import furiosa.torch  # noqa: F401  # pyright: ignore[reportMissingImports]
    import torch
    from onnx_in_torch import Module, read

    torch.set_num_threads(1)  # forked children cannot use threads that are started here
    graph = read(FOLDER)
    module = Module(graph, torch.bfloat16).eval()
    with torch.no_grad():
        values = module.values(module.examples())
    known = {name: (dtype_of(t), tuple(t.shape)) for name, t in values.items()}
    every = range(len(graph.nodes))
    whole_s = min(float(settings["whole_s"]), end - time.monotonic())
    reason = attempt(graph, FOLDER / "model.edf", whole_s)
    parts, host = [about(graph, every, "model.edf")] if not reason else [], []
    if reason:
        print(f"not compiled whole: {reason[-1500:]}", flush=True)
        parts, host = split(graph, known, float(settings["part_s"]), end, reason)
    if not parts:
        raise SystemExit(
            f"no part of the graph compiles; of all of it furiosa-torch says:\n{reason}"
        )
    summary = {
        "whole": not reason,
        "reason": reason,
        "parts": parts,
        "host": host,
        "nodes": len(graph.nodes),
        "versions": {n: metadata.version(n) for n in ("furiosa-torch", "torch")},
    }
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")


def split(graph: Any, known: Any, limit: float, end: float, reason: str) -> Any:
    """Compile runs of CHUNK nodes, and halve what does not compile; returns (parts, host).

    Not halves of the graph: the compiler's search grows with what it is given, and a graph that
    it does not take may cost the whole limit at every level.
    """
    from onnx_in_torch import segment

    parts: list[dict[str, Any]] = []
    host: list[dict[str, str]] = []
    seen: dict[str, str] = {}
    count = len(graph.nodes)
    starts = range(0, count, CHUNK)
    waiting = collections.deque(range(i, min(i + CHUNK, count)) for i in starts)
    seen[key_of(graph, range(count), known)] = reason
    while waiting:
        chosen = waiting.popleft()
        left, name = end - time.monotonic(), f"model.{len(parts):03}.edf"
        key = key_of(graph, chosen, known)
        if not set(kinds(graph, chosen)) - VIEWS:
            why = "it computes nothing by itself"
        elif key in seen:
            why = seen[key]  # the same nodes on the same shapes have failed before
        elif left < LEAST:
            why = "not tried: the time is up"
        else:
            why = attempt(segment(graph, chosen, known), FOLDER / name, min(limit, left))
            said = "compiled" if not why else f"failed: {why[-200:]}"
            print(f"nodes {chosen.start} to {chosen.stop - 1}: {said}", flush=True)
        if not why:
            parts.append(about(graph, chosen, name))
            continue
        seen[key] = why
        if len(chosen) > 1 and time.monotonic() < end:
            half = chosen.start + len(chosen) // 2
            waiting.extendleft([range(half, chosen.stop), range(chosen.start, half)])
        else:
            host += [
                {"node": graph.nodes[i].name, "op": graph.nodes[i].op, "reason": why[-1000:]}
                for i in chosen
            ]
    return parts, host


def attempt(graph: Any, path: Path, limit: float) -> str:
    """Compile in a process of its own, with a cache of its own; returns why not, or "".

    The compiler keeps failures in its cache, may crash, and gives some graphs no answer.
    """
    home = tempfile.mkdtemp(prefix="home-")
    said = Path(home) / "said"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.environ.update(HOME=home, XDG_CACHE_HOME=home)
        status = 1
        try:
            binary = compiled(graph)
            path.with_suffix(".part").write_bytes(binary)
            status = 0
        except BaseException as error:  # whatever it is, the parent says it
            print(f"{type(error).__name__}: {error}", flush=True)
            said.write_text(f"{type(error).__name__}: {core(str(error))}", errors="replace")
        os._exit(status)
    ended = waited(child, limit)
    try:
        if ended is None:
            return f"no answer in {limit:.0f} s"
        if os.WIFSIGNALED(ended):
            return f"killed by signal {os.WTERMSIG(ended)}"
        if ended:
            return said.read_text() if said.exists() else f"exit status {ended}"
        path.with_suffix(".part").replace(path)
        return ""
    finally:
        path.with_suffix(".part").unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)


def compiled(graph: Any) -> bytes:
    """Compile one graph and return what the runtime loads; it is read back once."""
    import furiosa.torch as ft  # pyright: ignore[reportMissingImports]
    import torch
    from onnx_in_torch import Module

    module = Module(graph, torch.bfloat16).eval()
    with torch.no_grad():
        made = ft.CompileModule.from_module(module, module.examples())
    binary = bytes(made.runnable._inner.serialize())
    again = bytes(ft._C.ir.Runnable.deserialize(binary).serialize())
    if len(again) != len(binary):
        raise RuntimeError(f"{len(binary)} bytes, {len(again)} when read and written again")
    return binary


def core(text: str) -> str:
    """Return an error's reason: without the whole graph before it and the places after it."""
    reason = text.rpartition("compile error:")[2].partition("Location:")[0]
    lines = [line for line in reason.splitlines() if line.strip() and "(cache at" not in line]
    return "\n".join(lines) or text[-2000:]


def waited(child: int, limit: float) -> "int | None":
    """Wait for a process; None where it was still running at the limit and was killed."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def about(graph: Any, chosen: range, name: str) -> "dict[str, Any]":
    """Describe a part."""
    return {
        "file": name,
        "bytes": (FOLDER / name).stat().st_size,
        "nodes": [graph.nodes[i].name for i in chosen],
        "operators": dict(collections.Counter(kinds(graph, chosen))),
    }


def kinds(graph: Any, chosen: range) -> "list[str]":
    """Return the operators of a part."""
    return [graph.nodes[i].op for i in chosen]


def key_of(graph: Any, chosen: range, known: Any) -> str:
    """Return what a part's compilation depends on, weights aside."""
    nodes = [graph.nodes[i] for i in chosen]
    return json.dumps(
        [[n.op, n.attributes, [known.get(name) for name in n.inputs]] for n in nodes],
        sort_keys=True,
    )


def dtype_of(tensor: Any) -> str:
    """Return numpy's name of the type that a port of a part has; short floats are float32 there."""
    name = str(tensor.dtype).removeprefix("torch.")
    return "float32" if name == "bfloat16" else name


if __name__ == "__main__":
    main()
