"""One conversation in the words of every dialect: how each is asked, how its answers are read, how they are sent back.

A conversation is OpenAI's messages; that is what the other dialects' bodies are made of, as clients and proxies do it.
Contents are texts, or lists of texts and pictures.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests import chats
from tests.conftest import Answer, Client

Message = dict[str, Any]
MODEL = chats.MODEL


@dataclass(frozen=True)
class Said:
    """One answer, whoever's words it came in. `calls` are names and texts of arguments; `reason` is OpenAI's word.
    `id` is what it is gone on from by, where it was kept; `raw` what a client of that dialect would send back. `n_cached` is
    None where the dialect does not tell."""

    reasoning: str
    text: str
    calls: tuple[tuple[str, str], ...]
    reason: str
    n_prompt: int
    n_said: int
    id: str | None = field(default=None, compare=False)
    raw: Any = field(default=None, compare=False)
    n_cached: int | None = field(default=None, compare=False)

    def message(self, prefix: str = "call") -> Message:
        """As OpenAI's chats have it."""
        calls = [
            {"id": f"{prefix}_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(self.calls)
        ]
        message: Message = {"role": "assistant", "content": self.text}
        message |= {"reasoning_content": self.reasoning} if self.reasoning else {}
        return message | ({"tool_calls": calls} if calls else {})


@dataclass(frozen=True)
class Voice:
    """`body` takes a conversation, tools of OpenAI's shape, the limit of tokens; `whole` and `streamed` read answers."""

    name: str
    path: str
    body: Callable[[Sequence[Message], Sequence[Any], int | None], dict[str, Any]]
    whole: Callable[[Any], Said]
    streamed: Callable[[Answer], Said]
    stop: str | None = "stop"
    """What stop strings are called; None: there are none."""

    def ask(
        self, client: Client, messages: Sequence[Message], tools: Sequence[Any] = (), limit: int | None = None,
        *, stream: bool = False, model: str = MODEL, temperature: float | None = 0.0, **more: Any
    ) -> Said:  # fmt: skip
        asked = {"model": model, **self.body(messages, tools, limit), "stream": stream, **more}
        if temperature is not None:
            asked["temperature"] = temperature
        answer = client.post(self.path, asked)
        assert answer.status == 200, (self.name, answer.body.decode(), json.dumps(asked))
        return self.streamed(answer) if stream else self.whole(answer.json)


# ---- OpenAI's chats, and v0's ----------------------------------------------------------------------------------------


def chat_body(messages: Sequence[Message], tools: Sequence[Any], limit: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
    return body if limit is None else body | {"max_tokens": limit}


def read_chat(answer: Any) -> Said:
    (choice,) = answer["choices"]
    message = choice["message"]
    return Said(
        message.get("reasoning_content", ""),
        message["content"],
        tuple((call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())),
        choice["finish_reason"],
        answer["usage"]["prompt_tokens"],
        answer["usage"]["completion_tokens"],
        raw=message,
        n_cached=read_cached(answer),
    )


def read_cached(answer: Any) -> int | None:
    """v0 tells it in timings, to who asks for them."""
    if "timings" in answer:
        return int(answer["timings"]["cache_n"])
    details: dict[str, int] = answer["usage"].get("prompt_tokens_details", {})
    return details.get("cached_tokens")


def read_chat_stream(answer: Answer) -> Said:
    *payloads, (_, done) = answer.events
    assert done == "[DONE]"
    chunks = [json.loads(payload) for _, payload in payloads]
    heard = chats.Heard()
    for chunk in chunks:
        for choice in chunk["choices"]:
            heard.add(choice)
    assert heard.finish_reason is not None
    calls = tuple((call["name"], call["arguments"]) for call in heard.calls)
    usage: dict[str, int] = next((chunk["usage"] for chunk in chunks if chunk.get("usage")), {})
    said = Said(
        heard.reasoning, heard.content, calls, heard.finish_reason,
        usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0),
    )  # fmt: skip
    return Said(said.reasoning, said.text, calls, said.reason, said.n_prompt, said.n_said, raw=said.message())


# ---- Responses -------------------------------------------------------------------------------------------------------


def responses_body(messages: Sequence[Message], tools: Sequence[Any], limit: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {"input": [item for message in messages for item in items_of(message)]}
    if tools:
        body["tools"] = [{"type": "function", **tool["function"]} for tool in tools]
    return body if limit is None else body | {"max_output_tokens": limit}


def items_of(message: Message) -> Iterator[dict[str, Any]]:
    if "items" in message:  # as they were answered
        yield from message["items"]
    elif message["role"] == "tool":
        output = responses_content(message["content"])
        yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": output}
    elif message["role"] == "assistant":
        if message.get("reasoning_content"):
            thought = [{"type": "reasoning_text", "text": message["reasoning_content"]}]
            yield {"type": "reasoning", "id": "rs_1", "summary": [], "content": thought}
        if message["content"] or not (message.get("reasoning_content") or message.get("tool_calls")):
            yield {"role": "assistant", "content": [{"type": "output_text", "text": message["content"], "annotations": []}]}
        for call in message.get("tool_calls", ()):
            yield {"type": "function_call", "call_id": call["id"], **call["function"]}
    else:
        yield {"role": message["role"], "content": responses_content(message["content"])}


def responses_content(content: Any) -> Any:
    return content if isinstance(content, str) else [
        {"type": "input_text", "text": part["text"]} if part["type"] == "text"
        else {"type": "input_image", "image_url": part["image_url"]["url"]}
        for part in content
    ]  # fmt: skip


def read_response(answer: Any) -> Said:
    texts: dict[str, str] = {"reasoning": "", "message": ""}
    calls = []
    for item in answer["output"]:
        if item["type"] == "function_call":
            calls.append((item["name"], item["arguments"]))
        else:
            parts = item.get("content") or item.get("summary") or ()
            texts[item["type"]] += "".join(part["text"] for part in parts)
    cut = answer["status"] == "incomplete"
    reason = "length" if cut else "tool_calls" if calls else "stop"
    usage = answer["usage"]
    return Said(
        texts["reasoning"], texts["message"], tuple(calls), reason, usage["input_tokens"], usage["output_tokens"],
        id=answer["id"], raw=answer["output"], n_cached=usage["input_tokens_details"]["cached_tokens"],
    )  # fmt: skip


def read_response_stream(answer: Answer) -> Said:
    """By its deltas, held against the response that ends it."""
    events = [json.loads(payload) for _, payload in answer.events]
    said = read_response(events[-1]["response"])
    deltas = {"reasoning_text": "", "output_text": "", "function_call_arguments": ""}
    for event in events:
        kind = event["type"].removeprefix("response.").removesuffix(".delta").replace("_summary_", "_")
        if event["type"].endswith(".delta"):
            deltas[kind] += event["delta"]
    arguments = "".join(arguments for _, arguments in said.calls)
    assert list(deltas.values()) == [said.reasoning, said.text, arguments]
    return said


# ---- Messages --------------------------------------------------------------------------------------------------------


def messages_body(messages: Sequence[Message], tools: Sequence[Any], limit: int | None) -> dict[str, Any]:
    spoken: list[Message] = []
    for message in messages:
        if message["role"] == "system":
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        blocks = list(blocks_of(message))
        if spoken and spoken[-1]["role"] == role == "user" and message["role"] == "tool":
            spoken[-1]["content"] += blocks
        else:
            spoken.append({"role": role, "content": blocks})
    body: dict[str, Any] = {"messages": spoken} | ({} if limit is None else {"max_tokens": limit})
    if system := [{"type": "text", "text": message["content"]} for message in messages if message["role"] == "system"]:
        body["system"] = system
    if tools:
        functions = [tool["function"] for tool in tools]
        body["tools"] = [
            {"name": f["name"], "description": f.get("description", ""), "input_schema": f["parameters"]} for f in functions
        ]
    return body


def blocks_of(message: Message) -> Iterator[dict[str, Any]]:
    if "blocks" in message:  # as they were answered
        yield from message["blocks"]
        return
    if message["role"] == "tool":
        content = message["content"]
        result = content if isinstance(content, str) else [block_of(part) for part in content]
        yield {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": result}
        return
    if message.get("reasoning_content"):
        yield {"type": "thinking", "thinking": message["reasoning_content"], "signature": "c2lnbmVk"}
    if isinstance(message["content"], list):
        yield from map(block_of, message["content"])
    elif message["content"]:
        yield {"type": "text", "text": message["content"]}
    for call in message.get("tool_calls", ()):
        yield {"type": "tool_use", "id": call["id"], "name": call["function"]["name"],
               "input": object_of(call["function"]["arguments"])}  # fmt: skip


def block_of(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    head, data = part["image_url"]["url"].split(";base64,")
    source = {"type": "base64", "media_type": head.removeprefix("data:"), "data": data}
    return {"type": "image", "source": source}


def object_of(arguments: str) -> Any:
    """What a proxy makes of arguments: their object, or their text where they were cut."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def read_message(answer: Any) -> Said:
    blocks = answer["content"]
    usage = answer["usage"]
    reasons = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
    return Said(
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        tuple((block["name"], json.dumps(block["input"])) for block in blocks if block["type"] == "tool_use"),
        reasons[answer["stop_reason"]],
        usage["input_tokens"] + usage["cache_read_input_tokens"],
        usage["output_tokens"],
        raw=blocks,
        n_cached=usage["cache_read_input_tokens"],
    )


def read_message_stream(answer: Answer) -> Said:
    blocks: list[dict[str, Any]] = []
    whole: dict[str, Any] = {}
    for name, payload in answer.events:
        event = json.loads(payload)
        match name:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(dict(event["content_block"]))
            case "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "input_json_delta":
                    blocks[-1]["json"] = blocks[-1].get("json", "") + delta["partial_json"]
                else:
                    key = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}[delta["type"]]
                    blocks[-1][key] += delta[key]
            case "message_delta":
                whole = {**event["delta"], "usage": event["usage"]}
    assert answer.events[-1][0] == "message_stop"
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("json", "") or "{}")
    return read_message({**whole, "content": blocks})


# ---- the native chat -------------------------------------------------------------------------------------------------


def native_body(messages: Sequence[Message], tools: Sequence[Any], limit: int | None) -> dict[str, Any]:
    """Of a conversation that begins: what went before is gone on from by its id."""
    assert not tools and all(message["role"] in ("system", "user") for message in messages)
    said = {message["role"]: message["content"] for message in messages}
    if isinstance(said["user"], list):
        said["user"] = [
            {"type": "text", "content": part["text"]} if part["type"] == "text"
            else {"type": "image", "data_url": part["image_url"]["url"]}
            for part in said["user"]
        ]  # fmt: skip
    body: dict[str, Any] = {"input": said["user"]} | ({"system_prompt": said["system"]} if "system" in said else {})
    return body if limit is None else body | {"max_output_tokens": limit}


def read_native(answer: Any) -> Said:
    texts: dict[str, str] = {"reasoning": "", "message": ""}
    for item in answer["output"]:
        texts[item["type"]] += item["content"]
    stats = answer["stats"]
    return Said(
        texts["reasoning"], texts["message"], (), "", stats["input_tokens"], stats["total_output_tokens"],
        id=answer.get("response_id"), raw=answer["output"],
    )  # fmt: skip


def read_native_stream(answer: Answer) -> Said:
    events = [json.loads(payload) for _, payload in answer.events]
    said = read_native(events[-1]["result"])
    for kind, text in (("reasoning", said.reasoning), ("message", said.text)):
        assert "".join(event["content"] for event in events if event["type"] == f"{kind}.delta") == text
    first = next(event["progress"] for event in events if event["type"] == "prompt_processing.progress")
    return replace(said, n_cached=round(first * said.n_prompt))


CHAT = Voice("chat", "/v1/chat/completions", chat_body, read_chat, read_chat_stream)
V0 = Voice("v0", "/api/v0/chat/completions", chat_body, read_chat, read_chat_stream)
RESPONSES = Voice("responses", "/v1/responses", responses_body, read_response, read_response_stream, stop=None)
MESSAGES = Voice("messages", "/v1/messages", messages_body, read_message, read_message_stream, stop="stop_sequences")
NATIVE = Voice("native", "/api/v1/chat", native_body, read_native, read_native_stream, stop=None)

WITH_HISTORY = (CHAT, V0, RESPONSES, MESSAGES)
"""Those that are sent whole conversations, and tools."""
BY_ID = (RESPONSES, NATIVE)
"""Those that go on from what was kept."""
VOICES = (*WITH_HISTORY, NATIVE)


# ---- the same chat through all of them -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chat:
    """What a user asks turn by turn, with the system prompt, the tools and the limit of each answer."""

    system: str
    asked: tuple[str, ...]
    tools: tuple[Any, ...]
    limit: int


def random_chats(seed: int) -> Iterator[Chat]:
    """An endless supply; those of one seed are always the same. A third have tools, which the native chat has not."""
    chance = random.Random(seed)
    while True:
        questions = [chance.choices(chats.QUESTIONS, k=chance.choice((1, 1, 2))) for _ in range(chance.randint(1, 3))]
        tools = tuple(chance.sample(chats.TOOLS, chance.randint(1, 3))) if chance.random() < 0.33 else ()
        asked = tuple(map(" ".join, questions))
        yield Chat(chance.choice(("", *chats.SYSTEMS)), asked, tools, chance.choice((3, 12, 60)))


@dataclass
class Tally:
    """Turns, answers to them that were compared, turns whose answers parted at a near tie, and answers that are wrong."""

    turns: int = 0
    answers: int = 0
    tied: int = 0
    wrong: list[str] = field(default_factory=list)


def compare(port: int, chat: Chat, tally: Tally) -> None:
    """Every dialect says the same at each turn, streamed and whole, whether it is sent the conversation or goes on by id."""
    client = Client(port)  # of its own: judging takes longer than a connection is kept for
    try:
        _compare(client, chat, tally)
    finally:
        client.close()


def _compare(client: Client, chat: Chat, tally: Tally) -> None:
    messages: list[Message] = [{"role": "system", "content": chat.system}] if chat.system else []
    ids: dict[tuple[str, bool], str | None] = {}
    for text in chat.asked:
        user = {"role": "user", "content": text}
        messages.append(user)
        CHAT.ask(client, messages, chat.tools, chat.limit)  # all that are compared find the same in the cache
        reference = CHAT.ask(client, messages, chat.tools, chat.limit)
        answers = [(voice, stream, voice.ask(client, messages, chat.tools, chat.limit, stream=stream))
                   for voice in WITH_HISTORY for stream in (False, True)]  # fmt: skip
        for voice in (NATIVE,) if not chat.tools else ():
            for stream in (False, True):
                new = [message for message in messages if message["role"] == "system"][: not ids] + [user]
                id: dict[str, Any] = {"previous_response_id": ids.get((voice.name, stream))}
                said = voice.ask(client, new, (), chat.limit, stream=stream, **id)
                answers.append((voice, stream, said))
        if not chat.tools:
            ids |= {(voice.name, stream): said.id for voice, stream, said in answers if voice is NATIVE}
        body = {"model": MODEL, **chat_body(messages, chat.tools, chat.limit), "temperature": 0}
        tally.turns += 1
        tally.answers += len(answers)
        others = [answer for answer in answers if not agrees(*answer[:2], reference, answer[2])]
        for voice, stream, said in others:
            if not is_tied({**body, "stream": stream}, reference, said, voice):
                tally.wrong.append(f"{voice.name}: {said} and not {reference}: {json.dumps(body)}")
        if others:
            tally.tied += 1
            return  # the conversations are not the same any more
        messages.append(reference.message(f"call_{len(messages)}"))
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": '{"result": "rain"}'}
            for call in messages[-1].get("tool_calls", ())
        ]


def agrees(voice: Voice, stream: bool, reference: Said, said: Said) -> bool:
    hidden = voice is V0 and not stream  # the published keys have no place for reasoning
    if said.text != reference.text or (said.reasoning != reference.reasoning and not hidden):
        return False
    if said.reason not in ("", reference.reason) or (said.n_prompt and said.n_prompt != reference.n_prompt):
        return False
    if voice is MESSAGES:  # what was cut is brought to its end there
        return len(said.calls) == len(reference.calls) and all(
            name == other and (reference.reason == "length" or json.loads(arguments) == object_of(others))
            for (name, arguments), (other, others) in zip(said.calls, reference.calls)
        )
    return said.calls == reference.calls


def is_tied(body: Mapping[str, Any], reference: Said, said: Said, voice: Voice) -> bool:
    """Batches of another shape add up in another order: two answers may part where two tokens were all but as likely."""
    if said.n_prompt not in (0, reference.n_prompt):
        return False
    plan = chats.Plan(0, V0.path if voice is V0 else CHAT.path, dict(body), leaves_after=None)
    calls = [{"name": name, "arguments": arguments} for name, arguments in said.calls]
    heard = chats.Heard(said.text, said.reasoning, calls, finish_reason=said.reason or reference.reason)
    if chats.judge(plan, heard).wrong is None:
        return True
    if reference.text or reference.calls or said.calls:
        return False
    # the one had begun to call or to think, and was cut before there was anything to be told of it
    return chats.parts_at_a_near_tie(chats.raw_tokens(dict(body, stream=False)), heard, may_end=True)
