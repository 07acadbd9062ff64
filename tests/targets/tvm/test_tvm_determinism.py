"""The same program gives the same bytes, and the same call the same answer."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npuc.targets import tvm
from npuc.targets.tvm.linker import Linker, find_linker, link

LOWER = """
import hashlib, sys
from pathlib import Path
from npuc.program import Program
from npuc.targets import tvm
done = tvm.lower(Program.load(Path(sys.argv[1])), cpu=sys.argv[2], fallback="ort")
for name, data in sorted(done.files.items()):
    print(name, hashlib.sha256(data).hexdigest())
"""

RUN = """
import hashlib, sys
from pathlib import Path
import numpy as np
from npuc.program import Program
from npuc.targets import tvm
folder = Path(sys.argv[1])
program = Program.load(folder / "model.onnx")
members = [p for p in folder.rglob("payload/**/*") if p.is_file()]
files = {str(p.relative_to(folder)): p.read_bytes() for p in members}
runner = tvm.load(files, program)
draw = np.random.default_rng(0)
x = {p.name: draw.normal(size=p.shape).astype(p.dtype) for p in program.inputs}
for name, value in runner(x).items():
    print(name, hashlib.sha256(value.tobytes()).hexdigest())
"""


def network(graph: Callable[..., Any], floats: Callable[..., Any], *, foreign: bool) -> Any:
    made = graph()
    x = made.input(floats((1, 3, 40, 40)))
    for count in (24, 40):
        before = 3 if count == 24 else 24
        x = made.node("Conv", x, made.constant(floats((count, before, 3, 3))), pads=[1] * 4)
        x = made.node("HardSwish", x)
    x = made.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = made.node("Reshape", x, made.constant(np.array([1, 40, 400])))
    x = made.node("Softmax", made.node("MatMul", x, made.node("Transpose", x, perm=[0, 2, 1])))
    x = made.node(
        "LayerNormalization", x, made.constant(floats((40,))), made.constant(floats((40,)))
    )
    if foreign:
        x = made.node("Einsum", made.node("Cast", x, to=11), equation="abc->acb")
    made.output(x)
    return made


@pytest.mark.parametrize("foreign", [False, True])
def test_two_processes_write_the_same_bytes(
    graph: Callable[..., Any], floats: Callable[..., Any], tmp_path: Path, foreign: bool
) -> None:
    network(graph, floats, foreign=foreign).program().save(tmp_path / "model.onnx")
    seen = []
    for seed in ("1", "2"):
        place = tmp_path / f"run with a longer name {seed}" / seed
        place.mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(place)}
        environment |= {"OMP_NUM_THREADS": seed, "HOME": str(place)}
        command = [sys.executable, "-c", LOWER, str(tmp_path / "model.onnx"), "x86-64-v3"]
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=True
        )
        seen.append(done.stdout)
    assert seen[0] == seen[1] and "payload/index.json" in seen[0]
    assert ("segments/001.onnx" in seen[0]) == foreign


def test_any_number_of_threads_gives_the_same_answer(
    graph: Callable[..., Any], floats: Callable[..., Any], tmp_path: Path
) -> None:
    program = network(graph, floats, foreign=False).program()
    program.save(tmp_path / "model.onnx")
    for name, data in tvm.lower(program, cpu="x86-64-v3").files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    seen = set()
    for threads in ("1", "2", "3", "7"):
        environment = {**os.environ, "TVM_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seen.add(done.stdout)
    assert len(seen) == 1 and "v" in seen.pop()


def test_a_library_says_nothing_of_where_it_was_linked(
    graph: Callable[..., Any], floats: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for linker in (find_linker(), zig(monkeypatch)):
        seen: list[dict[str, bytes]] = []

        def record(objects: dict[str, bytes], tool: Linker, seen: Any = seen) -> bytes:
            seen.append(dict(objects))
            return link(objects, tool)

        monkeypatch.setattr("npuc.targets.tvm.build.link", record)
        monkeypatch.setattr("npuc.targets.tvm.linker.find_linker", lambda arch="", it=linker: it)
        files = tvm.lower(network(graph, floats, foreign=False).program()).files
        first, second = (link(seen[0], linker) for _ in range(2))
        assert first == second == files["payload/model.so"]
        assert b"npuc-" not in first and str(Path.cwd()).encode() not in first


def zig(monkeypatch: pytest.MonkeyPatch) -> Linker:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.which", lambda name: None)
        return find_linker()


def test_the_same_process_writes_the_same_bytes_again(
    graph: Callable[..., Any], floats: Callable[..., Any]
) -> None:
    first, second = (
        tvm.lower(network(graph, floats, foreign=False).program()).files for _ in range(2)
    )
    assert first == second
