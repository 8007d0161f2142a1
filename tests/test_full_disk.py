"""A disk that is full: the client whose turn was to be kept is told so, in its dialect, and nobody else has less."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Answer, Client, FakeServer

RESPONSES = "/v1/responses", {"model": "talker", "input": "hi", "store": True}
NATIVE = "/api/v1/chat", {"model": "talker", "input": "hi", "store": True}
LARGE = {"input": "hi " * 100_000}


def fill(server: FakeServer) -> None:
    """The database is there, and has no room for another page."""
    database = server.service.app.database
    with database.reading() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")


def events(answer: Answer) -> list[dict[str, Any]]:
    lines = (line for line in answer.body.split(b"\n") if line.startswith(b"data: {"))
    return [json.loads(line[6:]) for line in lines]


@pytest.fixture
def server(serve_fake: Callable[..., FakeServer]) -> FakeServer:
    server = serve_fake()
    for path, body in (RESPONSES, NATIVE):
        assert server.client().post(path, body).status == 200
    fill(server)
    return server


@pytest.fixture
def client(server: FakeServer) -> Client:
    return server.client()


@pytest.mark.parametrize(("path", "body"), [RESPONSES, NATIVE])
def test_a_whole_answer_that_cannot_be_kept_is_an_error_that_is_not_to_be_repeated(
    client: Client, path: str, body: dict[str, Any]
) -> None:
    answer = client.post(path, {**body, **LARGE})
    assert answer.status == 422
    assert b"not_stored" in answer.body and b"full" in answer.body
    assert client.post(path, {**body, **LARGE, "store": False}).status == 200


def test_a_stream_that_cannot_be_kept_ends_with_the_error(client: Client) -> None:
    path, body = RESPONSES
    told = events(client.post(path, {**body, **LARGE, "stream": True}))
    last = told[-1]
    assert "response.completed" not in {event["type"] for event in told}
    assert last["type"] in ("response.failed", "error")
    assert "full" in json.dumps(last)
    assert not any(
        event["type"] == "response.completed" for event in events(client.post(path, {**body, **LARGE, "stream": True}))
    )
    path, body = NATIVE
    told = events(client.post(path, {**body, **LARGE, "stream": True}))
    assert any(event["type"] == "error" and "full" in json.dumps(event) for event in told)
    assert all("response_id" not in event.get("result", {}) for event in told)


def test_others_have_what_they_had(server: FakeServer, client: Client) -> None:
    path, body = RESPONSES
    assert client.post(path, {**body, **LARGE}).status == 422
    chat = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
    assert client.post("/v1/chat/completions", chat).status == 200
    with server.service.app.database.reading() as connection:
        ids = [id for (id,) in connection.execute("SELECT id FROM exchanges WHERE kind = 'response' AND status = 'completed'")]
    assert len(ids) == 1
    assert client.get(f"{path}/{ids[0]}").status == 200
    assert (
        client.post(path, {"model": "talker", "input": "and?", "store": False, "previous_response_id": ids[0]}).status == 200
    )
