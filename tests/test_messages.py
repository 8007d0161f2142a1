"""Anthropic's dialect over HTTP: streams that wait and streams that fail, its family of errors, what Claude Code sends in
its real size, and long conversations that compute only what is new."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.frames import Kind
from lmlite.server import Server
from lmlite.wire import sse
from tests.conftest import TIMEOUT_S, Answer, Client, FakeServer
from tests.core.gguf_files import gguf, llama
from tests.fakes import Gate, Script, error
from tests.random_models import Llama
from tests.replays import claude_code
from tests.test_log_stream import Ear

Serve = Callable[..., FakeServer]
PATH = "/v1/messages"
HELLO: dict[str, Any] = {"model": "talker", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
VERSION = {"anthropic-version": "2023-06-01"}


def told(answer: Answer) -> list[dict[str, Any]]:
    """The events of a stream, each by its name."""
    assert answer.status == 200, answer.body
    events = [(name, json.loads(payload)) for name, payload in answer.events]
    assert [name for name, _ in events] == [event["type"] for _, event in events]
    return [event for _, event in events]


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client sends back of a stream."""
    content: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            content.append({**event["content_block"], "input": ""})
        elif event["type"] == "content_block_delta":
            for name, text in event["delta"].items():
                if name != "type":
                    field = "input" if name == "partial_json" else name
                    content[-1][field] = content[-1].get(field, "") + text
    for block in content:
        said = block.pop("input")
        if block["type"] == "tool_use":
            block["input"] = json.loads(said)
    return {"role": "assistant", "content": content}


def prompt_of(events: list[dict[str, Any]]) -> tuple[int, int]:
    """The tokens of the prompt, and how many of them were in the cache."""
    usage = events[0]["message"]["usage"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["cache_read_input_tokens"]


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_that_waits_for_long_begins_and_pings(serve_fake: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SILENCE_S", 0.05)
    gate = Gate(Kind.LOAD)
    server = serve_fake(Script(hold=gate))
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as sock:
        body = json.dumps({**HELLO, "stream": True}).encode()
        head = f"POST {PATH} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        received = b""
        while received.count(b"event: ping\n") < 3:
            received += sock.recv(65536)
        gate.open()
        while piece := sock.recv(65536):
            received += piece
    events = told(Answer(200, {}, received.partition(b"\r\n\r\n")[2]))
    events = [event for event in events if event["type"] != "ping"]
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    assert [event["type"] for event in events].count("message_start") == 1
    assert (events[0]["message"]["model"], events[0]["message"]["usage"]["input_tokens"]) == ("talker", 0)
    assert events[-2]["usage"]["input_tokens"] > 0


def test_a_failure_in_a_stream_is_its_last_event(serve_fake: Serve) -> None:
    events = told(serve_fake(Script(die_after=2)).client().post(PATH, {**HELLO, "stream": True}))
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "overloaded_error" and events[-1]["request_id"].startswith("req_")
    assert "message_stop" not in [event["type"] for event in events]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("engine_error", "status", "kind"),
    [
        (error("context_overflow", needed=9000, limit=4096), 400, "invalid_request_error"),
        (error("invalid_request", param="tools"), 400, "invalid_request_error"),
        (error("queue_full", limit=8), 429, "rate_limit_error"),
        (error("out_of_memory"), 529, "overloaded_error"),
        (error("internal"), 500, "api_error"),
    ],
)
def test_a_failure_before_a_stream_is_an_http_status(
    serve_fake: Serve, engine_error: dict[str, Any], status: int, kind: str, stream: bool
) -> None:
    answer = serve_fake(Script(generate_error=engine_error)).client().post(PATH, {**HELLO, "stream": stream})
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)
    assert ("Retry-After" in answer.headers) == (status == 429)


def test_what_is_left_out_of_a_request_is_told_in_a_header(serve_fake: Serve) -> None:
    client = serve_fake().client()
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    for stream in (False, True):
        answer = client.post(PATH, {**HELLO, "tools": tools, "stream": stream})
        assert (answer.status, answer.headers["X-Lmlite-Ignored"]) == (200, "web_search_20250305")
    assert "X-Lmlite-Ignored" not in client.post(PATH, HELLO).headers


# ---- the family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("GET", "/v1/messages", {}, 405, "invalid_request_error"),
        ("DELETE", "/v1/messages/count_tokens", {}, 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", {}, 404, "not_found_error"),
        ("GET", "/v1/models/nobody", VERSION, 404, "not_found_error"),
        ("POST", "/v1/models", VERSION, 405, "invalid_request_error"),
        ("POST", "/v1/messages", {"Host": "evil.example"}, 403, "permission_error"),
        ("POST", "/v1/messages", {"Content-Type": "text/plain", "Origin": "http://localhost"}, 403, "permission_error"),
    ],
)
def test_all_errors_of_the_family_have_its_shape(
    fake_server: FakeServer, method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    answer = fake_server.client().ask(method, path, {} if method == "POST" else None, headers)
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)
    assert answer.json["request_id"].startswith("req_")


def test_others_keep_their_own_shape(fake_server: FakeServer) -> None:
    client = fake_server.client()
    assert client.get("/v1/models/nobody").json["error"]["code"] == "model_not_found"
    assert client.get("/v1/messagesque").json == {"error": "Unexpected endpoint or method. (GET /v1/messagesque)"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO["messages"]}),
        ("/v1/messages", {"messages": HELLO["messages"]}),
        ("/v1/embeddings", {"input": "a"}),
        ("/api/v0/chat/completions", {"messages": HELLO["messages"]}),
        ("/api/v1/models/load", {}),
    ],
)
def test_every_family_tells_who_asks_for_an_unknown_model_of_aliases(
    fake_server: FakeServer, path: str, body: dict[str, Any]
) -> None:
    answer = fake_server.client().post(path, {**body, "model": "claude-x"})
    assert answer.status == 404
    assert "--alias NAME=MODEL" in answer.json["error"]["message"] and "'claude-*=MODEL'" in answer.json["error"]["message"]


def test_clients_of_anthropics_are_told_of_the_models_that_can_answer_them(serve_fake: Serve) -> None:
    server = serve_fake(alias=["claude-*=talker", "gpt-4o=talker"], context_length=1024)
    client = server.client()
    listed = client.get("/v1/models", **VERSION).json
    sizes = [(entry["id"], entry["max_input_tokens"]) for entry in listed["data"]]
    assert sizes == [("talker", 1024), ("gpt-4o", 1024)] and listed["first_id"] == "talker"
    assert client.get("/v1/models/claude-x", **VERSION).json["id"] == "talker"
    load = {"model": "talker", "context_length": 512, "identifier": "mine"}
    assert client.post("/api/v1/models/load", load).status == 200
    assert client.get("/v1/models/mine", **VERSION).json["max_input_tokens"] == 512
    plain = [entry["id"] for entry in client.get("/v1/models").json["data"]]
    assert plain == ["talker", "gpt-4o", "text-embedding-embedder", "text-embedding-judge", "mine"]


def test_a_name_of_a_form_is_for_what_nothing_else_goes_by(
    serve_fake: Serve, model_folder: Path, tmp_path: Path
) -> None:
    for name in ("claude-bird", "owl"):
        path = tmp_path / "more" / "acme" / name / f"{name}-Q4_K_M.gguf"
        path.parent.mkdir(parents=True)
        path.write_bytes(gguf(llama()))
    server = serve_fake(alias=["*=talker", "claude-*=owl"], models_dir=[tmp_path / "more", model_folder], auto_evict=False)
    client = server.client()

    def answers(name: str) -> str:
        return str(client.post(PATH, {**HELLO, "model": name}).json["model"])

    assert [answers(name) for name in ("claude-x", "claude-bird", "any", "owl")] == ["owl", "claude-bird", "talker", "owl"]
    for identifier in ({}, {"identifier": "claude-mine"}):  # a name of an instance's own, made up or chosen
        loaded = client.post("/api/v1/models/load", {"model": "claude-bird", **identifier})
        assert loaded.status == 200
        assert answers(loaded.json["instance_id"]) == loaded.json["instance_id"]


# ---- what Claude Code sends ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundled model, by the names that Claude Code asks for."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with Server(port=0, home=home, alias=["claude-*=lmlite-tiny"]) as server:
            yield server


def test_requests_of_real_size_are_answered_and_only_what_is_new_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = Llama(n_ctx=32768, n_embd=32, n_head=1, n_ff=32).write(tmp_path / "random.gguf")
    with Server(port=0, home=tmp_path, models=[path], context_length=0, alias=["claude-*=random"]) as server:
        client = Client(server.port)
        messages = [claude_code.question("Why does the test of the parser fail?")]
        counted = client.ask("POST", claude_code.COUNT_PATH, claude_code.count(messages), claude_code.HEADERS)
        assert counted.status == 200 and counted.json["input_tokens"] > 10_000
        computed = 0
        for request in range(3):
            body = claude_code.body(request, messages, max_tokens=16)
            assert len(body["tools"]) == 25
            events = told(client.ask("POST", claude_code.PATH, body, claude_code.HEADERS))
            assert events[-1]["type"] == "message_stop"
            total, cached = prompt_of(events)
            assert total > 20_000 and cached >= computed
            computed = total - 1
            messages += [message_of(events), claude_code.question("Go on.")]
        client.close()


def test_what_is_asked_in_the_background_is_answered(small_agent: Server) -> None:
    client = Client(small_agent.port)
    for body in (claude_code.quota(), claude_code.title()):
        answer = client.ask("POST", claude_code.PATH, body, claude_code.HEADERS)
        assert answer.status == 200, answer.body
    assert "".join(block["text"] for block in message_of(told(answer))["content"]).startswith("{")
    client.close()


def test_a_small_agent_reads_a_file(small_agent: Server) -> None:
    client = Client(small_agent.port)
    messages = [claude_code.question("Read the file a.txt")]
    body = {**claude_code.body(1, messages, small=True, max_tokens=60), "tool_choice": {"type": "any"}}
    message = message_of(told(client.ask("POST", claude_code.PATH, body, claude_code.HEADERS)))
    assert [block["type"] for block in message["content"]][-1] == "tool_use"
    messages += [message, claude_code.results(message, "It says hello.")]
    body = claude_code.body(2, messages, small=True, max_tokens=60)
    events = told(client.ask("POST", claude_code.PATH, body, claude_code.HEADERS))
    total, cached = prompt_of(events)
    assert events[-1]["type"] == "message_stop" and total // 2 < cached < total
    client.close()


# ---- long conversations ----------------------------------------------------------------------------------------------

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CITIES = ("Turin", "Paris", "Oslo", "Rome", "Lima", "Cairo", "Delhi", "Tokyo", "Quito", "Berlin")


def tokens_of(client: Client, text: str) -> list[int]:
    asked = {"model": "lmlite-tiny", "content": text, "add_special": True, "parse_special": True}
    found: list[int] = client.post("/v1/tokenize", asked).json["tokens"]
    return found


def common(left: list[int], right: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))


@pytest.mark.parametrize("thinking", [{}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}], ids=["", "thinking"])
def test_twenty_turns_compute_only_what_is_new(small_agent: Server, thinking: dict[str, Any]) -> None:
    """Whatever was computed before, prompts and answers, the longest beginning that a prompt has in common with one of
    them is in the cache."""
    client, listener = Client(small_agent.port), Client(small_agent.port)
    ear = Ear(listener, "?filter=input,output")
    messages: list[dict[str, Any]] = []
    before: list[list[int]] = []
    n_calls = 0
    for turn in range(20):
        if not messages or messages[-1]["content"][-1]["type"] == "text":
            city = CITIES[turn // 2 % len(CITIES)]
            messages.append({"role": "user", "content": [{"type": "text", "text": f"What is the weather in {city}?"}]})
        body = {
            "model": "claude-sonnet-x",
            "max_tokens": 60,
            "temperature": 0,
            "system": [claude_code.billing(turn), {"type": "text", "text": "You are an agent."}],
            "messages": messages,
            "tools": [WEATHER],
            "stream": True,
            **thinking,
        }
        events = told(client.ask("POST", claude_code.PATH, body, claude_code.HEADERS))
        given, said = ear.next(), ear.next()
        assert given is not None and said is not None
        prompt = tokens_of(client, given["input"])
        total, cached = prompt_of(events)
        assert total == len(prompt)
        assert cached >= max((common(prompt, earlier) for earlier in before), default=0) - 1
        before.append(tokens_of(client, given["input"] + ("" if "reasoning" in said else said["output"])))
        message = message_of(events)
        messages.append(message)
        if message["content"][-1]["type"] == "tool_use":
            n_calls += 1
            messages.append(claude_code.results(message, "sunny"))
            del messages[-1]["content"][-1]
    assert n_calls >= 5
    ear.response.close()
    for connection in (client, listener):
        connection.close()
