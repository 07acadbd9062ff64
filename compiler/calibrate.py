"""Run a program on samples and choose the range each tensor is quantized over."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from npuc.checkpoint import Checkpoint
from npuc.errors import ArtifactError
from npuc.observers import Observer
from npuc.passes.graphs import infer_types
from npuc.passes.qdq.sites import observed
from npuc.profile import IntScheme
from npuc.program import Program, Tensors
from npuc.streaming import stream
from npuc.thresholds import Range, method

FORMAT = "npuc-ranges-1"


@dataclass(frozen=True)
class Ranges(Mapping[str, Range]):
    """Tensor name → the (low, high) its observer chose; also what was seen, and on how much.

    `seen` holds each tensor's true minimum and maximum. A tensor is listed in both or neither.
    """

    chosen: Mapping[str, Range]
    seen: Mapping[str, Range]
    samples: int
    observer: str

    def __getitem__(self, name: str) -> Range:
        return self.chosen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def to_json(self) -> str:
        """Write as JSON that `from_json` reads back equal; floats keep all their digits."""
        tensors = {
            name: {"range": list(self.chosen[name]), "seen": list(self.seen[name])}
            for name in sorted(self.chosen)
        }
        data = {
            "format": FORMAT,
            "observer": self.observer,
            "samples": self.samples,
            "tensors": tensors,
        }
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Ranges":
        """Read what `to_json` wrote; raises `ArtifactError` where it is anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ArtifactError(f"ranges have format {data['format']!r}, expected {FORMAT!r}")
            pairs = {
                key: {n: (float(t[key][0]), float(t[key][1])) for n, t in data["tensors"].items()}
                for key in ("range", "seen")
            }
            return cls(pairs["range"], pairs["seen"], int(data["samples"]), str(data["observer"]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ArtifactError(f"these are not calibrated ranges: {error!r}") from error


def collect(
    program: Program,
    samples: Iterable[Tensors],
    scheme: IntScheme,
    *,
    observer: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    forecast: Callable[[str], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Ranges:
    """Observe every tensor that `scheme` quantizes, one sample at a time, in one pass.

    `samples` yields one call's inputs each; `observer` overrides the scheme's. `progress` is
    called with (samples done, samples in all or 0 where that is unknown). Peak memory is the
    program, its tensors for one sample and a histogram per tensor.

    Raises `UsageError` without samples, for a sample that lacks an input, or an unknown observer;
    `ParityError` where a tensor holds NaN or Inf or ONNX Runtime fails, naming tensor and sample.
    """
    name = observer or scheme.observer
    chosen = method(name)
    copy = program.clone()
    infer_types(copy.model)
    names = observed(copy.model, scheme)
    watching = {tensor: Observer(chosen.bins) for tensor in names}
    done = stream(
        copy, samples, watching, progress=progress, forecast=forecast, checkpoint=checkpoint
    )
    watched = {t: seen for t, seen in watching.items() if seen.low <= seen.high}
    return Ranges(
        {t: chosen.choose(seen, scheme) for t, seen in watched.items()},
        {t: (seen.low, seen.high) for t, seen in watched.items()},
        done,
        name,
    )
