"""Names of tools that models could not be told, and what stands for them."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmlite.core.engine.payloads import chat_object, read_finished
from lmlite.core.engine.tool_names import NAME_MAX, given_names, spell_names
from lmlite.messages import Message, ToolCallPart, ToolResultPart, text_message
from lmlite.request import Chat

FINE = re.compile(r"[A-Za-z0-9_.-]+")


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def chat(*names: str, called: tuple[str, ...] = ()) -> Chat:
    calls = tuple(ToolCallPart(str(i), name, "{}") for i, name in enumerate(called))
    results = tuple(Message("tool", (ToolResultPart(str(i), name, ()),)) for i, name in enumerate(called))
    said = (text_message("user", "Hi"), Message("assistant", calls), *results)
    return Chat(said, tools=tuple(map(tool, names)))


def test_names_that_every_template_can_take_stay() -> None:
    names = ("get_weather", "mcp.files-read", "a" * NAME_MAX)
    assert spell_names(chat(*names, called=names)) == {} and given_names(chat(*names).tools) == {}


def test_other_names_are_spelled_anew_and_no_two_are_the_same() -> None:
    long = ("a" * (NAME_MAX + 1), "a" * (NAME_MAX + 2))
    names = ("files/read", "files:read", "files_read", "get weather now", "f\0", "天气", *long)
    spelled = spell_names(chat(*names))
    assert spelled["files/read"] == "files_read_2" and spelled["files:read"] == "files_read_3"
    assert spelled["get weather now"] == "get_weather_now" and "files_read" not in spelled
    assert len({spelled.get(name, name) for name in names}) == len(names)


def test_calls_and_results_have_the_names_of_their_tools_and_no_other_tools() -> None:
    known = chat("files/read", called=("files/read", "files_read", "files:read"))
    command = chat_object(known)
    assert [tool["function"]["name"] for tool in command["tools"]] == ["files_read_2"]
    names = ["files_read_2", "files_read", "files_read_3"]
    assert [call["function"]["name"] for call in command["messages"][1]["tool_calls"]] == names
    assert [message["name"] for message in command["messages"][2:]] == names
    assert known.tools[0]["function"]["name"] == "files/read"


def test_what_is_told_of_a_tool_has_its_own_name() -> None:
    payload = (
        b'{"reason": "toolCalls", "stop_string": null, "prompt_tokens": 1, "cached_tokens": 0, "generated_tokens": 1,'
        b' "queue_ms": 0, "first_token_ms": 1, "generation_ms": 1, "loosened": ["files_read", "plain"]}'
    )
    assert read_finished(payload, given_names((tool("files/read"),))).loosened == ("files/read", "plain")


names = st.lists(st.text(alphabet="ab/: _.2天", min_size=1, max_size=5), unique=True, max_size=8)


@given(names, names)
def test_spelling_is_sound_and_read_back(offered: list[str], called: list[str]) -> None:
    spelled = spell_names(chat(*offered, called=tuple(called)))
    told = {name: spelled.get(name, name) for name in (*offered, *called)}
    assert len(set(told.values())) == len(told) and all(FINE.fullmatch(name) for name in told.values())
    back = given_names(chat(*offered).tools)
    alone = spell_names(chat(*offered))
    assert [back.get(alone.get(name, name), alone.get(name, name)) for name in offered] == offered
