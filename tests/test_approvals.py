"""Calls of servers' tools that wait for approval, in Responses requests on whole servers: given, denied, and gone on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lmlite.server import Server
from tests.conftest import FakeServer
from tests.fakes import Script
from tests.mcp.web_server import WebServer
from tests.test_native_chat import generations
from tests.test_native_tools import ADD, TEXT, program, token, web_server  # noqa: F401 - fixtures
from tests.test_responses_tools import added

Serve = Callable[..., FakeServer]
RESPONSES = "/v1/responses"
ASKED: dict[str, Any] = {"model": "talker", "input": "what is 2 + 3?"}
CAREFUL = {"type": "mcp", "server_label": "calc", "require_approval": "always"}
ECHO = ("echo", ('{"text":"x"}',))


class Asking:
    """Asks a server whose model makes `calls` once; `heard` is what the program of tools was asked."""

    def __init__(self, server: FakeServer, token: dict[str, str], note: Path):  # noqa: F811
        self.server, self._token, self._note = server, token, note
        self._client = server.client()

    def __call__(self, method: str = "POST", path: str = RESPONSES, **more: Any) -> Any:
        body = {**ASKED, "tools": [CAREFUL], **more} if method == "POST" else None
        return self._client.ask(method, path, body, self._token)

    @property
    def heard(self) -> int:
        return self._note.read_text().count("tools/call") if self._note.exists() else 0

    @property
    def prompts(self) -> list[Any]:
        return [command["messages"] for command in generations(self.server)]


@pytest.fixture
def asking(serve_fake: Serve, tmp_path: Path, token: dict[str, str]) -> Callable[..., Asking]:  # noqa: F811
    def start(*calls: Any, rounds: int = 1, tools: str = "add,echo,fail", **options: Any) -> Asking:
        note = tmp_path / "heard"
        program(tmp_path / "home", calc={"tools": tools, "note": str(note)})
        server = serve_fake(Script(calls=calls or (ADD,), call_rounds=rounds), auth=True, mcp=True, **options)
        return Asking(server, token, note)

    return start


def kinds(answer: Any) -> list[str]:
    return [item["type"] for item in answer.json["output"]]


def decision(request: Any, approve: bool, **more: Any) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approve, **more}


def test_a_call_that_needs_approval_ends_the_response_and_is_not_made(asking: Callable[..., Asking]) -> None:
    ask = asking()
    answer = ask()
    _, request = answer.json["output"]
    assert request == {
        "id": request["id"],
        "type": "mcp_approval_request",
        "server_label": "calc",
        "name": "add",
        "arguments": '{"a":2,"b":3}',
    }
    assert request["id"].startswith("mcpr_") and answer.json["status"] == "completed"
    assert ask.heard == 0 and len(ask.prompts) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_one_that_is_approved_is_made_and_the_model_goes_on(asking: Callable[..., Asking], stream: bool) -> None:
    ask = asking()
    first = ask().json
    answer = ask(previous_response_id=first["id"], input=[decision(first["output"][1], True)], stream=stream)
    response = json.loads(answer.events[-1][1])["response"] if stream else answer.json
    _, called, message = response["output"]
    assert called == added(called["id"], first["output"][1]["id"])
    assert message["content"][0]["text"] == TEXT and ask.heard == 1
    user, assistant, tool = ask.prompts[1]
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] and tool["content"] == "5"
    ask(previous_response_id=response["id"], input="and now?")
    assert ask.prompts[2][:3] == ask.prompts[1] and ask.heard == 1


def test_a_model_that_sees_is_shown_what_an_approved_call_gave(asking: Callable[..., Asking], seeing: Path) -> None:
    ask = asking(("look", ('{"text":"Here:"}',)), tools="look", models_dir=[seeing])
    first = ask(model="seer").json
    ask(model="seer", previous_response_id=first["id"], input=[decision(first["output"][1], True)])
    result = ask.prompts[1][-1]
    assert result["content"] == [{"type": "text", "text": "Here:"}, {"type": "media", "kind": "image", "index": 0}]


def test_one_that_is_denied_is_told_to_the_model_with_the_reason(asking: Callable[..., Asking]) -> None:
    ask = asking()
    first = ask().json
    denied = decision(first["output"][1], False, reason="not today")
    answer = ask(previous_response_id=first["id"], input=[denied], tools=[])  # which takes no server
    assert kinds(answer) == ["message"] and ask.heard == 0
    assert ask.prompts[1][-1]["content"] == "Error: The user did not approve this call: not today"
    ask(previous_response_id=answer.json["id"], input="and now?", tools=[])
    assert ask.prompts[2][:3] == ask.prompts[1]


@pytest.mark.parametrize("approve", [True, False])
def test_items_that_are_sent_back_say_the_same(asking: Callable[..., Asking], approve: bool) -> None:
    """Clients that store nothing send all that there was, again and again."""
    ask = asking()
    first = ask(store=False).json
    items = [{"role": "user", "content": ASKED["input"]}, *first["output"], decision(first["output"][1], approve)]
    second = ask(input=items, store=False).json
    assert [item["type"] for item in second["output"]][1:] == (["mcp_call", "message"] if approve else ["message"])
    assert ask.heard == approve
    items += [*second["output"], {"role": "user", "content": "and now?"}]
    assert kinds(ask(input=items, store=False, tools=[])) == ["message"]
    assert ask.heard == approve
    assert ask.prompts[2][:3] == ask.prompts[1]
    assert [message["role"] for message in ask.prompts[2]] == ["user", "assistant", "tool", "assistant", "user"]


def test_a_call_that_the_model_has_gone_on_from_is_not_made_again(asking: Callable[..., Asking]) -> None:
    ask = asking()
    first = ask(store=False).json
    said = {"role": "assistant", "content": "It is 5."}
    items = [{"role": "user", "content": "?"}, first["output"][1], decision(first["output"][1], True), said]
    ask(input=[*items, {"role": "user", "content": "and now?"}], store=False)
    assert ask.heard == 0


@pytest.mark.parametrize(
    ("rule", "waits"),
    [
        ({"always": {"tool_names": ["add"]}}, ["add"]),
        ({"never": {"tool_names": ["add"]}}, ["echo"]),
        ({"always": {"tool_names": ["echo"]}, "never": {"tool_names": ["add"]}}, ["echo"]),
        ({"always": {"tool_names": []}}, []),
        ("never", []),
        (None, []),  # of the server's own list, as LM Studio has it
        ("always", ["add", "echo"]),
    ],
)
def test_tools_wait_as_the_request_says(asking: Callable[..., Asking], rule: Any, waits: list[str]) -> None:
    ask = asking(ADD, ECHO)
    output = ask(tools=[{**CAREFUL, "require_approval": rule}]).json["output"]
    assert [item["name"] for item in output if item["type"] == "mcp_approval_request"] == waits
    called = [item["name"] for item in output if item["type"] == "mcp_call"]
    assert called == [name for name in ("add", "echo") if name not in waits]
    assert ask.heard == len(called) and (output[-1]["type"] == "message") is (not waits)


def test_calls_wait_for_no_approval_where_nothing_is_said_and_for_any_servers_where_it_is(
    asking: Callable[..., Asking], web_server: WebServer  # noqa: F811
) -> None:
    ask = asking(mcp_ephemeral=True, mcp_private=True)
    tool = {"type": "mcp", "server_label": "w", "server_url": web_server.url}
    assert kinds(ask(tools=[{**tool, "require_approval": "always"}])) == ["mcp_list_tools", "mcp_approval_request"]
    assert not web_server.said("tools/call")
    assert kinds(ask(tools=[tool])) == ["mcp_list_tools", "mcp_call", "message"]


def test_what_needs_no_approval_is_done_meanwhile_and_each_result_finds_its_call(asking: Callable[..., Asking]) -> None:
    ask = asking(ECHO, ADD)
    first = ask(tools=[{**CAREFUL, "require_approval": {"always": {"tool_names": ["add"]}}}]).json
    assert [item["type"] for item in first["output"]] == ["mcp_list_tools", "mcp_call", "mcp_approval_request"]
    said = {"role": "user", "content": "go on"}
    second = ask(previous_response_id=first["id"], input=[said, decision(first["output"][2], True)], tool_choice="none")
    assert kinds(second) == ["mcp_list_tools", "mcp_call", "message"]
    ask(previous_response_id=second.json["id"], input="and now?", tools=[])
    for prompt in ask.prompts[1:]:
        assert [message["role"] for message in prompt[:5]] == ["user", "assistant", "tool", "tool", "user"]
        echo, add = prompt[1]["tool_calls"]
        assert [(tool["tool_call_id"], tool["content"]) for tool in prompt[2:4]] == [(echo["id"], "x"), (add["id"], "5")]
    assert ask.prompts[2][:5] == ask.prompts[1]


def test_a_call_that_cannot_be_made_is_told_to_the_model_and_nobody_is_asked(asking: Callable[..., Asking]) -> None:
    ask = asking(("add", ("{}",)))
    _, called, message = ask().json["output"]
    assert (called["status"], called["error"]) == ("failed", "The arguments lack a.")
    assert message["type"] == "message"


def test_a_stream_tells_of_it_in_whole_items_and_is_told_again_as_it_was(asking: Callable[..., Asking]) -> None:
    ask = asking(ECHO, ADD)
    first = ask(stream=True, tools=[{**CAREFUL, "require_approval": {"always": {"tool_names": ["add"]}}}])
    events = [json.loads(payload) for _, payload in first.events]
    response = events[-1]["response"]
    request = response["output"][2]
    told = [event["type"] for event in events if event.get("output_index") == 2]
    assert told == ["response.output_item.added", "response.output_item.done"]
    second = ask(stream=True, previous_response_id=response["id"], input=[decision(request, True)])
    for answer in (first, second):
        events = [json.loads(payload) for _, payload in answer.events]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
        done = {event["output_index"]: event["item"] for event in events if event["type"] == "response.output_item.done"}
        final = events[-1]["response"]
        assert added == list(range(len(final["output"]))) and [done[index] for index in added] == final["output"]
        again = ask("GET", f"{RESPONSES}/{final['id']}?stream=true")
        assert sorted(payload for _, payload in again.events) != []
        assert json.loads(again.events[-1][1]) == events[-1]
    assert [json.loads(payload) for _, payload in again.events] == events


@pytest.mark.parametrize("known", [False, True])
def test_a_decision_about_nothing_is_refused(asking: Callable[..., Asking], known: bool) -> None:
    ask = asking()
    id = ask(tools=[]).json["id"] if known else None
    answer = ask(previous_response_id=id, input=[decision({"id": "mcpr_0"}, True), {"role": "user", "content": "?"}])
    assert (answer.status, answer.json["error"]["param"]) == (400, "input[0].approval_request_id")
    assert "mcpr_0" in answer.json["error"]["message"]


def test_a_call_is_approved_where_its_server_is_there(asking: Callable[..., Asking]) -> None:
    ask = asking()
    first = ask().json
    answer = ask(previous_response_id=first["id"], input=[decision(first["output"][1], True)], tools=[])
    assert (answer.status, answer.json["error"]["param"]) == (400, "input[0].approval_request_id")
    assert answer.json["error"]["message"] == "the server of the call of 'add' is not among the request's" and ask.heard == 0


def test_a_tool_that_is_gone_meanwhile_is_told_to_the_model(asking: Callable[..., Asking], tmp_path: Path) -> None:
    ask = asking()
    first = ask().json
    program(tmp_path / "home", calc={"tools": "echo", "note": str(tmp_path / "heard")})
    _, called, message = ask(previous_response_id=first["id"], input=[decision(first["output"][1], True)]).json["output"]
    assert called["error"] == "Cannot find tool with name add." and message["type"] == "message" and ask.heard == 0


def test_a_round_after_one_that_was_approved_may_ask_again(asking: Callable[..., Asking]) -> None:
    ask = asking(rounds=2)
    first = ask().json
    second = ask(previous_response_id=first["id"], input=[decision(first["output"][1], True)]).json
    assert [item["type"] for item in second["output"]] == ["mcp_list_tools", "mcp_call", "mcp_approval_request"]
    third = ask(previous_response_id=second["id"], input=[decision(second["output"][2], True)]).json
    assert [item["type"] for item in third["output"]] == ["mcp_list_tools", "mcp_call", "message"] and ask.heard == 2


def test_nobody_elses_request_for_approval_is_known(asking: Callable[..., Asking], tmp_path: Path) -> None:
    from tests.test_auth import Keys, bearer

    ask = asking()
    first = ask().json
    keys = Keys(tmp_path / "home")
    other = bearer(keys.create("other"))
    keys.close()
    body = {**ASKED, "tools": [CAREFUL], "previous_response_id": first["id"], "input": [decision(first["output"][1], True)]}
    answer = ask.server.client().post(RESPONSES, body, **other)
    assert (answer.status, answer.json["error"]["code"]) == (400, "previous_response_not_found") and ask.heard == 0


# ---- the official client, the real engine ----------------------------------------------------------------------------


@pytest.fixture
def client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: dict[str, str]  # noqa: F811
) -> Iterator[openai.OpenAI]:
    monkeypatch.setenv("HOME", str(tmp_path))
    program(tmp_path / "home", calc={"tools": "add"})
    key = token["Authorization"].removeprefix("Bearer ")
    with (
        Server(port=0, home=tmp_path / "home", auth=True, mcp=True) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("stateless", [False, True])
def test_openais_client_asks_its_user_and_goes_on(client: openai.OpenAI, stateless: bool) -> None:
    asked: dict[str, Any] = {"model": "lmlite-tiny", "temperature": 0, "tools": [CAREFUL]}
    items: list[Any] = [{"role": "user", "content": "Add 2 and 3."}]
    with client.responses.stream(**asked, input=items) as stream:
        stream.until_done()
        first = stream.get_final_response()
    (request,) = [item for item in first.output if item.type == "mcp_approval_request"]
    assert (request.name, json.loads(request.arguments), request.server_label) == ("add", {"a": 2, "b": 3}, "calc")
    approval: Any = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    if stateless:
        more: dict[str, Any] = {"input": [*items, *(item.to_dict() for item in first.output), approval]}
    else:
        more = {"input": [approval], "previous_response_id": first.id}
    with client.responses.stream(**asked, **more) as stream:
        stream.until_done()
        second = stream.get_final_response()
    (called,) = [item for item in second.output if item.type == "mcp_call"]
    assert (called.output, called.approval_request_id) == ("5", request.id) and "5" in second.output_text
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 1
