"""What of prompts and answers is in the log: all where `log_prompts` asks for it, else nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import FakeServer

HELLO = {"model": "talker", "messages": [{"role": "user", "content": "plugh"}]}


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_answers_are_logged_where_that_is_asked_for(
    serve_fake: Callable[..., FakeServer], caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO)
    server = serve_fake(log_prompts=True)
    assert server.client().post("/v1/chat/completions", {**HELLO, "stream": stream}).status == 200
    while len(told := predictions(caplog)) < 2:
        server.client().get("/health")
    assert [data["type"] for data in told] == ["llm.prediction.input", "llm.prediction.output"]
    assert told[0]["input"] == "<user>plugh"
    assert told[1]["output"]
    assert told[1]["stats"]["predictedTokensCount"] > 0


def predictions(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage())["data"] for record in caplog.records if record.name == "lmlite.app.logs"]


def test_neither_is_logged_otherwise(fake_server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = fake_server.client()
    assert client.post("/v1/chat/completions", HELLO).status == 200
    assert client.post("/v1/chat/completions", {**HELLO, "stream": "plugh"}).status == 400
    assert client.post("/v1/chat/completions?plugh", HELLO, Authorization="Bearer plugh").status == 200
    fake_server.close()
    assert "plugh" not in caplog.text
