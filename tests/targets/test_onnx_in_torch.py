"""ONNX graphs as torch modules answer as ONNX Runtime does, and can be exported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from npuc.errors import UnsupportedError
from npuc.passes import standard
from npuc.passes.base import run
from npuc.profile import Profile
from npuc.program import Program
from npuc.runners import OnnxRunner
from npuc.targets import graph_torch
from npuc.targets.workers.onnx_in_torch import Module, read, segment

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
CASES = {
    "conv-uneven-pads": "net (float[1,4,7,6] x) => (float[1,6,?,?] y)"
    "<float[6,2,3,3] w, float[6] b>"
    "{ y = Conv <group = 2, pads = [0, 1, 2, 0], strides = [2, 1], dilations = [1, 2]> (x, w, b) }",
    "conv-same-lower": "net (float[1,2,7,6] x) => (float[1,3,4,3] y) <float[3,2,2,4] w>"
    '{ y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w) }',
    "conv-1d": "net (float[2,3,9] x) => (float[2,4,9] y) <float[4,3,3] w>"
    "{ y = Conv <pads = [1, 1]> (x, w) }",
    "conv-transpose": "net (float[1,3,4,4] x) => (float[1,2,?,?] y) <float[3,2,3,3] w, float[2] b>"
    "{ y = ConvTranspose <strides = [2, 2], pads = [1, 0, 0, 1], output_padding = [1, 0]>"
    "(x, w, b) }",
    "gemm": "net (float[4,3] x) => (float[3,5] y) <float[4,5] w, float[3,1] b>"
    "{ y = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (x, w, b) }",
    "matmul": "net (float[2,3,4] x) => (float[2,3,5] y) <float[4,5] w> { y = MatMul (x, w) }",
    "matmul-batched": "net (float[2,3,4] x) => (float[2,3,5] y) <float[2,4,5] w>"
    "{ y = MatMul (x, w) }",
    "max-pool": "net (float[1,2,7,8] x) => (float[1,2,?,?] y)"
    "{ y = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 1],"
    "ceil_mode = 0> (x) }",
    "average-pool": "net (float[1,2,7,8] x) => (float[1,2,?,?] y)"
    "{ y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x) }",
    "average-pool-counted": "net (float[1,2,7,8] x) => (float[1,2,?,?] y)"
    "{ y = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 0, 1], count_include_pad = 1> (x) }",
    "layer-norm": "net (float[2,3,4] x) => (float[2,3,4] y) <float[3,4] w, float[3,4] b>"
    "{ y = LayerNormalization <axis = 1, epsilon = 0.01> (x, w, b) }",
    "group-norm": 'net (float[2,6,3,3] x) => (float[2,6,3,3] y) <float[6] w, float[6] b>'
    "{ y = InstanceNormalization <epsilon = 0.01> (x, w, b) }",
    "batch-norm": "net (float[2,3,4] x) => (float[2,3,4] y)"
    "<float[3] w, float[3] b, float[3] m, float[3] v = {0.5, 1.5, 2.0}>"
    "{ y = BatchNormalization (x, w, b, m, v) }",
    "lp-norm": "net (float[2,3,4] x) => (float[2,3,4] y) { y = LpNormalization <axis = 1> (x) }",
    "slice-back": "net (float[5,6] x) => (float[?,?] y)"
    "<int64[2] s = {-1, 4}, int64[2] e = {-9, 0}, int64[2] a = {0, 1}, int64[2] t = {-2, -1}>"
    "{ y = Slice (x, s, e, a, t) }",
    "split-uneven": "net (float[5,2] x) => (float[2,2] y, float[3,2] z) <int64[2] s = {2, 3}>"
    "{ y, z = Split <axis = 0> (x, s) }",
    "gather-negative": "net (float[5,6] x) => (float[5,2,2] y) <int64[2,2] i = {-1, 0, 3, -6}>"
    "{ y = Gather <axis = 1> (x, i) }",
    "gather-scalar": "net (float[5,6] x) => (float[6] y) <int64 i = {-2}> { y = Gather (x, i) }",
    "expand": "net (float[3,1] x) => (float[2,3,4] y) <int64[3] s = {2, 1, 4}>"
    "{ y = Expand (x, s) }",
    "pad-axes": "net (float[2,3] x) => (float[2,6] y)"
    "<int64[2] p = {1, 2}, float v = {1.5}, int64[1] a = {-1}> { y = Pad (x, p, v, a) }",
    "reshape-zero": "net (float[2,3,4] x) => (float[2,12] y) <int64[2] s = {0, -1}>"
    "{ y = Reshape (x, s) }",
    "space-depth": "net (float[1,4,4,6] x) => (float[1,4,4,6] y)"
    '{ s = SpaceToDepth <blocksize = 2> (x) y = DepthToSpace <blocksize = 2, mode = "DCR"> (s) }',
    "depth-crd": "net (float[1,8,2,3] x) => (float[1,2,4,6] y)"
    '{ y = DepthToSpace <blocksize = 2, mode = "CRD"> (x) }',
    "resize-nearest": "net (float[1,2,3,4] x) => (float[1,2,6,12] y)"
    "<float[4] s = {1.0, 1.0, 2.0, 3.0}>"
    '{ y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",'
    'nearest_mode = "floor"> (x, , s) }',
    "resize-linear": "net (float[1,2,3,4] x) => (float[1,2,5,7] y) <int64[4] s = {1, 2, 5, 7}>"
    '{ y = Resize <mode = "linear"> (x, , , s) }',
    "reductions": "net (float[2,3,4] x) => (float[2,4] a, float[1,1,1] b, float[2,3,1] c, float d)"
    "<int64[1] one = {1}, int64[1] last = {-1}>"
    "{ a = ReduceMax <keepdims = 0> (x, one) b = ReduceMean (x) c = ReduceL2 (x, last)"
    "d = ReduceSumSquare <keepdims = 0> (x) }",
    "activations": "net (float[3,4] x) => (float[3,4] y) <float[4] s>"
    '{ a = HardSigmoid (x) b = HardSwish (x) c = Gelu <approximate = "tanh"> (x)'
    "d = PRelu (x, s) e = LeakyRelu <alpha = 0.2> (x) f = Elu (x) g = Softplus (x)"
    "h = ThresholdedRelu <alpha = 0.3> (x) i = Mish (x) y = Sum (a, b, c, d, e, f, g, h, i) }",
    "clips": "net (float[3,4] x) => (float[3,4] y)"
    "<float zero = {0.0}, float six = {6.0}, float low = {-0.5}, float high = {0.25}>"
    "{ a = Clip (x, zero, six) b = Clip (x, low, high) c = Clip (x, zero) d = Clip (x, , high)"
    "y = Sum (a, b, c, d) }",
    "choices": "net (float[3,4] x, int64[3,4] i) => (float[3,4] y, int64[3,4] z, int64[3,1] k)"
    "<float h = {0.1}, int64 n = {3}>"
    "{ c = Greater (x, h) m = Neg (x) y = Where (c, x, m) z = Mod (i, n)"
    "k = ArgMax <axis = 1> (x) }",
    "integer-division": "net (int64[3,4] i) => (int64[3,4] z) <int64 n = {-3}> { z = Div (i, n) }",
    "einsum": "net (float[2,3,4] x) => (float[2,4,5] y) <float[3,5] w>"
    '{ y = Einsum <equation = "bij,ik->bjk"> (x, w) }',
    "cast": "net (float[3] x, int64[3] i) => (float[3] y) { f = Cast <to = 1> (i) y = Mul (f, x) }",
    "softmax-axis": "net (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax <axis = 1> (x) }",
    "top-k": "net (float[2,6] x) => (float[2,3] y, int64[2,3] i) <int64[1] k = {3}>"
    "{ y, i = TopK (x, k) }",
    "trilu": "net (float[4,4] x) => (float[4,4] y) <int64 k = {1}> { y = Trilu (x, k) }",
}  # fmt: skip
TOLERANCE = 2e-5
"""Absolute, on values of a few units: float32 sums in another order."""


def program_of(text: str) -> Program:
    """Return a program whose constants without values are random."""
    proto = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(1)
    for info in list(proto.graph.value_info):
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        array = rng.normal(size=dims).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def written(program: Program, folder: Path) -> Path:
    """Write the graph and the code as a kit has them."""
    for name, content in graph_torch.files(program).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_operators_answer_as_onnx_runtime_does(case: str, tmp_path: Path) -> None:
    program = program_of(CASES[case])
    module = Module(read(written(program, tmp_path))).eval()
    rng = np.random.default_rng(2)
    call = {
        p.name: rng.integers(-9, 9, p.shape) if p.dtype == "int64"  # type: ignore[arg-type]
        else rng.normal(size=p.shape).astype(np.float32)  # type: ignore[arg-type]
        for p in program.inputs
    }  # fmt: skip
    wanted = OnnxRunner(program)(call)
    inputs = module.examples(list(call.values()))
    exported = torch.export.export(module, inputs).module()
    for answered in (module(*inputs), exported(*inputs)):
        for port, got in zip(program.outputs, answered, strict=True):
            assert got.shape == wanted[port.name].shape
            assert np.abs(got.numpy() - wanted[port.name]).max(initial=0) <= TOLERANCE


def test_a_kit_needs_no_npuc(tmp_path: Path) -> None:
    """The files import each other by their plain names, in a Python without npuc on its path."""
    folder = written(program_of(CASES["layer-norm"]), tmp_path)
    code = (
        "import sys; sys.modules['npuc'] = None\n"
        "from pathlib import Path; from onnx_in_torch import Module, read\n"
        "print(Module(read(Path('.')))(*Module(read(Path('.'))).examples())[0].shape)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "torch.Size([2, 3, 4])", done.stderr


def test_the_same_bytes_twice() -> None:
    program = program_of(CASES["conv-uneven-pads"])
    assert graph_torch.files(program) == graph_torch.files(program)


def test_a_short_float_reaches_every_tensor(tmp_path: Path) -> None:
    program = program_of(CASES["cast"])
    module = Module(read(written(program, tmp_path)), torch.bfloat16)
    (answer,) = module(*module.examples())
    assert answer.dtype == torch.bfloat16


def test_everything_that_is_not_known_is_said_at_once(tmp_path: Path) -> None:
    text = (
        "net (float[2,3] x, int64[2] s) => (float[?,?] y)"
        "{ a = Reshape (x, s) b = Det (a) c = Expand (b, s) y = Hardmax (c) }"
    )
    folder = written(program_of(text), tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = graph_torch.faults(files)
    assert len(said) == 4 and read(folder).faults() == said
    for word in ("Det", "Hardmax", "Reshape", "Expand"):
        assert any(word in line for line in said)


def test_functions_and_bodies_are_refused() -> None:
    program = program_of("net (float[2] x) => (float[2] y) { y = Relu (x) }")
    for node in program.model.graph:
        node.domain = "ai.npuc"
    with pytest.raises(UnsupportedError, match=r"ai\.npuc::Relu"):
        graph_torch.files(program)


def test_segments_compose_to_the_whole(tmp_path: Path) -> None:
    """What every other node computes, run after the rest, gives the same answer."""
    text = (
        "net (float[1,4] x) => (float[1,4] y, float[1,4] r) <float[4,4] w>"
        "{ a = MatMul (x, w) r = Relu (a) b = Add (r, x) y = Mul (b, a) }"
    )
    graph = read(written(program_of(text), tmp_path))
    whole = Module(graph)
    x = torch.randn(1, 4)
    known = {name: ("float32", tuple(tensor.shape)) for name, tensor in whole.values([x]).items()}
    values = {"x": x}
    for numbers in ([0], [1, 2], [3]):
        part = segment(graph, numbers, known)
        answers = Module(part)(*(values[port[0]] for port in part.inputs))
        values |= dict(zip(part.outputs, answers, strict=True))
    for name, wanted in zip(graph.outputs, whole(x), strict=True):
        assert torch.equal(values[name], wanted)


@pytest.mark.parametrize("name", ["digits-mobilenet", "digits-unet", "digits-vit", "text-bert"])
def test_zoo_models_answer_as_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    """Whole trained models, after the passes that every target shares."""
    from npuc import originals
    from npuc.export import export
    from npuc.load import load

    loaded = load(f"zoo:{name}")
    exported = export(loaded)
    reference = originals.find(loaded, exported, None, None)
    bound, reference = originals.bind(loaded, exported, reference, {})
    fixed = {symbol: 1 for symbol in exported.symbols} | dict(bound)
    program = run(exported, standard(fixed), Profile("any", "any", {}, {}))
    module = Module(read(written(program, tmp_path))).eval()
    call = {p.name: reference.samples[0][p.name][: int(p.shape[0])] for p in program.inputs}
    wanted = OnnxRunner(program)(call)
    with torch.no_grad():
        answers = module(*module.examples([call[p.name] for p in program.inputs]))
    for port, got in zip(program.outputs, answers, strict=True):
        spread = np.abs(wanted[port.name]).max()
        assert np.abs(got.numpy() - wanted[port.name]).max() <= 1e-5 * spread  # order of sums


def test_attributes_and_constants_are_plain_data(tmp_path: Path) -> None:
    folder = written(program_of(CASES["gemm"]), tmp_path)
    graph = json.loads((folder / "graph.json").read_text())
    assert graph["nodes"][0]["attributes"] == {"alpha": 0.5, "beta": 2.0, "transA": 1}
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["w0", "w1"] and graph["weights"] == ["b", "w"]
