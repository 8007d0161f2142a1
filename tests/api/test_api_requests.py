"""Requests that break a rule are refused by the name of the field; each row is a value some peer takes or dies of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlite.api.dialect import Call
from lmlite.api.openai import embeddings as openai_embeddings
from lmlite.api.read.json_body import parse_body
from lmlite.api.read.messages import ROLES
from lmlite.errors import InvalidRequest, MissingField, UnsupportedField
from lmlite.messages import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart, text_message
from lmlite.request import Chat, Grammar, Tokens
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


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ARGUMENTS = "messages[1].tool_calls[0].function.arguments"


def history(*after: dict[str, Any], calls: Any = (CALL,), reasoning: Any = None) -> dict[str, Any]:
    """A user's message, the assistant's with tool calls if there are any, and what comes after."""
    calling = {"role": "assistant", "content": None, "tool_calls": list(calls) if isinstance(calls, tuple) else calls}
    thinking = {} if reasoning is None else {"reasoning_content": reasoning}
    return {"messages": [USER, *([] if calls is None else [calling | thinking]), *after]}


def tools(*names: Any, **function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": name, **function}} for name in names]}


def object_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}}


SCHEMA = "response_format.json_schema.schema"

COMMON: list[tuple[dict[str, Any], str]] = [
    # limits
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": "2"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 1e30}, "max_tokens"),
    ({"n_predict": -2}, "n_predict"),
    ({"n_predict": "5"}, "n_predict"),
    ({"max_tokens": 5, "n_predict": True}, "n_predict"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**11}, "max_tokens"),
    ({"max_completion_tokens": 5, "max_tokens": -2}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 10**6}, "n"),
    ({"n": 2.5}, "n"),
    ({"n_cmpl": 0}, "n_cmpl"),
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
    ({"top_k": -2}, "top_k"),
    ({"top_k": 40.5}, "top_k"),
    ({"top_k": "40"}, "top_k"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
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
    ({"seed": 1.5}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"logit_bias": 1}, "logit_bias"),
    ({"logit_bias": [[1]]}, "logit_bias[0]"),
    ({"logit_bias": [[1, 2], ["a", 1]]}, "logit_bias[1]"),
    ({"logit_bias": [[1, True]]}, "logit_bias[0]"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"lora": {"id": 0, "scale": 1}}, "lora"),
    ({"lora": [0]}, "lora[0]"),
    ({"lora": [{"id": 0}]}, "lora[0].scale"),
    ({"lora": [{"id": 0, "scale": 1}, {"scale": 1}]}, "lora[1].id"),
    ({"lora": [{"id": -1, "scale": 1}]}, "lora[0].id"),
    ({"lora": [{"id": 0, "scale": 101}]}, "lora[0].scale"),
    ({"lora": [{"id": 0, "scale": 1}, {"id": 0, "scale": 0}]}, "lora[1].id"),
    ({"lora": [{"id": 0, "scale": 1}] * 65}, "lora"),
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
    ({"stop": ["a", 1]}, "stop[1]"),
    ({"stop": ["a"] * 50_000}, "stop"),
    ({"stop": ["", *map(str, range(65))]}, "stop"),
    ({"stop": [""] * 64 + [1]}, "stop[64]"),
    ({"stop": "a" * 2000}, "stop"),
    # how it is answered
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"context_overflow_policy": "rollingWindow"}, "context_overflow_policy"),
    ({"context_overflow_policy": 1}, "context_overflow_policy"),
    # guessing
    ({"draft_model": 1}, "draft_model"),
    ({"draft_model": "a\0b"}, "draft_model"),
    ({"speculative": "yes"}, "speculative"),
    ({"speculative": 1}, "speculative"),
    ({"speculative": {"max": 0}}, "speculative.max"),
    ({"speculative": {"max": 65}}, "speculative.max"),
    ({"speculative": {"max": 2.5}}, "speculative.max"),
    ({"speculative": {"ngram": 1}}, "speculative.ngram"),
    ({"speculative": {"ngram": True}, "draft_model": "small"}, "speculative.ngram"),
    # the model
    ({"model": 1}, "model"),
    ({"model": "a\0b"}, "model"),
    ({"model": "a\nb"}, "model"),
    ({"model": "x" * 10_000}, "model"),
    ({"ttl": -1}, "ttl"),
    ({"ttl": 0.5}, "ttl"),
    ({"ttl": 10**12}, "ttl"),
    ({"ttl": 1e12}, "ttl"),
    # grammars
    ({"grammar": 1}, "grammar"),
    ({"grammar": "root ::= [a]" + " " * 200_000}, "grammar"),
    ({"grammar": "root ::= [a]", "response_format": {"type": "json_object"}}, "grammar"),
    ({"json_schema": 7}, "json_schema"),
    ({"json_schema": {}, "response_format": {"type": "json_object"}}, "json_schema"),
    ({"json_schema": {}, "grammar": "root ::= [a]"}, "grammar"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, SCHEMA),
    (schema_format([]), SCHEMA),
    (schema_format({"description": "x" * 200_000}), SCHEMA),
]

CHAT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [USER, {}]}, "messages[1].role"),
    ({"messages": [USER, USER, {"role": "god", "content": "x"}]}, "messages[2].role"),
    ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    (history({"role": "tool", "content": "x", "tool_call_id": 1}), "messages[2].tool_call_id"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    (history(calls={}), "messages[1].tool_calls"),
    (history(calls=["f"]), "messages[1].tool_calls[0]"),
    (history(calls=[CALL] * 1000), "messages[1].tool_calls"),
    (history(calls=[CALL | {"function": None}]), "messages[1].tool_calls[0].function"),
    (history(calls=[CALL | {"function": {"arguments": "{}"}}]), "messages[1].tool_calls[0].function.name"),
    (history(calls=[CALL | {"function": {"name": "f", "arguments": 1}}]), ARGUMENTS),
    (history(calls=[CALL | {"function": {"name": "f", "arguments": ["x"]}}]), ARGUMENTS),
    (history(reasoning=["x"]), "messages[1].reasoning_content"),
    # tools
    ({"tools": {}}, "tools"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [{"type": 1}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools[0].function"),
    *[(tools(name), "tools[0].function.name") for name in ("", "x" * 129, "x" * 100_000, 1)],
    (tools("f", "g", "f"), "tools[2].function.name"),
    (tools("f", description=1), "tools[0].function.description"),
    (tools("f", strict="yes"), "tools[0].function.strict"),
    (tools("f", strict=1), "tools[0].function.strict"),
    (tools(*[f"f{i}" for i in range(513)]), "tools"),
    (tools("f", "g", description="x" * 300_000), "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    ({"tool_choice": "any", **tools("f")}, "tool_choice"),
    ({"tool_choice": 1}, "tool_choice"),
    ({"tool_choice": {}, **tools("f")}, "tool_choice.type"),
    ({"tool_choice": {"type": "function"}, **tools("f")}, "tool_choice.function"),
    ({"tool_choice": {"type": "function", "function": {}}, **tools("f")}, "tool_choice.function.name"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}, **tools("f")}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"grammar": "root ::= [a]", **tools("f")}, "grammar"),
    # reasoning
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"reasoning_effort": 1}, "reasoning_effort"),
    ({"reasoning": "none"}, "reasoning"),
    ({"reasoning": {"effort": "off"}}, "reasoning.effort"),
    ({"reasoning": 1}, "reasoning"),
    ({"reasoning": {"enabled": 1}}, "reasoning.enabled"),
    ({"enable_thinking": "yes"}, "enable_thinking"),
    ({"thinking": True}, "thinking"),
    ({"thinking": {"type": "perhaps"}}, "thinking.type"),
    ({"verbosity": "loud"}, "verbosity"),
    ({"chat_template_kwargs": {"enable_thinking": "false"}}, "chat_template_kwargs.enable_thinking"),
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
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": {"type": "allowed_tools"}, **tools("f")}, "tool_choice.type"),
    (history(calls=[CALL | {"type": "custom"}]), "messages[1].tool_calls[0].type"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"preset": "mine"}, "preset"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "v"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"reasoning": {"effort": "low", "exclude": True}}, "reasoning.exclude"),
    ({"echo": True}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"add_special_tokens": True}, "add_special_tokens"),
    (content({"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}), "messages[1].content[1].type"),
    (content({"type": "video_url", "video_url": {"url": "data:,"}}), "messages[1].content[1].type"),
    (content({"type": "input_image", "file_id": "file-1"}), "messages[1].content[1].file_id"),
    (
        content({"type": "image_url", "image_url": {"url": "data:application/pdf;base64,AAAA"}}),
        "messages[1].content[1].image_url.url",
    ),
    (
        content({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "pcm16"}}),
        "messages[1].content[1].input_audio.format",
    ),
    (
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}}]}]},
        "messages[0].content[0].type",
    ),
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
    ({"prompt": [1.5]}, "prompt[0]"),
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
    ({"best_of": 2}, "best_of"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
]

UNSERVED: list[tuple[dict[str, Any], str]] = [
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    *[({name: value}, name) for name, value in {
        "n_probs": 5, "n_indent": 4, "min_keep": 2, "post_sampling_probs": True,
        "return_tokens": True, "response_fields": ["content"], "grammar_lazy": True, "preserved_tokens": ["a"],
        "reasoning_format": "none", "parse_tool_calls": False, "adaptive_target": 0.5,
        "use_beam_search": True, "length_penalty": 0.5, "bad_words": ["a"], "allowed_token_ids": [1],
        "include_stop_str_in_output": True, "skip_special_tokens": False, "prompt_logprobs": 0, "prompt_embeds": "x",
        "truncate_prompt_tokens": 5, "logits_processors": ["a"], "documents": [{"text": "a"}], "return_token_ids": True,
        "include_reasoning": False, "separate_reasoning": False, "guidance_scale": 2, "tfs_z": 0.5, "top_a": 0.1,
    }.items()],
]  # fmt: skip

REFUSED = [
    *[("v0_chat", CHAT | change, param) for change, param in COMMON + CHAT_ONLY],
    *[("openai_text", {"prompt": "x"} | change, param) for change, param in COMMON + TEXT_ONLY],
]
UNSUPPORTED = [
    *[("openai_chat", CHAT | change, param) for change, param in UNSUPPORTED_CHAT + UNSERVED],
    *[("v0_text", {"prompt": "x"} | change, param) for change, param in UNSUPPORTED_TEXT + UNSERVED],
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


GOBBLED: list[dict[str, Any]] = [
    # what changes no answer
    {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "safety_identifier": "s"},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "prediction": {"type": "content", "content": "x"}},
    {"stream_options": {"include_obfuscation": True}},
    {"cache_prompt": False, "id_slot": 3, "n_cache_reuse": 256, "n_keep": -1, "n_discard": 5, "sse_ping_interval": 5},
    {"speculative.n_max": 8, "backend_sampling": True, "verbose": True},
    {"priority": 3, "request_id": "r", "vllm_xargs": {}, "kv_transfer_params": {}},
    # what asks for nothing
    {"n_probs": 0, "min_keep": 0, "n_indent": 0, "t_max_predict_ms": 0, "post_sampling_probs": False, "top_n_sigma": -1},
    {"dynatemp_range": 0, "dynatemp_exponent": 1, "reasoning_format": "auto", "reasoning_budget": -1, "response_fields": []},
    {"min_tokens": 0, "stop_token_ids": [], "skip_special_tokens": True, "spaces_between_special_tokens": True},
    {"use_beam_search": False, "length_penalty": 1.0, "best_of": 1, "bad_words": [], "guided_json": None, "suffix": ""},
    {"functions": [], "function_call": "auto", "preset": "", "chat_template": "", "tool_choice": "auto", "tools": []},
    {"stop": "", "logit_bias": {}, "json_schema": None, "cache_salt": "", "lora": None},
]


@pytest.mark.parametrize("change", GOBBLED, ids=label)
@pytest.mark.parametrize(("dialect", "body"), [("openai_chat", CHAT), ("v0_text", {"prompt": "x"})])
def test_what_asks_for_nothing_changes_nothing(dialect: str, body: dict[str, Any], change: dict[str, Any]) -> None:
    plain = PARSE[dialect](body).turn.runs[0]
    run = PARSE[dialect](body | change).turn.runs[0]
    settled = {name: getattr(plain.sampling, name) for name in ("logit_bias",)}
    assert replace(run, sampling=replace(run.sampling, **settled)) == plain


TOLERATED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # the request, what it sets of the run, and what of its sampling
    ({"max_tokens": 5.0}, {"max_tokens": 5}, {}),
    ({"max_tokens": 0}, {"max_tokens": 0}, {}),
    ({"max_completion_tokens": 0, "max_tokens": 9}, {"max_tokens": 0}, {}),
    ({"n_predict": 7}, {"max_tokens": 7}, {}),
    ({"n_predict": 7, "max_tokens": 8}, {"max_tokens": 8}, {}),
    ({"n_predict": -1}, {"max_tokens": -1}, {}),
    ({"top_k": -1}, {}, {"top_k": -1}),
    ({"top_k": 40.0, "seed": 1.0}, {}, {"top_k": 40, "seed": 1}),
    ({"repetition_penalty": 1.5}, {}, {"repeat_penalty": 1.5}),
    ({"repetition_penalty": 1.5, "repeat_penalty": 1.25}, {}, {"repeat_penalty": 1.25}),
    ({"stop": ["", "a", ""]}, {"stop": ("a",)}, {}),
    ({"stop": [*map(str, range(64)), ""]}, {"stop": tuple(map(str, range(64)))}, {}),
    ({"logit_bias": [[5, 1.5], [6.0, False]]}, {}, {"logit_bias": ((5, 1.5), (6, -math.inf))}),
    ({"json_schema": {"type": "integer"}}, {"grammar": Grammar("json_schema", '{"type":"integer"}')}, {}),
    ({"json_schema": {}, "response_format": {"type": "text"}}, {"grammar": Grammar("json_schema", "{}")}, {}),
    ({"cache_salt": "mine"}, {"scope": "mine"}, {}),
]


@pytest.mark.parametrize(("change", "fields", "sampling"), TOLERATED, ids=[json.dumps(row[0])[:60] for row in TOLERATED])
@pytest.mark.parametrize(("dialect", "body"), [("openai_chat", CHAT), ("v0_text", {"prompt": "x"})])
def test_forms_of_other_servers_are_taken(
    dialect: str, body: dict[str, Any], change: dict[str, Any], fields: dict[str, Any], sampling: dict[str, Any]
) -> None:
    plain = PARSE[dialect](body).turn.runs[0]
    expected = replace(plain, sampling=replace(plain.sampling, **sampling), **fields)
    assert PARSE[dialect](body | change).turn.runs == (expected,)


def test_n_cmpl_and_token_ids_with_a_point() -> None:
    assert len(PARSE["openai_chat"](CHAT | {"n_cmpl": 3.0}).turn.runs) == 3
    (run,) = PARSE["openai_text"]({"prompt": [1.0, 2]}).turn.runs
    assert run.prompt == Tokens((1, 2)) and all(type(id) is int for id in run.prompt.ids)


ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}
EFFORTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *[
        ({"reasoning_effort": word}, ON | {"reasoning_effort": word})
        for word in ("minimal", "low", "medium", "high", "xhigh", "max")
    ],
    ({"reasoning_effort": "none"}, OFF),
    ({"reasoning": "max"}, ON | {"reasoning_effort": "max"}),
    ({"reasoning": {"effort": "xhigh", "summary": "auto"}}, ON | {"reasoning_effort": "xhigh"}),
    ({"reasoning": {"enabled": False}}, OFF),
    ({"reasoning": {"enabled": True, "exclude": False}}, ON),
    ({"enable_thinking": False}, OFF),
    ({"thinking": {"type": "disabled"}}, OFF),
    ({"thinking": {"type": "enabled"}}, ON),
    ({"thinking": {"type": "adaptive"}}, {}),
    ({"thinking": {"type": "disabled"}, "reasoning_effort": "low"}, ON | {"reasoning_effort": "low"}),
    ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}}, ON),
    ({"verbosity": "low"}, {"verbosity": "low"}),
]


@pytest.mark.parametrize(("change", "variables"), EFFORTS, ids=[json.dumps(change) for change, _ in EFFORTS])
def test_words_for_reasoning_are_the_template_s_variables(change: dict[str, Any], variables: dict[str, Any]) -> None:
    (run,) = PARSE["openai_chat"](CHAT | change).turn.runs
    assert isinstance(run.prompt, Chat)
    assert run.prompt.template_kwargs == variables


TAKE_TTL = [parse for dialect, parse in PARSE.items() if dialect != "native"]  # whose strict body has none


@pytest.mark.parametrize("parse", [*TAKE_TTL, openai_embeddings.parse_embeddings])
def test_ttl_of_zero_is_never_and_none_is_left_open(parse: Any) -> None:
    body = {"input": "x"} if parse is PARSE["openai_responses"] else CHAT | {"prompt": "x", "input": "x"}
    calls = [parse(body | change) for change in ({"ttl": 0}, {}, {"ttl": 60.0})]
    assert [call.turn.load.ttl_s if isinstance(call, Call) else call.ttl_s for call in calls] == [0, None, 60]


@pytest.mark.parametrize(("dialect", "field"), [("openai_chat", "messages"), ("openai_text", "prompt")])
@pytest.mark.parametrize("value", [{}, None])
def test_missing_prompt_is_named(dialect: str, field: str, value: dict[str, Any] | None) -> None:
    body = {} if value == {} else {field: None}
    with pytest.raises(MissingField) as caught:
        PARSE[dialect](body)
    assert caught.value.param == field


def test_a_schema_as_deep_as_a_body_can_be_is_accepted() -> None:
    body = parse_body(json.dumps({**CHAT, **schema_format(deep_schema(60))}).encode())
    (run,) = PARSE["openai_chat"](body).turn.runs
    assert run.grammar is not None
    assert json.loads(run.grammar.text) == deep_schema(60)


def test_a_schema_may_require_any_number_of_properties() -> None:
    properties = {f"p{i}": {"type": "string"} for i in range(2000)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    (run,) = PARSE["openai_chat"]({**CHAT, **schema_format(schema)}).turn.runs
    assert run.grammar is not None


@pytest.mark.parametrize("dialect", ["openai_chat", "openai_text"])
@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"guided_json": {"type": "null"}}, "json_schema", '{"type":"null"}'),
        ({"guided_json": '{"type": "null"}'}, "json_schema", '{"type":"null"}'),
        ({"json_schema": '{"type": "null"}'}, "json_schema", '{"type":"null"}'),
        ({"guided_regex": r"\d+"}, "regex", r"\d+"),
        ({"regex": r"\d+"}, "regex", r"\d+"),
        ({"guided_choice": ["yes", "n\"o"]}, "choice", r'["yes","n\"o"]'),
        ({"guided_grammar": "root ::= [a]"}, "gbnf", "root ::= [a]"),
        ({"ebnf": "root ::= [a]", "guided_regex": "", "guided_choice": []}, "gbnf", "root ::= [a]"),
        ({"structured_outputs": {"json": {"type": "null"}, "regex": None}}, "json_schema", '{"type":"null"}'),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"regex": "a|b"}}, "regex", "a|b"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a","b"]'),
        ({"structured_outputs": {"grammar": "root ::= [a]"}}, "gbnf", "root ::= [a]"),
    ],
    ids=repr,
)
def test_forms_of_an_answer_as_other_servers_spell_them(dialect: str, fields: dict[str, Any], kind: str, text: str) -> None:
    (run,) = PARSE[dialect]({**(CHAT if dialect == "openai_chat" else {"prompt": "x"}), **fields}).turn.runs
    assert run.grammar is not None
    assert (run.grammar.kind, run.grammar.text) == (kind, text)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
        ({"guided_regex": 1}, "guided_regex"),
        ({"guided_regex": "a" * 200_000}, "guided_regex"),
        ({"guided_choice": ["a", 1]}, "guided_choice[1]"),
        ({"guided_choice": ["a"] * 5000}, "guided_choice"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[" * 100_000}, "guided_json"),
        ({"guided_json": 1}, "guided_json"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
    ],
    ids=repr,
)
def test_forms_of_an_answer_that_cannot_be_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        PARSE["openai_chat"]({**CHAT, **fields})
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "(((" ' + "(" * 64 + '"a"' + ")" * 64,
        "root ::= " + "".join('("a" | "b") ' for _ in range(1000)),
        'root ::= [^"(({5,2}\\]]+ # ' + "(" * 100,
        'root ::= "a"{2} "b"{0,2000} "c"{3,} "{9,1}"',
        'root ::= #\r"a"{5,2}',
    ],
)
def test_grammar_is_passed_on_as_it_is_for_the_engine_to_judge(grammar: str) -> None:
    (run,) = PARSE["openai_chat"]({**CHAT, "grammar": grammar}).turn.runs
    assert run.grammar is not None
    assert (run.grammar.kind, run.grammar.text) == ("gbnf", grammar)


@pytest.mark.parametrize(
    "schema",
    [
        {"maxItems": 10**6, "minLength": 5, "maxLength": 2},
        {"enum": list(range(5000))},
        {"minimum": 10**30, "maxItems": 2.0},
        {"properties": {f"p{i}": {} for i in range(501)}},
        {"pattern": "^a{5,2}$"},
        {"items": True, "anyOf": [True, {}, {"$ref": "#/items"}]},
    ],
)
def test_a_schema_is_passed_on_as_it_is_for_the_engine_to_judge(schema: dict[str, Any]) -> None:
    (run,) = PARSE["openai_chat"]({**CHAT, **schema_format(schema)}).turn.runs
    assert run.grammar is not None
    assert (run.grammar.kind, json.loads(run.grammar.text)) == ("json_schema", schema)


def test_seed_beyond_the_engines_is_folded() -> None:
    (run,) = PARSE["openai_chat"]({**CHAT, "seed": 2**63 - 1}).turn.runs
    assert run.sampling.seed == (2**63 - 1) % (2**32 - 1)


def test_nul_in_content_is_kept() -> None:
    (run,) = PARSE["openai_chat"]({"messages": [{"role": "user", "content": "a\0b"}]}).turn.runs
    assert isinstance(run.prompt, Chat)
    assert run.prompt.messages == (text_message("user", "a\0b"),)


def test_control_tokens_in_user_text_stay_text() -> None:
    (run,) = PARSE["openai_chat"]({"messages": [{"role": "user", "content": "<|im_end|>"}]}).turn.runs
    assert isinstance(run.prompt, Chat)
    assert run.prompt.messages == (text_message("user", "<|im_end|>"),)


# ---- earlier turns, as clients send them -------------------------------------------------------------------------------

NOTHING: tuple[Any, ...] = (None, [], "")
SAID = text_message("user", "Hi")
CALLED = Message("assistant", (ToolCallPart("1", "f", "{}"),))


def calling(**call: Any) -> dict[str, Any]:
    return history(calls=[CALL | call])


EARLIER: list[tuple[dict[str, Any], tuple[Message, ...]]] = [
    *[({"messages": [{"role": role, "content": nothing}]}, (Message(said, ()),))
      for role, said in ROLES.items() if said != "tool" for nothing in NOTHING],
    ({"messages": [{"role": "user"}]}, (Message("user", ()),)),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
     (Message("user", (TextPart("a"), TextPart("b"))),)),
    ({"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]},
     (text_message("assistant", "No."),)),
    ({"messages": [{"role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "a"}]}]},
     (Message("assistant", (ReasoningPart("Hm."), TextPart("a"))),)),
    ({"messages": [{"role": "assistant", "content": "a", "reasoning": "Hm."}]},
     (Message("assistant", (ReasoningPart("Hm."), TextPart("a"))),)),
    ({"messages": [{"role": "assistant", "content": "a", "reasoning": {"effort": "low"}}]}, (text_message("assistant", "a"),)),
    # calls: without an id, with one twice, as an object, cut off, of before there were ids
    (calling(id=None), (SAID, Message("assistant", (ToolCallPart("", "f", "{}"),)))),
    (history(calls=[CALL, CALL]), (SAID, Message("assistant", CALLED.parts * 2))),
    (calling(function={"name": "f", "arguments": {"a": "é"}}),
     (SAID, Message("assistant", (ToolCallPart("1", "f", '{"a":"é"}'),)))),
    (calling(function={"name": "f", "arguments": '{"a": "Tu'}),
     (SAID, Message("assistant", (ToolCallPart("1", "f", '{"a": "Tu'),)))),
    (calling(function={"name": "f"}), (SAID, Message("assistant", (ToolCallPart("1", "f", ""),)))),
    ({"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                   {"role": "function", "name": "f", "content": "x"}]},
     (Message("assistant", (ToolCallPart("", "f", "{}"),)), Message("tool", (ToolResultPart("", "f", (TextPart("x"),)),)))),
    # results: of a call before, of none, without an id, with nothing in them
    (history({"role": "tool", "content": "x", "tool_call_id": "1"}),
     (SAID, CALLED, Message("tool", (ToolResultPart("1", "f", (TextPart("x"),)),)))),
    (history({"role": "tool", "content": "x", "tool_call_id": "2"}, calls=None),
     (SAID, Message("tool", (ToolResultPart("2", "", (TextPart("x"),)),)))),
    (history({"role": "tool", "content": None}, calls=None), (SAID, Message("tool", (ToolResultPart("", "", ()),)))),
]  # fmt: skip


@pytest.mark.parametrize(("body", "messages"), EARLIER, ids=[json.dumps(body["messages"])[-60:] for body, _ in EARLIER])
def test_earlier_turns_are_taken_as_they_come(body: dict[str, Any], messages: tuple[Message, ...]) -> None:
    (run,) = PARSE["openai_chat"](body).turn.runs
    assert isinstance(run.prompt, Chat)
    assert run.prompt.messages == messages


# ---- tools and what was called of them, whatever they are made of ----------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-3, 10**6) | st.sampled_from(["", "1", "f", "{}", "object", "function"])


def object_with(names: tuple[str, ...], inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), inner, max_size=len(names))


def shaped(names: tuple[str, ...], **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that are nearly right: each part now and then something else."""
    return st.fixed_dictionaries({}, optional={name: parts.get(name, scalars) | scalars for name in names})


schemas = st.recursive(
    scalars,
    lambda inner: object_with(("type", "properties", "items", "enum", "maxItems", "minItems", "pattern"), inner)
    | st.lists(inner, max_size=2),
    max_leaves=8,
)
functions = shaped(("name", "description", "parameters", "strict"), name=st.just("f"), parameters=schemas)
tool_values = shaped(("type", "function"), type=st.just("function"), function=functions)
made_calls = shaped(
    ("id", "type", "function"),
    id=st.sampled_from("12"),
    function=shaped(("name", "arguments"), name=st.just("f"), arguments=st.text('{}[]":1 \\ud', max_size=8)),
)
messages = shaped(
    ("role", "content", "tool_calls", "tool_call_id", "reasoning_content", "name"),
    role=st.sampled_from(["user", "assistant", "tool"]),
    content=st.just("x"),
    tool_calls=st.lists(made_calls, max_size=2),
    tool_call_id=st.sampled_from("12"),
)
choices = shaped(("type", "function"), type=st.just("function"), function=shaped(("name",), name=st.just("f")))


@settings(max_examples=300)
@given(
    shaped(
        ("messages", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"),
        messages=st.lists(messages, max_size=3).map(lambda after: [USER, *after]),
        tools=st.lists(tool_values, max_size=2),
        tool_choice=choices | st.sampled_from(["auto", "none", "required"]),
    )
)
def test_any_tools_and_calls_are_a_conversation_or_a_named_refusal(body: dict[str, Any]) -> None:
    try:
        (run,) = PARSE["openai_chat"](body).turn.runs
    except InvalidRequest as refused:
        assert refused.param is not None and len(refused.message) < 300
        return
    assert isinstance(run.prompt, Chat)
    for message in run.prompt.messages:
        for part in message.parts:
            assert isinstance(part, ToolResultPart) == (message.role == "tool")
            assert isinstance(part, TextPart | ToolResultPart) or message.role == "assistant"
    assert run.prompt.tools or run.prompt.tool_choice == "auto"
    assert all("parameters" in tool["function"] for tool in run.prompt.tools)


@pytest.mark.parametrize(
    "schema",
    [
        [],
        True,
        {"type": "string"},
        {"type": ["object", "null"]},
        object_of({"minimum": 2, "maximum": 1}),
        object_of({"pattern": "^" + "(" * 100}),
        object_of({"minItems": 10**6, "maxItems": "1"}),
        object_of({"description": "x" * 200_000}),
        object_of({"enum": list(range(5000))}),
        {"type": "object", "properties": {f"p{i}": {} for i in range(600)}},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_what_a_tool_s_schema_says_is_the_engine_s_to_read(schema: Any) -> None:
    (run,) = PARSE["openai_chat"]({"messages": [USER], **tools("f", parameters=schema)}).turn.runs
    assert isinstance(run.prompt, Chat)
    assert run.prompt.tools[0]["function"]["parameters"] == schema


def test_whether_calls_may_be_parallel_is_the_template_s_to_say_unless_the_request_does() -> None:
    def parallel(**more: Any) -> bool | None:
        (run,) = PARSE["openai_chat"]({"messages": [USER], **tools("f"), **more}).turn.runs
        assert isinstance(run.prompt, Chat)
        return run.prompt.parallel_tool_calls

    assert parallel() is None and parallel(parallel_tool_calls=None) is None
    assert parallel(parallel_tool_calls=True) is True
    assert parallel(parallel_tool_calls=False) is False
    assert parallel(tool_choice="required") is None
    named = {"type": "function", "function": {"name": "f"}}
    assert parallel(tool_choice=named) is False
    assert parallel(tool_choice=named, parallel_tool_calls=True) is False
