"""The client of commands: which server it takes, how answers, refusals and broken connections are told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.cli.client import Client, NotRunning, ServerError
from tests.cli.peer import Events, Peer, Raw
from tests.conftest import FakeServer

WHERE_FROM = ("GET", "/where")


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer({WHERE_FROM: {"here": True}, ("GET", "/health"): {"status": "ok"}}) as peer:
        yield peer


@pytest.fixture
def client(peer: Peer) -> Client:
    return Client("127.0.0.1", peer.port)


def lock(home: Path, content: object) -> dict[str, str]:
    """An environment whose home has such a lock, and a config file with a port that nobody serves."""
    home.mkdir(exist_ok=True)
    (home / "server.lock").write_text(content if isinstance(content, str) else json.dumps(content))
    (home / "config.json").write_text(json.dumps({"port": free_port()}))
    return {"LMLITE_HOME": str(home)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---- which server ----------------------------------------------------------------------------------------------------


def test_port_is_that_of_the_lock(peer: Peer, tmp_path: Path) -> None:
    environ = lock(tmp_path, {"pid": os.getpid(), "port": peer.port, "url": "", "version": ""})
    assert Client.find(environ).get("/where") == {"here": True}


def test_named_port_wins_over_the_lock(peer: Peer, tmp_path: Path) -> None:
    environ = lock(tmp_path, {"pid": os.getpid(), "port": free_port()})
    assert Client.find(environ, port=peer.port).get("/where") == {"here": True}


def test_lock_of_a_dead_process_is_no_server(peer: Peer, tmp_path: Path) -> None:
    environ = lock(tmp_path, {"pid": dead_pid(), "port": peer.port})
    with pytest.raises(NotRunning, match="lmlite server start"):
        Client.find(environ)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": true, "port": "80"}', '{"pid": -1, "port": 5}', "[" * 60_000])
def test_broken_lock_leaves_the_port_of_the_config(content: str, tmp_path: Path) -> None:
    environ = lock(tmp_path, content)
    assert Client.find(environ).port == json.loads((tmp_path / "config.json").read_text())["port"]


def test_without_a_lock_the_config_tells_the_port(peer: Peer, tmp_path: Path) -> None:
    environ = {"LMLITE_HOME": str(tmp_path), "LMLITE_PORT": str(peer.port)}
    assert Client.find(environ).get("/where") == {"here": True}


def test_any_address_is_asked_on_loopback(tmp_path: Path) -> None:
    environ = {"LMLITE_HOME": str(tmp_path), "LMLITE_HOST": "0.0.0.0", "LMLITE_INSECURE_NO_AUTH": "1"}
    assert Client.find(environ).url == "http://127.0.0.1:1234"
    assert Client.find(environ, host="::", port=5).url == "http://[::1]:5"
    assert Client.find(environ, host="192.0.2.1").host == "192.0.2.1"


def test_nobody_there_is_told_with_what_to_do() -> None:
    client = Client("127.0.0.1", free_port())
    with pytest.raises(NotRunning, match=rf"not running at {client.url}\. Start it with: lmlite server start"):
        client.get("/health")
    assert not client.is_running()


def test_proxies_of_the_environment_are_not_asked(
    peer: Peer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert client.is_running()


@pytest.mark.parametrize("name", ["LM_API_TOKEN", "LMLITE_API_TOKEN"])
def test_token_of_the_environment_is_sent(name: str, peer: Peer, tmp_path: Path) -> None:
    Client.find({"LMLITE_HOME": str(tmp_path), name: "sk-lm-1"}, port=peer.port).get("/where")
    Client.find({"LMLITE_HOME": str(tmp_path)}, port=peer.port).get("/where")
    assert [asked.headers.get("Authorization") for asked in peer.asked] == ["Bearer sk-lm-1", None]


# ---- answers and refusals --------------------------------------------------------------------------------------------


def test_body_is_sent_as_json(peer: Peer, client: Client) -> None:
    peer.answers["POST", "/echo"] = lambda asked: {"got": asked.body, "type": asked.headers["Content-Type"]}
    assert client.post("/echo", {"name": "grün"}) == {"got": {"name": "grün"}, "type": "application/json"}


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"error": {"message": "no such model", "code": "model_not_found"}}, "model_not_found", "no such model"),
        ({"error": {"type": "job_not_found", "message": "no"}}, "job_not_found", "no"),
        ({"error": "Unexpected endpoint"}, "unknown", "Unexpected endpoint"),
        ({"detail": 1}, "unknown", "the server answers with status 404"),
    ],
)
def test_refusals_of_every_shape_are_told(peer: Peer, client: Client, body: object, code: str, message: str) -> None:
    peer.answers["GET", "/no"] = 404, body
    with pytest.raises(ServerError) as caught:
        client.get("/no")
    assert (caught.value.status, caught.value.code, caught.value.message) == (404, code, message)


@pytest.mark.parametrize("status", [200, 500])
def test_answer_that_is_no_json_is_another_programs(peer: Peer, client: Client, status: int) -> None:
    peer.answers["GET", "/page"] = Raw(b"<html>", status)
    with pytest.raises(ServerError, match="is this an lmlite server") as caught:
        client.get("/page")
    assert caught.value.code == "bad_answer"


def test_answer_cut_off_is_a_lost_connection(peer: Peer, client: Client) -> None:
    peer.answers["GET", "/cut"] = Raw(b"{", headers={"Content-Length": "10", "Connection": "close"})
    with pytest.raises(ServerError) as caught:
        client.get("/cut")
    assert caught.value.code == "connection_lost"


def test_real_server_refuses_in_its_own_words(fake_server: FakeServer) -> None:
    client = Client("127.0.0.1", fake_server.port)
    assert client.get("/health") == {"status": "ok"}
    with pytest.raises(ServerError, match="Unexpected endpoint") as caught:
        client.get("/nothing")
    assert caught.value.status == 404


# ---- events ----------------------------------------------------------------------------------------------------------


def test_events_come_with_names_and_json(peer: Peer, client: Client) -> None:
    peer.answers["POST", "/run"] = lambda asked: Events([("begin", asked.body), (None, {"n": 1}), ("end", "grün")])
    assert list(client.events("POST", "/run", {"x": 1})) == [("begin", {"x": 1}), (None, {"n": 1}), ("end", "grün")]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_events_are_read_as_the_standard_says(peer: Peer, client: Client, newline: bytes) -> None:
    lines = [b": a comment", b"", b"event:named", b"id: 7", b'data: {"a":', b"data:1}", b"", b"data: [DONE]", b"", b"data: 2"]
    peer.answers["GET", "/raw"] = Raw(newline.join(lines), headers={"Content-Type": "text/event-stream"})
    assert list(client.events("GET", "/raw")) == [("named", {"a": 1})]


def test_error_event_is_raised_after_what_came_before(peer: Peer, client: Client) -> None:
    peer.answers["GET", "/run"] = Events([(None, 1), ("error", {"error": {"message": "gone", "code": "engine_gone"}})])
    events = client.events("GET", "/run")
    assert next(events) == (None, 1)
    with pytest.raises(ServerError, match="gone") as caught:
        next(events)
    assert caught.value.code == "engine_gone"


def test_events_that_break_off_are_a_lost_connection(peer: Peer, client: Client) -> None:
    peer.answers["GET", "/run"] = Events([(None, 1)], broken=True)
    events = client.events("GET", "/run")
    assert next(events) == (None, 1)
    with pytest.raises(ServerError) as caught:
        next(events)
    assert caught.value.code == "connection_lost"


def test_refused_events_and_whole_answers_are_told(peer: Peer, client: Client) -> None:
    peer.answers["GET", "/no"] = 422, {"error": {"message": "no room", "code": "insufficient_memory"}}
    with pytest.raises(ServerError, match="no room"):
        next(client.events("GET", "/no"))
    with pytest.raises(ServerError, match="something else than events"):
        next(client.events("GET", "/where"))


def test_method_and_body_reach_the_server(peer: Peer, client: Client) -> None:
    peer.answers["POST", "/run"] = Events([])
    assert list(client.events("POST", "/run", {"model": "m"})) == []
    assert (peer.asked[-1].method, peer.asked[-1].body) == ("POST", {"model": "m"})
