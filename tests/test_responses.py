"""`/v1/responses` through a whole server with a fake engine: streams, kept responses, what runs in the background."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lmlite.app.background import BackgroundRun
from lmlite.app.generation import LISTING_MAX
from lmlite.core.engine.frames import Kind
from lmlite.exchange import Exchange
from lmlite.rounds.history import History
from lmlite.wire import sse
from tests.conftest import TIMEOUT_S, Answer, Client, FakeServer
from tests.fakes import WORDS, Gate, Script, error

PATH = "/v1/responses"
TALK = {"model": "talker", "input": "Hi", "max_output_tokens": len(WORDS)}
SAID = "".join(WORDS)
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}


PICTURE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}]}]


@pytest.fixture
def client(fake_server: FakeServer) -> Client:
    return fake_server.client()


def events_of(answer: Answer) -> list[dict[str, Any]]:
    """Of a stream, whose names and numbers are as they should be."""
    assert answer.status == 200, answer.body
    events = []
    for name, payload in answer.events:
        events.append(json.loads(payload))
        assert events[-1]["type"] == name
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def text_of(response: dict[str, Any]) -> str:
    return "".join(
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    )


def prompts(server: FakeServer) -> Iterator[list[tuple[str, Any]]]:
    """What the engine was told of each generation: who says what."""
    for kind, _, command in server.engine.commands:
        if kind == Kind.GENERATE:
            yield [(message["role"], message["content"]) for message in command["messages"]]


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_says_what_the_whole_answer_is(client: Client) -> None:
    events = events_of(client.post(PATH, {**TALK, "stream": True}))
    assert [event["type"] for event in events if "delta" not in event["type"]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None
    assert "".join(event["delta"] for event in events if "delta" in event) == SAID
    whole = client.post(PATH, TALK).json
    last = events[-1]["response"]
    assert text_of(last) == text_of(whole) == SAID
    assert whole["usage"] == last["usage"] == {
        "input_tokens": 8,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": len(WORDS),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 8 + len(WORDS),
    }
    assert whole["status"] == "incomplete" and whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert whole["output"][0]["status"] == "incomplete"
    assert set(whole) == set(last)


def test_an_answer_that_came_to_its_end_is_completed(client: Client) -> None:
    whole = client.post(PATH, {"model": "talker", "input": "Hi"}).json
    assert (whole["status"], whole["incomplete_details"], whole["error"]) == ("completed", None, None)
    assert whole["output"][0]["status"] == "completed"
    assert whole["completed_at"] >= whole["created_at"]


def test_the_stream_of_a_call_opens_and_closes_it(serve_fake: Callable[..., FakeServer]) -> None:
    server = serve_fake(Script(reasoning=("I ", "look."), calls=(("look", ('{"x": ', '"a"}')), ("look", ("{}",)))))
    events = events_of(server.client().post(PATH, {"model": "talker", "input": "Hi", "tools": [TOOL], "stream": True}))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item["type"] for item in done] == ["reasoning", "function_call", "function_call"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert [item.get("call_id") for item in added] == [item.get("call_id") for item in done]
    assert len({item["id"] for item in done}) == 3 and done[1]["call_id"] != done[2]["call_id"]
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.done"] == [0, 1, 2]
    assert done[1]["arguments"] == '{"x": "a"}'
    assert events[-1]["type"] == "response.completed" and events[-1]["response"]["output"] == done


def test_what_fails_before_the_stream_is_a_status(serve_fake: Callable[..., FakeServer]) -> None:
    overflow = error("context_overflow", needed=9000, limit=2048)
    server = serve_fake(Script(generate_error=overflow))
    refused = server.client().post(PATH, {**TALK, "stream": True})
    assert refused.status == 400 and refused.json["error"]["code"] == "context_length_exceeded"


def test_what_fails_in_the_stream_is_told_in_both_ways(serve_fake: Callable[..., FakeServer]) -> None:
    server = serve_fake(Script(die_after=3))
    client = server.client()
    events = events_of(client.post(PATH, {**TALK, "stream": True}))
    failed, last = events[-2:]
    assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert last["type"] == "error" and last["code"] == last["error"]["code"] == "engine_gone"
    assert last["message"] == last["error"]["message"] == failed["response"]["error"]["message"]
    kept = client.get(f"{PATH}/{failed['response']['id']}").json
    assert kept["status"] == "failed" and kept["error"] == failed["response"]["error"]
    assert text_of(kept) == "".join(WORDS[:3])


def test_what_a_cloud_would_run_is_ignored_and_named(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tools = [{"type": "web_search"}, TOOL, {"type": "new\r\nthing"}]
    answer = client.post(PATH, {**TALK, "tools": tools})
    assert answer.status == 200
    assert answer.headers["X-Lmlite-Ignored"] == "web_search, new??thing"
    assert "web_search" in caplog.text


def test_items_that_nobody_knows_are_named_as_far_as_a_header_has_room(client: Client) -> None:
    """Clients and proxies bound a header's line; each type is told once, and nothing of it can end the line."""
    kinds = [f"kind {n} of\r\nthe future" for n in range(200)]
    items = [{"type": kind} for kind in (*kinds, *kinds)]
    answer = client.post(PATH, {**TALK, "input": [*items, {"role": "user", "content": "hello"}]})
    told = answer.headers["X-Lmlite-Ignored"]
    assert answer.status == 200 and len(told) == LISTING_MAX
    assert told.startswith("kind 0 of??the future, kind 1 of??the future, kind 2 of??the future, ")
    small = client.post(PATH, {**TALK, "input": [*items[:1] * 3, {"role": "user", "content": "hello"}]})
    assert small.headers["X-Lmlite-Ignored"] == "kind 0 of??the future"


def test_a_stream_that_is_silent_for_long_begins(
    serve_fake: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "SILENCE_S", 0.01)
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate, die_after=0))
    stream = server.client().start("POST", PATH, {**TALK, "stream": True})
    begun = b""
    while b"keep-alive" not in begun:
        begun += stream.readline()
    gate.open()
    body = (begun + stream.read()).replace(b": keep-alive\n\n", b"")
    events = events_of(Answer(200, {}, body))
    kinds = [event["type"] for event in events]
    assert kinds == ["response.created", "response.in_progress", "response.failed", "error"]
    assert events[0]["response"]["model"] == "talker"


# ---- kept responses --------------------------------------------------------------------------------------------------


def test_a_response_is_gone_on_from_as_often_as_wanted(fake_server: FakeServer) -> None:
    client = fake_server.client()
    first = client.post(PATH, {**TALK, "instructions": "Be brief."}).json
    for words in ("More", "Else"):
        more = {**TALK, "input": words, "previous_response_id": first["id"], "instructions": "Be long."}
        second = client.post(PATH, {**more, "stream": True})
        assert events_of(second)[-1]["response"]["previous_response_id"] == first["id"]
    begun, *gone_on = prompts(fake_server)
    assert begun == [("system", "Be brief."), ("user", "Hi")]
    said = [("user", "Hi"), ("assistant", SAID)]
    assert gone_on == [[("system", "Be long."), *said, ("user", words)] for words in ("More", "Else")]


def test_results_go_to_the_calls_of_the_response_before(serve_fake: Callable[..., FakeServer]) -> None:
    server = serve_fake(Script(calls=(("look", ("{}",)),)))
    client = server.client()
    first = client.post(PATH, {"model": "talker", "input": "Hi", "tools": [TOOL]}).json
    call = first["output"][0]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
    client.post(PATH, {**TALK, "input": [result], "previous_response_id": first["id"]})
    told = [command for kind, _, command in server.engine.commands if kind == Kind.GENERATE][1]["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "tool"]
    assert told[1]["tool_calls"][0]["id"] == told[2]["tool_call_id"] == call["call_id"]
    assert told[2]["name"] == "look"


def test_a_kept_response_reads_as_it_was_told(client: Client) -> None:
    whole = client.post(PATH, TALK).json
    assert client.get(f"{PATH}/{whole['id']}").json == whole
    streamed = events_of(client.post(PATH, {**TALK, "stream": True}))
    kept = f"{PATH}/{streamed[0]['response']['id']}"
    assert client.get(kept).json == streamed[-1]["response"]
    assert events_of(client.get(f"{kept}?stream=true")) == streamed
    later = client.get(f"{kept}?stream=true&starting_after=5").events
    assert [json.loads(payload) for _, payload in later] == streamed[6:]


def test_a_kept_response_outlives_its_server(serve_fake: Callable[..., FakeServer]) -> None:
    first = serve_fake()
    told = first.client().post(PATH, TALK).json
    first.close()
    second = serve_fake()
    client = second.client()
    assert client.get(f"{PATH}/{told['id']}").json == told
    assert client.post(PATH, {**TALK, "previous_response_id": told["id"]}).status == 200
    assert next(prompts(second)) == [("user", "Hi"), ("assistant", SAID), ("user", "Hi")]


def test_what_is_not_to_be_kept_is_not(client: Client) -> None:
    told = client.post(PATH, {**TALK, "store": False}).json
    assert told["store"] is False
    assert client.get(f"{PATH}/{told['id']}").status == 404
    refused = client.post(PATH, {**TALK, "previous_response_id": told["id"]})
    assert refused.status == 400
    assert refused.json["error"]["code"] == "previous_response_not_found"
    assert refused.json["error"]["param"] == "previous_response_id"


def test_a_deleted_response_is_unknown(client: Client) -> None:
    path = f"{PATH}/{client.post(PATH, TALK).json['id']}"
    gone = client.ask("DELETE", path)
    assert gone.json == {"id": path.rpartition("/")[2], "object": "response.deleted", "deleted": True}
    assert client.get(path).status == client.ask("DELETE", path).status == 404


def test_a_native_chat_is_no_response_that_could_be_deleted(client: Client) -> None:
    chat = {"model": "talker", "input": "Hi"}
    id = client.post("/api/v1/chat", chat).json["response_id"]
    assert client.get(f"{PATH}/{id}").status == client.ask("DELETE", f"{PATH}/{id}").status == 404
    assert client.post("/api/v1/chat", {**chat, "previous_response_id": id}).status == 200


def test_what_was_asked_is_listed_in_pages(client: Client) -> None:
    asked = [{"role": "user", "content": str(place)} for place in range(5)]
    path = f"{PATH}/{client.post(PATH, {**TALK, 'input': asked}).json['id']}/input_items"
    all_of_them = client.get(path).json
    texts = [item["content"][0]["text"] for item in all_of_them["data"]]
    assert texts == ["4", "3", "2", "1", "0"] and not all_of_them["has_more"]
    page = client.get(f"{path}?order=asc&limit=2").json
    assert [item["content"][0]["text"] for item in page["data"]] == ["0", "1"] and page["has_more"]
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][1]["id"])
    rest = client.get(f"{path}?order=asc&after={page['last_id']}").json
    assert [item["content"][0]["text"] for item in rest["data"]] == ["2", "3", "4"]
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=nobody"):
        assert client.get(f"{path}?{query}").status == 400


def test_items_of_earlier_responses_can_be_pointed_at(fake_server: FakeServer) -> None:
    client = fake_server.client()
    told = client.post(PATH, TALK).json
    asked = client.get(f"{PATH}/{told['id']}/input_items").json["data"][0]
    ids = [asked["id"], told["output"][0]["id"]]
    items = [{"type": "item_reference", "id": id} for id in ids]
    answer = client.post(PATH, {**TALK, "input": [*items, {"role": "user", "content": "More"}]})
    assert answer.status == 200
    assert list(prompts(fake_server))[1] == [("user", "Hi"), ("assistant", SAID), ("user", "More")]
    for id in ("msg_" + "0" * 22, "foreign", ids[0][:-1] + "9"):
        refused = client.post(PATH, {**TALK, "input": [{"id": id}]})
        assert refused.status == 404 and refused.json["error"]["param"] == "input"


def test_input_tokens_are_counted_with_what_came_before(client: Client) -> None:
    counted = client.post(f"{PATH}/input_tokens", TALK)
    assert counted.json == {"object": "response.input_tokens", "input_tokens": len("<user>Hi")}
    first = client.post(PATH, TALK).json
    more = client.post(f"{PATH}/input_tokens", {**TALK, "previous_response_id": first["id"]}).json
    assert more["input_tokens"] == len("<user>Hi<assistant><user>Hi") + len(SAID)


def test_a_stream_whose_client_leaves_is_kept_as_cancelled(serve_fake: Callable[..., FakeServer]) -> None:
    server = serve_fake(Script(silent_after=2))
    leaving = server.client()
    stream = leaving.start("POST", PATH, {**TALK, "stream": True})
    lines = [stream.readline() for _ in range(2)]
    id = json.loads(lines[1].decode().removeprefix("data: "))["response"]["id"]
    while b"delta" not in stream.readline():
        pass
    client = server.client()
    assert client.get(f"{PATH}/{id}").json["status"] == "in_progress"
    refused = client.get(f"{PATH}/{id}?stream=true")
    assert refused.status == 400 and refused.json["error"]["param"] == "stream"
    stream.close()
    leaving.close()
    while (kept := client.get(f"{PATH}/{id}").json)["status"] == "in_progress":
        pass
    assert kept["status"] == "cancelled" and kept["error"] is None and kept["completed_at"] is None
    assert SAID.startswith(text_of(kept))


@pytest.mark.parametrize(("engine_s", "own"), [("response_format", "text.format"), ("messages", "input"), ("tools", "tools")])
def test_what_the_engine_refuses_is_named_as_this_request_names_it(
    serve_fake: Callable[..., FakeServer], engine_s: str, own: str
) -> None:
    client = serve_fake(Script(generate_error=error("invalid_request", param=engine_s))).client()
    answer = client.post(PATH, TALK)
    assert answer.status == 400 and answer.json["error"]["param"] == own
    events = events_of(client.post(PATH, {**TALK, "stream": True, "background": True}))
    assert events[-1]["type"] == "error" and events[-1]["param"] == own


# ---- in the background -----------------------------------------------------------------------------------------------


def test_a_background_response_is_there_at_once_and_finished_later(serve_fake: Callable[..., FakeServer]) -> None:
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate))
    client = server.client()
    told = client.post(PATH, {**TALK, "background": True}).json
    path = f"{PATH}/{told['id']}"
    assert told["status"] == "queued" and told["output"] == []
    assert client.get(path).json["status"] in ("queued", "in_progress")
    assert client.get(f"{path}/input_items").json["data"][0]["content"][0]["text"] == "Hi"
    refused = server.client().post(PATH, {**TALK, "previous_response_id": told["id"]})
    assert refused.status == 400 and refused.json["error"]["code"] == "previous_response_not_finished"
    follower = server.client().start("GET", f"{path}?stream=true&starting_after=0")
    gate.open()
    body = follower.read()
    events = [json.loads(payload) for _, payload in Answer(200, {}, body).events]
    assert [event["sequence_number"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "response.queued" and events[1]["type"] == "response.in_progress"
    kept = client.get(path).json
    assert kept == events[-1]["response"] and text_of(kept) == SAID
    again = [json.loads(payload) for _, payload in client.get(f"{path}?stream=true&starting_after=0").events]
    assert again == events


def test_a_background_response_can_be_streamed_from_its_first_event(client: Client) -> None:
    events = events_of(client.post(PATH, {**TALK, "background": True, "stream": True}))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"


def test_a_background_response_goes_on_without_its_client(serve_fake: Callable[..., FakeServer]) -> None:
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate))
    leaving = server.client()
    stream = leaving.start("POST", PATH, {**TALK, "background": True, "stream": True})
    first = json.loads(stream.readline() and stream.readline().decode().removeprefix("data: "))
    stream.close()
    leaving.close()
    gate.open()
    client = server.client()
    path = f"{PATH}/{first['response']['id']}"
    client.get(f"{path}?stream=true")  # until its end
    assert text_of(client.get(path).json) == SAID


def test_a_background_response_can_be_cancelled(serve_fake: Callable[..., FakeServer]) -> None:
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate))
    client = server.client()
    path = f"{PATH}/{client.post(PATH, {**TALK, 'background': True}).json['id']}"
    assert client.post(f"{path}/cancel", None).json["status"] == "cancelled"
    gate.open()
    assert client.get(path).json["status"] == "cancelled"
    assert client.post(f"{path}/cancel", None).json["status"] == "cancelled"
    plain = client.post(PATH, TALK).json
    refused = client.post(f"{PATH}/{plain['id']}/cancel", None)
    assert refused.status == 400 and client.post(f"{PATH}/resp_0/cancel", None).status == 404


def test_a_background_response_that_is_cancelled_while_it_is_kept_ends_for_who_follows_it(
    serve_fake: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_kept, may_return = threading.Event(), threading.Event()

    async def keep(history: History, exchange: Exchange) -> None:
        await kept(history, exchange)
        is_kept.set()
        await asyncio.to_thread(may_return.wait)

    async def stop(run: BackgroundRun) -> None:
        if is_kept.is_set():
            asyncio.get_running_loop().call_soon(may_return.set)
        await stopped(run)

    kept, stopped = History.keep, BackgroundRun.stop
    monkeypatch.setattr(History, "keep", keep)
    monkeypatch.setattr(BackgroundRun, "stop", stop)
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate))
    client = server.client()
    path = f"{PATH}/{client.post(PATH, {**TALK, 'background': True}).json['id']}"
    follower = server.client().start("GET", f"{path}?stream=true")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(server.client().post, f"{path}/cancel", None)
        assert is_kept.wait(TIMEOUT_S)
        second = threads.submit(server.client().post, f"{path}/cancel", None)
        assert [answer.result().json["status"] for answer in (first, second)] == ["cancelled", "cancelled"]
    gate.open()
    assert b"response.cancelled" in follower.read()


def test_a_background_response_that_runs_can_be_deleted(serve_fake: Callable[..., FakeServer]) -> None:
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate))
    client = server.client()
    path = f"{PATH}/{client.post(PATH, {**TALK, 'background': True}).json['id']}"
    follower = server.client().start("GET", f"{path}?stream=true")
    assert client.ask("DELETE", path).status == 200
    gate.open()
    assert client.get(path).status == 404
    assert b"response.cancelled" in follower.read()


def test_a_background_response_that_fails_is_kept_as_failed(serve_fake: Callable[..., FakeServer]) -> None:
    server = serve_fake(Script(die_after=2))
    client = server.client()
    told = events_of(client.post(PATH, {**TALK, "background": True, "stream": True}))
    assert [event["type"] for event in told[-2:]] == ["response.failed", "error"]
    assert client.get(f"{PATH}/{told[0]['response']['id']}").json["status"] == "failed"


@pytest.mark.parametrize(
    ("wish", "status"),
    [({"model": "nobody"}, 404), ({"previous_response_id": "resp_nobody"}, 400), ({"input": PICTURE}, 400)],
    ids=["no such model", "nothing to go on from", "a model that does not see"],
)
def test_a_background_response_that_can_never_be_is_refused_at_once(
    client: Client, wish: dict[str, Any], status: int
) -> None:
    answer = client.post(PATH, {**TALK, **wish, "background": True})
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert answer.json["error"] == client.post(PATH, {**TALK, **wish}).json["error"]


def test_a_background_response_ends_with_its_server(serve_fake: Callable[..., FakeServer]) -> None:
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate))
    told = server.client().post(PATH, {**TALK, "background": True}).json
    close_while_held(gate, server)
    kept = serve_fake().client().get(f"{PATH}/{told['id']}").json
    assert kept["status"] == "failed" and kept["error"]["code"] == "server_error"


def close_while_held(gate: Gate, server: FakeServer) -> None:
    """Closes the server while its engine is held."""
    for client in server.clients:
        client.close()
    server.thread.call(server.service.app.background.close())
    gate.open()
    server.close()


def test_background_needs_a_history(serve_fake: Callable[..., FakeServer]) -> None:
    client = serve_fake(history_size=0).client()
    refused = client.post(PATH, {**TALK, "background": True})
    assert refused.status == 422 and refused.json["error"]["code"] == "not_stored"
    assert client.post(PATH, {**TALK, "background": True, "store": False}).json["error"]["param"] == "background"
    assert client.post(PATH, TALK).status == 200
