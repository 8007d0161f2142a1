"""OpenAI's Responses clients, unchanged, against a real server with the bundled model; `tests/clients.md` lists them all.

The cases named after the Open Responses compliance suite are written from the descriptions of its tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from lmlite.server import Server
from tests.conftest import FakeServer
from tests.fakes import Script
from tests.test_openai_client import MODEL, fetch, node_folder, run_node

__all__ = ["node_folder"]

LOCATION: dict[str, Any] = {
    "type": "object",
    "properties": {"location": {"type": "string", "maxLength": 20}},
    "required": ["location"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Today's weather in a city",
    "parameters": LOCATION,
    "strict": True,
}
QUESTION = "What is the weather like in Paris?"
STAYING: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 60}


@pytest.fixture
def client(tiny_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def streamed(client: openai.OpenAI, **asked: Any) -> tuple[list[ResponseStreamEvent], Response]:
    """With the client's own accumulator, which is strict about order, ids and indices."""
    with client.responses.stream(**{**STAYING, **asked}) as stream:
        events: list[Any] = list(stream)
        return events, stream.get_final_response()


def test_whole_stream_and_events_say_the_same(client: openai.OpenAI) -> None:
    whole = client.responses.create(**STAYING, input="Hello!")
    _, final = streamed(client, input="Hello!")
    assert final.output_text == whole.output_text != ""
    events = list(client.responses.create(**STAYING, input="Hello!", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert whole.usage is not None and final.usage is not None
    assert whole.usage.output_tokens == final.usage.output_tokens > 0


class Place(pydantic.BaseModel):
    location: str = pydantic.Field(max_length=20)


def test_parse_gives_the_object(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(**STAYING, input="Where is the Eiffel Tower?", text_format=Place)
    assert isinstance(parsed.output_parsed, Place)
    with client.responses.stream(**STAYING, input="Where is the Eiffel Tower?", text_format=Place) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_response().output_parsed, Place)


def test_log_probabilities_come_with_the_text(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "input": "Hello!"}
    (item,) = client.responses.create(**STAYING, **asked).output
    assert item.type == "message" and item.content[0].type == "output_text"
    logprobs = item.content[0].logprobs
    assert logprobs and all(len(token.top_logprobs) == 2 for token in logprobs)
    assert "".join(token.token for token in logprobs).startswith(item.content[0].text)
    _, final = streamed(client, **asked)
    again = final.output[0]
    assert again.type == "message" and again.content[0].type == "output_text" and again.content[0].logprobs
    assert [token.token for token in again.content[0].logprobs] == [token.token for token in logprobs]


def test_a_conversation_goes_on_from_a_kept_response(client: openai.OpenAI) -> None:
    first = client.responses.create(**STAYING, input=QUESTION, tools=[WEATHER], tool_choice="required")
    (call,) = first.output
    assert call.type == "function_call" and json.loads(call.arguments)["location"]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 21 degrees"}
    kept = client.responses.create(**STAYING, input=[result], previous_response_id=first.id)
    sent: list[Any] = [{"role": "user", "content": QUESTION}, call.model_dump(exclude_none=True), result]
    told = client.responses.create(**STAYING, input=sent)
    assert kept.output_text == told.output_text != ""
    assert kept.usage is not None and told.usage is not None
    assert kept.usage.input_tokens == told.usage.input_tokens
    pointed: list[Any] = [sent[0], {"type": "item_reference", "id": call.id}, result]
    assert client.responses.create(**STAYING, input=pointed).output_text == told.output_text


def test_a_background_response_is_polled_and_replayed(client: openai.OpenAI) -> None:
    response = client.responses.create(**STAYING, input="Hello!", background=True)
    assert response.status == "queued"
    while response.status in ("queued", "in_progress"):
        response = client.responses.retrieve(response.id)
    assert response.status == "completed" and response.output_text
    events = list(client.responses.retrieve(response.id, stream=True, starting_after=1))
    assert [event.sequence_number for event in events] == list(range(2, 2 + len(events)))
    assert events[-1].type == "response.completed" and events[-1].response.output_text == response.output_text
    assert client.responses.cancel(response.id).status == "completed"
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_input_is_counted_and_listed(client: openai.OpenAI) -> None:
    response = client.responses.create(**STAYING, input="Hello!", instructions="Be brief.")
    counted = client.responses.input_tokens.count(model=MODEL, input="Hello!", instructions="Be brief.")
    assert response.usage is not None and counted.input_tokens == response.usage.input_tokens
    (item,) = client.responses.input_items.list(response.id)
    assert item.type == "message" and item.content[0].type == "input_text" and item.content[0].text == "Hello!"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="nobody", input="Hello!")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as lost:
        client.responses.create(model=MODEL, input="Hello!", previous_response_id="resp_0")
    assert (lost.value.code, lost.value.param) == ("previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_refused_unless_it_may_be_cut(client: openai.OpenAI, stream: bool) -> None:
    long: Any = [say(role, "word " * 300) for role in ("user", "assistant") * 10]
    long.append(say("user", "Hello!"))
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size") as refused:
        client.responses.create(model=MODEL, input=long, stream=stream, truncation="disabled")
    assert refused.value.code == "context_length_exceeded"
    cut = client.responses.create(model=MODEL, input=long, truncation="auto", max_output_tokens=1)
    assert cut.truncation == "auto" and cut.usage is not None and cut.usage.input_tokens > 100


def test_failures_in_a_stream_are_raised(serve_fake: Callable[..., FakeServer]) -> None:
    server = serve_fake(Script(die_after=3))
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any", max_retries=0) as client:
        heard = []
        with pytest.raises(openai.APIError, match="gone") as created:
            for event in client.responses.create(model="talker", input="Hi", stream=True):
                heard.append(event.type)
        assert created.value.code == "engine_gone" and heard[-1] == "response.failed"
        with (
            pytest.raises(openai.APIError, match="gone"),
            client.responses.stream(model="talker", input="Hi") as stream,
        ):
            stream.until_done()


def test_a_conversation_outlives_its_server_and_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ids: list[str] = []
    asked = ["Hello!", "What is 2 plus 2?", "Tell me a story."]
    for text in asked[:2]:
        with Server(port=0, home=tmp_path) as server, client_of(server) as client:
            previous = ids[-1] if ids else None
            first = client.responses.create(**STAYING, input=text, previous_response_id=previous)
            ids.append(first.id)
            client.post("../api/v1/models/unload", body={"instance_id": MODEL}, cast_to=object)
            assert client.responses.retrieve(first.id) == first
    with Server(port=0, home=tmp_path) as server, client_of(server) as client:
        kept = client.responses.create(**STAYING, input=asked[2], previous_response_id=ids[-1])
        messages: list[Any] = []
        for id, text in zip(ids, asked, strict=False):
            messages += [{"role": "user", "content": text}]
            messages += [{"role": "assistant", "content": client.responses.retrieve(id).output_text}]
        told = client.responses.create(**STAYING, input=[*messages, {"role": "user", "content": asked[2]}])
        assert kept.output_text == told.output_text != ""
        assert kept.usage is not None and told.usage is not None
        assert kept.usage.input_tokens == told.usage.input_tokens


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_a_conversation_computes_only_what_is_new(client: openai.OpenAI) -> None:
    previous, n_before = None, 0
    for turn in range(6):
        response = client.responses.create(**STAYING, input=f"Say {turn}.", previous_response_id=previous)
        assert response.usage is not None
        assert response.usage.input_tokens_details.cached_tokens >= n_before - 1
        previous, n_before = response.id, response.usage.input_tokens


# ---- as Codex asks ---------------------------------------------------------------------------------------------------

GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" LF\n'}
CODEX: dict[str, Any] = {
    "instructions": "You are a coding agent.",
    "tools": [
        WEATHER,
        {"type": "local_shell"},
        {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": GRAMMAR},
        {"type": "namespace", "name": "mcp__docs", "description": "Docs.", "tools": [{**WEATHER, "name": "find/it"}]},
        {"type": "web_search", "external_web_access": False},
        {"type": "image_generation", "output_format": "png"},
    ],
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199",
    "text": {"verbosity": "medium"},
}


def codex_input(*items: Any) -> list[Any]:
    context = "<environment_context><cwd>/tmp</cwd></environment_context>"
    return [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions/>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": context}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        *items,
    ]


@pytest.mark.parametrize(
    ("choice", "kind", "name"),
    [
        ({"type": "custom", "name": "apply_patch"}, "custom_tool_call", "apply_patch"),
        ({"type": "function", "name": "get_weather"}, "function_call", "get_weather"),
        ({"type": "function", "name": "find/it", "namespace": "mcp__docs"}, "function_call", "find/it"),
    ],
)
def test_every_kind_of_tool_is_called_and_its_result_read(
    client: openai.OpenAI, choice: Any, kind: str, name: str
) -> None:
    asked = {**CODEX, "tool_choice": choice, "max_output_tokens": 200}
    events: list[Any] = list(client.responses.create(**{**STAYING, **asked}, input=codex_input(), stream=True))
    items = [event.item.model_dump(exclude_none=True) for event in events if event.type == "response.output_item.done"]
    call = items[-1]
    assert (call["type"], call["name"], call.get("namespace")) == (kind, name, choice.get("namespace"))
    deltas = [event for event in events if event.type.endswith(".delta") and event.item_id == call["id"]]
    said = "".join(event.delta for event in deltas)
    assert said == call.get("input", call.get("arguments")) != ""
    if kind == "function_call" and call["status"] == "completed":
        assert json.loads(said)["location"]
    for thought in items[:-1]:
        assert thought["type"] == "reasoning" and thought["summary"] and thought["encrypted_content"]
    foreign: Any = {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "gAAAAA"}
    output = {"type": f"{kind}_output", "call_id": call["call_id"], "output": "Sunny"}
    more = {**STAYING, **CODEX, "reasoning": {"effort": "none"}, "tool_choice": "none"}
    last = client.responses.create(**more, input=codex_input(foreign, *items, output))
    assert [item.type for item in last.output] == ["message"]


@pytest.mark.parametrize("nothing", ["", []])
def test_a_model_is_loaded_by_a_request_that_asks_nothing(client: openai.OpenAI, nothing: Any) -> None:
    response = client.responses.create(model=MODEL, input=nothing, max_output_tokens=1, store=False)
    assert response.status in ("completed", "incomplete")


# ---- Open Responses --------------------------------------------------------------------------------------------------

RESPONSE_KEYS = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "max_output_tokens",
    "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
"""All have to be there, some may be null."""


def check(response: Response) -> Response:
    """The shape that the suite demands of a response that has come to its end."""
    told = response.model_dump()
    assert set(told) >= RESPONSE_KEYS
    assert response.object == "response" and response.status == "completed" and response.output
    assert response.completed_at is not None and response.completed_at >= response.created_at
    for tool in told["tools"]:
        assert {"type", "name", "description", "parameters", "strict"} <= set(tool)
    for item in told["output"]:
        assert item["id"] and item["status"] == "completed"
        if item["type"] == "message":
            assert item["role"] == "assistant"
            assert all({"type", "text", "annotations", "logprobs"} <= set(part) for part in item["content"])
        if item["type"] == "function_call":
            assert 1 <= len(item["call_id"]) <= 64 and item["name"] == "get_weather"
            assert isinstance(json.loads(item["arguments"]), dict)
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    return response


def say(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def test_compliance_basic_response(client: openai.OpenAI) -> None:
    asked: Any = [say("user", "Say hello in exactly three words.")]
    assert check(client.responses.create(model=MODEL, temperature=0, input=asked)).output_text


def test_compliance_streaming_response(client: openai.OpenAI) -> None:
    events, final = streamed(client, input=[say("user", "Count from 1 to 5.")])
    assert events[0].type == "response.created"
    check(final)


def test_compliance_system_prompt(client: openai.OpenAI) -> None:
    asked: Any = [say("system", "You are a pirate. Always respond in pirate speak."), say("user", "Say hello.")]
    check(client.responses.create(model=MODEL, temperature=0, input=asked))


def test_compliance_tool_calling(client: openai.OpenAI) -> None:
    """Nothing says that the model has to call."""
    asked: Any = [say("user", QUESTION)]
    response = check(client.responses.create(model=MODEL, temperature=0, input=asked, tools=[WEATHER]))
    assert [item.type for item in response.output] == ["function_call"]


def test_compliance_tool_calling_streaming(client: openai.OpenAI) -> None:
    events, final = streamed(client, input=[say("user", QUESTION)], tools=[WEATHER])
    kinds = [event.type for event in events]
    for kind in (
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ):
        assert kind in kinds
    assert [item.type for item in check(final).output] == ["function_call"]


def test_compliance_multi_turn(client: openai.OpenAI) -> None:
    asked: Any = [
        say("user", "My name is Alice."),
        say("assistant", "Hello Alice! Nice to meet you."),
        say("user", "What is my name?"),
    ]
    check(client.responses.create(model=MODEL, temperature=0, input=asked))


# ---- JavaScript ------------------------------------------------------------------------------------------------------

SCRIPT = """
import OpenAI from "openai";
import assert from "node:assert";
const baseURL = process.argv[2] + "/v1", model = "lmlite-tiny";
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const schema = { type: "object", properties: { location: { type: "string", maxLength: 20 } }, required: ["location"],
  additionalProperties: false };
const question = "What is the weather like in Paris?", description = "Today's weather in a city";
const tools = [{ type: "function", name: "get_weather", description, strict: true, parameters: schema }];
const staying = { model, temperature: 0, max_output_tokens: 60 };
for (const asked of [{ input: "Hello!" }, { input: question, tools, tool_choice: "required" }]) {
  const streamed = await client.responses.stream({ ...staying, ...asked }).finalResponse();
  const whole = await client.responses.create({ ...staying, ...asked });
  assert.strictEqual(streamed.output_text, whole.output_text);
  assert.deepStrictEqual(streamed.output.map((item) => item.type), whole.output.map((item) => item.type));
  const more = await client.responses.create({ ...staying, input: "More", previous_response_id: whole.id });
  assert.strictEqual(more.previous_response_id, whole.id);
  const kept = await client.responses.retrieve(whole.id);
  assert.deepStrictEqual(kept, whole);
  const items = [];
  for await (const item of client.responses.inputItems.list(whole.id)) items.push(item);
  assert.strictEqual(items.length, 1);
  await client.responses.delete(whole.id);
  await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
}
let background = await client.responses.create({ ...staying, input: "Hello!", background: true });
while (["queued", "in_progress"].includes(background.status)) background = await client.responses.retrieve(background.id);
assert.strictEqual(background.status, "completed");
console.log("done");
"""

AI_SDK = """
import assert from "node:assert";
import { streamText, generateText, generateObject, tool, jsonSchema, stepCountIs } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenResponses } from "@ai-sdk/open-responses";
const baseURL = process.argv[2] + "/v1", id = "lmlite-tiny", question = "What is the weather like in Paris?";
const schema = jsonSchema({ type: "object", properties: { location: { type: "string", maxLength: 20 } },
  required: ["location"], additionalProperties: false });
const get_weather = tool({ description: "Today's weather in a city", inputSchema: schema, execute: async () => "Sunny" });
const models = [createOpenAI({ baseURL, apiKey: "any" }).responses(id),
  createOpenResponses({ name: "lmlite", url: baseURL + "/responses", apiKey: "any" })(id)];
for (const model of models) {
  const asked = { model, maxOutputTokens: 60, temperature: 0, maxRetries: 0 };
  const stream = streamText({ ...asked, prompt: "Hello!", onError({ error }) { throw error; } });
  let text = "";
  for await (const part of stream.fullStream) { if (part.type === "text-delta") text += part.text; }
  assert.strictEqual(text, (await generateText({ ...asked, prompt: "Hello!" })).text);
  assert.ok((await stream.usage).outputTokens > 0);
  for (const store of [true, false]) {
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
    const loop = await generateText({ ...asked, prompt: question, tools: { get_weather }, stopWhen: stepCountIs(3),
      prepareStep, providerOptions: { openai: { store } } });
    assert.deepStrictEqual(loop.steps.map((step) => step.finishReason), ["tool-calls", "stop"]);
  }
  const { object } = await generateObject({ ...asked, schema, prompt: "Where is the Eiffel Tower?" });
  assert.strictEqual(typeof object.location, "string");
}
console.log("done");
"""


def test_javascript_client_of_responses(tiny_server: Server, node_folder: Path) -> None:
    fetch(node_folder, "openai")
    assert run_node(node_folder, SCRIPT, tiny_server.url) == "done\n"


def test_ai_sdk(tiny_server: Server, node_folder: Path) -> None:
    for package in ("ai", "@ai-sdk/openai", "@ai-sdk/open-responses"):
        fetch(node_folder, package)
    assert run_node(node_folder, AI_SDK, tiny_server.url).endswith("done\n")
