"""Conversations that end with an answer, over HTTP with the real engine: it goes on, unless the request says otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Client

MODEL = "lmlite-tiny"
QUESTION = {"role": "user", "content": "Hello!"}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def ask(tiny: Client, *messages: dict[str, Any], **more: Any) -> Any:
    body = {"model": MODEL, "messages": list(messages), "temperature": 0, "max_tokens": 60, **more}
    answer = tiny.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    return answer.json


def said(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def prompt_tokens(answer: Any) -> int:
    count: int = answer["usage"]["prompt_tokens"]
    return count


def begun(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("tools", [{}, {"tools": [TOOL]}], ids=["plain", "tools"])
def test_an_answer_at_the_end_goes_on_where_it_stopped(tiny: Client, tools: dict[str, Any]) -> None:
    whole = said(ask(tiny, QUESTION, **tools))
    assert len(whole) > 12
    place = whole.index(" ", 6)
    for asked in ({}, {"continue_final_message": True}, {"add_generation_prompt": False}):
        rest = ask(tiny, QUESTION, begun(whole[:place]), **asked, **tools)
        assert said(rest) == whole[place:]
        assert prompt_tokens(rest) > prompt_tokens(ask(tiny, QUESTION, max_tokens=1, **tools))


def test_an_answer_begins_anew_where_the_request_says_so(tiny: Client) -> None:
    goes_on = prompt_tokens(ask(tiny, QUESTION, begun("Hi"), max_tokens=1))
    for asked in ({"continue_final_message": False}, {"add_generation_prompt": True}):
        assert prompt_tokens(ask(tiny, QUESTION, begun("Hi"), max_tokens=1, **asked)) > goes_on
    assert prompt_tokens(ask(tiny, QUESTION, add_generation_prompt=True, continue_final_message=False, max_tokens=1))


def test_what_has_to_be_of_a_form_begins_anew_unless_it_is_asked_to_go_on(tiny: Client) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    anew = said(ask(tiny, QUESTION, begun("Well, "), response_format=form))
    assert anew.startswith("{")
    rest = said(ask(tiny, QUESTION, begun('{"a": '), response_format=form, continue_final_message=True))
    assert rest[:1].isdigit() or rest[:1] in "- "
    call = ask(tiny, QUESTION, begun("Well, "), tools=[TOOL], tool_choice="required")["choices"][0]
    assert call["message"]["tool_calls"]


@pytest.mark.parametrize(
    ("messages", "asked", "param"),
    [
        ([QUESTION], {"continue_final_message": True}, "continue_final_message"),
        ([QUESTION], {"add_generation_prompt": False}, "add_generation_prompt"),
        ([QUESTION, begun("Hi")], {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ([QUESTION, begun("Hi")], {"continue_final_message": False, "add_generation_prompt": False}, "continue_final_message"),
        ([QUESTION], {"continue_final_message": "yes"}, "continue_final_message"),
    ],
)
def test_what_cannot_be_gone_on_with_is_named(
    tiny: Client, messages: list[dict[str, Any]], asked: dict[str, Any], param: str
) -> None:
    refused = tiny.post("/v1/chat/completions", {"model": MODEL, "messages": messages, **asked})
    assert refused.status == 400 and refused.json["error"]["param"] == param


def test_a_stream_tells_only_what_is_new(tiny: Client) -> None:
    whole = said(ask(tiny, QUESTION, begun("Hello")))
    body = {"model": MODEL, "messages": [QUESTION, begun("Hello")], "temperature": 0, "max_tokens": 60, "stream": True}
    events = tiny.post("/v1/chat/completions", body).events
    assert "".join(data for _, data in events).count("Hello") == whole.count("Hello")
