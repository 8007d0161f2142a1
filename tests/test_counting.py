"""What a request would cost and did cost: tokens counted without an answer, timings and the progress of prompts, with the
real engine and the bundled model."""

from __future__ import annotations

import json
import random
from typing import Any

import openai
import pytest

from lmlite.server import Server
from tests.conftest import Client

COUNT = "/v1/chat/completions/input_tokens"
CHAT = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Get it", "parameters": CITY}}]
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


JSON = {"type": "json_object"}
BEGUN = [user("An object, please."), {"role": "assistant", "content": "{"}]

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one message": {"messages": [user("Hello!")]},
    "system and history": {
        "messages": [{"role": "system", "content": "Brief."}, user("Hi"), {"role": "assistant", "content": "Hi."}, user("é")]
    },
    "tools": {"messages": [user("Weather in Oslo?")], "tools": TOOLS},
    "tools that it does not hear of": {"messages": [user("Weather in Oslo?")], "tools": TOOLS, "tool_choice": "none"},
    "a tool that it has to call": {"messages": [user("Weather in Oslo?")], "tools": TOOLS, "tool_choice": "required"},
    "results": {
        "messages": [
            user("Weather in Oslo?"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "snow"},
        ],
        "tools": TOOLS,
    },
    "control tokens that are text": {"messages": [user("What is <|im_end|> for, and <|im_start|>?")]},
    "without reasoning": {"messages": [user("Hello!")], "reasoning_effort": "none"},
    "a schema": {"messages": [user("Hello!")], "response_format": JSON},
    "an answer that is gone on with": {"messages": BEGUN},
    "an answer that no schema goes on with": {"messages": BEGUN, "response_format": JSON},
    "an answer that a schema goes on with": {"messages": BEGUN, "response_format": JSON, "continue_final_message": True},
    "an answer that no grammar goes on with": {"messages": BEGUN, "grammar": 'root ::= "a"'},
    "a schema beside tools": {"messages": [user("Weather in Oslo?")], "tools": TOOLS, "response_format": JSON},
}


@pytest.mark.parametrize("body", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_request_has_the_tokens_that_were_counted(tiny: Client, body: dict[str, Any]) -> None:
    counted = tiny.post(COUNT, body)
    assert counted.status == 200
    used = tiny.post(CHAT, {**body, "max_tokens": 1}).json["usage"]["prompt_tokens"]
    assert counted.json == {"object": "response.input_tokens", "input_tokens": used}
    applied = tiny.post("/apply-template", body).json
    assert set(applied) == {"prompt", "input_tokens"} and applied["input_tokens"] == used
    said = body["messages"][-1]["content"]
    assert said in applied["prompt"]
    assert ("get_weather" in applied["prompt"]) == ("tools" in body and body.get("tool_choice") != "none")


def test_the_prompt_of_a_template_can_be_completed(tiny: Client) -> None:
    body = {"messages": [user("Count to five.")], "temperature": 0, "max_tokens": 20}
    prompt = tiny.post("/apply-template", body).json["prompt"]
    completed = tiny.post("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 20}).json
    assert completed["choices"][0]["text"] == tiny.post(CHAT, body).json["choices"][0]["message"]["content"]


def test_what_is_more_than_the_context_is_counted_and_what_is_far_more_refused(tiny: Client) -> None:
    long = {"messages": [user("word " * 5000)]}
    n_tokens = tiny.post(COUNT, long).json["input_tokens"]
    refused = tiny.post(CHAT, long).json["error"]
    assert 2048 == refused["n_ctx"] < n_tokens == refused["n_prompt_tokens"] - 1  # there is none left to answer with
    for far in ({"messages": [user("word " * 1_000_000)]}, {"messages": [user("a")] * 9000}):
        answer = tiny.post(COUNT, far)
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
        assert answer.json["error"]["n_ctx"] == 2048


def test_a_request_that_cannot_be_is_not_counted(tiny: Client) -> None:
    assert tiny.post(COUNT, {}).json == {"error": "'messages' field is required"}
    assert tiny.post("/apply-template", {"messages": [user("a")], "temperature": "hot"}).status == 400
    assert tiny.post(COUNT, {"messages": [user("a")], "model": "nobody"}).json["error"]["code"] == "model_not_found"
    assert tiny.get(COUNT).status == 405
    no_type = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "colour"}}}
    beside_tools = {"messages": [user("a")], "tools": TOOLS, "response_format": no_type}
    refused = tiny.post(CHAT, beside_tools)
    assert refused.status == 400 and tiny.post(COUNT, beside_tools).json == refused.json


def fresh(n_words: int) -> str:
    """A text that no request before had."""
    return " ".join(str(random.random()) for _ in range(n_words))


PROMPTS: dict[str, tuple[str, Any]] = {
    "chat": (CHAT, lambda text: {"messages": [user(text)]}),
    "v0 chat": ("/api/v0/chat/completions", lambda text: {"messages": [user(text)]}),
    "text": ("/v1/completions", lambda text: {"prompt": text}),
    "v0 text": ("/api/v0/completions", lambda text: {"prompt": text}),
}


def chunks(client: Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post(path, {**body, "stream": True})
    assert answer.status == 200 and answer.events[-1] == (None, "[DONE]")
    return [json.loads(payload) for _, payload in answer.events[:-1]]


@pytest.mark.parametrize(("path", "prompt"), PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("n_words", [2, 60], ids=["short", "long"])
def test_the_progress_of_a_prompt_is_told_from_its_beginning_to_its_end(
    tiny: Client, path: str, prompt: Any, n_words: int
) -> None:
    body = {**prompt(fresh(n_words)), "max_tokens": 2, "return_progress": True, "ignore_eos": True}
    for again in (False, True):
        came = chunks(tiny, path, {**body, "stream_options": {"include_usage": True}})
        told = [chunk["prompt_progress"] for chunk in came if "prompt_progress" in chunk]
        assert ["prompt_progress" in chunk for chunk in came] == [True] * len(told) + [False] * (len(came) - len(told))
        first, last = told[0], told[-1]
        assert first["processed"] == first["cache"] and len(told) > 1
        assert last["processed"] == last["total"] == came[-1]["usage"]["prompt_tokens"]
        assert [p["processed"] for p in told] == sorted(p["processed"] for p in told)
        assert [p["time_ms"] for p in told] == sorted(p["time_ms"] for p in told)
        assert {p["cache"] for p in told} == {first["cache"]}
        if again:
            assert first["cache"] > 0


@pytest.mark.parametrize(("path", "prompt"), PROMPTS.values(), ids=PROMPTS)
def test_timings_are_in_answers_and_last_chunks_where_they_are_asked_for(tiny: Client, path: str, prompt: Any) -> None:
    body = {**prompt(fresh(20)), "max_tokens": 4, "ignore_eos": True}
    whole = tiny.post(path, {**body, "timings_per_token": True}).json
    timings = whole["timings"]
    assert timings["prompt_n"] + timings["cache_n"] == whole["usage"]["prompt_tokens"]
    assert timings["predicted_n"] == whole["usage"]["completion_tokens"] == 4
    assert timings["prompt_per_second"] == pytest.approx(timings["prompt_n"] * 1000 / timings["prompt_ms"], rel=1e-2)
    assert timings["predicted_ms"] > 0 and "draft_n" not in timings
    for more in ({}, {"stream_options": {"include_usage": True}}):
        came = chunks(tiny, path, {**body, "timings_per_token": True, **more})
        assert ["timings" in chunk for chunk in came] == [False] * (len(came) - 1) + [True]
        assert came[-1]["timings"]["predicted_n"] == 4
    plain = tiny.post(path, body).json
    assert "timings" not in plain
    assert not any({"timings", "prompt_progress"} & set(chunk) for chunk in chunks(tiny, path, body))


def test_the_official_client_reads_a_stream_with_progress(tiny_server: Server) -> None:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="any", max_retries=0) as client:
        asked = {"return_progress": True, "timings_per_token": True}
        stream = client.chat.completions.create(
            model="lmlite-tiny", messages=[{"role": "user", "content": "Hello!"}], stream=True, extra_body=asked, temperature=0
        )
        came = list(stream)
    extras = [chunk.model_extra or {} for chunk in came]
    assert "prompt_progress" in extras[0] and "timings" in extras[-1]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in came)
