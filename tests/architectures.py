"""Writes small random models of kinds that llama.cpp computes wrongly if they are called as others are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from .memory_models import HEAD, N_CONV, N_EMBD, N_FF, N_HEAD, N_INNER, N_STATE, N_VOCAB, begin
from .random_models import finish

Tensor = Callable[..., None]
SSM_HEADS, DT = 4, 64


def write_tensors(writer: gguf.GGUFWriter, layer: Callable[[Tensor, str, int], None]) -> None:
    rng = np.random.default_rng(5)

    def tensor(name: str, *shape: int) -> None:
        one = np.full(shape, -1.0 if name.endswith("ssm_a") else 1.0)  # states decay
        writer.add_tensor(name, (one if len(shape) == 1 else rng.normal(0, shape[-1] ** -0.5, shape)).astype(np.float32))

    tensor("token_embd.weight", N_VOCAB, N_EMBD)
    tensor("output_norm.weight", N_EMBD)
    tensor("output.weight", N_VOCAB, N_EMBD)
    for i in range(2):
        layer(tensor, f"blk.{i}", i)
    finish(writer)


def write_plamo2(path: Path) -> Path:
    writer = begin(path, "plamo2")
    writer.add_ssm_conv_kernel(N_CONV)
    writer.add_ssm_inner_size(N_INNER)
    writer.add_ssm_state_size(N_STATE)
    writer.add_ssm_time_step_rank(SSM_HEADS)
    writer.add_ssm_group_count(0)
    writer.add_head_count([N_HEAD, N_HEAD])
    writer.add_head_count_kv([0, N_HEAD])
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)

    def layer(tensor: Tensor, name: str, i: int) -> None:
        if i == 0:
            tensor(f"{name}.ssm_in.weight", 2 * N_INNER, N_EMBD)
            tensor(f"{name}.ssm_conv1d.weight", N_INNER, N_CONV)
            tensor(f"{name}.ssm_x.weight", DT + 2 * N_STATE, N_INNER)
            tensor(f"{name}.ssm_dt.weight", SSM_HEADS, DT)
            for part, n in (("dt.bias", SSM_HEADS), ("a", SSM_HEADS), ("d", SSM_HEADS)):
                tensor(f"{name}.ssm_{part}", n)
            tensor(f"{name}.ssm_out.weight", N_EMBD, N_INNER)
            for part, n in (("dt", DT), ("b", N_STATE), ("c", N_STATE)):
                tensor(f"{name}.ssm_{part}_norm", n)
        else:
            tensor(f"{name}.attn_qkv.weight", 3 * N_EMBD, N_EMBD)
            tensor(f"{name}.attn_q_norm.weight", N_HEAD, HEAD)
            tensor(f"{name}.attn_k_norm.weight", N_HEAD, HEAD)
            tensor(f"{name}.attn_output.weight", N_EMBD, N_EMBD)
        tensor(f"{name}.attn_norm.weight", N_EMBD)
        tensor(f"{name}.post_attention_norm", N_EMBD)
        tensor(f"{name}.ffn_norm.weight", N_EMBD)
        tensor(f"{name}.ffn_up.weight", 2 * N_FF, N_EMBD)
        tensor(f"{name}.ffn_down.weight", N_EMBD, N_FF)
        tensor(f"{name}.post_ffw_norm", N_EMBD)

    write_tensors(writer, layer)
    return path


def write_cogvlm(path: Path) -> Path:
    writer = begin(path, "cogvlm")
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD)
    writer.add_rope_dimension_count(HEAD)

    def layer(tensor: Tensor, name: str, i: int) -> None:
        tensor(f"{name}.attn_norm.weight", N_EMBD)
        tensor(f"{name}.ffn_norm.weight", N_EMBD)
        for seer in (name, f"{name}.vis"):
            dot = "." if seer == name else "_"
            tensor(f"{seer}{dot}attn_qkv.weight", 3 * N_EMBD, N_EMBD)
            tensor(f"{seer}{dot}attn_output.weight", N_EMBD, N_EMBD)
        for seen in ("ffn", "vis"):
            for part, shape in (("gate", (N_FF, N_EMBD)), ("up", (N_FF, N_EMBD)), ("down", (N_EMBD, N_FF))):
                tensor(f"{name}.{seen}_{part}.weight", *shape)

    write_tensors(writer, layer)
    return path
