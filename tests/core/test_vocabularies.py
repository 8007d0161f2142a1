"""Vocabularies, tokenizers and architectures that cannot work are refused when a model is loaded, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSpec
from lmlite.core.engine.worker import Process, Thread
from lmlite.errors import LoadFailed
from lmlite.events import Finished
from lmlite.package import bundled_model
from lmlite.request import Generate, Text
from tests.memory_models import write_model
from tests.random_models import copied, with_tensors

Change = Callable[[gguf.GGUFWriter, list[Any]], None]
TOKENS = ("tokens", "token_type", "scores", "merges")


def altered(source: Path, path: Path, without: tuple[str, ...], change: Change) -> Path:
    """A copy of the model `source` without some keys of its tokenizer; `change` adds others and is told the tokens."""
    reader, writer = copied(source, path, *(f"tokenizer.ggml.{key}" for key in without))
    change(writer, reader.fields["tokenizer.ggml.tokens"].contents())
    return with_tensors(reader, writer, path)


async def answer(path: Path, placement: type[Process] | type[Thread] = Process) -> Finished:
    engine = await Engine.open(placement(), "model")
    try:
        await engine.load(LoadSpec((path,)))
        finished = [event async for event in engine.run(Generate(Text("Hello"), max_tokens=2))][-1]
        assert isinstance(finished, Finished)
        return finished
    finally:
        await engine.close()


def keep(writer: gguf.GGUFWriter, tokens: list[Any]) -> None:
    pass


def no_bytes(writer: gguf.GGUFWriter, tokens: list[Any]) -> None:
    writer.add_token_list([b"\xff%d" % i for i in range(len(tokens))])


def no_texts(writer: gguf.GGUFWriter, tokens: list[Any]) -> None:
    writer.add_token_list(["x"] + [""] * (len(tokens) - 1))


def two_alike(writer: gguf.GGUFWriter, tokens: list[Any]) -> None:
    writer.add_token_list([*tokens[:-1], tokens[5]])


def two_called_alike(writer: gguf.GGUFWriter, tokens: list[Any]) -> None:
    """llama.cpp has a name for a token without a text."""
    writer.add_token_list([*tokens[:7], "", *tokens[8:-1], "[EMPTY_7]"])


# What is wrong, what of the two models' tokenizers goes, what comes instead, what the refusal says.
BPE: list[tuple[str, tuple[str, ...], Change, str]] = [
    ("no tokens at all", TOKENS, keep, "cannot find tokenizer merges"),
    ("an empty list", TOKENS[:2], lambda w, _: w.add_token_list([]), "cannot find tokenizer vocab"),
    ("no bytes", ("tokens",), no_bytes, "makes no tokens"),
    ("no texts", ("tokens",), no_texts, "makes no tokens of a text"),
    ("two alike", ("tokens",), two_alike, "tokens 5 and 1535 of its vocabulary are the same"),
    ("two called alike", ("tokens",), two_called_alike, "tokens 7 and 1535 of its vocabulary are the same"),
    ("no tokenizer", ("model",), lambda w, _: w.add_tokenizer_model("none"), "the file has no vocabulary"),
    ("another tokenizer", ("model",), lambda w, _: w.add_tokenizer_model("llama"), "cannot read a text"),
    ("ids of nothing", ("model",), lambda w, _: w.add_tokenizer_model("rwkv"), "makes token -1 of a text"),
    ("an unknown tokenizer", ("model",), lambda w, _: w.add_tokenizer_model("xyz"), "unknown tokenizer: 'xyz'; this engine"),
    ("an unknown splitter", ("pre",), lambda w, _: w.add_tokenizer_pre("xyz"), "unknown pre-tokenizer type: 'xyz'"),
    ("a bos outside", ("bos_token_id",), lambda w, t: w.add_bos_token_id(len(t)), "its bos token is 1536, outside of the"),
    ("an eos outside", ("eos_token_id",), lambda w, _: w.add_eos_token_id(70_000), "its eos token is 70000, outside of the"),
]
SPM: list[tuple[str, tuple[str, ...], Change, str]] = [
    ("two alike", ("tokens",), two_alike, "tokens 5 and 258 of its vocabulary are the same"),
    ("bytes for BERT", ("model",), lambda w, _: w.add_tokenizer_model("bert"), "is a byte, which its tokenizer 'bert' does"),
    ("no texts", ("tokens",), no_texts, "cannot read a text"),
    ("no bytes", ("tokens",), no_bytes, "loading model vocabulary"),
    ("an eos outside", ("eos_token_id",), lambda w, t: w.add_eos_token_id(len(t)), "its eos token is 259, outside of the"),
]


@pytest.mark.parametrize(("without", "change", "told"), [case[1:] for case in BPE], ids=[case[0] for case in BPE])
def test_a_bpe_vocabulary_that_cannot_work_is_refused(
    tmp_path: Path, without: tuple[str, ...], change: Change, told: str
) -> None:
    path = altered(bundled_model(), tmp_path / "model.gguf", without, change)
    with pytest.raises(LoadFailed) as failed:
        asyncio.run(answer(path))
    assert told in failed.value.reason


@pytest.mark.parametrize(("without", "change", "told"), [case[1:] for case in SPM], ids=[case[0] for case in SPM])
def test_a_sentencepiece_vocabulary_that_cannot_work_is_refused(
    tmp_path: Path, without: tuple[str, ...], change: Change, told: str
) -> None:
    path = altered(write_model(tmp_path / "full.gguf", "full"), tmp_path / "model.gguf", without, change)
    with pytest.raises(LoadFailed) as failed:
        asyncio.run(answer(path))
    assert told in failed.value.reason


@pytest.mark.parametrize("change", [two_alike, two_called_alike])
def test_a_host_outlives_a_vocabulary_that_its_own_thread_refuses(tmp_path: Path, change: Change) -> None:
    path = altered(bundled_model(), tmp_path / "model.gguf", ("tokens",), change)
    with pytest.raises(LoadFailed):
        asyncio.run(answer(path, Thread))
    assert asyncio.run(answer(bundled_model(), Thread)).stats.generated_tokens == 2


def test_an_id_that_means_none_is_no_fault(tmp_path: Path) -> None:
    path = altered(bundled_model(), tmp_path / "model.gguf", ("bos_token_id",), lambda w, _: w.add_bos_token_id(0xFFFFFFFF))
    assert asyncio.run(answer(path)).stats.generated_tokens == 2


def test_an_unknown_architecture_is_named_with_the_engine_that_does_not_know_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "zebra")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LoadFailed) as failed:
        asyncio.run(answer(tmp_path / "model.gguf"))
    assert "unknown model architecture: 'zebra'; this engine is llama.cpp" in failed.value.reason
