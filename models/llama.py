"""Decoder in the form of Llama 2 and 3: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

After Touvron et al. 2023, "Llama 2: Open Foundation and Fine-Tuned Chat Models", four layers deep.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, KV_HEADS, INNER, DEPTH = 768, 12, 4, 2048, 4
VOCABULARY, CONTEXT = 32000, 128
SIZE = WIDTH // HEADS
_SPAN = CONTEXT + 1


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last axis: Zhang and Sennrich 2019."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


def _angles() -> tuple[Tensor, Tensor]:
    """Return cos and sin, (positions, size), of the rotary embedding: Su et al. 2021."""
    rates = 10000.0 ** (-torch.arange(0, SIZE, 2).float() / SIZE)
    turns = torch.arange(_SPAN).float()[:, None] * rates
    turns = torch.cat([turns, turns], dim=-1)
    return turns.cos(), turns.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); three queries share a key and a value.

    Takes the keys and values (N, kv heads, earlier tokens, size) of earlier tokens, None for none,
    and returns those that include its own tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(WIDTH), RMSNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, KV_HEADS * SIZE, bias=False)
        self.value = nn.Linear(WIDTH, KV_HEADS * SIZE, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = self.norm1(x)
        q = _turned(self.query(y).unflatten(2, (HEADS, SIZE)).transpose(1, 2), cos, sin)
        k = _turned(self.key(y).unflatten(2, (KV_HEADS, SIZE)).transpose(1, 2), cos, sin)
        v = self.value(y).unflatten(2, (KV_HEADS, SIZE)).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        wide_k, wide_v = (part.repeat_interleave(HEADS // KV_HEADS, dim=1) for part in (k, v))
        # A single new token may look at everything; of several, each only at those before it.
        mixed = F.scaled_dot_product_attention(q, wide_k, wide_v, is_causal=past is None)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), k, v


class _Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.words.weight, std=0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.norm = RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name, part in zip(("cos", "sin"), _angles(), strict=True):
            self.register_buffer(name, part, persistent=False)
        self.cos: Tensor
        self.sin: Tensor


class Prefill(_Llama):
    """Token ids int64 (N, 128) → logits of the next token (N, vocabulary), keys and values."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        x, cache = self.words(input_ids), []
        cos, sin = self.cos[:CONTEXT], self.sin[:CONTEXT]
        for layer in self.layers:
            x, key, value = layer(x, cos, sin, None)
            cache += [key, value]
        # Generation needs what follows the last token only.
        return self.head(self.norm(x[:, -1])), *cache


class Decode(_Llama):
    """One token int64 (N, 1) and each layer's keys and values (N, kv heads, 128, size) of the 128
    before it → logits of the next token (N, vocabulary), keys and values of all 129.
    """

    def forward(
        self,
        input_ids: Tensor,
        key0: Tensor,
        value0: Tensor,
        key1: Tensor,
        value1: Tensor,
        key2: Tensor,
        value2: Tensor,
        key3: Tensor,
        value3: Tensor,
    ) -> tuple[Tensor, ...]:
        pasts = ((key0, value0), (key1, value1), (key2, value2), (key3, value3))
        x, cache = self.words(input_ids), []
        cos, sin = self.cos[CONTEXT:], self.sin[CONTEXT:]
        for layer, past in zip(self.layers, pasts, strict=True):
            x, key, value = layer(x, cos, sin, past)
            cache += [key, value]
        return self.head(self.norm(x[:, -1])), *cache


def llama() -> Prefill:
    """Return the decoder that reads 128 tokens at once."""
    return Prefill()


def llama_decode() -> Decode:
    """Return the decoder that adds one token to 128 read before."""
    return Decode()
