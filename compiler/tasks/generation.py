"""How far a language model's next tokens stray from the original's."""

from collections.abc import Sequence

import numpy as np

from npuc.program import Tensors
from npuc.tasks import classification
from npuc.tasks.measured import Array, Labels, Scores, alike, only, pick


def measure(
    reference: Sequence[Tensors],
    candidate: Sequence[Tensors],
    labels: Sequence[Labels],
    *,
    logits: str = "",
    ties: float = 0.0,
) -> Scores:
    """Score each sequence by the share of its positions where the next token is right.

    Right is the label; without labels the token that the original finds most likely, and any
    within `ties` of it. `logits` names the output: float (1, tokens, vocabulary), by default the
    only float output, or integers that are tokens. All positions are given the original's context
    (teacher forcing): in free generation everything after the first other token differs. The note
    says where that is, and the mean KL divergence.
    """
    name = logits or only(reference[0], "f", "logits")
    before, after = pick(reference, name), pick(candidate, name)
    alike(before, after, name)
    found = classification.measure(
        [{name: a} for a in before], [{name: a} for a in after], labels, scores=name, ties=ties
    )
    return Scores(found.reference, found.candidate, _note(before, after, ties))


def _note(before: Sequence[Array], after: Sequence[Array], ties: float) -> str:
    firsts = [first_divergence(a, b, ties) for a, b in zip(before, after, strict=True)]
    apart = [(first, at) for at, first in enumerate(firsts) if first is not None]
    if not apart:
        said = "every next token is the original's"
    else:
        first, at = min(apart)
        said = (
            f"{len(apart)} of {len(firsts)} sequences choose another token, "
            f"the earliest at position {first} of sequence {at}"
        )
    if before[0].dtype.kind != "f":
        return said
    mean = np.concatenate([kl(a, b) for a, b in zip(before, after, strict=True)]).mean()
    return f"{said}; mean KL divergence {mean:.3g} nats"


def first_divergence(reference: Array, candidate: Array, ties: float = 0.0) -> int | None:
    """Return the first position whose next token is another one, or None.

    Both are logits (..., vocabulary) or tokens; a token within `ties` of the best is no other one.
    """
    if reference.dtype.kind == "f":
        ref, got = (_rows(a) for a in (reference, candidate))
        chosen = np.take_along_axis(ref, got.argmax(axis=-1)[:, None], axis=-1)[:, 0]
        same = (chosen >= ref.max(axis=-1) - ties) & ~np.isnan(got).any(axis=-1)
    else:
        same = reference.ravel() == candidate.ravel()
    return None if same.all() else int(same.argmin())


def kl(reference: Array, candidate: Array) -> Array:
    """Return KL(reference || candidate) of the next token's distribution per position, in nats.

    Both are logits (..., vocabulary); -inf is a token that is ruled out. Infinite where the
    candidate rules out what the reference does not, NaN where a logit is.
    """
    ref, got = (_log_softmax(_rows(a)) for a in (reference, candidate))
    share = np.exp(ref)
    with np.errstate(invalid="ignore"):
        terms = np.where(share > 0, share * (ref - got), np.where(np.isnan(share), np.nan, 0.0))
    # Rounding can leave a sum of -1e-17 where the two are equal.
    found: Array = np.maximum(terms.sum(axis=-1), 0.0)
    return found


def _rows(logits: Array) -> Array:
    rows: Array = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    return rows


def _log_softmax(rows: Array) -> Array:
    rows = rows - rows.max(axis=-1, keepdims=True)
    found: Array = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    return found
