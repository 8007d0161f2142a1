"""Conversations of twenty turns with the bundled model, in each dialect's words: what was computed is not computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gguf
import pytest

from lmlite.package import bundled_model
from lmlite.server import Server
from tests import chats
from tests.conftest import Client
from tests.test_log_stream import Ear
from tests.voices import CHAT, MESSAGES, NATIVE, RESPONSES, V0, Message, Said, Voice

TURNS = 20
CITIES = ("Turin", "Paris", "Oslo", "Rome", "Lima", "Cairo", "Delhi")
KEEPS_REASONING = "{%- if message.reasoning_content %}"
"""In the bundled model's template; what follows tells the reasoning of an earlier turn."""
DROPS_REASONING = "{%- if message.reasoning_content and loop.last %}"


@pytest.fixture(scope="module", params=["reasoning kept", "reasoning dropped"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the model's own template, and with one that tells nothing of earlier reasoning."""
    home = tmp_path_factory.mktemp("home")
    options: dict[str, Any] = {}
    if request.param == "reasoning dropped":
        template = gguf.GGUFReader(str(bundled_model())).fields["tokenizer.chat_template"].contents()
        assert KEEPS_REASONING in template
        (home / "drops.jinja").write_text(template.replace(KEEPS_REASONING, DROPS_REASONING))
        options["chat_template"] = str(home / "drops.jinja")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with Server(port=0, home=home, **options) as server:
            yield server


@dataclass
class Agent:
    """Sends the whole conversation each time as its dialect's clients keep it, or `by_id` only what is new."""

    client: Client
    voice: Voice
    by_id: bool
    system: str
    messages: list[Message] = field(default_factory=list)
    id: str | None = None

    def ask(self, new: Sequence[Message]) -> Said:
        self.messages += new
        system = [{"role": "system", "content": self.system}] if self.id is None or self.voice is not NATIVE else []
        tools = () if self.voice is NATIVE else chats.TOOLS[:1]
        more: dict[str, Any] = {"previous_response_id": self.id} if self.by_id else {}
        more |= {"timings_per_token": True} if self.voice is V0 else {}
        if self.voice is RESPONSES:
            more["instructions"], system = self.system, []
        asked = [*system, *(new if self.by_id else self.messages)]
        said = self.voice.ask(self.client, asked, tools, 60, stream=self.voice is NATIVE, **more)
        self.id = said.id
        kept = said.message(f"call_{len(self.messages)}")
        if self.voice is RESPONSES:
            kept["items"] = said.raw
        elif self.voice is MESSAGES:
            kept["blocks"] = said.raw
        else:
            kept = said.raw if self.voice in (CHAT, V0) else kept
        self.messages.append(kept)
        return said

    def results(self, said: Said) -> list[Message]:
        """Of the calls that the last answer makes, and then what the user says next."""
        raw = said.raw.get("tool_calls", ()) if isinstance(said.raw, dict) else said.raw
        calls = [item for item in raw if item.get("type") in ("function", "function_call", "tool_use")]
        ids = [call.get("call_id") or call["id"] for call in calls]
        return [{"role": "tool", "tool_call_id": id, "content": '{"weather": "rain"}'} for id in ids]


def tokens_of(client: Client, text: str) -> list[int]:
    asked = {"model": chats.MODEL, "content": text, "add_special": True, "parse_special": True}
    found: list[int] = client.post("/v1/tokenize", asked).json["tokens"]
    return found


def common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))


WAYS = [(CHAT, False), (V0, False), (RESPONSES, False), (RESPONSES, True), (MESSAGES, False), (NATIVE, True)]


@pytest.mark.parametrize(("voice", "by_id"), WAYS, ids=[f"{voice.name}{' by id' * by_id}" for voice, by_id in WAYS])
def test_twenty_turns_compute_only_what_is_new(server: Server, voice: Voice, by_id: bool) -> None:
    """Of all that was computed before, prompts and answers, the longest beginning that a prompt shares is in the cache, but
    for its last token."""
    client, listener = Client(server.port), Client(server.port)
    ear = Ear(listener, "?filter=input,output")
    agent = Agent(client, voice, by_id, f"You are an agent of {voice.name}, {by_id}.")
    computed: list[list[int]] = []
    n_calls = n_thoughts = 0
    new: list[Message] = []
    for turn in range(TURNS):
        if not new:
            text = f"Think of {turn % 9} plus 2" if turn % 3 == 0 else f"What is the weather in {CITIES[turn % len(CITIES)]}?"
            new = [{"role": "user", "content": text}]
        said = agent.ask(new)
        given, told = ear.next(), ear.next()
        assert given is not None and told is not None
        prompt = tokens_of(client, given["input"])
        assert said.n_prompt == len(prompt)
        assert said.n_cached is not None
        assert said.n_cached >= max((common(prompt, earlier) for earlier in computed), default=0) - 1
        # what a template reads out of an answer is not in the log as the model wrote it
        computed.append(tokens_of(client, given["input"] + ("" if "reasoning" in told else told["output"])))
        n_calls += len(said.calls)
        n_thoughts += "reasoning" in told
        new = agent.results(said)
    assert n_thoughts >= 3 and (n_calls >= 4 or voice is NATIVE)
    ear.response.close()
    for connection in (client, listener):
        connection.close()
