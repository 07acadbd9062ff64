"""What a user may get wrong, end to end: one clear message, the documented exit code, no litter."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from npuc import outputs
from npuc.cli import main

Make = Callable[[Path], Sequence[str]]


@pytest.fixture
def folder(
    tmp_path: Path, recorded: Path, artifacts: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Work in a folder with a model and an older artifact at the default output's place."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copy(recorded, work / "net.pt")
    shutil.copy(artifacts["cpu"], work / "net.cpu.npuc")
    return work


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def compile_net(*options: str, model: str = "net.pt", target: str = "cpu") -> list[str]:
    return ["compile", model, "--target", target, "-q", *options]


def file(name: str, data: bytes) -> Make:
    def make(folder: Path) -> Sequence[str]:
        (folder / name).write_bytes(data)
        return compile_net(model=name)

    return make


def truncated(folder: Path) -> Sequence[str]:
    whole = (folder / "net.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    return compile_net(model="cut.pt")


def truncated_onnx(folder: Path) -> Sequence[str]:
    (folder / "cut.onnx").write_bytes(onnx_text("y = Tanh (x)").SerializeToString()[:-20])
    return compile_net(model="cut.onnx")


def pickled(folder: Path) -> Sequence[str]:
    torch.save(torch.nn.Linear(2, 2), folder / "pickled.pt")
    return compile_net(model="pickled.pt")


def onnx_text(body: str, outputs: str = "float[2, 3] y") -> onnx.ModelProto:
    head = '<ir_version: 10, opset_import: ["" : 20]>'
    return onnx.parser.parse_model(f"{head} net (float[2, 3] x) => ({outputs}) {{ {body} }}")


def no_outputs(folder: Path) -> Sequence[str]:
    onnx.save(onnx_text("y = Tanh (x)", ""), folder / "none.onnx")
    return compile_net(model="none.onnx")


def nan_weights(folder: Path) -> Sequence[str]:
    from npuc import record

    net = torch.nn.Linear(3, 2).eval()
    record.save(net, torch.ones(2, 3), folder / "nan.pt")
    with zipfile.ZipFile(folder / "nan.pt") as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}
    weight = net.weight.detach().numpy().tobytes()
    (name,) = [n for n, data in members.items() if data == weight]
    members[name] = np.full(6, np.nan, np.float32).tobytes()
    with zipfile.ZipFile(folder / "nan.pt", "w", zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return compile_net(model="nan.pt")


def nan_onnx(folder: Path) -> Sequence[str]:
    model = onnx_text("y = Add (x, w)")
    array = np.array([1, np.nan, 2], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    onnx.save(model, folder / "nan.onnx")
    return compile_net(model="nan.onnx")


def calls(option: str, **arrays: np.ndarray) -> Make:
    def make(folder: Path) -> Sequence[str]:
        np.savez(folder / "calls.npz", **arrays)  # type: ignore[arg-type]
        return compile_net(option, "calls.npz")

    return make


def text_samples(folder: Path) -> Sequence[str]:
    (folder / "calls.npz").write_text("not an archive")
    return compile_net("--samples", "calls.npz")


def under_a_file(folder: Path) -> Sequence[str]:
    (folder / "file").write_text("")
    return compile_net("-o", "file/net.npuc")


def flipped(folder: Path) -> Sequence[str]:
    data = bytearray((folder / "net.cpu.npuc").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "bad.npuc").write_bytes(data)
    return ["verify", "bad.npuc"]


X = np.zeros((8, 1, 6, 6), np.float32)
NAN = np.full_like(X, np.nan)
TABLE: dict[str, tuple[Make, int, Sequence[str]]] = {
    "missing": (lambda _: compile_net(model="gone.pt"), 3, ["gone.pt"]),
    "empty": (file("empty.pt", b""), 3, ["empty.pt", "empty"]),
    "truncated": (truncated, 3, ["cut.pt"]),
    "truncated onnx": (truncated_onnx, 3, ["cut.onnx"]),
    "text": (file("text.pt", b"hello, world\n" * 9), 3, ["text.pt", "text"]),
    "random bytes": (file("any.onnx", bytes(range(256)) * 9), 3, ["any.onnx"]),
    "pickle": (pickled, 3, ["pickled.pt", "--trust-pickle", "torch.nn.modules.linear"]),
    "no outputs": (no_outputs, 3, ["none.onnx", "no outputs"]),
    "nan weights": (nan_weights, 3, ["nan.pt", "NaN", "weight"]),
    "nan in onnx": (nan_onnx, 3, ["nan.onnx", "NaN", "w"]),
    "unknown zoo": (lambda _: compile_net(model="zoo:digits-resent"), 2, ["digits-resnet"]),
    "samples of another shape": (
        calls("--samples", x=X[..., :5]), 2, ["calls.npz", "(8, 1, 6, 5)", "x:batchx1x6x6"],
    ),
    "samples of another dtype": (
        calls("--samples", x=X.astype(np.complex64)), 2, ["calls.npz", "x is complex64"],
    ),
    "samples of another name": (
        calls("--samples", a=X, b=X), 2, ["'x' is missing", "no input 'a'", "no input 'b'"],
    ),
    "samples that are text": (text_samples, 2, ["calls.npz: not an .npz archive"]),
    "no samples": (lambda _: compile_net("--samples", "gone.npz"), 2, ["gone.npz"]),
    "nan in samples": (calls("--samples", x=NAN), 2, ["call 0: x holds 288 NaN"]),
    "nan in calibration": (calls("--calibration", x=NAN), 2, ["x holds 288 NaN"]),
    "calibration of another shape": (
        calls("--calibration", x=X[0, 0, 0]), 2, ["calls.npz", "(6,)"],
    ),
    "calibration of integers": (
        calls("--calibration", x=X.astype(np.int64)), 2, ["x is int64, expected float32"],
    ),
    "unknown target": (lambda _: compile_net(target="cpuu"), 2, ["'cpuu'", "did you mean 'cpu'"]),
    "unknown dimension": (lambda _: compile_net("--dim", "bacth=1"), 2, ["did you mean batch"]),
    "unknown precision": (lambda _: compile_net("--precision", "int3"), 2, ["'int3'", "float"]),
    "output below a file": (under_a_file, 8, ["file/net.npuc"]),
    "output in proc": (lambda _: compile_net("-o", "/proc/net.npuc"), 8, ["/proc/net.npuc"]),
    "output is a device": (lambda _: compile_net("-o", "/dev/full"), 8, ["/dev/full"]),
    "damaged artifact": (flipped, 7, ["bad.npuc"]),
    "artifact that is a model": (lambda _: ["verify", "net.pt"], 7, ["net.pt"]),
    "verify against nothing": (
        lambda _: ["verify", "net.cpu.npuc", "--against", "gone.pt"], 3, ["gone.pt"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_one_message_one_code_no_litter(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, code, words = TABLE[name]
    argv = make(folder)
    before = contents(folder)
    assert main(argv) == code
    printed = capfd.readouterr()
    assert printed.out == ""
    assert [line for line in printed.err.splitlines() if line.startswith("npuc: ")] == [
        printed.err.splitlines()[0]
    ]
    assert "Traceback" not in printed.err
    for word in words:
        assert word in printed.err
    assert contents(folder) == before


PROGRAM = [sys.executable, "-m", "npuc"]


FULL = """
import resource, signal, sys
from npuc import cli, progress

class Full(progress.Silent):
    def stage(self, name):
        if name == "write net.cpu.npuc":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

progress.reporter = lambda quiet: Full()
sys.exit(cli.main({argv!r}))
"""


def test_a_full_disk(folder: Path) -> None:
    """The artifact has no room: the older one stays, and nothing half-written beside it."""
    before = contents(folder)
    command = [sys.executable, "-c", FULL.format(argv=compile_net())]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 8, run.stderr
    assert run.stderr.startswith("npuc: cannot write") and "Traceback" not in run.stderr
    assert "ulimit -f" in run.stderr
    assert contents(folder) == before


def test_standard_output_that_is_full(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*PROGRAM, "verify", "net.cpu.npuc"],
            cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert run.returncode == 8 and "cannot write to standard output" in run.stderr


STOP = """
import os, sys, time
from npuc import cli, progress

def stop():
    print("there", flush=True)
    time.sleep(60)

class Stop(progress.Silent):
    def stage(self, name):
        if name == {stage!r}:
            stop()

progress.reporter = lambda quiet: Stop()
if {stage!r} == "half written":
    os.fsync = lambda file: stop()
sys.exit(cli.main({argv!r}))
"""


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGINT, "export"),
        (signal.SIGINT, "half written"),
        (signal.SIGTERM, "lower for cpu"),
        (signal.SIGKILL, "half written"),
    ],
)
def test_ended_in_the_middle(folder: Path, tmp_path: Path, number: int, stage: str) -> None:
    """The input and the older artifact are as they were; only a kill leaves a hidden part."""
    before = contents(folder)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # Through the cache, the half-written file would be one of the cache's.
    stopped = compile_net("--timeout", "60", "--no-cache")
    child = subprocess.Popen(
        [sys.executable, "-c", STOP.format(stage=stage, argv=stopped)],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "there\n"
    time.sleep(0.1)
    child.send_signal(number)
    _, errors = child.communicate(timeout=30)
    if number == signal.SIGKILL:
        assert child.returncode == -signal.SIGKILL
        (left,) = set(contents(folder)) - set(before)
        assert left.startswith(".net.cpu.npuc.") and left.endswith(".npuc-part")
        outputs.probe(Path("net.cpu.npuc"))  # the next compile removes it
    else:
        assert (child.returncode, errors) == (130, "npuc: interrupted\n")
        assert {path.name for path in temporary.iterdir()} <= {".ses"}  # onnxruntime's own
    assert contents(folder) == before
