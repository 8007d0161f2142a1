"""`GET /lmlite/log`: who listens hears the prompts that models saw and what they said, the server's log, the engines'."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from lmlite.app.logs import HELD_MAX, Listener, Logs, spell
from lmlite.core.engine.frames import Kind
from lmlite.server import Server
from tests.conftest import Client, FakeServer
from tests.fakes import Gate, Script, error

Serve = Callable[..., FakeServer]
HELLO: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
TEXT = "The quick brown fox jumps over the lazy dog. "


class Ear:
    """One listener of a server."""

    def __init__(self, client: Client, query: str = ""):
        self.response: HTTPResponse = client.start("GET", f"/lmlite/log{query}")
        assert self.response.status == 200
        assert self.response.headers["Content-Type"] == "text/event-stream"
        assert self.response.readline() == b": keep-alive\n" and self.response.readline() == b"\n"

    def next(self) -> dict[str, Any] | None:
        """What the next line tells; None at the end."""
        while (line := self.response.readline()) in (b"\n", b": keep-alive\n"):
            pass
        if not line:
            return None
        told = json.loads(line.removeprefix(b"data: "))
        assert set(told) == {"timestamp", "data"} and told["timestamp"] > 1.7e12
        data: dict[str, Any] = told["data"]
        return data


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_listener_hears_the_prompt_that_the_model_saw_and_what_it_said(fake_server: FakeServer, stream: bool) -> None:
    ear = Ear(fake_server.client())
    fake_server.client().post("/v1/chat/completions", {**HELLO, "stream": stream})
    told = ear.next()
    assert told is not None and told.pop("modelPath") == "acme/talker-GGUF/talker-Q4_K_M.gguf"  # as `ls` has it
    assert told == {"type": "llm.prediction.input", "modelIdentifier": "talker", "input": "<user>hi"}
    assert ear.next() == {"type": "llm.prediction.output", "modelIdentifier": "talker", "output": TEXT}


def test_stats_are_told_to_who_asked(fake_server: FakeServer) -> None:
    with_stats, without = Ear(fake_server.client(), "?filter=output&stats=1"), Ear(fake_server.client(), "?filter=output")
    fake_server.client().post("/v1/chat/completions", HELLO)
    told, plain = with_stats.next(), without.next()
    assert told is not None and plain is not None
    assert told.pop("stats") == {
        "stopReason": "eosFound",
        "tokensPerSecond": 900.0,
        "timeToFirstTokenSec": 0.002,
        "promptTokensCount": 8,
        "predictedTokensCount": 9,
        "totalTokensCount": 17,
    }
    assert told == plain


def test_reasoning_and_tool_calls_are_told_beside_the_output(serve_fake: Serve) -> None:
    server = serve_fake(Script(reasoning=("I ", "see. "), calls=(("look", ('{"at":', '"it"}')),)))
    ear = Ear(server.client(), "?filter=output")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    server.client().post("/v1/chat/completions", {**HELLO, "tools": tools})
    told = ear.next()
    assert told is not None
    assert (told["output"], told["reasoning"]) == ("", "I see. ")
    assert told["toolCalls"] == [{"name": "look", "arguments": '{"at":"it"}'}]


def test_raw_prompts_and_token_ids_are_told_as_text(fake_server: FakeServer) -> None:
    ear = Ear(fake_server.client(), "?filter=input")
    client = fake_server.client()
    client.post("/v1/completions", {"model": "talker", "prompt": ["once", "twice"], "n": 2})
    client.post("/v1/completions", {"model": "talker", "prompt": list(b"ids")})
    told = [data["input"] for _ in range(5) if (data := ear.next())]
    assert told == ["once", "once", "twice", "twice", "ids"], "one per generation"


def test_a_stream_that_is_cut_tells_what_was_said_until_then(serve_fake: Serve) -> None:
    server = serve_fake(Script(words=("word ",) * 100_000))
    ear = Ear(server.client(), "?filter=output&stats=1")
    leaving = server.client()
    leaving.start("POST", "/v1/chat/completions", {**HELLO, "stream": True}).read1(100)
    leaving.close()
    told = ear.next()
    assert told is not None and told["output"].startswith("word ")
    assert told["stats"]["stopReason"] == "userStopped"


def test_a_generation_that_fails_tells_what_was_said_until_then(serve_fake: Serve) -> None:
    server = serve_fake(Script(die_after=3))
    ear = Ear(server.client(), "?filter=output&stats=1")
    server.client().post("/v1/chat/completions", {**HELLO, "stream": True})
    told = ear.next()
    assert told is not None and "The quick brown ".startswith(told["output"])
    assert told["stats"] == {"stopReason": "failed"}


def test_a_prompt_that_cannot_be_formatted_is_not_told_and_fails_as_ever(serve_fake: Serve) -> None:
    server = serve_fake(Script(generate_error=error("invalid_request")))
    ear = Ear(server.client())
    answer = server.client().post("/v1/chat/completions", HELLO)
    assert answer.status == 400
    told = ear.next(), ear.next()
    assert [data and data["type"] for data in told] == ["llm.prediction.input", "llm.prediction.output"]


def test_nothing_is_formatted_while_nobody_listens(fake_server: FakeServer) -> None:
    ear = Ear(fake_server.client(), "?source=server")
    client = fake_server.client()
    client.post("/v1/chat/completions", HELLO)
    assert not [kind for kind, _, _ in fake_server.engine.commands if kind == Kind.RENDER]
    del ear


def test_control_characters_and_line_ends_stay_inside_their_line(serve_fake: Serve) -> None:
    server = serve_fake(Script(words=("a\r\nb", "\x1b[31m", "\n\ndata: x\n\n")))
    ear = Ear(server.client(), "?filter=output")
    server.client().post("/v1/chat/completions", HELLO)
    told = ear.next()
    assert told is not None and told["output"] == "a\r\nb\x1b[31m\n\ndata: x\n\n"


def test_the_real_engine_tells_the_prompt_with_its_templates_marks(tiny: Client, tiny_server: Any) -> None:
    listening = Client(tiny_server.port)
    ear = Ear(listening, "?stats=1")
    body = {"messages": [{"role": "user", "content": "What is 2 plus 3?"}], "max_tokens": 8}
    answer = tiny.post("/v1/chat/completions", body).json
    told, said = ear.next(), ear.next()
    assert told is not None and said is not None
    assert "What is 2 plus 3?" in told["input"] and len(told["input"]) > len("What is 2 plus 3?")
    tokens = tiny.post("/v1/tokenize", {"content": told["input"], "parse_special": True}).json["tokens"]
    assert abs(len(tokens) - answer["usage"]["prompt_tokens"]) <= 1, "but for a BOS"
    assert said["output"] == answer["choices"][0]["message"]["content"]
    assert said["stats"]["predictedTokensCount"] == answer["usage"]["completion_tokens"]
    listening.close()


# ---- the server and its engines --------------------------------------------------------------------------------------


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> None:
    """The level that `lmlite serve` logs at."""
    caplog.set_level(logging.INFO, "lmlite")


@pytest.mark.usefixtures("info")
def test_requests_are_told_without_their_query_or_body(fake_server: FakeServer) -> None:
    ear = Ear(fake_server.client(), "?source=server")
    client = fake_server.client()
    client.get("/health")
    client.get("/v1/models/caf%C3%A9%20%22x?token=secret")
    told = ear.next()
    while told is not None and "/lmlite/log" in told["content"]:  # of another server in this process: they share its log
        told = ear.next()
    assert told is not None and told["type"] == "server.log" and told["level"] == "info"
    head, _, tail = told["content"].partition(": ")
    assert head == 'GET /v1/models/caf\\xe9 "x' and tail.startswith("404 after ")
    assert "secret" not in told["content"]


@pytest.mark.usefixtures("info")
def test_a_flood_of_requests_is_not_a_flood_of_lines(fake_server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    from lmlite.app.request_log import LINES_MAX, RequestLog
    from lmlite.wire.connection import Connection, Request, Response

    del fake_server
    log, request = RequestLog(), Request("GET", "/x", "/x", "", {}, b"", None)
    response = Response(Connection.__new__(Connection), None, 0.0)
    for i in range(LINES_MAX + 50):
        log.tell(request, response, 404, 7 + i / 1000)
    log.tell(request, response, 404, 8.5)
    lines = [record.getMessage() for record in caplog.records if record.name == "lmlite.app.request_log"]
    assert len(lines) == LINES_MAX + 2
    assert lines[-2] == "50 further requests within that second were not logged"


def test_warnings_are_told_with_their_tracebacks_from_any_thread(fake_server: FakeServer) -> None:
    ear = Ear(fake_server.client(), "?source=server")

    def fail() -> None:
        try:
            raise ValueError("no good")
        except ValueError:
            logging.getLogger("lmlite.somewhere").warning("it %s", "failed", exc_info=True)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    told = ear.next()
    assert told is not None and told["level"] == "warn"
    assert told["content"].startswith("it failed\nTraceback") and told["content"].endswith("ValueError: no good")


def test_the_log_is_not_looked_at_once_the_last_listener_has_gone(fake_server: FakeServer) -> None:
    logger = logging.getLogger("lmlite")
    before = list(logger.handlers)
    clients = [fake_server.client() for _ in range(2)]
    for client in clients:
        Ear(client, "?source=server")
    assert len(logger.handlers) == len(before) + 1
    for client in clients:
        client.close()
    fake_server.close()
    assert logger.handlers == before


def test_what_an_engine_says_on_stderr_is_told_line_by_line() -> None:
    lines: list[tuple[int, str]] = []
    ended = threading.Event()

    def keep(pid: int, line: str) -> None:
        lines.append((pid, line))
        if line == "last":
            ended.set()

    import asyncio
    import sys

    from lmlite.core.engine.worker import Process

    say = "import sys; sys.stderr.write('first\\n\\n' + 'x' * 9000 + '\\nlast')"

    async def run() -> int | None:
        process = Process((sys.executable, "-c", say), on_line=keep)
        (await process.start()).close()
        await process.wait(30)
        return process.pid

    pid = asyncio.run(run())
    assert ended.wait(30)
    assert {who for who, _ in lines} == {pid}
    assert [line for _, line in lines if not line.startswith("x")] == ["first", "last"]
    assert all(len(line) <= 4096 for _, line in lines)


def test_engines_lines_reach_who_listens_to_the_runtime(serve_fake: Serve) -> None:
    server = serve_fake()
    client = server.client()
    client.post("/v1/chat/completions", HELLO)
    ear = Ear(server.client(), "?source=runtime")
    server.service.app.logs.engine_said(4711, "ggml: out of luck")
    assert ear.next() == {
        "type": "runtime.log",
        "level": "error",
        "message": "ggml: out of luck",
        "engineName": "llama.cpp-linux-x86_64-cpu",
        "engineVersion": "fake",
        "engineType": "llama.cpp",
        "pid": 4711,
    }


@pytest.mark.usefixtures("info")
def test_loads_and_what_engines_say_are_told_with_the_model(tiny_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Server(port=0, home=tiny_server._service.config.home) as server:
        client, listening = Client(server.port), Client(server.port)
        ear = Ear(listening, "?source=runtime")
        model = client.get("/v1/models").json["data"][0]["id"]
        client.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
        told = ear.next()
        assert told is not None and told["level"] == "info"
        assert told["message"].startswith(f"{model!r} is loaded, after ")
        pid = client.get("/lmlite/instances").json["instances"][0]["pid"]
        server._service.app.logs.engine_said(pid, "ggml: out of luck")
        told = ear.next()
        assert told is not None and (told["modelIdentifier"], told["pid"]) == (model, pid)
        client.close()
        listening.close()


# ---- listeners -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?source=kernel", "source"),
        ("?filter=thoughts", "filter"),
        ("?source=server&filter=input", "filter"),
        ("?stats=maybe", "stats"),
    ],
)
def test_what_cannot_be_listened_to_is_refused_by_name(fake_server: FakeServer, query: str, param: str) -> None:
    answer = fake_server.client().get("/lmlite/log" + query)
    assert (answer.status, answer.json["error"]["type"], answer.json["error"]["param"]) == (400, "invalid_request", param)


def test_head_of_a_stream_is_answered_at_once(fake_server: FakeServer) -> None:
    answer = fake_server.client().ask("HEAD", "/lmlite/log")
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/event-stream", b"")


def test_a_slow_listener_loses_lines_and_is_told_how_many() -> None:
    import asyncio

    async def run() -> list[str]:
        listener = Listener("server", frozenset(), False)
        for line in ("a" * (HELD_MAX - 1), "b", "c", "d"):
            listener.tell(line)
        first = await listener.take(0)
        listener.tell("e")
        return [*first, *await listener.take(0)]

    lines = asyncio.run(run())
    assert [line if len(line) == 1 else line[0] for line in lines] == ["a", "b", "{", "e"]
    assert json.loads(lines[2])["data"] == {"type": "log.lost", "lines": 2}


def test_one_line_is_told_however_long_it_is() -> None:
    import asyncio

    async def run() -> list[str]:
        listener = Listener("server", frozenset(), False)
        listener.tell("a" * (2 * HELD_MAX))
        return await listener.take(0)

    assert len(asyncio.run(run())) == 1


def test_lone_surrogates_can_be_told() -> None:
    assert json.loads(spell({"output": "\ud800"}))["data"]["output"] == "\ud800"
    assert spell({"output": "\ud800"}).isascii()


def test_a_server_that_stops_ends_its_streams_at_once(serve_fake: Serve) -> None:
    server = serve_fake(drain=3600)
    ear = Ear(server.client())
    server.close()
    assert ear.next() is None


def test_who_comes_while_the_server_stops_hears_nothing() -> None:
    import asyncio

    async def run() -> bool:
        logs = Logs(lambda: None, lambda pid: None)
        logs.close()
        with logs.listen("model", frozenset(), False) as listener:
            return listener.closed

    assert asyncio.run(run())


def test_a_listener_keeps_no_model_loaded(serve_fake: Serve) -> None:
    server = serve_fake(ttl=0.05)
    ear = Ear(server.client())
    client = server.client()
    client.post("/v1/chat/completions", HELLO)
    assert ear.next() and ear.next()
    while client.get("/api/v0/models/talker").json["state"] == "loaded":
        pass


def test_a_held_up_listener_holds_up_no_request(serve_fake: Serve) -> None:
    gate = Gate(Kind.RENDER)
    server = serve_fake(Script(words=("x" * 100_000,), burst=True, hold=gate))
    gate.open()
    ear = Ear(server.client())  # and nothing of it is read
    client = server.client()
    for _ in range(60):
        assert client.post("/v1/chat/completions", HELLO).status == 200
    del ear


@pytest.fixture(autouse=True)
def no_handlers_left() -> Iterator[None]:
    yield
    assert not [h for h in logging.getLogger("lmlite.core").handlers if type(h).__name__ == "Tap"]
