"""Talks HTTP to the server of this home, for commands that ask it something.

Every failure is an `LmError`: `NotRunning` if nothing answers, `ServerError` for what the server refuses or breaks off.
Proxies are never asked: the server is this machine's, or the one that was named.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..config import gather, read_file
from ..errors import LmError
from ..records import dataclass
from ..store.home import Home
from .terminal import LEVELS

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

TOKEN_VARIABLES: Final = ("LMLITE_API_TOKEN", "LM_API_TOKEN")
CONNECT_S: Final = 5.0
"""A server that runs accepts at once; only one on another machine takes a while."""
ANSWER_S: Final = 30.0
"""For what only tells what is known. What may load a model has no limit of its own."""
MAX_LINE: Final = 1 << 24
"""Bytes of one line of an event: far above any of ours, and a bound for what answers instead of the server."""
ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on that are none to connect to."""


class NotRunning(LmError):
    """No server answers at `url`."""

    status, code = 503, "not_running"

    def __init__(self, url: str):
        super().__init__(f"The server is not running at {url}. Start it with: lmlite server start")
        self.url = url


class ServerError(LmError):
    """The server's own refusal, or `connection_lost` and `bad_answer` for what is none of its answers."""

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code = status, code or "unknown"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that all commands have which talk to a server; see `terminal.say` for those about messages."""
    of_server = parser.add_argument_group("the server to talk to")
    of_server.add_argument("--host", metavar="ADDRESS", help="its address (default: this machine's)")
    of_server.add_argument("--port", type=_port, metavar="N", help="its port (default: that of the running server)")
    messages = add_message_flags(parser)
    messages.add_argument("--log-level", choices=LEVELS, default="info", help="which are shown (default: info)")


def add_message_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Those about messages but for their level, which a command may have as an option of the server."""
    messages = parser.add_argument_group("messages on stderr")
    messages.add_argument("--quiet", action="store_true", help="none but errors")
    messages.add_argument("--verbose", action="store_true", help="more of them")
    return messages


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text[:6]) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port, which is a number from 1 to 65535")


@dataclass(slots=True, frozen=True)
class Place:
    """Where a server is besides an address and a port: in a file, or behind a certificate; "" for neither."""

    file: str = ""
    certificate: str = ""


class Client:
    """One server. Every call is a connection of its own."""

    def __init__(self, host: str, port: int, token: str | None = None, place: Place | None = None):
        self.host, self.port, self._token = ANY_ADDRESS.get(host, host), port, token
        self._place = place or Place()

    @classmethod
    def find(cls, environ: Mapping[str, str], host: str | None = None, port: int | None = None) -> Client:
        """The running server of this home, or the one that `host` and `port` name. Raises `NotRunning` if nobody has the
        home and nothing names a port; else the first call may do so."""
        config = gather({"host": host, "insecure_no_auth": True} if host is not None else {}, environ)
        token = next((environ[name] for name in TOKEN_VARIABLES if environ.get(name)), None)
        if host is not None or port is not None:
            return cls(config.host[0], config.port if port is None else port, token)
        home = Home(config.home)
        if (owner := home.owner()) is not None and owner.url is not None:
            host, port, place = _address(owner.url, owner.options.get("tls_cert"))
            return cls(host, port, token, place)
        client = cls(config.host[0], config.port, token)
        # A server inside a program holds no lock, but it has a port that somebody chose.
        if environ.get("LMLITE_PORT") or "port" in read_file(home.config_file):
            return client
        raise NotRunning(client.url)

    @property
    def url(self) -> str:
        if self._place.file:
            return f"unix:{self._place.file}"
        scheme = "https" if self._place.certificate else "http"
        return f"{scheme}://[{self.host}]:{self.port}" if ":" in self.host else f"{scheme}://{self.host}:{self.port}"

    def is_running(self) -> bool:
        try:
            self.get("/health")
        except NotRunning:
            return False
        except ServerError:  # something answers, so the port is taken
            pass
        return True

    def get(self, path: str) -> Any:
        """The answer's JSON."""
        return self._whole("GET", path, None, ANSWER_S)

    def post(self, path: str, body: Any) -> Any:
        """The answer's JSON; waits for it as long as the server takes."""
        return self._whole("POST", path, body, None)

    def events(
        self, method: str, path: str, body: Any = None, on_open: Callable[[], None] | None = None
    ) -> Generator[tuple[str | None, Any], None, None]:
        """The names and JSON payloads of server-sent events until the server's end, or the caller's: closing the iterator
        closes the connection. An `error` event is raised as `ServerError`. `on_open` is called once the server has begun."""
        connection, response = self._ask(method, path, body, None)
        try:
            if not response.headers.get_content_type() == "text/event-stream":
                raise ServerError(502, "bad_answer", f"{self.url}{path} answers with something else than events")
            if on_open is not None:
                on_open()
            for name, data in read_events(response):
                if data == "[DONE]":
                    return
                payload = _json(data)
                if name == "error":
                    raise _refusal(502, payload)
                yield name, payload
        except Exception as error:
            raise _lost(error) from None
        finally:
            connection.close()

    def _whole(self, method: str, path: str, body: Any, timeout_s: float | None) -> Any:
        connection, response = self._ask(method, path, body, timeout_s)
        try:
            payload = _json(response.read())
            if isinstance(payload, dict) and payload.keys() == {"error"}:  # as LM Studio answers what it does not know
                raise _refusal(response.status, payload)
            return payload
        except Exception as error:
            raise _lost(error) from None
        finally:
            connection.close()

    def _ask(
        self, method: str, path: str, body: Any, timeout_s: float | None
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """A response of status 2xx, its body still to be read."""
        connection = self._connect()
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        try:
            connection.sock.settimeout(timeout_s)
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            if not 200 <= response.status < 300:
                refusal = _refusal(response.status, _json(response.read()))
                raise self._asks_for_token(refusal) if response.status == 401 else refusal
        except BaseException as error:
            connection.close()
            raise _lost(error) from None
        return connection, response

    def _asks_for_token(self, refusal: ServerError) -> ServerError:
        """In the words of a shell: the server's own are for who sends headers."""
        told = "takes no such API token" if self._token else "asks for an API token"
        hint = f"lmlite token create NAME makes one, and commands take it from {TOKEN_VARIABLES[-1]}"
        return ServerError(refusal.status, refusal.code, f"The server at {self.url} {told}: {hint}")

    def _connect(self) -> HTTPConnection:
        from http.client import HTTPConnection

        connection = HTTPConnection(self.host, self.port, timeout=CONNECT_S)
        try:
            if self._place.file:
                connection.sock = _open_file(self._place.file)
            else:
                connection.connect()
                if self._place.certificate:
                    connection.sock = _secure(connection.sock, self._place.certificate)
        except (OSError, UnicodeError):
            raise NotRunning(self.url) from None
        return connection


def _address(url: str, certificate: object) -> tuple[str, int, Place]:
    if url.startswith("unix:"):
        return "localhost", 0, Place(file=url.removeprefix("unix:"))
    scheme, _, address = url.partition("://")
    host, _, port = address.rpartition(":")
    secured = certificate if scheme == "https" and isinstance(certificate, str) else ""
    return host.strip("[]"), int(port), Place(certificate=secured)


def _open_file(path: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(CONNECT_S)
        connected.connect(path)
    except BaseException:
        connected.close()
        raise
    return connected


def _secure(connected: socket.socket, certificate: str) -> socket.socket:
    """The server of this home has to prove that it holds this very certificate, whatever name that is made out to."""
    import ssl

    context = ssl.create_default_context(cafile=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context.wrap_socket(connected)


# ---- answers ---------------------------------------------------------------------------------------------------------


def read_events(response: HTTPResponse) -> Iterator[tuple[str | None, str]]:
    """The names and data of server-sent events; one that was cut off is none (WHATWG: server-sent events)."""
    name: str | None = None
    data: list[str] = []
    while line := response.readline(MAX_LINE):
        key, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            data.append(value)
        elif not key and line.strip() == b"":
            if data:
                yield name, "\n".join(data)
            name, data = None, []


def _json(text: str | bytes) -> Any:
    """Raises `ServerError` for what is no JSON: another program has the port."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ServerError(502, "bad_answer", "the answer is not JSON; is this an lmlite server?") from None


def _refusal(status: int, payload: Any) -> ServerError:
    """LM Studio's error shapes: a text, or an object with a message and perhaps a code."""
    error = payload.get("error") if isinstance(payload, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        code = error.get("code") or error.get("type")
        return ServerError(status, code if isinstance(code, str) else None, error["message"])
    return ServerError(status, None, error if isinstance(error, str) else f"the server answers with status {status}")


def _lost(error: BaseException) -> BaseException:
    """`error`, told as a fact if it is a connection's."""
    from http.client import HTTPException

    if isinstance(error, TimeoutError):
        return ServerError(504, "no_answer", f"the server does not answer within {ANSWER_S:g} s")
    if isinstance(error, (OSError, HTTPException)):
        return ServerError(503, "connection_lost", "the connection to the server is lost")
    return error
