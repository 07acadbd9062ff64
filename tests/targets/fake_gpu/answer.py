"""Run an artifact's members on the fake GPU and print how far the answers are from the twin's.

Arguments: a folder with model.onnx and the members. What libcuda.so.1 is, LD_LIBRARY_PATH says.
"""

import json
import sys
from pathlib import Path

import numpy as np

from npuc.program import Program
from npuc.targets import tvm
from npuc.targets.cuda import Cuda

folder = Path(sys.argv[1])
program = Program.load(folder / "model.onnx")
files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("payload/**/*.*")}
draw = np.random.default_rng(0)
x = {}
for port in program.inputs:
    shape = tuple(int(d) for d in port.shape)
    whole = np.dtype(port.dtype).kind in "iu"
    drawn = draw.integers(0, 256, shape) if whole else draw.normal(size=shape)
    x[port.name] = drawn.astype(port.dtype)
gpu, twin = Cuda().runner(files, program), tvm.load(files, program)
got, expected = gpu(x), twin(x)
gaps = {
    name: float(np.abs(got[name].astype(np.float64) - expected[name]).max() / np.abs(value).max())
    for name, value in expected.items()
}
print(json.dumps({"ran": [gpu.name, twin.name], "gaps": gaps}))
