"""What export promises: names, provenance, refusals with a place, the same bytes every time."""

import copy
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from npuc.capture import capture
from npuc.errors import ExportError
from npuc.export import export
from npuc.load import Loaded, load
from npuc.program import Program
from npuc.runners import OnnxRunner

Pair = namedtuple("Pair", ["boxes", "scores"])


def _program(
    module: nn.Module, *args: Any, shapes: Any = None, opset: int = 20, **kwargs: Any
) -> tuple[Program, Loaded]:
    loaded = Loaded(
        "module", "m", module=module.eval(), args=args, kwargs=kwargs, dynamic_shapes=shapes
    )
    return export(loaded, opset=opset), loaded


def _same(program: Program, loaded: Loaded, *args: Any) -> None:
    """Compare ONNX Runtime with the original on other inputs, by name."""
    signature = loaded.captured.signature
    inputs = signature.flatten(args, {})
    call, _ = signature.call(inputs)
    with torch.no_grad():
        want = signature.results(loaded.captured.native(*call))
    got = OnnxRunner(program)(inputs)
    assert set(want) == set(got) == {p.name for p in program.outputs}
    for name, value in want.items():
        # float32 rounding of a few sums over some ten terms of size one
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5, err_msg=name)


class Fn(nn.Module):
    """A module around a function, with a weight."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda m, x: x * m.w, ["output"]),
        (lambda m, x: (x * 2, x + m.w), ["output_0", "output_1"]),
        (lambda m, x: {"logits": x + 1, "hidden states": [x * 3]}, ["logits", "hidden_states_0"]),
        (lambda m, x: Pair(x + 1, {"best": x.sum()}), ["boxes", "scores_best"]),
        (lambda m, x: {"x": x * 2}, ["x_out"]),
        (lambda m, x: (x, x, x * 2), ["output_0", "output_1", "output_2"]),
        (lambda m, x: (m.w, x + m.w), ["output_0", "output_1"]),
        (lambda m, x: (x + 1,) * 2, ["output_0", "output_1"]),
    ],
)
def test_outputs_are_named_after_what_the_model_returns(
    function: Callable[..., Any], names: list[str]
) -> None:
    program, loaded = _program(Fn(function), torch.randn(2, 3), shapes={"x": {0: "batch"}})
    assert [p.name for p in program.outputs] == names
    assert program.inputs[0].shape == ("batch", 3)
    _same(program, loaded, torch.randn(5, 3))


class Nested(nn.Module):
    def forward(
        self, image: torch.Tensor, extra: dict[str, torch.Tensor], pair: list[torch.Tensor], k: int
    ) -> torch.Tensor:
        return image + extra["bias"] * pair[0] - pair[1] * k


def test_inputs_are_named_after_forward_and_constants_are_baked_in() -> None:
    r = torch.randn
    program, loaded = _program(Nested(), r(2, 3), {"bias": r(3)}, [r(3), r(1)], 4)
    assert [p.name for p in program.inputs] == ["image", "extra_bias", "pair_0", "pair_1"]
    _same(program, loaded, r(2, 3), {"bias": r(3)}, [r(3), r(1)], 4)


def test_dynamic_dimensions_keep_their_names_even_from_size_one() -> None:
    class Cat(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.cat([a, b], 1).flatten(1)

    shapes = {"b": {1: "tail", 0: "batch"}, "a": {0: "batch", 1: "head"}}
    program, loaded = _program(Cat(), torch.randn(1, 2, 3), torch.randn(1, 5, 3), shapes=shapes)
    assert program.symbols == ("batch", "head", "tail")
    assert program.inputs[1].shape == ("batch", "tail", 3)
    assert program.outputs[0].shape[0] == "batch"
    _same(program, loaded, torch.randn(4, 1, 3), torch.randn(4, 2, 3))


def test_related_dimensions_are_inferred_where_equal_names_do_not_hold() -> None:
    class Pairs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0] // 2, 2, 3).sum(1)

    program, loaded = _program(Pairs(), torch.randn(4, 3), shapes={"x": {0: "rows"}})
    assert program.symbols  # still dynamic: not fixed at the example's four rows
    _same(program, loaded, torch.randn(8, 3))


def test_a_bidirectional_lstm_with_a_dynamic_batch() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, dropout=0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.rnn(x)[0]
            return out

    program, loaded = _program(Recurrent(), torch.randn(2, 7, 4), shapes={"x": {0: "batch"}})
    assert {n.op_type for n in program.model.graph} >= {"LSTM"}
    _same(program, loaded, torch.randn(3, 7, 4))


class Ends(nn.Module):
    """The last states of both directions, or a vote of every step."""

    def __init__(self, kind: type[nn.Module], votes: bool) -> None:
        super().__init__()
        self.rnn = kind(4, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)
        self.votes = votes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, last = self.rnn(x)
        last = last[0] if isinstance(last, tuple) else last
        out: torch.Tensor = self.head(steps if self.votes else torch.cat([last[0], last[1]], 1))
        return out.mean(1) if self.votes else out


@pytest.mark.parametrize("votes", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_models_from_an_example_of_one(kind: type[nn.Module], votes: bool) -> None:
    """Batch alone, then steps as well, then batch again: torch keeps caches between captures."""
    for axes in ({0: "batch"}, {0: "batch", 1: "time"}, {0: "batch"}):
        steps = 1 if 1 in axes else 7
        program, loaded = _program(Ends(kind, votes), torch.randn(1, steps, 4), shapes={"x": axes})
        assert program.symbols == tuple(axes.values())
        assert program.outputs[0].shape == ("batch", 3)
        assert kind.__name__ in {n.op_type for n in program.model.graph}
        assert not {"Loop", "Scan"} & {n.op_type for n in program.model.graph}
        for batch in (1, 2, 5):
            for count in (1, 7, 16) if 1 in axes else (7,):
                _same(program, loaded, torch.randn(batch, count, 4))


def test_a_recurrent_program_with_dynamic_steps_survives_its_file(tmp_path: Path) -> None:
    import npuc

    x = torch.randn(1, 6, 4)
    shapes = {"x": {0: "batch", 1: "time"}}
    reference = npuc.save(Ends(nn.LSTM, True).eval(), x, tmp_path / "m.pt", dynamic_shapes=shapes)
    assert reference.samples[0]["x"].shape == (1, 6, 4)
    loaded = load(tmp_path / "m.pt")
    assert loaded.args[0].shape == (1, 6, 4)
    program = export(loaded)
    assert program.symbols == ("batch", "time")
    _same(program, loaded, torch.randn(3, 9, 4))


class One(nn.Module):
    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return x * 2 if not self.branch or x.sum() > 0 else x


def test_a_model_that_takes_size_one_only_is_captured_at_one() -> None:
    x = torch.randn(1, 3)
    program, loaded = _program(One(False), x, shapes={"x": {0: "batch"}})
    example = loaded.captured.program.example_inputs
    assert example is not None and example[0][0].shape == x.shape == (1, 3)
    _same(program, loaded, torch.randn(1, 3))


def test_a_refusal_is_told_of_the_example_that_was_given() -> None:
    with pytest.raises(ExportError, match="branches on the value of a tensor") as caught:
        capture(One(True).eval(), (torch.randn(1, 3),), {}, {"x": {0: "batch"}})
    assert "one at a time" not in str(caught.value)


def test_one_name_grows_alike_in_every_input() -> None:
    from npuc.grown import grown

    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: dict[str, Any]) -> torch.Tensor:
            return a

    a, b, c = torch.zeros(1, 3), torch.zeros(4, 1), torch.zeros(1)
    shapes = {"a": {0: "n"}, "b": {"p": {0: "m", 1: "n"}, "q": (torch.export.Dim.AUTO,)}}
    larger = grown(Two(), (a,), {"b": {"p": b, "q": c}}, shapes)
    assert larger is not None
    (first,), kwargs = larger
    assert first.shape == (2, 3) and a.shape == (1, 3)
    assert kwargs["b"]["p"].shape == (4, 2) and kwargs["b"]["q"] is c
    assert grown(Two(), (torch.zeros(2, 3),), {"b": {"p": b, "q": c}}, shapes) is None


def test_nodes_say_where_they_come_from(net: Any) -> None:
    program, _ = _program(net, torch.randn(1, 1, 6, 6))
    gemm = next(n for n in program.model.graph if n.op_type == "Gemm")
    assert gemm.metadata_props["npuc.module"] == "head"
    assert gemm.metadata_props["npuc.source"].startswith("compiler/conftest.py:")
    keys = {k for n in program.model.graph for k in n.metadata_props}
    assert keys == {"npuc.module", "npuc.source"}
    assert str(Path.home()) not in str(program.serialized())


def test_shared_weights_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
            self.b.weight = nn.Parameter(self.a.weight.detach().clone())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.b(self.a(x).relu())
            return out

    program, loaded = _program(Tied(), torch.randn(1, 16))
    assert program.weight_bytes < 2 * 16 * 16 * 4
    _same(program, loaded, torch.randn(1, 16))


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_the_opset_is_what_was_asked_for(opset: int) -> None:
    program, loaded = _program(Fn(lambda m, x: F.gelu(x)), torch.randn(2, 3), opset=opset)
    assert program.opset == opset
    _same(program, loaded, torch.randn(2, 3))


def test_an_opset_torch_does_not_reach_is_refused() -> None:
    with pytest.raises(ExportError, match="opset 13 was asked for, torch wrote"):
        _program(nn.LayerNorm(3), torch.randn(2, 3), opset=13)


# Refusals -------------------------------------------------------------------------------------


class Stateful(nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


class NoOutput(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return 3


REFUSED: list[tuple[nn.Module, str, str]] = [
    (Fn(lambda m, x: F.dropout(x, 0.5)), "dropout", "at random"),
    (Fn(lambda m, x: x + torch.rand_like(x)), "rand_like", "at random"),
    (Fn(lambda m, x: torch.bernoulli(x.sigmoid())), "bernoulli", "at random"),
    (Stateful(), "count", "changes state"),
    (NoOutput(), "no tensor", "no tensor"),
    (Fn(lambda m, x: torch.linalg.inv(x @ x.T)), "aten.linalg_inv", "ONNX has no operator"),
    (Fn(lambda m, x: x * 2 if x.sum() > 0 else x - 1), "data", "branches on the value"),
    (Fn(lambda m, x: sum(x * i for i in range(int(x.sum())))), "data", "branches on the value"),
]


@pytest.mark.parametrize(("module", "what", "words"), REFUSED)
def test_refusals_name_the_operator_and_the_users_line(
    module: nn.Module, what: str, words: str
) -> None:
    with pytest.raises(ExportError, match=words) as caught:
        _program(module, torch.rand(3, 3))
    message = caught.value.message
    assert what.lower() in message.lower()
    assert len(message.splitlines()) <= 5
    if words != "no tensor":
        assert "test_export.py:" in message
        assert caught.value.hint


def test_dropout_that_evaluation_turns_off_is_no_random_operator() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.4, batch_first=True)
    program, loaded = _program(layer, torch.randn(2, 5, 8))
    assert "Dropout" not in {n.op_type for n in program.model.graph}
    _same(program, loaded, torch.randn(2, 5, 8))


def test_train_mode_lists_the_submodules(net: Any) -> None:
    net.norm.train()
    loaded = Loaded("module", "net", module=net, args=(torch.randn(1, 1, 6, 6),))
    with pytest.raises(ExportError, match=r"1 submodules: norm\)"):
        export(loaded)
    export(loaded, eval_mode=True)
    assert net.norm.training


def test_a_train_mode_exported_program_is_refused(net: Any, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(net.train(), (torch.randn(2, 1, 6, 6),)), tmp_path / "t")
    with pytest.raises(ExportError, match="dropout"):
        export(load(tmp_path / "t"))


def test_a_fixed_dimension_declared_dynamic() -> None:
    module = Fn(lambda m, x: x.reshape(2, 9))
    with pytest.raises(ExportError, match="fixed by the model's code") as caught:
        _program(module, torch.rand(6, 3), shapes={"x": {0: "batch"}})
    assert "batch is fixed at 6" in caught.value.message
    assert "dynamic_shapes" in caught.value.hint


# Nothing else changes -------------------------------------------------------------------------


def test_export_leaves_the_model_and_the_terminal_alone(
    net: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    net.requires_grad_(True)
    before = copy.deepcopy(net.state_dict())
    grads = [p.requires_grad for p in net.parameters()]
    _program(net, torch.randn(2, 1, 6, 6), shapes={"x": {0: "batch"}})
    assert [p.requires_grad for p in net.parameters()] == grads
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = f"""
import hashlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from conftest import make_net
from npuc.export import export
from npuc.load import Loaded
loaded = Loaded("module", "net", module=make_net(), args=(torch.ones(2, 1, 6, 6),),
                dynamic_shapes={{"x": {{0: "batch"}}}})
print(hashlib.sha256(export(loaded).serialized()).hexdigest())
"""
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=True, cwd=tmp_path,
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(hashes) == 1 and len(hashes.pop()) == 64


def test_capture_of_a_module_that_cannot_be_copied() -> None:
    module = nn.Linear(2, 2).eval()
    module.cache = module.weight * 2
    with pytest.raises(ExportError, match="cannot be copied"):
        capture(module, (torch.ones(1, 2),), {})
