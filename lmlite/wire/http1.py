"""HTTP/1.1 framing without sockets: bytes in, events out; and the bytes of an answer's head and chunks.

`Parser` takes the bytes of one connection in any pieces and yields `Head`, `Data`*, `End` per request, the same for
every way to cut them, in time linear in their number. What RFC 9112 leaves to the recipient's mercy is refused:
ambiguous framing, bare CR or LF, folded headers, paths that mean something else once normalised. A violation raises
`HttpError` once; after that the parser is deaf, so that a connection never answers a request that was not sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType

from ..errors import HttpError
from ..records import dataclass

Headers = tuple[tuple[str, str], ...]

MAX_REQUEST_LINE = 8 << 10
"""Our longest real target is a model id of a few hundred bytes; 8 KiB is what other servers take."""
MAX_HEAD = 32 << 10
"""Request line and headers. Browsers send up to 16 KiB of cookies to localhost, whatever the port."""
MAX_HEADERS = 100
"""Browsers send about 20; far more only serves to burn time."""
MAX_TRAILERS = 8 << 10
"""Trailers are read to find the end of the request and then dropped."""
MAX_CHUNK_LINE = 256
"""A size of 15 digits and the short extensions that were ever used."""
CHUNKING_ALLOWANCE = 16 << 10
CHUNKING_SHARE = 4
"""Framing may cost a quarter of the data, plus the allowance: one-byte chunks and long extensions are work for nothing."""
MAX_BODY = 32 << 20
"""A long context is a few MB of JSON and a photo is about 10 MB in base64; all of it is held in memory while parsed."""

LINE_TOO_LONG = 414, f"the request line is longer than {MAX_REQUEST_LINE} bytes"
HEAD_TOO_LARGE = 431, f"the headers are longer than {MAX_HEAD} bytes"
CHUNK_LINE_TOO_LONG = 400, f"a chunk's head is longer than {MAX_CHUNK_LINE} bytes"
TRAILERS_TOO_LARGE = 431, f"the trailers are longer than {MAX_TRAILERS} bytes"

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
HEAD_AT_ONCE = re.compile(
    rf"({TOKEN}) ([!-~]+) HTTP/(1\.[01])\r\n((?:{TOKEN}:[\t -~\x80-\xff]*\r\n)*)\r\n".encode("latin-1")
)
AT_ONCE_MAX = 4 << 10
"""Bytes of a head that is read in one go, as most can be: so few that no limit of a line needs to be looked at."""
REQUEST_LINE = re.compile(rf"({TOKEN}) ([!-~]+) HTTP/([0-9]\.[0-9])".encode())
HEADER = re.compile(rf"({TOKEN}):([\t -~\x80-\xff]*)".encode("latin-1"))
LENGTH = re.compile(r"[0-9]{1,15}")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?")
ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
UNSAFE_IN_PATH = re.compile(r"[\x00-\x1f\x7f\\]|//|/\.\.?(?:/|$)")

TLS_HANDSHAKE = 0x16
"""The first byte of a TLS connection, and of no request."""

CODINGS = frozenset(("identity", "gzip", "x-gzip"))
"""What a body may be sent as; who takes a request takes the coding off."""

SINGLE = frozenset(
    ("host", "content-length", "content-type", "authorization", "x-api-key", "origin", "sec-fetch-site", "expect")
)
"""Headers that decide something; given twice, two readers could decide differently (RFC 9110, 5.3)."""


@dataclass(slots=True, frozen=True)
class Head:
    """A request up to its body. `path` is decoded (`%2F` too), `target` as sent; header names are in lower case."""

    method: str
    target: str
    path: str
    query: str
    headers: Mapping[str, str]
    http_version: str
    keep_alive: bool
    expect_continue: bool
    content_length: int
    """0 also where the body is chunked."""
    chunked: bool

    @property
    def has_body(self) -> bool:
        return self.chunked or self.content_length > 0


@dataclass(slots=True, frozen=True)
class Data:
    """A piece of the body, never empty."""

    data: bytes


@dataclass(slots=True, frozen=True)
class End:
    """The request is complete."""


Event = Head | Data | End


class Step(Enum):
    """What a state of the parser says when it has no event to yield."""

    STARVED = 0  # it needs more bytes
    MOVED = 1  # the next state shall go on


class Parser:
    """The requests of one connection. `feed` bytes, then take `next_event` until it is None; it raises HttpError once."""

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._max_body = max_body
        # the connection
        self._buffer = bytearray()
        self._at = 0  # first byte that is not consumed
        self._seen = 0  # no line end between _at and here: what makes byte-by-byte input linear
        self._state: Callable[[Parser], Event | Step] = Parser._blank_line
        # the request
        self.head: Head | None = None
        """The request that is being read, as soon as its framing is clear; still set after an error in what follows."""
        self._request_line = ("", "", "", "", "")
        self._fields: dict[str, str] = {}
        self._n_fields = 0
        self._head_bytes = 0
        self._due = 0  # bytes of this body or chunk still to come
        self._body_bytes = 0
        self._chunking_bytes = 0

    @property
    def buffered(self) -> int:
        """Bytes that were fed and not consumed."""
        return len(self._buffer) - self._at

    @property
    def between_requests(self) -> bool:
        """No byte of a request has come (the empty line that may stand before it is none)."""
        return self._state in (Parser._blank_line, Parser._first_line) and not self.buffered

    @property
    def has_all(self) -> bool:
        """The body that is being read has come, and nothing behind it."""
        return self._state is Parser._sized_body and self.buffered == self._due

    def feed(self, data: bytes) -> None:
        if self._state is Parser._deaf:
            return
        if self._at:
            del self._buffer[: self._at]
            self._seen -= self._at
            self._at = 0
        self._buffer += data

    def next_event(self) -> Event | None:
        """The next event, or None until more bytes are fed."""
        try:
            while True:
                result = self._state(self)
                if result is Step.STARVED:
                    return None
                if not isinstance(result, Step):
                    return result
        except HttpError:
            self._state = Parser._deaf
            self._buffer.clear()
            self._at = 0
            raise

    # ---- lines

    def _line(self, limit: int, refusal: tuple[int, str]) -> bytes | None:
        """The next line without its CRLF, None if it is not complete; HttpError(*refusal) if it has `limit` bytes or more."""
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\n", self._seen)
        if (len(buffer) if end < 0 else end) - at >= limit:
            raise HttpError(*refusal)
        if end < 0:
            self._seen = len(buffer)
            return None
        self._at = self._seen = end + 1
        if end == at or buffer[end - 1] != 13:
            raise HttpError(400, "lines must end with CRLF")
        return bytes(buffer[at : end - 1])

    # ---- states: each consumes what it can and returns an event or a Step

    def _deaf(self) -> Event | Step:
        return Step.STARVED

    def _blank_line(self) -> Event | Step:
        """One empty line before a request is skipped, as RFC 9112 (2.2) asks: old clients end bodies with one."""
        first = self._buffer[self._at : self._at + 2]
        if not first or first == b"\r":
            return Step.STARVED
        if first[0] == TLS_HANDSHAKE:
            raise HttpError(400, "this port speaks plain HTTP, and a TLS connection was begun: say http://, not https://")
        if first == b"\r\n":
            self._at = self._seen = self._at + 2
        self._state = Parser._first_line
        return Step.MOVED

    def _first_line(self) -> Event | Step:
        if self._seen == self._at and self._read_at_once():
            return self._end_of_head()
        line = self._line(MAX_REQUEST_LINE, LINE_TOO_LONG)
        if line is None:
            return Step.STARVED
        match = REQUEST_LINE.fullmatch(line)
        if match is None:
            raise HttpError(400, "not an HTTP request line")
        method, target, version = (part.decode("ascii") for part in match.groups())
        if version not in ("1.1", "1.0"):
            raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are served")
        if method == "CONNECT":
            raise HttpError(501, "this server is no proxy")
        self._request_line = (method, target, *split_target(target), version)
        self._head_bytes = len(line)
        self._fields = {}
        self._n_fields = 0
        self._state = Parser._header_line
        return Step.MOVED

    def _read_at_once(self) -> bool:
        """Takes a head that is there up to its end and of which nothing has to be said. All others are read by lines."""
        found = HEAD_AT_ONCE.match(self._buffer, self._at, self._at + AT_ONCE_MAX)
        if found is None:
            return False
        method, target, version, block = (str(part, "latin-1") for part in found.groups())
        lines = block.split("\r\n")
        fields = {}
        for line in lines[:-1]:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip(" \t")
        if method == "CONNECT" or len(lines) - 1 > min(MAX_HEADERS, len(fields)):  # the latter: one is given twice
            return False
        self._request_line = (method, target, *split_target(target), version)
        self._fields = fields
        self._at = self._seen = found.end()
        return True

    def _header_line(self) -> Event | Step:
        line = self._line(MAX_HEAD - self._head_bytes, HEAD_TOO_LARGE)
        if line is None:
            return Step.STARVED
        if not line:
            return self._end_of_head()
        self._head_bytes += len(line) + 2
        self._n_fields += 1
        if self._n_fields > MAX_HEADERS:
            raise HttpError(431, f"there are more than {MAX_HEADERS} headers")
        name, value = split_header(line)
        known = self._fields.get(name)
        if known is not None:
            if name in SINGLE:
                raise HttpError(400, f"header {name} is given twice")
            value = f"{known}, {value}"
        self._fields[name] = value
        return Step.MOVED

    def _end_of_head(self) -> Event | Step:
        method, target, path, query, version = self._request_line
        fields = self._fields
        length, chunked = framing(fields, version)
        if version == "1.1" and "host" not in fields:
            raise HttpError(400, "header host is missing")
        given = fields.get("connection")
        connection = [option.strip() for option in given.lower().split(",")] if given else ()
        expect = fields.get("expect", "").lower()
        self.head = head = Head(
            method=method,
            target=target,
            path=path,
            query=query,
            headers=MappingProxyType(fields),
            http_version=version,
            keep_alive="close" not in connection and (version == "1.1" or "keep-alive" in connection),
            expect_continue=expect == "100-continue" and version == "1.1",
            content_length=length,
            chunked=chunked,
        )
        if fields.get("content-encoding", "identity").lower() not in CODINGS:
            raise HttpError(415, "bodies are taken as they are, or compressed with gzip", (("Accept-Encoding", "gzip"),))
        if expect not in ("", "100-continue"):
            raise HttpError(417, "the only expectation that can be met is 100-continue")
        if length > self._max_body:
            raise self._body_too_large()
        self._due = length
        self._body_bytes = self._chunking_bytes = 0
        self._state = Parser._chunk_line if chunked else Parser._sized_body
        return head

    def _sized_body(self) -> Event | Step:
        if not self._due:
            return self._end_of_request()
        return self._take_data()

    def _chunk_line(self) -> Event | Step:
        line = self._line(MAX_CHUNK_LINE, CHUNK_LINE_TOO_LONG)
        if line is None:
            return Step.STARVED
        match = CHUNK_LINE.fullmatch(line)
        if match is None:
            raise HttpError(400, "not a chunk size")
        self._due = int(match[1], 16)
        self._body_bytes += self._due
        self._chunking_bytes += len(line) + 4
        if self._body_bytes > self._max_body:
            raise self._body_too_large()
        if self._chunking_bytes > CHUNKING_ALLOWANCE + self._body_bytes // CHUNKING_SHARE:
            raise HttpError(400, "the chunks are too small or their extensions too long")
        if self._due:
            self._state = Parser._chunk_body
        else:
            self._head_bytes = 0
            self._state = Parser._trailer_line
        return Step.MOVED

    def _chunk_body(self) -> Event | Step:
        if self._due:
            return self._take_data()
        ending = self._buffer[self._at : self._at + 2]
        if not b"\r\n".startswith(ending):
            raise HttpError(400, "a chunk is longer than its size")
        if len(ending) < 2:
            return Step.STARVED
        self._at = self._seen = self._at + 2
        self._state = Parser._chunk_line
        return Step.MOVED

    def _trailer_line(self) -> Event | Step:
        line = self._line(MAX_TRAILERS - self._head_bytes, TRAILERS_TOO_LARGE)
        if line is None:
            return Step.STARVED
        if not line:
            return self._end_of_request()
        self._head_bytes += len(line) + 2
        split_header(line)
        return Step.MOVED

    # ---- parts of states

    def _take_data(self) -> Event | Step:
        piece = bytes(self._buffer[self._at : self._at + self._due])
        if not piece:
            return Step.STARVED
        self._due -= len(piece)
        self._at += len(piece)
        self._seen = self._at
        return Data(piece)

    def _end_of_request(self) -> Event | Step:
        self.head = None
        self._state = Parser._blank_line
        if not self.buffered:  # the next request may be long in coming
            self._buffer.clear()
            self._at = self._seen = 0
        return End()

    def _body_too_large(self) -> HttpError:
        return HttpError(413, f"the body is larger than {self._max_body} bytes")


def split_target(target: str) -> tuple[str, str]:
    """Decoded path and raw query of a target in origin form; 400 for any path that two readers could read differently."""
    if not target.startswith("/") or "#" in target:
        raise HttpError(400, "the request target must be a path")
    raw, _, query = target.partition("?")
    try:
        path = ESCAPE.sub(decode_escape, raw.encode("ascii")).decode("utf-8") if "%" in raw else raw
    except UnicodeDecodeError:
        raise HttpError(400, "the path is not UTF-8") from None
    if UNSAFE_IN_PATH.search(path):
        raise HttpError(400, "the path has empty or dot segments, backslashes or control characters")
    return path, query


def decode_escape(match: re.Match[bytes]) -> bytes:
    if match[1] is None:
        raise HttpError(400, "the path has a '%' that starts no escape")
    return bytes((int(match[1], 16),))


def split_header(line: bytes) -> tuple[str, str]:
    """Lower-case name and value. Folded lines, spaces before the colon, bare CR and NUL do not match and are refused."""
    match = HEADER.fullmatch(line)
    if match is None:
        raise HttpError(400, "not a header")
    return match[1].decode("ascii").lower(), match[2].strip(b" \t").decode("latin-1")


def framing(fields: Mapping[str, str], version: str) -> tuple[int, bool]:
    """(content length, chunked) by RFC 9112 section 6, with nothing forgiven: request smuggling lives here."""
    coding, length = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None:
        if length is not None or version == "1.0":
            raise HttpError(400, "transfer-encoding goes neither with content-length nor with HTTP/1.0")
        if coding.lower() != "chunked":
            raise HttpError(501, "the only transfer coding is chunked")
        return 0, True
    if length is None:
        return 0, False
    if not LENGTH.fullmatch(length):
        raise HttpError(400, "content-length is not a number of at most 15 digits")
    return int(length), False


# ---- the answer ------------------------------------------------------------------------------------------------------

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

REASON: Mapping[int, str] = MappingProxyType({status.value: status.phrase for status in HTTPStatus})
FIELD_NAME = re.compile(TOKEN)
FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")
BODILESS = frozenset((204, 304))
"""Statuses that end with their head, whatever its headers say (RFC 9112, 6.3)."""


def head(status: int, headers: Headers, length: int | None = None) -> bytes:
    """The status line and headers; `length` is the body's where it is known. ValueError for a name or value that would not
    stay on its line."""
    lines = _head_lines(status, headers)
    return lines + b"\r\n" if length is None else b"%bContent-Length: %d\r\n\r\n" % (lines, length)


@lru_cache(maxsize=128)  # those of a route are all alike, but for the length
def _head_lines(status: int, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASON.get(status, 'Unknown')}"]
    for name, value in headers:
        if not FIELD_NAME.fullmatch(name) or not FIELD_VALUE.fullmatch(value):
            raise ValueError(f"not a header: {name!r}: {value!r}")
        lines.append(f"{name}: {value}")
    lines.append("")
    return "\r\n".join(lines).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One chunk; b"" for b"", since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
