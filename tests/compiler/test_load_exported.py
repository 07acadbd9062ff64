"""Exported programs load without running code of theirs, or are refused with the reason."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from npuc import pt2 as pt2_module
from npuc.errors import LoadError
from npuc.load import load


def test_exported_program_loads_and_answers(pt2: Path, net: Any) -> None:
    loaded = load(pt2)
    x = torch.randn(3, 1, 6, 6)
    assert loaded.kind == "pt2"
    assert torch.equal(loaded.captured.native(x), net(x))
    assert loaded.captured.signature.input_names == ("x",)


class Payload:
    """Unpickling an instance creates a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.sentinel), "w"))


Model = Callable[[dict[str, Any]], None]


def _set(path: str, value: Any) -> Model:
    def change(data: Any) -> None:
        *parts, last = path.split("/")
        for part in parts:
            data = data[int(part)] if part.isdigit() else data[part]
        data[int(last) if last.isdigit() else last] = value

    return change


def _code(sentinel: Path) -> str:
    return f"__import__('pathlib').Path({str(sentinel)!r}).touch()"


NODES = "graph_module/graph/nodes"
SPEC = "graph_module/module_call_graph/0/signature"
HOSTILE: dict[str, Callable[[Path], Model]] = {
    "size expression": lambda s: _set(
        "graph_module/graph/tensor_values/x/sizes/0/as_expr/expr_str", _code(s)
    ),
    "size expression in a symbol": lambda s: _set(
        "graph_module/graph/tensor_values/x/sizes/0/as_expr/expr_str", f'Symbol("{_code(s)}")'
    ),
    "os.system as an operator": lambda s: _set(f"{NODES}/0/target", "torch.os.system"),
    "attrgetter": lambda s: _set(f"{NODES}/0/target", "_operator.attrgetter"),
    "load_library": lambda s: _set(f"{NODES}/0/target", "torch.ops.load_library"),
    "from_file": lambda s: _set(f"{NODES}/0/target", "torch.ops.aten.from_file.default"),
    "dunder walk": lambda s: _set(f"{NODES}/0/target", "torch.ops.aten.add.__class__"),
    "node name with code": lambda s: _set(f"{NODES}/0/name", f"x):\n  {_code(s)}\n#"),
    "input name with code": lambda s: _set(
        "graph_module/graph/inputs/0/as_tensor/name", f"x={_code(s)}"
    ),
    "forward argument with code": lambda s: _set(f"{SPEC}/forward_arg_names", [f"x={_code(s)}"]),
    "parameter path with code": lambda s: _set(
        "graph_module/signature/input_specs/0/parameter/parameter_name", f'a"+{_code(s)}+"'
    ),
    "enum in the tree": lambda s: _set(
        f"{SPEC}/out_spec",
        '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true, \\"fqn\\": '
        '\\"antigravity:x\\", \\"name\\": \\"y\\"}]", "children_spec": []}]',
    ),
    "defaultdict factory": lambda s: _set(
        f"{SPEC}/out_spec",
        '[1, {"type": "collections.defaultdict", "context": {"default_factory_module": '
        '"antigravity", "default_factory_name": "x", "dict_context": []}, "children_spec": []}]',
    ),
    "unknown container": lambda s: _set(
        f"{SPEC}/out_spec", '[1, {"type": "os.system", "context": "1", "children_spec": []}]'
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_graphs_are_refused_before_torch_sees_them(
    pt2: Path, rewrite: Any, json_edit: Any, sentinel: Path, what: str
) -> None:
    path = rewrite(pt2, json_edit("models/model.json", HOSTILE[what](sentinel)))
    with pytest.raises(LoadError, match="unsafe exported program") as caught:
        load(path)
    assert str(path) in caught.value.message
    assert not sentinel.exists()


def test_guards_code_is_dropped(pt2: Path, rewrite: Any, json_edit: Any, sentinel: Path) -> None:
    path = rewrite(pt2, json_edit("models/model.json", _set("guards_code", [_code(sentinel)])))
    loaded = load(path)
    x = torch.randn(2, 1, 6, 6)
    loaded.captured.native(x)
    assert loaded.exported is not None
    loaded.exported.module()(x)
    assert not sentinel.exists()


PLACES = [
    "data/sample_inputs/model.pt",
    "data/weights/model.pt",
    "data/constants/model.pt",
    "extra/notes.txt",
    "npuc/x",
    ".data/more",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["torch archive", "pickle", "old pickle"])
def test_pickles_hidden_in_an_archive(
    pt2: Path, rewrite: Any, sentinel: Path, evil_torch: bytes, place: str, form: str
) -> None:
    data = {
        "torch archive": evil_torch,
        "pickle": pickle.dumps(Payload(sentinel), protocol=4),
        "old pickle": pickle.dumps(Payload(sentinel), protocol=0),
    }[form]
    path = rewrite(pt2, lambda members: members.__setitem__(place, data))
    with pytest.raises(LoadError, match="unsafe exported program") as caught:
        load(path)
    assert place in caught.value.message
    assert not sentinel.exists()


@pytest.mark.parametrize("group", ["weights", "constants"])
@pytest.mark.parametrize(
    "entry",
    [
        {"path_name": "weight_0", "use_pickle": True},
        {"path_name": "custom_obj_0", "use_pickle": False},
        {"path_name": "opaque_obj_0", "use_pickle": False},
    ],
)
def test_pickled_weights_and_objects(
    pt2: Path, rewrite: Any, json_edit: Any, sentinel: Path, evil_pickle: bytes,
    group: str, entry: dict[str, Any],
) -> None:  # fmt: skip
    name = f"data/{group}/model_{group}_config.json"

    def change(members: dict[str, bytes]) -> None:
        add = {**entry, "is_param": False, "tensor_meta": None}
        json_edit(name, lambda d: d["config"].__setitem__("extra", add))(members)
        members[f"data/{group}/{entry['path_name']}"] = evil_pickle

    with pytest.raises(LoadError, match="pickle"):
        load(rewrite(pt2, change))
    assert not sentinel.exists()


def test_the_attacks_are_real(
    pt2: Path, rewrite: Any, json_edit: Any, sentinel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the checks, torch.export.load does run the size expression."""
    change = HOSTILE["size expression"](sentinel)
    path = rewrite(pt2, json_edit("models/model.json", change))
    monkeypatch.setattr(pt2_module, "check", lambda *_: [])
    with pytest.raises(LoadError):
        load(path)
    assert sentinel.exists()


def test_readers_that_see_different_members(pt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.pt2"
    path.write_bytes(pt2.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("version", "8.20")
    with pytest.raises(LoadError, match=r"one folder|no model"):
        load(path)


def test_a_damaged_graph_is_one_message(pt2: Path, rewrite: Any) -> None:
    for junk in (b"{", b"[" * 100_000, b"[]", b'{"graph_module": 3}'):
        path = rewrite(pt2, lambda members, j=junk: members.__setitem__("models/model.json", j))
        with pytest.raises(LoadError, match=r"model\.json: damaged"):
            load(path)


def test_containers_that_torch_writes_itself_load(tmp_path: Path) -> None:
    """Nested inputs, dict and tuple outputs, dynamic arithmetic, control flow."""

    class Rich(nn.Module):
        def forward(self, a: torch.Tensor, b: dict[str, torch.Tensor]) -> dict[str, Any]:
            size = a.shape[0] * 2 + a.shape[1] // 2
            wide = torch.cat([a, a])[: size - a.shape[1] // 2]
            pick = torch.cond(a.sum() > 0, lambda t: t * 2, lambda t: t - 1, (a,))
            return {"wide": wide, "pair": (pick, b["k"].mean()), "long.name": a.new_zeros(2)}

    args = (torch.randn(3, 4), {"k": torch.randn(2)})
    shapes = {"a": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}, "b": {"k": None}}
    with torch.no_grad():
        program = torch.export.export(Rich().eval(), args, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "r.pt2")
    loaded = load(tmp_path / "r.pt2")
    assert loaded.captured.signature.output_names == ("wide", "pair_0", "pair_1", "long_name")
