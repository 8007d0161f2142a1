"""The client of commands: which server it takes, how answers, refusals and broken connections are told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.cli.client import Client, NotRunning, ServerError
from lmlite.store.home import Home
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


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def environ(home: Home, **more: str) -> dict[str, str]:
    return {"LMLITE_HOME": str(home.root), **more}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


# ---- which server ----------------------------------------------------------------------------------------------------


def test_address_is_that_of_the_homes_owner(peer: Peer, home: Home) -> None:
    with home.take("0", {}) as lock:
        lock.publish(peer.port, f"http://127.0.0.1:{peer.port}")
        assert Client.find(environ(home, LMLITE_PORT="9")).get("/where") == {"here": True}
        lock.publish(5, "http://[::1]:5")
        assert Client.find(environ(home)).url == "http://[::1]:5"


def test_named_port_wins_over_the_owners(peer: Peer, home: Home) -> None:
    with home.take("0", {}) as lock:
        lock.publish(9, "http://127.0.0.1:9")
        assert Client.find(environ(home), port=peer.port).get("/where") == {"here": True}


def test_home_without_an_owner_has_no_server_whoever_has_the_usual_port(home: Home) -> None:
    home.take("0", {}).release()
    with pytest.raises(NotRunning, match="lmlite server start"):
        Client.find(environ(home))


def test_server_that_still_starts_is_none_yet(home: Home) -> None:
    with home.take("0", {}), pytest.raises(NotRunning):
        Client.find(environ(home))


def test_without_an_owner_the_port_that_was_chosen_is_asked(peer: Peer, home: Home) -> None:
    assert Client.find(environ(home, LMLITE_PORT=str(peer.port))).get("/where") == {"here": True}
    home.config_file.write_text(json.dumps({"port": peer.port}))
    assert Client.find(environ(home)).get("/where") == {"here": True}


def test_any_address_is_asked_on_loopback(home: Home) -> None:
    listens = environ(home, LMLITE_HOST="0.0.0.0", LMLITE_INSECURE_NO_AUTH="1", LMLITE_PORT="7")
    assert Client.find(listens).url == "http://127.0.0.1:7"
    assert Client.find(listens, host="::", port=5).url == "http://[::1]:5"
    assert Client.find(listens, host="192.0.2.1").host == "192.0.2.1"


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
def test_token_of_the_environment_is_sent(name: str, peer: Peer, home: Home) -> None:
    Client.find(environ(home, **{name: "sk-lm-1"}), port=peer.port).get("/where")
    Client.find(environ(home), port=peer.port).get("/where")
    assert [asked.headers.get("Authorization") for asked in peer.asked] == ["Bearer sk-lm-1", None]


@pytest.mark.parametrize(
    ("token", "told"), [(None, "asks for an API token"), ("sk-lm-1", "takes no such API token")], ids=["none", "wrong"]
)
def test_who_is_not_let_in_is_told_where_commands_take_a_token_from(peer: Peer, token: str | None, told: str) -> None:
    peer.answers["GET", "/x"] = 401, {"error": {"message": "Authorization: Bearer ...", "code": "invalid_api_key"}}
    client = Client("127.0.0.1", peer.port, token)
    with pytest.raises(ServerError, match=f"{told}: lmlite token create NAME makes one, .* LM_API_TOKEN") as caught:
        client.get("/x")
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


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


def test_refusal_with_status_200_is_one(peer: Peer, client: Client) -> None:
    peer.answers["GET", "/no"] = {"error": "Unexpected endpoint or method. (GET /no)"}
    with pytest.raises(ServerError, match="Unexpected endpoint"):
        client.get("/no")


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
