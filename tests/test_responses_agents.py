"""What agents ask of `/v1/responses`, with real engines: in its size, and again and again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.server import Server
from tests.conftest import Answer, Client
from tests.random_models import Llama
from tests.replays import codex
from tests.test_log_stream import Ear
from tests.test_messages import CITIES, common, tokens_of
from tests.test_responses import PATH, events_of


@pytest.fixture(scope="module")
def agent_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundled model, by another name too."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with Server(port=0, home=home, alias=["codex=lmlite-tiny"]) as server:
            yield server


@pytest.fixture
def small_agent(agent_server: Server) -> Iterator[Client]:
    client = Client(agent_server.port)
    yield client
    client.close()


def last(answer: Answer) -> dict[str, Any]:
    """The response that a stream ended in."""
    response: dict[str, Any] = events_of(answer)[-1]["response"]
    return response


def prompt_of(response: dict[str, Any]) -> tuple[int, int]:
    usage = response["usage"]
    return usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]


def test_requests_of_real_size_are_answered_and_only_what_is_new_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = Llama(n_ctx=32768, n_embd=32, n_head=1, n_ff=32).write(tmp_path / "random.gguf")
    with Server(port=0, home=tmp_path, models=[path], context_length=0, alias=["codex=random"]) as server:
        client = Client(server.port)
        assert client.post(PATH, codex.preload("codex")).status == 200
        items = [codex.message("user", "Why does the test of the parser fail?")]
        computed = 0
        for _ in range(3):
            body = codex.body(items, max_output_tokens=16)
            assert len(body["tools"]) >= 25
            answer = client.ask("POST", codex.PATH, body, codex.HEADERS)
            assert answer.headers["X-Lmlite-Ignored"] == "local_shell, web_search, image_generation, tool_search"
            response = last(answer)
            total, cached = prompt_of(response)
            assert total > 20_000 and cached >= computed
            computed = total - 1
            items += [*codex.sent_back(response["output"]), codex.message("user", "Go on.")]
        client.close()


def test_a_small_agent_reads_a_file(small_agent: Client) -> None:
    client = small_agent
    items = [codex.message("user", "Read the file a.txt")]
    asked = codex.body(items, small=True, max_output_tokens=60, temperature=0, tool_choice="required")
    response = last(client.ask("POST", codex.PATH, asked, codex.HEADERS))
    assert response["output"][-1]["type"] in ("function_call", "custom_tool_call")
    items += [*codex.sent_back(response["output"]), *codex.results(response["output"], "It says hello.")]
    asked = codex.body(items, small=True, max_output_tokens=60)
    total, cached = prompt_of(last(client.ask("POST", codex.PATH, asked, codex.HEADERS)))
    assert total // 2 < cached < total


WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.mark.parametrize("kept", [False, True], ids=["sent", "kept"])
@pytest.mark.parametrize("effort", ["none", "low"])
def test_twenty_turns_compute_only_what_is_new(
    small_agent: Client, effort: str, kept: bool
) -> None:
    """Whatever was computed before, prompts and answers, the longest beginning that a prompt has in common with one of
    them is in the cache; whether the client sends all that was said, or the server has it."""
    client, listener = small_agent, Client(small_agent.port)
    ear = Ear(listener, "?filter=input,output")
    items: list[dict[str, Any]] = []
    new: list[dict[str, Any]] = []
    before: list[list[int]] = []
    previous: str | None = None
    n_calls = 0
    for turn in range(20):
        if not new:
            new = [codex.message("user", f"What is the weather in {CITIES[turn // 2 % len(CITIES)]}?")]
        items += new
        body = {
            "model": "codex",
            "max_output_tokens": 60,
            "temperature": 0,
            "instructions": "You are an agent.",
            "input": new if kept else items,
            "previous_response_id": previous if kept else None,
            "tools": [WEATHER],
            "reasoning": {"effort": effort},
            "stream": True,
        }
        response = last(client.ask("POST", PATH, body))
        given, said = ear.next(), ear.next()
        assert given is not None and said is not None
        prompt = tokens_of(client, given["input"])
        total, cached = prompt_of(response)
        assert total == len(prompt)
        assert cached >= max((common(prompt, earlier) for earlier in before), default=0) - 1
        before.append(tokens_of(client, given["input"] + ("" if "reasoning" in said else said["output"])))
        items += response["output"]
        new = codex.results(response["output"], "sunny")
        previous = response["id"]
        n_calls += len(new)
    assert n_calls >= 5
    ear.response.close()
    listener.close()
