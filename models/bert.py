"""Bidirectional text encoder: Devlin et al. 2018, "BERT". Attention is written out, and masked."""

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(QK'/sqrt(d) + bias) V over (N, tokens, width), the projections kept apart."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias
        mixed = torch.softmax(scores, dim=-1) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): normalisation comes last."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.norm2 = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, bias)))
        out: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return out


class Bert(nn.Module):
    """Token ids and mask, both int64 (N, tokens), mask 1 where a token is → pooled or logits.

    Without `classes` the answer is the hidden states (N, tokens, width) and the pooled first
    token (N, width), as in the published base model; with it, class logits (N, classes). All
    tokens belong to segment 0.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        positions: int,
        width: int,
        depth: int,
        heads: int,
        inner: int,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(positions, width)
        self.segments = nn.Embedding(2, width)
        for table in (self.words, self.places, self.segments):
            nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, classes) if classes else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.places(place) + self.segments.weight[0]
        x = self.dropout(self.norm(x))
        # Finite, so that a row without any token still gives numbers; e^-10000 is 0 in float32.
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        pooled: Tensor = torch.tanh(self.pooler(x[:, 0]))
        if self.head is None:
            return x, pooled
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


def text_bert() -> Bert:
    """Return the small encoder that tells which help topic 48 words come from."""
    return Bert(vocabulary=1024, positions=48, width=48, depth=2, heads=4, inner=96, classes=5)


def bert_base() -> Bert:
    """Return BERT-base, uncased vocabulary: 109.48 million parameters."""
    return Bert(vocabulary=30522, positions=512, width=768, depth=12, heads=12, inner=3072)
