"""One connection through a fake transport and a clock that stands still."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmlite.errors import HttpError, LmError, ShuttingDown
from lmlite.wire import sse
from lmlite.wire.connection import Limits, Request, Response
from lmlite.wire.guard import Policy
from lmlite.wire.http1 import CONTINUE
from tests.wire.wire_fakes import PEER, Client, answers, get, post

JSON = "Content-Type: application/json"
Connect = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients, and checks at the end that each left nothing behind."""
    clients: list[Client] = []

    def make(*arguments: Any, **options: Any) -> Client:
        clients.append(Client(*arguments, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.end()


async def never(request: Request, response: Response) -> None:
    await asyncio.Event().wait()


async def never_ending_stream(request: Request, response: Response) -> None:
    response.start(200, sse.HEADERS)
    response.write(sse.frame(None, "1"))
    await asyncio.Event().wait()


async def short_stream(request: Request, response: Response) -> None:
    response.start(200, sse.HEADERS)
    for piece in ("1", "2"):
        response.write(sse.frame(None, piece))
        if response.paused:
            await response.drain()
    response.finish(sse.DONE)


# ---- requests and answers --------------------------------------------------------------------------------------------


def test_whole_answer(connect: Connect) -> None:
    client = connect()
    [(status, headers, body)] = answers(client.send(post("/x?y", b"{}", JSON)))
    assert (status, body) == (200, b"POST /x?y {}")
    assert headers == {
        "content-type": "application/json; charset=utf-8",
        "content-length": "12",
        "connection": "keep-alive",
        "keep-alive": "timeout=5",
    }
    [request] = client.handled
    assert (request.path, request.query, request.peer, request.headers["host"]) == ("/x", "y", PEER, "localhost")
    assert len(client.transport.writes) == 1, "head and body leave together"


def test_request_in_single_bytes(connect: Connect) -> None:
    client = connect()
    for byte in post("/x", b"{}", JSON):
        client.send(bytes([byte]), settle=False)
    client.loop.settle()
    assert [status for status, _, _ in answers(client.transport.taken)] == [200]


def test_requests_follow_each_other(connect: Connect) -> None:
    client = connect()
    for n in range(3):
        assert answers(client.send(get(f"/{n}")))[0][2] == f"GET /{n} ".encode()


def test_body_of_one_request_does_not_reach_the_next(connect: Connect) -> None:
    client = connect()
    client.send(post("/a", b"secret", JSON) + get("/b"))
    assert [request.body for request in client.handled] == [b"secret", b""]


def test_head_gets_the_headers_of_get_and_no_body(connect: Connect) -> None:
    client = connect()
    raw = client.send(get("/abc").replace(b"GET", b"HEAD"))
    assert raw.endswith(b"\r\n\r\n")
    assert b"Content-Length: 10\r\n" in raw


def test_head_of_a_stream_has_no_body(connect: Connect) -> None:
    client = connect(short_stream)
    raw = client.send(get("/").replace(b"GET", b"HEAD"))
    assert raw.count(b"\r\n\r\n") == 1 and raw.endswith(b"\r\n\r\n")
    assert answers(client.send(get("/")))[0][0] == 200


def test_no_content_has_no_body(connect: Connect) -> None:
    async def handler(request: Request, response: Response) -> None:
        response.whole(204, b"", (("X", "y"),))

    assert answers(connect(handler).send(get("/"))) == [
        (204, {"x": "y", "connection": "keep-alive", "keep-alive": "timeout=5"}, b"")
    ]


def test_stream_is_chunked_with_one_write_per_event(connect: Connect) -> None:
    client = connect(short_stream)
    [(status, headers, body)] = answers(client.send(get("/")))
    assert (status, body) == (200, b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n")
    assert headers["content-type"] == "text/event-stream" and headers["transfer-encoding"] == "chunked"
    assert headers["connection"] == "keep-alive" and "content-length" not in headers
    assert len(client.transport.writes) == 4
    assert len(answers(client.send(get("/")))) == 1


@pytest.mark.parametrize("method, version, said", [("GET", "1.1", b"1\r\nx\r\n"), ("GET", "1.0", b"x"), ("HEAD", "1.1", b"")])
def test_what_a_stream_begins_with_leaves_with_its_head(
    connect: Connect, method: str, version: str, said: bytes
) -> None:
    async def handler(request: Request, response: Response) -> None:
        response.start(200, (), first=b"x")
        response.finish()

    client = connect(handler)
    client.send(f"{method} / HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
    assert client.transport.writes[0].partition(b"\r\n\r\n")[2] == said


def test_empty_write_does_not_end_a_stream(connect: Connect) -> None:
    async def handler(request: Request, response: Response) -> None:
        response.start(200, ())
        response.write(b"")
        response.write(b"x")
        response.finish()

    assert answers(connect(handler).send(get("/")))[0][2] == b"x"


def test_http_1_0_stream_ends_with_the_connection(connect: Connect) -> None:
    client = connect(short_stream)
    head, _, body = client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").partition(b"\r\n\r\n")
    assert body == b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert b"Connection: close" in head and b"chunked" not in head
    assert client.transport.closing


@pytest.mark.parametrize(
    "request_head", [b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"]
)
def test_connection_closes_where_the_client_asked(connect: Connect, request_head: bytes) -> None:
    client = connect()
    [(_, headers, _)] = answers(client.send(request_head))
    assert headers["connection"] == "close" and "keep-alive" not in headers
    assert client.transport.lost


def test_pipelined_requests_are_answered_in_order(connect: Connect) -> None:
    turns: list[asyncio.Event] = []

    async def handler(request: Request, response: Response) -> None:
        turns.append(asyncio.Event())
        await turns[-1].wait()
        response.whole(200, request.target.encode())

    client = connect(handler)
    client.send(get("/0") + get("/1") + get("/2"))
    for n in range(3):
        assert len(client.handled) == n + 1, "one request at a time"
        turns[n].set()
        client.loop.settle()
    assert [body for _, _, body in answers(client.transport.taken)] == [b"/0", b"/1", b"/2"]


def test_pipelining_client_is_not_read_beyond_the_backlog(connect: Connect) -> None:
    """H23: reading resumes only when all that is held was answered, or a client could add faster than we answer."""
    gate = asyncio.Event()
    served = 0

    async def handler(request: Request, response: Response) -> None:
        nonlocal served
        await gate.wait()
        served += 1
        assert not client.transport.reading or served == 100
        response.whole(200, b"")

    client = connect(handler, Limits(backlog=1000))
    client.send(get("/"))
    client.send(get("/") * 99)
    assert not client.transport.reading
    gate.set()
    for _ in range(100):
        client.loop.settle()
    assert client.transport.reading
    assert len(answers(client.transport.taken)) == 100


# ---- before the body -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Host: evil.example"], 403),
        (["Host: localhost", "Origin: https://page.example"], 403),
        (["Host: localhost", "Sec-Fetch-Site: cross-site"], 403),
        (["Host: localhost", "Sec-Fetch-Mode: cors", "Content-Type: text/plain"], 415),
        (["Host: localhost", "X-Refuse: 1"], 401),
    ],
)
def test_refused_before_the_body_is_read(connect: Connect, headers: list[str], status: int) -> None:
    def refuse(request: Request) -> None:
        if "x-refuse" in request.headers:
            raise HttpError(401, "no")

    client = connect(precheck=refuse)
    lines = ["POST /x HTTP/1.1", *headers, "Content-Length: 5", "Expect: 100-continue", "", ""]
    [(found, answer_headers, body)] = answers(client.send("\r\n".join(lines).encode()))
    assert (found, answer_headers["connection"]) == (status, "close")
    assert b'"path": "/x"' in body, "the error is spelt for the request's dialect"
    assert client.handled == []
    assert bool(client.prechecked) == (status == 401), "the guard comes before authentication"


def test_refusal_without_a_body_keeps_the_connection(connect: Connect) -> None:
    client = connect()
    found = answers(client.send(get("/a", "Origin: https://page.example") + get("/b")))
    assert [(status, headers["connection"]) for status, headers, _ in found] == [
        (403, "keep-alive"),
        (200, "keep-alive"),
    ]
    assert [request.path for request in client.handled] == ["/b"]


def test_a_refusal_that_waits_holds_up_its_own_connection(connect: Connect) -> None:
    waits = iter((2.0, 0.0))

    def refuse(request: Request) -> None:
        raise HttpError(401, "no", wait_s=next(waits))

    client = connect(precheck=refuse)
    assert client.send(get("/a") + get("/b")) == b"" and len(client.prechecked) == 1
    client.loop.advance(1.9)
    assert client.transport.taken == b""
    client.loop.advance(0.2)
    told = answers(client.transport.taken)
    assert [(status, headers["connection"]) for status, headers, _ in told] == [(401, "keep-alive")] * 2
    assert client.handled == []


def test_one_with_a_body_waits_as_long_and_is_the_last(connect: Connect) -> None:
    def refuse(request: Request) -> None:
        raise HttpError(401, "no", wait_s=2.0)

    client = connect(precheck=refuse)
    body = post("/a", b"x" * 100, JSON)
    assert client.send(body[:-50]) == b"" and client.send(body[-50:] + get("/b")) == b""
    client.loop.advance(1.9)
    assert client.transport.taken == b""
    client.loop.advance(0.2)
    [(status, headers, _)] = answers(client.transport.taken)
    assert (status, headers["connection"], client.transport.ended) == (401, "close", True)
    assert len(client.prechecked) == 1 and client.handled == []


@pytest.mark.parametrize("cut", [0, 1])
def test_a_refusal_waits_for_the_rest_of_a_body_only_where_there_is_one(connect: Connect, cut: int) -> None:
    def refuse(request: Request) -> None:
        raise HttpError(401, "no")

    client = connect(precheck=refuse)
    body = post("/a", b"{}", JSON)
    [(status, headers, _)] = answers(client.send(body[: len(body) - cut]))
    assert (status, headers["connection"]) == (401, "close")
    assert (client.transport.ended, client.transport.lost) == (cut > 0, cut == 0)


@pytest.mark.parametrize("request_", [get("/a"), post("/a", b"{}", JSON)], ids=["without body", "with one"])
@pytest.mark.parametrize("how", ["left", "lost", "cancelled"])
def test_who_does_not_wait_for_a_refusal_leaves_nothing_behind(connect: Connect, request_: bytes, how: str) -> None:
    def refuse(request: Request) -> None:
        raise HttpError(401, "no", wait_s=60.0)

    client = connect(precheck=refuse)
    assert client.send(request_) == b""
    if how == "left":
        client.close()
    elif how == "lost":
        client.lose()
    else:
        client.connection.cancel()
        client.loop.settle()
        assert [status for status, _, _ in answers(client.transport.taken)] == [503]
    assert b"401" not in client.transport.taken


def test_a_connection_that_was_refused_is_gone_without_the_collector(connect: Connect) -> None:
    def refuse(request: Request) -> None:
        raise HttpError(401, "no")

    client = connect(precheck=refuse)
    gc.disable()
    try:
        assert [status for status, _, _ in answers(client.send(post("/a", b"{}", JSON)[:-1]))] == [401]
        client.lose()
        left = weakref.ref(client.connection)
        del client.connection, client.transport.protocol
        assert left() is None
    finally:
        gc.enable()


def test_precheck_sees_the_request_without_body(connect: Connect) -> None:
    client = connect()
    client.send(post("/x", b"body", JSON))
    assert [(request.path, request.body) for request in client.prechecked] == [("/x", b"")]


def test_continue_is_sent_only_when_the_body_will_be_read(connect: Connect) -> None:
    client = connect()
    head, body = post("/x", b"{}", JSON, "Expect: 100-continue")[:-2], b"{}"
    assert client.send(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answers(client.send(body))[0][0] == 200
    assert answers(client.send(head + body))[0][0] == 200, "the body came along: nobody waits for the 100"
    assert client.send(post("/x", b"", "Expect: 100-continue")).startswith(b"HTTP/1.1 200")


def test_too_large_body_is_refused_unread(connect: Connect) -> None:
    client = connect(limits=Limits(max_body=10))
    [(status, headers, _)] = answers(client.send(post("/x", b"x" * 11, JSON, "Expect: 100-continue")[:-11]))
    assert (status, headers["connection"]) == (413, "close")


def test_cors_headers_are_on_every_answer_to_an_allowed_origin(connect: Connect) -> None:
    def refuse(request: Request) -> None:
        if request.path == "/no":
            raise HttpError(401, "no")

    client = connect(precheck=refuse, policy=Policy.of(["127.0.0.1"], allow_origin=["https://page.example"]))
    found = answers(client.send(get("/", "Origin: https://page.example") + get("/no", "Origin: https://page.example")))
    assert [headers.get("access-control-allow-origin") for _, headers, _ in found] == ["https://page.example"] * 2
    assert "access-control-allow-origin" not in answers(client.send(get("/")))[0][1]


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_framing_error_is_answered_once_and_ends_the_connection(connect: Connect) -> None:
    client = connect()
    raw = client.send(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n" + get("/never"))
    [(status, headers, body)] = answers(raw)
    assert (status, headers["connection"]) == (400, "close")
    assert b'"path": null' in body
    assert client.transport.ended and not client.transport.closing, "the rest is read, or a reset could eat the answer"
    assert client.send(b"more" * 1000) == b""
    client.send_eof()
    assert client.transport.lost and client.handled == []


def test_a_host_that_is_no_name_ends_the_connection(connect: Connect) -> None:
    client = connect()
    [(status, headers, _)] = answers(client.send(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"))
    assert (status, headers["connection"]) == (400, "close")
    assert client.transport.closing and client.handled == []


def test_lingering_ends_by_itself(connect: Connect) -> None:
    client = connect()
    client.send(b"\x00\r\n")
    client.loop.advance(1.9)
    assert not client.transport.closing
    client.loop.advance(0.2)
    assert client.transport.lost


def test_framing_error_in_a_body_names_the_request(connect: Connect) -> None:
    client = connect()
    [(status, _, body)] = answers(
        client.send(b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n")
    )
    assert (status, client.handled) == (400, [])
    assert b'"path": "/x"' in body


def test_error_answers_before_a_framing_error_are_delivered_first(connect: Connect) -> None:
    client = connect()
    assert [status for status, _, _ in answers(client.send(get("/a") + b"\x00\r\n"))] == [200, 400]


def at_once(request: Request, response: Response) -> None:
    if request.path == "/missing":
        raise HttpError(404, "there is no such thing")
    if request.path == "/cut":
        response.start(200, ())
        raise RuntimeError("in the middle of an answer")
    response.whole(200, request.target.encode())


def test_what_waits_for_nothing_is_answered_within_the_turn_that_read_it(connect: Connect) -> None:
    client = connect(at_once)
    answered = answers(client.send(get("/1") + get("/missing") + get("/2"), settle=False))
    assert [(status, body) for status, _, body in answered] == [
        (200, b"/1"),
        (404, b'{"error": "HttpError", "path": "/missing"}'),
        (200, b"/2"),
    ]
    assert [request.target for request in client.handled] == ["/1", "/missing", "/2"]


def test_an_answer_that_breaks_off_within_that_turn_ends_the_connection(connect: Connect) -> None:
    client = connect(at_once)
    client.send(get("/cut") + get("/1"))
    assert client.transport.aborted and [str(bug["exception"]) for bug in client.bugs] == ["in the middle of an answer"]
    client.bugs.clear()


@pytest.mark.parametrize("path, status", [("/", 200), ("/missing", 404), ("/refused", 403)])
def test_thousands_that_come_together_leave_others_their_turn(connect: Connect, path: str, status: int) -> None:
    def check(request: Request) -> None:
        if request.path == "/refused":
            raise HttpError(403, "not you")

    client = connect(at_once, precheck=check)
    first = answers(client.send(get(path) * 1000, settle=False))
    assert 0 < len(first) <= 16
    while len(said := answers(client.transport.taken)) < 1000:
        client.loop.settle()
        assert len(answers(client.transport.taken)) > len(said)
    assert {found[0] for found in said} == {status}


def test_handler_error_is_spelt_and_the_connection_goes_on(connect: Connect) -> None:
    async def handler(request: Request, response: Response) -> None:
        raise LmError("no")

    client = connect(handler)
    [(status, headers, body)] = answers(client.send(get("/x")))
    assert (status, body, headers["connection"]) == (500, b'{"error": "LmError", "path": "/x"}', "keep-alive")
    assert len(answers(client.send(get("/x")))) == 1


def test_unexpected_exception_is_handed_to_the_app(connect: Connect) -> None:
    async def handler(request: Request, response: Response) -> None:
        raise KeyError

    assert b'"KeyError"' in answers(connect(handler).send(get("/x")))[0][2]


@pytest.mark.parametrize("started", [False, True])
def test_handler_that_forgets_to_answer_is_a_bug(connect: Connect, started: bool) -> None:
    async def handler(request: Request, response: Response) -> None:
        if started:
            response.start(200, ())

    client = connect(handler)
    client.send(get("/x"))
    assert client.transport.aborted is started
    assert len(client.bugs) == started
    assert started or answers(client.transport.taken)[0][0] == 500
    client.bugs.clear()


@pytest.mark.parametrize(("error", "reported"), [(LmError("late"), 0), (ValueError("late"), 1)])
def test_error_in_a_stream_that_has_begun_cuts_it(connect: Connect, error: Exception, reported: int) -> None:
    async def handler(request: Request, response: Response) -> None:
        response.start(200, sse.HEADERS)
        response.write(b"x")
        raise error

    client = connect(handler)
    raw = client.send(get("/"))
    assert raw.endswith(b"1\r\nx\r\n") and client.transport.aborted
    assert len(client.bugs) == reported
    client.bugs.clear()


def test_error_that_the_app_wrote_itself_ends_the_stream_in_order(connect: Connect) -> None:
    async def handler(request: Request, response: Response) -> None:
        response.start(200, sse.HEADERS)
        response.finish(sse.frame("error", "{}"))
        raise LmError("told already")

    client = connect(handler)
    assert answers(client.send(get("/")))[0][2] == b"event: error\ndata: {}\n\n"
    assert len(answers(client.send(get("/")))) == 1


def test_error_that_cannot_be_spelt_closes_the_connection(connect: Connect) -> None:
    def on_error(request: Request | None, error: Exception) -> Any:
        raise KeyError

    client = connect(on_error=on_error)
    assert client.send(b"\x00\r\n") == b""
    assert client.transport.lost and len(client.bugs) == 1
    client.bugs.clear()


def test_reply_refuses_what_would_break_the_framing(connect: Connect) -> None:
    async def handler(request: Request, response: Response) -> None:
        with pytest.raises(RuntimeError):
            response.write(b"x")
        with pytest.raises(ValueError, match="not a header"):
            response.whole(200, b"", (("X", "a\r\nb"),))
        response.whole(200, b"")
        with pytest.raises(RuntimeError):
            response.whole(200, b"")
        with pytest.raises(RuntimeError):
            response.start(200, ())
        with pytest.raises(RuntimeError):
            response.finish()

    assert len(answers(connect(handler).send(get("/")))) == 1


# ---- the clock -------------------------------------------------------------------------------------------------------


def test_slow_head_gets_408(connect: Connect) -> None:
    client = connect()
    for byte in get("/x")[:18]:
        client.send(bytes([byte]))
        client.loop.advance(0.5)
    assert client.transport.taken == b"", "the head's time counts from its first byte"
    client.loop.advance(2)
    [(status, headers, _)] = answers(client.transport.taken)
    assert (status, headers["connection"]) == (408, "close")


def test_client_that_says_nothing_is_closed_silently(connect: Connect) -> None:
    client = connect()
    client.loop.advance(9.9)
    assert not client.transport.closing
    client.loop.advance(0.2)
    assert client.transport.lost and client.transport.taken == b""


def test_slow_body_gets_408_counted_from_its_last_byte(connect: Connect) -> None:
    client = connect()
    raw = post("/x", b"x" * 100, JSON)
    client.send(raw[:-100])
    for _ in range(3):
        client.loop.advance(29)
        assert client.send(b"x") == b""
    client.loop.advance(29)
    assert client.transport.taken == b""
    client.loop.advance(2)
    [(status, _, body)] = answers(client.transport.taken)
    assert (status, client.handled) == (408, [])
    assert b'"path": "/x"' in body


def test_idle_connection_is_closed_after_the_time_that_was_promised(connect: Connect) -> None:
    client = connect()
    client.send(get("/"))
    client.loop.advance(4.9)
    client.send(get("/"))
    client.loop.advance(9.9)
    assert not client.transport.ended, "longer than was promised: a request may come at the last moment"
    client.loop.advance(0.2)
    assert client.transport.ended and len(answers(client.transport.taken)) == 2
    assert not client.transport.closing, "and what comes even then is read, or a reset would hide the end"
    client.loop.advance(2.1)
    assert client.transport.lost


def test_what_is_kept_is_longer_than_what_is_promised(connect: Connect) -> None:
    client = connect()
    [(_, headers, _)] = answers(client.send(get("/")))
    assert headers["keep-alive"] == "timeout=5"


def test_empty_line_after_a_body_does_not_begin_a_request(connect: Connect) -> None:
    client = connect()
    assert len(answers(client.send(post("/x", b"{}", JSON) + b"\r\n"))) == 1
    client.loop.advance(10.1)
    assert client.transport.ended and len(answers(client.transport.taken)) == 1


def test_handler_may_take_its_time(connect: Connect) -> None:
    client = connect(never_ending_stream)
    client.send(get("/"))
    client.loop.advance(3600)
    assert not client.transport.closing and client.cancelled == []


def test_busy_connection_keeps_one_timer(connect: Connect) -> None:
    client = connect()
    for _ in range(100):
        client.send(get("/"))
        client.loop.now += 0.01
    assert len(client.loop._scheduled) <= 2  # type: ignore[attr-defined]


# ---- clients that leave or do not read -------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [never, never_ending_stream])
@pytest.mark.parametrize("leave", [Client.close, Client.lose])
def test_handler_is_cancelled_when_the_client_leaves(
    connect: Connect, handler: Any, leave: Callable[..., None]
) -> None:
    client = connect(handler)
    client.send(get("/x") + get("/next"))
    assert client.closed == 0 and client.connection.busy
    leave(client)
    assert client.cancelled == ["/x"] and not client.connection.busy
    assert [request.target for request in client.handled] == ["/x"], "what was pipelined behind is dropped"
    assert client.closed == 1


def test_client_that_closed_its_sending_half_is_answered(connect: Connect) -> None:
    gate = asyncio.Event()

    async def handler(request: Request, response: Response) -> None:
        await gate.wait()
        response.whole(200, b"{}")

    client = connect(handler)
    client.send(get("/a") + get("/b"))
    client.send_eof()
    client.loop.advance(60)
    assert client.transport.taken == CONTINUE and client.cancelled == []
    gate.set()
    client.loop.settle()
    found = answers(client.transport.taken.removeprefix(CONTINUE))
    assert [(status, body) for status, _, body in found] == [(200, b"{}")] * 2, "what was pipelined too"
    assert client.transport.lost


def test_stream_goes_on_for_a_client_that_closed_its_sending_half(connect: Connect) -> None:
    gate = asyncio.Event()

    async def handler(request: Request, response: Response) -> None:
        response.start(200, sse.HEADERS)
        response.write(b"one")
        await gate.wait()
        response.write(b"two")
        response.finish(sse.DONE)

    client = connect(handler)
    client.send(get("/"))
    client.send_eof()
    client.loop.advance(60)
    gate.set()
    client.loop.settle()
    assert CONTINUE not in client.transport.taken
    [(status, _, body)] = answers(client.transport.taken)
    assert (status, body) == (200, b"onetwo" + sse.DONE) and client.transport.lost


def test_a_client_of_http_1_0_hears_nothing_before_its_answer(connect: Connect) -> None:
    client = connect(never)
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    client.send_eof()
    client.loop.advance(1)
    assert client.transport.taken == b"" and client.cancelled == []


def test_close_is_told_after_the_handler_has_ended(connect: Connect) -> None:
    release = asyncio.Event()

    async def handler(request: Request, response: Response) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            response.write(b"nobody reads this")
            await release.wait()

    client = connect(handler)
    client.send(get("/"))
    client.lose()
    assert client.closed == 0
    release.set()
    client.loop.settle()
    assert client.closed == 1


@pytest.mark.parametrize("cut", [1, 20, -1])
@pytest.mark.parametrize("leave", [Client.send_eof, Client.lose])
def test_incomplete_request_then_gone_starts_nothing(connect: Connect, cut: int, leave: Callable[..., None]) -> None:
    client = connect()
    client.send(post("/x", b"{}", JSON)[:cut])
    leave(client)
    assert client.handled == [] and client.transport.taken == b"" and client.closed == 1


async def flood(request: Request, response: Response) -> None:
    response.start(200, sse.HEADERS)
    while True:
        response.write(b"x" * 1000)
        if response.paused:
            await response.drain()
        await asyncio.sleep(0)


SMALL = Limits(write_buffer=10_000)


def test_reader_that_never_reads_is_paused_then_cut(connect: Connect) -> None:
    """H26"""
    client = connect(flood, SMALL)
    client.transport.stuck = True
    client.send(get("/x"))
    held = client.transport.get_write_buffer_size()
    assert 10_000 < held < 12_500
    client.loop.advance(29)
    assert client.transport.get_write_buffer_size() == held and client.cancelled == []
    client.loop.advance(2)
    assert client.transport.aborted and client.cancelled == ["/x"]


def test_reader_that_catches_up_in_time_goes_on(connect: Connect) -> None:
    client = connect(flood, SMALL)
    client.transport.stuck = True
    client.send(get("/x"))
    for _ in range(3):
        client.loop.advance(20)
        client.transport.take(9_000)
        client.loop.settle()
    assert not client.transport.closing and len(client.transport.taken) > 20_000


async def big(request: Request, response: Response) -> None:
    response.whole(200, b"x" * 50_000)


def test_no_request_is_started_while_the_last_answer_is_unread(connect: Connect) -> None:
    client = connect(big, SMALL)
    client.transport.stuck = True
    client.send(get("/a") + get("/b"))
    assert [request.target for request in client.handled] == ["/a"]
    client.transport.take(49_000)
    client.loop.settle()
    assert [request.target for request in client.handled] == ["/a", "/b"]


def test_slow_reader_of_a_whole_answer_is_kept_while_it_makes_progress(connect: Connect) -> None:
    client = connect(big, SMALL)
    client.transport.stuck = True
    client.send(get("/a"))
    for _ in range(5):
        client.transport.take(1_000)
        client.loop.advance(30)
    assert not client.transport.closing
    client.loop.advance(30)
    assert client.transport.aborted


def test_closing_connection_whose_answer_nobody_takes_is_cut(connect: Connect) -> None:
    client = connect(big, SMALL)
    client.transport.stuck = True
    client.send(get("/a", "Connection: close"))
    assert client.transport.closing and not client.transport.lost
    client.loop.advance(29)
    assert not client.transport.aborted
    client.loop.advance(2)
    assert client.transport.aborted


# ---- the server's stop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", get("/x")[:9], post("/x", b"{}", JSON)[:-1], get("/x")])
def test_shutdown_closes_a_connection_without_running_request_at_once(connect: Connect, sent: bytes) -> None:
    client = connect()
    client.send(sent)
    client.connection.shutdown()
    client.loop.settle()
    assert client.transport.lost


def test_shutdown_lets_the_running_request_finish(connect: Connect) -> None:
    gate = asyncio.Event()

    async def handler(request: Request, response: Response) -> None:
        await gate.wait()
        response.whole(200, b"")

    client = connect(handler)
    client.send(get("/a") + get("/b"))
    client.connection.shutdown()
    client.loop.settle()
    assert not client.transport.closing
    gate.set()
    client.loop.settle()
    [(status, headers, _)] = answers(client.transport.taken)
    assert (status, headers["connection"]) == (200, "close")
    client.send_eof()
    assert client.transport.lost and len(client.handled) == 1


def test_shutdown_ends_a_stream_that_promised_keep_alive(connect: Connect) -> None:
    gate = asyncio.Event()

    async def handler(request: Request, response: Response) -> None:
        response.start(200, sse.HEADERS)
        await gate.wait()
        response.finish(sse.DONE)

    client = connect(handler)
    client.send(get("/a"))
    client.connection.shutdown()
    gate.set()
    client.loop.settle()
    assert answers(client.transport.taken)[0][2] == sse.DONE
    assert client.transport.lost


def test_cancel_before_the_answer_tells_the_client(connect: Connect) -> None:
    client = connect(never)
    client.send(get("/a"))
    client.connection.shutdown()
    client.connection.cancel()
    client.loop.settle()
    [(status, headers, body)] = answers(client.transport.taken)
    assert (status, headers["connection"]) == (ShuttingDown.status, "close")
    assert b"ShuttingDown" in body and client.transport.lost


def test_cancel_in_a_stream_cuts_it(connect: Connect) -> None:
    client = connect(never_ending_stream)
    client.send(get("/a"))
    client.connection.cancel()
    client.loop.settle()
    assert client.transport.aborted and client.cancelled == ["/a"]
