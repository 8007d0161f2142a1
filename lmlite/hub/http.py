"""A small HTTP client for a hub that is not trusted: one GET, its redirects, and a body that can be cut off at any moment.

At most `REDIRECTS_MAX` redirects; never from https to http unless the hub itself speaks http; never to this machine, a
private network or a cloud's metadata unless the hub itself is there: the addresses that a name resolves to are checked, and
those same are connected to. The token goes to the hub's own origin and nowhere else. Behind a proxy the proxy resolves
names, so only names that are addresses themselves can be checked.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final
from urllib.parse import urljoin

from ..addresses import kind
from ..errors import HubError, LmError
from ..values import holds_more
from .site import Address, Proxy, Site, is_here

REDIRECTS_MAX: Final = 5
REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
CONNECT_S: Final = 10.0
"""For each address of a host; what takes longer than this to accept a connection is down."""
SILENCE_S: Final = 120.0
"""Longest wait for one read. Callers watch the pace and cut sooner; this bounds what they have given up on."""
VALUES_MAX: Final = 100_000
"""Of an answer in JSON: a list of ten thousand files has 80,000."""
PROXY_REPLY_MAX: Final = 16 << 10
RETRY_AFTER_MAX_S: Final = 3600.0
WORTH_RETRYING: Final = frozenset((408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524))
USER_AGENT: Final = "lmlite"

Resolve = Callable[[str, int], list[str]]
Dial = Callable[[str, int, float], socket.socket]


class Interrupted(Exception):
    """The work was cut off by `Interrupt.cut`."""


class Interrupt:
    """Cuts off blocking work in another thread, at once if it waits on a socket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_cut = False

    def cut(self) -> None:
        with self._lock:
            self.is_cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Of the plain socket: SSLSocket's own would pull the TLS state from under the reading thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def check(self) -> None:
        if self.is_cut:
            raise Interrupted

    def watch(self, waiting_on: socket.socket | None) -> None:
        """The socket that the thread waits on from now."""
        with self._lock:
            if self.is_cut:
                if waiting_on is not None:
                    waiting_on.close()
                raise Interrupted
            self._socket = waiting_on

    def let_go(self) -> None:
        with self._lock:
            self._socket = None


class Response:
    """The status and headers of an answer whose body is still on the wire. Reads block and raise `HubError` (to be
    retried) or `Interrupted`."""

    def __init__(self, raw: http.client.HTTPResponse, sock: socket.socket, interrupt: Interrupt, host: str):
        self._raw, self._socket, self._interrupt, self.host = raw, sock, interrupt, host

    @property
    def status(self) -> int:
        return self._raw.status

    def header(self, name: str) -> str | None:
        return self._raw.getheader(name)

    @property
    def length(self) -> int | None:
        """Bytes of the body, if it says so."""
        return self._raw.length

    def read(self, limit: int) -> bytes:
        """The next bytes as they come, at most `limit`; b"" at the end, which may be too soon."""
        with _told(self.host, self._interrupt):
            piece = self._raw.read1(limit)
        self._interrupt.check()  # a socket that was cut reads as one that has ended
        return piece

    def read_all(self, limit: int) -> bytes:
        """The whole body. `HubError` if it is longer than `limit`, shorter than announced, or compressed."""
        if (self.header("content-encoding") or "identity").lower() != "identity":
            raise HubError(f"{self.host} sends compressed what was not asked for compressed")
        announced = self.length
        if announced is not None and announced > limit:
            raise HubError(f"{self.host} sends {announced} bytes where at most {limit} make sense")
        pieces: list[bytes] = []
        n = 0
        while piece := self.read(min(1 << 16, limit + 1 - n)):
            pieces.append(piece)
            n += len(piece)
            if n > limit:
                raise HubError(f"{self.host} sends more than the {limit} bytes that make sense")
        if announced is not None and n != announced:
            raise HubError(f"{self.host} ended the answer after {n} of {announced} bytes", retry=True)
        return b"".join(pieces)

    def read_json(self, limit: int, what: str) -> Any:
        """The value that the whole body is; `what` it is in words. `HubError` as `read_all`, if it is no JSON, and if
        others would wait for long while it is parsed."""
        text = self.read_all(limit)
        if holds_more(text, VALUES_MAX):
            raise HubError(f"{what} holds more than {VALUES_MAX} values")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise HubError(f"{what} is not JSON") from None

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._interrupt.let_go()
        self._raw.close()
        self._socket.close()


def resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def dial(address: str, port: int, timeout_s: float) -> socket.socket:
    return socket.create_connection((address, port), timeout_s)


class Client:
    """For one hub. `resolve` and `dial` are the network; tests put theirs there. Calls may come from several threads."""

    def __init__(self, site: Site, *, resolve: Resolve = resolve, dial: Dial = dial):
        self.site = site
        self._resolve, self._dial = resolve, dial
        self._home = Address.of(site.endpoint)
        self._tls: ssl.SSLContext | None = None

    def get(self, url: str, headers: Mapping[str, str], interrupt: Interrupt) -> Response:
        """The answer after all redirects, whatever its status. Raises `HubError` or `Interrupted`."""
        address = Address.of(url)
        reach = {"public"}
        for _ in range(REDIRECTS_MAX + 1):
            response = self._ask(address, headers, interrupt, reach)
            if response.status not in REDIRECTS:
                return response
            with response:
                location = response.header("location")
            if not location:
                raise HubError(f"{address.host} redirects to nowhere")
            address = self._follow(address, location)
        raise HubError(f"the hub redirects more than {REDIRECTS_MAX} times")

    def _follow(self, address: Address, location: str) -> Address:
        base = f"{address.scheme}://{address.authority}{address.target}"
        try:
            target = Address.of(urljoin(base, location.strip()))
        except ValueError:
            raise HubError(f"{address.host} redirects to what is no address") from None
        if target.scheme == "http" and self._home.scheme != "http":
            raise HubError(f"{address.host} redirects from https to http, which is not followed")
        return target

    def _ask(self, address: Address, headers: Mapping[str, str], interrupt: Interrupt, reach: set[str]) -> Response:
        proxy = self.site.proxy_for(address)
        sent = {
            "Host": address.authority,
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            "Connection": "close",
            **headers,
        }
        if address.origin == self._home.origin and self.site.token:
            sent["Authorization"] = f"Bearer {self.site.token}"
        target = address.target
        if proxy and address.scheme == "http":
            target = f"http://{address.authority}{address.target}"
            sent |= _proxy_headers(proxy)
        with _told(address.host, interrupt):
            sock = self._connect(address, proxy, interrupt, reach)
            try:
                connection = http.client.HTTPConnection(address.host, address.port)
                connection.sock = sock
                connection.request("GET", target, headers=sent)
                return Response(connection.getresponse(), sock, interrupt, address.host)
            except BaseException:
                interrupt.let_go()
                sock.close()
                raise

    # ---- connecting

    def _connect(self, address: Address, proxy: Proxy | None, interrupt: Interrupt, reach: set[str]) -> socket.socket:
        """A connection to `address`, with TLS where it is https; watched by `interrupt`."""
        to = (address.host, address.port) if proxy is None else (proxy.host, proxy.port)
        addresses = self._permitted(address, proxy, reach)
        sock = self._dial_one_of(addresses or self._resolved(*to), to[1], interrupt)
        try:
            sock.settimeout(SILENCE_S)
            interrupt.watch(sock)
            if address.scheme == "https":
                if proxy is not None:
                    _tunnel(sock, address, proxy)
                sock = tls = self._context().wrap_socket(sock, server_hostname=address.host, do_handshake_on_connect=False)
                interrupt.watch(tls)
                tls.do_handshake()
            return sock
        except BaseException:
            interrupt.let_go()
            sock.close()
            raise

    def _permitted(self, address: Address, proxy: Proxy | None, reach: set[str]) -> list[str]:
        """The addresses that `address` stands for, all of which may be connected to; [] if a proxy has to know."""
        is_hub = (address.host, address.port) == (self._home.host, self._home.port)
        if is_here(address.host) and not is_hub and "loopback" not in reach:
            raise _out_of_reach(address, "loopback")
        addresses = _numeric(address.host) if proxy else self._resolved(address.host, address.port)
        kinds = {kind(item) for item in addresses}
        if is_hub:
            reach |= kinds
        elif kinds - reach:
            raise _out_of_reach(address, min(kinds - reach))
        return [] if proxy else addresses

    def _resolved(self, host: str, port: int) -> list[str]:
        try:
            return self._resolve(host, port)
        except (OSError, UnicodeError):
            raise HubError(f"the host {host} cannot be found", retry=True) from None

    def _dial_one_of(self, addresses: list[str], port: int, interrupt: Interrupt) -> socket.socket:
        failure: OSError = OSError("it has no address")
        for address in addresses:
            interrupt.check()
            try:
                return self._dial(address, port, CONNECT_S)
            except OSError as error:
                failure = error
        raise failure

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _out_of_reach(address: Address, kind: str) -> HubError:
    return HubError(f"the hub redirects to {address.host}, a {kind} address, which is not followed")


def _numeric(host: str) -> list[str]:
    """The address that `host` spells in figures (`127.1` and `0x7f000001` too), [] if it is a name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [str(entry[4][0]) for entry in found]


def _proxy_headers(proxy: Proxy) -> dict[str, str]:
    if proxy.credentials is None:
        return {}
    return {"Proxy-Authorization": "Basic " + base64.b64encode(proxy.credentials.encode()).decode()}


def _tunnel(sock: socket.socket, address: Address, proxy: Proxy) -> None:
    """Asks the proxy to connect `sock` to `address`."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    authority = f"{host}:{address.port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in _proxy_headers(proxy).items()]
    sock.sendall("\r\n".join((*lines, "", "")).encode("latin-1"))
    reply = b""
    while b"\r\n\r\n" not in reply:
        byte = sock.recv(1)  # one by one: what follows the reply belongs to TLS
        if not byte or len(reply) > PROXY_REPLY_MAX:
            raise HubError(f"the proxy {proxy.host} does not answer as a proxy does", retry=True)
        reply += byte
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})[ \r]", reply)
    if status is None or not status[1].startswith(b"2"):
        said = status[1].decode() if status else "nothing that HTTP knows"
        raise HubError(f"the proxy {proxy.host} does not connect to {address.host}: it says {said}", retry=True)


class _told:
    """Whatever goes wrong on the wire, told as a `HubError` that may be retried, or as `Interrupted`."""

    def __init__(self, host: str, interrupt: Interrupt):
        self._host, self._interrupt = host, interrupt

    def __enter__(self) -> None:
        self._interrupt.check()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if self._interrupt.is_cut and isinstance(exc, Exception):
            raise Interrupted from None
        match exc:
            case None | LmError():
                return
            case ssl.SSLCertVerificationError():
                raise HubError(f"{self._host} has no certificate that can be trusted: {exc.verify_message}") from None
            case TimeoutError():
                raise HubError(f"{self._host} does not answer", retry=True) from None
            case OSError():
                why = exc.strerror or type(exc).__name__
                raise HubError(f"the connection to {self._host} failed: {why}", retry=True) from None
            case http.client.HTTPException() | ValueError():
                raise HubError(f"{self._host} does not speak HTTP as it should", retry=True) from None


# ---- answers that are refusals ---------------------------------------------------------------------------------------


def refusal(response: Response) -> HubError:
    """What a status that is no success tells."""
    status = response.status
    wait_s = retry_after_s(response.header("retry-after"))
    what = {401: "asks for a token (HF_TOKEN)", 403: "does not give it to this token", 404: "does not have it any more"}
    said = what.get(status, "asks for fewer requests" if status == 429 else "fails")
    return HubError(
        f"{response.host} {said} (status {status})", retry=status in WORTH_RETRYING, retry_after_s=wait_s
    )


def retry_after_s(value: str | None) -> float:
    """Seconds, or the time until a date; 0 for nothing or nonsense."""
    if value is None:
        return 0.0
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return min(float(value), RETRY_AFTER_MAX_S)
    from email.utils import parsedate_to_datetime

    try:
        wait_s = parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)
