"""Check a torch.export archive before torch opens it, because torch.export.load runs code.

What torch 2.13 executes while loading or calling an exported program, and the rule here:

- pickles: weights and constants marked ``use_pickle``, custom and opaque objects, sample inputs
  → refused, except sample inputs that ``torch.load(weights_only=True)`` takes;
- ``sympy.sympify`` evaluates size expressions as Python → they must be calls of known sympy
  functions on integers and symbols (``_check_expression``);
- node targets are looked up as attributes of ``torch``, ``operator`` and ``math``
  (``torch.os.system`` exists) → they must be dispatcher operators or size arithmetic;
- names become source text that is compiled → they must be identifiers or dotted names;
- tree specifications import the modules they name → only built-in containers;
- ``guards_code`` is compiled → dropped after loading (`load`).

What remains: a graph may ask for enormous tensors or loops, as any model may; and torch's C++
zip reader and tensor code see the file's bytes.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npuc import pickles
from npuc.errors import LoadError
from npuc.quiet import quiet
from npuc.sniff import PICKLE_LIMIT
from npuc.zips import open_zip, refuse_damage, strip_root

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_NAMESPACES = frozenset({"aten", "prims", "quantized_decomposed", "torchvision", "torchao"})
_FILE_OPS = frozenset({"from_file", "save", "_save", "load"})  # aten::from_file opens any path
_HIGHER_ORDER = frozenset(
    {"cond", "while_loop", "scan", "map", "map_impl", "associative_scan", "invoke_subgraph"}
    | {"wrap_with_set_grad_enabled", "wrap_with_autocast", "flex_attention", "auto_functionalized"}
    | {"auto_functionalized_v2", "with_effects", "checkpoint", "wrap"}
)
_CONTAINERS = frozenset(
    {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
    | {"collections.deque", "collections.namedtuple", "torch.Size", "builtins.slice"}
)
# fmt: off
_SYMPY = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Eq", "Ne",
    "Equality", "Unequality", "Gt", "Ge", "Lt", "Le", "StrictGreaterThan", "GreaterThan",
    "StrictLessThan", "LessThan", "And", "Or", "Not", "Xor", "true", "false", "BooleanTrue",
    "BooleanFalse", "oo", "int_oo", "Infinity", "NegativeInfinity", "IntInfinity",
    "NegativeIntInfinity", "Abs", "floor", "ceiling", "sqrt", "log", "exp", "sin", "cos", "tan",
    "Piecewise", "ExprCondPair", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv",
    "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow",
    "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat",
    "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "BitwiseFn_bitwise_and",
    "BitwiseFn_bitwise_or",
})
# fmt: on
_SYMBOL = re.compile(r"[suzi]\w{0,40}")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w{0,500}")
_DOTTED = re.compile(r"[\w.\-/ +:@$<>]{0,2000}")
_CALLS = ("graph_module", "module_call_graph", "signature")
_CHECKED = frozenset({(*_CALLS, "in_spec"), (*_CALLS, "out_spec")})  # by _spec_faults
_FREE_TEXT = frozenset({"as_string", "as_strings", "custom"})  # emitted through repr or as data


def load(path: Path, root: str) -> "ExportedProgram":
    """Load an exported program after checking it; raises `LoadError` listing what is unsafe."""
    import torch

    faults = check(path, root)
    if faults:
        raise LoadError(
            f"{path}: unsafe exported program:\n  " + "\n  ".join(faults[:20]),
            hint="save it again from the model with npuc.save or torch.export.save",
        )
    try:
        with quiet():
            program = torch.export.load(path)
    except Exception as error:  # torch raises RuntimeError, KeyError, AssertionError and others
        raise LoadError(
            f"{path}: torch {torch.__version__} cannot load this exported program: "
            f"{str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__}",
            hint="save it again with this torch version, or pass the model with npuc.save",
        ) from error
    program._guards_code = []
    return program


def check(path: Path, root: str) -> list[str]:
    """Return every reason not to load this archive; empty where it is safe."""
    with open_zip(path) as archive:
        names = archive.namelist()
        if not root or strip_root(names)[0] != root:
            return ["its members are not all in one folder"]
        if sorted(_records(path)) != sorted(name[len(root) + 1 :] for name in names):
            return ["torch and Python read different member names from it"]
        refuse_damage(archive, path)
        return list(_faults(archive, root))


def _records(path: Path) -> list[str]:
    import torch

    try:
        return list(torch._C.PyTorchFileReader(str(path)).get_all_records())
    except RuntimeError as error:
        raise LoadError(f"{path}: damaged torch archive: {str(error).splitlines()[0]}") from error


def _faults(archive: zipfile.ZipFile, root: str) -> Iterator[str]:
    models = []
    for info in archive.infolist():
        name = info.filename[len(root) + 1 :]
        if name.startswith("models/"):
            models.append(name)
            yield from _json_faults(archive, info, _graph_faults)
        elif re.fullmatch(r"data/(weights|constants)/\w+_config\.json", name):
            yield from _json_faults(archive, info, _config_faults)
        elif name.startswith("data/sample_inputs/"):
            yield from _sample_faults(name, archive.read(info))
        elif re.fullmatch(r"data/(weights|constants)/.*\.pt", name):
            yield f"{name}: pickled weights in the format of old torch versions"
        else:
            yield from _pickle_faults(archive, info)
    if models != ["models/model.json"]:
        yield f"it must hold one program, models/model.json; it holds {models or 'none'}"


def _json_faults(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, check: Callable[[Any], Iterator[str]]
) -> Iterator[str]:
    try:
        data = json.loads(archive.read(info))
        for fault in check(data):
            yield f"{info.filename}: {fault}"
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        yield f"{info.filename}: damaged: {type(error).__name__}: {error}"


def _config_faults(data: Any) -> Iterator[str]:
    for tensor, entry in data["config"].items():
        place = entry["path_name"]
        if entry["use_pickle"] is not False:
            yield f"{tensor!r} is stored as a pickle ({place!r})"
        elif not re.fullmatch(r"(weight|tensor)_\d+", place):
            yield f"{tensor!r} is stored as {place!r}: pickled objects are not tensors"
        yield from _walk(entry, ())
        if not _DOTTED.fullmatch(tensor):
            yield f"odd tensor name {tensor!r}"


def _sample_faults(name: str, data: bytes) -> Iterator[str]:
    import torch

    foreign = _foreign(data)
    if foreign:
        yield f"{name}: a pickle that would import {', '.join(foreign[:5])}"
        return
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # torch falls back to an unrestricted load on any exception
        yield f"{name}: does not load as plain tensors: {str(error).splitlines()[0][:200]}"


def _pickle_faults(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[str]:
    """Find pickles where none belongs. Nothing here would load them; another tool might."""
    if not 2 <= info.file_size <= PICKLE_LIMIT:
        return
    with archive.open(info) as member:
        start = member.read(2)
    suspicious = start[:1] in b"\x80c(" or start == b"PK"
    foreign = _foreign(archive.read(info)) if suspicious else ()
    if foreign:
        yield f"{info.filename}: a pickle that would import {', '.join(foreign[:5])}"


def _foreign(data: bytes) -> tuple[str, ...]:
    """Names a pickle, or a torch archive, would import beyond tensors; empty if it is neither."""
    if data[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as inner:
                parts = [
                    inner.read(i)
                    for i in inner.infolist()
                    if i.filename.endswith(".pkl") and i.compress_type == zipfile.ZIP_STORED
                ]
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return ("(a damaged archive)",)
        return tuple(name for part in parts for name in _foreign(part))
    try:
        return pickles.read(data).foreign
    except pickles.PickleFault:
        return ()


def _graph_faults(data: Any) -> Iterator[str]:
    module = data["graph_module"]
    for call in module["module_call_graph"]:
        signature = call.get("signature") or {}
        for key in ("in_spec", "out_spec"):
            if signature.get(key):
                yield from _spec_faults(json.loads(signature[key]))
        for name in signature.get("forward_arg_names") or ():
            if not _IDENTIFIER.fullmatch(name):
                yield f"argument name {name!r}"
    yield from _walk({k: v for k, v in data.items() if k != "guards_code"}, ())


def _spec_faults(spec: Any) -> Iterator[str]:
    """Tree specifications: ``[1, {"type", "context", "children_spec"}]``."""
    _, root = spec
    pending = [root]
    while pending:
        node = pending.pop()
        kind, context = node["type"], node["context"]
        if kind is not None and kind not in _CONTAINERS and not _registered(kind):
            yield f"container {kind!r} is not registered with torch here"
        if "__enum__" in str(context) or kind == "collections.defaultdict":
            yield f"container {kind!r} would import a module: {str(context)[:80]!r}"
        for text in _texts(json.loads(context) if isinstance(context, str) else context):
            if not _DOTTED.fullmatch(text):
                yield f"container key {text!r}"
        pending += node["children_spec"]


def _registered(kind: str) -> bool:
    """Whether this process registered the class itself: its code is here already."""
    from torch.utils import _pytree as pytree

    return kind in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE and kind != "collections.defaultdict"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _walk(value: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """Visit every string of the graph and hold it to the rule of its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not _DOTTED.fullmatch(key):
                yield f"key {key!r} in {'.'.join(keys[-3:])}"
            if (*keys, key) not in _CHECKED and (*keys, key)[-2:] != ("nodes", "metadata"):
                yield from _walk(item, (*keys, key))
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, keys)
    elif isinstance(value, str):
        fault = _string_fault(value, keys[-1] if keys else "")
        if fault:
            yield fault


def _string_fault(value: str, key: str) -> str:
    if key in ("target", "as_operator"):
        return _target_fault(value)
    if key == "expr_str":
        return _check_expression(value)
    if key in ("name", "as_name"):
        return "" if not value or _IDENTIFIER.fullmatch(value) else f"{key} {value!r}"
    if key in _FREE_TEXT or _DOTTED.fullmatch(value):
        return ""
    return f"{key} {value[:100]!r}"


def _target_fault(target: str) -> str:
    import torch
    from torch._export.serde.serialize import _SYM_OPS

    parts = target.split(".")
    if not all(_IDENTIFIER.fullmatch(p) for p in parts):
        return f"operator {target!r}"
    if parts[:2] == ["torch", "ops"]:
        if parts[2:3] == ["higher_order"]:
            return "" if len(parts) == 4 and parts[3] in _HIGHER_ORDER else f"operator {target!r}"
        known = len(parts) == 5 and parts[2] in _NAMESPACES and parts[3] not in _FILE_OPS
        packet = getattr(getattr(torch.ops, parts[2]), parts[3], None) if known else None
        overload = getattr(packet, parts[4], None) if packet is not None else None
        if isinstance(overload, torch._ops.OpOverload):
            return ""
        return f"operator {target!r} is not one of torch's own"
    allowed = {f"{f.__module__}.{f.__name__}" for f in _SYM_OPS} | {"_operator.getitem"}
    return "" if target in allowed else f"operator {target!r} is not one of torch's own"


def _check_expression(text: str) -> str:
    """Allow what sympy's ``srepr`` writes: known functions of symbols and numbers, nothing else."""
    fault = f"size expression {text[:100]!r}"
    if len(text) > 20_000:
        return fault + " …"
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return fault
    allowed = (ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.Load)
    arithmetic = (ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.USub, ast.Tuple)
    for node in ast.walk(tree):
        if not isinstance(node, allowed + arithmetic):
            return fault
        if isinstance(node, ast.Name) and not _name_allowed(node.id):
            return fault
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return fault
        if isinstance(node, ast.Constant) and not _constant_allowed(node.value):
            return fault
    return ""


def _name_allowed(name: str) -> bool:
    return name in _SYMPY or _SYMBOL.fullmatch(name) is not None


def _constant_allowed(value: object) -> bool:
    # A string is a symbol's name, or the digits of a Float; sympy evaluates neither as code
    # unless it is more than a plain word.
    if isinstance(value, str):
        return re.fullmatch(r"-?[\w.]{1,60}", value) is not None
    return isinstance(value, int | float | bool) and abs(value) < 2**64
