"""Tools of the type `mcp` in Responses requests, on whole servers: their items and events, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmlite.app.metrics import Metrics
from lmlite.core.engine.client import Engine
from lmlite.events import Finished, Stats
from lmlite.messages import Message
from lmlite.request import Chat, Generate
from lmlite.rounds import run, tools
from lmlite.server import Server
from tests.conftest import Client, FakeServer
from tests.fakes import Script
from tests.mcp.web_server import WebServer
from tests.test_native_chat import generations
from tests.test_native_tools import ADD, TEXT, program, token, web_server  # noqa: F401 - fixtures

Serve = Callable[..., FakeServer]
RESPONSES = "/v1/responses"
ASKED: dict[str, Any] = {"model": "talker", "input": "what is 2 + 3?"}
PLUGIN = {"type": "mcp", "server_label": "calc"}


def added(id: str, approval: str | None = None) -> dict[str, Any]:
    """The item of a call of `add` that gave something."""
    return {
        "id": id,
        "type": "mcp_call",
        "server_label": "calc",
        "name": "add",
        "arguments": '{"a":2,"b":3}',
        "output": "5",
        "error": None,
        "approval_request_id": approval,
        "status": "completed",
    }


@pytest.fixture
def ask(serve_fake: Serve, tmp_path: Path, token: dict[str, str]) -> Callable[..., Any]:  # noqa: F811
    """Asks a server whose model makes `calls` once."""
    program(tmp_path / "home", calc={"tools": "add,fail"})

    def start(*calls: Any, **options: Any) -> Any:
        server = serve_fake(Script(calls=calls or (ADD,), call_rounds=1), auth=True, mcp=True, **options)
        client = server.client()

        def ask(method: str = "POST", path: str = RESPONSES, **more: Any) -> Any:
            body = {**ASKED, "tools": [PLUGIN], **more} if method == "POST" else None
            return client.ask(method, path, body, token)

        ask.server = server  # type: ignore[attr-defined]
        return ask

    return start


def test_a_call_of_a_servers_tool_is_an_item_with_what_it_gave(ask: Callable[..., Any]) -> None:
    send = ask()
    response = send().json
    listed, called, message = response["output"]
    assert (listed["type"], listed["server_label"]) == ("mcp_list_tools", "calc")
    assert [tool["name"] for tool in listed["tools"]] == ["add", "fail"] and listed["tools"][0]["input_schema"]["type"]
    assert called == added(called["id"])
    assert message["content"][0]["text"] == TEXT and response["status"] == "completed"
    send(previous_response_id=response["id"], tools=[], input="and now?")
    _, within, later = generations(send.server)
    assert later["messages"][:3] == within["messages"]


@pytest.mark.parametrize("calls", [(ADD,), (ADD, ("rain", ("{}",)), ("fail", ("{}",)))])
def test_a_stream_numbers_each_item_and_is_told_again_as_it_was(ask: Callable[..., Any], calls: Any) -> None:
    send = ask(*calls)
    answer = send(stream=True)
    events = [json.loads(payload) for _, payload in answer.events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = {event["output_index"]: event["item"] for event in events if event["type"] == "response.output_item.done"}
    final = events[-1]["response"]
    assert events[-1]["type"] == "response.completed" and added == list(range(len(final["output"])))
    assert [done[index] for index in added] == final["output"]
    calls_told = [event["type"].removeprefix("response.") for event in events if event.get("output_index") == 1]
    assert list(dict.fromkeys(calls_told)) == [
        "output_item.added",
        "mcp_call.in_progress",
        "mcp_call_arguments.delta",
        "mcp_call_arguments.done",
        "mcp_call.completed",
        "output_item.done",
    ]
    again = send("GET", f"{RESPONSES}/{final['id']}?stream=true")
    told_again = [json.loads(payload) for _, payload in again.events]
    assert len(told_again) == len(events) and told_again[-1] == events[-1]
    if len(calls) == 1:
        assert told_again == events


def test_failures_are_told_in_their_items(ask: Callable[..., Any]) -> None:
    _, rain, failed, _ = ask(("rain", ("{}",)), ("fail", ("{}",)))().json["output"]
    assert (rain["status"], rain["error"]) == ("failed", "Cannot find tool with name rain.")
    assert (failed["status"], failed["error"], failed["output"]) == ("failed", "Error: it went wrong", None)


def test_calls_are_counted_where_the_request_wants_that(ask: Callable[..., Any]) -> None:
    send = ask(ADD, ADD)
    kinds = [(item["type"], item.get("status")) for item in send(max_tool_calls=1).json["output"]]
    assert kinds == [("mcp_list_tools", None), ("mcp_call", "completed"), ("mcp_call", "failed"), ("message", "completed")]


def test_a_clients_own_tool_beside_a_servers_is_the_clients_to_run(ask: Callable[..., Any]) -> None:
    own = {"type": "function", "name": "mine", "parameters": {}}
    send = ask(ADD, ("mine", ("{}",)))
    _, called, mine = send(tools=[PLUGIN, own]).json["output"]
    assert (called["output"], mine["type"], mine["name"]) == ("5", "function_call", "mine")
    assert len(generations(send.server)) == 1


def test_a_clients_own_tool_keeps_its_name_beside_a_servers(ask: Callable[..., Any]) -> None:
    own = {"type": "function", "name": "add", "parameters": {}}
    send = ask(("calc__add", ('{"a":2,"b":3}',)), ("add", ("{}",)))
    listed, called, mine = send(tools=[PLUGIN, own]).json["output"]
    assert [tool["name"] for tool in listed["tools"]][:1] == ["add"]
    assert (called["type"], called["name"], called["output"]) == ("mcp_call", "add", "5")
    assert (mine["type"], mine["name"]) == ("function_call", "add")


def test_what_is_secret_is_sent_to_the_server_and_told_to_nobody(
    ask: Callable[..., Any], web_server: WebServer  # noqa: F811
) -> None:
    send = ask(mcp_ephemeral=True, mcp_private=True)
    secrets = {"authorization": "hush", "headers": {"X": "hush"}}
    tool = {"type": "mcp", "server_label": "w", "server_url": web_server.url, **secrets}
    answer = send(tools=[{**tool, "allowed_tools": {"tool_names": ["add"]}, "require_approval": "never"}])
    assert answer.json["output"][1]["output"] == "5"
    assert {heard.headers["authorization"] for heard in web_server.heard} == {"Bearer hush"}
    assert b"hush" not in answer.body and answer.json["tools"][0]["server_label"] == "w"
    assert b"hush" not in send("GET", f"{RESPONSES}/{answer.json['id']}").body


def test_a_server_that_may_not_be_used_is_refused(ask: Callable[..., Any]) -> None:
    answer = ask()(tools=[{"type": "mcp", "server_label": "w", "server_url": "https://tools.example/"}])
    assert (answer.status, answer.json["error"]["code"]) == (403, "permission_denied")


# ---- the real engine -------------------------------------------------------------------------------------------------


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((place for place, (one, other) in enumerate(zip(a, b)) if one != other), min(len(a), len(b)))


def test_each_round_takes_from_the_cache_all_that_it_shares_with_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: dict[str, str]  # noqa: F811
) -> None:
    """Three rounds of calls, which the model has no choice about, and an answer: prompts as tokens, and what they cost."""
    prompts: list[Sequence[int]] = []
    costs: list[Stats] = []
    feed, go_on, count = run.feed, tools.Loop._prompt_with, Metrics.generated

    async def feed_and_note(engine: Engine, work: Generate, *rest: Any) -> None:
        assert isinstance(work.prompt, Chat)
        text, n_tokens = await engine.count(work.prompt, work.grammar)
        ids, _ = await engine.tokenize(text, add_special=False, parse_special=True)
        assert len(ids) == n_tokens
        prompts.append(ids)
        await feed(engine, work, *rest)

    async def insist(loop: tools.Loop, messages: Callable[[], tuple[Message, ...]], n: int) -> None:
        await go_on(loop, messages, n)
        if len(prompts) < 3:
            loop._prompt = replace(loop._prompt, tool_choice="required")

    def note(metrics: Metrics, model: str, new_prompt: bool, caller: str, finished: Finished) -> None:
        costs.append(finished.stats)
        count(metrics, model, new_prompt, caller, finished)

    monkeypatch.setattr(run, "feed", feed_and_note)
    monkeypatch.setattr(tools.Loop, "_prompt_with", insist)
    monkeypatch.setattr(Metrics, "generated", note)
    monkeypatch.setenv("HOME", str(tmp_path))
    program(tmp_path / "home", calc={"tools": "add"})
    with Server(port=0, home=tmp_path / "home", auth=True, mcp=True) as server:
        client = Client(server.port)
        asked = {"model": "lmlite-tiny", "temperature": 0, "input": "Add 2 and 3.", "tool_choice": "required"}
        answer = client.post(RESPONSES, {**asked, "tools": [PLUGIN]}, **token).json
        client.close()
    assert [item["type"] for item in answer["output"]] == ["mcp_list_tools", *["mcp_call"] * 3, "message"]
    assert len(prompts) == len(costs) == 4
    for before, now, cost in zip(prompts, prompts[1:], costs[1:]):
        assert shared(before, now) == len(before)  # what was said is said again to the last token
        assert cost.cached_tokens >= shared(before, now) - 1
    first, second = costs[:2]
    assert second.cached_tokens >= first.prompt_tokens + first.generated_tokens - 1  # the call itself, too
    usage = answer["usage"]
    assert usage["input_tokens"] == sum(cost.prompt_tokens for cost in costs) == sum(map(len, prompts))
    assert usage["input_tokens_details"]["cached_tokens"] == sum(cost.cached_tokens for cost in costs)
    assert usage["output_tokens"] == sum(cost.generated_tokens for cost in costs)
