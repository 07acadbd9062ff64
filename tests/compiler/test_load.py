"""Every kind of source loads, or is refused with what it is; no file runs code unasked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from npuc.errors import ExportError, LoadError, UsageError
from npuc.load import load

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

def broken():
    raise RuntimeError("no such configuration")

def number():
    return 3

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)
    def forward(self, x):
        return self.inner(x)
"""


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[str]:
    """A module that only --model-path makes importable; returns its name."""
    import sys

    name = f"factory_of_{tmp_path.name}"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_text(FACTORY)
    yield name
    sys.modules.pop(name, None)


def _sequential(seed: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s, p: torch.save(s, p),
        lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
        lambda s, p: save_file(s, p),
        lambda s, p: torch.save({"epoch": 3, "model_state_dict": s, "best": 0.5}, p),
        lambda s, p: torch.save({"state_dict": {f"module.{k}": v for k, v in s.items()}}, p),
    ],
    ids=["state", "old", "safetensors", "checkpoint", "data-parallel"],
)
def test_weights_need_a_factory_and_then_fill_it(
    tmp_path: Path, factory: str, wrap: Callable[[Any, Path], None]
) -> None:
    net = _sequential()
    path = tmp_path / "w.pt"
    wrap(net.state_dict(), path)
    with pytest.raises(UsageError, match="weights without the model") as caught:
        load(path)
    assert "--model package.module:factory" in caught.value.hint
    loaded = load(path, model=f"{factory}:build", model_path=str(tmp_path / "code"))
    assert isinstance(loaded.module, nn.Module)
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[key], value)


def test_all_differences_between_weights_and_model_at_once(tmp_path: Path, factory: str) -> None:
    state = _sequential().state_dict()
    state["0.weight"] = torch.ones(7, 4)
    state["extra"] = torch.ones(1)
    del state["2.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(LoadError) as caught:
        load(tmp_path / "w.pt", model=f"{factory}:build", model_path=str(tmp_path / "code"))
    for words in ("3 differences", "missing: 2.bias", "unexpected: extra", "(7, 4)", "(3, 4)"):
        assert words in caught.value.message


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("nothing_here:build", UsageError, "nothing_here"),
        ("{}:absent", UsageError, "absent"),
        ("{}", UsageError, "package.module:factory"),
        ("{}:broken", LoadError, "no such configuration"),
        ("{}:number", UsageError, "int, not a module"),
    ],
)
def test_bad_factories(
    tmp_path: Path, factory: str, model: str, error: type[Exception], words: str
) -> None:
    torch.save(_sequential().state_dict(), tmp_path / "w.pt")
    with pytest.raises(error, match="--model") as caught:
        load(tmp_path / "w.pt", model=model.format(factory), model_path=str(tmp_path / "code"))
    assert words in str(caught.value)


def test_ambiguous_checkpoint(tmp_path: Path, factory: str) -> None:
    torch.save({"generator": {"a": torch.ones(1)}, "critic": {"a": torch.ones(1)}}, tmp_path / "c")
    with pytest.raises(LoadError, match=r"several may be meant: \['critic', 'generator'\]"):
        load(tmp_path / "c", model=f"{factory}:build", model_path=str(tmp_path / "code"))


def test_a_pickled_module_only_when_trusted(tmp_path: Path, factory: str) -> None:
    import importlib
    import sys

    code = str(tmp_path / "code")
    sys.path.insert(0, code)
    try:
        own = importlib.import_module(factory).Own().eval()
        torch.save(own, tmp_path / "m.pt")
    finally:
        sys.path.remove(code)
        del sys.modules[factory]
        importlib.invalidate_caches()
    with pytest.raises(LoadError, match=f"{factory}.Own") as caught:
        load(tmp_path / "m.pt")
    assert "--trust-pickle" in caught.value.hint
    with pytest.raises(LoadError, match="code of the pickled model is not here"):
        load(tmp_path / "m.pt", trust_pickle=True)
    loaded = load(tmp_path / "m.pt", trust_pickle=True, model_path=code, inputs=["1x4"])
    assert torch.equal(loaded.captured.native(torch.ones(1, 4)), own(torch.ones(1, 4)))


def test_hostile_pickles_never_run(
    tmp_path: Path, sentinel: Path, evil_torch: bytes, evil_pickle: bytes, factory: str
) -> None:
    (tmp_path / "a.pt").write_bytes(evil_torch)
    (tmp_path / "b.pt").write_bytes(evil_pickle)
    for name in ("a.pt", "b.pt"):
        with pytest.raises((LoadError, UsageError), match=name):
            load(tmp_path / name)
        with pytest.raises((LoadError, UsageError)):
            load(tmp_path / name, model=f"{factory}:build", model_path=str(tmp_path / "code"))
    assert not sentinel.exists()


# TorchScript, AOTInductor, ONNX, others -------------------------------------------------------


def test_torchscript_is_code(tmp_path: Path, net: Any) -> None:
    path = tmp_path / "s.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.trace(net, torch.randn(1, 1, 6, 6)), path)  # type: ignore[no-untyped-call]
    with pytest.raises(LoadError, match="TorchScript") as caught:
        load(path)
    assert "--trust-pickle" in caught.value.hint
    loaded = load(path, trust_pickle=True, inputs=["x:2x1x6x6"])
    x = torch.randn(2, 1, 6, 6)
    assert torch.allclose(loaded.captured.native(x), net(x), atol=1e-6)  # same kernels, reordered


def test_torchscript_can_write_files_while_loading(tmp_path: Path, sentinel: Path) -> None:
    """The reason why it needs --trust-pickle."""
    source = f'''
def forward(self, x):
    torch.save(x, "{sentinel}")
    return x
'''
    module = torch.jit.ScriptModule()
    module.define(source)
    module(torch.ones(1))
    assert sentinel.exists()


def test_refused_kinds_say_what_they_are(tmp_path: Path) -> None:
    for name, data, words in (
        ("empty", b"", "an empty file"),
        ("k.h5", b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        ("t", b"hello", "text file"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LoadError, match=words) as caught:
            load(tmp_path / name)
        assert caught.value.exit_code == 3 and str(tmp_path / name) in caught.value.message
    with pytest.raises(LoadError, match="a directory"):
        load(tmp_path)


def _onnx(path: Path, weight: Any, location: str = "", length: int = 0) -> None:
    tensor = onnx.numpy_helper.from_array(np.asarray(weight, np.float32), "w")
    if location:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, 2]) for n in "xy")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor]
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    path.write_bytes(model.SerializeToString())


def test_onnx_passes_with_named_dimensions_and_its_weights_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from npuc.runners import OnnxRunner

    (tmp_path / "w.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    _onnx(tmp_path / "m.onnx", [1, 2], "w.bin", 8)
    program = load(tmp_path / "m.onnx").program
    assert program is not None and program.symbols == ("x_0",)
    (tmp_path / "w.bin").unlink()
    monkeypatch.chdir("/")
    out = OnnxRunner(program)({"x": np.zeros((3, 2), np.float32)})
    assert out["y"].tolist() == [[1, 2]] * 3


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret", "outside the model's folder"),
        ("/etc/hostname", "outside the model's folder"),
        ("link", "outside the model's folder"),
        ("absent.bin", "is missing"),
        ("short.bin", "too short"),
    ],
)
def test_external_data_stay_in_the_folder(tmp_path: Path, location: str, words: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(8))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "short.bin").write_bytes(bytes(4))
    _onnx(folder / "m.onnx", [1, 2], location, 8)
    with pytest.raises(LoadError, match=words) as caught:
        load(folder / "m.onnx")
    assert "w:" in caught.value.message


def test_onnx_that_is_invalid_or_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    _onnx(path, [float("nan"), float("inf")])
    with pytest.raises(LoadError, match="w: 1 NaN, 1 Inf of 2 values"):
        load(path)
    _onnx(path, [float("-inf"), 0])  # a mask
    load(path)
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match=r"invalid ONNX: .*NoSuchOperator"):
        load(path)
    del model.graph.node[:], model.graph.output[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match=r"no outputs|invalid ONNX"):
        load(path)


# Modules in memory, inputs, zoo ---------------------------------------------------------------


def test_weights_that_are_not_numbers(net: Any) -> None:
    with torch.no_grad():
        net.head.weight[0, :2] = torch.nan
        net.conv.bias[1] = torch.inf
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    with pytest.raises(LoadError) as caught:
        load(net, inputs=["1x1x6x6"])
    assert "head.weight: 2 NaN, 0 Inf of 20" in caught.value.message
    assert "conv.bias: 0 NaN, 1 Inf of 4" in caught.value.message
    assert "mask" not in caught.value.message


class Two(nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor, *, scale: float = 1.0) -> Any:
        return {"y": ids.float() * mask * scale}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["ids:2x3:int46"], "did you mean int64"),
        (["ids:2xa"], "not a shape"),
        (["2x3", "2x3"], "each needs its name"),
        (["ids:2x3:int64", "ids:2x3:int64"], "given twice"),
        (["idz:2x3:int64", "mask:2x3"], "no input 'idz'"),
        (["ids:2x3:int64:x"], "not of the form"),
        (["ids:0x3"], "size 0"),
    ],
)
def test_bad_input_specs(inputs: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(Two().eval(), inputs=inputs)


def test_input_specs_make_examples_in_forwards_order() -> None:
    loaded = load(Two().eval(), inputs=["mask:n=2x3", "ids:n=2x3:int64"])
    assert [a.dtype for a in loaded.args] == [torch.int64, torch.float32]
    assert loaded.captured.axes == {"ids": {0: "n"}, "mask": {0: "n"}}
    with pytest.raises(UsageError, match="--input"):
        _ = load(Two().eval()).captured


def test_train_mode(net: Any) -> None:
    net.train()
    with pytest.raises(ExportError, match="train mode") as caught:
        _ = load(net, inputs=["1x1x6x6"]).captured
    assert "--eval" in caught.value.hint
    assert not load(net, inputs=["1x1x6x6"], eval_mode=True).captured.native.training
    assert net.training


def test_unknown_zoo_name() -> None:
    with pytest.raises(UsageError, match="no-such-model"):
        load("zoo:no-such-model")
