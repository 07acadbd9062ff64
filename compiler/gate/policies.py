"""Turn what parity.toml states of a model into the policy of its compile."""

from collections.abc import Iterator

from npuc.gate.demands import MaxNoise, MinAgreement, MinCosine, MinSqnr
from npuc.gate.drops import MaxDrop, TaskDrop
from npuc.gate.pairs import Hold, Model
from npuc.held import Demand
from npuc.policy import NOISE_FACTOR, Policy


def policy(model: Model) -> Policy:
    """Return the bars of a model's steps, and what is asked of its artifact beside them.

    The steps' bars are for all outputs at once. One that states a lower SQNR than the others, or
    room for more noise, lowers the bar of the steps; the others keep theirs as demands.
    """
    stated = [own.over(model.hold) for own in model.outputs.values()]
    default = Policy()
    rest = default.sqnr_db if model.hold.sqnr_db is None else model.hold.sqnr_db
    each = [rest if bars.sqnr_db is None else bars.sqnr_db for bars in stated]
    least = min([rest, *each])
    noise = [b.max_noise for b in (model.hold, *stated) if b.max_noise is not None]
    lowered = least < rest and model.hold.sqnr_db is None
    demands = (
        *([MinSqnr(rest, but=tuple(model.outputs))] if lowered else []),
        *_demands(model.hold, "", tuple(model.outputs)),
        *(d for n, own in model.outputs.items() for d in _demands(own.over(model.hold), n, ())),
        *_drops(model),
    )
    return Policy(sqnr_db=least, noise_factor=max([NOISE_FACTOR, *noise]), demands=demands)


def _demands(bars: Hold, output: str, but: tuple[str, ...]) -> Iterator[Demand]:
    if bars.sqnr_db is not None:
        yield MinSqnr(bars.sqnr_db, output, but)
    if bars.max_noise is not None:
        yield MaxNoise(bars.max_noise, output, but)
    if bars.cosine is not None:
        yield MinCosine(bars.cosine, output, but)
    if bars.agreement is not None:
        yield MinAgreement(bars.agreement, bars.sure, output, but)


def _drops(model: Model) -> Iterator[Demand]:
    for score in model.metrics:
        if score.task:
            yield TaskDrop(
                score.name, score.max_drop, score.task, score.labels, score.settings,
                score.confidence,
            )  # fmt: skip
        else:
            yield MaxDrop(
                score.name, score.max_drop, score.function, model.folder, score.labels,
                score.corpus, score.span, score.confidence,
            )  # fmt: skip
