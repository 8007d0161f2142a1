"""Writes one small random model for each way in which llama.cpp keeps what it has read.

Their vocabulary is the 256 bytes, so a token's bytes tell its id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from .random_models import finish

Memory = Literal["full", "window", "recurrent", "hybrid"]
MEMORIES: tuple[Memory, ...] = ("full", "window", "recurrent", "hybrid")
ARCH = {"full": "llama", "window": "gemma3", "recurrent": "mamba", "hybrid": "lfm2"}

N_EMBD, N_FF, N_HEAD, N_CTX, WINDOW = 64, 96, 2, 512, 16
HEAD = N_EMBD // N_HEAD
N_INNER, N_STATE, N_DT, N_CONV = 128, 16, 4, 4
FIRST_BYTE = 3
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
)
"""As of a model that thinks: the tag that its answers begin with is not in later prompts."""
N_VOCAB = FIRST_BYTE + 256


def byte_tokens(raw: bytes) -> tuple[int, ...]:
    return tuple(FIRST_BYTE + byte for byte in raw)


def begin(path: Path, arch: str) -> gguf.GGUFWriter:
    """A model of two layers with a vocabulary and no tensors yet."""
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_name(f"random {arch}")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * N_VOCAB)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    return writer


def write_model(path: Path, memory: Memory) -> Path:
    """Two layers, the first of them attending to everything unless the memory is recurrent alone."""
    arch = ARCH[memory]
    rng = np.random.default_rng(5)
    writer = begin(path, arch)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32))

    def filled(name: str, value: Any, *shape: int) -> None:
        writer.add_tensor(name, np.full(shape, value, dtype=np.float32))

    def attention(layer: str) -> None:
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"{layer}.{name}.weight", N_EMBD, N_EMBD)
        if memory != "full":
            filled(f"{layer}.attn_q_norm.weight", 1, HEAD)
            filled(f"{layer}.attn_k_norm.weight", 1, HEAD)

    def feed_forward(layer: str) -> None:
        filled(f"{layer}.ffn_norm.weight", 1, N_EMBD)
        tensor(f"{layer}.ffn_gate.weight", N_FF, N_EMBD)
        tensor(f"{layer}.ffn_up.weight", N_FF, N_EMBD)
        tensor(f"{layer}.ffn_down.weight", N_EMBD, N_FF)

    def state_space(layer: str) -> None:
        tensor(f"{layer}.ssm_in.weight", 2 * N_INNER, N_EMBD)
        tensor(f"{layer}.ssm_conv1d.weight", N_INNER, N_CONV)
        filled(f"{layer}.ssm_conv1d.bias", 0.1, N_INNER)
        tensor(f"{layer}.ssm_x.weight", N_DT + 2 * N_STATE, N_INNER)
        tensor(f"{layer}.ssm_dt.weight", N_INNER, N_DT)
        filled(f"{layer}.ssm_dt.bias", 0.1, N_INNER)
        filled(f"{layer}.ssm_a", -0.5, N_INNER, N_STATE)
        filled(f"{layer}.ssm_d", 1, N_INNER)
        tensor(f"{layer}.ssm_out.weight", N_EMBD, N_INNER)

    def short_convolution(layer: str) -> None:
        tensor(f"{layer}.shortconv.in_proj.weight", 3 * N_EMBD, N_EMBD)
        tensor(f"{layer}.shortconv.conv.weight", N_EMBD, 3)
        tensor(f"{layer}.shortconv.out_proj.weight", N_EMBD, N_EMBD)

    writer.add_tensor("token_embd.weight", rng.normal(0, 1, (N_VOCAB, N_EMBD)).astype(np.float32))
    filled("token_embd_norm.weight" if memory == "hybrid" else "output_norm.weight", 1, N_EMBD)
    tensor("output.weight", N_VOCAB, N_EMBD)
    if memory == "recurrent":
        writer.add_ssm_conv_kernel(N_CONV)
        writer.add_ssm_inner_size(N_INNER)
        writer.add_ssm_state_size(N_STATE)
        writer.add_ssm_time_step_rank(N_DT)
    else:
        heads = [N_HEAD, 0] if memory == "hybrid" else N_HEAD
        writer.add_head_count(heads)
        writer.add_head_count_kv(heads)
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
        writer.add_rope_dimension_count(HEAD)
    if memory == "window":
        writer.add_sliding_window(WINDOW)
        writer.add_array(f"{arch}.attention.sliding_window_pattern", [False, True])
    if memory == "hybrid":
        writer.add_shortconv_l_cache(3)
    for i, layer in enumerate(("blk.0", "blk.1")):
        filled(f"{layer}.attn_norm.weight", 1, N_EMBD)
        if memory == "recurrent":
            state_space(layer)
            continue
        if memory == "hybrid" and i == 1:
            short_convolution(layer)
        else:
            attention(layer)
        feed_forward(layer)
        if memory == "window":
            filled(f"{layer}.post_attention_norm.weight", 1, N_EMBD)
            filled(f"{layer}.post_ffw_norm.weight", 1, N_EMBD)
    finish(writer)
    return path
