"""Titles as LM Studio has them."""

from __future__ import annotations

import pytest

from lmlite.core.disk.titles import title_of


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("gemma-3-270m-it-qat", "Gemma 3 270m Instruct Qat"),
        ("nomic-embed-text-v1.5", "Nomic Embed Text v1.5"),
        ("Qwen2.5-7B-Instruct-1M", "Qwen2.5 7B Instruct 1M"),
        ("Llama-3.2-1B-Instruct", "Llama 3.2 1B Instruct"),
        ("mistral-7b-instruct-v0.3", "Mistral 7b Instruct v0.3"),
        ("google_gemma-3-4b-IT", "Google Gemma 3 4b Instruct"),
        ("vicuna--7b_ v", "Vicuna 7b V"),
        ("exit-it", "Exit Instruct"),
        ("\u00e9t\u00e9-1b", "\u00c9t\u00e9 1b"),
        ("--", "--"),
        ("Nomic-embed-text-v1.5-Embedding", "Nomic Embed Text v1.5 Embedding"),
    ],
)
def test_titles_are_lm_studios(name: str, title: str) -> None:
    assert title_of(name) == title


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("Nomic-embed-text-v1.5-Embedding", "Nomic Embed Text v1.5"),
        ("text-embedding-owl-v1", "Owl v1"),
        ("text-embedding", "Text Embedding"),
        ("granite-embedding", "Granite Embedding"),
        ("Qwen3-Embedding-0.6B", "Qwen3 Embedding 0.6B"),
    ],
)
def test_an_embedding_models_title_does_not_say_so_twice(name: str, title: str) -> None:
    assert title_of(name, is_embedding=True) == title
