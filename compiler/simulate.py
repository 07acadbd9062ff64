"""A torch module that computes as a device does and can be trained: fine-tune against the chip."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from npuc import plugins
from npuc.calls import as_call
from npuc.errors import UnsupportedError, UsageError
from npuc.passes.graphs import infer_types
from npuc.passes.qdq.sites import observed
from npuc.passes.round_floats import RoundFloats
from npuc.profile import FLOATS, IntScheme
from npuc.program import Program, Tensors
from npuc.quantization import calibrate
from npuc.quantization.thresholds import Range
from npuc.simulation import structure
from npuc.simulation.graph import Simulated
from npuc.simulation.structure import Structure

Key = tuple[Any, ...]
"""The shapes and types of a call's tensors, and what else it holds."""


def simulate(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    target: str,
    precision: str | None = None,
    calibration: Iterable[Any] | None = None,
    observer: str | None = None,
) -> "Simulation":
    """Return a module that computes `model` with a target's numerics, and can be trained.

    Its parameters are those of `model`: training it trains `model`, which is saved and compiled
    as ever. Ranges of activations come from `calibration`, an iterable of calls such as a
    DataLoader (labels behind the inputs are left out), by default from `example_inputs` alone.
    `target`, `precision` and `observer` as for `npuc.compile`.

    Raises `UsageError` without any inputs, for a target or precision that is not there, and
    `UnsupportedError` for operators that have no gradient here; and what `npuc.compile` raises
    where the model cannot be captured.
    """
    found = plugins.find(target)
    chosen = precision or found.profile.precisions[0]
    known = [name for name in found.profile.precisions if name == "float" or name not in FLOATS]
    if chosen not in known:
        raise UsageError(f"precision {chosen!r} is not simulated: {target} has {', '.join(known)}")
    structure.check(model)
    made = Simulation(model, target, chosen, observer)
    calls = [] if example_inputs is None else [example_inputs]
    data = calls if calibration is None else _listed(calibration)
    if not data:
        raise UsageError(
            "there are no inputs to simulate the model on",
            hint="give example_inputs, or calibration: an iterable of calls, such as a DataLoader",
        )
    made.calibrate(data)
    return made


class Simulation(nn.Module):
    """`model` as a device computes it, for calls of any shape that `model` takes.

    - Weights are coded anew at every call, with scales of the weights as they are then.
    - Activations are coded with the ranges of the calibration; a value outside is clipped and
      has no gradient. All other rounding lets gradients through as if it were not there.
    - Batch normalization is part of the convolution before it, as on the device: it uses its
      running statistics and does not update them. Dropout does nothing. `train()` and `eval()`
      change neither.
    - Buffers, but for those statistics, are constants: as they are at a shape's first call.

    Requantization is rounded from float32; a device's own rule differs by one code now and then.
    Equalization, bias correction and learned rounding are left out: training does their work.

    A shape's first call builds its program, which takes seconds; others are quick.
    """

    def __init__(
        self, model: nn.Module, target: str, precision: str, observer: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.target, self.precision = target, precision
        self.ranges: dict[str, Range] = {}
        self._known: set[str] = set()
        self._found = plugins.find(target)
        self._profile = self._found.profile.at(precision)
        self._observer = observer
        self._structures: dict[Key, Structure] = {}
        self._simulated: dict[Key, Simulated] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, with the device's numerics."""
        simulated = self._at(args, kwargs)
        signature = simulated.captured.signature
        leaves = pytree.tree_leaves((args, _ordered(kwargs, signature.in_spec)))
        call = {n: leaf for n, leaf in zip(signature.inputs, leaves, strict=True) if n}
        found = simulated(call, structure.parameters(self.model))
        spec = simulated.captured.program.call_spec.out_spec
        assert spec is not None  # a captured program knows what it returns
        return pytree.tree_unflatten([found[n] if n else None for n in signature.outputs], spec)

    @property
    def scheme(self) -> IntScheme | None:
        """How integers stand for tensors; None where the precision has floats alone."""
        return self._found.profile.scheme(self.precision)

    def calibrate(self, calls: Iterable[Any]) -> None:
        """Take the ranges of activations from these calls and the parameters as they are now.

        Calls of several shapes are observed shape by shape, and their ranges united.
        """
        self._simulated.clear()
        if self.scheme is None:
            return
        groups: dict[Key, list[Tensors]] = {}
        for item in calls:
            args, kwargs = call_of(self.model, item)
            base = self._base(args, kwargs)
            call = base.captured.signature.flatten(args, kwargs)
            groups.setdefault(key_of(args, kwargs), []).append(call)
        if not groups:
            raise UsageError("no calibration calls", hint="an iterator that was used up before?")
        united: dict[str, Range] = {}
        for key, group in groups.items():
            program = self._structures[key].filled(self.model)
            self._known |= _observed(program, self.scheme)
            found = calibrate.collect(program, group, self.scheme, observer=self._observer)
            for name, (low, high) in found.items():
                least, most = united.get(name, (low, high))
                united[name] = min(least, low), max(most, high)
        self.ranges = united

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """Return the ONNX program of a call's shape, with the weights of its first call."""
        return self._at(args, kwargs).program

    def _base(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Structure:
        key = key_of(args, kwargs)
        if key not in self._structures:
            self._structures[key] = structure.structure(self.model, args, kwargs, self._found)
        return self._structures[key]

    def _at(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Simulated:
        key = key_of(args, kwargs)
        if key not in self._simulated:
            base = self._base(args, kwargs)
            numerics = self._found.numerics(self.precision)
            rounds = [item for item in numerics if isinstance(item, RoundFloats)]
            integers = self.scheme is not None
            if self.scheme is not None:
                self._refuse_unknown(_observed(base.program, self.scheme))
            self._simulated[key] = Simulated(
                base, base.filled(self.model), self._profile,
                self.ranges if integers else None, rounds,
            )  # fmt: skip
        return self._simulated[key]

    def _refuse_unknown(self, names: set[str]) -> None:
        if unknown := sorted(names - self._known):
            raise UnsupportedError(
                f"at this call's shape the program has {len(unknown)} tensors that were not there "
                f"in calibration: {', '.join(unknown[:5])}",
                hint="calibrate with calls of this shape too: simulation.calibrate(calls)",
            )


def _observed(program: Program, scheme: IntScheme) -> set[str]:
    copy = program.clone()
    infer_types(copy.model)
    return set(observed(copy.model, scheme))


def _listed(calibration: Any) -> list[Any]:
    return [calibration] if isinstance(calibration, Tensor | np.ndarray) else list(calibration)


def call_of(model: nn.Module, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read one call, leaving out what forward does not take: a loader's labels."""
    args, kwargs = as_call(item)
    taken = inspect.signature(model.forward).parameters.values()
    kinds = [p.kind for p in taken]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        args = args[: sum(kind in positional for kind in kinds)]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        names = {p.name for p in taken}
        kwargs = {name: value for name, value in kwargs.items() if name in names}
    return args, kwargs


def key_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Key:
    """Return what tells calls of one shape from those of others."""
    leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
    return str(spec), tuple(
        (tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    )


def _ordered(kwargs: Mapping[str, Any], in_spec: Any) -> dict[str, Any]:
    order: Iterator[str] = in_spec.child(1).context if kwargs else iter(())
    return {name: kwargs[name] for name in order}
