"""The official OpenAI clients, unchanged, against a real server with the bundled model: Python, and JavaScript where
node and npm are (the only tests that fetch something: the clients' packages), where what agents make of our errors is
tried, too."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lmlite.server import Server
from tests.random_models import write_bert

MODEL = "lmlite-tiny"
SEEING = "lmlite-tiny-vision"


@pytest.fixture
def client(tiny_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def embedding_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_bert(tmp_path / "letters.gguf")
    with (
        Server(port=0, models=[path], home=tmp_path) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, SEEING]
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello!"}], temperature=0, max_tokens=40
    )
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello!"}],
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 0


def test_chat_with_choices_logprobs_and_schema(client: openai.OpenAI) -> None:
    properties = {"n": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["n"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is 2 plus 2?"}],
        n=2,
        logprobs=True,
        top_logprobs=3,
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}},
    )
    for choice in answer.choices:
        assert choice.message.content is not None and choice.logprobs is not None and choice.logprobs.content
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content)["n"], int)
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)


def test_completions_of_texts_and_tokens(client: openai.OpenAI) -> None:
    both = client.completions.create(model=MODEL, prompt=["Hello", "One"], max_tokens=4, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]
    echoed = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, temperature=0, echo=True)
    assert echoed.choices[0].text.startswith("Hello")
    chunks = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, temperature=0, stream=True)
    assert "Hello" + "".join(chunk.choices[0].text for chunk in chunks) == echoed.choices[0].text


def test_embeddings_come_as_base64_and_as_numbers(embedding_client: openai.OpenAI) -> None:
    model = embedding_client.models.list().data[0].id
    packed = embedding_client.embeddings.create(model=model, input=["a b", "c"])  # the client asks for base64
    plain = embedding_client.embeddings.create(model=model, input=["a b", "c"], encoding_format="float")
    assert [len(entry.embedding) for entry in packed.data] == [32, 32]
    for left, right in zip(packed.data, plain.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-6)
    assert packed.usage.prompt_tokens > 0


def test_embeddings_of_fewer_dimensions(embedding_client: openai.OpenAI) -> None:
    model = embedding_client.models.list().data[0].id
    (whole,) = embedding_client.embeddings.create(model=model, input="a b").data
    length = math.sqrt(math.fsum(x * x for x in whole.embedding[:8]))
    expected = [x / length for x in whole.embedding[:8]]
    for encoding in ({}, {"encoding_format": "float"}):  # without a word of it, the client asks for base64
        asked: dict[str, Any] = {"model": model, "input": "a b", "dimensions": 8, **encoding}
        (cut,) = embedding_client.embeddings.create(**asked).data
        assert cut.embedding == pytest.approx(expected, abs=1e-5)
        url = str(embedding_client.base_url).replace("/v1", "/api/v0")
        (v0,) = embedding_client.with_options(base_url=url).embeddings.create(**asked).data
        assert v0.embedding == cut.embedding
    for dimensions in (0, 33):
        with pytest.raises(openai.BadRequestError) as refused:
            embedding_client.embeddings.create(model=model, input="a b", dimensions=dimensions)
        assert refused.value.param == "dimensions"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], temperature=-1)
    assert refused.value.param == "temperature"


LONG = "word " * 20_000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ["v1", "api/v0"])
def test_context_overflow_has_openais_code(tiny_server: Server, api: str, stream: bool) -> None:
    with openai.OpenAI(base_url=f"{tiny_server.url}/{api}", api_key="any", max_retries=0) as client:
        asked: list[Callable[[], object]] = [
            lambda: client.completions.create(model=MODEL, prompt=LONG, stream=stream),
            lambda: client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": LONG}], stream=stream
            ),
        ]
        for ask in asked:
            with pytest.raises(openai.BadRequestError, match="exceeds the available context size") as refused:
                ask()
            assert (refused.value.code, refused.value.type) == ("context_length_exceeded", "exceed_context_size_error")


def test_context_overflow_of_embeddings_has_openais_code(embedding_client: openai.OpenAI) -> None:
    model = embedding_client.models.list().data[0].id
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as refused:
        embedding_client.embeddings.create(model=model, input=["a", "b " * 20_000])
    assert refused.value.code == "context_length_exceeded"


# ---- JavaScript ------------------------------------------------------------------------------------------------------

SCRIPT = """
import OpenAI from "openai";
import assert from "node:assert";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "any", maxRetries: 0 });
const model = "lmlite-tiny", messages = [{ role: "user", content: "Hello!" }];
const listed = [];
for await (const entry of client.models.list()) listed.push(entry.id);
assert.deepStrictEqual(listed, [model, `${model}-vision`]);
const whole = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 40 });
let text = "";
const stream = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 40, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.strictEqual(text, whole.choices[0].message.content);
const completed = await client.completions.create({ model, prompt: "Hello", max_tokens: 3 });
assert.strictEqual(completed.choices.length, 1);
await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), OpenAI.NotFoundError);
console.log("done");
"""


UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "EHOSTUNREACH", "ETIMEDOUT")


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for packages from npm."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not there")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    return folder


def fetch(folder: Path, package: str) -> None:
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", package]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode and any(word in done.stderr for word in UNREACHABLE):
        pytest.skip(f"npm cannot fetch {package} here: its registry is out of reach")
    assert done.returncode == 0, done.stderr


def run_node(folder: Path, script: str, url: str) -> str:
    (folder / "client.mjs").write_text(script)
    done = subprocess.run(["node", "client.mjs", url], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_javascript_client(tiny_server: Server, node_folder: Path) -> None:
    fetch(node_folder, "openai")
    assert run_node(node_folder, SCRIPT, tiny_server.url) == "done\n"


AGENT = """
import { complete, isContextOverflow } from "@mariozechner/pi-ai";
const model = {
  id: "lmlite-tiny", name: "tiny", provider: "lmlite", api: "openai-completions", baseUrl: process.argv[2] + "/v1",
  input: ["text"], reasoning: false, cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 },
  contextWindow: 128000, maxTokens: 20,
};
const said = [];
for (const content of ["Hello!", "word ".repeat(20000)]) {
  const messages = [{ role: "user", content, timestamp: 0 }];
  const answer = await complete(model, { messages }, { apiKey: "any" });
  said.push([answer.stopReason === "error", isContextOverflow(answer)]);
}
console.log(JSON.stringify(said));
"""


def test_agent_of_pi_knows_a_context_overflow(tiny_server: Server, node_folder: Path) -> None:
    """By its words alone: it was told of a larger context than there is."""
    fetch(node_folder, "@mariozechner/pi-ai")
    assert json.loads(run_node(node_folder, AGENT, tiny_server.url)) == [[False, False], [True, True]]
