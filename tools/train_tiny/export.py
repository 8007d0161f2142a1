"""Writes a checkpoint of `train.py` as a GGUF file: `python export.py tiny.pt lmlite-tiny.gguf`.

Needs torch and gguf. Matrices become Q8_0, or stay as trained with --exact, which `compare.py` wants.
"""

import argparse
from pathlib import Path
from typing import Any

import bpe
import gguf
import torch
from corpus import TEMPLATE
from gguf import GGMLQuantizationType, TokenType
from model import Shape

NAME = "lmlite tiny"
DESCRIPTION = "A toy model for trying lmlite and for its tests. It greets, counts, adds, rhymes and calls tools."


def write_facts(
    writer: gguf.GGUFWriter, parameters: int, exact: bool, name: str = NAME, description: str = DESCRIPTION
) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_author("the lmlite authors")
    writer.add_basename(name.replace(" ", "-"))
    writer.add_description(description)
    writer.add_size_label(f"{parameters / 1e6:.1f}M")
    writer.add_license("mit")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if exact else gguf.LlamaFileType.MOSTLY_Q8_0)
    if not exact:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: bpe.Bpe) -> None:
    kinds = dict.fromkeys(bpe.CONTROL, TokenType.CONTROL) | dict.fromkeys(bpe.TAGS, TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokenizer.tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.ids[bpe.END_OF_TEXT])
    writer.add_eos_token_id(tokenizer.ids[bpe.TURN_END])
    writer.add_eot_token_id(tokenizer.ids[bpe.TURN_END])
    writer.add_pad_token_id(tokenizer.ids[bpe.END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TEMPLATE.read_text())


def write_weights(writer: gguf.GGUFWriter, weights: dict[str, torch.Tensor], exact: bool) -> None:
    for name, weight in weights.items():
        numbers = weight.float().numpy()
        if numbers.ndim == 1 or exact:
            writer.add_tensor(name, numbers)
        else:
            packed = gguf.quantize(numbers, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)


def export(
    checkpoint: dict[str, Any], path: Path, exact: bool, name: str = NAME, description: str = DESCRIPTION
) -> None:
    shape = Shape(**checkpoint["shape"])
    writer = gguf.GGUFWriter(path, "llama")
    write_facts(writer, checkpoint["facts"]["parameters"], exact, name, description)
    write_shape(writer, shape)
    write_tokenizer(writer, bpe.Bpe([tuple(pair) for pair in checkpoint["merges"]]))
    write_weights(writer, checkpoint["weights"], exact)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--exact", action="store_true", help="keep the weights as float32")
    options = parser.parse_args()
    export(torch.load(options.checkpoint), options.gguf, options.exact)
    print(f"{options.gguf}: {options.gguf.stat().st_size} bytes")


if __name__ == "__main__":
    main()
