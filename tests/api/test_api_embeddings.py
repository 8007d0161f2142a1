"""Embedding inputs in their four forms, vectors out as numbers or base64; tokenize and detokenize."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import jsonschema
import pytest

from lmlite.api.lmstudio import v0 as lmstudio_v0
from lmlite.api.openai import embeddings as openai_embeddings
from lmlite.api.own import tokens
from lmlite.errors import InvalidRequest, MissingField
from lmlite.request import Embedding
from tests.api.golden_files import GOLDEN


def pack(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


INPUTS: list[tuple[Any, tuple[Any, ...]]] = [
    ("a", ("a",)),
    (["a", "b"], ("a", "b")),
    ([1, 2], ((1, 2),)),
    ([[1], [2, 3]], ((1,), (2, 3))),
    (["x"] * 2048, ("x",) * 2048),
    (list(range(5000)), (tuple(range(5000)),)),
]


@pytest.mark.parametrize(("given_input", "inputs"), INPUTS, ids=range(len(INPUTS)))
def test_input_forms(given_input: Any, inputs: tuple[Any, ...]) -> None:
    call = openai_embeddings.parse_embeddings({"model": "owl", "input": given_input, "ttl": 60})
    assert (call.model, call.embed.inputs, call.ttl_s) == ("owl", inputs, 60)


REFUSED = [
    ([], "input"),
    ("", "input"),
    ([""], "input[0]"),
    (["a", ""], "input[1]"),
    ([[]], "input[0]"),
    ([[1], []], "input[1]"),
    ([[["a"]]], "input[0][0]"),
    (["a", 1], "input[1]"),
    ([1, "a"], "input[1]"),
    (["a", ["b"]], "input[1]"),
    ([1, -1], "input[1]"),
    ([True], "input[0]"),
    ([None], "input[0]"),
    ([{"text": "a"}], "input[0]"),
    (1, "input"),
    ({}, "input"),
    (["x"] * 10_000, "input"),
    ([[1]] * 2049, "input"),
]


@pytest.mark.parametrize(("value", "param"), REFUSED, ids=range(len(REFUSED)))
def test_input_is_refused_by_index(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lmstudio_v0.parse_embeddings({"input": value})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"ttl": -1}, "ttl"),
        ({"model": 1}, "model"),
        ({"embd_normalize": -1}, "embd_normalize"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": -1}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"dimensions": 2**31}, "dimensions"),
    ],
)
def test_embedding_option_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        openai_embeddings.parse_embeddings({"input": "a", **change})
    assert caught.value.param == param


def test_missing_input() -> None:
    with pytest.raises(MissingField):
        openai_embeddings.parse_embeddings({})


def test_vectors_as_numbers() -> None:
    call = lmstudio_v0.parse_embeddings({"input": ["a", "b"]})
    assert call.embed.as_json
    text = call.reply("falcon-7b", [Embedding(b"[0.5,-0.25,1e-07]", 3), Embedding(b"[0,1,0.1]", 4)])
    assert text == (
        '{"object":"list","data":[{"object":"embedding","embedding":[0.5,-0.25,1e-07],"index":0},'
        '{"object":"embedding","embedding":[0,1,0.1],"index":1}],"model":"falcon-7b",'
        '"usage":{"prompt_tokens":7,"total_tokens":7}}'
    )
    jsonschema.validate(json.loads(text), json.loads((GOLDEN / "schemas" / "v0_embeddings.json").read_text()))


def test_vectors_as_base64() -> None:
    call = openai_embeddings.parse_embeddings({"input": "a", "encoding_format": "base64"})
    assert not call.embed.as_json
    vector = pack(0.1, -2.5)
    (entry,) = json.loads(call.reply("falcon-7b", [Embedding(vector, 1)]))["data"]
    assert base64.b64decode(entry["embedding"]) == vector


@pytest.mark.parametrize("parse", [openai_embeddings.parse_embeddings, lmstudio_v0.parse_embeddings])
def test_dimensions_are_for_the_engine_to_cut(parse: Any) -> None:
    assert parse({"input": "a", "dimensions": 8}).embed.dimensions == 8
    assert parse({"input": "a", "dimensions": None}).embed.dimensions is None


def test_one_piece_per_vector() -> None:
    pieces = list(openai_embeddings.parse_embeddings({"input": "a"}).pieces("falcon-7b", [Embedding(b"[1]", 1)] * 5))
    assert len(pieces) == 7
    assert json.loads("".join(pieces))["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize("field", ["content", "text", "input"])
def test_tokenize(field: str) -> None:
    call = tokens.parse_tokenize({"model": "m", field: "Hé", "add_special": True})
    assert (call.model, call.text, call.add_special, call.parse_special) == ("m", "Hé", True, False)
    assert call.reply([1, 2, 3], [b"H", b"\xc3", b"\xa9"]) == '{"tokens":[1,2,3]}'


def test_tokenize_with_pieces() -> None:
    call = tokens.parse_tokenize({"content": "", "with_pieces": True, "parse_special": True})
    assert (call.text, call.parse_special) == ("", True)
    assert json.loads(call.reply([1, 2], [b"H", b"\xc3"])) == {
        "tokens": [{"id": 1, "piece": "H"}, {"id": 2, "piece": [195]}]
    }


def test_detokenize() -> None:
    call = tokens.parse_detokenize({"tokens": [1, 2], "model": "m"})
    assert (call.model, call.tokens) == ("m", (1, 2))
    assert call.reply("Hé") == '{"content":"Hé"}'
    assert tokens.parse_detokenize({"tokens": []}).tokens == ()


@pytest.mark.parametrize("body", [{}, {"content": 1}, {"content": ["a"]}, {"content": "a", "add_special": 1}])
def test_tokenize_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        tokens.parse_tokenize(body)


@pytest.mark.parametrize("body", [{}, {"tokens": "1"}, {"tokens": [1, "2"]}, {"tokens": [-1]}, {"tokens": [1.5]}])
def test_detokenize_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        tokens.parse_detokenize(body)
