"""The parser, every case three ways: whole, byte by byte, and with more bytes behind it."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlite.errors import HttpError
from lmlite.wire import http1
from lmlite.wire.http1 import Data, End, Event, Head, Parser

NEXT = b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"
HOST = b"Host: a\r\n"


def drain(parser: Parser) -> list[Event | int]:
    """Events until the parser starves; an HttpError becomes its status."""
    events: list[Event | int] = []
    try:
        while (event := parser.next_event()) is not None:
            events.append(event)
    except HttpError as error:
        events.append(error.status)
    return events


def parse(*pieces: bytes, max_body: int = 1000) -> list[Event | int]:
    """All events of the input, neighbouring data joined."""
    parser = Parser(max_body)
    events: list[Event | int] = []
    for piece in pieces:
        parser.feed(piece)
        for event in drain(parser):
            if isinstance(event, Data) and events and isinstance(events[-1], Data):
                events[-1] = Data(events[-1].data + event.data)
            else:
                events.append(event)
    return events


def bytewise(raw: bytes) -> list[bytes]:
    return [raw[i : i + 1] for i in range(len(raw))]


def three_ways(raw: bytes) -> list[Event | int]:
    """The events of `raw`, which must not depend on how it is cut nor on what follows a complete request."""
    events = parse(raw)
    assert parse(*bytewise(raw)) == events
    followed = parse(raw + NEXT)
    if isinstance(events[-1], int):
        assert followed == events, "after an error the parser must be deaf"
    else:
        assert followed[: len(events)] == events
        following = followed[len(events)]
        assert isinstance(following, Head) and following.path == "/next"
    return events


def head_of(raw: bytes) -> Head:
    head = three_ways(raw)[0]
    assert isinstance(head, Head), head
    return head


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode("latin-1")


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/x HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


# ---- what is accepted ------------------------------------------------------------------------------------------------


def test_get_yields_head_and_end() -> None:
    head, end = three_ways(b"GET /v1/models?a=b&c=%20 HTTP/1.1\r\nHost: a:1\r\nX-Thing: \t one two \t\r\n\r\n")
    assert head == Head(
        method="GET",
        target="/v1/models?a=b&c=%20",
        path="/v1/models",
        query="a=b&c=%20",
        headers={"host": "a:1", "x-thing": "one two"},
        http_version="1.1",
        keep_alive=True,
        expect_continue=False,
        content_length=0,
        chunked=False,
    )
    assert end == End()


def test_body_of_known_length() -> None:
    events = three_ways(post(b"Content-Length: 5\r\n", b"hello"))
    assert events[1:] == [Data(b"hello"), End()]
    assert isinstance(events[0], Head) and events[0].content_length == 5 and events[0].has_body


def test_empty_body_of_known_length() -> None:
    assert three_ways(post(b"Content-Length: 0\r\n"))[1:] == [End()]


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhello\r\n0\r\n\r\n",
        b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"00005\r\nhello\r\n000\r\n\r\n",
        b"5;name=value\r\nhello\r\n0 ;last\r\n\r\n",
        b"5\r\nhello\r\n0\r\nTrailer: dropped\r\nAnother: one\r\n\r\n",
    ],
)
def test_chunked_body(body: bytes) -> None:
    assert three_ways(chunked(body))[1:] == [Data(b"hello"), End()]


def test_one_empty_line_before_a_request_is_skipped() -> None:
    assert head_of(b"\r\n" + get("/x")).path == "/x"
    assert three_ways(b"\r\n\r\n" + get("/x")) == [400]


def test_between_requests_is_true_until_a_byte_of_the_next_one() -> None:
    parser = Parser()
    assert parser.between_requests
    parser.feed(get("/x") + b"\r\n")
    assert not parser.between_requests
    drain(parser)
    assert parser.between_requests
    parser.feed(b"G")
    drain(parser)
    assert not parser.between_requests


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.1", "Connection: Upgrade, Close\r\n", False),
        ("1.1", "Connection: keep-alive\r\n", True),
        ("1.0", "", False),
        ("1.0", "Connection: Keep-Alive\r\n", True),
    ],
)
def test_keep_alive(version: str, connection: str, kept: bool) -> None:
    assert head_of(f"GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n".encode()).keep_alive is kept


def test_http_1_0_needs_no_host() -> None:
    assert head_of(b"GET / HTTP/1.0\r\n\r\n").http_version == "1.0"


def test_expect_continue_is_for_http_1_1_only() -> None:
    assert head_of(post(b"Expect: 100-Continue\r\nContent-Length: 0\r\n")).expect_continue
    old = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"
    assert not head_of(old).expect_continue


def test_harmless_repeated_headers_are_joined() -> None:
    assert head_of(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: x\r\naccept: y\r\n\r\n").headers["accept"] == "x, y"


def test_header_values_may_hold_latin_1() -> None:
    assert head_of(b"GET / HTTP/1.1\r\nHost: a\r\nX: caf\xe9\r\n\r\n").headers["x"] == "caf\xe9"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/v1/models/", "/v1/models/"),
        ("/api/v0/models/pub%2Fname", "/api/v0/models/pub/name"),
        ("/api/v0/models/pub/name", "/api/v0/models/pub/name"),
        ("/m/%E2%82%AC%20x", "/m/\u20ac x"),
        ("/m/a%2525", "/m/a%25"),
        ("/m/..a/b../.c", "/m/..a/b../.c"),
        ("/m/key@q4_k_m:2", "/m/key@q4_k_m:2"),
    ],
)
def test_paths_are_decoded_once(target: str, path: str) -> None:
    head = head_of(get(target))
    assert (head.target, head.path, head.query) == (target, path, "")


# ---- what is refused: the H rows -------------------------------------------------------------------------------------

BIG = b"x" * 100_000
REFUSED: list[tuple[str, int, bytes]] = [
    ("H1 length and coding", 400, post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    ("H1 coding and length", 400, post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n")),
    ("H2 two lengths", 400, post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello")),
    ("H2 length list", 400, post(b"Content-Length: 5, 5\r\n", b"hello")),
    *(
        (f"H3 length {length!r}", 400, post(b"Content-Length: " + length + b"\r\n", b"hello"))
        for length in (b"+5", b"-1", b"0x5", b"5_0", "٥".encode(), b"9" * 40, b"", b"5 5", b"5.0")
    ),
    *(
        (f"H4 coding {coding!r}", 501, post(b"Transfer-Encoding: " + coding + b"\r\n", b"0\r\n\r\n"))
        for coding in (b"xchunked", b"gzip, chunked", b"chunked, chunked", b"identity", b"", b"chunked;q=1")
    ),
    ("H4 two codings", 501, post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    ("H4 vertical tab", 400, post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n")),
    ("coding in HTTP/1.0", 400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    *(
        (f"H5 chunk size {size!r}", 400, chunked(size + b"\r\nabc\r\n0\r\n\r\n"))
        for size in (
            b"-1",
            b"0x3",
            b"",
            b"0" * 15 + b"3",
            b"3_0",
            b" 3",
            b"3 ",
            b"+3",
            "٣".encode(),
            b"3\x00",
            b"3;\x00",
        )
    ),
    ("H6 longer chunk", 400, chunked(b"3\r\nabcd\r\n0\r\n\r\n")),
    ("H6 no CRLF", 400, chunked(b"3\r\nabc0\r\n\r\n")),
    ("H6 bare LF", 400, chunked(b"3\r\nabc\n0\r\n\r\n")),
    ("chunk line ends with LF", 400, chunked(b"3\nabc\r\n0\r\n\r\n")),
    ("long chunk extension", 400, chunked(b"3;" + BIG + b"\r\nabc\r\n0\r\n\r\n")),
    ("extensions without end", 400, chunked((b"1;" + b"e" * 250 + b"\r\nx\r\n") * 100)),
    ("trailers without end", 431, chunked(b"0\r\n" + b"T: 1\r\n" * 10_000)),
    ("bad trailer", 400, chunked(b"0\r\nT : 1\r\n\r\n")),
    *(
        (f"H8 header {line!r}", 400, b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n")
        for line in (
            b"Name : x",
            b"Na me: x",
            b": x",
            b"no colon",
            b"X: a\rb",
            b"X: a\x00b",
            b"X\x00: a",
            b"X: a\r\n folded",
            b"X: a\r\n\tfolded",
            "N\u00e4me: x".encode(),
            b"X: a\x7f",
            b"X: a\nY: b",
            b"(X): a",
        )
    ),
    ("H8 first header folded", 400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    ("H8 bare LF head", 400, b"GET / HTTP/1.1\nHost: a\n\n"),
    ("H8 CR CR LF", 400, b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"),
    ("H10 no host", 400, b"GET / HTTP/1.1\r\n\r\n"),
    ("H10 two hosts", 400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    *(
        (f"two of {name}", 400, get("/").replace(b"\r\n\r\n", f"\r\n{name}: x\r\n{name}: x\r\n\r\n".encode()))
        for name in ("Authorization", "X-Api-Key", "Content-Type", "Origin", "Sec-Fetch-Site")
    ),
    *((f"H14 body in {coding}", 415, post(f"Content-Encoding: {coding}\r\nContent-Length: 5\r\n".encode(), b"hello"))
      for coding in ("deflate", "br", "zstd", "gzip, gzip", "compress", "x")),
    ("a TLS hello", 400, bytes.fromhex("16030100f1010000ed0303") + bytes(range(1, 200))),
    ("a TLS hello without a line end", 400, bytes.fromhex("16030100f1010000ed0303") + b"\x01" * 200),
    ("H15 request line", 414, get("/" + "x" * 100_000)),
    ("H15 unended request line", 414, BIG),
    ("H16 one header of 1 MB", 431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + BIG * 10 + b"\r\n\r\n"),
    ("H16 10,000 headers", 431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"),
    ("H16 101 headers", 431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n"),
    *(
        (f"H19 target {target!r}", 400, get(target))
        for target in (
            "/../x",
            "/a/..",
            "/a/./b",
            "/.",
            "/%2e%2e%2f",
            "/%2e%2e/x",
            "/a%2F..%2Fb",
            "/%00",
            "/a%0d%0ab",
            "/%7f",
            "//v1//models",
            "/v1//models",
            "/v1/%2Fmodels",
            "/a%5C..%5Cb",
            "/a\\b",
            "http://a/v1/models",
            "*",
            "v1/models",
            "/a#b",
            "/%",
            "/%4",
            "/%zz",
            "/%+4",
            "/%ff",
            "/%c0%af",
            "/%ed%a0%80",
            "/caf\xe9",
        )
    ),
    ("H21 CONNECT", 501, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("H22 large with expectation", 413, post(b"Content-Length: 1001\r\nExpect: 100-continue\r\n")),
    ("H22 expectation", 417, post(b"Expect: x\r\nContent-Length: 0\r\n")),
    ("large body", 413, post(b"Content-Length: 1001\r\n")),
    ("large chunk", 413, chunked(b"3e9\r\n")),
    ("version 2.0", 505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("version 1.2", 505, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    ("version 0.9", 400, b"GET /\r\n"),
    ("version 11", 400, b"GET / HTTP/11\r\nHost: a\r\n\r\n"),
    ("lower-case protocol", 400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    ("two spaces", 400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("tab", 400, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("trailing space", 400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    ("method is no token", 400, b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("TLS", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n"),
]


@pytest.mark.parametrize(("status", "raw"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(status: int, raw: bytes) -> None:
    events = [event for event in three_ways(raw) if not isinstance(event, (Head, Data))]
    assert events == [status]


def test_chunks_that_exceed_the_limit_together_are_refused() -> None:
    events = three_ways(chunked(b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n"))
    assert events[1:] == [Data(b"x" * 1000), 413]


def test_head_is_known_to_those_who_spell_the_refusal_of_a_body() -> None:
    parser = Parser(max_body=10)
    parser.feed(post(b"Content-Length: 11\r\n"))
    with pytest.raises(HttpError):
        parser.next_event()
    assert parser.head is not None and parser.head.path == "/v1/x"


def test_limits_are_exact() -> None:
    line = b"GET /" + b"x" * (http1.MAX_REQUEST_LINE - len(b"GET / HTTP/1.1\r\n")) + b" HTTP/1.1\r\n"
    assert isinstance(three_ways(line + HOST + b"\r\n")[0], Head)
    assert three_ways(line.replace(b"/x", b"/xx") + HOST + b"\r\n") == [414]
    headers = b"X: y\r\n" * (http1.MAX_HEADERS - 1)
    assert isinstance(three_ways(b"GET / HTTP/1.1\r\n" + HOST + headers + b"\r\n")[0], Head)
    assert isinstance(three_ways(post(b"Content-Length: 1000\r\n", b"x" * 1000))[0], Head)


def test_tiny_chunks_are_refused_once_they_are_many() -> None:
    few, many = b"1\r\nx\r\n" * 500, b"1\r\nx\r\n" * 100_000
    assert parse(chunked(few + b"0\r\n\r\n"), max_body=1 << 20)[1:] == [Data(b"x" * 500), End()]
    assert parse(chunked(many), max_body=1 << 20)[-1] == 400


# ---- invariance and cost ---------------------------------------------------------------------------------------------

CORPUS = [
    get("/a?b") + post(b"Content-Length: 3\r\n", b"abc") + get("/c"),
    chunked(b"3;x\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nT: x\r\n\r\n") + b"\r\n" + get("/d"),
    chunked(b"3\r\nabc\r\nz\r\n") + get("/never"),
    post(b"Content-Length: 3\r\nX : y\r\n", b"abc"),
]


@given(raw=st.sampled_from(CORPUS), cuts=st.lists(st.integers(0, 200), max_size=12))
def test_events_do_not_depend_on_how_the_input_is_cut(raw: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[start:end] for start, end in itertools.pairwise(edges)]
    assert parse(*pieces) == parse(raw)


@given(
    raw=st.lists(
        st.sampled_from(
            [b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"\r", b"\n", b"Host: a", b"\x00", b":", b" ", b"x", b"3"]
        ),
        max_size=30,
    ).map(b"".join)
)
def test_any_input_gives_events_or_one_error(raw: bytes) -> None:
    events = parse(raw)
    assert parse(*bytewise(raw)) == events
    assert [event for event in events[:-1] if isinstance(event, int)] == []


class Counting(bytearray):
    """A buffer that counts the bytes that are searched."""

    searched = 0

    def find(self, *arguments: Any) -> int:
        found = super().find(*arguments)
        self.searched += (len(self) if found < 0 else found + 1) - arguments[1]
        return found


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /" + b"x" * 8000 + b" HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 24_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 99 + b"\r\n",
        chunked(b"7530\r\n" + b"y" * 30_000 + b"\r\n0\r\n\r\n"),
    ],
    ids=["long lines", "many lines", "chunk"],
)
def test_no_byte_is_searched_twice_when_fed_byte_by_byte(raw: bytes) -> None:
    parser = Parser()
    parser._buffer = buffer = Counting()
    for piece in bytewise(raw):
        parser.feed(piece)
        assert not any(isinstance(event, int) for event in drain(parser))
    assert parser.between_requests
    assert 0 < buffer.searched <= len(raw)


@pytest.mark.parametrize(
    ("pattern", "build"),
    [
        (http1.HEADER, lambda n: b"X: " + b" " * n + b"\x00"),
        (http1.REQUEST_LINE, lambda n: b"G" * n),
        (http1.REQUEST_LINE, lambda n: b"GET " + b"/" * n),
        (http1.CHUNK_LINE, lambda n: b"5" + b" \t" * n),
        (http1.CHUNK_LINE, lambda n: b"5" + b";" * n + b"\x00"),
    ],
)
def test_refusing_a_line_takes_linear_time(pattern: re.Pattern[bytes], build: Callable[[int], bytes]) -> None:
    """Quadratic backtracking would take 256 times as long for 16 times the input; the bound leaves room for noise."""

    def seconds(line: bytes) -> float:
        started = time.process_time()
        for _ in range(10):
            assert pattern.fullmatch(line) is None
        return time.process_time() - started

    small, large = build(2_000), build(32_000)
    assert min(seconds(large) for _ in range(5)) < 1e-4 + 64 * min(seconds(small) for _ in range(5))


# ---- the answer ------------------------------------------------------------------------------------------------------


def test_head_of_an_answer() -> None:
    raw = http1.head(404, (("Content-Length", "2"), ("X", "caf\xe9")))
    assert raw == b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nX: caf\xe9\r\n\r\n"
    assert http1.head(299, ()) == b"HTTP/1.1 299 Unknown\r\n\r\n"
    assert http1.head(200, (("X", "a"),), 12) == b"HTTP/1.1 200 OK\r\nX: a\r\nContent-Length: 12\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("X", "a\r\nSet-Cookie: b"), ("X", "a\n"), ("X", "a\x00"), ("X", "\u20ac"), ("X Y", "a"), ("X:", "a"), ("", "a")],
)
def test_head_refuses_what_would_leave_its_line(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="not a header"):
        http1.head(200, ((name, value),))


def test_chunks_of_an_answer() -> None:
    assert http1.chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert http1.chunk(b"") == b""
