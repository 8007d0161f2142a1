"""A whole server and towers of every kind, laid out as LM Studio does: what the list says of them, that every dialect counts
and says the same, streamed and whole, and that what was shown counts in the answer."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.server import Server
from tests.conftest import Client
from tests.media_models import WRITERS, slope, stripes, text_model_of, tone

HEARS = "ultravox"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    for family, write in WRITERS.items():
        place = folder / "acme" / f"{family}-GGUF"
        place.mkdir(parents=True)
        shutil.move(text_model_of(family, place), place / f"{family}-F32.gguf")
        write(place / f"mmproj-{family}-f16.gguf")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        server = Server(port=0, home=home, models_dir=[folder], context_length=1024, max_loaded=len(WRITERS))
    with server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.port)
    yield client
    client.close()


def encoded(family: str, other: bool = False) -> str:
    data = tone(700 if other else 440) if family == HEARS else slope() if other else stripes()
    return base64.b64encode(data).decode()


def chat(family: str, data: str) -> dict[str, Any]:
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    picture = {"type": "image_url", "image_url": {"url": f"data:;base64,{data}"}}
    content = [sound if family == HEARS else picture, {"type": "text", "text": "What?"}]
    asked = {"model": family, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    return {**asked, "messages": [{"role": "user", "content": content}]}


def responses(family: str, data: str) -> dict[str, Any]:
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    picture = {"type": "input_image", "image_url": f"data:;base64,{data}"}
    content = [sound if family == HEARS else picture, {"type": "input_text", "text": "What?"}]
    return {"model": family, "temperature": 0, "max_output_tokens": 12, "input": [{"role": "user", "content": content}]}


def test_the_list_says_who_sees_and_who_hears(client: Client) -> None:
    known = {model["id"]: model["type"] for model in client.get("/api/v0/models").json["data"]}
    assert known == {family: "llm" if family == HEARS else "vlm" for family in WRITERS}
    models = client.get("/lmlite/models").json["models"]
    listed = {model["modelKey"]: (model["vision"], model.get("hears", False)) for model in models}
    assert listed == {family: (family != HEARS, family == HEARS) for family in WRITERS}


@pytest.mark.parametrize("family", WRITERS)
def test_what_is_shown_is_counted_and_told_alike_everywhere(client: Client, family: str) -> None:
    data = encoded(family)
    whole = client.post("/v1/chat/completions", chat(family, data))
    assert whole.status == 200, whole.body
    text, n_tokens = whole.json["choices"][0]["message"]["content"], whole.json["usage"]["prompt_tokens"]
    streamed = client.post("/v1/chat/completions", {**chat(family, data), "stream": True})
    chunks = [json.loads(said) for _, said in streamed.events[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text
    assert client.post("/v1/chat/completions/input_tokens", chat(family, data)).json["input_tokens"] == n_tokens
    assert client.post("/v1/responses/input_tokens", responses(family, data)).json["input_tokens"] == n_tokens
    response = client.post("/v1/responses", responses(family, data)).json
    assert response["usage"]["input_tokens"] == n_tokens
    later = {"model": family, "input": "And?", "previous_response_id": response["id"], "max_output_tokens": 4}
    usage = client.post("/v1/responses", later).json["usage"]
    assert usage["input_tokens"] > n_tokens and usage["input_tokens_details"]["cached_tokens"] >= n_tokens - 4
    bare = chat(family, data)
    bare["messages"][0]["content"] = "What?"
    assert client.post("/v1/chat/completions", bare).json["usage"]["prompt_tokens"] < n_tokens


@pytest.mark.parametrize("family", WRITERS)
def test_another_picture_or_sound_makes_another_answer(client: Client, family: str) -> None:
    """Of random weights: by how likely the first words are."""
    more = {"logprobs": True, "top_logprobs": 5, "max_tokens": 1}
    asked = [{**chat(family, encoded(family, other)), **more} for other in (False, True)]
    firsts = [client.post("/v1/chat/completions", body).json["choices"][0]["logprobs"]["content"][0] for body in asked]
    assert firsts[0]["top_logprobs"] != firsts[1]["top_logprobs"]


def test_who_sees_does_not_hear(client: Client) -> None:
    answer = client.post("/v1/chat/completions", {**chat(HEARS, encoded(HEARS)), "model": "mlp"})
    assert answer.status == 400 and f"{HEARS} can" in answer.json["error"]["message"]
    answer = client.post("/v1/chat/completions", {**chat("mlp", encoded("mlp")), "model": HEARS})
    assert answer.status == 400 and "mlp" in answer.json["error"]["message"].partition(": ")[2]


def test_a_picture_under_the_name_of_sound_is_told(client: Client) -> None:
    answer = client.post("/v1/chat/completions", chat(HEARS, encoded("mlp")))
    assert answer.status == 400 and answer.json["error"]["param"] == "messages[0].content[0].input_audio.data"
    answer = client.post("/v1/chat/completions", chat("mlp", encoded(HEARS)))
    assert answer.status == 400 and answer.json["error"]["param"] == "messages[0].content[0].image_url.url"

