"""Writes small GGUF models of random weights for what the bundled model cannot show: embeddings, experts, adapters, broken
templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{c}" for c in "abcdefghijklmnopqrstuvwxyz"))
N_EMBD, N_FF, N_CTX, N_HEAD = 32, 64, 64, 2


def write_bert(
    path: Path,
    n_ctx: int = N_CTX,
    *,
    pooled: bool = True,
    classifies: bool = False,
    template: str | None = None,
    scale: float = 0.5,
) -> Path:
    """A one-layer BERT that knows the letters as words; two texts never have the same vector. `pooled` names its pooling
    (the mean), `classifies` adds the head of a reranker, whose files name none, `template` says how it is asked."""
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("random bert")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(1)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooled:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if template is not None:
        writer.add_chat_template([{"name": "rerank", "template": template}])
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(WORDS))
    writer.add_token_types([gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(WORDS) - 5))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)  # [CLS]
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.normal(0, scale, shape).astype(np.float32))

    def linear(name: str, rows: int, columns: int) -> None:
        tensor(f"{name}.weight", rows, columns)
        tensor(f"{name}.bias", rows)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(N_EMBD, dtype=np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(N_EMBD, dtype=np.float32))

    tensor("token_embd.weight", len(WORDS), N_EMBD)
    tensor("position_embd.weight", n_ctx, N_EMBD)
    tensor("token_types.weight", 2, N_EMBD)
    norm("token_embd_norm")
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        linear(f"blk.0.{name}", N_EMBD, N_EMBD)
    norm("blk.0.attn_output_norm")
    linear("blk.0.ffn_up", N_FF, N_EMBD)
    linear("blk.0.ffn_down", N_EMBD, N_FF)
    norm("blk.0.layer_output_norm")
    if classifies:
        linear("cls", N_EMBD, N_EMBD)
        linear("cls.output", 1, N_EMBD)
    finish(writer)
    return path


Array = np.ndarray[Any, np.dtype[np.float64]]


def bert_score(path: Path, tokens: Sequence[int]) -> float:
    """What the reranker at `path` gives for `tokens`, computed without llama.cpp."""
    weights = {tensor.name: np.asarray(tensor.data, dtype=np.float64) for tensor in gguf.GGUFReader(str(path)).tensors}

    def linear(name: str, x: Array) -> Array:
        made: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return made

    def norm(x: Array) -> Array:  # its weight is one and its bias nothing in these models
        made: Array = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return made

    def gelu(x: Array) -> Array:
        made: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return made

    ids = list(tokens)
    token, position = weights["token_embd.weight"], weights["position_embd.weight"]
    x = norm(token[ids] + weights["token_types.weight"][0] + position[: len(ids)])
    q, k, v = (linear(f"blk.0.attn_{name}", x).reshape(len(ids), N_HEAD, -1) for name in "qkv")
    scores = np.exp(np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1]))
    mixed = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v).reshape(len(ids), -1)
    x = norm(x + linear("blk.0.attn_output", mixed))
    x = norm(x + linear("blk.0.ffn_down", gelu(linear("blk.0.ffn_up", x))))
    return float(linear("cls.output", np.tanh(linear("cls", x[0])))[0])


# ---- text models and adapters ----------------------------------------------------------------------------------------

Weights = Mapping[str, npt.NDArray[np.float32]]
LETTERS = tuple(f"▁{c}" for c in "abcdefghijklmnopqrstuvwxyz")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class Llama:
    """A two-layer llama that knows bytes and single letters, its weights drawn from `seed`."""

    seed: int = 7
    n_embd: int = 64
    n_head: int = 2
    head_size: int = 32
    n_ff: int = 96
    n_ctx: int = 2048
    n_experts: int = 0
    n_used: int | Sequence[int] = 2  # experts per token; several numbers: one per layer
    marks: Sequence[str] = ()  # fill-in-the-middle tokens that its vocabulary has: "pre", "suf", "mid", "rep", "sep"

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        rng = np.random.default_rng(self.seed)
        width = self.n_head * self.head_size
        n_vocab = 3 + len(BYTES) + len(LETTERS) + len(self.marks)
        found: dict[str, npt.NDArray[np.float32]] = {}

        def draw(name: str, *shape: int) -> None:
            found[f"{name}.weight"] = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

        def ones(name: str) -> None:
            found[f"{name}.weight"] = np.ones(self.n_embd, dtype=np.float32)

        found["token_embd.weight"] = rng.normal(0, 1, (n_vocab, self.n_embd)).astype(np.float32)
        ones("output_norm")
        found["output.weight"] = rng.normal(0, 0.3, (n_vocab, self.n_embd)).astype(np.float32)
        for layer in ("blk.0", "blk.1"):
            ones(f"{layer}.attn_norm")
            for name in ("attn_q", "attn_k", "attn_v"):
                draw(f"{layer}.{name}", width, self.n_embd)
            draw(f"{layer}.attn_output", self.n_embd, width)
            ones(f"{layer}.ffn_norm")
            if self.n_experts:
                draw(f"{layer}.ffn_gate_inp", self.n_experts, self.n_embd)
            experts, suffix = ((self.n_experts,), "_exps") if self.n_experts else ((), "")
            draw(f"{layer}.ffn_gate{suffix}", *experts, self.n_ff, self.n_embd)
            draw(f"{layer}.ffn_up{suffix}", *experts, self.n_ff, self.n_embd)
            draw(f"{layer}.ffn_down{suffix}", *experts, self.n_embd, self.n_ff)
        return found

    def write(self, path: Path, changed: Weights | None = None) -> Path:
        """`changed` weights take the place of the drawn ones."""
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_name("random llama")
        writer.add_context_length(self.n_ctx)
        writer.add_embedding_length(self.n_embd)
        writer.add_feed_forward_length(self.n_ff)
        writer.add_block_count(2)
        writer.add_head_count(self.n_head)
        writer.add_key_length(self.head_size)
        writer.add_value_length(self.head_size)
        writer.add_rope_dimension_count(self.head_size)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        if self.n_experts:
            writer.add_expert_count(self.n_experts)
            if isinstance(self.n_used, int):
                writer.add_expert_used_count(self.n_used)
            else:
                writer.add_array("llama.expert_used_count", list(self.n_used))
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        tokens = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS, *(f"<|fim_{mark}|>" for mark in self.marks)]
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * len(tokens))
        kinds = gguf.TokenType
        types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
        types += [kinds.BYTE] * len(BYTES) + [kinds.NORMAL] * len(LETTERS)
        writer.add_token_types(types + [kinds.CONTROL] * len(self.marks))
        for mark in self.marks:
            writer.add_uint32(f"tokenizer.ggml.fim_{mark}_token_id", tokens.index(f"<|fim_{mark}|>"))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for name, weight in {**self.weights(), **(changed or {})}.items():
            writer.add_tensor(name, weight)
        finish(writer)
        return path


@dataclass(frozen=True)
class RandomLora:
    """A LoRA adapter of `of`'s attention and feed-forward weights, strong enough to change what is said."""

    of: Llama
    seed: int = 11
    rank: int = 4
    alpha: float = 8.0

    def pairs(self) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        rng = np.random.default_rng(self.seed)
        found = {}
        for name, weight in self.of.weights().items():
            if any(part in name for part in ("attn_q", "attn_v", "ffn_up")):
                n_out, n_in = weight.shape
                a = rng.normal(0, n_in**-0.5, (self.rank, n_in)).astype(np.float32)
                found[name] = a, rng.normal(0, 0.5, (n_out, self.rank)).astype(np.float32)
        return found

    def merged(self, scale: float = 1.0) -> Weights:
        """The weights that the adapter makes of the model's."""
        weights, strength = self.of.weights(), np.float32(scale * self.alpha / self.rank)
        return {name: weights[name] + strength * (b @ a) for name, (a, b) in self.pairs().items()}

    def write(self, path: Path, arch: str = "llama", invocation: Sequence[int] = ()) -> Path:
        """`invocation` are the tokens after which the adapter counts; none: always."""
        writer = gguf.GGUFWriter(str(path), arch)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", self.alpha)
        if invocation:
            writer.add_key_value(
                "adapter.alora.invocation_tokens", list(invocation), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
            )
        for name, (a, b) in self.pairs().items():
            writer.add_tensor(f"{name}.lora_a", a)
            writer.add_tensor(f"{name}.lora_b", b)
        finish(writer)
        return path


# ---- copies ----------------------------------------------------------------------------------------------------------


def with_template(source: Path, path: Path, template: str) -> Path:
    """A copy of the model `source` whose chat template is `template`."""
    reader, writer = copied(source, path, "tokenizer.chat_template")
    writer.add_chat_template(template)
    return with_tensors(reader, writer, path)


def without_template(source: Path, path: Path) -> Path:
    """A copy of the model `source` without a chat template."""
    return with_tensors(*copied(source, path, "tokenizer.chat_template"), path)


def with_mark_as_text(source: Path, path: Path, token: str, text: str) -> Path:
    """A copy of the model `source`, whose token of that name has another one and is no control token any more, nor its end."""
    reader, writer = copied(source, path, "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.eos_token_id",
                            "tokenizer.ggml.eot_token_id", "tokenizer.chat_template")  # fmt: skip
    tokens, types = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    changed = tokens.index(token)
    tokens[changed], types[changed] = text, gguf.TokenType.USER_DEFINED
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(reader.fields["tokenizer.ggml.bos_token_id"].contents())
    writer.add_chat_template(reader.fields["tokenizer.chat_template"].contents().replace(token, text))
    return with_tensors(reader, writer, path)


def with_floats(source: Path, path: Path) -> Path:
    """A copy of the model `source` with weights of 32 bits: what it says hardly depends on how a batch is cut."""
    reader, writer = copied(source, path, "general.file_type")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    finish(writer)
    return path


def with_quants(source: Path, path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """A copy of the model `source` with those of its matrices in `kind` that consist of whole blocks."""
    reader, writer = copied(source, path, "general.file_type")
    for tensor in reader.tensors:
        floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if len(tensor.shape) == 2 and tensor.shape[0] % 32 == 0:
            writer.add_tensor(tensor.name, gguf.quants.quantize(floats, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, floats)
    finish(writer)
    return path


def with_swapped_words(source: Path, path: Path, first: int = -2, second: int = -1) -> Path:
    """A copy of the model `source` in whose vocabulary two tokens (the last) have changed places."""
    reader, writer = copied(source, path, "tokenizer.ggml.tokens")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tokens[first], tokens[second] = tokens[second], tokens[first]
    writer.add_token_list(tokens)
    return with_tensors(reader, writer, path)


def copied(source: Path, path: Path, *but: str) -> tuple[gguf.GGUFReader, gguf.GGUFWriter]:
    """A model that is to be written to `path`, with the metadata of `source` except `but`."""
    reader = gguf.GGUFReader(str(source))
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(path), arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", *but):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    return reader, writer


def with_tensors(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, path: Path) -> Path:
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
