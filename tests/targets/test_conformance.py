"""What every target must do, run against each one that is installed.

A third party's adapter is tested by installing it and running this file: targets are found by
their entry points, npuc's own no differently.
"""

import json
import subprocess
import sys
import tempfile
import typing
import zipfile
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import UnsupportedError
from npuc.passes.base import Pass, run
from npuc.passes.qdq_sites import observed
from npuc.passes.quantize import Quantize
from npuc.profile import GRADES, Profile
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner
from npuc.targets.base import Evidence, LowerOptions, Payload, Target

HEAD = '<ir_version: 10, opset_import: ["": 20, "other": 1]>\n'
NETS = {
    "conv": """
conv (float[1, 3, 8, 8] x) => (float[1, 4] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[8, 8, 1, 1] w2, float[4, 8] w3, float[4] b3>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu (a)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  c = Conv (p, w2)
  s = Add (c, p)
  g = GlobalAveragePool (s)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w3, b3)
}""",
    "matmul": """
matmul (float[1, 6, 8] x) => (float[1, 6, 5] y)
<float[8, 8] w1, float[8] b1, float[8, 5] w2>
{
  h = MatMul (x, w1)
  a = Add (h, b1)
  t = Transpose <perm = [0, 2, 1]> (a)
  q = MatMul (a, t)
  p = Softmax <axis = -1> (q)
  c = MatMul (p, a)
  y = MatMul (c, w2)
}""",
}
UNSUPPORTED = """
odd (float[2] x) => (float[2] y)
<float[2] a, float[2] b>
{ a = other.Frobnicate (x)  b = other.Twiddle (a)  y = Relu (b) }"""

TARGETS = sorted(entry_points(group="npuc.targets"), key=lambda e: e.name)


@pytest.fixture(params=TARGETS, ids=lambda e: e.name)
def entry(request: pytest.FixtureRequest) -> EntryPoint:
    """Return the entry point of one installed target."""
    return typing.cast(EntryPoint, request.param)


@pytest.fixture
def target(entry: EntryPoint) -> Target:
    """Return one installed target."""
    return make(entry.name)


@cache
def make(name: str) -> Target:
    """Construct a target as npuc does: by entry point, without arguments."""
    (found,) = (e for e in TARGETS if e.name == name)
    return typing.cast(Target, found.load()())


@cache
def net(name: str) -> Program:
    """Return a small float program with seeded weights, the same in every run."""
    proto = onnx.parser.parse_model(HEAD + NETS[name])
    rng = np.random.default_rng(3)
    for tensor in list(proto.graph.value_info):
        shape = [d.dim_value for d in tensor.type.tensor_type.shape.dim]
        if tensor.name[0] in "wb" and tensor.name[1:].isdigit():
            scale = 1 / np.sqrt(max(1, np.prod(shape[1:])))
            array = (rng.normal(size=shape) * scale).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, tensor.name))
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def inputs(program: Program, count: int = 4) -> list[Tensors]:
    """Return a few inputs of unit variance."""
    rng = np.random.default_rng(5)
    (port,) = program.inputs
    shape = [d for d in port.shape if isinstance(d, int)]
    return [{port.name: rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


def ready(target: Target, name: str, precision: str) -> Program:
    """Run the passes a target needs before lowering, with ranges of the inputs it will see."""
    program = run(net(name), target.legalise(), target.profile)
    if precision != "float":
        scheme = target.profile.int_scheme
        assert scheme is not None, f"{precision} needs an integer scheme in the profile"
        names = observed(program.model, scheme)
        inner = [n for n in names if n not in {p.name for p in program.inputs}]
        probe = OnnxRunner(program, extra=inner)
        calls = [{**x, **probe(x)} for x in inputs(program)]
        ranges = {
            n: (float(min(c[n].min() for c in calls)), float(max(c[n].max() for c in calls)))
            for n in names
        }
        program = run(program, [Quantize(ranges)], target.profile)
    return run(program, target.numerics(precision), target.profile)


@cache
def lowered(name: str, model: str, precision: str) -> tuple[Program, Payload]:
    """Lower once for all tests of one target, network and precision."""
    program = ready(make(name), model, precision)
    options = LowerOptions(precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        return program, make(name).lower(program, options, Path(folder))


def cases() -> list[tuple[str, str, str]]:
    """Return every (target, network, precision)."""
    return [(e.name, n, p) for e in TARGETS for n in NETS for p in make(e.name).profile.precisions]


def test_npucs_own_targets_are_installed() -> None:
    """An empty parametrisation would pass without testing anything."""
    assert {"atom", "cpu"} <= {entry.name for entry in TARGETS}


def test_the_protocol_is_complete(entry: EntryPoint, target: Target) -> None:
    """Every member of the protocol is there, under the name users type."""
    members = [m for m in vars(Target) if not m.startswith("_")] + list(Target.__annotations__)
    assert [m for m in members if not hasattr(target, m)] == []
    assert target.name == entry.name
    assert isinstance(target.profile, Profile)
    for precision in target.profile.precisions:
        assert all(isinstance(p, Pass) for p in (*target.legalise(), *target.numerics(precision)))


def test_importing_an_adapter_imports_no_compiler(entry: EntryPoint) -> None:
    """`npuc targets` lists adapters: that must not cost what compiling costs, nor need an SDK."""
    code = f"""
import json, sys
from importlib.metadata import entry_points
(found,) = entry_points(group="npuc.targets", name={entry.name!r})
target = found.load()()
target.toolchain()
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & {"tvm", "tvm_ffi", "torch", "onnxruntime", "rebel", "sklearn"} == set()


def test_a_missing_toolchain_comes_with_a_remedy(target: Target) -> None:
    """What is missing and how to get it, or nothing missing; never an exception."""
    found = target.toolchain()
    assert found.name
    assert bool(found.missing) == bool(found.remedy)
    assert found.missing or found.version


def test_every_fact_has_a_grade_and_a_source(target: Target) -> None:
    """The profile says who says so; sources that nothing cites are not there."""
    profile = target.profile
    assert profile.title and profile.facts
    for key, fact in profile.facts.items():
        assert fact.grade in GRADES and fact.source in profile.sources, key
    assert {fact.source for fact in profile.facts.values()} == set(profile.sources)


@pytest.mark.parametrize(("name", "model", "precision"), cases())
def test_lowering_gives_files_and_says_what_was_done(name: str, model: str, precision: str) -> None:
    """Members are where artifacts keep them, and the evidence is not above what happened."""
    program, payload = lowered(name, model, precision)
    assert any(path.startswith("payload/") for path in payload.files)
    assert all(path.split("/")[0] in ("payload", "vendor") for path in payload.files)
    assert all(isinstance(content, bytes) and content for content in payload.files.values())
    assert payload.toolchain and all(payload.toolchain.values())
    assert payload.evidence in typing.get_args(Evidence)
    if make(name).toolchain().missing:
        assert payload.evidence == "twin"
        assert payload.vendor
    kinds = {node.op_type for node in program.model.graph}
    assert {kind.rpartition("::")[2] for kind in payload.placement} <= kinds
    matrix = {"MatMul", "Conv", "MatMulInteger", "ConvInteger"}  # the latter in whole-int8 twins
    assert matrix & set(payload.placement)


@pytest.mark.parametrize(("name", "model", "precision"), cases())
def test_the_runner_answers_like_the_program(name: str, model: str, precision: str) -> None:
    """The payload computes what the lowered graph says, up to the order of summation."""
    program, payload = lowered(name, model, precision)
    target = make(name)
    runner, oracle = target.runner(payload.files, program), OnnxRunner(program)
    got, want = [], []
    for call in inputs(program):
        first = runner(call)
        kept = {k: v.copy() for k, v in first.items()}
        runner({k: v * 2 for k, v in call.items()})
        assert all(np.array_equal(first[k], kept[k]) for k in kept), "the next call overwrote it"
        reference = oracle(call)
        assert {k: (v.shape, v.dtype) for k, v in first.items()} == {
            k: (v.shape, v.dtype) for k, v in reference.items()
        }
        got.append(first["y"])
        want.append(reference["y"])
    result, truth = np.stack(got).astype(np.float64), np.stack(want).astype(np.float64)
    peak, gap = np.abs(truth).max(), np.abs(result - truth)
    formats = target.profile.float_formats
    steps = [2.0**-f.mantissa for f in formats[:1]] + [1 / 127] * (precision == "int8")
    # Each of at most five layers may sum in another order. That moves a result by some units of
    # float32 (2^-24; at most 72 terms, so 2^-18 in all), and where results are rounded or coded
    # it may cross one boundary: one step of the format, or one code.
    assert gap.max() <= peak * (5 * max(steps) if steps else 2.0**-18)
    # Crossing a boundary needs a sum within 2^-18 of one: rare, so most results are equal.
    exact = gap <= peak * 2.0**-18
    assert exact.mean() >= 0.9, f"{exact.mean():.2f} of the results are equal"


@pytest.mark.parametrize("name", [entry.name for entry in TARGETS])
def test_lowering_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Same inputs, same artifact."""
    precision = make(name).profile.precisions[0]
    program, first = lowered(name, "conv", precision)
    second = make(name).lower(program, LowerOptions(precision=precision), tmp_path)
    assert {k: v for k, v in first.files.items() if second.files[k] != v} == {}
    for field in fields(Payload):
        assert getattr(first, field.name) == getattr(second, field.name), field.name


@cache
def handed(name: str) -> dict[str, bytes]:
    """Compile a torch module as users do, and return the kit out of its artifact."""
    import torch

    from npuc.pipeline import compile

    torch.manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 4),
    ).eval()  # fmt: skip
    rng = np.random.default_rng(5)
    calls = [{"input": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.npuc"
        compile(
            net, target=name, output=path, inputs=["input:1x3x8x8:float32"], samples=calls,
            calibration=calls, vendor="skip",
        )  # fmt: skip
        with zipfile.ZipFile(path) as file:
            members = [n for n in file.namelist() if n.startswith("vendor/")]
            return {n.removeprefix("vendor/"): file.read(n) for n in members}


def test_the_kit_is_complete(target: Target) -> None:
    """The vendor's tool finds all it needs, a person finds out how, and nobody where we live."""
    from npuc.targets import parts

    tool = getattr(target, "tool", None)
    if tool is None:
        pytest.skip("npuc compiles for this target by itself")
    kit = handed(target.name)
    assert parts.lacks(tool, kit) == ""
    assert any(name.endswith("README.txt") for name in kit)
    here = [str(Path.home()), sys.prefix, str(Path(__file__).parents[2]), tempfile.gettempdir()]
    # A torch.export archive is the user's own file, with torch's record of where calls were made.
    written = {name: content for name, content in kit.items() if not name.endswith(".pt2")}
    places = [(n, p) for n, content in written.items() for p in here if f"{p}/".encode() in content]
    assert places == []


def test_all_unsupported_operators_are_named_at_once(target: Target, tmp_path: Path) -> None:
    """One compile shows the whole list, not its first entry."""
    proto = onnx.parser.parse_model(HEAD + UNSUPPORTED)
    program = Program.from_model(ir.from_proto(proto))
    with pytest.raises(UnsupportedError) as caught:
        target.lower(program, LowerOptions(precision="float"), tmp_path)
    assert "Frobnicate" in caught.value.message and "Twiddle" in caught.value.message
