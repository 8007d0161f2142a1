"""What agents send is answered, in requests of real size and through calls and their results. What Claude Code sends is in
`test_messages`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.server import Server
from tests.conftest import Client
from tests.random_models import Llama
from tests.replays import agents
from tests.replays.agents import AGENTS, Agent
from tests.voices import CHAT, RESPONSES, V0, Message, Said

EACH = pytest.mark.parametrize("agent", AGENTS, ids=[agent.name for agent in AGENTS])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that says anything, with a context of 32k."""
    home = tmp_path_factory.mktemp("home")
    path = Llama(n_ctx=32768, n_embd=32, n_head=1, n_ff=32).write(home / "random.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with Server(port=0, home=home, models=[path], context_length=0) as server:
            yield server


def ask(client: Client, agent: Agent, model: str, messages: list[Message], limit: int, **more: Any) -> Said:
    body = {"model": model, **agent.body(messages, limit, **more)}
    answer = client.ask("POST", agent.voice.path, body, {**agent.headers})
    assert answer.status == 200, answer.body
    return agent.voice.streamed(answer)


def kept(agent: Agent, said: Said) -> Message:
    """The answer as it is sent back."""
    return {**said.message(), "items": said.raw} if agent.voice is RESPONSES else said.message()


def counted(client: Client) -> tuple[int, int]:
    """Tokens of prompts so far, and those of them that were in the cache."""
    told = client.get("/metrics").body.decode()
    counts = [re.findall(rf"^lmlite_{name}_tokens_total{{[^}}]*}} (\d+)", told, re.MULTILINE) for name in ("prompt", "cached")]
    prompt, cached = (sum(map(int, found)) for found in counts)
    return prompt, cached


@EACH
def test_requests_of_real_size_are_answered_and_only_what_is_new_is_computed(large: Server, agent: Agent) -> None:
    client = Client(large.port)
    assert client.ask("GET", agent.lists, None, {**agent.headers}).status == 200
    messages: list[Message] = [
        {"role": "system", "content": agents.rules(90)},
        {"role": "user", "content": "Why does the test of the parser fail?"},
    ]
    assert len(agent.body(messages, 1)["tools"]) >= 25
    before = 0
    for _ in range(2):
        start = counted(client)
        said = ask(client, agent, "random", messages, 12)
        prompt, cached = (now - then for now, then in zip(counted(client), start))
        assert said.n_prompt == prompt > 20_000
        assert cached >= before - 1
        before = prompt
        messages += [kept(agent, said), {"role": "user", "content": "Go on."}]
    client.close()


@EACH
def test_a_small_agent_calls_and_reads_what_it_gets(tiny: Client, agent: Agent) -> None:
    messages: list[Message] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the weather in Turin?"},
    ]
    said = ask(tiny, agent, "lmlite-tiny", messages, 60, small=True)
    assert (said.reason, said.calls) == ("tool_calls", (("get_weather", '{"city": "Turin"}'),))
    messages.append(kept(agent, said))
    calls = said.raw if agent.voice is RESPONSES else messages[-1]["tool_calls"]
    id = next(call.get("call_id") or call["id"] for call in calls if call["type"] in ("function", "function_call"))
    messages.append({"role": "tool", "tool_call_id": id, "content": '{"weather": "rain"}'})
    answer = ask(tiny, agent, "lmlite-tiny", messages, 60, small=True)
    assert answer.reason == "stop" and "rain" in answer.text


def test_codex_may_ask_for_nothing_but_the_model(tiny: Client) -> None:
    """To have it loaded."""
    answer = tiny.post("/v1/responses", {"model": "lmlite-tiny", "input": "", "max_output_tokens": 1})
    assert answer.status == 200


def test_every_voice_of_agents_is_here() -> None:
    assert {agent.voice for agent in AGENTS} == {CHAT, V0, RESPONSES}
