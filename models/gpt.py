"""Causal language model over bytes, after GPT-2 (Radford et al. 2019); output tied to input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """x + causal attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        heads = (self.heads, x.shape[-1] // self.heads)
        q, k, v = (part.unflatten(2, heads).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        # The tanh form of GELU, as GPT-2 has it.
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return out


class GPT(nn.Module):
    """Token ids int64 (N, tokens) → logits of the next token (N, tokens, vocabulary)."""

    def __init__(
        self, *, vocabulary: int, context: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(context, width) * 0.02)
        nn.init.normal_(self.words.weight, std=0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids) + self.places[: input_ids.shape[1]]
        return F.linear(self.norm(self.layers(x)), self.words.weight)


def text_gpt() -> GPT:
    """Return the small model of printable ASCII, 64 characters at a time."""
    return GPT(vocabulary=96, context=64, width=80, depth=3, heads=4)
