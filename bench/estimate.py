"""The memory estimate against what an engine really takes: its peak (VmHWM) after a load and one prefill of a whole context.

Eight kinds of random models of 80 to 300 MB with a real vocabulary, three context lengths; mapped into memory and, at the
shortest, read. Prints a table; exit code 1 if an estimate is off by more than 15 %. Linux only.

`python bench/estimate.py [KIND ...] [--contexts 2048,8192,32768]`; FILE.gguf is measured too where a KIND is expected.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench import peers  # noqa: E402
from bench.random_model import CACHE, copy_vocabulary  # noqa: E402
from lmlite.core.engine.client import Engine  # noqa: E402
from lmlite.core.engine.payloads import LoadSettings, LoadSpec  # noqa: E402
from lmlite.core.engine.worker import Process  # noqa: E402
from lmlite.core.loading.estimate import Estimate, estimate  # noqa: E402
from lmlite.request import Embed, Generate, Sampling, Tokens  # noqa: E402

CONTEXTS = (2048, 8192, 32768)
ALLOWED = 0.15
N_CTX = 32768
MIB = 1 << 20


# ---- models ----------------------------------------------------------------------------------------------------------


class Weights:
    """Writes matrices of random blocks: nobody reads the text that comes of them."""

    def __init__(self, writer: gguf.GGUFWriter, kind: gguf.GGMLQuantizationType):
        self.writer, self.kind = writer, kind
        self.rng = np.random.default_rng(0)

    def matrix(self, name: str, rows: int, columns: int, *, experts: int = 0) -> None:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        all_rows = rows * max(experts, 1)
        blocks = np.empty((all_rows, columns // block, size), dtype=np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16(0.02 / 64).tobytes(), dtype=np.uint8)
        blocks[:, :, 2:] = self.rng.integers(0, 256, (all_rows, columns // block, size - 2), dtype=np.uint8)
        shape = (experts, rows, -1) if experts else (rows, -1)
        self.writer.add_tensor(name, blocks.reshape(shape), raw_dtype=self.kind)

    def filled(self, name: str, value: float, *shape: int) -> None:
        self.writer.add_tensor(name, np.full(shape, value, dtype=np.float32))

    def floats(self, name: str, *shape: int) -> None:
        self.writer.add_tensor(name, self.rng.normal(0, 0.02, shape).astype(np.float32))

    def attention(self, layer: str, n_embd: int, width: int, kv: int, *, head: int = 0) -> None:
        """`head`: its size, where queries and keys are normalised."""
        for name, rows, columns in (
            ("attn_q", width, n_embd), ("attn_k", kv, n_embd), ("attn_v", kv, n_embd), ("attn_output", n_embd, width),
        ):  # fmt: skip
            self.matrix(f"{layer}.{name}.weight", rows, columns)
        if head:
            self.filled(f"{layer}.attn_q_norm.weight", 1, head)
            self.filled(f"{layer}.attn_k_norm.weight", 1, head)

    def feed_forward(self, layer: str, n_embd: int, n_ff: int) -> None:
        self.filled(f"{layer}.ffn_norm.weight", 1, n_embd)
        self.matrix(f"{layer}.ffn_gate.weight", n_ff, n_embd)
        self.matrix(f"{layer}.ffn_up.weight", n_ff, n_embd)
        self.matrix(f"{layer}.ffn_down.weight", n_embd, n_ff)


@dataclass(frozen=True)
class Shape:
    arch: str
    layers: int
    n_embd: int
    n_ff: int
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0
    vocabulary: str = peers.VOCABULARY
    n_ctx: int = N_CTX


SHAPES = {  # mostly vocabulary, so that a long prompt does not take long
    "llama": Shape("llama", 2, 1024, 1024),
    "llama-q4_0": Shape("llama", 4, 1024, 4096, quantization=gguf.GGMLQuantizationType.Q4_0),
    "gemma3": Shape("gemma3", 6, 768, 768),
    "mamba": Shape("mamba", 3, 768, 0),
    "lfm2": Shape("lfm2", 4, 768, 768, heads=12, kv_heads=4),
    "qwen3moe": Shape("qwen3moe", 2, 768, 512),
    "deepseek2": Shape("deepseek2", 2, 768, 768),
    "bert": Shape("bert", 3, 768, 3072, 12, 12, vocabulary="models/ggml-vocab-bert-bge.gguf", n_ctx=8192),
}
WINDOW, EXPERTS, EXPERTS_USED = 1024, 32, 4
N_STATE, N_CONV = 16, 4
Q_RANK, KV_RANK = 256, 256


def write(path: Path, shape: Shape) -> None:
    writer = gguf.GGUFWriter(str(path), shape.arch)
    writer.add_name(f"random {shape.arch}")
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.n_ff)
    n_vocab = copy_vocabulary(peers.tree() / shape.vocabulary, writer)
    weights = Weights(writer, shape.quantization)
    weights.matrix("token_embd.weight", n_vocab, shape.n_embd)
    of_arch = {"mamba": state_spaces, "deepseek2": latent_attention, "bert": encoder}
    of_arch.get(shape.arch, transformer)(writer, weights, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def transformer(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    arch, n_embd = shape.arch, shape.n_embd
    with_attention = [arch != "lfm2" or i % 3 == 2 for i in range(shape.layers)]
    kv_heads: Any = [shape.kv_heads if there else 0 for there in with_attention] if arch == "lfm2" else shape.kv_heads
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    if arch == "gemma3":
        writer.add_sliding_window(WINDOW)
    elif arch == "lfm2":
        writer.add_shortconv_l_cache(3)
    elif arch == "qwen3moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(EXPERTS_USED)
        writer.add_expert_feed_forward_length(shape.n_ff)
    weights.filled("token_embd_norm.weight" if arch == "lfm2" else "output_norm.weight", 1, n_embd)
    for i in range(shape.layers):
        layer = f"blk.{i}"
        weights.filled(f"{layer}.attn_norm.weight", 1, n_embd)
        if with_attention[i]:
            width, kv = shape.heads * shape.head, shape.kv_heads * shape.head
            weights.attention(layer, n_embd, width, kv, head=0 if arch == "llama" else shape.head)
        else:
            weights.matrix(f"{layer}.shortconv.in_proj.weight", 3 * n_embd, n_embd)
            weights.floats(f"{layer}.shortconv.conv.weight", n_embd, 3)
            weights.matrix(f"{layer}.shortconv.out_proj.weight", n_embd, n_embd)
        if arch == "qwen3moe":
            weights.filled(f"{layer}.ffn_norm.weight", 1, n_embd)
            weights.floats(f"{layer}.ffn_gate_inp.weight", EXPERTS, n_embd)
            for name, rows, columns in (
                ("gate", shape.n_ff, n_embd), ("up", shape.n_ff, n_embd), ("down", n_embd, shape.n_ff),
            ):  # fmt: skip
                weights.matrix(f"{layer}.ffn_{name}_exps.weight", rows, columns, experts=EXPERTS)
        else:
            weights.feed_forward(layer, n_embd, shape.n_ff)
        if arch == "gemma3":
            weights.filled(f"{layer}.post_attention_norm.weight", 1, n_embd)
            weights.filled(f"{layer}.post_ffw_norm.weight", 1, n_embd)


def state_spaces(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    n_embd, inner, rank = shape.n_embd, 2 * shape.n_embd, shape.n_embd // 16
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(N_CONV)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(N_STATE)
    writer.add_ssm_time_step_rank(rank)
    weights.filled("output_norm.weight", 1, n_embd)
    for i in range(shape.layers):
        layer = f"blk.{i}"
        weights.filled(f"{layer}.attn_norm.weight", 1, n_embd)
        weights.matrix(f"{layer}.ssm_in.weight", 2 * inner, n_embd)
        weights.floats(f"{layer}.ssm_conv1d.weight", inner, N_CONV)
        weights.filled(f"{layer}.ssm_conv1d.bias", 0.1, inner)
        weights.floats(f"{layer}.ssm_x.weight", rank + 2 * N_STATE, inner)
        weights.floats(f"{layer}.ssm_dt.weight", inner, rank)
        weights.filled(f"{layer}.ssm_dt.bias", 0.1, inner)
        weights.filled(f"{layer}.ssm_a", -0.5, inner, N_STATE)
        weights.filled(f"{layer}.ssm_d", 1, inner)
        weights.matrix(f"{layer}.ssm_out.weight", n_embd, inner)


def latent_attention(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    """Multi-head latent attention: the cache holds one compressed row for all heads, keys and values in one."""
    n_embd, rope = shape.n_embd, shape.head
    key, value = 2 * shape.head, shape.head  # of one head, decompressed
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(KV_RANK + rope)
    writer.add_value_length(KV_RANK)
    writer.add_key_length_mla(key)
    writer.add_value_length_mla(value)
    writer.add_q_lora_rank(Q_RANK)
    writer.add_kv_lora_rank(KV_RANK)
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(shape.layers)
    writer.add_expert_shared_count(0)
    writer.add_expert_feed_forward_length(shape.n_ff)
    weights.filled("output_norm.weight", 1, n_embd)
    for i in range(shape.layers):
        layer = f"blk.{i}"
        weights.filled(f"{layer}.attn_norm.weight", 1, n_embd)
        weights.matrix(f"{layer}.attn_q_a.weight", Q_RANK, n_embd)
        weights.filled(f"{layer}.attn_q_a_norm.weight", 1, Q_RANK)
        weights.matrix(f"{layer}.attn_q_b.weight", shape.heads * key, Q_RANK)
        weights.matrix(f"{layer}.attn_kv_a_mqa.weight", KV_RANK + rope, n_embd)
        weights.filled(f"{layer}.attn_kv_a_norm.weight", 1, KV_RANK)
        weights.matrix(f"{layer}.attn_k_b.weight", KV_RANK, key - rope, experts=shape.heads)
        weights.matrix(f"{layer}.attn_v_b.weight", value, KV_RANK, experts=shape.heads)
        weights.matrix(f"{layer}.attn_output.weight", n_embd, shape.heads * value)
        weights.feed_forward(layer, n_embd, shape.n_ff)


def encoder(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    n_embd, n_ff = shape.n_embd, shape.n_ff
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)

    def norm(name: str) -> None:
        weights.filled(f"{name}.weight", 1, n_embd)
        weights.filled(f"{name}.bias", 0, n_embd)

    weights.floats("position_embd.weight", shape.n_ctx, n_embd)
    weights.floats("token_types.weight", 2, n_embd)
    norm("token_embd_norm")
    for i in range(shape.layers):
        layer = f"blk.{i}"
        weights.attention(layer, n_embd, n_embd, n_embd)
        weights.matrix(f"{layer}.ffn_up.weight", n_ff, n_embd)
        weights.matrix(f"{layer}.ffn_down.weight", n_embd, n_ff)
        for name, size in (
            *((f"attn_{name}", n_embd) for name in ("q", "k", "v", "output")), ("ffn_up", n_ff), ("ffn_down", n_embd),
        ):  # fmt: skip
            weights.filled(f"{layer}.{name}.bias", 0, size)
        norm(f"{layer}.attn_output_norm")
        norm(f"{layer}.layer_output_norm")


def model(kind: str) -> Path:
    """The model of that kind in the cache folder, written on the first call."""
    path = CACHE / f"estimate-{kind}.gguf"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".part")
        write(unfinished, SHAPES[kind])
        unfinished.rename(path)
    return path


# ---- measuring -------------------------------------------------------------------------------------------------------


def peak(pid: int | None) -> int:
    """The most that the process ever had resident, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


async def measure(spec: LoadSpec) -> tuple[int, int]:
    """The context length and the peak after a load and the most that is computed at once."""
    placement = Process()
    engine = await Engine.open(placement, "model")
    try:
        loaded = await engine.load(spec)
        n, n_words = loaded.context_length, loaded.vocab_size // 2
        if loaded.type == "embedding":
            await engine.embed(Embed((tuple(i % n_words for i in range(n)),)))
            await engine.embed(Embed((tuple(i % n_words for i in range(min(n, 256))),) * 16))  # as many side by side as may
        else:
            prompt = Tokens(tuple(i % n_words for i in range(n - 1)))
            async for _ in engine.run(Generate(prompt, max_tokens=1, sampling=Sampling(temperature=0))):
                pass
        return n, peak(placement.pid)
    finally:
        await engine.close()


def line(name: str, mapped: bool, n_ctx: int, told: Estimate, real: int, ms: float) -> tuple[str, bool]:
    expected = told.total + told.file_pages
    error = expected / real - 1
    parts = (told.weights, told.kv_cache, told.compute, told.file_pages, expected, real)
    numbers = " | ".join(f"{bytes / MIB:.0f}" for bytes in parts)
    kept = abs(error) <= ALLOWED
    return f"| {name} | {n_ctx} | {'yes' if mapped else 'no'} | {numbers} | {error:+.1%} | {ms:.0f} |", kept


async def run(names: list[str], contexts: tuple[int, ...], threads: int, tell: Callable[[str], None]) -> bool:
    tell("| model | context | mapped | weights | KV cache | compute | file pages | expected | peak | error | ms |")
    tell("|---|---|---|---|---|---|---|---|---|---|---|")
    good = True
    for name in names:
        path = Path(name) if name.endswith(".gguf") else model(name)
        seen = set()
        for context, mapped in [(context, True) for context in contexts] + [(contexts[0], False)]:
            spec = LoadSpec((path,), LoadSettings(context_length=context, mmap=mapped, threads=threads))
            began = time.perf_counter()
            told = await estimate(Process, spec)
            ms = (time.perf_counter() - began) * 1e3
            if (told.context_length, mapped) in seen:
                continue  # as long as it gets
            seen.add((told.context_length, mapped))
            n_ctx, real = await measure(spec)
            text, kept = line(path.stem.removeprefix("estimate-"), mapped, n_ctx, told, real, ms)
            tell(text)
            good &= kept
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="KIND", help=", ".join(SHAPES))
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    parser.add_argument("--threads", type=int, default=0, help="1 on a machine that has other work")
    arguments = parser.parse_args()
    contexts = tuple(map(int, arguments.contexts.split(",")))
    good = asyncio.run(run(arguments.names or list(SHAPES), contexts, arguments.threads, lambda text: print(text, flush=True)))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
