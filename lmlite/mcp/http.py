"""HTTP for one server of tools that is not trusted: a connection a request, to an address that was looked at before.

A host's name is resolved once, in `Endpoint.find`; connections go to those addresses, with the name for TLS and in `Host`.
Redirects are not followed, nothing is decompressed, and all that a server sends has its bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from ..addresses import kind
from ..records import dataclass
from .message import MESSAGE_BYTES_MAX, Fault, Refused

CONNECT_S: Final = 10.0
HEAD_MAX: Final = 64 << 10
CHUNK: Final = 64 << 10
PLAIN: Final = re.compile(r"[\x21-\x7e]+")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")

Resolve = Callable[[str, int], Awaitable[list[str]]]


class NotPublic(Fault):
    """The server's name leads to an address of this machine, or of its network."""


@dataclass(slots=True, frozen=True)
class Endpoint:
    """A URL and the addresses that its host has."""

    scheme: str
    host: str
    port: int
    target: str
    addresses: tuple[str, ...]

    @classmethod
    async def find(cls, url: str, *, public_only: bool, resolve: Resolve | None = None) -> Endpoint:
        """Raises `Fault`, and `NotPublic` if one of its addresses is not and all have to be."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise Fault("its url is none") from None
        if parts.scheme not in ("http", "https") or not host or not PLAIN.fullmatch(url):
            raise Fault("its url is none of http or https")
        if parts.username or parts.password:
            raise Fault("its url has a name or password in it: give them in headers")
        port = port if port is not None else 443 if parts.scheme == "https" else 80
        try:
            addresses = await (resolve or resolved)(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise Fault("its host cannot be found")
        if public_only and any(kind(address) != "public" for address in addresses):
            raise NotPublic("URL resolves to a non-public address.")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, host, port, target, tuple(addresses))

    def beside(self, reference: str) -> Endpoint:
        """Another one of the same server. Raises `Fault` if it would be another's."""
        parts = urlsplit(urljoin(f"{self.scheme}://{self.authority}{self.target}", reference))
        with contextlib.suppress(ValueError):
            port = parts.port or (443 if parts.scheme == "https" else 80)
            if (parts.scheme, parts.hostname, port) == (self.scheme, self.host, self.port):
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                if PLAIN.fullmatch(target):
                    return Endpoint(self.scheme, self.host, self.port, target, self.addresses)
        raise Fault("the server names an endpoint that is not its own")

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


async def resolved(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(slots=True)
class Answer:
    """Its body is still on the wire."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]

    @property
    def type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """Raises `Fault` if it is longer than a message may be."""
        pieces: list[bytes] = []
        n = 0
        async for piece in self.body:
            n += len(piece)
            if n > MESSAGE_BYTES_MAX:
                raise Fault(f"the server's answer is longer than {MESSAGE_BYTES_MAX >> 20} MiB")
            pieces.append(piece)
        return b"".join(pieces)


class Web:
    """Asks. TLS trusts whom this machine trusts."""

    def __init__(self) -> None:
        self._tls: ssl.SSLContext | None = None

    @contextlib.asynccontextmanager
    async def ask(
        self, endpoint: Endpoint, method: str, headers: Mapping[str, str], body: bytes = b""
    ) -> AsyncIterator[Answer]:
        """The answer; the connection lasts as long as the block. Raises `Fault`."""
        reader, writer = await self._connect(endpoint)
        try:
            writer.write(spell_request(endpoint, method, headers, body))
            with told():
                await writer.drain()
                answer = await read_answer(reader)
            if 300 <= answer.status < 400:
                raise Refused(answer.status, f"the server redirects ({answer.status}), which is not followed")
            yield answer
        finally:
            writer.transport.abort()

    async def _connect(self, endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls: dict[str, Any] = {}
        if endpoint.scheme == "https":
            if self._tls is None:
                self._tls = await asyncio.to_thread(ssl.create_default_context)
            tls = {"ssl": self._tls, "server_hostname": endpoint.host}
        failure: Fault = Fault("the server cannot be reached")
        for address in endpoint.addresses:
            connecting = asyncio.open_connection(address, endpoint.port, limit=HEAD_MAX, **tls)
            try:
                with told():
                    return await asyncio.wait_for(connecting, CONNECT_S)
            except Fault as fault:
                failure = fault
        raise failure


class told:  # noqa: N801 - reads as a word
    """Whatever goes wrong on the wire, as a `Fault`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        match exc:
            case ssl.SSLCertVerificationError():
                raise Fault(f"the server has no certificate that can be trusted: {exc.verify_message}") from None
            case asyncio.IncompleteReadError():
                raise Fault("the server ended its answer too early") from None
            case asyncio.LimitOverrunError():
                raise Fault("the server does not speak HTTP as it should") from None
            case TimeoutError() | asyncio.TimeoutError():
                raise Fault("the server does not answer") from None
            case OSError():
                raise Fault(f"the server cannot be reached: {exc.strerror or type(exc).__name__}") from None


def spell_request(endpoint: Endpoint, method: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """`headers` were checked by whoever took them."""
    lines = [f"{method} {endpoint.target} HTTP/1.1", f"Host: {endpoint.authority}", "Connection: close"]
    lines += ["User-Agent: lmlite", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1", "replace") + body


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    status = 100
    while status < 200:  # what says "go on" is no answer
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        found = _STATUS.fullmatch(first)
        if found is None:
            raise Fault("the server does not speak HTTP as it should")
        status = int(found[1])
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Fault("the server sends compressed what was not asked for compressed")
    return Answer(status, headers, body_of(reader, status, headers))


async def body_of(reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    with told():
        if status == 204 or status == 304:
            return
        if "chunked" in headers.get("transfer-encoding", "").lower():
            async for piece in chunks(reader):
                yield piece
            return
        length = headers.get("content-length")
        if length is None:
            while piece := await reader.read(CHUNK):
                yield piece
            return
        if not _LENGTH.fullmatch(length):
            raise Fault("the server does not speak HTTP as it should")
        async for piece in exactly(reader, int(length)):
            yield piece


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        size = _CHUNK_SIZE.fullmatch(await reader.readuntil(b"\n"))
        if size is None:
            raise Fault("the server does not speak HTTP as it should")
        if (n := int(size[1], 16)) == 0:
            return
        async for piece in exactly(reader, n):
            yield piece
        await reader.readuntil(b"\n")


async def exactly(reader: asyncio.StreamReader, n: int) -> AsyncIterator[bytes]:
    while n > 0:
        piece = await reader.read(min(n, CHUNK))
        if not piece:
            raise Fault("the server ended its answer too early")
        n -= len(piece)
        yield piece
