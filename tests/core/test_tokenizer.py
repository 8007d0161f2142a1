"""Tokenizers against the token ids that llama.cpp's own fixtures say are right, one small vocabulary of each family."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSpec
from lmlite.core.engine.worker import Process

ROOT = Path(__file__).parents[2]
TREE = Path(os.environ.get("LMLITE_LLAMA_CPP") or ROOT / "vendor" / "llama.cpp")
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.mark.parametrize("family", ["llama-spm", "bert-bge", "gpt-2", "phi-3", "deepseek-coder"])
def test_texts_become_the_ids_of_the_fixture(family: str) -> None:
    vocabulary = TREE / "models" / f"ggml-vocab-{family}.gguf"
    texts = Path(f"{vocabulary}.inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = Path(f"{vocabulary}.out").read_text(encoding="utf-8").split("\n")
    expected = [tuple(map(int, line.split())) for line in lines[: len(texts)]]

    async def run() -> None:
        engine = await Engine.open(Process(), family)
        try:
            loaded = await engine.load(LoadSpec((vocabulary,), vocab_only=True))
            assert loaded.type == "vocab"
            for text, ids in zip(texts, expected):
                assert (await engine.tokenize(text))[0] == ids, text
        finally:
            await engine.close()

    assert len(texts) > 40
    asyncio.run(run())


def test_a_long_unbroken_word_does_not_kill_the_engine() -> None:
    """The regular expressions of this family recurse once per letter: 30,000 overflow an ordinary stack."""
    vocabulary = TREE / "models" / "ggml-vocab-deepseek-coder.gguf"

    async def run() -> None:
        engine = await Engine.open(Process(), "deepseek")
        try:
            await engine.load(LoadSpec((vocabulary,), vocab_only=True))
            ids, _ = await engine.tokenize("a" * 100_000)
            assert len(ids) > 1000
        finally:
            await engine.close()

    asyncio.run(run())
