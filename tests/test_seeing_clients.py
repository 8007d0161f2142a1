"""Pictures through the official clients, unchanged, to the bundled model that sees: Python's, and JavaScript's where node and
npm are. Every dialect says the same of a picture, whole and streamed, and counts the same tokens."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import numpy
import openai
import pytest
from PIL import Image

import lmlite
from lmlite.media_arguments import png_of
from lmlite.package import bundled_vision_model
from lmlite.server import Server
from tests.conftest import Client
from tests.test_openai_client import fetch, node_folder, run_node

__all__ = ["node_folder"]  # a fixture

MODEL = "lmlite-tiny-vision"
QUESTION = "What is in the picture?"
WHOLE: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


def draw(color: tuple[int, int, int], round_: bool, side: int = 96) -> bytes:
    """A disc, or a square, on a light ground."""
    y, x = numpy.mgrid[:side, :side] - side / 2
    inside = numpy.hypot(x, y) < side / 4 if round_ else numpy.maximum(abs(x), abs(y)) < side / 4
    pixels = numpy.full((side, side, 3), 235, numpy.uint8)
    pixels[inside] = color
    return png_of(pixels)


PICTURES = {"red circle": draw((220, 40, 40), True), "blue square": draw((40, 80, 220), False)}


def url(name: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(PICTURES[name]).decode()}"


def chat_content(name: str) -> list[Any]:
    return [{"type": "image_url", "image_url": {"url": url(name)}}, {"type": "text", "text": QUESTION}]


def blocks(name: str) -> list[Any]:
    data = base64.b64encode(PICTURES[name]).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    return [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]


def items(name: str) -> list[Any]:
    content = [{"type": "input_image", "image_url": url(name), "detail": "auto"}, {"type": "input_text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


@pytest.fixture
def client(tiny_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(tiny_server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=tiny_server.url, api_key="any", max_retries=0) as client:
        yield client


def seen(client: openai.OpenAI, name: str) -> tuple[str, int]:
    """What chat completions say, and the tokens of the prompt."""
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": chat_content(name)}], **WHOLE)
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens


@pytest.mark.parametrize("name", PICTURES)
def test_the_model_says_what_it_sees(client: openai.OpenAI, name: str) -> None:
    answer, n_tokens = seen(client, name)
    assert set(name.split()) <= set(answer.lower().replace(".", " ").split())
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": chat_content(name)}], stream=True, **WHOLE
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer
    text_alone = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}], **WHOLE)
    assert text_alone.usage is not None and n_tokens > text_alone.usage.prompt_tokens


@pytest.mark.parametrize("name", PICTURES)
def test_every_dialect_says_the_same(
    client: openai.OpenAI, claude: anthropic.Anthropic, tiny: Client, name: str
) -> None:
    answer, n_tokens = seen(client, name)
    asked: dict[str, Any] = {"model": MODEL, "input": items(name), "temperature": 0, "max_output_tokens": 24}
    response = client.responses.create(**asked)
    assert response.output_text == answer and response.usage is not None and response.usage.input_tokens == n_tokens
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == answer
    assert client.responses.input_tokens.count(model=MODEL, input=items(name)).input_tokens == n_tokens
    message: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "messages": [{"role": "user", "content": blocks(name)}]}
    told = claude.messages.create(**message, extra_body={"temperature": 0})
    assert [block.text for block in told.content if block.type == "text"] == [answer]
    with claude.messages.stream(**message, extra_body={"temperature": 0}) as events:
        assert [block.text for block in events.get_final_message().content if block.type == "text"] == [answer]
    counted = claude.messages.count_tokens(model=MODEL, messages=message["messages"])
    assert counted.input_tokens == n_tokens
    native = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
    native_items = [{"type": "image", "data_url": url(name)}, {"type": "text", "content": QUESTION}]
    whole = tiny.post("/api/v1/chat", {**native, "input": native_items}).json
    assert (whole["output"][0]["content"], whole["stats"]["input_tokens"]) == (answer, n_tokens)
    v0 = {"model": MODEL, "messages": [{"role": "user", "content": chat_content(name)}], **WHOLE}
    assert tiny.post("/api/v0/chat/completions", v0).json["choices"][0]["message"]["content"] == answer


def test_a_picture_of_an_earlier_turn_is_still_seen(client: openai.OpenAI) -> None:
    """The same tokens, whether a client sends it again or the server has kept it."""
    answer, _ = seen(client, "red circle")
    again = "And now?"
    turns: list[Any] = [
        {"role": "user", "content": chat_content("red circle")},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": again},
    ]
    sent = client.chat.completions.create(model=MODEL, messages=turns, **WHOLE)
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
    first = client.responses.create(**asked, input=items("red circle"))
    kept = client.responses.create(**asked, input=again, previous_response_id=first.id)
    assert sent.usage is not None and kept.usage is not None
    assert (kept.output_text, kept.usage.input_tokens) == (sent.choices[0].message.content, sent.usage.prompt_tokens)


def test_webp_is_seen_as_well(client: openai.OpenAI) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(PICTURES["blue square"])).save(file, "WEBP", lossless=True)
    content = chat_content("blue square")
    content[0]["image_url"]["url"] = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}], **WHOLE)
    assert answer.usage is not None
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens) == seen(client, "blue square")


def counts(tiny: Client) -> tuple[float, float]:
    """Pictures that were encoded, and those that were known already."""
    lines = tiny.get("/metrics").body.decode().splitlines()
    told = [float(line.split()[-1]) for line in lines if line.startswith(("lmlite_media_encoded_", "lmlite_media_reused_"))]
    assert len(told) == 2
    return told[0], told[1]


def test_a_picture_that_is_known_is_not_encoded_again(client: openai.OpenAI, tiny: Client) -> None:
    name = "red circle"
    seen(client, name)
    encoded, reused = counts(tiny)
    content = [chat_content(name)[0], {"type": "text", "text": "Which shape do you see?"}]
    other: list[Any] = [{"role": "user", "content": content}]
    client.chat.completions.create(model=MODEL, messages=other, **WHOLE)
    client.responses.create(model=MODEL, input=items(name), max_output_tokens=24)
    assert counts(tiny) == (encoded, reused + 2)


def test_pictures_that_tools_gave_are_seen(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """Both dialects write the same conversation."""
    call = {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}
    picture = {"type": "input_image", "image_url": url("blue square")}
    given: list[Any] = [{"role": "user", "content": "Look."}, call]
    given.append({"type": "function_call_output", "call_id": "a", "output": [picture]})
    asked: dict[str, Any] = {"model": MODEL, "input": given, "temperature": 0, "max_output_tokens": 24}
    response = client.responses.create(**asked)
    use = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": blocks("blue square")[:1]}
    turns: list[Any] = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    message = claude.messages.create(model=MODEL, max_tokens=24, messages=turns, extra_body={"temperature": 0})
    assert response.usage is not None
    n_anthropic = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert response.usage.input_tokens == n_anthropic
    assert response.output_text == "".join(block.text for block in message.content if block.type == "text")


def test_the_screen_that_a_client_drives_is_seen(client: openai.OpenAI) -> None:
    """A screenshot says what the same picture of a function would."""
    click = {"type": "click", "button": "left", "x": 1, "y": 2}
    arguments = json.dumps({"action": click}, separators=(",", ":"))
    picture = {"type": "input_image", "image_url": url("blue square")}
    screenshot = {**picture, "type": "computer_screenshot"}
    said: Any = {"role": "user", "content": "What is on the screen?"}
    function: list[Any] = [
        said,
        {"type": "function_call", "call_id": "a", "name": "computer", "arguments": arguments},
        {"type": "function_call_output", "call_id": "a", "output": [picture]},
    ]
    computer: list[Any] = [
        said,
        {"type": "computer_call", "id": "c", "call_id": "a", "action": click, "pending_safety_checks": []},
        {"type": "computer_call_output", "call_id": "a", "output": screenshot},
    ]
    told = []
    for items in (function, computer):
        response = client.responses.create(model=MODEL, input=items, temperature=0, max_output_tokens=24)
        assert response.usage is not None
        told.append((response.usage.input_tokens, response.output_text))
        with pytest.raises(openai.BadRequestError, match="lmlite-tiny-vision can"):
            client.responses.create(model="lmlite-tiny", input=items)
    assert told[0] == told[1]


def test_what_is_no_picture_is_the_clients_own_error(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    broken = "data:image/png;base64," + base64.b64encode(PICTURES["red circle"][:60]).decode()
    content: list[Any] = [{"type": "image_url", "image_url": {"url": broken}}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    assert refused.value.param == "messages[0].content[0].image_url.url"
    source: Any = {"type": "base64", "media_type": "image/png", "data": broken.partition(",")[2]}
    block: list[Any] = [{"type": "image", "source": source}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.source\.data"):
        claude.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": block}])
    with pytest.raises(openai.BadRequestError, match=f"lmlite-tiny.*{MODEL} can"):
        client.chat.completions.create(
            model="lmlite-tiny", messages=[{"role": "user", "content": chat_content("red circle")}]
        )


def test_compliance_image_input(client: openai.OpenAI) -> None:
    """The case of the Open Responses suite, from its description: a picture as a data URL, and a completed answer in text."""
    content: Any = [{"type": "input_text", "text": "What do you see in this image?"}, items("red circle")[0]["content"][0]]
    response = client.responses.create(model=MODEL, input=[{"type": "message", "role": "user", "content": content}])
    assert response.status == "completed" and [item.type for item in response.output] == ["message"]
    assert response.output_text


def test_python_programs_see_the_same(client: openai.OpenAI, tmp_path: Path) -> None:
    answer, _ = seen(client, "red circle")
    file = tmp_path / "a.png"
    file.write_bytes(PICTURES["red circle"])
    with lmlite.load(bundled_vision_model()) as model:
        for picture in (file, file.read_bytes()):
            assert model.chat(QUESTION, images=[picture], temperature=0, max_tokens=24) == answer


OPENAI = """
import OpenAI from "openai";
import assert from "node:assert";
const baseURL = process.argv[2] + "/v1", model = "lmlite-tiny-vision";
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const url = URL_OF_PICTURE, text = "What is in the picture?";
const content = [{ type: "image_url", image_url: { url } }, { type: "text", text }];
const asked = { model, temperature: 0, max_tokens: 24, messages: [{ role: "user", content }] };
const whole = (await client.chat.completions.create(asked)).choices[0].message.content;
assert.strictEqual((await client.chat.completions.stream(asked).finalMessage()).content, whole);
const parts = [{ type: "input_image", image_url: url, detail: "auto" }, { type: "input_text", text }];
const input = [{ role: "user", content: parts }];
const response = await client.responses.create({ model, temperature: 0, max_output_tokens: 24, input });
assert.strictEqual(response.output_text, whole);
console.log(whole);
"""

ANTHROPIC = """
import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const source = { type: "base64", media_type: "image/png", data: URL_OF_PICTURE.split(",")[1] };
const content = [{ type: "image", source }, { type: "text", text: "What is in the picture?" }];
const asked = { model: "lmlite-tiny-vision", temperature: 0, max_tokens: 24, messages: [{ role: "user", content }] };
const message = await client.messages.stream(asked).finalMessage();
console.log(message.content[0].text);
"""

AI_SDK = """
import assert from "node:assert";
import { generateText } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createAnthropic } from "@ai-sdk/anthropic";
globalThis.AI_SDK_LOG_WARNINGS = false;
const baseURL = process.argv[2] + "/v1", id = "lmlite-tiny-vision";
const image = Buffer.from(URL_OF_PICTURE.split(",")[1], "base64");
const provider = createOpenAI({ baseURL, apiKey: "any" });
const messages = [{ role: "user", content: [{ type: "image", image }, { type: "text", text: "What is in the picture?" }] }];
const said = [];
for (const model of [provider.responses(id), provider.chat(id), createAnthropic({ baseURL, apiKey: "any" })(id)]) {
  said.push((await generateText({ model, messages, temperature: 0, maxRetries: 0, maxOutputTokens: 24 })).text);
}
assert.strictEqual(new Set(said).size, 1);
console.log(said[0]);
"""


@pytest.mark.parametrize(
    ("script", "packages"),
    [(OPENAI, ["openai"]), (ANTHROPIC, ["@anthropic-ai/sdk"]), (AI_SDK, ["ai", "@ai-sdk/openai", "@ai-sdk/anthropic"])],
    ids=["openai", "anthropic", "ai"],
)
def test_javascript_clients(
    client: openai.OpenAI, tiny_server: Server, node_folder: Path, script: str, packages: list[str]
) -> None:
    for package in packages:
        fetch(node_folder, package)
    answer, _ = seen(client, "red circle")
    written = script.replace("URL_OF_PICTURE", json.dumps(url("red circle")))
    assert run_node(node_folder, written, tiny_server.url) == f"{answer}\n"
