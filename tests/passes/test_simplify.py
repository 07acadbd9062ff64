"""simplify: onnxsim may do what it likes as long as the ports and the answers stay."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc.errors import ParityError, PassError
from npuc.passes.base import Pass, run
from npuc.passes.simplify import Simplify
from npuc.profile import Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

SHUFFLE = """(float[N,4] x, float[N,4] unused) => (float[N,4] y)
    <int64[2] s = {-1, 4}> { a = Identity(x) b = Reshape(a, s) c = Transpose(b) d = Transpose(c)
    y = Relu(d) }"""


def test_simplifies_and_keeps_the_ports(
    parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    before = parse(SHUFFLE)
    after = keeps(before, [Simplify()])
    assert ops(after) == ["Relu"]
    assert after.inputs == before.inputs and after.outputs == before.outputs
    assert all(v.dtype is not None for node in after.model.graph for v in node.outputs)


def test_weights_leave_the_message_as_they_are(
    parse: Callable[..., Program], profile: Profile
) -> None:
    """Asked twice, a weight is the same memory; and what is serialized is what onnxsim wrote."""
    before = parse(
        """(float[N,2] x) => (float[N,2] y, int64[3] k) <float[2,2] w = {3, 1, 0.1, 7}>
        { a = MatMul(x, w) y = Relu(a) k = Constant<value = int64[3] {1, 2, 3}>() }"""
    )
    drawn = np.array([[3, 1], [0.1, 7]], np.float32)
    before.model.graph.initializers["w"].const_value = ir.Tensor(drawn, name="w")
    after = run(before, [Simplify()], profile)
    tensor = after.model.graph.initializers["w"].const_value
    assert tensor is not None and np.array_equal(tensor.numpy(), drawn)
    assert np.shares_memory(tensor.numpy(), tensor.numpy())
    packed = ir.from_proto(onnx.load_from_string(after.serialized() or b""))
    assert Program.from_model(packed).serialized() == after.serialized()


def test_a_failure_is_a_rolled_back_step(
    parse: Callable[..., Program], profile: Profile, monkeypatch: pytest.MonkeyPatch, ops: Any
) -> None:
    import onnxsim

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("The model contains\nsomething odd")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    before = parse(SHUFFLE)
    after = run(before, [Simplify()], profile)
    assert ops(after) == ops(before)
    assert after.steps[-1].rolled_back == "onnxsim failed: The model contains"


def test_a_lost_output_is_an_error(
    parse: Callable[..., Program], profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxsim

    def lose(model: Any, **options: Any) -> tuple[Any, bool]:
        del model.graph.output[:]
        return model, True

    monkeypatch.setattr(onnxsim, "simplify", lose)
    with pytest.raises(PassError, match="lost the outputs y"):
        Simplify().apply(parse(SHUFFLE).model, profile)


def test_weights_beyond_protobuf_are_refused(
    parse: Callable[..., Program], profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npuc.passes.simplify.PROTO_LIMIT", 8)
    step = run(parse(SHUFFLE), [Simplify()], profile).steps[-1]
    assert "16 bytes of weights exceed" in step.rolled_back


# torch's recurrent export warns about its own internals.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_recurrent_model_with_a_dynamic_batch_answers_alike_or_is_rolled_back(
    kind: str, profile: Profile, feed: Callable[..., Any]
) -> None:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = getattr(torch.nn, kind)(8, 6, bidirectional=True, batch_first=True)
            self.head = torch.nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.cell(x)[0])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    with torch.no_grad():
        exported = torch.onnx.export(
            Net().eval(),
            (torch.randn(2, 5, 8),),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: "batch"},),
        )
    assert exported is not None
    before = Program.from_model(exported.model)
    tried: list[int] = []

    def watch(item: Pass, old: Program, new: Program) -> None:
        for size in (2, 3):
            values = feed(old, size)
            expected, got = OnnxRunner(old)(values), OnnxRunner(new)(values)
            tried.append(size)
            for name in expected:
                if expected[name].shape != got[name].shape:
                    raise ParityError(f"{name} has shape {got[name].shape}")
                # A Gemm in place of MatMul and Add: round-off of 12 products below 1.
                if np.abs(expected[name] - got[name]).max() > 1e-6:
                    raise ParityError(f"{name} differs at batch {size}")

    after = run(before, [Simplify()], profile, watch)
    assert tried
    step = after.steps[-1]
    assert (tried == [2, 3]) == (step.rolled_back == "")
    for size in (1, 4):
        values = feed(before, size)
        expected, got = OnnxRunner(before)(values), OnnxRunner(after)(values)
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-6)


def test_torch_is_not_loaded_for_it() -> None:
    script = (
        "import sys, onnx, onnx.parser, onnx_ir as ir\n"
        "from npuc.passes.simplify import Simplify\n"
        "from npuc.profile import Profile\n"
        'text = \'<ir_version: 10, opset_import: ["" : 20]> '
        "g (float[2] x) => (float[2] y) { y = Relu(x) }'\n"
        "model = ir.from_proto(onnx.parser.parse_model(text))\n"
        "Simplify().apply(model, Profile('t', 'T', {}, {}))\n"
        "assert 'onnxsim' in sys.modules and 'torch' not in sys.modules\n"
        "import torch\n"
        "assert torch.ones(1).item() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
