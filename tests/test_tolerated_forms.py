"""What other servers take, end to end: the same answers as by our own words, with the real engine and the bundled model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Client, FakeServer
from tests.fakes import Script

HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "model": "lmlite-tiny", "seed": 3, "max_tokens": 12}


def answer(client: Client, **change: Any) -> Any:
    got = client.post("/v1/chat/completions", {**HELLO, **change})
    assert got.status == 200, got.json
    choice = got.json["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"top_k": -1, "temperature": 1.5}, {"top_k": 0, "temperature": 1.5}),
        ({"repetition_penalty": 2, "temperature": 0}, {"repeat_penalty": 2, "temperature": 0}),
        ({"max_tokens": None, "n_predict": 3.0}, {"max_tokens": 3}),
        ({"stop": ["", "e"] + ["unsaid"] * 62}, {"stop": "e"}),
        ({"stop": ""}, {}),
        ({"reasoning_effort": "max"}, {"reasoning_effort": "high"}),
    ],
    ids=["top_k", "repetition_penalty", "n_predict", "stops", "no stop", "effort"],
)
def test_their_words_get_the_answer_of_ours(tiny: Client, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert answer(tiny, **theirs) == answer(tiny, **ours)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens", "n_predict"])
@pytest.mark.parametrize("api", ["/v1", "/api/v0"])
def test_no_token_is_an_answer_too(tiny: Client, api: str, limit: str) -> None:
    chat = {**HELLO, "max_tokens": None, limit: 0}
    whole = tiny.post(f"{api}/chat/completions", chat).json
    assert (whole["choices"][0]["message"]["content"], whole["choices"][0]["finish_reason"]) == ("", "length")
    assert whole["usage"]["completion_tokens"] == 0 < whole["usage"]["prompt_tokens"]
    for echo, text in ((False, ""), (True, "Hello there")):
        asked = {"prompt": "Hello there", limit: 0, "echo": echo}
        (choice,) = tiny.post(f"{api}/completions", asked).json["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
    events = tiny.post(f"{api}/chat/completions", {**chat, "stream": True}).events
    assert events[-1] == (None, "[DONE]")
    assert json.loads(events[-2][1])["choices"][0]["finish_reason"] == "length"


def test_a_schema_beside_the_messages_constrains_the_answer(tiny: Client) -> None:
    text, _ = answer(tiny, json_schema={"enum": ["yes", "no"]}, max_tokens=20)
    assert json.loads(text) in ("yes", "no")


def test_a_token_banned_by_a_pair_is_never_chosen(tiny: Client) -> None:
    (first, *_) = tiny.post("/v1/completions", {"prompt": "Hello", "max_tokens": 1, "temperature": 0}).json["choices"]
    (id, *_) = tiny.post("/v1/tokenize", {"content": first["text"]}).json["tokens"]
    body = {"prompt": "Hello", "max_tokens": 1, "temperature": 0, "logit_bias": [[id, False]]}
    assert tiny.post("/v1/completions", body).json["choices"][0]["text"] != first["text"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/api/v1/models/load"])
def test_a_model_loaded_with_a_ttl_of_zero_stays(serve_fake: Callable[..., FakeServer], path: str) -> None:
    embeds = path.endswith("embeddings")
    client = serve_fake(Script(embedding=embeds)).client()
    model = "text-embedding-embedder" if embeds else "talker"
    asked = {"messages": HELLO["messages"], "input": "Hello!"} if path.startswith("/v1") else {}
    assert client.post(path, {"model": model, "ttl": 0, **asked}).status == 200
    (instance,) = client.get("/lmlite/instances").json["instances"]
    assert instance["ttlMs"] is None
