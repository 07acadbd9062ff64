"""The path to a GPU, with a GPU that is emulated: TVM's own CUDA runtime, npuc's runner, kernels.

The kernels' source runs as fibers on the CPU, launched through a driver that is fake. It shows
that inputs, launches and outputs fit together and that the kernels compute the program; it shows
nothing about what nvcc made of them, nor about races that only real threads have.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.program import Program
from npuc.targets import nvcc
from npuc.targets.base import LowerOptions
from npuc.targets.cuda import Cuda
from npuc.targets.tvm import gpu_runtime

FAKE = Path(__file__).parent / "fake_gpu"
HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
NETS = {
    "images": """
net (float[1, 3, 17, 16] x) => (float[1, 5] y, float[1, 8, 8, 7] z)
<float[8, 3, 3, 3] w, float[8, 1, 3, 3] v, float[8, 5] u>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w)
  b = Relu (a)
  z = Conv <group = 8, strides = [2, 2]> (b, v)
  d = Sigmoid (z)
  e = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (d)
  f = GlobalAveragePool (e)
  g = Flatten (f)
  y = MatMul (g, u)
}""",
    "rows": """
net (float[2, 36, 40] x) => (float[2, 36, 36] y, float[2, 36] z)
<float[40, 33] w, float[33] v>
{
  a = MatMul (x, w)
  b = Add (a, v)
  t = Transpose <perm = [0, 2, 1]> (b)
  c = MatMul (b, t)
  y = Softmax <axis = -1> (c)
  axes = Constant <value_ints = [2]> ()
  z = ReduceMean <keepdims = 0> (b, axes)
}""",
    "codes": """
net (uint8[1, 3, 9, 8] x) => (int8[1, 8, 9, 8] y)
<int8[8, 3, 3, 3] w, uint8 z = {7}, int64 m = {1073741824}, int64 d = {68719476736}>
{
  a = ConvInteger <pads = [1, 1, 1, 1]> (x, w, z)
  b = Cast <to = 7> (a)
  p = Mul (b, m)
  q = Div (p, d)
  y = Cast <to = 3> (q)
}""",
}
TOLERANCE = {"images": 1e-5, "rows": 1e-5, "codes": 0.0}
"""Of the peak: sums of float32 in another order, of up to 40 terms; integers are equal."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the fake driver and runtime; returns their folder."""
    if nvcc.find() is None or not gpu_runtime.no_gpu():
        pytest.skip("needs nvcc, and no GPU: a real one would answer instead")
    folder = tmp_path_factory.mktemp("driver")
    for name in ("libcuda.so.1", "libcudart.so.13"):
        command = ["g++", "-x", "c", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        command += ["-o", str(folder / name), str(FAKE / "driver.c"), "-ldl"]
        subprocess.run(command, check=True)
    return folder


def net(name: str) -> Program:
    proto = onnx.parser.parse_model(HEAD + NETS[name])
    draw = np.random.default_rng(1)
    for info in list(proto.graph.value_info):
        tensor = info.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        values = draw.normal(size=[d.dim_value for d in tensor.shape.dim]) * 0.3
        if info.name in "uvw" and dtype.kind in "if":
            array = (values * (100 if dtype.kind == "i" else 1)).astype(dtype)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def emulated(source: str, folder: Path) -> Path:
    """Compile CUDA source for the CPU, each kernel with a function that unpacks its arguments."""
    body = source[source.index('extern "C"') :].replace(
        "__shared__ alignas(64)", "alignas(64) static"
    )
    calls = []
    found = re.findall(r"__global__ void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\) \{", body)
    for name, parameters in found:
        types = [
            re.sub(r"\w+$", "", p.replace("__restrict__", "").strip())
            for p in parameters.split(",")
        ]
        given = ", ".join(f"*({kind}*)p[{i}]" for i, kind in enumerate(types))
        calls.append(f'extern "C" void call_{name}(void **p) {{ {name}({given}); }}')
    text = folder / "kernels.cpp"
    text.write_text("\n".join(['#include "emulator.hpp"', body, *calls]))
    library = folder / "kernels.so"
    command = ["g++", "-O1", "-w", "-shared", "-fPIC", "-fpermissive", f"-I{FAKE}"]
    subprocess.run([*command, "-o", str(library), str(text)], check=True)
    return library


@pytest.mark.parametrize("name", sorted(NETS))
def test_kernels_answer_like_the_twin(name: str, driver: Path, tmp_path: Path) -> None:
    program = net(name)
    payload = Cuda().lower(program, LowerOptions(), tmp_path / "work")
    program.save(tmp_path / "model.onnx")
    for member, content in payload.files.items():
        path = tmp_path / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    library = emulated(payload.files["payload/cuda/kernels.cu"].decode(), tmp_path)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "EMULATED": str(library)}
    done = subprocess.run(
        [sys.executable, str(FAKE / "answer.py"), str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ran"] == ["cuda", "tvm"]
    assert all(gap <= TOLERANCE[name] for gap in said["gaps"].values()), said
