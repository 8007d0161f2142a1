"""What is large is read, checked, put together, spelled and kept beside the event loop; what is small never leaves it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lmlite import messages
from lmlite.api.openai import responses_reply
from lmlite.api.openai.responses_reply import ResponseReply
from lmlite.app import generation, responses
from lmlite.beside import Turns
from lmlite.core.engine import client as engine_client
from lmlite.events import TextDelta, TokenLogprob
from lmlite.rounds import tools
from lmlite.turn import Turn
from tests.conftest import FakeServer
from tests.test_approvals import Asking, asking, decision  # noqa: F401 - a fixture
from tests.test_native_tools import token  # noqa: F401 - a fixture

Serve = Callable[..., FakeServer]
MANY = 1200
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


class Places:
    """Where functions ran that were asked to be watched: "loop" or "beside" it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._patch = monkeypatch.setattr
        self.loop = ""  # the name of its thread
        self.seen: list[tuple[str, str]] = []

    def watch(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def noting(*arguments: Any, **named: Any) -> Any:
            where = "loop" if threading.current_thread().name == self.loop else "beside"
            self.seen.append((name, where))
            return function(*arguments, **named)

        self._patch(owner, name, noting)

    def take(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, where in self.seen:
            found.setdefault(name, set()).add(where)
        self.seen.clear()
        return found


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    return Places(monkeypatch)


def said(n: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": f"this is number {i} of them"} for i in range(n)]


@pytest.mark.parametrize(("n", "where"), [(1, "loop"), (MANY, "beside")])
def test_where_a_chat_is_read_and_written_down(serve_fake: Serve, places: Places, n: int, where: str) -> None:
    server = serve_fake()
    places.loop = server.thread._thread.name
    places.watch(generation, "parse_body")
    places.watch(engine_client, "generate_object")
    places.watch(messages, "media_of")
    assert server.client().post(CHAT, {"model": "talker", "messages": said(n), "max_tokens": 1}).status == 200
    assert places.take() == {name: {where} for name in ("parse_body", "generate_object", "media_of")}


def test_what_is_large_for_its_tools_is_written_down_beside_the_loop(serve_fake: Serve, places: Places) -> None:
    server = serve_fake()
    places.loop = server.thread._thread.name
    places.watch(engine_client, "generate_object")
    parameters = {"type": "object", "properties": {"x" * 400_000: {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    asked = {"model": "talker", "messages": said(1), "max_tokens": 1, "tools": [tool]}
    assert server.client().post(CHAT, asked).status == 200
    assert places.take() == {"generate_object": {"beside"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("n", "where"), [(1, "loop"), (MANY, "beside")])
def test_where_what_was_asked_is_spelled_to_be_kept(
    serve_fake: Serve, places: Places, n: int, where: str, stream: bool
) -> None:
    server = serve_fake()
    places.loop = server.thread._thread.name
    places.watch(responses, "parse_body")
    places.watch(responses_reply, "join_input")
    asked = {"model": "talker", "input": said(n), "max_output_tokens": 1, "stream": stream}
    assert server.client().post(RESPONSES, asked).status == 200
    assert places.take() == {"parse_body": {where}, "join_input": {where}}


def test_what_a_turn_goes_on_from_is_put_before_it_beside_the_loop(serve_fake: Serve, places: Places) -> None:
    server = serve_fake()
    places.loop = server.thread._thread.name
    client = server.client()
    first = client.post(RESPONSES, {"model": "talker", "input": said(MANY), "max_output_tokens": 1}).json["id"]
    places.watch(Turn, "after")
    asked = {"model": "talker", "input": "and?", "previous_response_id": first, "max_output_tokens": 1}
    assert client.post(RESPONSES, asked).status == 200
    assert client.post(f"{RESPONSES}/input_tokens", asked).status == 200
    assert client.post(RESPONSES, asked | {"background": True}).status == 200
    seen = [where for name, where in places.seen if name == "after"]
    assert seen and set(seen) == {"beside"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("n", "where"), [(1, "loop"), (MANY, "beside")])
def test_where_decisions_about_calls_are_looked_through(
    asking: Callable[..., Asking], places: Places, n: int, where: str, stream: bool  # noqa: F811
) -> None:
    ask = asking()
    places.loop = ask.server.thread._thread.name
    for name in ("waiting", "behind_calls"):
        places.watch(tools, name)
    places.watch(ResponseReply, "exchange")
    places.watch(ResponseReply, "whole")
    calls = [
        {"type": "mcp_approval_request", "id": f"mcpr_{i}", "server_label": "calc", "name": "add", "arguments": "{}"}
        for i in range(n)
    ]
    answer = ask(input=[*said(1), *calls, *(decision(call, False) for call in calls)], stream=stream)
    assert answer.status == 200
    last = places.seen[-1]
    found = places.take()
    assert found["waiting"] == found["behind_calls"] == {where}
    assert last == ("exchange", where) and found.get("whole", {where}) == {where}
    assert len([message for message in ask.prompts[-1] if message["role"] == "tool"]) == n


@pytest.mark.parametrize("approve", [False, True])
def test_many_decisions_are_told_a_few_at_a_time_and_others_have_their_turns_between(
    asking: Callable[..., Asking], monkeypatch: pytest.MonkeyPatch, approve: bool  # noqa: F811
) -> None:
    n, told, pauses = 3 * tools.AHEAD, list[int](), list[None]()
    tell, pause = tools.Loop._tell, Turns.pause

    async def note(loop: tools.Loop, events: Any) -> None:
        told.append(len(events))
        await tell(loop, events)

    async def count(turns: Turns) -> None:
        pauses.append(None)
        await pause(turns)

    ask = asking(("add", ('{"a":2,"b":3}',)))
    monkeypatch.setattr(tools.Loop, "_tell", note)
    monkeypatch.setattr(Turns, "pause", count)
    calls = [
        {"type": "mcp_approval_request", "id": f"mcpr_{i}", "server_label": "calc", "name": "add", "arguments": arguments}
        for i, arguments in enumerate(f'{{"a":{i},"b":0}}' for i in range(n))
    ]
    answer = ask(input=[*said(1), *calls, *(decision(call, approve) for call in calls)])
    assert answer.status == 200 and max(told) <= tools.TOGETHER and len(pauses) >= n // tools.TOGETHER
    results = [message["content"] for message in ask.prompts[0] if message["role"] == "tool"]
    assert results == ([str(i) for i in range(n)] if approve else ["Error: The user did not approve this call."] * n)


def test_an_answer_of_many_events_is_spelled_beside_the_loop(
    serve_fake: Serve, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token whose probability is told is one, since twenty others may be told with it."""
    one = TokenLogprob("a", b"a", -0.5)
    assert generation.weigh([TextDelta("a" * 2000, (one,) * 2000)]) > generation.EVENTS
    assert generation.weigh([TextDelta("a")] * 9) < generation.EVENTS
    monkeypatch.setattr(generation, "EVENTS", 3)
    server = serve_fake()
    places.loop = server.thread._thread.name
    places.watch(ResponseReply, "whole")
    places.watch(ResponseReply, "exchange")
    assert server.client().post(RESPONSES, {"model": "talker", "input": said(1)}).status == 200
    assert places.take() == {"whole": {"beside"}, "exchange": {"beside"}}
