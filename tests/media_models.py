"""Writes small towers of random weights, by which the bundled model, or a random one, sees and hears: one for each way in
which what is seen becomes tokens. Besides, pictures and sounds to be looked at."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from lmlite.package import bundled_model
from tests.random_models import copied, with_floats, with_tensors

WIDTH = 64  # of the towers that see
N_EMBD = 128  # of the text models, the bundled one and the random one
STRENGTH = 0.3  # of rows, about that of words


class Tower:
    """The weights of a tower as they are drawn, and its metadata."""

    def __init__(self, kind: str, sense: str, seed: int = 5):
        self._random = np.random.default_rng([seed, *kind.encode()])
        self._tensors: dict[str, npt.NDArray[np.float16 | np.float32]] = {}
        self._kind, self._sense = kind, sense
        self.facts: dict[str, int] = {}
        self.flags: list[str] = []

    def matrix(self, name: str, *shape: int, scale: float = 1.0) -> None:
        spread = scale / math.sqrt(math.prod(shape[1:]))
        self._tensors[name] = self._random.normal(0, spread, shape).astype(np.float16)

    def vector(self, name: str, *shape: int, mean: float = 0.0, spread: float = 0.1) -> None:
        self._tensors[name] = self._random.normal(mean, spread, shape).astype(np.float32)

    def norm(self, name: str, size: int, bias: bool = True) -> None:
        self.vector(f"{name}.weight", size, mean=1.0)
        if bias:
            self.vector(f"{name}.bias", size)

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True, scale: float = 1.0) -> None:
        self.matrix(f"{name}.weight", outputs, inputs, scale=scale)
        if bias:
            self.vector(f"{name}.bias", outputs)

    def blocks(
        self, letter: str, width: int, n: int, *, bias: bool = True, gate: bool = False, key_bias: bool = True, hidden: int = 0
    ) -> None:
        hidden = hidden or 2 * width
        for i in range(n):
            at = f"{letter}.blk.{i}"
            self.norm(f"{at}.ln1", width, bias)
            self.norm(f"{at}.ln2", width, bias)
            for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
                self.linear(f"{at}.{name}", width, width, bias and (key_bias or name != "attn_k"))
            if gate:
                self.linear(f"{at}.ffn_gate", width, hidden, bias)
            self.linear(f"{at}.ffn_up", width, hidden, bias)
            self.linear(f"{at}.ffn_down", hidden, width, bias)

    def describe(self, width: int, n_head: int, n_blocks: int, **more: int) -> None:
        self.facts = {"embedding_length": width, "attention.head_count": n_head, "feed_forward_length": 2 * width,
                      "block_count": n_blocks, "projection_dim": N_EMBD, **more}  # fmt: skip

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(str(path), "clip")
        writer.add_type("mmproj")
        writer.add_name(f"random {self._kind}")
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        writer.add_bool(f"clip.has_{self._sense}_encoder", True)
        writer.add_string("clip.projector_type", self._kind)
        for flag in self.flags:
            writer.add_bool(flag, True)
        for name, number in self.facts.items():
            writer.add_uint32(f"clip.{self._sense}.{name}", number)
        writer.add_float32(f"clip.{self._sense}.attention.layer_norm_epsilon", 1e-5)
        if self._sense == "vision":
            writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
            writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
        for name, tensor in self._tensors.items():
            writer.add_tensor(name, tensor)
        return _finish(writer, path)


def _finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_mlp(
    path: Path, n_blocks: int = 3, width: int = WIDTH, side: int = 4, hidden: int = 2 * WIDTH, n_embd: int = N_EMBD
) -> Path:
    """Of one size, `side` x `side` tokens, one after the other."""
    t = Tower("mlp", "vision")
    t.matrix("v.patch_embd.weight", width, 3, 14, 14)
    t.vector("v.patch_embd.bias", width)
    t.vector("v.position_embd.weight", side * side, width, spread=0.5)
    t.norm("v.pre_ln", width)
    t.blocks("v", width, n_blocks, hidden=hidden)
    t.linear("mm.0", width, 128)
    t.linear("mm.2", 128, n_embd, scale=2 * STRENGTH)
    t.describe(width, 4, n_blocks, image_size=14 * side, patch_size=14)
    t.facts.update(feed_forward_length=hidden, projection_dim=n_embd)
    return t.write(path)


def write_pixtral(path: Path) -> Path:
    """Of any size: a token for 28 x 28 pixels and one for the end of a line."""
    t = Tower("pixtral", "vision")
    t.matrix("v.patch_embd.weight", WIDTH, 3, 14, 14)
    t.norm("v.pre_ln", WIDTH, bias=False)
    t.blocks("v", WIDTH, 2, bias=False, gate=True)
    t.vector("mm.input_norm.weight", WIDTH, mean=1.0)
    t.matrix("mm.patch_merger.weight", WIDTH, 4 * WIDTH)
    t.linear("mm.1", WIDTH, N_EMBD)
    t.linear("mm.2", N_EMBD, N_EMBD, scale=2 * STRENGTH)
    t.vector("v.token_embd.img_break", N_EMBD, spread=STRENGTH)
    t.describe(WIDTH, 4, 2, image_size=448, patch_size=14, spatial_merge_size=2)
    t.flags = ["clip.use_silu"]
    return t.write(path)


def siglip(kind: str) -> Tower:
    """For pictures of 64 x 64 pixels, with what lies behind it still to come."""
    t = Tower(kind, "vision")
    t.matrix("v.patch_embd.weight", WIDTH, 3, 8, 8)
    t.vector("v.patch_embd.bias", WIDTH)
    t.vector("v.position_embd.weight", 64, WIDTH, spread=0.5)
    t.blocks("v", WIDTH, 2)
    t.norm("v.post_ln", WIDTH)
    t.flags = ["clip.use_gelu"]
    return t


def write_gemma3(path: Path) -> Path:
    """Of one size, 16 tokens that all see each other."""
    t = siglip("gemma3")
    t.vector("mm.soft_emb_norm.weight", WIDTH, mean=1.0)
    t.matrix("mm.input_projection.weight", WIDTH, N_EMBD, scale=STRENGTH * math.sqrt(N_EMBD / WIDTH))
    t.describe(WIDTH, 4, 2, image_size=64, patch_size=8, **{"projector.scale_factor": 2})
    return t.write(path)


def write_idefics3(path: Path) -> Path:
    """In tiles: a small picture of the whole, then its parts, each of 16 tokens with text around it."""
    t = siglip("idefics3")
    t.matrix("mm.model.fc.weight", N_EMBD, 4 * WIDTH, scale=STRENGTH)
    t.describe(WIDTH, 4, 2, image_size=64, patch_size=8, preproc_image_size=128, **{"projector.scale_factor": 2})
    return t.write(path)


def write_qwen2vl(path: Path) -> Path:
    """Of any size, for a text model whose positions are rows and columns: see `write_qwen2vl_text`."""
    t = Tower("qwen2vl_merger", "vision")
    t.matrix("v.patch_embd.weight", WIDTH, 3, 14, 14)
    t.matrix("v.patch_embd.weight.1", WIDTH, 3, 14, 14)
    t.blocks("v", WIDTH, 2)
    t.norm("v.post_ln", WIDTH)
    t.linear("mm.0", 4 * WIDTH, 128)
    t.linear("mm.2", 128, N_EMBD, scale=2 * STRENGTH)
    t.describe(WIDTH, 4, 2, image_size=448, patch_size=14)
    return t.write(path)


def write_ultravox(path: Path) -> Path:
    """Hears: 375 tokens for each window of 30 seconds."""
    width = 32
    t = Tower("ultravox", "audio")
    for i, inputs in ((1, 80), (2, width)):
        t.matrix(f"a.conv1d.{i}.weight", width, inputs, 3)
        t.vector(f"a.conv1d.{i}.bias", width, 1)
    t.vector("a.position_embd.weight", 1500, width, spread=0.3)
    t.blocks("a", width, 2, key_bias=False)
    t.norm("a.post_ln", width)
    t.vector("mm.a.norm_pre.weight", 4 * width, mean=1.0)
    t.matrix("mm.a.mlp.1.weight", 2 * 96, 4 * width)
    t.vector("mm.a.norm_mid.weight", 96, mean=1.0)
    t.matrix("mm.a.mlp.2.weight", N_EMBD, 96, scale=STRENGTH)
    t.describe(width, 2, 2, num_mel_bins=80, **{"projector.stack_factor": 4})
    return t.write(path)


def write_qwen2vl_text(path: Path) -> Path:
    """A random text model with the bundled one's tokenizer and template, whose positions have three dimensions."""
    n_head, n_kv, head, n_ff, n_layer = 4, 2, 32, 320, 3
    around = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    writer = gguf.GGUFWriter(str(path), "qwen2vl")
    writer.add_context_length(2048)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_kv)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_sections([4, 6, 6, 0])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens: list[str] = []
    kinds: list[int] = []
    for name, field in gguf.GGUFReader(str(bundled_model())).fields.items():
        if name == "tokenizer.ggml.tokens":
            tokens = field.contents()
        elif name == "tokenizer.ggml.token_type":
            kinds = field.contents()
        elif name.startswith("tokenizer."):
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], element)
    writer.add_token_list(tokens + around)
    writer.add_token_types(kinds + [gguf.TokenType.CONTROL] * len(around))
    random = np.random.default_rng(3)

    def matrix(name: str, *shape: int, scale: float = 1.0) -> None:
        writer.add_tensor(f"{name}.weight", random.normal(0, scale * shape[-1] ** -0.5, shape).astype(np.float32))

    def vector(name: str, size: int, mean: float = 0.0) -> None:
        writer.add_tensor(name, random.normal(mean, 0.1, size).astype(np.float32))

    matrix("token_embd", len(tokens) + len(around), N_EMBD, scale=math.sqrt(N_EMBD) * STRENGTH)
    vector("output_norm.weight", N_EMBD, 1.0)
    for i in range(n_layer):
        at = f"blk.{i}"
        vector(f"{at}.attn_norm.weight", N_EMBD, 1.0)
        vector(f"{at}.ffn_norm.weight", N_EMBD, 1.0)
        for name, size in (("attn_q", n_head * head), ("attn_k", n_kv * head), ("attn_v", n_kv * head)):
            matrix(f"{at}.{name}", size, N_EMBD)
            vector(f"{at}.{name}.bias", size)
        matrix(f"{at}.attn_output", N_EMBD, n_head * head)
        matrix(f"{at}.ffn_gate", n_ff, N_EMBD)
        matrix(f"{at}.ffn_up", n_ff, N_EMBD)
        matrix(f"{at}.ffn_down", N_EMBD, n_ff)
    return _finish(writer, path)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "mlp": write_mlp,
    "pixtral": write_pixtral,
    "gemma3": write_gemma3,
    "qwen2vl": write_qwen2vl,
    "ultravox": write_ultravox,
}
"""By family: of one size and in order, of any size, all see all, rows and columns, sound."""


AROUND_TILES = ("\n\n", "<fake_token_around_image>", "<global-img>")
"""What `write_idefics3`'s tower wants to find in a vocabulary."""


def write_tiles_text(path: Path) -> Path:
    """A copy of the bundled model whose last tokens are those around tiles."""
    reader, writer = copied(bundled_model(), path, "tokenizer.ggml.tokens")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tokens[-len(AROUND_TILES) :] = AROUND_TILES
    writer.add_token_list(tokens)
    return with_tensors(reader, writer, path)


def text_model_of(family: str, folder: Path) -> Path:
    """With weights of 32 bits: what it says hardly depends on how a batch is cut."""
    path = folder / f"text-for-{family}.gguf"
    return write_qwen2vl_text(path) if family == "qwen2vl" else with_floats(bundled_model(), path)


# ---- to be looked at -------------------------------------------------------------------------------------------------


def png(width: int, height: int, colour: Callable[[int, int], Sequence[int]]) -> bytes:
    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + b"".join(bytes(colour(x, y)) for x in range(width)) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def stripes(width: int = 96, height: int = 64, step: int = 12, red: int = 230) -> bytes:
    return png(width, height, lambda x, y: (red, 30, 30) if x // step % 2 else (20, 60, 220))


def slope(width: int = 96, height: int = 96) -> bytes:
    return png(width, height, lambda x, y: (255 * x // width, 255 * y // height, 128))


def tone(hertz: float = 440, seconds: float = 1, rate: int = 16000) -> bytes:
    samples = [round(16000 * math.sin(2 * math.pi * hertz * i / rate)) for i in range(int(rate * seconds))]
    data = struct.pack(f"<{len(samples)}h", *samples)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16,
                       b"data", len(data)) + data  # fmt: skip
