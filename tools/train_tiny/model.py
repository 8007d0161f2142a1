"""The network: a llama of a few layers, spelled so that its weights go into a GGUF as they are.

Rotary pairs are neighbours (2i, 2i+1), as llama.cpp has them for this architecture, so that no row is permuted on
export. Embedding and output share one matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    vocab: int = 1536
    width: int = 128
    layers: int = 6
    heads: int = 4  # of 32 numbers each: quantised KV caches need a multiple of 32
    kv_heads: int = 2
    hidden: int = 384
    context: int = 2048
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.width // self.heads


def rotation(shape: Shape, length: int) -> Tensor:
    """[length, head / 2] unit complex numbers, one per position and pair."""
    frequencies = shape.rope_base ** (-torch.arange(0, shape.head, 2).float() / shape.head)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotates [batch, heads, length, head] by position."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[: x.shape[2]]).flatten(-2).type_as(x)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [batch, heads, length, head] over fewer key and value heads."""
    # In float32 even under autocast: on a CPU the backward pass of the bfloat16 kernel takes five times as long.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True, enable_gqa=True)


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head
        self.attn_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        normed = self.attn_norm(x)
        heads = (-1, self.shape.head)
        q = rotate(self.attn_q(normed).unflatten(-1, heads).transpose(1, 2), turns)
        k = rotate(self.attn_k(normed).unflatten(-1, heads).transpose(1, 2), turns)
        v = self.attn_v(normed).unflatten(-1, heads).transpose(1, 2)
        mixed = attend(q, k, v)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(2))
        normed = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(normed)) * self.ffn_up(normed))


class Model(nn.Module):
    """Module names are llama.cpp's tensor names."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.register_buffer("turns", rotation(shape, shape.context), persistent=False)
        nn.init.normal_(self.token_embd.weight, std=0.02)
        for name, weight in self.blk.named_parameters():
            if weight.ndim == 2:
                # What adds to the residual stream starts small, so that depth does not change its scale.
                residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5 if residual else 0.05)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] token ids to the last hidden state, normed; `logits` reads it."""
        return self.read(self.token_embd(ids))

    def read(self, x: Tensor) -> Tensor:
        """The same of [batch, length, width] embeddings, which need not be of tokens."""
        for block in self.blk:
            x = block(x, self.turns)
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.token_embd.weight)
