"""Make a program whose weights alone are integer codes: choose widths, then code one by one."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from npuc.errors import UsageError
from npuc.passes.base import Watch, run
from npuc.passes.qdq.groups import Array, GroupCodes, nearest
from npuc.passes.qdq.matrices import Matrix, matrices
from npuc.passes.weight_only import WeightOnly, summary
from npuc.profile import Profile, WeightScheme
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent
from npuc.quantization import compensate
from npuc.quantization.quantizer import Choices, check_skipped
from npuc.quantization.taps import Taps

WIDER = 8
"""Bits of the weights that lose the most, where the scheme has room for some."""

PROBES = 8
"""Calibration calls on which weights are ranked: a rank needs less than a value."""


class WeightCoder:
    """One float program and its calibration calls; the counterpart of `Quantizer`.

    Without calibration calls weights take the nearest codes.
    """

    def __init__(
        self,
        program: Program,
        calls: Sequence[Tensors],
        profile: Profile,
        precision: str,
        choices: Choices | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        scheme = profile.weight_scheme(precision)
        if scheme is None:
            raise UsageError(f"precision {precision!r} does not code weights alone")
        self.scheme: WeightScheme = scheme
        self.prepared, self.calls, self.profile = program, calls, profile
        self.skip = (choices or Choices()).skip
        self.progress = progress or Silent()
        check_skipped(self.skip, [n.name or "" for n in program.model.graph.all_nodes()])

    @cached_property
    def sites(self) -> Mapping[str, tuple[Matrix, ...]]:
        """The weights that are coded, in graph order, with the products that read them."""
        return matrices(self.prepared.model, self.skip)[0]

    @cached_property
    def bits(self) -> Mapping[str, int]:
        """The width of every weight's codes."""
        plain = dict.fromkeys(self.sites, self.scheme.bits)
        room = self.scheme.wide * sum(readers[0].array.size for readers in self.sites.values())
        if not room or not self.calls:
            return plain
        losses = self._losses()
        order = sorted(losses, key=lambda n: -losses[n] / self.sites[n][0].array.size)
        for name in order:
            size = self.sites[name][0].array.size
            if size <= room:
                plain[name], room = WIDER, room - size
        return plain

    @cached_property
    def coded(self) -> Mapping[str, GroupCodes]:
        """The codes of every weight."""
        bits, found = self.bits, {}
        current, arrays = self.prepared, {}
        self.progress.stage(f"code weights for {self.profile.name}")
        for number, (name, readers) in enumerate(self.sites.items()):
            self.progress.advance(number, len(self.sites))
            if self.calls:
                codes = compensate.settle(
                    self.prepared, current, readers, self.calls, self.scheme, bits[name]
                )
            else:
                codes = nearest(readers[0].rows, self.scheme, bits[name])
            found[name] = codes
            arrays[name] = _restored(readers[0], codes)
            if codes.bias is not None:
                bias = readers[0].node.inputs[2]
                assert bias is not None and bias.name  # only where there is one to correct
                arrays[bias.name] = codes.bias
            current = compensate.edited(self.prepared, arrays)
        return found

    def notes(self, calls: Sequence[Tensors] = ()) -> list[str]:
        """Say what was coded, for the report; held-out calls are not needed for that."""
        return [f"weights: {summary(self.coded)}", *self._wider()]

    def program(self, skip: Sequence[str] = (), watch: Watch | None = None) -> Program:
        """Return the program with coded weights, but for those read by the nodes in `skip`."""
        item = WeightOnly(self.scheme, self.coded, (*self.skip, *skip))
        return run(self.prepared, [item], self.profile, watch)

    def _losses(self) -> dict[str, float]:
        """Return what the outputs lose when one weight alone is coded, of each output's power."""
        program, calls = self.prepared, self.calls[:PROBES]
        names = [port.name for port in program.outputs]
        expected = [Taps(program, names)(call, n) for n, call in enumerate(calls)]
        losses = {}
        self.progress.stage(f"rank weights for {self.profile.name}")
        for number, (name, readers) in enumerate(self.sites.items()):
            self.progress.advance(number, len(self.sites))
            codes = nearest(readers[0].rows, self.scheme, self.scheme.bits)
            changed = compensate.edited(program, {name: _restored(readers[0], codes)})
            answers = Taps(changed, names)
            got = [answers(call, n) for n, call in enumerate(calls)]
            losses[name] = sum(_loss(name, expected, got) for name in names)
        return losses

    def _wider(self) -> tuple[str, ...]:
        wider = [name for name, codes in self.coded.items() if codes.bits != self.scheme.bits]
        if not wider:
            return ()
        every = sum(codes.codes.size for codes in self.coded.values())
        share = sum(self.coded[n].codes.size for n in wider) / every
        listed = ", ".join(wider)
        return (f"{share:.0%} of the weights have {WIDER} bits, not {self.scheme.bits}: {listed}",)


def _restored(matrix: Matrix, codes: GroupCodes) -> Array:
    layout = matrix.layout
    stack = layout.rows(matrix.array)
    return layout.restored(codes.real.reshape(stack.shape), matrix.array)


def _loss(name: str, expected: Sequence[Tensors], got: Sequence[Tensors]) -> float:
    power = error = 0.0
    for call, answer in zip(expected, got, strict=True):
        real = call[name].astype(np.float64)
        keep = np.isfinite(real)
        power += float((real[keep] ** 2).sum())
        error += float(((answer[name].astype(np.float64) - real)[keep] ** 2).sum())
    return error / power if power else 0.0
