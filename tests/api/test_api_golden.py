"""Requests become exactly these internal values; events become exactly these payloads, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlite.api.fields import parse_body
from lmlite.errors import EngineGone, InternalError
from lmlite.events import Event, Finished, PromptProgress, Stats, TextDelta
from tests.api.golden_files import GOLDEN, PARSE, SERVED, cases, read_events, spell_call, stream_frames

REQUESTS = dict(cases("requests"))
ANSWERS = dict(cases("answers"))
SCHEMAS = {"v0_chat": "v0_chat_completions", "v0_text": "v0_completions"}


def validate(text: str, schema: str) -> None:
    jsonschema.validate(json.loads(text), json.loads((GOLDEN / "schemas" / f"{schema}.json").read_text()))


def test_the_golden_folders_are_found() -> None:
    assert len(REQUESTS) >= 9
    assert len(ANSWERS) >= 12


@pytest.mark.parametrize("case", REQUESTS.values(), ids=REQUESTS)
def test_request_becomes_call(case: dict[str, Any]) -> None:
    body = parse_body(json.dumps(case["body"]).encode())
    assert spell_call(PARSE[case["parse"]](body)) == case["call"]


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)
def test_events_become_stream(case: dict[str, Any]) -> None:
    reply = PARSE[case["parse"]](case["body"]).reply(SERVED)
    runs = [read_events(run) for run in case["runs"]]
    assert [list(frame) for frame in stream_frames(reply, runs)] == case["stream"]


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)
def test_events_become_whole(case: dict[str, Any]) -> None:
    reply = PARSE[case["parse"]](case["body"]).reply(SERVED)
    whole = reply.whole([read_events(run) for run in case["runs"]])
    assert whole == case["whole"]
    if case["parse"] in SCHEMAS:
        validate(whole, SCHEMAS[case["parse"]])


CHAT = {"messages": [{"role": "user", "content": "x"}]}
TEXT = {"prompt": "x"}
BODIES: dict[str, dict[str, Any]] = {"openai_chat": CHAT, "v0_chat": CHAT, "openai_text": TEXT, "v0_text": TEXT}
STATS = Stats(4, 1, 2, 0.5, 10.0, 20.0)

deltas = st.builds(TextDelta, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
progress = st.builds(PromptProgress, st.integers(0, 9), st.just(9))
reasons = st.sampled_from(["eosFound", "maxPredictedTokensReached", "userStopped"])
finishes = st.builds(lambda reason: Finished(reason, STATS), reasons)
runs_of_events = st.builds(lambda body, end: [*body, end], st.lists(deltas | progress, max_size=12), finishes)


def text_of(choice: dict[str, Any]) -> str:
    part = choice.get("delta") or choice.get("message") or choice
    text = part.get("content", part.get("text", ""))
    assert isinstance(text, str)
    return text


@settings(max_examples=60, deadline=None)
@given(dialect=st.sampled_from(sorted(BODIES)), runs=st.lists(runs_of_events, min_size=1, max_size=3))
def test_streamed_text_is_the_whole_text(dialect: str, runs: list[list[Event]]) -> None:
    call = PARSE[dialect]({**BODIES[dialect], "n": len(runs), "stream_options": {"include_usage": True}})
    frames = stream_frames(call.reply(SERVED), runs)
    whole = json.loads(call.reply(SERVED).whole(runs))
    assert frames[-1] == (None, "[DONE]")
    chunks = [json.loads(payload) for name, payload in frames[:-1] if name is None]
    assert len(chunks) == len(frames) - 1
    for index, choice in enumerate(whole["choices"]):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(map(text_of, parts)) == text_of(choice)
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize("dialect", sorted(BODIES))
def test_usage_is_streamed_only_when_asked_for(dialect: str) -> None:
    runs: list[list[Event]] = [[TextDelta("a"), Finished("eosFound", STATS)]]
    frames = stream_frames(PARSE[dialect](BODIES[dialect]).reply(SERVED), runs)
    assert [payload for _, payload in frames if "usage" in payload] == []


@pytest.mark.parametrize("dialect", sorted(BODIES))
def test_failure_in_a_stream_is_one_error_event(dialect: str) -> None:
    reply = PARSE[dialect](BODIES[dialect]).reply(SERVED)
    list(reply.stream(0, TextDelta("a")))
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
        call.reply(SERVED).whole([[TextDelta("a")]])
    with pytest.raises(InternalError):
        call.reply(SERVED).end()
