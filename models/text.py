"""Help texts as token windows: words for the encoder, characters for the language model."""

import re
from collections import Counter
from functools import cache

import numpy as np
import torch

from npuc.models.data import TOPIC_NAMES, Split, topic_texts

PAD, START, UNKNOWN = 0, 1, 2
VOCABULARY = 1024
WINDOW = 48
CONTEXT = 64

CLASSES = ("specialnames", "compound", "formatstrings", "string-methods", "debugger")
"""The topics told apart: those whose subjects do not overlap."""

_WORD_BLOCK = 120
_SHORTEST = 36
_CHARACTER_BLOCK = 20 * (CONTEXT + 1)


def words(text: str) -> list[str]:
    """Split text into lower-case words and single marks."""
    return re.findall(r"[a-z_]+|[^\sa-z_]", text.lower())


def _is_held_out(block: int) -> bool:
    # Whole blocks are held out, so that no training window overlaps a held-out one.
    return block % 5 == 2


def _texts() -> list[str]:
    texts = dict(zip(TOPIC_NAMES, topic_texts(), strict=True))
    return [texts[name] for name in CLASSES]


@cache
def vocabulary() -> dict[str, int]:
    """Return ids of the most frequent words of the training blocks; others are UNKNOWN."""
    seen: Counter[str] = Counter()
    for text in _texts():
        seen.update(
            word for i, word in enumerate(words(text)) if not _is_held_out(i // _WORD_BLOCK)
        )
    ranked = sorted(seen, key=lambda word: (-seen[word], word))
    return {word: i for i, word in enumerate(ranked[: VOCABULARY - 3], start=3)}


@cache
def snippets(held_out: bool) -> Split:
    """Return ids and mask, int64 (N, 48) each, and the place in CLASSES (N,).

    A window has START and up to 47 words, then PAD under mask 0.
    """
    rng = np.random.RandomState(30 + held_out)  # its stream is frozen, unlike default_rng's
    known, stride = vocabulary(), 24 if held_out else 8
    ids: list[list[int]] = []
    topics: list[int] = []
    for topic, text in enumerate(_texts()):
        tokens = [known.get(word, UNKNOWN) for word in words(text)]
        for block in range(len(tokens) // _WORD_BLOCK + 1):
            if _is_held_out(block) != held_out:
                continue
            part = tokens[block * _WORD_BLOCK : (block + 1) * _WORD_BLOCK]
            for at in range(0, len(part) - 12, stride):
                window = part[at : at + rng.randint(_SHORTEST, WINDOW)]
                ids.append([START, *window, *[PAD] * (WINDOW - 1 - len(window))])
                topics.append(topic)
    order = torch.from_numpy(rng.permutation(len(ids)))  # topics come mixed, also in samples(n)
    table = torch.tensor(ids)[order]
    return Split((table, (table != PAD).long()), torch.tensor(topics)[order])


def characters(text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return ids 0 to 95: newline is 0, printable ASCII follows in its own order from 1."""
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 31
    return np.where((codes < 0) | (codes > 95), 0, codes)


@cache
def passages(held_out: bool) -> Split:
    """Return 64 characters (N, 64) and, for each, the one that follows (N, 64); both int64."""
    ids = characters("".join(topic_texts()))
    stride = CONTEXT + 1 if held_out else CONTEXT // 2
    windows = [
        ids[at : at + CONTEXT + 1]
        for block in range(len(ids) // _CHARACTER_BLOCK)
        if _is_held_out(block) == held_out
        for at in range(block * _CHARACTER_BLOCK, (block + 1) * _CHARACTER_BLOCK - CONTEXT, stride)
    ]
    table = torch.from_numpy(np.stack(windows))
    return Split((table[:, :-1].contiguous(),), table[:, 1:].contiguous())
