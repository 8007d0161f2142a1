"""TLS: the certificate of a server, and connections that speak it; one that does not is told so, in plain HTTP.

`ssl` is imported only where a certificate was given.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError

if TYPE_CHECKING:
    import ssl

HANDSHAKE_S: Final = 10.0
"""From the first byte to the end of the handshake; nobody takes a place for longer without having asked anything."""
LINGER_S: Final = 1.0
HANDSHAKE: Final = b"\x16"
"""The first byte of whoever speaks TLS (RFC 8446, 5.1)."""
TEXT: Final = b'{"error":"This port speaks TLS: ask for https://"}'
PLAIN_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(TEXT), TEXT)
)


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and newer. Raises `ConfigError`, which says what is wrong with the files."""
    import ssl

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    load(made, certificate, key)
    return made


def renew(used: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """The next connections get what the files hold now; where that is no good, what there was stays. Raises `ConfigError`."""
    context(certificate, key)
    load(used, certificate, key)


def load(used: ssl.SSLContext, certificate: Path, key: Path) -> None:
    import ssl

    for file in (certificate, key):
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
        if b"ENCRYPTED" in text:  # PKCS 8 and the older form alike
            raise ConfigError(f"the key in {file} is encrypted; it has to be one without a password")
    try:
        used.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if "mismatch" in reason:
            raise ConfigError(f"the key {key} does not belong to the certificate {certificate}") from None
        raise ConfigError(f"{certificate} and {key} are no certificate and its key in PEM form ({reason})") from None


async def connect(make: Callable[[], asyncio.Protocol], accepted: socket.socket, used: ssl.SSLContext) -> None:
    """Raises `OSError` where no connection comes of it."""
    loop = asyncio.get_running_loop()
    if await first_byte(accepted) == HANDSHAKE:
        await loop.connect_accepted_socket(make, accepted, ssl=used, ssl_handshake_timeout=HANDSHAKE_S)
    else:
        await loop.connect_accepted_socket(PlainAnswer, accepted)


async def first_byte(accepted: socket.socket) -> bytes:
    """Which stays to be read; b"" from who says nothing."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(accepted.fileno(), settle, ready)
    try:
        await asyncio.wait_for(ready, HANDSHAKE_S)
    except asyncio.TimeoutError:
        raise TimeoutError("nothing was said") from None
    finally:
        loop.remove_reader(accepted.fileno())
    return accepted.recv(1, socket.MSG_PEEK)


def settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class PlainAnswer(asyncio.Protocol):
    """Says what is wrong, and reads on for a moment so that it is heard."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(PLAIN_ANSWER)
        transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, transport.abort)
