"""Writes small GGUF models of random weights for what the bundled model cannot show: embeddings, broken templates."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{c}" for c in "abcdefghijklmnopqrstuvwxyz"))
N_EMBD, N_FF, N_CTX = 32, 64, 64


def write_bert(path: Path, n_ctx: int = N_CTX) -> Path:
    """A one-layer BERT with mean pooling that knows the letters as words; two texts never have the same vector."""
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("random bert")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
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
        writer.add_tensor(name, rng.normal(0, 0.5, shape).astype(np.float32))

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
    finish(writer)
    return path


def with_template(source: Path, path: Path, template: str) -> Path:
    """A copy of the model `source` whose chat template is `template`."""
    reader = gguf.GGUFReader(str(source))
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(path), arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "tokenizer.chat_template"):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
