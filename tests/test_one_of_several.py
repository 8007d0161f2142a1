"""What a server has for the proxy in front of it, which sends requests to several: who it is, and that it is about to go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from lmlite.config import Config
from lmlite.core.engine.frames import Kind
from lmlite.errors import ConfigError
from tests.conftest import TIMEOUT_S, FakeServer
from tests.fakes import Gate, Script

CHAT = "/v1/chat/completions"
HELLO = {"model": "talker", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
Serve = Callable[..., FakeServer]


def leaving(server: FakeServer) -> threading.Thread:
    """The server, once it is asked to stop and says so."""
    closing = threading.Thread(target=server.close)
    closing.start()
    within(lambda: server.client().get("/ready").status != 200)
    return closing


def within(happens: Callable[[], bool]) -> None:
    """Waits for what is seen from outside alone."""
    end = time.monotonic() + TIMEOUT_S
    while not happens():
        assert time.monotonic() < end, "it never came"


def test_a_server_that_stops_says_so_for_a_while_and_goes_on_meanwhile(serve_fake: Serve) -> None:
    server = serve_fake(drain_delay=3600)
    kept = server.client()
    first = kept.get("/ready")
    assert (first.status, first.json, first.headers["Connection"]) == (200, {"status": "ok"}, "keep-alive")
    closing = leaving(server)
    assert server.client().get("/ready").json == {"status": "stopping"}
    for client in (kept, server.client()):
        answer = client.post(CHAT, HELLO)
        assert (answer.status, answer.headers["Connection"]) == (200, "close"), "its client knows, and loses no request"
    assert server.client().get("/health").status == 200, "it lives"
    server.expire()
    closing.join()
    with pytest.raises(ConnectionRefusedError):
        server.client().get("/ready")


def test_an_answer_that_is_under_way_when_a_server_leaves_ends_well(serve_fake: Serve) -> None:
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate), drain_delay=3600)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(server.client().post(CHAT, HELLO)))
    asking.start()
    within(lambda: bool(server.engines) and Kind.GENERATE in [kind for kind, _, _ in server.engine.commands])
    closing = leaving(server)
    gate.open()
    asking.join()
    assert (answers[0].status, answers[0].headers["Connection"]) == (200, "close")
    server.expire()
    closing.join()


def test_every_answer_names_the_node_that_has_a_name(serve_fake: Serve) -> None:
    client = serve_fake(node="rack-2.b").client()
    for answer in (client.get("/health"), client.post(CHAT, HELLO), client.get("/nothing"), client.ask("GET", "/%zz")):
        assert answer.headers["X-Lmlite-Node"] == "rack-2.b"


def test_a_node_without_a_name_says_none(serve_fake: Serve) -> None:
    assert "X-Lmlite-Node" not in serve_fake().client().get("/health").headers


@pytest.mark.parametrize("name", ["a b", "a\r\nX: y", "é", "x" * 65])
def test_a_node_has_a_name_that_can_stand_in_a_header(name: str) -> None:
    with pytest.raises(ConfigError, match="node"):
        Config.of(node=name)


def test_metrics_bear_the_names_that_gateways_look_for(serve_fake: Serve) -> None:
    client = serve_fake().client()
    assert client.post(CHAT, HELLO).status == 200
    said = client.get("/metrics").body.decode().splitlines()
    assert 'vllm:num_requests_running{model_name="talker"} 0' in said
    assert 'vllm:num_requests_waiting{model_name="talker"} 0' in said
