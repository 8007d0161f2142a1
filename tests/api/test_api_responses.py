"""The Responses dialect apart from its golden files: what it refuses, and what holds of every answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlite.api.openai.responses import parse_responses
from lmlite.api.openai.responses_events import Numbers
from lmlite.api.openai.responses_items import decrypt, dereference, encrypt, parse_input, references
from lmlite.api.openai.responses_kept import input_of, replay, response_of
from lmlite.api.openai.responses_reply import ResponseReply, response_beginning
from lmlite.api.openai.responses_tools import InputText, spell_input
from lmlite.errors import ContextOverflow, EngineGone, InternalError, LmError, QueueFull, UnknownExchange, UnknownItem
from lmlite.events import (
    Event,
    Finished,
    PromptProgress,
    ReasoningDelta,
    Stats,
    StopReason,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
)
from lmlite.messages import Message, ReasoningPart, TextPart, ToolCallPart
from tests.api.golden_files import ORIGIN, bracketed, cases, leased, stream_frames

HI: dict[str, Any] = {"input": "Hi"}
FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object"}}
CUSTOM = {"type": "custom", "name": "patch"}
SPACE = {"type": "namespace", "name": "files", "tools": [FUNCTION, {"type": "custom", "name": "edit"}]}
TOOLS = {"tools": [FUNCTION, CUSTOM, SPACE]}
STATS = Stats(4, 1, 2, 0.5, 10.0, 20.0)


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [fields]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": 5}, "input"),
    ({"input": {}}, "input"),
    ({"input": ["Hi"]}, "input[0]"),
    (item(role="bot", content="a"), "input[0].role"),
    (item(type="message", content="a"), "input[0].role"),
    (item(role="user", content=5), "input[0].content"),
    (item(role="user", content=[{"type": "input_image", "image_url": "data:,"}]), "input[0].content[0].image_url"),
    (item(type="function_call_output", call_id="a", output=[{"type": "input_image"}]), "input[0].output[0].image_url"),
    (item(type="function_call", call_id="a", arguments="{}"), "input[0].name"),
    (item(type="function_call", call_id="a", name="", arguments="{}"), "input[0].name"),
    (item(type="function_call", call_id=5, name="f", arguments="{}"), "input[0].call_id"),
    (item(type="function_call", call_id="a", name="f", arguments=5), "input[0].arguments"),
    (item(type="custom_tool_call", call_id="a", name="f", input={}), "input[0].input"),
    (item(type="reasoning", content=[{"type": "reasoning_text", "text": 5}]), "input[0].content[0].text"),
    (item(type="reasoning", summary="x"), "input[0].summary"),
    ({**HI, "conversation": "conv_1"}, "conversation"),
    ({**HI, "prompt": {"id": "p"}}, "prompt"),
    ({**HI, "moderation": {"model": "m"}}, "moderation"),
    ({**HI, "audio": {}}, "audio"),
    ({**HI, "background": True, "store": False}, "background"),
    ({**HI, "background": "yes"}, "background"),
    ({**HI, "store": 1}, "store"),
    ({**HI, "stream": "yes"}, "stream"),
    ({**HI, "instructions": ["a"]}, "instructions"),
    ({**HI, "previous_response_id": 5}, "previous_response_id"),
    ({**HI, "max_output_tokens": "5"}, "max_output_tokens"),
    ({**HI, "max_output_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ({**HI, "max_tool_calls": -1}, "max_tool_calls"),
    ({**HI, "temperature": 9}, "temperature"),
    ({**HI, "top_logprobs": 21}, "top_logprobs"),
    ({**HI, "truncation": "middle"}, "truncation"),
    ({**HI, "include": "a"}, "include"),
    ({**HI, "include": [1]}, "include[0]"),
    ({**HI, "metadata": "a"}, "metadata"),
    ({**HI, "user": 5}, "user"),
    ({**HI, "reasoning": "much"}, "reasoning"),
    ({**HI, "reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({**HI, "reasoning": {"summary": 5}}, "reasoning.summary"),
    ({**HI, "text": "plain"}, "text"),
    ({**HI, "text": {"verbosity": "loud"}}, "text.verbosity"),
    ({**HI, "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({**HI, "text": {"format": {}}}, "text.format.type"),
    ({**HI, "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({**HI, "text": {"format": {"type": "json_object"}}, "grammar": 'root ::= "a"'}, "text.format"),
    ({**HI, **TOOLS, "grammar": 'root ::= "a"'}, "grammar"),
    ({**HI, "tools": {}}, "tools"),
    ({**HI, "tools": [{"name": "f"}]}, "tools[0].type"),
    ({**HI, "tools": [{"type": "function"}]}, "tools[0].name"),
    ({**HI, "tools": [{"type": "mcp"}]}, "tools[0].server_label"),
    ({**HI, "tools": [{"type": "mcp", "server_label": "s", "connector_id": "c"}]}, "tools[0].connector_id"),
    ({**HI, "tools": [{"type": "mcp", "server_label": "s", "require_approval": "ever"}]}, "tools[0].require_approval"),
    (
        {**HI, "tools": [{"type": "mcp", "server_label": "s", "require_approval": {"never": {"read_only": True}}}]},
        "tools[0].require_approval.never.read_only",
    ),
    (
        {
            **HI,
            "tools": [
                {
                    "type": "mcp",
                    "server_label": "s",
                    "require_approval": {word: {"tool_names": ["a"]} for word in ("always", "never")},
                }
            ],
        },
        "tools[0].require_approval",
    ),
    ({**HI, "input": [{"type": "mcp_approval_response", "approval_request_id": "mcpr_1"}]}, "input[0].approve"),
    ({**HI, "input": [{"type": "mcp_approval_response", "approve": True}]}, "input[0].approval_request_id"),
    ({**HI, "tools": [{"type": "mcp", "server_label": "s", "server_url": "file:///"}]}, "tools[0].server_url"),
    (
        {**HI, "tools": [{"type": "mcp", "server_label": "s", "server_url": "http://a", "headers": {"Host": "b"}}]},
        "tools[0].headers",
    ),
    ({**HI, "tools": [FUNCTION, FUNCTION]}, "tools[1].name"),
    ({**HI, "tools": [{**FUNCTION, "strict": 5}]}, "tools[0].strict"),
    ({**HI, "tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]}, "tools[0].tools[0].name"),
    ({**HI, "tool_choice": "required"}, "tool_choice"),
    ({**HI, "tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
    ({**HI, **TOOLS, "tool_choice": "some"}, "tool_choice"),
    ({**HI, **TOOLS, "tool_choice": {"type": "function", "name": "none"}}, "tool_choice"),
    ({**HI, **TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({**HI, **TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "never"}}, "tool_choice.mode"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=[f"{param}-{i}" for i, (_, param) in enumerate(REFUSED)])
def test_what_breaks_a_rule_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(LmError) as refused:
        parse_responses(body)
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    "more",
    [
        {"text": {}},
        {"text": None},
        {"text": {"format": None}},
        {"text": {"format": {"type": "text"}, "verbosity": "high"}},
        {"conversation": None, "prompt": None},
        {"reasoning": {}},
        {"reasoning": {"effort": None, "summary": None}},
        {"tools": [], "tool_choice": "auto"},
        {"tools": None, "tool_choice": None},
        {"tool_choice": "none", "tools": [FUNCTION]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"tools": [{**FUNCTION, "strict": None, "description": None, "defer_loading": True}]},
        {"tools": [{**CUSTOM, "format": {"type": "text"}}]},
        {"max_tool_calls": 0, "prompt_cache_retention": "24h", "stream_options": None},
    ],
)
def test_what_says_nothing_is_accepted(more: dict[str, Any]) -> None:
    assert parse_responses({**HI, **more}).ignored == ()


def test_an_item_that_is_only_pointed_at_has_to_be_found() -> None:
    with pytest.raises(UnknownItem):
        parse_responses({"input": [{"type": "item_reference", "id": "msg_1"}]})


def test_the_id_of_an_item_leads_to_its_response() -> None:
    whole = json.loads(reply_of(HI).whole(leased([[Finished("eosFound", STATS)]])))
    assert whole["id"].startswith(response_beginning(whole["output"][0]["id"]))
    for foreign in ("", "msg_1", "msg_" + "%" * 22, "x"):
        assert response_beginning(foreign) == ""


# ---- reasoning that only looks secret --------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_encrypted_reasoning_comes_back(text: str) -> None:
    assert decrypt(encrypt(text)) == text
    given: list[dict[str, Any]] = [{"type": "reasoning", "summary": [], "encrypted_content": encrypt(text)}]
    assert parse_input(given, []) == (Message("assistant", (ReasoningPart(text),)),)


@pytest.mark.parametrize("foreign", ["", "gAAAAAB", "lmlite1.", "lmlite1.%%", "lmlite1._w==", 5, None])
def test_what_others_encrypted_says_nothing(foreign: Any) -> None:
    assert decrypt(foreign) == ""
    assert parse_input([{"type": "reasoning", "summary": [], "encrypted_content": foreign}], []) == ()


# ---- free text of custom tools ---------------------------------------------------------------------------------------


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.booleans(),
    st.lists(st.integers(0, 60), max_size=8),
    st.sampled_from(["{}", " {{ {}", "\n{}\n"]),
)
def test_free_text_is_found_in_arguments_however_they_come(text: str, escaped: bool, cuts: list[int], form: str) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=escaped) if escaped else spell_input(text)
    arguments = form.format(arguments[1:] if "{{" in form else arguments)
    places = [0, *sorted(cuts), len(arguments)]
    heard = InputText()
    pieces = [heard.hear(arguments[a:b]) for a, b in zip(places, places[1:], strict=False)]
    assert "".join(pieces) == heard.text == text
    assert heard.rest() == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\', "a"),
        ('{"input": "a\\u00', "a"),
        ('{"input": "a\\ud83d', "a"),
        ('{"input": "a\\ud83d\\u0041b"', "a\ufffdAb"),
        ('{"input": "a\nb', "a\nb"),
        ('{"other": 1}', '{"other": 1}'),
        ("[1, 2", "[1, 2"),
        ('{"other": "' + "a" * 1000, '{"other": "' + "a" * 1000),
        ("", ""),
    ],
)
def test_free_text_that_is_cut_or_is_none(arguments: str, text: str) -> None:
    heard = InputText()
    said = "".join(map(heard.hear, arguments))
    assert said + heard.rest() == heard.text == text


# ---- whatever is answered --------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
pieces = st.lists(
    st.builds(TextDelta, words) | st.builds(ReasoningDelta, words) | st.just(PromptProgress(4, 4)), max_size=8
)
calls = st.lists(
    st.tuples(st.sampled_from(["look", "patch", "files__look", "files__edit", "unknown"]), st.lists(words, max_size=3)),
    max_size=3,
)
reasons: st.SearchStrategy[StopReason] = st.sampled_from(
    ["eosFound", "maxPredictedTokensReached", "toolCalls", "contextLengthReached"]
)
settings_of = st.fixed_dictionaries(
    {},
    optional={
        "include": st.just(["reasoning.encrypted_content"]),
        "reasoning": st.just({"summary": "auto"}),
        "background": st.just(True),
    },
)


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = list(draw(pieces))
    for index, (name, arguments) in enumerate(draw(calls)):
        events += [ToolCallStart(index, name), *(ToolCallArguments(index, text) for text in arguments)]
    events += draw(pieces)
    return bracketed([*events, Finished(draw(reasons), STATS)])


def reply_of(body: dict[str, Any]) -> ResponseReply:
    reply = parse_responses(body).reply(ORIGIN)
    assert isinstance(reply, ResponseReply)
    return reply


@settings(max_examples=150)
@given(answers(), settings_of)
def test_stream_whole_and_replay_are_one_answer(events: list[Event], more: dict[str, Any]) -> None:
    body = {**HI, **TOOLS, **more}
    reply = reply_of(body)
    frames = stream_frames(reply, [events])
    told = [json.loads(payload) for _, payload in frames]
    whole = json.loads(reply_of(body).whole(leased([events])))
    assert told[-1]["response"] == whole
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [name for name, _ in frames] == [event["type"] for event in told]
    assert folded(told) == whole["output"]
    exchange = reply.exchange()
    assert exchange is not None and response_of(exchange) == whole
    assert [json.loads(payload) for _, payload in replay(exchange, -1)] == told


def folded(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a client makes of the events: the items, whose deltas add up to what their ends say."""
    items: list[dict[str, Any]] = []
    text = ""
    for event in told:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items) and event["item"]["status"] == "in_progress"
            items.append(event["item"])
            text = ""
        elif kind == "output_item.done":
            assert {key: event["item"][key] for key in ("id", "type")} == {key: items[-1][key] for key in ("id", "type")}
            assert event["item"].get("call_id") == items[-1].get("call_id")
            items[-1] = event["item"]
        elif "output_index" in event:
            assert event["output_index"] == len(items) - 1 and event["item_id"] == items[-1]["id"]
            if items[-1]["type"] in ("message", "reasoning"):
                assert event.get("content_index", event.get("summary_index")) == 0
            if kind.endswith(".delta"):
                text += event["delta"]
            elif kind.endswith((".done",)) and "part" not in event:
                assert event.get("text", event.get("arguments", event.get("input"))) == text
    assert len({item["id"] for item in items}) == len(items)
    return items


@settings(max_examples=100)
@given(answers(), settings_of)
def test_what_was_answered_is_accepted_as_what_was_said(events: list[Event], more: dict[str, Any]) -> None:
    reply = reply_of({**HI, **TOOLS, **more})
    whole = json.loads(reply.whole(leased([events])))
    exchange = reply.exchange()
    assert exchange is not None
    skipped: list[str] = []
    heard = parse_input(whole["output"], skipped)
    assert skipped == []
    assert said(heard) == said(exchange.answer)


def said(messages: tuple[Message, ...]) -> list[Any]:
    """Their parts in order; how a custom tool's text is spelled as arguments does not matter."""
    parts: list[Any] = []
    for message in messages:
        for part in message.parts:
            match part:
                case ToolCallPart(id, name, arguments) if name in ("patch", "files__edit"):
                    text = InputText()
                    parts.append((id, name, text.hear(arguments) + text.rest()))
                case TextPart("") | ReasoningPart(""):
                    pass
                case _:
                    parts.append(part)
    return parts


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineGone("m", "out_of_memory"), "server_error"),
        (ContextOverflow(5, 4), "context_length_exceeded"),
        (QueueFull(4), "rate_limit_exceeded"),
    ],
)
def test_failure_in_a_stream_is_told_in_every_form_that_clients_raise(error: LmError, code: str) -> None:
    reply = reply_of(HI)
    list(reply.begin())
    for event in bracketed([TextDelta("a")]):
        list(reply.stream(0, event))
    (first, failed), (second, flat) = reply.failed(error)
    assert (first, second) == ("response.failed", "error")
    response = json.loads(failed)["response"]
    assert response["status"] == "failed" and response["error"]["code"] == code
    assert response["output"][0]["content"][0]["text"] == "a" and response["output"][0]["status"] == "incomplete"
    told = json.loads(flat)
    assert told["type"] == "error"
    assert {name: told[name] for name in ("code", "message", "param")} == {
        name: told["error"][name] for name in ("code", "message", "param")
    }
    assert told["error"]["type"] and told["sequence_number"] == json.loads(failed)["sequence_number"] + 1
    exchange = reply.exchange()
    assert exchange is not None and exchange.status == "failed"


def test_an_answer_that_never_finished_is_a_bug() -> None:
    with pytest.raises(InternalError):
        reply_of(HI).whole(leased([[PromptProgress(1, 1)]]))
    with pytest.raises(InternalError):
        list(reply_of(HI).end())


def test_a_stream_that_has_to_begin_early_begins_once() -> None:
    reply = reply_of(HI)
    early = list(reply.begin())
    assert [name for name, _ in early] == ["response.created", "response.in_progress"]
    frames = stream_frames(reply, [bracketed([PromptProgress(1, 1), TextDelta("a"), Finished("eosFound", STATS)])])
    assert frames[0][0] == "response.output_item.added"


def test_numbers_count_from_zero() -> None:
    numbers = Numbers()
    assert [json.loads(numbers.event("a", "")[1])["sequence_number"] for _ in range(3)] == [0, 1, 2]


def test_what_its_server_did_not_survive_reads_as_failed() -> None:
    reply = reply_of(HI)
    list(reply.begin())
    begun = reply.exchange()
    assert begun is not None and begun.status == "in_progress"
    lost = response_of(replace(begun, status="failed"))
    assert lost["status"] == "failed" and lost["error"]["code"] == "server_error"
    assert [name for name, _ in replay(replace(begun, status="failed"), 1)] == ["response.failed"]
    assert response_of(replace(begun, status="cancelled"))["error"] is None
    with pytest.raises(UnknownExchange):
        response_of(replace(begun, kind="chat"))


# ---- any body --------------------------------------------------------------------------------------------------------

BODIES = [case["body"] for name, case in cases("requests") if name.startswith("responses_")]
STRANGE: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, "", "x", "message", "function", [], {}, [[]], [{}], {"a": 1}, [None], ["a"],
    {"type": "function"}, {"type": None}, {"type": ["x"]}, {"id": "x"}, {"id": 5}, {"role": "user"},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


def changed(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    body = json.loads(json.dumps(body))
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return body


@settings(max_examples=500)
@given(st.data())
def test_any_body_is_a_turn_or_a_named_refusal(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(BODIES))
    for _ in range(data.draw(st.integers(1, 3))):
        body = changed(body, data.draw(st.sampled_from(list(places(body)))), data.draw(st.sampled_from(STRANGE)))
    try:
        fields = dereference(body, dict.fromkeys(references(body), {"role": "user", "content": "x"}))
        reply = reply_of(fields)
    except LmError as error:
        assert error.status in (400, 404)
        return
    whole = json.loads(reply.whole(leased([[Finished("eosFound", STATS)]])))
    assert whole["status"] == "completed"
    exchange = reply.exchange()
    if exchange is not None:
        assert response_of(exchange) == whole
        assert all(isinstance(item["id"], str) and item["type"] for item in input_of(exchange))
