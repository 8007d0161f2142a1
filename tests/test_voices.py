"""One conversation, many voices: whoever's words it is put in, the model hears the same and says the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from lmlite.core.engine.frames import Kind
from tests import chats, voices
from tests.conftest import Client, FakeServer
from tests.fakes import Script, error
from tests.voices import MESSAGES, NATIVE, RESPONSES, VOICES, WITH_HISTORY, Said, Voice

Serve = Callable[..., FakeServer]
N_CHATS = 5
"""`bench/voices.py` takes hundreds."""


def named(found: Any) -> list[Any]:
    return [pytest.param(voice, id=voice.name) for voice in found]


def heard(server: FakeServer) -> dict[str, Any]:
    """What the engine was last told to generate."""
    commands = [command for engine in server.engines for kind, _, command in engine.commands if kind == Kind.GENERATE]
    last = commands[-1]
    assert isinstance(last, dict)
    return last


def test_random_chats_are_the_same_through_every_dialect_streamed_and_whole(tiny: Client) -> None:
    tally = voices.Tally()
    for chat in islice(voices.random_chats(seed=11), N_CHATS):
        voices.compare(tiny.port, chat, tally)
    assert tally.wrong == []
    assert tally.answers >= 10 * N_CHATS and tally.tied <= tally.turns // 4


# ---- what one dialect answered is sent back through another ----------------------------------------------------------

LOOK: dict[str, Any] = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {
    "type": "object", "properties": {"at": {"type": "string"}, "n": {"type": "integer"}}}}}  # fmt: skip
ASKED = {"role": "user", "content": "hi"}
AGAIN = {"role": "user", "content": "Go on."}
CALLS = (("look", ('{"at":', '"it",', '"n":1}')), ("look", ('{"at":"us"}',)))
N_TOKENS = 2 + 1 + 3 + 1 + 1
"""Of an answer that thinks and calls twice: two words, then of each call the name and the pieces."""


def back(source: Voice, said: Said, target: Voice) -> list[voices.Message]:
    """What a client of `target` makes of what `source` answered, and results of its calls: who keeps what it got sends it as
    it is."""
    message, ids = said.message(), [f"call_{i}" for i in range(len(said.calls))]
    if source is target and source is RESPONSES:
        message, ids = {**message, "items": said.raw}, [item["call_id"] for item in said.raw if "call_id" in item]
    elif source is target and source is MESSAGES:
        message, ids = {**message, "blocks": said.raw}, [block["id"] for block in said.raw if block["type"] == "tool_use"]
    elif source is target:
        message, ids = said.raw, [call["id"] for call in said.raw.get("tool_calls", ())]
    return [message, *({"role": "tool", "tool_call_id": id, "content": f"result {i}"} for i, id in enumerate(ids))]


def spoken(message: Any) -> tuple[Any, ...]:
    """What a template sees of an assistant's message."""
    calls = [called(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    return message["content"], message.get("reasoning_content", ""), calls


def called(name: str, arguments: str) -> tuple[str, Any]:
    """However its arguments are spaced; none at all are an empty object to some."""
    return name, voices.object_of(arguments or "{}")


@pytest.mark.parametrize("target", named(WITH_HISTORY))
@pytest.mark.parametrize("source", named(WITH_HISTORY))
def test_every_answer_is_history_to_every_dialect_wherever_it_was_cut(
    serve_fake: Serve, source: Voice, target: Voice
) -> None:
    server = serve_fake(Script(reasoning=("I ", "see. "), calls=CALLS))
    client = server.client()
    for limit in (None, *range(N_TOKENS + 1)):
        for stream in (False, True):
            said = source.ask(client, [ASKED], [LOOK], limit, stream=stream, model="talker", temperature=None)
            assert said.reason == ("tool_calls" if limit is None else "length")
            returned = back(source, said, target)
            target.ask(client, [ASKED, *returned, AGAIN], [LOOK], 1, model="talker", temperature=None)
            first, answer, *results, last = heard(server)["messages"]
            assert (first["content"], last["content"]) == ("hi", "Go on.")
            assert spoken(answer) == (said.text, said.reasoning, [called(name, words) for name, words in said.calls])
            assert [(result["role"], result["name"], result["content"]) for result in results] == [
                ("tool", "look", f"result {i}") for i in range(len(said.calls))
            ]


@pytest.mark.parametrize("target", named(WITH_HISTORY))
def test_what_the_native_chat_said_is_history_to_the_others(serve_fake: Serve, target: Voice) -> None:
    server = serve_fake(Script(reasoning=("I ", "see. ")))
    client = server.client()
    for stream in (False, True):
        for limit in (1, 3):
            said = NATIVE.ask(client, [ASKED], (), limit, stream=stream, model="talker", temperature=None)
            target.ask(client, [ASKED, said.message(), AGAIN], (), 1, model="talker", temperature=None)
            _, answer, _ = heard(server)["messages"]
            assert spoken(answer) == (said.text, said.reasoning, [])


@pytest.mark.parametrize("limit", [None, 1, 4, 6])
def test_what_was_kept_of_one_dialect_is_gone_on_from_in_the_other(serve_fake: Serve, limit: int | None) -> None:
    """Calls and reasoning of Responses, cut or not, are told by the native chat's next turn, and its turn by Responses."""
    server = serve_fake(Script(reasoning=("I ", "see. "), calls=CALLS))
    client = server.client()
    said = RESPONSES.ask(client, [ASKED], [LOOK], limit, model="talker", temperature=None)
    first = NATIVE.ask(client, [AGAIN], (), None, model="talker", temperature=None, previous_response_id=said.id)
    asked, answer, again = heard(server)["messages"]
    assert (asked["content"], again["content"]) == ("hi", "Go on.")
    assert spoken(answer) == (said.text, said.reasoning, [called(name, words) for name, words in said.calls])
    RESPONSES.ask(client, [ASKED], (), None, model="talker", temperature=None, previous_response_id=first.id)
    told = heard(server)["messages"]
    assert told[:3] == [asked, answer, again] and len(told) == 5
    assert spoken(told[3]) == (first.text, first.reasoning, [])


@pytest.mark.parametrize("target", named(WITH_HISTORY))
def test_what_the_bundled_model_says_is_taken_back_by_every_dialect_wherever_it_ends(tiny: Client, target: Voice) -> None:
    """All reasons to end, with thoughts and calls cut at every token."""
    reasons, thought = set(), False
    weather, sums = ({"role": "user", "content": text} for text in ("What is the weather in Oslo?", "Think of 2 plus 2"))
    for source in WITH_HISTORY:
        stops: list[dict[str, Any]] = [{source.stop: [" "]}] if source.stop else []
        limits: list[dict[str, Any]] = [{"limit": limit} for limit in (None, *range(0, 24, 4))]
        for question, tools in ((weather, [chats.TOOLS[0]]), (sums, [])):
            for more in (*limits, *stops):
                said = source.ask(tiny, [question], tools, **more)
                reasons.add((said.reason, more in stops))
                thought = thought or bool(said.reasoning)
                messages = [question, *back(source, said, target), AGAIN]
                assert target.ask(tiny, messages, tools, 2).n_prompt > said.n_prompt
    assert thought and reasons >= {("tool_calls", False), ("length", False), ("stop", False), ("stop", True)}


# ---- what holds in each of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("voice", named(VOICES))
def test_what_does_not_fit_the_context_is_told_in_words_that_agents_look_for(
    serve_fake: Serve, voice: Voice, stream: bool
) -> None:
    server = serve_fake()
    client = server.client()
    voice.ask(client, [ASKED], (), 1, model="talker", temperature=None)
    server.script.generate_error = error("context_overflow", needed=9000, limit=4096)
    answer = client.post(voice.path, {"model": "talker", **voice.body([ASKED], (), 1), "stream": stream})
    told = answer.json["error"]
    assert answer.status == 400
    assert told["message"].startswith("prompt is too long: ") and "9000 tokens" in told["message"]
    assert told.get("code", "context_length_exceeded") == "context_length_exceeded"


@pytest.mark.parametrize("voice", named(VOICES))
def test_what_does_not_fit_the_bundled_models_context_is_refused_by_every_dialect(tiny: Client, voice: Voice) -> None:
    body = {"model": voices.MODEL, **voice.body([{"role": "user", "content": "word " * 5000}], (), 1)}
    for stream in (False, True):
        answer = tiny.post(voice.path, {**body, "stream": stream})
        assert answer.status == 400 and "2048" in answer.json["error"]["message"]


ONE_CALL: dict[str, dict[str, Any]] = {"chat": {"parallel_tool_calls": False}, "v0": {"parallel_tool_calls": False},
            "responses": {"parallel_tool_calls": False},
            "messages": {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}}  # fmt: skip


@pytest.mark.parametrize("voice", named(WITH_HISTORY))
def test_calls_are_parallel_as_the_template_has_it_unless_a_request_says_otherwise(serve_fake: Serve, voice: Voice) -> None:
    server = serve_fake(Script(calls=CALLS))
    client = server.client()
    voice.ask(client, [ASKED], [LOOK], model="talker", temperature=None)
    assert "parallel_tool_calls" not in heard(server)
    voice.ask(client, [ASKED], [LOOK], model="talker", temperature=None, **ONE_CALL[voice.name])
    assert heard(server)["parallel_tool_calls"] is False
