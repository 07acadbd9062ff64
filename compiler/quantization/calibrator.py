"""Observe a program once, or take what a calibration table says of it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from npuc import outputs
from npuc.errors import ArtifactError, UsageError
from npuc.jsonable import plain
from npuc.kept import Kept
from npuc.passes.graphs import infer_types
from npuc.passes.qdq.sites import observed
from npuc.profile import IntScheme
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent
from npuc.quantization import calibrate, channel_stats, checkpoint, margins
from npuc.quantization.channel_stats import ChannelStatistics
from npuc.quantization.checkpoint import Checkpoint
from npuc.quantization.ranges import (
    Array,
    Range,
    Ranges,
    Table,
    coding,
    digest,
    packed,
    unpacked,
)  # fmt: skip
from npuc.quantization.taps import cores, fingerprint

Axes = Mapping[str, int | tuple[int, ...]]
"""Name of a tensor → the axis or axes of its channels."""


class Calibrator:
    """The calibration of one program for one device.

    With `table` what that file says is used, without looking at any sample; where there is no
    such file yet it is written. While it is observed, what was seen so far is kept beside it in
    ``FILE.partial``, and the next start goes on from there. `notes` say what the ranges rest on.

    Without a table, what is observed is `kept` by content, where that is asked for.

    Raises `OutputError` now where the table could not be written later.
    """

    def __init__(
        self,
        calls: Sequence[Tensors],
        scheme: IntScheme,
        target: str,
        *,
        observer: str | None = None,
        table: Path | None = None,
        progress: Progress | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.kept = kept
        self.calls, self.scheme, self.target = calls, scheme, target
        self.observer, self.path = observer, table
        self.progress = progress or Silent()
        self.notes: list[str] = []
        self._channels: Mapping[str, ChannelStatistics] = {}
        self._checkpoints: list[Checkpoint] = []
        self._made: Table | None = None
        self._table = None if table is None else self._read(table)

    @property
    def given(self) -> bool:
        """Whether the ranges come from a table, and no sample was looked at."""
        return self._table is not None

    def channels(
        self, program: Program, axes: Axes, observable: Axes | None = None
    ) -> Mapping[str, ChannelStatistics]:
        """Return what each channel of the tensors named in `axes` holds (`channel_stats.collect`).

        Of `observable` all is looked at, where that says all of `axes`: what is seen then depends
        on the program alone, so that every target finds the same. ONNX Runtime fuses by what it
        is asked for, so `axes` alone may give other last bits.

        Raises `UsageError` where the table says nothing of some of them.
        """
        if self._table is not None:
            known = self._table.channels
            if missing := [name for name in axes if name not in known]:
                raise UsageError(
                    f"{self.path} has no channels of {', '.join(map(repr, missing))}: it was "
                    "made of another program, or with other options",
                    hint=f"use the options it was made with, or calibrate anew: rm {self.path}",
                )
            return {name: known[name] for name in axes}
        if observable is not None and axes.items() <= observable.items():
            seen = self._observed(program, observable, spare=True)
            if axes.keys() <= seen.keys():
                self._channels = {name: seen[name] for name in axes}
                return self._channels
        # Otherwise there is one to say why a tensor cannot be observed.
        self._channels = self._observed(program, axes, spare=False)
        return self._channels

    def _observed(
        self, program: Program, axes: Axes, *, spare: bool
    ) -> Mapping[str, ChannelStatistics]:
        stage = f"observe channels for {self.target}"
        self.progress.stage(stage)

        def observe() -> Mapping[str, ChannelStatistics]:
            kind = "channels.partial" if spare else "asked.partial"
            return channel_stats.collect(
                program, self.calls, axes, progress=self.progress.advance,
                forecast=lambda text: self.progress.stage(f"{stage}: {text}"),
                checkpoint=self._checkpoint(kind, program, str(sorted(axes.items()))),
                spare=spare,
            )  # fmt: skip

        found = self.once(
            "channels", [program], [plain(axes), spare], lambda: channel_stats.packed(observe())
        )
        return channel_stats.unpacked(found)

    def ranges(
        self,
        program: Program,
        expected: Mapping[str, ChannelStatistics] | None = None,
        known: Mapping[str, Range] | None = None,
    ) -> Ranges:
        """Return the range of every tensor that is coded; writes the table where there is none.

        What was observed is widened to what is `expected` of the channels (see `margins`); `known`
        is what tensors hold on the calls, least and greatest.
        Raises `UsageError` where the table does not fit the program.
        """
        if self._table is not None:
            return self._given(program, self._table)
        stage = f"calibrate for {self.target}"
        self.progress.stage(stage)

        def observe() -> Ranges:
            return calibrate.collect(
                program, self.calls, self.scheme, observer=self.observer,
                progress=self.progress.advance,
                forecast=lambda text: self.progress.stage(f"{stage}: {text}"),
                checkpoint=self._checkpoint(
                    "partial", program, f"{self.observer} {_facts(self.scheme)}"
                ),
                known=known,
            )  # fmt: skip

        how = [self.observer, plain(self.scheme), plain(known or {})]
        found = unpacked(self.once("ranges", [program], how, lambda: packed(observe())))
        found = margins.widened(found, expected or {})
        if self.path is not None:
            self._made = Table(found, coding(self.scheme), fingerprint(program), self._channels)
            outputs.text(self.path, self._made.to_json())
            for item in self._checkpoints:
                item.remove()
            self.notes.append(f"calibration table written: {self.path}")
        return found

    def shifts(self, measure: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        """Return what codes shift each product by, as `measure` finds it on the calls.

        The table's are taken where its ranges were not edited since. Without samples and without
        those there are none, and a note says so.
        """
        if self._table is not None:
            if self._table.shifts_of == digest(self._table.ranges):
                return self._table.shifts
            if not self.calls:
                self.notes.append(
                    f"the ranges in {self.path} were edited: biases are not corrected for them "
                    "without --calibration"
                )
                return {}
        if not self.calls:
            return {}
        found = measure()
        if self._made is not None and self.path is not None:
            self._made = replace(self._made, shifts=found, shifts_of=digest(self._made.ranges))
            outputs.text(self.path, self._made.to_json())
        return found

    def once(
        self,
        stage: str,
        programs: Sequence[Program],
        about: object,
        measure: Callable[[], Mapping[str, Array]],
    ) -> Mapping[str, Array]:
        """Return what `measure` finds in programs on the calls, or found of equal ones.

        `about` is JSON, and says how. With a table it is measured: the table is what keeps it.
        """
        if self.kept is None or self.path is not None:
            return measure()
        # ONNX Runtime's last bits may depend on how many threads it has.
        known = [*map(fingerprint, programs), self._seen, cores(), about]
        return self.kept.arrays(stage, known, measure)

    @cached_property
    def _seen(self) -> str:
        return checkpoint.key((), self.calls)

    def _read(self, path: Path) -> Table | None:
        if not path.exists():
            outputs.probe(path)
            return None
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: not a readable calibration table: {error}") from error
        found = Table.from_json(text, str(path))
        if self.observer not in (None, found.ranges.observer):
            raise UsageError(
                f"{path} holds ranges found by {found.ranges.observer}, not {self.observer}",
                hint=f"leave --observer out, or calibrate anew: rm {path}",
            )
        return found

    def _given(self, program: Program, table: Table) -> Ranges:
        copy = program.clone()
        infer_types(copy.model)
        assert self.path is not None
        table.require(observed(copy.model, self.scheme), self.path)
        ranges = table.ranges
        self.notes.append(
            f"ranges are those of {self.path} ({ranges.observer}, {ranges.samples} samples); "
            "they were not observed"
        )
        if table.coding != coding(self.scheme):
            self.notes.append(
                f"{self.path} was made for {table.coding}; this target codes {coding(self.scheme)}"
            )
        if table.program != fingerprint(program):
            self.notes.append(
                f"{self.path} was made of another version of this program (weights or operators): "
                "its ranges may not fit"
            )
        return ranges

    def _checkpoint(self, suffix: str, program: Program, how: str) -> Checkpoint | None:
        if self.path is None:
            return None
        key = checkpoint.key([fingerprint(program), how, coding(self.scheme)], self.calls)
        found = Checkpoint(self.path.with_name(f"{self.path.name}.{suffix}"), key)
        self._checkpoints.append(found)
        return found


def path_of(
    path: str | Path | None, targets: Sequence[str], precisions: Collection[str]
) -> Path | None:
    """Return where the calibration table is; raises `UsageError` where there is no use for one."""
    if path is None:
        return None
    if len(targets) > 1:
        raise UsageError(
            f"--calibration-table {path} belongs to one target, and there are {len(targets)}",
            hint="compile for one target at a time, each with a table of its own",
        )
    if "float" in precisions:
        raise UsageError(
            f"--calibration-table {path}: nothing is calibrated in precision float",
            hint="add --precision int8",
        )
    return Path(path)


def _facts(scheme: IntScheme) -> list[tuple[str, object]]:
    """Return what the scheme says on how ranges are found; the tensors' names are kept apart."""
    return [("observer", scheme.observer), ("percentile", scheme.percentile)]
