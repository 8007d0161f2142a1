"""Requests that break a rule are refused by the name of the field; each row is a value some peer takes or dies of."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from lmlite.api.fields import parse_body
from lmlite.errors import InvalidRequest, MissingField, UnsupportedField
from lmlite.request import Chat
from tests.api.golden_files import PARSE

USER = {"role": "user", "content": "Hi"}
CHAT = {"messages": [USER]}


def deep_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def schema_format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def content(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}


SCHEMA = "response_format.json_schema.schema"

COMMON: list[tuple[dict[str, Any], str]] = [
    # limits
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "2"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 1.0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**11}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 5, "max_tokens": -2}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 10**6}, "n"),
    ({"n": 2.0}, "n"),
    # sampling
    ({"temperature": -1}, "temperature"),
    ({"temperature": 1e308}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"min_p": -3}, "min_p"),
    ({"typical_p": -9}, "typical_p"),
    ({"xtc_probability": 7}, "xtc_probability"),
    ({"xtc_threshold": 7}, "xtc_threshold"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 40.0}, "top_k"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"repeat_last_n": -2}, "repeat_last_n"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"mirostat": 3}, "mirostat"),
    ({"mirostat_tau": -1}, "mirostat_tau"),
    ({"mirostat_eta": 2}, "mirostat_eta"),
    ({"dry_multiplier": -1}, "dry_multiplier"),
    ({"dry_base": 0}, "dry_base"),
    ({"dry_allowed_length": -1}, "dry_allowed_length"),
    ({"dry_penalty_last_n": 2**31}, "dry_penalty_last_n"),
    ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers[0]"),
    ({"dry_sequence_breakers": ["a"] * 65}, "dry_sequence_breakers"),
    ({"dry_sequence_breakers": "a"}, "dry_sequence_breakers"),
    ({"seed": 1e30}, "seed"),
    ({"seed": 10**30}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"logit_bias": [[1, 2]]}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"+5": 1}}, "logit_bias"),
    ({"logit_bias": {"5_0": 1}}, "logit_bias"),
    ({"logit_bias": {"٥": 1}}, "logit_bias"),
    ({"logit_bias": {"": 1}}, "logit_bias"),
    ({"logit_bias": {"4294967296": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": True}}, "logit_bias.5"),
    ({"logit_bias": {str(i): 1 for i in range(20_000)}}, "logit_bias"),
    # stop strings
    ({"stop": 123}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["a", 1]}, "stop[1]"),
    ({"stop": ["a"] * 50_000}, "stop"),
    ({"stop": "a" * 2000}, "stop"),
    # how it is answered
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"ignore_eos": 1}, "ignore_eos"),
    # the model
    ({"model": 1}, "model"),
    ({"model": "a\0b"}, "model"),
    ({"model": "a\nb"}, "model"),
    ({"model": "x" * 10_000}, "model"),
    ({"ttl": -1}, "ttl"),
    ({"ttl": 0}, "ttl"),
    ({"ttl": 10**12}, "ttl"),
    ({"ttl": 1e12}, "ttl"),
    # grammars
    ({"grammar": 1}, "grammar"),
    ({"grammar": "root ::= " + "(" * 20_000}, "grammar"),
    ({"grammar": "root ::= " + "(" * 65 + '"a"' + ")" * 65}, "grammar"),
    ({"grammar": 'root ::= <"> ' + "(" * 100 + ' "'}, "grammar"),
    ({"grammar": 'root ::= "\\"" ' + "(" * 100 + ' "'}, "grammar"),
    ({"grammar": 'root ::= "a"{5,2}'}, "grammar"),
    ({"grammar": 'root ::= "a"{ 5 ,\n 002 }'}, "grammar"),
    ({"grammar": 'root ::= "a"{5, # }\n 2}'}, "grammar"),
    ({"grammar": 'root ::= "a"{5,2'}, "grammar"),
    ({"grammar": 'root ::= "a"{99999999999999999999,2}'}, "grammar"),
    ({"grammar": 'root ::= "a"{0,1000000}'}, "grammar"),
    ({"grammar": "root ::= [a]" + " " * 200_000}, "grammar"),
    ({"grammar": "root ::= [a]", "response_format": {"type": "json_object"}}, "grammar"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, SCHEMA),
    (schema_format([]), SCHEMA),
    (schema_format({"enum": list(range(5000))}), SCHEMA),
    (schema_format({"anyOf": [{"enum": list(range(3000))}] * 2}), SCHEMA),
    (schema_format({"description": "x" * 200_000}), SCHEMA),
    (schema_format({"minLength": 5, "maxLength": 2}), SCHEMA),
    (schema_format({"properties": {"a": {"items": {"minItems": 2, "maxItems": 1}}}}), SCHEMA),
    (schema_format({"minimum": 2, "maximum": 1.5}), SCHEMA),
    (schema_format({"minimum": 10**30}), SCHEMA),
    (schema_format({"pattern": "^" + "(" * 100 + "a" + ")" * 100 + "$"}), SCHEMA),
    (schema_format({"pattern": "^a{5,2}$"}), SCHEMA),
    (schema_format({"maxItems": 10**6}), f"{SCHEMA}: maxItems"),
    (schema_format({"minLength": -1}), f"{SCHEMA}: minLength"),
    (schema_format({"minLength": "1"}), f"{SCHEMA}: minLength"),
]

CHAT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [USER, {}]}, "messages[1].role"),
    ({"messages": [USER, USER, {"role": "god", "content": "x"}]}, "messages[2].role"),
    ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[1].role"),
    ({"messages": [{**USER, "name": "a\0"}]}, "messages[0].name"),
    (content({"type": "text"}), "messages[1].content[1].text"),
    (content({"type": "text", "text": 1}), "messages[1].content[1].text"),
    (content({"text": "a"}), "messages[1].content[1].type"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
]

UNSUPPORTED_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tools": [{}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"draft_model": "small"}, "draft_model"),
    ({"preset": "mine"}, "preset"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "v"}}, "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls"),
    (content({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}), "messages[1].content[1].type"),
    (content({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "messages[1].content[1].type"),
    (content({"type": "input_audio", "input_audio": {}}), "messages[1].content[1].type"),
]

TEXT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 1}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": ["a", None]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [1, -1]}, "prompt[1]"),
    ({"prompt": [1, 2**31]}, "prompt[1]"),
    ({"prompt": [1, True]}, "prompt[1]"),
    ({"prompt": [1.0]}, "prompt[0]"),
    ({"prompt": [[1], [2, "x"]]}, "prompt[1][1]"),
    ({"prompt": [[1], 2]}, "prompt[1]"),
    ({"prompt": ["a"] * 65, "n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"echo": 1}, "echo"),
    ({"best_of": 0}, "best_of"),
    ({"suffix": 1}, "suffix"),
]

UNSUPPORTED_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"echo": True, "logprobs": 0}, "echo"),
    ({"draft_model": "small"}, "draft_model"),
]

REFUSED = [
    *[("v0_chat", CHAT | change, param) for change, param in COMMON + CHAT_ONLY],
    *[("openai_text", {"prompt": "x"} | change, param) for change, param in COMMON + TEXT_ONLY],
]
UNSUPPORTED = [
    *[("openai_chat", CHAT | change, param) for change, param in UNSUPPORTED_CHAT],
    *[("v0_text", {"prompt": "x"} | change, param) for change, param in UNSUPPORTED_TEXT],
]


def label(value: object) -> str | None:
    return json.dumps(value)[-60:] if isinstance(value, dict) else None


@pytest.mark.parametrize(("dialect", "body", "param"), REFUSED, ids=label)
def test_request_is_refused_by_name(dialect: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        PARSE[dialect](body)
    assert caught.value.param == param
    assert caught.value.status == 400
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(("dialect", "body", "param"), UNSUPPORTED, ids=label)
def test_unsupported_field_is_refused_by_name(dialect: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        PARSE[dialect](body)
    assert caught.value.param == param


@pytest.mark.parametrize(("dialect", "field"), [("openai_chat", "messages"), ("openai_text", "prompt")])
@pytest.mark.parametrize("value", [{}, None])
def test_missing_prompt_is_named(dialect: str, field: str, value: dict[str, Any] | None) -> None:
    body = {} if value == {} else {field: None}
    with pytest.raises(MissingField) as caught:
        PARSE[dialect](body)
    assert caught.value.param == field


def test_a_schema_as_deep_as_a_body_can_be_is_accepted() -> None:
    body = parse_body(json.dumps({**CHAT, **schema_format(deep_schema(60))}).encode())
    (run,) = PARSE["openai_chat"](body).runs
    assert run.grammar is not None
    assert json.loads(run.grammar.text) == deep_schema(60)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "(((" ' + "(" * 64 + '"a"' + ")" * 64,
        "root ::= " + "".join('("a" | "b") ' for _ in range(1000)),
        'root ::= [^"(({5,2}\\]]+ # ' + "(" * 100,
        'root ::= "a"{2} "b"{0,2000} "c"{3,} "{9,1}"',
    ],
)
def test_sound_grammar_is_passed_on_as_it_is(grammar: str) -> None:
    (run,) = PARSE["openai_chat"]({**CHAT, "grammar": grammar}).runs
    assert run.grammar is not None
    assert (run.grammar.kind, run.grammar.text) == ("gbnf", grammar)


@pytest.mark.parametrize("filler", ['"', "[", "<", "{", "#", "{1,", "{0", "\\", '"\\', "0"])
def test_no_grammar_takes_long_to_check(filler: str) -> None:
    body = {**CHAT, "grammar": "root ::= a{" + filler * (120_000 // len(filler))}
    started = time.process_time()
    try:
        PARSE["openai_chat"](body)
    except InvalidRequest:
        pass
    assert time.process_time() - started < 1.0  # a quadratic search takes ten and more


def test_seed_beyond_the_engines_is_folded() -> None:
    (run,) = PARSE["openai_chat"]({**CHAT, "seed": 2**63 - 1}).runs
    assert run.sampling.seed == (2**63 - 1) % (2**32 - 1)


def test_nul_in_content_is_kept() -> None:
    (run,) = PARSE["openai_chat"]({"messages": [{"role": "user", "content": "a\0b"}]}).runs
    assert isinstance(run.prompt, Chat)
    assert run.prompt.messages == ({"role": "user", "content": "a\0b"},)


def test_control_tokens_in_user_text_stay_text() -> None:
    (run,) = PARSE["openai_chat"]({"messages": [{"role": "user", "content": "<|im_end|>"}]}).runs
    assert isinstance(run.prompt, Chat)
    assert run.prompt.messages[0]["content"] == "<|im_end|>"
