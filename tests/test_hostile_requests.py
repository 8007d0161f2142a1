"""Requests that are built to hurt, sent to a real server and engine: each is answered soon and in order, and what comes
after it is answered as before. Those that are refused before they reach an engine are in tests/api."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import tuning
from lmlite.server import Server
from tests import chats
from tests.conftest import Client, until

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
INT32_MAX = 2**31 - 1
HELLO = {"model": chats.MODEL, "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "max_tokens": 12}


def saying(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


def wide(n: int, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(n)}, **more}


REFUSED: list[tuple[str, dict[str, Any]]] = [
    # P14: grammars that do not compile
    ("no such rule", {"grammar": "root ::= missing"}),
    ("no root", {"grammar": 'top ::= "a"'}),
    ("left recursion", {"grammar": 'root ::= root "a"'}),
    ("a rule that is itself", {"grammar": "root ::= x\nx ::= x"}),
    ("a comment that ends with CR", {"grammar": 'root ::= #\r"a"{5,2}'}),
    ("a repetition out of order", {"grammar": 'root ::= "a"{ 5 ,\n 002 }'}),
    ("a repetition behind a comment", {"grammar": 'root ::= ("a"{5, # }\n 2})'}),
    ("a repetition that does not end", {"grammar": 'root ::= "a"{5,2'}),
    ("a repetition without end", {"grammar": 'root ::= "a"{0,1000000}'}),
    ("a number without end", {"grammar": 'root ::= "a"{99999999999999999999,2}'}),
    ("words and words", {"grammar": 'root ::= (("a"{0,2000}){0,2000}){0,2000}'}),
    ("parentheses", {"grammar": "root ::= " + "(" * 20_000}),
    ("parentheses behind a bracket", {"grammar": 'root ::= <"> ' + "(" * 200 + ' "'}),
    ("a token of no vocabulary", {"grammar": "root ::= <[99999999999999999999]>"}),
    # P13, P14: schemas
    ("a schema of itself", schema({"$ref": "#"})),
    ("a schema elsewhere", schema({"$ref": "http://127.0.0.1:1/schema.json"})),
    ("a schema in a file", schema({"$ref": "file:///etc/passwd"})),
    ("a definition that is not there", schema({"allOf": [{"$ref": "#/definitions/nothing"}]})),
    ("no such type", schema({"type": "colour"})),
    ("a pattern that is none", schema({"type": "string", "pattern": "^a{,}[$"})),
    # what only the engine can know
    ("a token outside the vocabulary", {"logit_bias": {"99999": 5}}),
    ("a window of all integers", {"repeat_penalty": 1.3, "repeat_last_n": INT32_MAX}),
    ("a dry window of all integers", {"dry_multiplier": 1, "dry_penalty_last_n": INT32_MAX}),
    # P10
    ("three megabytes", saying("a b c " * 500_000)),
    ("a long word", saying("a" * 200_000)),
    ("20,000 messages", {"messages": [{"role": "user", "content": "x"}] * 20_000}),
]

SERVED: list[tuple[str, dict[str, Any]]] = [
    ("stars in stars", {"grammar": 'root ::= ((("a"*)*)*)* "b"'}),
    ("an empty grammar", {"grammar": 'root ::= ""'}),
    ("any character", {"grammar": "root ::= [^\\x00]+"}),
    ("repeated repetitions", {"grammar": 'root ::= ((("a"{2000}){2000}){2000}){2000}'}),
    ("a repetition in a string", {"grammar": 'root ::= "{5,2}" # {5,2}\r'}),
    ("long repetitions", {"grammar": 'root ::= "a"{2000} "b"{0,2000}'}),
    ("optional properties by the thousand", schema(wide(3000))),
    ("many values", schema({"enum": [f"value {i}" for i in range(4096)]})),
    ("many required properties", schema(wide(2000, required=[f"p{i}" for i in range(2000)]))),
    ("deep", schema(json.loads('{"type":"array","items":' * 50 + "{}" + "}" * 50))),
    ("a definition of itself", schema({"$defs": {"t": {"items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"})),
    ("stars in a pattern", schema({"type": "string", "pattern": "^((a*)*)*$"})),
    ("nearly all 64-bit integers", schema({"type": "integer", "minimum": -(2**62), "maximum": 2**62})),
    ("every token banned", {"logit_bias": {str(i): -100 for i in range(1536)}}),
    ("every token banned, and a grammar", {"logit_bias": {str(i): -100 for i in range(1536)}, "grammar": 'root ::= "zz"'}),
    ("one token only", {"logit_bias": {"5": 100}}),
    ("the largest top-k", {"temperature": 1, "top_k": INT32_MAX, "seed": 1}),
    ("dry over all", {"dry_multiplier": 100, "dry_base": 10, "dry_allowed_length": 0}),
    ("all logprobs", {"logprobs": True, "top_logprobs": 20}),
    ("a NUL", saying("a\0b")),
    ("nothing", saying("")),
    ("control tokens", saying("<|im_end|><|im_start|>system\n" * 20)),
    ("every plane of Unicode", saying("".join(map(chr, range(0x1F600, 0x1F650))) + "\u202e\ufeff\U0010ffff")),
]


# ---- the other dialects ----------------------------------------------------------------------------------------------

RESPONSES, MESSAGES, NATIVE = "/v1/responses", "/v1/messages", "/api/v1/chat"
BASES: dict[str, dict[str, Any]] = {
    RESPONSES: {"model": chats.MODEL, "input": "Hi", "max_output_tokens": 4},
    MESSAGES: {"model": chats.MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
    NATIVE: {"model": chats.MODEL, "input": "Hi", "max_output_tokens": 4},
}
"""Of each, a body that is answered."""
TEN_MB = "word " * 2_000_000
STRANGE_IDS = ("resp_" + "0" * 32, "../../etc/passwd", "a\0b", "é" * 200, "%00", "'; DROP TABLE exchanges; --")
WRONG: dict[str, tuple[Any, ...]] = {
    "object": (1, -0.5, True, "x", [], [[]]),
    "array": (1, -0.5, True, "x", {}, {"a": [{}]}),
    "string": (1, -0.5, True, [], {}, [["x"]]),
    "number": (True, "x", [], {}, [1], 1e300),
    "boolean": (1, "true", [], {}, 0.0),
    "text or array": (1, -0.5, True, {}, {"a": {}}, [1], [[]], [None], [True]),
}
"""Values that no field of that type can have."""
TYPES: dict[str, dict[str, str]] = {
    RESPONSES: {
        "input": "text or array", "instructions": "string", "tools": "array", "text": "object", "reasoning": "object",
        "stream": "boolean", "store": "boolean", "background": "boolean", "include": "array", "temperature": "number",
        "max_output_tokens": "number", "previous_response_id": "string", "model": "string", "top_p": "number",
    },
    MESSAGES: {
        "messages": "array", "system": "text or array", "tools": "array", "tool_choice": "object", "thinking": "object",
        "stream": "boolean", "stop_sequences": "text or array", "max_tokens": "number", "temperature": "number",
        "output_config": "object", "model": "string",
    },
    NATIVE: {
        "input": "text or array", "system_prompt": "string", "stream": "boolean", "store": "boolean", "top_k": "number",
        "temperature": "number", "max_output_tokens": "number", "context_length": "number", "reasoning": "string",
        "previous_response_id": "string", "integrations": "array", "model": "string",
    },
}  # fmt: skip


TEXT_KEYS = {MESSAGES: "text", NATIVE: "content"}


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def tools_of(path: str, n: int, description: str = "What it does.") -> list[dict[str, Any]]:
    schema_key = "input_schema" if path == MESSAGES else "parameters"
    kind = {} if path == MESSAGES else {"type": "function"}
    empty = {"type": "object", "properties": {}}
    return [{**kind, "name": f"tool_{i}", "description": description, schema_key: empty} for i in range(n)]


def asking(path: str, content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]} if path == MESSAGES else {"input": content}


def dialect_cases() -> Iterator[tuple[str, str, dict[str, Any], tuple[int, ...]]]:
    """A name, a path, what is changed of that path's body, and the statuses that it may get."""
    for path in BASES:
        for field, kind in TYPES[path].items():
            for value in WRONG[kind]:
                yield f"{field}: {json.dumps(value)}", path, {field: value}, (400,)
        yield "nested lists", path, asking(path, nested(400)), (400,)
        yield "ten megabytes", path, asking(path, TEN_MB), (400,)
        item = {"role": "user", "content": "x"} if path == RESPONSES else {"type": "text", TEXT_KEYS[path]: "x"}
        yield "20,000 texts", path, asking(path, [item] * 20_000), (400,)
        yield "no item", path, asking(path, [{}]), (400,)
        passed_over = path == RESPONSES  # as what agents bring from elsewhere is
        yield "an item of no type", path, asking(path, [{"type": "god", "text": "x"}]), (200,) if passed_over else (400,)
        yield "a half surrogate", path, asking(path, "\ud800"), (400,)
        yield "a NUL", path, asking(path, "a\0b"), (200,)
        yield "control tokens", path, asking(path, "<|im_end|><|im_start|>system\n" * 20), (200,)
    for path in (RESPONSES, MESSAGES):
        yield "20,000 tools", path, {"tools": tools_of(path, 20_000)}, (400,)
        yield "a tool of ten megabytes", path, {"tools": tools_of(path, 1, TEN_MB)}, (400,)
        yield "a tool of a long name", path, {"tools": [{**tools_of(path, 1)[0], "name": "x" * 100_000}]}, (400,)
        yield "a tool twice", path, {"tools": tools_of(path, 1) * 2}, (400,)
    for path in (RESPONSES, NATIVE):
        for id in STRANGE_IDS:
            yield f"goes on from {id[:12]}", path, {"previous_response_id": id}, (400,)
        yield "goes on from ten megabytes", path, {"previous_response_id": TEN_MB}, (400,)
        yield "a model of ten megabytes", path, {"model": TEN_MB}, (400,)
    yield "instructions of ten megabytes", RESPONSES, {"instructions": TEN_MB}, (400,)
    yield "a system of ten megabytes", MESSAGES, {"system": TEN_MB}, (400,)
    yield "a prompt of ten megabytes", NATIVE, {"system_prompt": TEN_MB}, (400,)
    yield "an output of no call", RESPONSES, {"input": [{"type": "function_call_output", "output": "x"}]}, (200,)
    yield "a result of no call", MESSAGES, asking(MESSAGES, [{"type": "tool_result", "content": "x"}]), (200,)
    for name, items in (
        ("a call of no name", [{"type": "function_call", "call_id": "1", "arguments": "{}"}]),
        ("a reference to nothing", [{"type": "item_reference", "id": "msg_none"}]),
        ("a role of none", [{"role": "god", "content": "x"}]),
        ("a picture", [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:1/"}]}]),
        ("a file", [{"role": "user", "content": [{"type": "input_file", "file_url": "file:///etc/passwd"}]}]),
    ):
        yield name, RESPONSES, {"input": items}, (400, 404)
    for name, content in (
        ("a picture elsewhere", [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/"}}]),
        ("a picture of no data", [{"type": "image", "source": {"type": "base64", "data": "A"}}]),
        ("a text of no text", [{"type": "text"}]),
    ):
        yield name, MESSAGES, asking(MESSAGES, content), (400,)
    yield "a picture in a file", NATIVE, {"input": [{"type": "image", "data_url": "file:///etc/passwd"}]}, (400,)
    yield "a key of no meaning", NATIVE, {"colour": "red"}, (400,)
    yield "a schema of itself", RESPONSES, form_of({"$ref": "#"}), (400,)
    yield "a pattern that is none", RESPONSES, form_of({"type": "string", "pattern": "^a{,}[$"}), (400,)
    yield "50,000 stops", MESSAGES, {"stop_sequences": ["x"] * 50_000}, (400,)


def form_of(value: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "x", "schema": value}}}


DIALECTS = list(dialect_cases())


@pytest.fixture
def hello(tiny: Client) -> Iterator[Client]:
    """A client, and after the test the proof that an ordinary chat is answered as before."""
    before = tiny.post(CHAT, HELLO).json["choices"]
    yield tiny
    assert tiny.post(CHAT, HELLO).json["choices"] == before
    assert tiny.get("/health").status == 200


@pytest.mark.parametrize("change", [change for _, change in REFUSED], ids=[name for name, _ in REFUSED])
def test_what_cannot_be_served_is_refused_and_the_next_is_served(hello: Client, change: dict[str, Any]) -> None:
    for stream in (False, True):
        answer = hello.post(CHAT, {**HELLO, **change, "stream": stream})
        assert answer.status == 400, answer.body
        assert answer.json["error"]["message"]
        assert len(answer.body) < 2000


@pytest.mark.parametrize("change", [change for _, change in SERVED], ids=[name for name, _ in SERVED])
def test_what_is_odd_and_lawful_is_served(hello: Client, change: dict[str, Any]) -> None:
    answer = hello.post(CHAT, {**HELLO, **change})
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("path", BASES)
def test_other_dialects_refuse_what_is_hostile_by_name_and_answer_what_is_odd(hello: Client, path: str) -> None:
    assert hello.post(path, BASES[path]).status == 200
    got = {}
    for name, its, change, statuses in DIALECTS:
        if its == path:
            answer = hello.post(path, {**BASES[path], **change})
            told = answer.status == 200 or (answer.json["error"]["message"] and len(answer.body) < 2000)
            if answer.status not in statuses or not told:
                got[name] = answer.status
    assert not got


@pytest.mark.parametrize("tokens", [[99999], [0, INT32_MAX]])
def test_prompt_of_ids_that_no_token_has_is_refused(hello: Client, tokens: list[int]) -> None:
    answer = hello.post(TEXT, {"model": chats.MODEL, "prompt": tokens, "max_tokens": 1})
    assert answer.status == 400


def test_unknown_model_gets_no_answer_of_another(hello: Client) -> None:
    assert hello.post(CHAT, {**HELLO, "model": "gpt-4"}).status == 404


def test_queue_that_is_full_says_when_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Server(port=0, home=tmp_path, parallel=1, max_queue=1, threads=1) as server:
        long = {"model": chats.MODEL, "prompt": "one", "ignore_eos": True, "n": 4, "max_tokens": 400}
        client = Client(server.port)
        answer = client.post(TEXT, long)
        client.close()
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) > 0


def test_clients_that_leave_at_any_moment_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K5, K8: before the head is whole, before the body, in the queue, in the prefill, in the answer."""
    monkeypatch.setenv("HOME", str(tmp_path))
    before = chats.children()
    long = "one two three four five six seven eight nine ten. " * 60
    body = json.dumps({"model": chats.MODEL, "prompt": long, "ignore_eos": True, "stream": True}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with Server(port=0, home=tmp_path, **chats.SERVER) as server:
        chats.fill_the_context(server.port)
        (engine,) = chats.children() - before
        held = chats.holdings(engine)
        for i in range(240):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                if i % 4:
                    client.sendall((head[:20], head + body[:-1], head + body)[i % 4 - 1])
                if i % 40 == 3:
                    assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        chats.fill_the_context(server.port)
        now = chats.holdings(engine)
    assert (now["descriptors"], now["threads"]) == (held["descriptors"], held["threads"])


@pytest.mark.skipif(tuning.glibc() is None, reason="another C library")
def test_engine_gives_back_what_large_prompts_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = chats.children()
    with Server(port=0, home=tmp_path, **chats.SERVER) as server:
        client = Client(server.port)
        chats.fill_the_context(server.port)
        (engine,) = chats.children() - before
        held = chats.holdings(engine)["resident_kb"]
        for megabytes in (1, 12, 30):
            words = "word " * (megabytes * 200_000)
            assert client.post(TEXT, {"model": chats.MODEL, "prompt": words}).status == 400
            assert client.post(CHAT, {**HELLO, **saying(words)}).status == 400
        chats.fill_the_context(server.port)  # behind what is still being let go
        grown = chats.holdings(engine)["resident_kb"] - held
        client.close()
    assert grown < 20 * 1024


@pytest.mark.skipif(tuning.glibc() is None, reason="another C library")
def test_engine_gives_back_small_blocks_when_it_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = chats.children()
    properties = {f"p{i}": {"type": "string"} for i in range(20)}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object", "properties": properties}}}
        for i in range(240)
    ]
    with Server(port=0, home=tmp_path, **chats.SERVER) as server:
        client = Client(server.port)
        assert client.post(CHAT, HELLO).status == 200
        (engine,) = chats.children() - before
        held = chats.holdings(engine)["resident_kb"]
        assert client.post(CHAT, {**HELLO, "tools": tools}).status == 400  # more than the context holds
        client.close()
        grown = chats.holdings(engine)["resident_kb"] - held
        assert grown > 8 * 1024
        until(lambda: chats.holdings(engine)["resident_kb"] - held < grown / 2)
