"""Small models as vendors' tools get them, and the stand-ins for those tools."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.passes.base import run
from npuc.passes.quantize import Quantize
from npuc.profile import Profile
from npuc.program import Program, Tensors
from npuc.quantization import calibrate
from npuc.targets.base import Built, Handover, LowerOptions, Tool

HERE = Path(__file__).parent
HEAD = '<ir_version: 10, opset_import: ["": 13]>\n'
MODELS = {
    "image": """
net (float[1, 3, 8, 6] x) => (float[1, 4] y)
<float[4, 3, 3, 3] w1, float[4] w2, float[4, 4] w3, float[4] w4>
{
  c = Conv <pads = [1, 1, 1, 1]> (x, w1, w2)
  r = Relu (c)
  g = GlobalAveragePool (r)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w3, w4)
}""",
    # Ports with names that are no file names, of which two differ in case only.
    "pair": """
net (float[1, 3, 8, 6] p0, float[1, 5] p1) => (float[1, 4] y)
<float[4, 3, 3, 3] w1, float[4, 4] w2, float[5, 4] w3>
{
  c = Conv <pads = [1, 1, 1, 1]> (p0, w1)
  g = GlobalAveragePool (c)
  f = Flatten (g)
  m = MatMul (f, w2)
  n = MatMul (p1, w3)
  y = Add (m, n)
}""",
    "batch": """
net (float[2, 3, 8, 6] x) => (float[2, 4, 8, 6] y)
<float[4, 3, 3, 3] w1>
{ y = Conv <pads = [1, 1, 1, 1]> (x, w1) }""",
    "tokens": """
net (int64[1, 5] x) => (float[1, 5, 4] y)
<float[7, 4] w1, float[4, 4] w2>
{ e = Gather (w1, x)  y = MatMul (e, w2) }""",
}
RENAMED = {"p0": "views/0 left", "p1": "views_0_LEFT", "c": "123"}


def _program(name: str) -> Program:
    proto = onnx.parser.parse_model(HEAD + MODELS[name])
    rng = np.random.default_rng(3)
    for tensor in list(proto.graph.value_info):
        if tensor.name[0] == "w":
            shape = [d.dim_value for d in tensor.type.tensor_type.shape.dim]
            array = rng.normal(size=shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, tensor.name))
    for value in proto.graph.input:
        value.name = RENAMED.get(value.name, value.name)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type} {number}".lower().replace(" ", "_")
        for names in (node.input, node.output):
            names[:] = [RENAMED.get(n, n) for n in names]
    del proto.graph.value_info[:]
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def _calls(program: Program, count: int) -> list[Tensors]:
    rng = np.random.default_rng(5)

    def array(dtype: str, shape: tuple[int | str, ...]) -> "np.ndarray[tuple[int, ...], np.dtype]":
        sizes = [size for size in shape if isinstance(size, int)]
        if dtype == "int64":
            return rng.integers(0, 7, sizes)
        return rng.normal(size=sizes).astype(np.float32)

    return [{p.name: array(p.dtype, p.shape) for p in program.inputs} for _ in range(count)]


@pytest.fixture(scope="session")
def job() -> Callable[..., Handover]:
    """Return a function: (model, profile, precision, number of calls) → what a tool gets."""

    def make(model: str, profile: Profile, precision: str = "int8", calls: int = 3) -> Handover:
        program = _program(model)
        data = _calls(program, calls)
        scheme = profile.int_scheme
        if precision != "int8" or not calls:
            return Handover(program, data, precision)
        assert scheme is not None
        ranges = calibrate.collect(program, data, scheme)
        quantized = run(program, [Quantize(ranges)], profile)
        return Handover(program, data, precision, quantized)

    return make


@dataclass(frozen=True)
class Bench:
    """One tool, a kit for it on disk, and the way to build it."""

    tool: Tool
    profile: Profile
    folder: Path

    def build(self, limit: float = 120) -> Built:
        """Build as npuc does on a machine that has the tool."""
        return self.tool.build(self.folder, self.profile, LowerOptions(timeout=limit))


@pytest.fixture
def bench(tmp_path: Path, job: Callable[..., Handover]) -> Callable[..., Bench]:
    """Return a function: (tool, target, model, precision) → its kit, written to a folder."""

    def make(tool: Tool, target: str, model: str = "image", precision: str = "int8") -> Bench:
        profile = Profile.load(target)
        folder = tmp_path / "a kit"
        for name, content in tool.kit(job(model, profile, precision), profile).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return Bench(tool, profile, folder)

    return make


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function: put stand-ins where a tool is looked for, with FAKE_* to choose by."""
    for name in [n for n in os.environ if n.startswith(("FAKE_", "NPUC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(variable: str, *fakes: str, command: str = "", **chosen: str) -> None:
        folders = [str(HERE / fake) for fake in ("fake_common", *fakes)]
        python = sys.executable if fakes else f"{sys.executable} -I -S"
        monkeypatch.setenv(variable, command or python)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
        for key, value in chosen.items():
            monkeypatch.setenv(key, value)

    return put
