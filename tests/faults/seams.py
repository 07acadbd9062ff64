"""Where a defect is put into npuc's real pipeline, and what a seeded fault is."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir

from npuc.passes.base import Pass
from npuc.profile import Profile
from npuc.program import Program, Tensors

Array = np.ndarray[Any, Any]
Site = Callable[[ir.Model], ir.Node]
Edit = Callable[[ir.Model, ir.Node], None]
Touched = set[str]
"""Names of the nodes and tensors that a fault changed, filled in while it is injected."""

Seam = Callable[[Touched], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One defect: `seam` puts it in while its context is open.

    `kind` is the kind of step at fault (reference, export, pass, quantization, numerics, lowering)
    and `step` its name in the report. `like` is the public issue or paper it is modelled on. `call`
    are further arguments of `npuc.compile`; `source` makes a model file for it in a folder, by
    default the reference model is compiled. `sited` is False where no single operator is at fault.
    """

    name: str
    model: str
    target: str
    precision: str
    kind: str
    step: str
    what: str
    like: str
    seam: Seam = field(repr=False)
    call: Mapping[str, Any] = field(default_factory=dict)
    source: Callable[[Path], Path] | None = field(default=None, repr=False)
    sited: bool = True

    @contextmanager
    def inject(self) -> Iterator[Touched]:
        """Put the defect in; yields the names of what it changes, complete at the end."""
        touched: Touched = set()
        with self.seam(touched):
            yield touched


class Chosen:
    """Chooses a node once, in the first model it sees; later ones by the name of its result.

    So that the fault stays where it is when a smaller part of the model goes the same way.
    """

    def __init__(self, site: Site, edit: Edit, touched: Touched) -> None:
        self.site, self.edit, self.touched = site, edit, touched
        self.result = ""

    def __call__(self, model: ir.Model) -> None:
        """Edit the model in place where it has the node."""
        if not self.result:
            node = self.site(model)
            self.result = node.outputs[0].name or ""
            self.touched |= {node.name or "", *(v.name or "" for v in node.outputs)}
        before = tuple(model.graph)
        for node in before:
            if any(v.name == self.result for v in node.outputs):
                self.edit(model, node)
                added = [other for other in model.graph if other not in before]
                self.touched |= {v.name or "" for other in added for v in other.outputs}
                return


def exporter(site: Site, edit: Edit) -> Seam:
    """The exporter writes a wrong node."""

    @contextmanager
    def opened(touched: Touched) -> Iterator[None]:
        import npuc.export as module

        plain, chosen = module._to_onnx, Chosen(site, edit, touched)

        def wrong(*args: Any, **kwargs: Any) -> ir.Model:
            model = plain(*args, **kwargs)
            chosen(model)
            return model

        with mock.patch.object(module, "_to_onnx", wrong):
            yield

    return opened


def a_pass(kind: type[Pass], site: Site, edit: Edit) -> Seam:
    """A pass leaves a wrong node behind, every time it runs."""

    @contextmanager
    def opened(touched: Touched) -> Iterator[None]:
        plain, chosen = kind.apply, Chosen(site, edit, touched)

        def wrong(self: Pass, model: ir.Model, profile: Profile) -> Any:
            outcome = plain(self, model, profile)
            chosen(outcome[0] if isinstance(outcome, tuple) else model)
            return outcome

        with mock.patch.object(kind, "apply", wrong):
            yield

    return opened


def before_pass(kind: type[Pass], site: Site, edit: Edit) -> Seam:
    """A pass misreads a node: it works on what `edit` makes of its input."""

    @contextmanager
    def opened(touched: Touched) -> Iterator[None]:
        plain, chosen = kind.apply, Chosen(site, edit, touched)

        def wrong(self: Pass, model: ir.Model, profile: Profile) -> Any:
            chosen(model)
            return plain(self, model, profile)

        with mock.patch.object(kind, "apply", wrong):
            yield

    return opened


def lowering(site: Site, edit: Edit) -> Seam:
    """The compiler makes code for another node than the program says."""

    @contextmanager
    def opened(touched: Touched) -> Iterator[None]:
        from npuc.targets import tvm

        plain, chosen = tvm.lower, Chosen(site, edit, touched)

        def wrong(program: Program, **options: Any) -> Any:
            copy = program.clone()
            chosen(copy.model)
            return plain(copy, **options)

        with mock.patch.object(tvm, "lower", wrong):
            yield

    return opened


Answer = Callable[[Tensors, Callable[[Tensors], Tensors]], Tensors]
"""Takes a call and the runner inside; what it returns is what the device answers."""


def running(make: Callable[[], Answer]) -> Seam:
    """The runtime answers wrongly; `make` makes what stands between call and answer."""

    @contextmanager
    def opened(touched: Touched) -> Iterator[None]:
        from npuc.targets import tvm

        plain = tvm.load

        class Wrong:
            def __init__(self, inner: Any) -> None:
                self.inner, self.name, self.answer = inner, inner.name, make()

            def __call__(self, inputs: Tensors) -> Tensors:
                return self.answer(inputs, self.inner)

        with mock.patch.object(tvm, "load", lambda files, program: Wrong(plain(files, program))):
            yield

    return opened


def ranges(change: Callable[[str, tuple[float, float]], tuple[float, float] | None]) -> Seam:
    """Calibration hands over another range for the first tensor that `change` gives one."""

    @contextmanager
    def opened(touched: Touched) -> Iterator[None]:
        from npuc.quantization.calibrator import Calibrator

        plain = Calibrator.ranges

        def wrong(self: Calibrator, *args: Any, **kwargs: Any) -> Any:
            found = plain(self, *args, **kwargs)
            for name, (low, high) in found.items():
                other = change(name, (low, high))
                if other is not None:
                    touched.add(name)
                    return replace(found, chosen={**found.chosen, name: other})
            raise LookupError("no tensor's range was changed")

        with mock.patch.object(Calibrator, "ranges", wrong):
            yield

    return opened


def together(*seams: Seam) -> Seam:
    """Several seams at once, for one defect that shows in many places."""

    @contextmanager
    def opened(touched: Touched) -> Iterator[None]:
        from contextlib import ExitStack

        with ExitStack() as stack:
            for seam in seams:
                stack.enter_context(seam(touched))
            yield

    return opened


def nth(op_type: str, index: int = 0) -> Site:
    """Choose the nth node of a kind, counted from the end where negative."""

    def found(model: ir.Model) -> ir.Node:
        return [node for node in model.graph if node.op_type == op_type][index]

    return found


def where(test: Callable[[ir.Node], bool], index: int = 0) -> Site:
    """Choose the nth node that passes a test."""

    def found(model: ir.Model) -> ir.Node:
        return [node for node in model.graph if test(node)][index]

    return found


def arrays(model: ir.Model) -> Iterable[tuple[ir.Value, Array]]:
    """Yield every float initializer with its values."""
    for value in list(model.graph.initializers.values()):
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            yield value, np.array(value.const_value.numpy())
