"""Bound a model's time on targets, without compiling: the passes run, nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npuc import plugins
from npuc.check import check
from npuc.errors import UsageError
from npuc.estimate import Estimate, estimate

if TYPE_CHECKING:
    import torch


def estimates(
    source: "str | Path | torch.nn.Module",
    *,
    target: str | Sequence[str],
    precision: str | None = None,
    **options: Any,
) -> list[Estimate]:
    """Return a bound for each target (``all``: every installed one), for one call.

    `options` are those of `npuc.check.check`. Raises `UsageError` for a precision that a target
    does not have; what its passes cannot mend is counted as on the host (`npuc check` says why).
    """
    found = []
    for outcome in check(source, target=target, **options):
        profile = plugins.find(outcome.name).profile
        wanted = precision or profile.precisions[0]
        if wanted not in profile.precisions:
            raise UsageError(
                f"precision {wanted!r} is not available: {profile.name} has "
                f"{', '.join(profile.precisions)}"
            )
        found.append(estimate(outcome.program, profile, wanted))
    return found
