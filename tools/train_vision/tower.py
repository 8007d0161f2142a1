"""The network that looks: a vision transformer whose modules are called as llama.cpp calls its tensors ("mlp" projector)."""

from dataclasses import dataclass

import torch
from pictures import COLOURS, SHAPES, SIDE
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sight:
    patch: int = 14
    width: int = 64
    heads: int = 4
    hidden: int = 128
    blocks: int = 2
    epsilon: float = 1e-5

    @property
    def tokens(self) -> int:
        """What one picture takes of the text model's context."""
        return (SIDE // self.patch) ** 2


class Block(nn.Module):
    def __init__(self, sight: Sight):
        super().__init__()
        self.heads = sight.heads
        self.ln1 = nn.LayerNorm(sight.width, sight.epsilon)
        self.attn_q = nn.Linear(sight.width, sight.width)
        self.attn_k = nn.Linear(sight.width, sight.width)
        self.attn_v = nn.Linear(sight.width, sight.width)
        self.attn_out = nn.Linear(sight.width, sight.width)
        self.ln2 = nn.LayerNorm(sight.width, sight.epsilon)
        self.ffn_up = nn.Linear(sight.width, sight.hidden)
        self.ffn_down = nn.Linear(sight.hidden, sight.width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln1(x)
        q, k, v = (
            linear(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.attn_q, self.attn_k, self.attn_v)
        )
        x = x + self.attn_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.ffn_down(F.gelu(self.ffn_up(self.ln2(x)), approximate="tanh"))


class Tower(nn.Module):
    def __init__(self, sight: Sight, text_width: int, scale: float):
        super().__init__()
        self.patch_embd = nn.Conv2d(3, sight.width, sight.patch, sight.patch)
        self.position_embd = nn.Embedding(sight.tokens, sight.width)
        self.blk = nn.ModuleList(Block(sight) for _ in range(sight.blocks))
        self.post_ln = nn.LayerNorm(sight.width, sight.epsilon)
        self.mm = nn.ModuleDict({
            "0": nn.Linear(sight.width, 2 * sight.width),
            "2": nn.Linear(2 * sight.width, text_width),
        })  # fmt: skip
        # Only for training: what the blocks are to know, asked of them directly.
        self.guess = nn.Linear(sight.width, len(COLOURS) + len(SHAPES))
        nn.init.normal_(self.position_embd.weight, std=0.3)
        with torch.no_grad():  # its words begin about as large as the text model's
            self.mm["2"].weight.mul_(5 * scale)
            self.mm["2"].bias.normal_(std=scale)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[pictures, 3, SIDE, SIDE] to [pictures, tokens, text width], and guesses at colours and shapes."""
        x = self.patch_embd(pixels).flatten(2).transpose(1, 2) + self.position_embd.weight
        for block in self.blk:
            x = block(x)
        x = self.post_ln(x)
        return self.mm["2"](F.gelu(self.mm["0"](x), approximate="tanh")), self.guess(x.mean(1))
