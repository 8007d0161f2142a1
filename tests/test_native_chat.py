"""LM Studio's native chat on whole servers: named events, turns that are kept and branch, and all that can go wrong."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.frames import Kind
from lmlite.server import Server
from lmlite.store.home import Home
from lmlite.wire import sse
from tests.conftest import TIMEOUT_S, Answer, Client, FakeServer
from tests.core.gguf_files import gguf, llama
from tests.fakes import Gate, Script, error

Serve = Callable[..., FakeServer]
CHAT = "/api/v1/chat"
HELLO: dict[str, Any] = {"model": "talker", "input": "hi"}
TEXT = "The quick brown fox jumps over the lazy dog. "
SWITCHED = "{% if enable_thinking %}hm{% endif %}{{ messages[0].content }}"
"""A template whose reasoning is on or off."""


def names(answer: Answer) -> list[str | None]:
    """Of a stream's events, each once where it comes several times in a row."""
    told = [name for name, _ in answer.events]
    return [name for i, name in enumerate(told) if i == 0 or told[i - 1] != name]


def said(answer: Answer, name: str) -> list[dict[str, Any]]:
    """The payloads of the events of that name."""
    found = [json.loads(payload) for event, payload in answer.events if event == name]
    assert all(payload["type"] == name for payload in found)
    return found


def generations(server: FakeServer) -> list[dict[str, Any]]:
    return [command for engine in server.engines for kind, _, command in engine.commands if kind == Kind.GENERATE]


def contents(server: FakeServer) -> list[tuple[str, Any]]:
    """The conversation that the last answer was made of."""
    return [(message["role"], message["content"]) for message in generations(server)[-1]["messages"]]


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("burst", [False, True])
def test_a_stream_tells_load_prompt_and_parts_and_ends_with_the_whole(serve_fake: Serve, burst: bool) -> None:
    client = serve_fake(Script(reasoning=("I ", "see. "), burst=burst)).client()
    first = client.post(CHAT, {**HELLO, "stream": True})
    assert first.headers["Content-Type"] == "text/event-stream"
    loading = ["chat.start", "model_load.start", "model_load.progress", "model_load.end"]
    answering = [
        "prompt_processing.start", "prompt_processing.progress", "prompt_processing.end",
        "reasoning.start", "reasoning.delta", "reasoning.end", "message.start", "message.delta", "message.end", "chat.end",
    ]  # fmt: skip
    assert names(first) == loading + answering
    assert said(first, "chat.start") == [{"type": "chat.start", "model_instance_id": "talker"}]
    assert [progress["progress"] for progress in said(first, "model_load.progress")] == [0.5]
    assert [progress["progress"] for progress in said(first, "prompt_processing.progress")] == [0.0, 1.0]
    second = client.post(CHAT, {**HELLO, "stream": True})
    assert names(second) == ["chat.start", *answering]
    whole = client.post(CHAT, HELLO).json
    results = [said(answer, "chat.end")[0]["result"] for answer in (first, second)]
    assert results[0]["stats"].pop("model_load_time_seconds") == said(first, "model_load.end")[0]["load_time_seconds"]
    ids = {result.pop("response_id") for result in (whole, *results)}
    assert len(ids) == 3 and all(id.startswith("resp_") and len(id) == 53 for id in ids)
    assert results == [whole, whole]
    assert whole["output"] == [{"type": "reasoning", "content": "I see. "}, {"type": "message", "content": TEXT}]
    for part, kind in zip(whole["output"], ("reasoning", "message")):
        assert "".join(delta["content"] for delta in said(first, f"{kind}.delta")) == part["content"]
    assert whole["stats"] | {"input_tokens": 0} == {
        "input_tokens": 0,
        "total_output_tokens": 11,
        "reasoning_output_tokens": 2,
        "tokens_per_second": 1100.0,
        "time_to_first_token_seconds": 0.002,
    }


def test_a_load_is_told_in_a_whole_answer_of_the_request_that_waited_for_it(serve_fake: Serve) -> None:
    client = serve_fake().client()
    told = ["model_load_time_seconds" in client.post(CHAT, HELLO).json["stats"] for _ in range(2)]
    assert told == [True, False]


def test_an_answer_without_a_token_is_an_empty_message(serve_fake: Serve) -> None:
    client = serve_fake().client()
    body = {**HELLO, "max_output_tokens": 0}
    assert client.post(CHAT, body).json["output"] == [{"type": "message", "content": ""}]
    streamed = client.post(CHAT, {**body, "stream": True})
    assert names(streamed)[-3:] == ["message.start", "message.end", "chat.end"]
    assert said(streamed, "chat.end")[0]["result"]["output"] == [{"type": "message", "content": ""}]


def test_what_is_asked_reaches_the_engine(serve_fake: Serve) -> None:
    server = serve_fake()
    sampling = {"temperature": 0.5, "top_p": 0.6, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.2}
    parts = [{"type": "text", "content": "one"}, {"type": "message", "content": "two"}]
    body = {**HELLO, **sampling, "input": parts, "system_prompt": "Be brief.", "max_output_tokens": 2}
    assert server.client().post(CHAT, {**body, "context_length": 777}).json["output"][0]["content"] == "The quick "
    (command,) = generations(server)
    assert sampling.items() <= command["sampling"].items() and command["max_tokens"] == 2
    assert contents(server)[0] == ("system", "Be brief.")
    assert contents(server)[1] == ("user", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])
    load = next(command for kind, _, command in server.engine.commands if kind == Kind.LOAD)
    assert load["context_length"] == 777


def test_a_context_length_is_for_the_request_that_loads(serve_fake: Serve) -> None:
    server = serve_fake()
    client = server.client()
    for length in (777, 1000):
        assert client.post(CHAT, {**HELLO, "context_length": length}).status == 200
    (model,) = (entry for entry in client.get("/api/v1/models").json["models"] if entry["key"] == "talker")
    assert [instance["config"]["context_length"] for instance in model["loaded_instances"]] == [777]


@pytest.mark.parametrize(
    ("effort", "variables"),
    [("off", {"enable_thinking": False}), ("on", {"enable_thinking": True}), ("high", None)],
)
def test_reasoning_is_told_to_a_model_that_has_it(serve_fake: Serve, tmp_path: Path, effort: str, variables: Any) -> None:
    path = tmp_path / "acme/Thinker/Thinker.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(gguf(llama(tokenizer__chat_template=SWITCHED)))
    server = serve_fake(models_dir=[tmp_path])
    answer = server.client().post(CHAT, {"model": "thinker", "input": "hi", "reasoning": effort, "stream": True})
    if variables is not None:
        assert answer.status == 200
        assert generations(server)[-1]["template_kwargs"] == variables
        return
    assert (answer.status, answer.json["error"]["param"]) == (400, "reasoning")
    assert "'off' or 'on'" in answer.json["error"]["message"]
    assert server.engines == [], "it was not loaded for that"


def test_reasoning_of_a_model_that_has_none_is_refused_even_where_it_is_loaded(serve_fake: Serve) -> None:
    client = serve_fake().client()
    assert client.post(CHAT, HELLO).status == 200
    answer = client.post(CHAT, {**HELLO, "reasoning": "low"})
    assert (answer.status, answer.json["error"]["code"], answer.json["error"]["param"]) == (400, "invalid_value", "reasoning")


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": "hi"}, 400, "missing_required_parameter", "model"),
        ({"model": "talker"}, 400, "missing_required_parameter", "input"),
        ({**HELLO, "ttl": 5}, 400, "unrecognized_keys", "ttl"),
        ({**HELLO, "tools": []}, 400, "unrecognized_keys", "tools"),
        ({**HELLO, "model": 5}, 400, "invalid_type", "model"),
        ({**HELLO, "input": 5}, 400, "invalid_type", "input"),
        ({**HELLO, "input": []}, 400, "invalid_value", "input"),
        ({**HELLO, "input": ["hi"]}, 400, "invalid_type", "input[0]"),
        ({**HELLO, "input": [{"type": "text"}]}, 400, "missing_required_parameter", "input[0].content"),
        ({**HELLO, "input": [{"type": "text", "content": "a", "role": "user"}]}, 400, "unrecognized_keys", "role"),
        ({**HELLO, "input": [{"type": "sound", "content": "a"}]}, 400, "invalid_value", "input[0].type"),
        ({**HELLO, "input": [{"type": "image", "data_url": "data:,"}]}, 400, "invalid_value", "input[0].data_url"),
        ({**HELLO, "system_prompt": ["a"]}, 400, "invalid_type", "system_prompt"),
        ({**HELLO, "integrations": ["mcp/web"]}, 403, "permission_denied", None),
        ({**HELLO, "integrations": "mcp/web"}, 400, "invalid_type", "integrations"),
        ({**HELLO, "stream": "true"}, 400, "invalid_type", "stream"),
        ({**HELLO, "store": 1}, 400, "invalid_type", "store"),
        ({**HELLO, "temperature": "0.5"}, 400, "invalid_type", "temperature"),
        ({**HELLO, "temperature": 1.5}, 400, "invalid_value", "temperature"),
        ({**HELLO, "top_k": 1.5}, 400, "invalid_type", "top_k"),
        ({**HELLO, "max_output_tokens": True}, 400, "invalid_type", "max_output_tokens"),
        ({**HELLO, "context_length": 0}, 400, "invalid_value", "context_length"),
        ({**HELLO, "reasoning": "minimal"}, 400, "invalid_value", "reasoning"),
        ({**HELLO, "reasoning": {"effort": "low"}}, 400, "invalid_type", "reasoning"),
        ({**HELLO, "previous_response_id": 5}, 400, "invalid_type", "previous_response_id"),
        ({**HELLO, "previous_response_id": "resp_0"}, 400, "previous_response_not_found", "previous_response_id"),
        ({**HELLO, "model": "nobody"}, 404, "model_not_found", "model"),
        ({**HELLO, "model": "embedder"}, 400, "model_type_mismatch", "model"),
        (b'{"model"', 400, "invalid_json", None),
    ],
)
def test_refusals_are_in_the_shape_of_the_family(
    fake_server: FakeServer, body: Any, status: int, code: str, param: str | None
) -> None:
    bodies = [body] if isinstance(body, bytes) or "stream" in body else [body, {**body, "stream": True}]
    for asked in bodies:
        answer = fake_server.client().ask("POST", CHAT, asked, {"Content-Type": "application/json"})
        told = answer.json["error"]
        assert (answer.status, told["type"], told["code"], told.get("param")) == (status, "invalid_request", code, param)
        assert set(told) <= {"type", "message", "code", "param"} and told["message"]


def test_what_says_nothing_is_taken(fake_server: FakeServer) -> None:
    nothing = dict.fromkeys(("system_prompt", "temperature", "reasoning", "previous_response_id", "stream", "store"))
    answer = fake_server.client().post(CHAT, {**HELLO, **nothing, "integrations": [], "top_k": -1, "max_output_tokens": 9.0})
    assert answer.status == 200 and answer.json["response_id"]


def test_what_does_not_fit_the_context_is_a_400_even_for_a_stream(serve_fake: Serve) -> None:
    server = serve_fake()
    client = server.client()
    assert client.post(CHAT, HELLO).status == 200  # what loads the model has begun to be answered by then
    server.script.generate_error = error("context_overflow", needed=9000, limit=4096)
    for stream in (False, True):
        answer = client.post(CHAT, {**HELLO, "stream": stream})
        told = answer.json["error"]
        assert (answer.status, told["type"], told["code"]) == (400, "invalid_request", "context_length_exceeded")
        assert "prompt is too long" in told["message"] and "9000 tokens" in told["message"]


# ---- failures in mid-stream ------------------------------------------------------------------------------------------


def test_a_load_that_fails_ends_a_stream_that_told_of_it(serve_fake: Serve) -> None:
    client = serve_fake(Script(load_error=error("load_failed"))).client()
    answer = client.post(CHAT, {**HELLO, "stream": True})
    assert (answer.status, names(answer)) == (200, ["chat.start", "model_load.start", "error", "chat.end"])
    (told,) = said(answer, "error")
    assert (told["error"]["type"], told["error"]["code"]) == ("invalid_request", "model_load_failed")
    (end,) = said(answer, "chat.end")
    assert (end["result"]["model_instance_id"], end["result"]["output"]) == ("talker", [])
    assert end["result"]["stats"]["total_output_tokens"] == 0 and "response_id" not in end["result"]
    assert client.post(CHAT, HELLO).status == 422


def test_an_engine_that_dies_leaves_what_it_said_in_the_end_of_the_chat(serve_fake: Serve) -> None:
    client = serve_fake(Script(die_after=2)).client()
    answer = client.post(CHAT, {**HELLO, "stream": True})
    assert names(answer)[-4:] == ["message.start", "message.delta", "error", "chat.end"]
    assert said(answer, "error")[0]["error"]["code"] == "engine_gone"
    result = said(answer, "chat.end")[0]["result"]
    assert result["output"] == [{"type": "message", "content": "The quick "}] and "response_id" not in result
    assert result["stats"]["input_tokens"] == len("<user>hi")


def test_a_stream_that_waits_for_long_has_its_start_once(serve_fake: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SILENCE_S", 0.05)
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate))
    assert server.client().post("/v1/tokenize", {"model": "talker", "content": "a"}).status == 200  # loads it
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as sock:
        received = send(sock, {**HELLO, "stream": True})
        while received.count(b": keep-alive") < 2:
            received += sock.recv(65536)
        gate.open()
        while b"event: chat.end" not in received:
            received += sock.recv(65536)
        events = [line for line in received.split(b"\n") if line.startswith(b"event: ")]
        assert events[0] == b"event: chat.start" and events.count(b"event: chat.start") == 1


def send(sock: socket.socket, body: dict[str, Any]) -> bytes:
    raw = json.dumps(body).encode()
    sock.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return b""


def test_a_client_that_leaves_frees_its_place_and_its_turn_is_cancelled(serve_fake: Serve) -> None:
    server = serve_fake(Script(silent_after=1))
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as sock:
        received = send(sock, {**HELLO, "stream": True})
        while b"message.delta" not in received:
            received += sock.recv(65536)
    server.script.silent_after = None
    client = server.client()
    while not any(kind == Kind.CANCEL for kind, _, _ in server.engine.commands):
        client.get("/health")
    assert client.post(CHAT, {**HELLO, "store": False}).status == 200
    server.close()
    assert [status for _, status in kept(server)] == ["cancelled"]


def kept(server: FakeServer) -> list[tuple[str, str]]:
    """Ids and states of what a server that is closed has in its history."""
    with contextlib.closing(sqlite3.connect(Home(server.config.home).state)) as connection:
        return list(connection.execute("SELECT id, status FROM exchanges ORDER BY created"))


# ---- turns that are kept ---------------------------------------------------------------------------------------------


def test_any_turn_is_gone_on_from_any_number_of_times(serve_fake: Serve) -> None:
    server = serve_fake()
    client = server.client()

    def ask(text: str, previous: str | None = None, **more: Any) -> str:
        answer = client.post(CHAT, {**HELLO, "input": text, "previous_response_id": previous, **more})
        assert answer.status == 200
        return str(answer.json["response_id"])

    root = ask("one", system_prompt="Be brief.")
    left, right = ask("two", root), ask("zwei", root, stream=False)
    assert len({root, left, right}) == 3
    start = [("system", "Be brief."), ("user", "one"), ("assistant", TEXT)]
    assert contents(server) == [*start, ("user", "zwei")]
    ask("three", left)
    assert contents(server) == [*start, ("user", "two"), ("assistant", TEXT), ("user", "three")]
    streamed = client.post(CHAT, {**HELLO, "input": "drei", "previous_response_id": right, "stream": True})
    assert contents(server) == [*start, ("user", "zwei"), ("assistant", TEXT), ("user", "drei")]
    ask("vier", said(streamed, "chat.end")[0]["result"]["response_id"], system_prompt="Be long.")
    assert contents(server)[0] == ("system", "Be long.")
    assert [role for role, _ in contents(server)].count("system") == 1 and len(contents(server)) == 8


def test_a_turn_is_gone_on_from_after_an_unload_and_after_a_restart(serve_fake: Serve) -> None:
    first = serve_fake()
    client = first.client()
    id = client.post(CHAT, {**HELLO, "input": "one"}).json["response_id"]
    assert client.post("/api/v1/models/unload", {"instance_id": "talker"}).status == 200
    id = client.post(CHAT, {**HELLO, "input": "two", "previous_response_id": id}).json["response_id"]
    first.close()
    second = serve_fake()
    assert second.client().post(CHAT, {**HELLO, "input": "three", "previous_response_id": id}).status == 200
    assert [text for role, text in contents(second) if role == "user"] == ["one", "two", "three"]


def test_a_turn_that_is_not_stored_has_no_id_but_may_go_on_from_one(serve_fake: Serve) -> None:
    server = serve_fake()
    client = server.client()
    id = client.post(CHAT, HELLO).json["response_id"]
    for stream in (False, True):
        answer = client.post(CHAT, {**HELLO, "store": False, "previous_response_id": id, "stream": stream})
        result = said(answer, "chat.end")[0]["result"] if stream else answer.json
        assert "response_id" not in result and len(contents(server)) == 3
    server.close()
    assert kept(server) == [(id, "completed")]


def test_a_server_that_keeps_nothing_tells_no_id(serve_fake: Serve) -> None:
    answer = serve_fake(history_size=0).client().post(CHAT, HELLO)
    assert answer.status == 200 and "response_id" not in answer.json


# ---- the real engine -------------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {"model": "lmlite-tiny", "temperature": 0}


def test_the_bundled_model_goes_on_from_a_chat_and_computes_only_what_is_new(tiny: Client) -> None:
    first = tiny.post(CHAT, {**TINY, "input": "My name is Ada."})
    assert first.status == 200 and first.json["output"][-1]["type"] == "message"
    previous = {"previous_response_id": first.json["response_id"]}
    streamed = tiny.post(CHAT, {**TINY, **previous, "input": "What is my name?", "stream": True})
    whole = tiny.post(CHAT, {**TINY, **previous, "input": "What is my name?"}).json
    result = said(streamed, "chat.end")[0]["result"]
    assert result["output"] == whole["output"]
    first_progress, *_, last_progress = said(streamed, "prompt_processing.progress")
    assert first_progress["progress"] > 0 and last_progress["progress"] == 1  # what was computed before is there
    answered = {"role": "assistant", "content": first.json["output"][-1]["content"]}
    asked = [{"role": "user", "content": "My name is Ada."}, answered, {"role": "user", "content": "What is my name?"}]
    other = tiny.post("/v1/chat/completions", {**TINY, "messages": asked}).json
    assert other["choices"][0]["message"]["content"] == whole["output"][-1]["content"]
    assert other["usage"]["prompt_tokens"] == whole["stats"]["input_tokens"]


def test_the_bundled_model_refuses_what_does_not_fit_before_the_stream_begins(tiny: Client) -> None:
    assert tiny.post(CHAT, {**TINY, "input": "Hello!", "store": False}).status == 200
    answer = tiny.post(CHAT, {**TINY, "input": "word " * 40_000, "stream": True})
    assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")


def test_a_load_is_told_of_as_it_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Server(port=0, home=tmp_path) as server:
        client = Client(server.port)
        answer = client.post(CHAT, {**TINY, "input": "Hello!", "stream": True, "context_length": 512})
        told = [name for name in names(answer) if name != "model_load.progress"]  # it may be too fast for that
        assert told[:4] == ["chat.start", "model_load.start", "model_load.end", "prompt_processing.start"]
        seconds = said(answer, "model_load.end")[0]["load_time_seconds"]
        assert said(answer, "chat.end")[0]["result"]["stats"]["model_load_time_seconds"] == seconds > 0
        model, _ = client.get("/api/v1/models").json["models"]
        assert model["loaded_instances"][0]["config"]["context_length"] == 512
        client.close()
