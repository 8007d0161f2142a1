"""Requests become exactly these internal values; events become exactly these payloads, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlite.api.answer import call_id
from lmlite.api.read.json_body import parse_body
from lmlite.errors import EngineGone, InternalError
from lmlite.events import (
    Event,
    Finished,
    PromptProgress,
    ReasoningDelta,
    Stats,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
)
from tests.api.golden_files import GOLDEN, LEASED, ORIGIN, PARSE, cases, leased, read_events, spell_call, stream_frames

REQUESTS = dict(cases("requests"))
ANSWERS = dict(cases("answers"))
SCHEMAS = {"v0_chat": "v0_chat_completions", "v0_text": "v0_completions"}


def published(text: str) -> str:
    """Without what a v0 answer has beyond the published schema: tool calls, draft counts and timings if a request asked for
    them."""
    answer = json.loads(text)
    answer.pop("timings", None)
    for choice in answer["choices"]:
        assert choice.get("message", {}).pop("tool_calls", True), "what is empty is not for v0"
    answer["stats"] = {name: value for name, value in answer["stats"].items() if "draft" not in name}
    return json.dumps(answer)


def validate(text: str, schema: str) -> None:
    jsonschema.validate(json.loads(text), json.loads((GOLDEN / "schemas" / f"{schema}.json").read_text()))


def test_the_golden_folders_are_found() -> None:
    assert len(REQUESTS) >= 20
    assert len(ANSWERS) >= 29


@pytest.mark.parametrize("case", REQUESTS.values(), ids=REQUESTS)
def test_request_becomes_call(case: dict[str, Any]) -> None:
    body = parse_body(json.dumps(case["body"]).encode())
    assert spell_call(PARSE[case["parse"]](body)) == case["call"]


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)
def test_events_become_stream(case: dict[str, Any]) -> None:
    reply = PARSE[case["parse"]](case["body"]).reply(ORIGIN)
    runs = [read_events(run) for run in case["runs"]]
    assert [list(frame) for frame in stream_frames(reply, runs)] == case["stream"]


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)
def test_events_become_whole(case: dict[str, Any]) -> None:
    reply = PARSE[case["parse"]](case["body"]).reply(ORIGIN)
    whole = reply.whole(leased([read_events(run) for run in case["runs"]]))
    assert whole == case["whole"]
    if case["parse"] in SCHEMAS:
        validate(published(whole), SCHEMAS[case["parse"]])


CHAT = {"messages": [{"role": "user", "content": "x"}]}
TEXT = {"prompt": "x"}
BODIES: dict[str, dict[str, Any]] = {"openai_chat": CHAT, "v0_chat": CHAT, "openai_text": TEXT, "v0_text": TEXT}
STATS = Stats(4, 1, 2, 0.5, 10.0, 20.0)

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
deltas = st.builds(TextDelta, words)
progress = st.builds(PromptProgress, st.integers(0, 9), st.just(9))
reasons = st.sampled_from(["eosFound", "maxPredictedTokensReached", "userStopped", "toolCalls"])
finishes = st.builds(lambda reason: Finished(reason, STATS), reasons)
runs_of_text = st.builds(lambda body, end: [*body, end], st.lists(deltas | progress, max_size=12), finishes)
calls = st.tuples(words.filter(bool), st.lists(words, max_size=3))
Call = tuple[str, list[str]]


def call_events(calls: list[Call]) -> list[Event]:
    events: list[Event] = []
    for index, (name, pieces) in enumerate(calls):
        events += [ToolCallStart(index, name), *(ToolCallArguments(index, piece) for piece in pieces)]
    return events


runs_of_chat = st.builds(
    lambda body, calls, after, end: [*body, *call_events(calls), *after, end],
    st.lists(deltas | progress | st.builds(ReasoningDelta, words), max_size=12),
    st.lists(calls, max_size=3),
    st.lists(deltas, max_size=2),
    finishes,
)


def said(choice: dict[str, Any], name: str) -> str:
    """A choice's text or reasoning, of a chunk or of the whole answer."""
    part = choice.get("delta") or choice.get("message") or choice
    text = part.get(name, part.get("text", "") if name == "content" else "")
    assert isinstance(text, str)
    return text


def called(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a client makes of the tool deltas of one choice."""
    calls: list[dict[str, Any]] = []
    for delta in (delta for part in parts for delta in part.get("delta", {}).get("tool_calls", [])):
        if "id" in delta:
            assert delta.pop("index") == len(calls)
            calls.append(delta)
        else:
            assert delta["index"] == len(calls) - 1 and set(delta) == {"index", "function"}
            calls[-1]["function"]["arguments"] += delta["function"]["arguments"]
    return calls


@settings(max_examples=60)
@given(
    st.tuples(st.sampled_from(["openai_chat", "v0_chat"]), st.lists(runs_of_chat, min_size=1, max_size=3))
    | st.tuples(st.sampled_from(["openai_text", "v0_text"]), st.lists(runs_of_text, min_size=1, max_size=3))
)
def test_streamed_answer_is_the_whole_answer(given_runs: tuple[str, list[list[Event]]]) -> None:
    dialect, runs = given_runs
    call = PARSE[dialect]({**BODIES[dialect], "n": len(runs), "stream_options": {"include_usage": True}})
    frames = stream_frames(call.reply(ORIGIN), runs)
    whole = json.loads(call.reply(ORIGIN).whole(leased(runs)))
    assert frames[-1] == (None, "[DONE]")
    chunks = [json.loads(payload) for name, payload in frames[:-1] if name is None]
    assert len(chunks) == len(frames) - 1
    for index, choice in enumerate(whole["choices"]):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        for part in parts:
            assert len({"content", "reasoning_content", "tool_calls"} & set(part.get("delta", {}))) <= 1
        assert "".join(said(part, "content") for part in parts) == said(choice, "content")
        if dialect == "openai_chat":
            reasoning = "".join(said(part, "reasoning_content") for part in parts)
            assert reasoning == said(choice, "reasoning_content")
        assert called(parts) == choice.get("message", {}).get("tool_calls", [])
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_ids_of_tool_calls_are_nine_digits_and_no_two_are_the_same() -> None:
    ids = {call_id(ORIGIN.suffix, choice, index) for choice in range(128) for index in range(200)}
    assert len(ids) == 128 * 200
    assert all(len(id) == 9 and id.isdecimal() for id in ids)
    assert call_id("a" * 22, 0, 0) != call_id("b" * 22, 0, 0)


def message_of(dialect: str, *events: Event) -> Any:
    """Of the whole answer that has `events`."""
    whole = PARSE[dialect](CHAT).reply(ORIGIN).whole(leased([[*events, Finished("eosFound", STATS)]]))
    return json.loads(whole)["choices"][0]["message"]


def test_whole_v0_message_has_the_published_keys() -> None:
    assert message_of("v0_chat", ReasoningDelta("Hm."), TextDelta("Si")) == {"role": "assistant", "content": "Si"}


def test_what_is_empty_is_left_out_of_a_whole_message() -> None:
    plain = {"role": "assistant", "content": "Si"}
    assert message_of("openai_chat", TextDelta("Si")) == plain
    assert message_of("openai_chat", ReasoningDelta("Hm."), TextDelta("Si")) == {**plain, "reasoning_content": "Hm."}
    calling = message_of("openai_chat", ToolCallStart(0, "look"), ToolCallArguments(0, "{}"))
    assert set(calling) == {"role", "content", "tool_calls"} and calling["content"] == ""


@pytest.mark.parametrize("dialect", sorted(BODIES))
def test_usage_is_streamed_only_when_asked_for(dialect: str) -> None:
    runs: list[list[Event]] = [[TextDelta("a"), Finished("eosFound", STATS)]]
    frames = stream_frames(PARSE[dialect](BODIES[dialect]).reply(ORIGIN), runs)
    assert [payload for _, payload in frames if "usage" in payload] == []


@pytest.mark.parametrize("dialect", sorted(BODIES))
def test_failure_in_a_stream_is_one_error_event(dialect: str) -> None:
    reply = PARSE[dialect](BODIES[dialect]).reply(ORIGIN)
    for event in (*LEASED, TextDelta("a")):
        list(reply.stream(0, event))
    ((name, payload),) = reply.failed(EngineGone("falcon-7b", "out_of_memory"))
    assert name == "error"
    assert json.loads(payload) == {
        "error": {
            "message": 'The engine of model "falcon-7b" is gone: out_of_memory',
            "type": "server_error",
            "param": None,
            "code": "engine_gone",
        }
    }


def test_a_run_that_never_finished_is_a_bug_and_no_answer() -> None:
    call = PARSE["openai_chat"]({**CHAT, "stream_options": {"include_usage": True}})
    with pytest.raises(InternalError):
        call.reply(ORIGIN).whole(leased([[TextDelta("a")]]))
    with pytest.raises(InternalError):
        call.reply(ORIGIN).end()
