"""Anthropic's official clients, unchanged, against a real server with the bundled model: Python, and JavaScript where node
and npm are, with the AI SDK's own beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from lmlite.server import Server
from tests.conftest import Client
from tests.test_openai_client import fetch, node_folder, run_node

__all__ = ["node_folder"]  # a fixture

MODEL = "lmlite-tiny"
SEEING = "lmlite-tiny-vision"
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
HELLO = {"role": "user", "content": "Hello!"}
QUESTION = {"role": "user", "content": "What is the weather in Turin?"}
SUM = {"role": "user", "content": "Think of 2 plus 2"}
THINK = {"thinking": {"type": "enabled", "budget_tokens": 1024}}


@pytest.fixture
def client(tiny_server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=tiny_server.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(params=["whole", "streamed"])
def ask(request: pytest.FixtureRequest, client: anthropic.Anthropic) -> Any:
    """The message that answers messages, asked for whole or put together by the client."""

    def ask(*messages: Any, **params: Any) -> Any:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": messages, **params}
        asked["extra_body"] = {"temperature": 0}
        if request.param == "whole":
            return client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            return stream.get_final_message()

    return ask


def test_text(ask: Any) -> None:
    message = ask(HELLO)
    (block,) = message.content
    assert block.type == "text" and "help" in block.text
    assert (message.role, message.model, message.stop_reason) == ("assistant", MODEL, "end_turn")
    assert message.id.startswith("msg_") and message.usage.output_tokens > 0


def test_call_result_and_final_answer(ask: Any) -> None:
    message = ask(QUESTION, tools=[WEATHER])
    (call,) = message.content
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Turin"})
    assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    final = ask(QUESTION, message.to_param(), {"role": "user", "content": [result]}, tools=[WEATHER])
    assert final.stop_reason == "end_turn" and [block.type for block in final.content] == ["text"]
    assert "Turin" in final.content[0].text and "sunny" in final.content[0].text


def test_thinking_stands_before_the_answer_and_can_be_sent_back(ask: Any) -> None:
    message = ask(SUM, **THINK)
    assert [block.type for block in message.content] == ["thinking", "text"]
    thought, text = message.content
    assert thought.thinking and thought.signature and "4" in text.text
    assert message.usage.output_tokens_details.thinking_tokens > 0
    assert ask(SUM, message.to_param(), HELLO, **THINK).content
    assert [block.type for block in ask(SUM, thinking={"type": "disabled"}).content] == ["text"]


def test_a_call_that_is_cut_off_parses_and_can_be_gone_on_with(ask: Any) -> None:
    whole = ask(QUESTION, tools=[WEATHER]).usage.output_tokens
    for max_tokens in range(whole - 12, whole):
        message = ask(QUESTION, tools=[WEATHER], max_tokens=max_tokens)
        assert message.stop_reason == "max_tokens"
        calls = [block for block in message.content if block.type == "tool_use"]
        assert all(isinstance(call.input, dict) for call in calls)
        if calls:
            result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": "sunny"}
            goes_on = ask(QUESTION, message.to_param(), {"role": "user", "content": [result]}, tools=[WEATHER])
            assert goes_on.content


def test_an_answer_that_has_begun_is_gone_on_with(ask: Any) -> None:
    text = ask(HELLO).content[0].text
    rest = ask(HELLO, {"role": "assistant", "content": text[:10]})
    assert rest.content[0].text == text[10:]


def test_what_stops_an_answer_is_told(ask: Any) -> None:
    message = ask(HELLO, stop_sequences=["help", "never"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "help")
    assert "help" not in message.content[0].text
    short = ask(HELLO, max_tokens=2)
    assert (short.stop_reason, short.stop_sequence, short.usage.output_tokens) == ("max_tokens", None, 2)


@pytest.mark.parametrize(
    ("choice", "calls"),
    [({"type": "any"}, True), ({"type": "tool", "name": "get_weather"}, True), ({"type": "none"}, False)],
)
def test_tool_choice(ask: Any, choice: dict[str, Any], calls: bool) -> None:
    question = HELLO if calls else QUESTION
    message = ask(question, tools=[WEATHER, {"type": "web_search_20250305", "name": "web_search"}], tool_choice=choice)
    assert ("tool_use" in [block.type for block in message.content]) == calls


def test_a_tool_that_has_no_schema_is_called(ask: Any) -> None:
    editor = {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}
    message = ask(HELLO, tools=[editor], tool_choice={"type": "tool", "name": editor["name"]}, max_tokens=400)
    call = message.content[-1]
    assert (call.type, call.name) == ("tool_use", editor["name"])
    if message.stop_reason == "tool_use":
        assert call.input["command"] in ("view", "create", "str_replace", "insert") and isinstance(call.input["path"], str)


def test_what_a_prompt_takes_is_told_before_its_first_token(client: anthropic.Anthropic) -> None:
    words = {"role": "user", "content": "One of the words that nobody else in these tests says is xylophone"}
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "messages": [words]}
    counted = client.messages.count_tokens(model=MODEL, messages=asked["messages"]).input_tokens
    for is_first in (True, False):
        with client.messages.stream(**asked) as stream:
            events = [event for event in stream if event.type in ("message_start", "message_delta")]
        start, end = events[0].message.usage, events[-1].usage  # type: ignore[union-attr]
        assert start.input_tokens + (start.cache_read_input_tokens or 0) == counted
        assert (start.output_tokens, end.output_tokens) == (0, 4)
        assert (end.input_tokens, end.cache_read_input_tokens) == (start.input_tokens, start.cache_read_input_tokens)
        assert start.input_tokens > 1 if is_first else start.input_tokens == 1


def test_tokens_of_tools_and_system_count(client: anthropic.Anthropic) -> None:
    def count(**params: Any) -> int:
        return client.messages.count_tokens(model=MODEL, messages=[HELLO], **params).input_tokens  # type: ignore[list-item]

    assert count() < count(system="Be brief.") < count(system="Be brief.", tools=[WEATHER])
    beta = client.beta.messages.count_tokens(model=MODEL, messages=[HELLO], context_management={"edits": []})  # type: ignore[list-item]
    assert beta.context_management is not None
    assert beta.context_management.original_input_tokens == beta.input_tokens == count()


def test_models_are_listed_and_retrieved(client: anthropic.Anthropic, tiny: Client) -> None:
    listed, _ = client.models.list()
    assert (listed.id, listed.type, listed.max_input_tokens) == (MODEL, "model", 2048)
    assert client.models.retrieve(MODEL) == listed
    assert tiny.get("/v1/models").json["object"] == "list"
    assert tiny.get("/v1/models", **{"x-api-key": "any"}).json["object"] == "list"


def test_errors_are_the_clients_own_classes(client: anthropic.Anthropic) -> None:
    def create(**params: Any) -> Any:
        return client.messages.create(**{"model": MODEL, "max_tokens": 9, "messages": [HELLO], **params})

    for stream in (False, True):
        with pytest.raises(anthropic.NotFoundError, match="--alias") as unknown:
            create(model="claude-nobody", stream=stream)
        assert unknown.value.type == "not_found_error" and unknown.value.body["request_id"].startswith("req_")  # type: ignore[index]
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048 maximum"):
            create(messages=[{"role": "user", "content": "word " * 3000}], stream=stream)
        with pytest.raises(anthropic.BadRequestError, match="'temperature' must be"):
            create(extra_body={"temperature": -1}, stream=stream)
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-nobody")
    with pytest.raises(anthropic.NotFoundError):
        client.post("/v1/messages/batches", body={}, cast_to=object)


def test_structured_answers(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 60, "messages": [SUM]}
    message = client.messages.create(output_config={"format": {"type": "json_schema", "schema": schema}}, **asked)
    block = message.content[-1]
    assert block.type == "text" and block.text.lstrip().startswith("{")


def test_names_of_a_form_lead_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        Server(port=0, home=tmp_path, alias=["claude-*=lmlite-tiny", "gpt-*=lmlite-tiny"]) as server,
        anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client,
    ):
        for name in ("claude-haiku-4-5-20251001", "gpt-5"):
            message = client.messages.create(model=name, max_tokens=4, messages=[HELLO])  # type: ignore[list-item]
            assert message.model == MODEL
        assert [model.id for model in client.models.list()] == [MODEL, SEEING]


# ---- JavaScript ------------------------------------------------------------------------------------------------------

SCRIPT = """
import Anthropic from "@anthropic-ai/sdk";
import assert from "node:assert";
const client = new Anthropic({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const model = "lmlite-tiny", temperature = 0;
const properties = { city: { type: "string" } };
const input_schema = { type: "object", properties, required: ["city"] };
const tools = [{ name: "get_weather", description: "Get the weather in a city", input_schema }];
const thinking = { type: "enabled", budget_tokens: 1024 };
const said = async (content, more) => {
  const asked = { model, temperature, max_tokens: 100, messages: [{ role: "user", content }], ...more };
  const streamed = await client.messages.stream(asked).finalMessage();
  const whole = await client.messages.create(asked);
  const plain = ({ content, stop_reason }) => [content.map(({ id, ...block }) => block), stop_reason];
  assert.deepStrictEqual(plain(streamed), plain(whole));
  return whole;
};
assert.strictEqual((await said("Hello!")).stop_reason, "end_turn");
const called = await said("What is the weather in Turin?", { tools });
assert.deepStrictEqual(called.content.map((block) => block.input), [{ city: "Turin" }]);
assert.strictEqual(called.stop_reason, "tool_use");
assert.strictEqual((await said("What is the weather in Turin?", { tools, max_tokens: 18 })).stop_reason, "max_tokens");
const thought = await said("Think of 2 plus 2", { thinking });
assert.deepStrictEqual(thought.content.map((block) => block.type), ["thinking", "text"]);
const counted = await client.messages.countTokens({ model, messages: [{ role: "user", content: "Hello!" }] });
assert.ok(counted.input_tokens > 0);
const listed = [];
for await (const entry of client.models.list()) listed.push(entry.id);
assert.deepStrictEqual(listed, [model, `${model}-vision`]);
const unknown = { model: "nobody", max_tokens: 9, messages: [{ role: "user", content: "Hello!" }] };
await assert.rejects(client.messages.create(unknown), Anthropic.NotFoundError);
console.log("done");
"""

AI_SDK = """
import assert from "node:assert";
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText, jsonSchema, streamText, tool } from "ai";
globalThis.AI_SDK_LOG_WARNINGS = false;
const model = createAnthropic({ baseURL: process.argv[2] + "/v1", apiKey: "any" })("lmlite-tiny");
const inputSchema = jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] });
const get_weather = tool({ description: "Get the weather in a city", inputSchema, execute: async () => "sunny" });
const thinking = { providerOptions: { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } } };
const ask = async (prompt, more) => {
  const asked = { model, prompt, temperature: 0, maxRetries: 0, maxOutputTokens: 200, ...more };
  const streamed = streamText({ ...asked, onError: ({ error }) => { throw error; } });
  for await (const part of streamed.fullStream) assert.notStrictEqual(part.type, "error");
  const whole = await generateText(asked);
  assert.strictEqual(await streamed.text, whole.text);
  assert.strictEqual(await streamed.finishReason, whole.finishReason);
  assert.strictEqual(await streamed.reasoningText, whole.reasoningText);
  return whole;
};
assert.strictEqual((await ask("Hello!")).finishReason, "stop");
const stopWhen = ({ steps }) => steps.length >= 3;
const answer = await ask("What is the weather in Turin?", { tools: { get_weather }, stopWhen });
assert.deepStrictEqual(answer.steps[0].toolCalls.map((call) => call.input), [{ city: "Turin" }]);
assert.ok(answer.text.includes("sunny"));
const thought = await ask("Think of 2 plus 2", thinking);
assert.ok(thought.reasoningText && thought.text.includes("4"));
console.log("done");
"""


def test_javascript_client(tiny_server: Server, node_folder: Path) -> None:
    fetch(node_folder, "@anthropic-ai/sdk")
    assert run_node(node_folder, SCRIPT, tiny_server.url) == "done\n"


def test_ai_sdk(tiny_server: Server, node_folder: Path) -> None:
    fetch(node_folder, "ai")
    fetch(node_folder, "@ai-sdk/anthropic")
    assert run_node(node_folder, AI_SDK, tiny_server.url) == "done\n"
