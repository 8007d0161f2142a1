"""Writes a GGUF model of random weights with a real vocabulary: the speed of a real model of that size, none of its sense.

The vocabulary is Qwen2's (151,936 byte-pair tokens, 151,387 merges), read from a vocabulary-only GGUF of llama.cpp's tree,
so that tokenizing, sampling and the output layer cost what they cost in use. Weights are Q8_0. Input and output share
one matrix: a greedy answer repeats the prompt's last word, so every token has a text.

`python bench/random_model.py OUT.gguf [--params 200M] [--vocabulary FILE] [--memory full]`; needs the `gguf` package.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench import peers  # noqa: E402

CACHE = ROOT / "bench" / "models"

SHAPES = {  # layers, embedding, feed-forward, heads, kv heads; the embedding alone has 152,000 rows
    "100M": (8, 512, 1536, 8, 2),
    "200M": (12, 768, 2048, 12, 4),
    "500M": (24, 896, 4864, 14, 2),
    "1B": (16, 2048, 5632, 16, 4),
}
N_CTX = 32768

Role = Literal["alone", "target", "draft"]
"""A target's layers after the first few cost what others cost and change nothing; its draft has only those first few, and
guesses all that it says. Both are surer of it than random weights are."""
SPEAKING, MUTED, GAIN = 2, 0.0, 60.0

Memory = Literal["full", "window", "hybrid"]
ARCH: dict[Memory, str] = {"full": "llama", "window": "gemma3", "hybrid": "lfm2"}
"""How layers keep what they have read: all of it; five of six the last WINDOW tokens; two of three a short convolution."""
WINDOW, CONVOLUTION = 512, 3


def random_weights(params: str, role: Role = "alone", memory: Memory = "full") -> Path:
    """The model of that size in the cache folder, written on the first call."""
    kind = ("" if role == "alone" else "-" + role) + ("" if memory == "full" else "-" + memory)
    path = CACHE / f"random-{params.lower()}{kind}.gguf"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".part")
        write(unfinished, params, peers.vocabulary(), role, memory)
        unfinished.rename(path)
    return path


def write(
    path: Path, params: str, vocabulary: Path, role: Role = "alone", memory: Memory = "full", seed: int = 0
) -> None:
    layers, n_embd, n_ff, heads, kv_heads = SHAPES[params]
    speaking = layers if role == "alone" else SPEAKING
    layers = speaking if role == "draft" else layers
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), ARCH[memory])
    attends = [memory != "hybrid" or i % 3 == 2 for i in range(layers)]
    writer.add_name(f"random {params}")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv([kv_heads * attends[i] for i in range(layers)] if memory == "hybrid" else kv_heads)
    if memory == "window":
        writer.add_sliding_window(WINDOW)
        writer.add_key_length(n_embd // heads)
        writer.add_value_length(n_embd // heads)
    if memory == "hybrid":
        writer.add_shortconv_l_cache(CONVOLUTION)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    n_vocab = copy_vocabulary(vocabulary, writer)

    def matrix(name: str, rows: int, columns: int, volume: float = 1.0) -> None:
        blocks = np.empty((rows, columns // 32, 34), dtype=np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16(0.02 / 64 * volume).tobytes(), dtype=np.uint8)
        blocks[:, :, 2:] = rng.integers(-127, 128, (rows, columns // 32, 32), dtype=np.int8).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def norm(name: str, gain: float = 1.0, n: int = n_embd) -> None:
        writer.add_tensor(name, np.full(n, gain, dtype=np.float32))

    kv = n_embd // heads * kv_heads
    matrix("token_embd.weight", n_vocab, n_embd)
    norm("token_embd_norm.weight" if memory == "hybrid" else "output_norm.weight", 1.0 if role == "alone" else GAIN)
    attention = (("attn_q", n_embd, n_embd), ("attn_k", kv, n_embd), ("attn_v", kv, n_embd), ("attn_output", n_embd, n_embd))
    convolution = (("shortconv.in_proj", 3 * n_embd, n_embd), ("shortconv.out_proj", n_embd, n_embd))
    feed_forward = (("ffn_gate", n_ff, n_embd), ("ffn_up", n_ff, n_embd), ("ffn_down", n_embd, n_ff))
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        if memory == "window":
            norm(f"blk.{i}.post_attention_norm.weight")
            norm(f"blk.{i}.post_ffw_norm.weight")
        if memory != "full" and attends[i]:
            norm(f"blk.{i}.attn_q_norm.weight", n=n_embd // heads)
            norm(f"blk.{i}.attn_k_norm.weight", n=n_embd // heads)
        if not attends[i]:
            kernel = rng.normal(0, 0.5, (n_embd, CONVOLUTION)).astype(np.float32)
            writer.add_tensor(f"blk.{i}.shortconv.conv.weight", kernel)
        for name, rows, columns in (attention if attends[i] else convolution) + feed_forward:
            mute = i >= speaking and name in ("attn_output", "ffn_down")
            matrix(f"blk.{i}.{name}.weight", rows, columns, MUTED if mute else 1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_vocabulary(source: Path, writer: gguf.GGUFWriter) -> int:
    """The tokenizer and chat template of `source`; returns the number of tokens."""
    fields = gguf.GGUFReader(str(source)).fields
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            add_value(writer, name, field)
    return len(fields["tokenizer.ggml.tokens"].data)


def add_value(writer: gguf.GGUFWriter, name: str, field: Any) -> None:
    kind = field.types[0]
    writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--params", choices=SHAPES, default="200M")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--memory", choices=ARCH, default="full")
    arguments = parser.parse_args()
    write(arguments.out, arguments.params, arguments.vocabulary or peers.vocabulary(), memory=arguments.memory)
