"""A model that does not fit the memory is refused before it is loaded, in every dialect, unless that is not wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Client, FakeServer
from tests.fakes import Script, error

Serve = Callable[..., FakeServer]

HUGE = 1 << 60
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "talker", "messages": MESSAGES, "max_tokens": 1}
UNSAID: dict[str, Any] = {"context_length": 0}  # the file's own: then its size does not show that it fits


def test_an_estimate_adds_up_and_loads_nothing(tiny: Client) -> None:
    answer = tiny.post("/lmlite/estimate", {"model": "lmlite-tiny", "context_length": 1024, "parallel": 2})
    assert answer.status == 200
    told = answer.json
    assert told["total"] == told["weights"] + told["kv_cache"] + told["compute"] + told["projector"]
    assert told["fits"] and told["available"] > told["total"] > told["weights"] > 1 << 20
    assert told["context_length"] == 1024 and told["gpu_total"] == told["gpu_available"] == 0
    more = tiny.post("/lmlite/estimate", {"model": "lmlite-tiny", "context_length": 1024, "parallel": 4}).json
    assert more["kv_cache"] == 2 * told["kv_cache"]


def test_an_estimate_says_that_it_does_not_fit(serve_fake: Serve) -> None:
    server = serve_fake(Script(needed=HUGE))
    told = server.client().post("/lmlite/estimate", {"model": "talker"}).json
    assert told["total"] == HUGE and not told["fits"]
    assert server.client().get("/lmlite/instances").json == {"instances": []}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [({"model": "nobody"}, 404, "model_not_found"), ({"model": "talker", "context_length": "x"}, 400, "invalid_type")],
)
def test_errors_are_spelled_as_in_v1(serve_fake: Serve, body: Any, status: int, code: str) -> None:
    answer = serve_fake().client().post("/lmlite/estimate", body)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)


def test_an_estimate_that_cannot_be_made_says_why(serve_fake: Serve) -> None:
    answer = serve_fake(Script(estimate_error=error("load_failed"))).client().post("/lmlite/estimate", {"model": "talker"})
    assert answer.status == 422 and answer.json["error"]["code"] == "model_load_failed"
    answer = serve_fake(Script(die_at_load=True)).client().post("/lmlite/estimate", {"model": "talker"})
    assert answer.status == 422 and "the engine ended" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/api/v0/chat/completions", CHAT),
        ("/v1/completions", {"model": "talker", "prompt": "hi"}),
        ("/api/v1/models/load", {"model": "talker"}),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(serve_fake: Serve, path: str, body: Any) -> None:
    server = serve_fake(Script(needed=HUGE), **UNSAID)
    answer = server.client().post(path, body)
    assert answer.status == 422
    refusal = answer.json["error"]
    assert refusal["code"] == "insufficient_memory" and refusal["param"] == "model"
    assert f"{HUGE} bytes" in refusal["message"] and refusal["message"].count("bytes") == 2
    assert server.client().get("/lmlite/instances").json == {"instances": []}


def test_force_loads_all_the_same(serve_fake: Serve) -> None:
    client = serve_fake(Script(needed=HUGE), **UNSAID).client()
    assert client.post("/api/v1/models/load", {"model": "talker", "force": True}).status == 200
    assert client.post("/v1/chat/completions", CHAT).status == 200


def test_a_server_without_the_guard_loads_whatever_it_is_told(serve_fake: Serve) -> None:
    server = serve_fake(Script(needed=HUGE), memory_guard=False, **UNSAID)
    assert server.client().post("/v1/chat/completions", CHAT).status == 200


def test_an_estimate_that_failed_refuses_nothing(serve_fake: Serve) -> None:
    server = serve_fake(Script(estimate_error=error("internal")), **UNSAID)
    assert server.client().post("/v1/chat/completions", CHAT).status == 200
