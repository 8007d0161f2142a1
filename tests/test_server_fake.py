"""A whole server in front of a fake engine: endpoints, keep-alive, disconnects, several servers, a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import itertools
import json
import logging
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lmlite.app.routes import ROUTES
from lmlite.core.engine.frames import Kind
from lmlite.errors import ConfigError
from lmlite.server import Server
from lmlite.wire import sse
from lmlite.wire.listening import OPENED_PER_TURN
from tests.conftest import TIMEOUT_S, Answer, Client, FakeServer
from tests.core.gguf_files import gguf, llama
from tests.fakes import Gate, Script, error

Serve = Callable[..., FakeServer]
HELLO: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
TEXT = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture
def client(fake_server: FakeServer) -> Iterator[Client]:
    client = fake_server.client()
    yield client
    client.close()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


class Heard:
    """A script's `hold` that tells when the engine was sent a command, and blocks only where `gate` does."""

    def __init__(self, gate: Gate | None = None) -> None:
        self._events = {kind: threading.Event() for kind in Kind}
        self._gate = gate

    def __call__(self, kind: Kind) -> None:
        self._events[kind].set()
        if self._gate is not None:
            self._gate(kind)

    def wait(self, kind: Kind) -> bool:
        return self._events[kind].wait(TIMEOUT_S)


# ---- endpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v0/chat/completions"])
def test_chat_whole_and_streamed_say_the_same(client: Client, path: str) -> None:
    whole = client.post(path, HELLO)
    assert whole.status == 200
    assert whole.json["choices"][0]["message"]["content"] == TEXT
    streamed = client.post(path, {**HELLO, "stream": True})
    assert streamed.headers["Content-Type"] == "text/event-stream"
    assert chat_text(streamed) == TEXT
    assert streamed.events[-1] == (None, "[DONE]")


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v0/chat/completions"])
@pytest.mark.parametrize("burst", [False, True])
def test_reasoning_and_tool_calls_reach_the_client_whole_and_streamed(serve_fake: Serve, path: str, burst: bool) -> None:
    server = serve_fake(Script(reasoning=("I ", "see. "), calls=(("look", ('{"at":', '"it"}')),), burst=burst))
    body = {**HELLO, "tools": TOOLS}
    choice = server.client().post(path, body).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "look", "arguments": '{"at":"it"}'})
    streamed = server.client().post(path, {**body, "stream": True})
    deltas = [json.loads(payload)["choices"][0]["delta"] for _, payload in streamed.events[:-1]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I see. "
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
    assert "".join(piece["function"]["arguments"] for piece in pieces) == '{"at":"it"}'
    assert pieces[0]["function"]["name"] == "look" and deltas[-1] == {}
    assert all("content" not in delta for delta in deltas)


def test_tool_round_trip_reaches_the_engine_as_it_was(serve_fake: Serve) -> None:
    server = serve_fake(Script(calls=(("look", ("{}",)),)))
    client = server.client()
    message = client.post("/v1/chat/completions", {**HELLO, "tools": TOOLS}).json["choices"][0]["message"]
    answered = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "a fox"}
    body = {**HELLO, "messages": [*HELLO["messages"], message, answered], "tools": TOOLS, "tool_choice": "none"}
    final = client.post("/v1/chat/completions", body).json["choices"][0]
    assert final["message"] == {"role": "assistant", "content": TEXT}
    command = next(command for kind, _, command in reversed(server.engine.commands) if kind == Kind.GENERATE)
    assert command["tools"] == TOOLS and command["tool_choice"] == "none"
    assert command["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": message["tool_calls"]},
        {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "name": "look", "content": "a fox"},
    ]


def test_the_usage_of_a_stream_goes_with_why_it_ended_for_who_asks(client: Client) -> None:
    asked = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    for options, stats in (({"include_stats": True}, {"stop_reason": "eosFound"}), ({}, None)):
        answer = client.post("/v1/chat/completions", {**asked, "stream_options": {"include_usage": True, **options}})
        *_, last, done = answer.events
        assert (json.loads(last[1])["choices"], json.loads(last[1]).get("stats"), done[1]) == ([], stats, "[DONE]")


def test_counts_of_guessed_tokens_are_told_to_who_asked(client: Client) -> None:
    counts = {"total": 6, "accepted": 3, "rejected": 2, "ignored": 1}
    told = {f"{name}_draft_tokens_count": count for name, count in counts.items()}
    body = {"model": "talker", "prompt": "x", "speculative": {"max": 4}}
    assert client.post("/v1/completions", body).json["stats"] == told
    assert told.items() <= client.post("/api/v0/completions", body).json["stats"].items()
    assert not told.keys() & client.post("/api/v0/completions", {**body, "speculative": False}).json["stats"].keys()


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v0/completions"])
def test_text_completion(client: Client, path: str) -> None:
    answer = client.post(path, {"model": "talker", "prompt": "once", "max_tokens": 2})
    assert answer.status == 200
    assert answer.json["choices"][0] == {"index": 0, "text": "The quick ", "logprobs": None, "finish_reason": "length"}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/v0/embeddings"])
def test_embeddings_in_order(client: Client, path: str) -> None:
    both = client.post(path, {"model": "embedder", "input": ["a", "b"]}).json["data"]
    alone = client.post(path, {"model": "embedder", "input": "b"}).json["data"]
    assert [entry["index"] for entry in both] == [0, 1]
    assert both[1]["embedding"] == alone[0]["embedding"] != both[0]["embedding"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_rerank_gives_the_best_documents_first(client: Client, path: str) -> None:
    documents = ["nothing", {"text": "the quick fox"}, "the fox"]
    body = {"model": "judge", "query": "quick fox", "documents": documents, "top_n": 2, "return_documents": True}
    answer = client.post(path, body)
    assert answer.status == 200
    assert answer.json["results"] == [
        {"index": 1, "relevance_score": 2.0, "document": {"text": "the quick fox"}},
        {"index": 2, "relevance_score": 1.0, "document": {"text": "the fox"}},
    ]


@pytest.mark.parametrize(
    ("path", "model", "more"),
    [
        ("/v1/rerank", "embedder", {"query": "a", "documents": ["b"]}),
        ("/v1/rerank", "talker", {"query": "a", "documents": ["b"]}),
        ("/v1/embeddings", "judge", {"input": "a"}),
        ("/v1/completions", "judge", {"prompt": "a"}),
    ],
)
def test_a_model_is_asked_only_for_what_it_can_do(client: Client, path: str, model: str, more: dict[str, Any]) -> None:
    answer = client.post(path, {"model": model, **more})
    assert (answer.status, answer.json["error"]["code"]) == (400, "model_type_mismatch")


def test_a_reranker_is_an_embedding_model_to_those_who_know_no_other_word(client: Client) -> None:
    assert client.get("/api/v0/models/judge").json["type"] == "embeddings"
    assert client.post("/v1/tokenize", {"model": "judge", "content": "a"}).json == {"tokens": [97]}


def test_models_are_listed_and_shown_by_every_family(client: Client) -> None:
    ids = ["talker", "text-embedding-embedder", "text-embedding-judge"]
    assert [entry["id"] for entry in client.get("/v1/models").json["data"]] == ids
    assert [entry["id"] for entry in client.get("/api/v0/models").json["data"]] == ids
    assert [entry["key"] for entry in client.get("/api/v1/models").json["models"]] == ids
    assert client.get("/v1/models/talker").json["id"] == "talker"
    assert client.get("/api/v0/models/acme/talker").json["id"] == "talker"
    assert client.get("/api/v0/models/acme%2Ftalker").json["id"] == "talker"


def test_a_model_is_loaded_once_it_was_asked(client: Client) -> None:
    assert client.get("/api/v0/models/talker").json["state"] == "not-loaded"
    client.post("/v1/chat/completions", HELLO)
    assert client.get("/api/v0/models/talker").json["state"] == "loaded"
    assert len(client.get("/api/v1/models").json["models"][0]["loaded_instances"]) == 1


def test_v0_tells_of_capabilities_and_the_loaded_context_unless_told_not_to(serve_fake: Serve) -> None:
    extras = {"loaded_context_length", "capabilities"}
    client = serve_fake().client()
    assert client.get("/api/v0/models/talker").json.keys() & extras == {"capabilities"}
    client.post("/v1/chat/completions", HELLO)
    entry = client.get("/api/v0/models/talker").json
    assert (entry["loaded_context_length"], entry["capabilities"]) == (4096, [])
    listed = {entry["id"]: entry for entry in client.get("/api/v0/models").json["data"]}
    assert listed["talker"] == entry
    seed = serve_fake(v0_extras=False).client()
    seed.post("/v1/chat/completions", HELLO)
    assert not seed.get("/api/v0/models/talker").json.keys() & extras


def test_tokenize_and_detokenize_are_inverse(client: Client) -> None:
    tokens = client.post("/v1/tokenize", {"model": "talker", "content": "hé"}).json["tokens"]
    assert tokens == list("hé".encode())
    assert client.post("/v1/detokenize", {"model": "talker", "tokens": tokens}).json == {"content": "hé"}


def test_tokenize_works_for_embedding_models_too(client: Client) -> None:
    assert client.post("/v1/tokenize", {"model": "embedder", "content": "a"}).json == {"tokens": [97]}


def test_health_and_greeting(client: Client) -> None:
    assert client.get("/health").json == {"status": "ok"}
    assert client.get("/lmstudio-greeting").json == {"lmstudio": True}


def test_the_front_door_says_which_apis_there_are(client: Client) -> None:
    answer = client.get("/")
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain")
    text = answer.body.decode()
    for route in ROUTES:
        assert f"{route.method:<6} {route.pattern}\n" in text
    assert text.index("OpenAI's API") < text.index("/v1/chat/completions") < text.index("REST API v0")


def test_request_without_a_model_takes_the_only_one(client: Client) -> None:
    assert client.post("/v1/chat/completions", {"messages": HELLO["messages"]}).json["model"] == "talker"


def test_alias_names_a_model(serve_fake: Serve) -> None:
    client = serve_fake(alias=["gpt-4=talker"]).client()
    assert client.post("/v1/chat/completions", {**HELLO, "model": "gpt-4"}).json["model"] == "talker"


def test_aliases_are_listed_where_clients_choose_names(serve_fake: Serve) -> None:
    aliases = ["GPT-4o=talker", "gone=nothing"]
    client = serve_fake(alias=aliases).client()
    ids = ["talker", "GPT-4o", "text-embedding-embedder", "text-embedding-judge"]
    assert [entry["id"] for entry in client.get("/v1/models").json["data"]] == ids
    assert len(client.get("/api/v0/models").json["data"]) == len(client.get("/api/v1/models").json["models"]) == 3
    told = client.get("/lmlite/models").json
    assert told["models"][0]["aliases"] == ["GPT-4o"]
    assert told["notes"] == ["the alias gone stands for nothing, and there is no such model"]
    explicit = serve_fake(alias=aliases, jit=False).client()
    assert explicit.get("/v1/models").json["data"] == []
    assert explicit.post("/api/v1/models/load", {"model": "talker", "identifier": "mine"}).status == 200
    assert [entry["id"] for entry in explicit.get("/v1/models").json["data"]] == ["GPT-4o", "mine"]


def test_model_that_came_to_the_disk_is_found(serve_fake: Serve, tmp_path: Path) -> None:
    server = serve_fake(models_dir=[tmp_path / "late"])
    client = server.client()
    assert client.get("/v1/models").status == 200
    path = tmp_path / "late" / "acme" / "newcomer" / "newcomer-Q4_K_M.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(gguf(llama()))
    answer = client.post("/v1/chat/completions", {**HELLO, "model": "newcomer"})
    assert answer.status == 200, answer.body


def test_a_second_quantization_beside_a_loaded_model_leaves_it_one_entry_that_answers(
    serve_fake: Serve, tmp_path: Path
) -> None:
    folder = tmp_path / "late/acme/newcomer"
    folder.mkdir(parents=True)
    (folder / "newcomer-Q8_0.gguf").write_bytes(gguf(llama()))
    server = serve_fake(models_dir=[tmp_path / "late"])
    client = server.client()
    assert client.post("/v1/chat/completions", {**HELLO, "model": "newcomer"}).status == 200
    (folder / "newcomer-Q4_K_M.gguf").write_bytes(gguf(llama()))
    states = {entry["id"]: entry["state"] for entry in client.get("/api/v0/models").json["data"]}
    assert states == {"newcomer": "loaded", "newcomer@q4_k_m": "not-loaded"}
    assert [entry["id"] for entry in client.get("/v1/models").json["data"]] == list(states)
    assert client.post("/v1/chat/completions", {**HELLO, "model": "newcomer"}).json["model"] == "newcomer"
    assert len(server.engines) == 1


# ---- several runs in one request -------------------------------------------------------------------------------------


@pytest.mark.parametrize("burst", [False, True])
def test_choices_are_merged_by_index(serve_fake: Serve, burst: bool) -> None:
    client = serve_fake(Script(burst=burst)).client()
    streamed = client.post("/v1/chat/completions", {**HELLO, "n": 5, "stream": True})
    assert [chat_text(streamed, index) for index in range(5)] == [TEXT] * 5
    assert [name_or_data for name_or_data in streamed.events if name_or_data[1] == "[DONE]"] == [(None, "[DONE]")]
    whole = client.post("/v1/chat/completions", {**HELLO, "n": 5}).json["choices"]
    assert [choice["index"] for choice in whole] == list(range(5))
    assert {choice["message"]["content"] for choice in whole} == {TEXT}


def test_several_prompts_are_several_choices(client: Client) -> None:
    answer = client.post("/v1/completions", {"model": "talker", "prompt": ["a", "bcd"], "max_tokens": 1, "n": 2})
    assert [choice["text"] for choice in answer.json["choices"]] == ["The "] * 4
    assert answer.json["usage"]["prompt_tokens"] == 4


def test_failure_of_one_run_fails_the_request_and_frees_the_others(serve_fake: Serve) -> None:
    client = serve_fake(Script(generate_error=error("invalid_request", param="grammar"))).client()
    answer = client.post("/v1/chat/completions", {**HELLO, "n": 3, "stream": True})
    assert (answer.status, answer.json["error"]["param"]) == (400, "grammar")


# ---- errors ----------------------------------------------------------------------------------------------------------

OVERFLOW = {
    "code": "context_length_exceeded",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 9000,
    "n_ctx": 4096,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("engine_error", "status", "told"),
    [
        (error("context_overflow", needed=9000, limit=4096), 400, OVERFLOW),
        (error("invalid_request", param="grammar"), 400, {"param": "grammar"}),
        (error("queue_full", limit=8), 429, {"code": "rate_limit_exceeded"}),
        (error("out_of_memory"), 503, {"code": "out_of_memory"}),
    ],
)
def test_error_before_the_first_event_is_an_http_status_even_for_streams(
    serve_fake: Serve, engine_error: dict[str, Any], status: int, told: dict[str, Any], stream: bool
) -> None:
    client = serve_fake(Script(generate_error=engine_error)).client()
    answer = client.post("/v1/chat/completions", {**HELLO, "stream": stream})
    assert answer.status == status
    assert told.items() <= answer.json["error"].items()
    assert ("Retry-After" in answer.headers) == (status == 429)


def test_engine_that_dies_in_a_stream_is_its_last_event_and_the_next_request_loads_again(serve_fake: Serve) -> None:
    server = serve_fake(Script(die_after=3))
    client = server.client()
    answer = client.post("/v1/chat/completions", {**HELLO, "stream": True})
    assert answer.status == 200
    assert chat_text(answer) == "The quick brown "
    name, payload = answer.events[-1]
    assert name == "error"
    assert "talker" in payload
    server.script.die_after = None
    assert client.post("/v1/chat/completions", HELLO).status == 200
    assert len(server.engines) == 2


def test_engine_that_dies_in_a_whole_answer_is_a_503(serve_fake: Serve) -> None:
    answer = serve_fake(Script(die_after=3)).client().post("/v1/chat/completions", HELLO)
    assert (answer.status, answer.json["error"]["code"]) == (503, "engine_gone")


def test_request_that_ends_engines_is_refused_while_others_are_served(serve_fake: Serve) -> None:
    """Four of them within a minute would switch the model off for everyone."""
    server = serve_fake(Script(die_after=1))
    client = server.client()
    killer = {**HELLO, "messages": [{"role": "user", "content": "die"}]}
    assert [client.post("/v1/chat/completions", killer).status for _ in range(2)] == [503, 503]
    server.script.die_after = None
    answer = client.post("/v1/chat/completions", killer)
    assert (answer.status, answer.json["error"]["code"]) == (422, "request_ends_engine")
    assert "2 times" in answer.json["error"]["message"]
    assert client.post("/v1/chat/completions", HELLO).status == 200


def test_model_that_cannot_be_loaded_is_a_422_with_the_reason(serve_fake: Serve) -> None:
    client = serve_fake(Script(load_error=error("load_failed"))).client()
    answer = client.post("/v1/chat/completions", {**HELLO, "stream": True})
    assert (answer.status, answer.json["error"]["code"]) == (422, "model_load_failed")
    assert "the fake says" in answer.json["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v0/completions", "/v1/completions", "/v1/embeddings"])
def test_unknown_model_is_never_another_ones_answer(client: Client, path: str) -> None:
    answer = client.post(path, {**HELLO, "model": "nobody", "prompt": "a", "input": "a"})
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


def test_model_of_the_wrong_type_is_refused(client: Client) -> None:
    assert client.post("/v1/embeddings", {"model": "talker", "input": "a"}).status == 400
    assert client.post("/v1/chat/completions", {**HELLO, "model": "embedder"}).status == 400


def test_bug_is_answered_without_its_text_and_logged_with_its_trace(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(fake_server.service.app.models, "instances", broken)
    with caplog.at_level(logging.ERROR, "lmlite"):
        answers = [fake_server.client().get(path) for path in ("/api/v0/models", "/api/v1/models")]
    assert [answer.status for answer in answers] == [500, 500]
    assert all("secret" not in answer.body.decode() for answer in answers)
    assert "a secret" in caplog.text
    assert "Traceback" in caplog.text


# ---- hostile rows, end to end ----------------------------------------------------------------------------------------


def test_h11_foreign_host_gets_nothing(client: Client) -> None:
    answer = client.get("/v1/models", Host="evil.example")
    assert answer.status == 403
    assert "talker" not in answer.body.decode()


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_h12_web_page_of_another_origin_has_no_effect(fake_server: FakeServer, headers: dict[str, str]) -> None:
    for method, path, body in (("POST", "/v1/chat/completions", HELLO), ("GET", "/v1/models", None)):
        answer = fake_server.client().ask(method, path, body, headers)
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert fake_server.engines == []


def test_h13_form_post_of_a_browser_is_refused(client: Client) -> None:
    headers = {"Content-Type": "text/plain", "Sec-Fetch-Site": "same-origin"}
    assert client.ask("POST", "/v1/chat/completions", b"{}", headers).status == 415


@pytest.mark.parametrize(
    "path", ["/nope?x=1", "/v1/message", "/api/v0/nope", "/v1/"]
)
def test_h20_unknown_path_is_a_404_in_lm_studios_words(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status == 404
    assert answer.json == {"error": f"Unexpected endpoint or method. (GET {path})"}


def test_h20_wrong_method_is_a_405_that_lists_the_right_ones(client: Client) -> None:
    wrong = client.get("/v1/chat/completions")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json == {"error": "Unexpected endpoint or method. (GET /v1/chat/completions)"}
    assert client.post("/v1/models", {}).headers["Allow"] == "GET, HEAD"


def test_h21_head_has_the_headers_of_get_and_no_body(client: Client) -> None:
    head, get = client.ask("HEAD", "/v1/models"), client.get("/v1/models")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PUT"])
def test_h21_other_methods_are_refused_without_cors_headers(client: Client, method: str) -> None:
    answer = client.ask(method, "/v1/models")
    assert answer.status in (405, 501)
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_preflight_of_an_allowed_origin_is_answered(serve_fake: Serve) -> None:
    client = serve_fake(allow_origin=["https://app.example"]).client()
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = client.ask("OPTIONS", "/v1/chat/completions", None, asked)
    assert (preflight.status, preflight.headers["Access-Control-Allow-Origin"]) == (204, "https://app.example")
    answer = client.ask("POST", "/v1/chat/completions", HELLO, {"Origin": "https://app.example"})
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://app.example")
    assert client.get("/v1/models", Origin="https://evil.example").status == 403


# ---- connections -----------------------------------------------------------------------------------------------------


def test_connection_is_kept_through_answers_streams_and_errors(client: Client) -> None:
    client.get("/health")
    first = client.connection.sock
    client.post("/v1/chat/completions", {**HELLO, "stream": True})
    client.get("/nope")
    client.post("/v1/chat/completions", {"model": "talker"})
    client.get("/health")
    assert client.connection.sock is first


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_its_sequences(serve_fake: Serve, stream: bool) -> None:
    heard = Heard()
    server = serve_fake(Script(silent_after=1, hold=heard))
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        body = b'{"model":"talker","messages":[{"role":"user","content":"hi"}],"n":2,"stream":%b}'
        body %= b"true" if stream else b"false"
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        raw.sendall(head + body)
        if stream:
            assert raw.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert heard.wait(Kind.GENERATE)
    assert heard.wait(Kind.CANCEL)
    assert server.client().get("/health").status == 200


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """So many may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_connections_at_once_wait_for_the_loop_and_do_not_hold_it(serve_fake: Serve) -> None:
    """One that found the queue full would ask again after a second; one after the other is taken, with turns for others."""
    server, many = serve_fake(), 900
    held, go_on, turns = threading.Event(), threading.Event(), []

    def hold() -> None:
        held.set()
        go_on.wait(TIMEOUT_S)

    async def count_turns() -> None:
        while len(server.service.app._connections) < many:
            turns.append(len(server.service.app._connections))
            await asyncio.sleep(0)

    with descriptors(4096), contextlib.ExitStack() as clients:
        server.thread.loop.call_soon_threadsafe(hold)
        assert held.wait(TIMEOUT_S)
        for _ in range(many):  # the kernel answers for the server, or leaves the last ones without a word
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S))
        queued = unaccepted(server.port)
        counting = server.thread.start(count_turns())
        go_on.set()
        counting.result(TIMEOUT_S)
    if queued is not None:
        assert queued >= min(many, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    assert max(after - before for before, after in itertools.pairwise([*turns, many])) <= 2 * OPENED_PER_TURN


def unaccepted(port: int) -> int | None:
    """Connections that the kernel holds for who listens on `port`; None where Linux does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, queues, *_ = line.split()
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                return int(queues.rpartition(":")[2], 16)
    return None


def test_a_stream_that_waits_for_long_begins_and_says_that_it_lives(
    serve_fake: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "SILENCE_S", 0.05)
    gate = Gate(Kind.LOAD)
    server = serve_fake(Script(hold=gate))
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as sock:
        body = json.dumps({**HELLO, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        received = b""
        while received.count(b": keep-alive") < 2:
            received += sock.recv(65536)
        headers = received.partition(b"\r\n\r\n")[0].lower()
        assert headers.startswith(b"http/1.1 200 ")
        assert b"x-accel-buffering: no" in headers and b"cache-control: no-cache, no-transform" in headers
        gate.open()
        while b"[DONE]" not in received:
            received += sock.recv(65536)
        assert b'"content":' in received


def test_a_load_that_fails_after_a_long_silence_is_the_last_event(
    serve_fake: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "SILENCE_S", 0.05)
    gate = Gate(Kind.LOAD)
    server = serve_fake(Script(hold=gate, load_error=error("load_failed")))
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as sock:
        body = json.dumps({**HELLO, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        received = b""
        while b": keep-alive" not in received:
            received += sock.recv(65536)
        gate.open()
        while not received.endswith(b"0\r\n\r\n"):
            received += sock.recv(65536)
        assert b"event: error\ndata: " in received and b"the fake says load_failed" in received


def test_health_answers_while_a_model_loads(serve_fake: Serve, background: ThreadPoolExecutor) -> None:
    gate = Gate(Kind.LOAD)
    server = serve_fake(Script(hold=gate))
    waiting = [background.submit(server.client().post, "/v1/chat/completions", HELLO) for _ in range(5)]
    assert server.client().get("/health").status == 200
    assert server.client().get("/api/v0/models").status == 200
    gate.open()
    assert [answer.result().status for answer in waiting] == [200] * 5
    assert len(server.engines) == 1


# ---- several servers, and the end ------------------------------------------------------------------------------------


def test_two_servers_live_side_by_side(serve_fake: Serve) -> None:
    first, second = serve_fake(), serve_fake()
    assert first.port != second.port
    first.client().post("/v1/chat/completions", HELLO)
    assert (len(first.engines), len(second.engines)) == (1, 0)
    first.close()
    assert second.client().post("/v1/chat/completions", HELLO).status == 200


def test_stop_lets_running_requests_finish_and_takes_no_further_ones(
    serve_fake: Serve, background: ThreadPoolExecutor
) -> None:
    gate = Gate(Kind.GENERATE)
    heard = Heard(gate)
    server = serve_fake(Script(hold=heard), drain=TIMEOUT_S)
    idle = server.client()
    idle.get("/health")
    running = background.submit(server.client().post, "/v1/chat/completions", HELLO)
    assert heard.wait(Kind.GENERATE)
    closing = background.submit(server.close)
    assert idle.connection.sock is not None
    assert idle.connection.sock.recv(1) == b""  # closed by the server at once
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    assert not closing.done()
    gate.open()
    answer = running.result()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    closing.result()


def test_stop_tells_a_stream_that_outlasts_the_drain_time(serve_fake: Serve, background: ThreadPoolExecutor) -> None:
    server = serve_fake(Script(silent_after=2), drain=0.05)
    response = server.client().start("POST", "/v1/chat/completions", {**HELLO, "stream": True})
    assert response.status == 200
    closing = background.submit(server.close)
    answer = Answer(200, {}, response.read())
    assert chat_text(answer) == "The quick "
    name, payload = answer.events[-1]
    assert (name, "shutting" in payload) == ("error", True)
    closing.result()


def test_stop_answers_503_to_a_request_without_an_answer_yet(serve_fake: Serve, background: ThreadPoolExecutor) -> None:
    heard = Heard()
    server = serve_fake(Script(silent_after=0, hold=heard), drain=0.05)
    running = background.submit(server.client().post, "/v1/chat/completions", HELLO)
    assert heard.wait(Kind.GENERATE)
    server.close()
    answer = running.result()
    assert (answer.status, answer.json["error"]["code"]) == (503, "shutting_down")


def test_server_can_be_stopped_while_a_model_loads(serve_fake: Serve, background: ThreadPoolExecutor) -> None:
    gate = Gate(Kind.LOAD)
    heard = Heard(gate)
    server = serve_fake(Script(hold=heard), drain=0.05)
    running = background.submit(server.client().post, "/v1/chat/completions", HELLO)
    assert heard.wait(Kind.LOAD)
    closing = background.submit(server.close)
    assert running.result().status == 503
    gate.open()
    closing.result()


def test_server_object_runs_in_a_thread_and_may_be_closed_twice(model_folder: Path, tmp_path: Path) -> None:
    with Server(port=0, models_dir=[model_folder], home=tmp_path) as server:
        assert status_of(server.port) == 200
        assert server.url == f"http://127.0.0.1:{server.port}"
        with pytest.raises(RuntimeError, match="once"):
            server.start()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    with pytest.raises(RuntimeError, match="once"):
        server.start()


def test_server_that_cannot_listen_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = threading.active_count()
        server = Server(port=taken.getsockname()[1], home=tmp_path)
        with pytest.raises(ConfigError, match="in use"):
            server.start()
        server.close()
    assert threading.active_count() == before


def test_server_object_runs_in_the_callers_loop(model_folder: Path, tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        async with Server(port=0, models_dir=[model_folder], home=tmp_path) as one:
            async with Server(port=0, models_dir=[model_folder], home=tmp_path) as two:
                return await asyncio.to_thread(status_of, one.port), await asyncio.to_thread(status_of, two.port)

    assert asyncio.run(main()) == (200, 200)


def status_of(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("GET", "/health")
    status = connection.getresponse().status
    connection.close()
    return status


def chat_text(answer: Answer, index: int = 0) -> str:
    """What one choice of a streamed chat says."""
    chunks = [json.loads(payload) for name, payload in answer.events if name is None and payload != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


# ---- where it listens ------------------------------------------------------------------------------------------------


def reaches(address: str, port: int) -> bool:
    try:
        connection = http.client.HTTPConnection(address, port, timeout=30)
        connection.request("GET", "/health", headers={"Host": "localhost"})
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("hosts", "reached"),
    [
        (["127.0.0.1"], [True, False, False]),
        (["::"], [True, True, True]),
        (["127.0.0.1", "::1"], [True, False, True]),
        (["127.0.0.2", "127.0.0.1", "127.0.0.2"], [True, True, False]),
        (["127.0.0.1", "0.0.0.0", "::1"], [True, True, True]),
    ],
    ids=str,
)
def test_it_listens_on_every_address_that_was_named(
    serve_fake: Callable[..., FakeServer], hosts: list[str], reached: list[bool]
) -> None:
    server = serve_fake(host=hosts, insecure_no_auth=True)
    assert [reaches(address, server.port) for address in ("127.0.0.1", "127.0.0.2", "::1")] == reached


def test_compressed_bodies_are_taken(fake_server: FakeServer) -> None:
    client = fake_server.client()
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}).encode()
    plain = client.post("/v1/chat/completions", body)
    for coding in ("gzip", "x-gzip", "GZIP"):
        packed = client.ask("POST", "/v1/chat/completions", gzip.compress(body), {"Content-Encoding": coding})
        assert (packed.status, packed.json["choices"]) == (200, plain.json["choices"])
    bad = client.ask("POST", "/v1/chat/completions", b"hello", {"Content-Encoding": "gzip"})
    assert (bad.status, bad.json["error"]["type"]) == (400, "invalid_request_error")
    bomb = client.ask("POST", "/v1/chat/completions", gzip.compress(bytes(64 << 20)), {"Content-Encoding": "gzip"})
    assert bomb.status == 413


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_has_said_all_is_answered(fake_server: FakeServer, stream: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", fake_server.port), timeout=30) as client:
        client.sendall(head + body)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    if not sys.platform.startswith("linux"):  # which tells who is there: elsewhere that takes a word before the answer
        answer = answer.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (b"[DONE]" in answer) if stream else (b"chat.completion" in answer)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others learn it from a client that is sent something")
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_has_said_all_and_leaves_later_frees_its_sequence(serve_fake: Serve, version: bytes) -> None:
    heard = Heard()
    server = serve_fake(Script(silent_after=0, hold=heard))
    body = json.dumps(HELLO).encode()
    head = b"POST /v1/chat/completions HTTP/%b\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (version, len(body))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(head + body)
        client.shutdown(socket.SHUT_WR)
        assert heard.wait(Kind.GENERATE)
    assert heard.wait(Kind.CANCEL)
