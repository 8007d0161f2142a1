"""Writes a GGUF model of random weights: the speed of a real one of that size, and none of its sense.

`python bench/random_model.py OUT.gguf [--params 100M|400M|1B] [--vocab 32000]`; needs the `gguf` package. Weights are Q8_0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

SHAPES = {  # layers, embedding, feed-forward, heads, kv heads
    "100M": (12, 768, 2048, 12, 4),
    "400M": (24, 1024, 2816, 16, 8),
    "1B": (22, 2048, 5632, 32, 4),
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(path: Path, params: str, n_vocab: int, seed: int = 0) -> None:
    layers, n_embd, n_ff, heads, kv_heads = SHAPES[params]
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(f"random {params}")
    writer.add_context_length(32768)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    add_vocabulary(writer, n_vocab)

    def matrix(name: str, rows: int, columns: int) -> None:
        scale = np.float16(0.02 / 64)
        blocks = np.empty((rows, columns // 32, 34), dtype=np.uint8)
        blocks[:, :, :2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
        blocks[:, :, 2:] = rng.integers(-127, 128, (rows, columns // 32, 32), dtype=np.int8).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    kv = n_embd // heads * kv_heads
    matrix("token_embd.weight", n_vocab, n_embd)
    writer.add_tensor("output_norm.weight", np.ones(n_embd, dtype=np.float32))
    for i in range(layers):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(n_embd, dtype=np.float32))
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", np.ones(n_embd, dtype=np.float32))
        matrix(f"blk.{i}.attn_q.weight", n_embd, n_embd)
        matrix(f"blk.{i}.attn_k.weight", kv, n_embd)
        matrix(f"blk.{i}.attn_v.weight", kv, n_embd)
        matrix(f"blk.{i}.attn_output.weight", n_embd, n_embd)
        matrix(f"blk.{i}.ffn_gate.weight", n_ff, n_embd)
        matrix(f"blk.{i}.ffn_up.weight", n_ff, n_embd)
        matrix(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """SentencePiece-like: control tokens, the 256 bytes, then made-up words; every one spells something."""
    tokens = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 4]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [gguf.TokenType.BYTE] * 256
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["▁", *letters, *(f"▁{c}" for c in letters)]
    number = 0
    while len(tokens) + len(words) < n_vocab:
        word, rest = "", number
        while rest >= 0:
            word, rest = letters[rest % 26] + word, rest // 26 - 1
        words.append(f"▁w{word}")
        number += 1
    words = words[: n_vocab - len(tokens)]
    tokens += words
    types += [gguf.TokenType.NORMAL] * len(words)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--params", choices=SHAPES, default="100M")
    parser.add_argument("--vocab", type=int, default=32000)
    arguments = parser.parse_args()
    write(arguments.out, arguments.params, arguments.vocab)
