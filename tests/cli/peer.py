"""A small HTTP server on loopback whose answers a test writes down: what commands are tried against."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Http(ThreadingHTTPServer):
    """Says nothing of clients that leave before their answer's end: what it would say goes to the stderr under test."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Events:
    """Server-sent events; `broken` ends the connection in the middle of what follows them."""

    events: list[tuple[str | None, Any]]
    broken: bool = False


@dataclass
class Raw:
    """A body as it is."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Answer = Any
"""JSON, (status, JSON), Events, Raw, or a function of `Asked` that returns one of these."""


class Peer:
    """`answers` is by method and path without its query; `asked` are the requests so far, in order."""

    def __init__(self, answers: Mapping[tuple[str, str], Answer]):
        self.answers = dict(answers)
        self.asked: list[Asked] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self.command, self.path, dict(self.headers), json.loads(content) if content else None)
                peer.asked.append(asked)
                key = (self.command, self.path.partition("?")[0])
                unknown = 404, {"error": f"Unexpected endpoint or method. ({self.command} {self.path})"}
                answer = peer.answers.get(key, unknown)
                answer = answer(asked) if isinstance(answer, Callable) else answer  # type: ignore[arg-type]
                match answer:
                    case Events():
                        self._events(answer)
                    case Raw(body, status, headers):
                        self._whole(status, body, headers)
                    case (int() as status, payload):
                        self._whole(status, json.dumps(payload).encode(), {})
                    case _:
                        self._whole(200, json.dumps(answer).encode(), {})

            def _whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def _events(self, answer: Events) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for name, payload in answer.events:
                    frame = (f"event: {name}\n" if name else "") + f"data: {json.dumps(payload)}\n\n"
                    self._chunk(frame.encode())
                if answer.broken:
                    self.wfile.write(b"40\r\ndata: ")
                    self.close_connection = True
                else:
                    self._chunk(b"")

            def _chunk(self, content: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = Http(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
