"""Nothing of a request outlives its answer, whatever the answer was: no error, frame or task keeps it for the collector.

The collector is off while the request runs. What it then finds unreachable is kept apart and looked through for the
request's own text.
"""

from __future__ import annotations

import gc
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lmlite.core.engine.frames import Kind
from tests.conftest import Client, FakeServer
from tests.fakes import Script

MARK = "a word that no module has "
LONG = MARK * 2000
"""Far longer than what an error quotes of it."""


def holds_the_request(value: object) -> bool:
    match value:
        case str():
            return len(value) >= len(LONG) and MARK in value
        case bytes() | bytearray():
            return len(value) >= len(LONG) and MARK.encode() in value
        case dict():
            return any(map(holds_the_request, [item for item in value.values() if isinstance(item, str | bytes | bytearray)]))
        case list() | tuple():
            return any(map(holds_the_request, [item for item in value if isinstance(item, str | bytes | bytearray)]))
    return False


@contextmanager
def kept_for_the_collector(server: FakeServer) -> Iterator[list[str]]:
    """Filled at the end with the kinds of what only the collector could free and that holds text of the request."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        server.settle()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        for value in gc.garbage:
            held = [value, *gc.get_referents(value)]
            if any(map(holds_the_request, held)):
                found.append(type(value).__name__)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


CHAT = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 3}
TEXT = {"prompt": LONG, "max_tokens": 3}
OVERFLOW = {"generate_error": {"code": "context_overflow", "message": "m", "details": {"needed": 9, "limit": 4}}}
FULL = {"generate_error": {"code": "queue_full", "message": "m", "details": {"limit": 4}}}
REFUSED = {"generate_error": {"code": "invalid_request", "message": "m", "details": {"param": "messages"}}}
BUG = {"generate_error": {"code": "internal", "message": "m", "details": {}}}

CASES: list[tuple[str, str, Any, int]] = [
    ("answered", "/v1/chat/completions", CHAT, 200),
    ("streamed", "/v1/chat/completions", CHAT | {"stream": True}, 200),
    ("choices", "/v1/chat/completions", CHAT | {"n": 3}, 200),
    ("completed", "/v1/completions", TEXT, 200),
    ("embedded", "/v1/embeddings", {"input": LONG, "model": "embedder"}, 200),
    ("tokenized", "/v1/tokenize", {"content": LONG, "model": "talker"}, 200),
    ("no JSON", "/v1/chat/completions", f'{{"messages": "{LONG}', 400),
    ("wrong field", "/v1/chat/completions", CHAT | {"temperature": LONG}, 400),
    ("wrong v0 field", "/api/v0/chat/completions", CHAT | {"top_p": LONG}, 400),
    ("unknown model", "/v1/chat/completions", CHAT | {"model": "nobody"}, 404),
    ("wrong kind of model", "/v1/embeddings", {"input": LONG, "model": "talker"}, 400),
    ("unknown path", "/v1/nothing", CHAT, 404),
    ("wrong native field", "/api/v1/models/load", {"model": LONG}, 400),
]

FAILING: list[tuple[str, dict[str, Any], int]] = [
    ("overflow", OVERFLOW, 400),
    ("queue full", FULL, 429),
    ("refused by the engine", REFUSED, 400),
    ("a bug of the engine's", BUG, 500),
    ("dies", {"die_after": 0}, 503),
]


@pytest.mark.parametrize(("path", "body", "status"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_nothing_of_a_request_is_left(fake_server: FakeServer, path: str, body: Any, status: int) -> None:
    client = fake_server.client()
    with kept_for_the_collector(fake_server) as found:
        answer = client.ask("POST", path, body if isinstance(body, dict) else body.encode())
        assert answer.status == status, answer.body[:300]
    assert found == []


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("script", "status"), [case[1:] for case in FAILING], ids=[case[0] for case in FAILING])
def test_nothing_of_a_request_is_left_that_failed_in_the_engine(
    serve_fake: Callable[..., FakeServer], script: dict[str, Any], status: int, stream: bool, n: int
) -> None:
    server = serve_fake(Script(**script))
    with kept_for_the_collector(server) as found:
        answer = server.client().post("/v1/chat/completions", CHAT | {"stream": stream, "n": n})
        if answer.status == 200:  # the stream had begun
            assert stream and answer.events[-1][0] == "error"
        else:
            assert answer.status == status, answer.body[:300]
    assert found == []


def test_nothing_is_left_of_a_stream_that_failed_on_its_way(serve_fake: Callable[..., FakeServer]) -> None:
    server = serve_fake(Script(die_after=2))
    with kept_for_the_collector(server) as found:
        answer = server.client().post("/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 9})
        assert answer.status == 200 and answer.events[-1][0] == "error"
    assert found == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_nothing_is_left_of_a_request_whose_client_left(serve_fake: Callable[..., FakeServer], stream: bool) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def hold(kind: Kind) -> None:
        if kind is Kind.GENERATE:
            arrived.set()
            go_on.wait(30)

    server = serve_fake(Script(hold=hold))
    with kept_for_the_collector(server) as found:
        body = json.dumps(CHAT | {"stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as left:
            left.sendall(head + body)
            assert arrived.wait(30)
        go_on.set()
        other = Client(server.port)
        assert other.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}).status == 200
        other.close()
    assert found == []
