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
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import UnsupportedError
from npuc.legality import judge
from npuc.partition import HOST, on_host
from npuc.passes.base import Pass, run
from npuc.passes.lower_opset import LowerOpset
from npuc.passes.place import BETWEEN, Place
from npuc.passes.quantize import Quantize
from npuc.profile import FLOATS, GRADES, UNCODED, Profile
from npuc.program import Program, Tensors
from npuc.progress import Silent
from npuc.quantization import calibrate
from npuc.quantization.coders import coder
from npuc.quantization.quantizer import Choices
from npuc.runners import OnnxRunner
from npuc.targets.base import Evidence, Handover, LowerOptions, Payload, Runner, Target

if TYPE_CHECKING:
    from tests.targets.independent.numerics_model import Model
else:
    sys.path.insert(0, str(Path(__file__).parent / "independent"))
    from numerics_model import Model

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
NETS = {
    "image": """
image (float[1, 3, 8, 8] x) => (float[1, 4] y, float[1, 8, 8, 8] d, float[1, 8, 4, 4] s)
<float[8, 3, 3, 3] w1, float[8] b1, float[8, 1, 3, 3] w2, float[8] b2, float[8, 8, 1, 1] w3,
 float[4, 8] w4, float[4] b4>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu (a)
  d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, w2, b2)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
  c = Conv (p, w3)
  s = Add (c, p)
  g = GlobalAveragePool (s)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w4, b4)
}""",
    "attention": """
attention (float[1, 6, 8] x) => (float[1, 6, 5] y, float[1, 6, 8] a)
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
    "mixed": """
mixed (float[1, 4, 8, 8] x) => (float[1, 12, 4, 4] j, float[1, 6, 32] y)
<float[6, 4, 3, 3] w1, float[6] b1, float[6, 4, 1, 1] w2, float[32] w3, float[32] b3>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  h = HardSwish (a)
  c = Conv (x, w2)
  g = Sigmoid (c)
  m = Mul (h, g)
  s = Add (m, a)
  p = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (s)
  q = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (g)
  j = Concat <axis = 1> (p, q)
  shape = Constant <value = int64[3] {1, 6, 32}> ()
  t = Reshape (j, shape)
  y = LayerNormalization <axis = -1> (t, w3, b3)
}""",
}
"""The last is for devices without floats only: the others compute what is new in it in floats."""
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


@dataclass(frozen=True)
class Lowered:
    """A network as a target's compiler got it, what came of it, and what it was made from."""

    program: Program
    payload: Payload
    options: LowerOptions
    job: Handover


@cache
def written(name: str, model: str, precision: str) -> Handover:
    """Prepare a network for a target as `npuc.pipeline` does, up to its numerics."""
    target = make(name)
    profile, limit = target.profile.at(precision), target.profile.opset_max
    prepare = (*target.legalise(), *([LowerOpset(limit)] if limit else []), Place())
    program = run(net(model), prepare, profile)
    job = Handover(program, inputs(program), precision)
    if precision in UNCODED:
        return job
    if precision in FLOATS:
        floats = coder(precision, program, job.calibration, profile, Choices(), Silent())
        return replace(job, quantized=floats.program())
    assert profile.int_scheme is not None, f"{precision} needs an integer scheme in the profile"
    ranges = calibrate.collect(program, job.calibration, profile.int_scheme)
    return replace(job, quantized=run(program, [Quantize(ranges)], profile))


@cache
def lowered(name: str, model: str, precision: str) -> Lowered:
    """Lower once for all tests of one target, network and precision.

    A vendor's compiler that is here is not run: `tests/vendor` does that.
    """
    target, job = make(name), written(name, model, precision)
    profile = target.profile.at(precision)
    program = run(job.quantized or job.program, target.numerics(precision), profile)
    vendor: Literal["use", "skip"] = "use" if target.toolchain().missing else "skip"
    options = LowerOptions(precision=precision, vendor=vendor, handover=job)
    with tempfile.TemporaryDirectory() as folder:
        return Lowered(program, target.lower(program, options, Path(folder)), options, job)


def cases() -> list[tuple[str, str]]:
    """Return every (target, precision)."""
    return [(e.name, p) for e in TARGETS for p in make(e.name).profile.precisions]


def nets(name: str, precision: str) -> list[str]:
    """Name the networks to try on a target."""
    scheme = make(name).profile.scheme(precision)
    whole = scheme is not None and scheme.whole
    return [n for n in NETS if whole or n != "mixed"]


RULED = ["warboy", "x220", "rk3588", "dolphin5", "ascend-910"]
"""Targets with different rules to requantize by."""


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


@pytest.mark.parametrize(("name", "precision"), cases())
def test_a_target_conforms(name: str, precision: str) -> None:
    """What lowering says and gives, and three answers to the same calls: the artifact's, that of
    the lowered program under ONNX Runtime, and that of the independent model of the device.
    """
    # What weights and factors coded alone stand for is held to ml_dtypes and to formulas where it
    # is made (passes/arithmetic/test_fp8.py, passes/qdq/test_groups.py): the model has integers.
    alone = precision in FLOATS and precision not in UNCODED
    target, equal = make(name), {"the program": [0, 0]} | ({} if alone else {"the model": [0, 0]})
    for model in nets(name, precision):
        done = lowered(name, model, precision)
        says_what_was_done(target, done)
        places_as_judged(target, done)
        got = answers(target.runner(done.payload.files, done.program), done.program)
        oracle = OnnxRunner(done.program)
        ran: list[Tensors] = [oracle(call) for call in inputs(done.program)]
        every = frozenset(("some sum",))
        modelled, inexact = (
            ([], dict.fromkeys(ran[0], every)) if alone else model_of(target, done.job)
        )
        for other, want in zip(equal, (ran, modelled), strict=False):
            for number, count in enumerate(close(got, want, target, precision, inexact)):
                equal[other][number] += count
    # Where sums round otherwise, few land beside a boundary, but each moves all that reads it:
    # once in any of these networks is 1.5 % of all results, a wrong rounding rule 5 % and more.
    shares = {other: same / total for other, (same, total) in equal.items()}
    assert min(shares.values()) >= 0.97, shares


def says_what_was_done(target: Target, done: Lowered) -> None:
    """Members are where artifacts keep them, and the evidence is not above what happened."""
    payload = done.payload
    assert any(path.startswith("payload/") for path in payload.files)
    assert all(path.split("/")[0] in ("payload", "vendor") for path in payload.files)
    assert all(isinstance(content, bytes) and content for content in payload.files.values())
    assert payload.toolchain and all(payload.toolchain.values())
    assert payload.evidence in typing.get_args(Evidence)
    if missing := target.toolchain().missing:
        assert payload.evidence == "twin"
        assert missing in payload.vendor
        assert "not run" in payload.vendor or not hasattr(target, "tool")


def places_as_judged(target: Target, done: Lowered) -> None:
    """Nothing blocks these networks, and what the profile refuses is what the host runs."""
    found = judge(done.job.program, target.profile)
    assert [f for f in found if f.verdict == "blocked"] == []
    places = done.payload.placement
    kinds = {node.op_type for p in (done.program, done.job.program) for node in p.model.graph}
    assert {kind.rpartition("::")[2] for kind in places} <= kinds
    assert {"MatMul", "Conv"} & set(places)
    between = {n.op_type for n in done.job.program.model.graph if on_host(n) == BETWEEN}
    hosted = {kind for kind, place in places.items() if HOST in place.split("+")}
    judged = {f.op for f in found if f.verdict == "host"}
    assert judged <= hosted <= judged | between


def answers(runner: Runner, program: Program) -> list[Tensors]:
    """Run the calls, and see that the next one leaves an answer alone."""
    found = []
    for call in inputs(program):
        first = runner(call)
        kept = {k: v.copy() for k, v in first.items()}
        runner({k: v * 2 for k, v in call.items()})
        assert all(np.array_equal(first[k], kept[k]) for k in kept), "the next call overwrote it"
        found.append(first)
    return found


def model_of(
    target: Target, job: Handover, profile: Profile | None = None
) -> tuple[list[Tensors], dict[str, frozenset[str]]]:
    """Return what `numerics_model` answers, and what of its arithmetic has no one last bit."""
    facts = profile or target.profile.at(job.precision)
    form = getattr(target, "float_format", None) or next(iter(facts.float_formats), None)
    proto = ir.to_proto((job.quantized or job.program).model)
    found = [Model(proto, facts, form)(call) for call in inputs(job.program)]
    return [{k: v.real for k, v in one.items()} for one in found], {
        k: v.inexact for k, v in found[0].items()
    }


def close(
    got: list[Tensors],
    want: list[Tensors],
    target: Target,
    precision: str,
    inexact: Mapping[str, frozenset[str]],
) -> tuple[int, int]:
    """Hold answers to others, bit for bit where all arithmetic before an output is exact.

    Returns how many results are the same up to the order of summation, and how many there are.
    """
    same = count = 0
    for name in want[0]:
        pairs = [(g[name], w[name]) for g, w in zip(got, want, strict=True)]
        assert all((g.shape, g.dtype) == (w.shape, w.dtype) for g, w in pairs)
        result, truth = (np.stack(side).astype(np.float64) for side in zip(*pairs, strict=True))
        peak, gap = np.abs(truth).max(), np.abs(result - truth)
        if not inexact[name]:
            assert gap.max() == 0, f"{name}: {(gap > 0).sum()} of {gap.size} differ"
        formats = target.profile.at(precision).float_formats
        steps = [2.0**-f.mantissa for f in formats[:1]] + [1 / 127] * (precision != "float")
        # Each of at most five layers may sum in another order. That moves a result by some units
        # of float32 (2^-24; at most 72 terms, so 2^-18 in all), and where results are rounded or
        # coded it may cross one boundary: one step of the format, or one code.
        assert gap.max() <= peak * (5 * max(steps) if steps else 2.0**-18), name
        same, count = same + int((gap <= peak * 2.0**-18).sum()), count + gap.size
    return same, count


@pytest.mark.parametrize("name", RULED)
@pytest.mark.parametrize("rule", ["tflite-double", "two-stage", "fp19-truncate"])
def test_the_network_tells_rules_apart(name: str, rule: str) -> None:
    """By another rule than the profile's, the model answers otherwise: the test above can fail."""
    target, job = make(name), written(name, "image", "int8")
    profile = target.profile
    if profile.get("int8.requantize") == rule:
        pytest.skip("its own rule")
    fact = replace(profile.facts["int8.requantize"], value=rule)
    other = replace(profile, facts={**profile.facts, "int8.requantize": fact})
    pairs = zip(model_of(target, job)[0], model_of(target, job, other)[0], strict=True)
    assert sum(int((a["d"] != b["d"]).sum()) for a, b in pairs) >= 5


@pytest.mark.parametrize("name", [entry.name for entry in TARGETS])
def test_lowering_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Same inputs, same artifact: the payload, the kit, and what is said of them."""
    done = lowered(name, "image", make(name).profile.precisions[0])
    first, second = done.payload, make(name).lower(done.program, done.options, tmp_path)
    assert set(first.files) == set(second.files)
    assert {k for k, v in first.files.items() if second.files[k] != v} == set()
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
    proto = onnx.parser.parse_model(HEAD.replace("]", ', "other": 1]') + UNSUPPORTED)
    program = Program.from_model(ir.from_proto(proto))
    with pytest.raises(UnsupportedError) as caught:
        target.lower(program, LowerOptions(precision="float"), tmp_path)
    assert "Frobnicate" in caught.value.message and "Twiddle" in caught.value.message
