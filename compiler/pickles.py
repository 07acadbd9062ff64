"""Read what a pickle would build, without building it.

A pickle is a program for a small stack machine. This module runs the machine on symbols: a name
the pickle would import becomes `Name`, a call becomes `Made`, and nothing is imported or called.
"""

import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

LIMIT = 20_000_000
"""Opcodes read before a pickle is refused; a 100,000-tensor checkpoint has about 5 million."""

TENSOR_NAMES = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "__builtin__.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch._tensor._rebuild_from_type_v2",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)
"""What torch.save writes for tensors; torch.load(weights_only=True) takes all of them."""


class PickleFault(ValueError):
    """The bytes are not a whole, well-formed pickle."""


@dataclass(frozen=True)
class Name:
    """Something the pickle would import."""

    name: str


@dataclass(eq=False)
class Made:
    """What a call would return, with the dictionary items and state that were put into it."""

    function: str
    args: Any = ()
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """The top-level value of a pickle, in symbols, and every name it would import."""

    top: Any
    names: tuple[str, ...]

    @property
    def foreign(self) -> tuple[str, ...]:
        """Names beyond those that tensors need: importing them runs code."""
        return tuple(n for n in self.names if not is_tensor_name(n))

    @property
    def mapping(self) -> Mapping[Any, Any] | None:
        """The top-level dictionary, plain or ordered; None for anything else."""
        if isinstance(self.top, dict):
            return self.top
        if isinstance(self.top, Made) and self.top.function == "collections.OrderedDict":
            return self.top.items
        return None


def is_tensor_name(name: str) -> bool:
    """Whether `name` is one that torch's own tensors need, storages and dtypes included."""
    module, _, last = name.rpartition(".")
    storage = module == "torch" and last.endswith("Storage") and last.isalnum()
    rebuild = module == "torch._utils" and last.startswith("_rebuild_")
    return name in TENSOR_NAMES or storage or rebuild or (module == "torch" and last in _DTYPES)


def is_tensor(value: Any) -> bool:
    """Whether a symbol stands for a tensor or parameter."""
    return isinstance(value, Made) and value.function.startswith(
        ("torch._utils._rebuild_", "torch._tensor._rebuild_", "torch.nn.parameter.")
    )


def read(data: bytes | BinaryIO) -> Contents:
    """Run one pickle symbolically; raises `PickleFault` where it is not well-formed."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > LIMIT:
                raise PickleFault(f"more than {LIMIT} opcodes")
            machine.step(opcode.name, argument)
        return Contents(machine.stack[-1], tuple(dict.fromkeys(machine.names)))
    except PickleFault:
        raise
    except (ValueError, IndexError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise PickleFault(f"not a well-formed pickle: {error}") from error


def read_all(file: BinaryIO, count: int) -> Iterator[Contents]:
    """Read `count` pickles that follow each other, as files from before torch 1.6 hold them."""
    for _ in range(count):
        yield read(file)


_MARK = object()
# fmt: off
_PUSH = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
})
# fmt: on
_EMPTY = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# fmt: off
_DTYPES = frozenset({
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
    "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "complex32",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "qint8", "quint8",
    "qint32", "per_tensor_affine", "per_channel_affine",
})
# fmt: on


class _Machine:
    """The pickle virtual machine over symbols. Unknown opcodes raise: nothing is skipped."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: list[str] = []

    def step(self, op: str, arg: Any) -> None:
        if op in _PUSH:
            self.stack.append(arg)
        elif op in _EMPTY:
            self.stack.append(_EMPTY[op])
        elif op in ("PROTO", "FRAME", "STOP", "READONLY_BUFFER"):
            pass
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(arg)] = self.stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(arg)])
        else:
            handler = getattr(self, f"_{op.lower()}", None)
            if handler is None:
                raise PickleFault(f"opcode {op}")
            handler(arg)

    def _since_mark(self) -> list[Any]:
        index = max(i for i, value in enumerate(self.stack) if value is _MARK)
        values = self.stack[index + 1 :]
        del self.stack[index:]
        return values

    def _name(self, name: str) -> None:
        self.names.append(name)
        self.stack.append(Name(name))

    def _call(self, function: Any, args: Any) -> None:
        name = function.name if isinstance(function, Name) else "?"
        if name == "?":
            self.names.append("(the result of a call)")
        self.stack.append(Made(name, args))

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _global(self, arg: str) -> None:
        self._name(arg.replace(" ", ".", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        known = isinstance(name, str) and isinstance(module, str)
        self._name(f"{module}.{name}" if known else "(a computed name)")

    def _inst(self, arg: str) -> None:
        args = self._since_mark()
        self._name(arg.replace(" ", ".", 1))
        self._call(self.stack.pop(), args)

    def _obj(self, _: Any) -> None:
        function, *args = self._since_mark()
        self._call(function, args)

    def _reduce(self, _: Any) -> None:
        args = self.stack.pop()
        self._call(self.stack.pop(), args)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._reduce(None)

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Made) and target.function != "collections.OrderedDict":
            target.items["state"] = state

    def _ext1(self, arg: Any) -> None:
        self._name(f"(extension {arg})")

    _ext2 = _ext4 = _ext1

    def _persid(self, arg: Any) -> None:
        self.stack.append(Made("persistent", arg))

    def _binpersid(self, _: Any) -> None:
        key = self.stack.pop()
        # Before torch 1.6 a class was written as ("module", class, file, source).
        old = isinstance(key, tuple) and len(key) == 4 and key[0] == "module"
        self.stack.append(key[1] if old else Made("persistent", key))

    def _next_buffer(self, _: Any) -> None:
        self.stack.append(Made("buffer"))

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _empty_set(self, _: Any) -> None:
        self.stack.append([])  # members are symbols, not all of them hashable

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def _appends(self, _: Any) -> None:
        values = self._since_mark()
        self._extend(self.stack[-1], values)

    _additems = _appends

    def _extend(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        values = self._since_mark()
        self._put(self.stack[-1], values)

    def _put(self, target: Any, pairs: list[Any]) -> None:
        items = target.items if isinstance(target, Made) else target
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[key if isinstance(key, str | int | float | bool | bytes) else repr(key)] = value

    def _dict(self, _: Any) -> None:
        values: dict[Any, Any] = {}
        self._put(values, self._since_mark())
        self.stack.append(values)

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    _frozenset = _tuple

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]
