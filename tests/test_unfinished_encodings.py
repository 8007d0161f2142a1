"""A picture whose encoding comes to no end: its client leaves, its model is unloaded, the server stops, the engine dies. With
a whole server, a real engine and a tower that takes its time."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmlite.server import Server
from tests.conftest import Answer, Client
from tests.media_models import slope, stripes, text_model_of, write_mlp

CHAT = "/v1/chat/completions"
Open = Callable[..., AbstractContextManager[Server]]
Connect = Callable[[Server], Client]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    place = folder / "acme" / "seer-GGUF"
    place.mkdir(parents=True)
    shutil.move(text_model_of("mlp", place), place / "seer-F32.gguf")
    write_mlp(place / "mmproj-seer-f16.gguf", n_blocks=32, width=256, side=24)
    return folder


@pytest.fixture
def opened(models: Path, tmp_path: Path) -> Open:
    @contextmanager
    def open_server(**options: Any) -> Iterator[Server]:
        with Server(port=0, home=tmp_path, models_dir=[models], context_length=2048, **options) as server:
            yield server

    return open_server


@pytest.fixture
def connect() -> Iterator[Connect]:
    clients: list[Client] = []

    def to(server: Server) -> Client:
        clients.append(Client(server.port))
        return clients[-1]

    yield to
    for client in clients:
        client.close()


def ask(*pictures: bytes, **more: Any) -> dict[str, Any]:
    urls = ["data:image/png;base64," + base64.b64encode(picture).decode() for picture in pictures]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    told = [*content, {"type": "text", "text": "What?"}]
    asked = {"model": "seer", "temperature": 0, "max_tokens": 4, "ignore_eos": True}
    return {**asked, "messages": [{"role": "user", "content": told}], **more}


def post(client: Client, body: dict[str, Any]) -> None:
    """Sends a request, of which the answer is waited for later."""
    client.connection.request("POST", CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"})


def answer_to(client: Client) -> Answer:
    response = client.connection.getresponse()
    return Answer(response.status, dict(response.getheaders()), response.read())


def metric(client: Client, name: str) -> float:
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", client.get("/metrics").body.decode(), re.MULTILINE)
    return float(found[1]) if found else 0


def encoded(client: Client) -> float:
    return metric(client, "lmlite_media_encoded_total")


def wait_until_running(client: Client, n: int) -> None:
    while metric(client, "lmlite_requests_running") != n:
        pass


def pid_of(client: Client) -> int:
    (instance,) = client.get("/lmlite/instances").json["instances"]
    return int(instance["pid"])


def test_a_client_that_leaves_frees_the_place_for_the_next_picture(opened: Open, connect: Connect) -> None:
    with opened(parallel=1) as server:
        client, leaves = connect(server), connect(server)
        assert client.post(CHAT, ask()).status == 200
        post(leaves, ask(slope()))
        wait_until_running(client, 1)
        leaves.close()
        assert client.post(CHAT, ask(stripes())).status == 200
        assert encoded(client) == 1


def test_unloading_ends_an_encoding_and_the_model_can_be_loaded_again(opened: Open, connect: Connect) -> None:
    with opened() as server:
        client, asking = connect(server), connect(server)
        assert client.post(CHAT, ask()).status == 200
        post(asking, ask(slope()))
        wait_until_running(client, 1)
        assert client.post("/api/v1/models/unload", {"instance_id": "seer"}).status == 200
        ended = answer_to(asking)
        assert ended.status >= 400 and "unloaded" in ended.json["error"]["message"]
        assert client.get("/lmlite/instances").json["instances"] == []
        assert client.post(CHAT, ask(slope())).status == 200
        assert encoded(client) == 1


def test_a_server_that_stops_does_not_wait_for_an_encoding_that_outlasts_its_patience(opened: Open, connect: Connect) -> None:
    with opened(drain=0.0) as server:
        client, asking = connect(server), connect(server)
        assert client.post(CHAT, ask()).status == 200
        pid = pid_of(client)
        post(asking, ask(*(slope(64 + n, 64) for n in range(3))))
        wait_until_running(client, 1)
    assert answer_to(asking).status >= 500
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_engine_that_is_killed_while_it_encodes_takes_its_requests_along(opened: Open, connect: Connect) -> None:
    with opened() as server:
        client, asking, neighbour = connect(server), connect(server), connect(server)
        words = neighbour.start("POST", CHAT, ask(max_tokens=1500, stream=True))
        assert words.status == 200 and words.readline()
        post(asking, ask(slope()))
        wait_until_running(client, 2)
        os.kill(pid_of(client), signal.SIGKILL)
        ended = answer_to(asking)
        assert ended.status >= 500 and "SIGKILL" in ended.json["error"]["message"]
        assert b"SIGKILL" in words.read()
        assert client.post(CHAT, ask(slope())).status == 200
        assert encoded(client) == 1


def test_clients_with_one_picture_each_are_answered_before_one_with_many(opened: Open, connect: Connect) -> None:
    with opened(parallel=4) as server:
        client, many = connect(server), connect(server)
        assert client.post(CHAT, ask()).status == 200
        post(many, ask(*(slope(64 + n, 64) for n in range(3)), max_tokens=1))
        wait_until_running(client, 1)
        others = [connect(server) for _ in range(2)]
        for n, other in enumerate(others):
            post(other, ask(stripes(red=50 * n), max_tokens=1))
        assert [answer_to(other).status for other in others] == [200, 200]
        assert encoded(client) < 5
        assert answer_to(many).status == 200
        assert encoded(client) == 5
