"""Settings of single models on whole servers: what a request leaves open is the model's to say, and changes are seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmlite
from lmlite.api.dialect import Call
from lmlite.api.openai.chat import parse_chat
from lmlite.api.openai.text import parse_completions
from lmlite.core.engine.frames import Kind
from lmlite.package import bundled_model
from lmlite.request import Chat
from lmlite.server import Server
from lmlite.settings import ModelSettings
from tests.conftest import Client, FakeServer
from tests.core.gguf_files import gguf, llama

Serve = Callable[..., FakeServer]
MESSAGES = [{"role": "user", "content": "hi"}]
DEFAULTS = ModelSettings(
    sampling={"temperature": 0.2, "top_k": 7, "max_tokens": 3}, template_kwargs={"enable_thinking": False, "tone": "dry"}
)


def completed(parse: Callable[[dict[str, Any]], Call], body: dict[str, Any]) -> list[tuple[float, int, int]]:
    runs = parse(body).turn.with_defaults(DEFAULTS).runs
    return [(run.sampling.temperature, run.sampling.top_k, run.max_tokens) for run in runs]


# ---- one call --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "prompt"), [(parse_chat, {"messages": MESSAGES}), (parse_completions, {"prompt": "once"})]
)
def test_what_a_request_says_wins_even_if_it_is_what_everybody_has(
    parse: Callable[[dict[str, Any]], Call], prompt: dict[str, Any]
) -> None:
    assert completed(parse, prompt) == [(0.2, 7, 3)]
    assert completed(parse, {**prompt, "temperature": None, "max_tokens": None}) == [(0.2, 7, 3)]
    said = {"temperature": 0.8, "top_k": 40, "max_tokens": -1, "n": 2}
    assert completed(parse, {**prompt, **said}) == [(0.8, 40, -1)] * 2
    assert completed(parse, {**prompt, "max_completion_tokens": 5}) == [(0.2, 7, 5)]


def test_variables_of_the_template_are_joined() -> None:
    def variables(**body: Any) -> Any:
        (run,) = parse_chat({"messages": MESSAGES, **body}).turn.with_defaults(DEFAULTS).runs
        assert isinstance(run.prompt, Chat)
        return run.prompt.template_kwargs

    assert variables() == {"enable_thinking": False, "tone": "dry"}
    assert variables(reasoning_effort="low") == {"enable_thinking": True, "reasoning_effort": "low", "tone": "dry"}
    assert variables(chat_template_kwargs={"tone": "warm"}) == {"enable_thinking": False, "tone": "warm"}


@pytest.mark.parametrize(
    ("said", "effort"),
    [
        ({"reasoning_effort": "none"}, "no_think"),
        ({"reasoning": "off"}, "no_think"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "no_think"),
        ({"reasoning": "off", "chat_template_kwargs": {"reasoning_effort": "low"}}, "low"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning": "on"}, None),
        ({}, None),
    ],
)
def test_reasoning_is_switched_off_by_the_word_that_the_template_has_for_it(said: Any, effort: str | None) -> None:
    (run,) = parse_chat({"messages": MESSAGES, **said}).turn.with_defaults(ModelSettings(), "no_think").runs
    assert isinstance(run.prompt, Chat) and run.prompt.template_kwargs.get("reasoning_effort") == effort


def test_the_models_own_template_says_the_word(serve_fake: Serve, tmp_path: Path) -> None:
    template = "{% if reasoning_effort == 'none' %}quick{% endif %}{{ messages[0].content }}"
    path = tmp_path / "acme/Thinker/Thinker.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(gguf(llama(tokenizer__chat_template=template)))
    server = serve_fake(models_dir=[tmp_path])
    client = server.client()
    assert client.post("/v1/chat/completions", {"model": "thinker", "messages": MESSAGES, "reasoning": "off"}).status == 200
    assert last_generation(server)["template_kwargs"] == {"enable_thinking": False, "reasoning_effort": "none"}
    (listed,) = (entry for entry in client.get("/api/v1/models").json["models"] if entry["key"] == "thinker")
    assert listed["capabilities"]["reasoning"] == {"allowed_options": ["off", "on"], "default": "on"}


def test_a_model_without_settings_changes_nothing() -> None:
    turn = parse_chat({"messages": MESSAGES}).turn
    assert turn.with_defaults(ModelSettings()) == turn


# ---- a server --------------------------------------------------------------------------------------------------------


def write_settings(server: FakeServer, said: Any) -> None:
    server.config.home.mkdir(exist_ok=True)
    (server.config.home / "model-settings.json").write_text(json.dumps(said))


def last_generation(server: FakeServer) -> dict[str, Any]:
    command = next(command for kind, _, command in reversed(server.engine.commands) if kind == Kind.GENERATE)
    assert isinstance(command, dict)
    return command


@pytest.mark.parametrize("family", ["/v1", "/api/v0"])
@pytest.mark.parametrize("kind", ["chat/completions", "completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_defaults_reach_the_engine_in_every_dialect(serve_fake: Serve, family: str, kind: str, stream: bool) -> None:
    server = serve_fake()
    write_settings(server, {"talker": {"sampling": {"temperature": 0.25, "max_tokens": 2}}})
    body = {"model": "talker", "stream": stream, "messages": MESSAGES, "prompt": "hi", "top_p": 0.5}
    assert server.client().post(f"{family}/{kind}", body).status == 200
    command = last_generation(server)
    assert (command["sampling"]["temperature"], command["sampling"]["top_p"], command["max_tokens"]) == (0.25, 0.5, 2)


def test_a_models_own_settings_are_what_it_is_loaded_with(serve_fake: Serve) -> None:
    server = serve_fake(flash_attention="on", context_length=512, parallel=3)
    ours = {"flash_attention": "auto", "kv_type": "q8_0,f16", "context_length": 1024, "gpu_layers": "off"}
    write_settings(server, {"talker": {**ours, "mmap": False}})
    client = server.client()
    assert client.post("/v1/chat/completions", {"model": "talker", "messages": MESSAGES}).status == 200
    load = next(command for kind, _, command in server.engine.commands if kind == Kind.LOAD)
    assert (load["flash_attention"], load["k_cache_type"], load["v_cache_type"]) == (None, "q8_0", "f16")
    assert (load["context_length"], load["gpu_layers"], load["mmap"], load["parallel"]) == (1024, 0, False, 3)
    (listed,) = (entry for entry in client.get("/api/v1/models").json["models"] if entry["key"] == "talker")
    assert listed["loaded_instances"][0]["config"]["context_length"] == 1024


def test_settings_that_change_hold_for_a_loaded_model_from_the_next_request(serve_fake: Serve) -> None:
    server = serve_fake()
    client = server.client()
    body = {"model": "talker", "messages": MESSAGES}
    for temperature in (0.5, 0.25):
        write_settings(server, {"acme/talker": {"sampling": {"temperature": temperature}}})
        client.post("/v1/chat/completions", body)
        assert last_generation(server)["sampling"]["temperature"] == temperature
    assert len(server.engines) == 1


def test_a_wrong_setting_refuses_its_model_and_says_why(serve_fake: Serve) -> None:
    server = serve_fake()
    write_settings(server, {"talker": {"kv_type": "q9"}})
    client = server.client()
    refused = client.post("/v1/chat/completions", {"model": "talker", "messages": MESSAGES})
    assert refused.status == 422
    assert "model-settings.json: kv_type: 'q9' is not allowed" in refused.json["error"]["message"]
    listed = {entry["key"]: entry for entry in client.get("/api/v1/models").json["models"]}
    assert "kv_type" in listed["talker"]["description"]
    assert client.post("/v1/embeddings", {"model": "embedder", "input": "a"}).status == 200


def test_models_that_come_and_go_are_seen_without_a_restart(serve_fake: Serve, tmp_path: Path) -> None:
    server = serve_fake(models_dir=[tmp_path / "disk"])
    client = server.client()
    body = {"model": "falcon", "messages": MESSAGES}

    def listed() -> list[str]:
        return [entry["id"] for entry in client.get("/v1/models").json["data"]]

    def asked() -> list[int]:
        return [client.post("/v1/chat/completions", body).status, client.get("/v1/models/falcon").status]

    assert ("falcon" in listed(), asked()) == (False, [404, 404])
    path = tmp_path / "disk/acme/Falcon-GGUF/Falcon-Q4_K_M.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(gguf(llama()))
    assert client.get("/v1/models/falcon").status == 200
    path.unlink()
    assert asked() == [404, 404]
    path.write_bytes(gguf(llama()))
    assert (listed(), asked()) == (["falcon"], [200, 200])


# ---- with the real engine --------------------------------------------------------------------------------------------


def test_a_models_own_limit_holds_on_a_real_server_until_a_request_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    said = {"lmlite-tiny": {"sampling": {"temperature": 0, "max_tokens": 2}}}
    (tmp_path / "model-settings.json").write_text(json.dumps(said))
    with Server(port=0, home=tmp_path, isolation="thread") as server:
        client = Client(server.port)
        body = {"model": "lmlite-tiny", "prompt": "One two three", "ignore_eos": True}
        answers = [client.post("/v1/completions", {**body, **more}).json for more in ({}, {}, {"max_tokens": 4})]
        client.close()
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [2, 2, 4]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]  # greedy


def test_the_embedded_model_has_the_users_settings_but_for_what_it_is_told(tmp_path: Path) -> None:
    said = {"lmlite-tiny": {"sampling": {"temperature": 0, "max_tokens": 2}, "ttl": 1}, "falcon": {"kv_type": "q9"}}
    (tmp_path / "model-settings.json").write_text(json.dumps(said))
    with lmlite.load(bundled_model(), home=tmp_path) as model:
        short = model.complete("One two three", ignore_eos=True)
        assert short == model.complete("One two three", ignore_eos=True)
        longer = model.complete("One two three", ignore_eos=True, max_tokens=20)
        assert longer.startswith(short) and len(longer) > len(short)
        assert model.chat(MESSAGES, ignore_eos=True) == model.chat(MESSAGES, ignore_eos=True, max_tokens=2)


def cached_with_a_definition(home: Path) -> None:
    """The bundled model in a Hugging Face cache, and a model.yaml of a catalogue that is made of it."""
    repo = home / ".cache/huggingface/hub/models--community--Tiny-GGUF"
    blob, link = repo / "blobs/b10b", repo / "snapshots/a1/Tiny-Q8_0.gguf"
    for folder in (blob.parent, link.parent, repo / "refs"):
        folder.mkdir(parents=True)
    shutil.copy(bundled_model(), blob)
    link.symlink_to("../../blobs/b10b")
    (repo / "refs/main").write_text("a1")
    document = home / ".lmstudio/hub/models/acme/tiny/model.yaml"
    document.parent.mkdir(parents=True)
    document.write_text(
        "model: acme/tiny\nbase: [{key: community/tiny-gguf, sources: [{user: community, repo: Tiny-GGUF}]}]\n"
        "config: {operation: {fields: [{key: llm.prediction.maxPredictedTokens, value: {checked: true, value: 3}}]}}"
    )


def test_a_catalogue_model_in_the_hugging_face_cache_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cached_with_a_definition(tmp_path)
    with Server(port=0, home=tmp_path / "home") as server:
        client = Client(server.port)
        (entry,) = client.get("/api/v1/models").json["models"]
        answer = client.post("/v1/chat/completions", {"messages": MESSAGES, "ignore_eos": True})
        client.close()
    (variant,) = entry["variants"]
    assert (entry["key"], entry["publisher"], entry["selected_variant"]) == ("acme/tiny", "acme", variant)
    assert (answer.status, answer.json["model"], answer.json["usage"]["completion_tokens"]) == (200, "acme/tiny", 3)
