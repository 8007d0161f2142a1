"""The options of a load are listed once, in `LoadSettings`: the engine's code, the protocol's text and the server's options
are held against that list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from lmlite.config import BATCH_MAX, CACHE_TYPES, CONTEXT_MAX, LORA_SCALE_MAX, PARALLEL_MAX, Config, options
from lmlite.core.engine.payloads import OPTION_OF, LoadSettings, LoadSpec, load_object
from lmlite.core.loading.effective import effective, of_server
from lmlite.settings import ModelSettings

CSRC = Path(__file__).parents[2] / "csrc"
SOURCE = (CSRC / "protocol.cpp").read_text(encoding="utf-8")
PROTOCOL = (CSRC / "protocol.md").read_text(encoding="utf-8")
FUNCTIONS = {
    name: body for name, body in re.findall(r"^(?:static )?[\w:<> ]+ (\w+)\([^\n]*\) \{\n(.*?)^\}", SOURCE, re.M | re.S)
}
NOT_OF_LOADS = {"ttl_s", "sampling", "template_kwargs"}
"""Settings of a model that its engine is not told when it loads it."""


def keys_read_by(function: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Keys of `object` that the C++ function looks at, itself or through those that it gives the object to."""
    body = FUNCTIONS[function]
    yield from re.findall(r'\bobject(?:, |\.at\()"(\w+)"', body)
    yield from re.findall(r'const char \* key = "(\w+)"', body)
    for callee in re.findall(r"\b(\w+)\(object\b", body):
        if callee in FUNCTIONS and callee not in seen and callee != "has":
            yield from keys_read_by(callee, seen | {callee})


def written(spec: LoadSpec) -> set[str]:
    return set(load_object(spec))


EVERY_KEY = written(LoadSpec((Path("a"), Path("b")), projector=Path("c"), prompt_cache=Path("d")))


def test_the_engine_reads_what_it_is_sent_and_nothing_else() -> None:
    assert set(keys_read_by("parse_load")) == EVERY_KEY
    assert set(OPTION_OF) <= EVERY_KEY


def described() -> dict[str, str]:
    """The keys of LOAD in the protocol, with the text behind each."""
    found = re.search(r"^\*\*LOAD\*\* `(.*?)`$", PROTOCOL, re.M | re.S)
    assert found is not None
    text = re.sub(r"\[\{.*?\}\]", "[]", found[1].replace("\n", " "))
    return dict(re.findall(r'"(\w+)"\??: ([^,} ]+)', text))


def test_the_protocol_lists_every_key_with_its_default() -> None:
    assert set(described()) == EVERY_KEY
    for item in fields(LoadSettings):
        told = described()[item.name]
        if told not in ("s", "[]", "[x"):
            assert json.loads(told) == item.default, item.name


def test_every_setting_is_an_option_and_has_its_default() -> None:
    known = {option.name: option for option in options()}
    assert set(OPTION_OF.values()) <= set(known)
    assert of_server(Config()) == LoadSettings()


def test_what_may_be_said_for_one_model_is_of_the_same_options() -> None:
    said = {item.name for item in fields(ModelSettings)} - NOT_OF_LOADS
    assert said <= set(OPTION_OF.values())


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("kv_type", "q8_0", {"k_cache_type": "q8_0", "v_cache_type": "q8_0"}),
        ("kv_type", "f32,q4_0", {"k_cache_type": "f32", "v_cache_type": "q4_0"}),
        ("kv_offload", False, {"offload_kv_cache": False}),
        ("experts", 3, {"n_experts": 3}),
        ("flash_attention", True, {"flash_attention": True}),
        ("flash_attention", False, {"flash_attention": False}),
        ("parallel", 9, {"parallel": 9}),
        ("chat_template", "chatml", {"chat_template": "chatml"}),
    ],
)
def test_a_models_own_word_counts_for_all_that_its_option_sets(option: str, value: object, found: dict[str, object]) -> None:
    settings = effective(LoadSettings(), ModelSettings(**{option: value}))  # type: ignore[arg-type]
    plain = LoadSettings()
    assert {name: getattr(settings, name) for name in OPTION_OF if getattr(settings, name) != getattr(plain, name)} == found


def test_auto_is_a_word_against_a_server_that_says_otherwise() -> None:
    server = of_server(Config.of(flash_attention="off"))
    assert server.flash_attention is False
    assert effective(server, ModelSettings(flash_attention="auto")).flash_attention is None
    assert effective(server, ModelSettings()).flash_attention is False


def constant(name: str) -> float:
    found = re.search(rf"{name} = ([\d.]+)(?: << (\d+))?;", SOURCE)
    assert found is not None
    return float(found[1]) * float(1 << int(found[2] or 0))


def test_the_engine_takes_all_that_the_bounds_allow() -> None:
    assert constant("MAX_CONTEXT") == CONTEXT_MAX
    assert constant("MAX_BATCH") == BATCH_MAX
    assert constant("MAX_PARALLEL") >= PARALLEL_MAX
    assert constant("MAX_LORA_SCALE") == LORA_SCALE_MAX


def test_words_are_those_of_the_engine() -> None:
    types = {name.lower() for name in re.findall(r"GGML_TYPE_(\w+)[,}]", FUNCTIONS["read_cache_type"])}
    assert types == set(CACHE_TYPES)
    modes = set(re.findall(r'\{"(\w+)", *LLAMA_SPLIT_MODE', FUNCTIONS["read_split_mode"]))
    kind = next(option.kind for option in options() if option.name == "split_mode")
    assert modes == set(kind.allowed.split(" or "))
