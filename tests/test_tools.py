"""Tools and reasoning end to end: the official OpenAI client, the real engine, the bundled model, which knows both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from lmlite.server import Server
from tests.conftest import Client

MODEL = "lmlite-tiny"


def tool(name: str, about: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


WEATHER = tool("get_weather", "Get the weather in a city", city="string")
CLOCK = tool("get_time", "Get the current time", city="string")
QUESTION = {"role": "user", "content": "What is the weather in Turin?"}
HELLO = {"role": "user", "content": "Hello!"}


@pytest.fixture(params=["whole", "streamed"])
def ask(request: pytest.FixtureRequest, tiny_server: Server) -> Iterator[Any]:
    """The one choice of an answer to messages, asked for whole or put together from its chunks."""
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="any", max_retries=0) as client:

        def ask(*messages: Any, **params: Any) -> dict[str, Any]:
            params = {"model": MODEL, "messages": list(messages), "temperature": 0, "max_tokens": 100, **params}
            if request.param == "whole":
                answer = client.chat.completions.create(**params)
                assert isinstance(answer, ChatCompletion) and answer.usage is not None
                return answer.choices[0].to_dict() | {"usage": answer.usage.to_dict()}
            chunks = client.chat.completions.create(**params, stream=True, stream_options={"include_usage": True})
            return put_together(list(chunks))

        yield ask


def put_together(chunks: list[ChatCompletionChunk]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    usage = chunks.pop().usage
    assert usage is not None
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
    for delta in (chunk.choices[0].delta.to_dict() for chunk in chunks):
        assert len({"content", "reasoning_content", "tool_calls"} & set(delta)) <= 1
        for name in ("content", "reasoning_content"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for piece in delta.get("tool_calls", ()):  # type: ignore[attr-defined]
            index = piece.pop("index")
            calls = message.setdefault("tool_calls", [])
            if index == len(calls):
                calls.append(piece)
            else:
                calls[index]["function"]["arguments"] += piece["function"]["arguments"]
    assert len(reasons) == 1
    return {"message": message, "finish_reason": reasons[0], "usage": usage.to_dict()}


def made(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def test_call_result_and_final_answer(ask: Any) -> None:
    choice = ask(QUESTION, tools=[WEATHER, CLOCK])
    assert choice["finish_reason"] == "tool_calls"
    assert made(choice) == [("get_weather", {"city": "Turin"})]
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and len(call["id"]) == 9 and call["id"].isdecimal()
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    final = ask(QUESTION, choice["message"], result, tools=[WEATHER, CLOCK])
    assert final["finish_reason"] == "stop" and "tool_calls" not in final["message"]
    assert "Turin" in final["message"]["content"] and "sunny" in final["message"]["content"]


def test_plain_answer_although_tools_are_offered(ask: Any) -> None:
    choice = ask(HELLO, tools=[WEATHER])
    assert choice["finish_reason"] == "stop" and "tool_calls" not in choice["message"]
    assert "help" in choice["message"]["content"]


def test_none_calls_nothing(ask: Any) -> None:
    choice = ask(QUESTION, tools=[WEATHER], tool_choice="none")
    assert choice["finish_reason"] == "stop" and "tool_calls" not in choice["message"]
    assert "tool_call" not in choice["message"]["content"]


def test_required_calls_one_of_the_tools_whatever_was_said(ask: Any) -> None:
    choice = ask(HELLO, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False)
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == ""
    ((name, arguments),) = made(choice)
    assert name in ("get_weather", "get_time") and isinstance(arguments["city"], str)


def test_named_tool_is_called_although_another_fits(ask: Any) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    choice = ask(QUESTION, tools=[WEATHER, CLOCK], tool_choice=named, parallel_tool_calls=False)
    assert choice["finish_reason"] == "tool_calls"
    assert [name for name, _ in made(choice)] == ["get_time"]


def test_a_tool_may_have_any_name(ask: Any) -> None:
    forecast = tool("weather/get: now", "Get the weather in a city", city="string")
    named = {"type": "function", "function": {"name": "weather/get: now"}}
    choice = ask(QUESTION, tools=[forecast, CLOCK], tool_choice=named)
    assert made(choice)[0][0] == "weather/get: now" and choice["finish_reason"] == "tool_calls"
    result = {"role": "tool", "tool_call_id": choice["message"]["tool_calls"][0]["id"], "content": "sunny"}
    assert "sunny" in ask(QUESTION, choice["message"], result, tools=[forecast, CLOCK])["message"]["content"]


def test_calls_in_parallel_unless_switched_off(ask: Any) -> None:
    both = {"role": "user", "content": "What is the weather in Turin and in Oslo?"}
    choice = ask(both, tools=[WEATHER])
    assert made(choice) == [("get_weather", {"city": "Turin"}), ("get_weather", {"city": "Oslo"})]
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2
    alone = ask(both, tools=[WEATHER], parallel_tool_calls=False)
    assert made(alone) == [("get_weather", {"city": "Turin"})]


def test_reasoning_stands_apart_from_the_answer(ask: Any) -> None:
    choice = ask({"role": "user", "content": "What is 3 + 4?"}, reasoning_effort="low")
    message = choice["message"]
    assert message["reasoning_content"] and "7" in message["content"] and "think" not in message["content"].lower()
    details = choice["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] < choice["usage"]["completion_tokens"]


def test_no_effort_is_no_reasoning(ask: Any) -> None:
    think = {"role": "system", "content": "Think first."}
    assert ask(think, HELLO)["message"]["reasoning_content"]
    silent = ask(think, HELLO, reasoning_effort="none")
    assert "reasoning_content" not in silent["message"] and "help" in silent["message"]["content"]
    assert silent["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_reasoning_before_a_tool_call(ask: Any) -> None:
    choice = ask(QUESTION, tools=[WEATHER], reasoning_effort="low")
    assert choice["message"]["reasoning_content"] and choice["finish_reason"] == "tool_calls"
    assert made(choice) == [("get_weather", {"city": "Turin"})]


def test_schema_binds_the_content_and_leaves_tools_free(ask: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"greeting": {"type": "string", "maxLength": 20}},
        "required": ["greeting"],
        "additionalProperties": False,
    }
    params = {
        "tools": [WEATHER],
        "response_format": {"type": "json_schema", "json_schema": {"name": "g", "schema": schema}},
    }
    plain = ask(HELLO, **params, tool_choice="none")
    assert plain["finish_reason"] == "stop"
    assert set(json.loads(plain["message"]["content"])) == {"greeting"}
    calling = ask(QUESTION, **params)
    assert calling["finish_reason"] == "tool_calls"
    assert made(calling) == [("get_weather", {"city": "Turin"})]


def test_arguments_cut_short_end_in_length(ask: Any) -> None:
    choice = ask(QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=12)
    assert choice["finish_reason"] == "length"


def test_client_gathers_a_stream_of_calls_by_itself(tiny_server: Server) -> None:
    with (
        openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="any", max_retries=0) as client,
        client.chat.completions.stream(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION["content"]}],
            tools=[WEATHER],  # type: ignore[list-item]
            temperature=0,
            max_tokens=100,
        ) as stream,
    ):
        kinds = {event.type for event in stream}
        (choice,) = stream.get_final_completion().choices
    assert "tool_calls.function.arguments.done" in kinds
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls is not None
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Turin"}


def test_choices_and_logprobs_go_with_tools(tiny: Client) -> None:
    body = {
        "messages": [HELLO],
        "tools": [WEATHER],
        "temperature": 0,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 1,
        "max_tokens": 60,
    }
    answer = tiny.post("/v1/chat/completions", body).json
    for choice in answer["choices"]:
        tokens = choice["logprobs"]["content"]
        assert b"".join(bytes(token["bytes"]) for token in tokens).decode().startswith(choice["message"]["content"])


def test_v0_calls_tools_too(tiny: Client) -> None:
    body = {"messages": [QUESTION], "tools": [WEATHER], "temperature": 0, "max_tokens": 100}
    answer = tiny.post("/api/v0/chat/completions", body).json
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Turin"}
    assert answer["stats"]["stop_reason"] == "toolCalls"
    plain = tiny.post("/api/v0/chat/completions", {**body, "messages": [HELLO]}).json
    assert set(plain["choices"][0]["message"]) == {"role", "content"}


KEPT = [
    None,
    True,
    {"type": "any"},
    {"type": "object", "properties": {"city": {"$ref": "#"}}},
    {"type": "object", "properties": {"city": {"type": "integer", "maximum": 2**64}}},
    {"type": "object", "properties": {"city": True}},
    {"type": "object", "properties": {"city": {"type": "array", "items": True}}},
    {"type": "object", "properties": {"city": {"type": "STRING", "nullable": True}}},
]
LOOSENED = [
    [],
    {"type": "object", "properties": None},
    {"type": "object", "properties": {"city": {"$ref": "https://example.com/city.json"}}},
    {"type": "object", "properties": {"city": {"enum": []}}},
    {"type": "object", "properties": {"city": {"type": "string", "pattern": "^(a$"}}},
    {"type": "object", "properties": {f"{i}": {} for i in range(510)}},
    {"type": "object", "properties": {"city": {"enum": [0] * 4100}}},
]


@pytest.mark.parametrize("schema", [*KEPT, *LOOSENED], ids=lambda schema: json.dumps(schema)[:60])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_an_unusual_schema_refuses_no_request(
    tiny: Client, schema: Any, choice: str, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"type": "function", "function": {"name": f"odd_{choice}", "parameters": schema}}
    body = {"model": MODEL, "messages": [HELLO], "tools": [WEATHER, odd], "tool_choice": choice, "max_tokens": 8}
    for _ in range(2):
        answer = tiny.post("/v1/chat/completions", body)
        too_long = answer.status == 400 and answer.json["error"].get("type") == "exceed_context_size_error"
        assert answer.status == 200 or too_long, answer.body
    told = [record for record in caplog.records if f"tool odd_{choice} " in record.getMessage()]
    assert len(told) == (1 if schema in LOOSENED and not too_long else 0)


def test_a_loosened_tool_does_not_loosen_the_others(tiny: Client) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "any"}}}
    odd = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    body = {"model": MODEL, "messages": [QUESTION], "tools": [WEATHER, odd], "tool_choice": "required", "temperature": 0}
    choice = tiny.post("/v1/chat/completions", {**body, "max_tokens": 100}).json["choices"][0]
    assert made(choice)[0] == ("get_weather", {"city": "Turin"})


def test_a_named_tool_is_called_once(tiny: Client) -> None:
    both = {"role": "user", "content": "What is the weather in Turin and in Oslo?"}
    named = {"type": "function", "function": {"name": "get_weather"}}
    body = {"model": MODEL, "messages": [both], "tools": [WEATHER], "temperature": 0, "max_tokens": 100}
    assert len(made(tiny.post("/v1/chat/completions", body).json["choices"][0])) == 2
    for parallel in ({}, {"parallel_tool_calls": True}):
        choice = tiny.post("/v1/chat/completions", {**body, "tool_choice": named, **parallel}).json["choices"][0]
        assert made(choice) == [("get_weather", {"city": "Turin"})]
