"""A model hub of our own on loopback: it behaves as a Hugging Face hub does, and misbehaves where a test says so.

`hub.on(path, act)` puts an act in the place of what it would do for paths that contain `path`; acts get the handler.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "X-Amz-Signature=s3cr3t"
"""Stands in every URL of the hub's store, as it does in real ones: it must turn up nowhere."""
WAIT_S = 30.0

Act = Callable[["Handler"], None]


@dataclass(frozen=True)
class Asked:
    host: str
    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Held:
    """An answer that stops after `n` bytes of its body until the test lets it go on; whoever waits for it waits too long."""

    n: int
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    given_up: bool = False  # the test did not let it go on in time

    def __call__(self, handler: Handler) -> None:
        content = handler.hub.stored(handler.path)
        handler.begin(200, {"Content-Length": str(len(content)), "ETag": etag_of(content)})
        handler.wfile.write(content[: self.n])
        self.hold()
        handler.wfile.write(content[self.n :])

    def hold(self) -> None:
        self.reached.set()
        self.given_up = not self.release.wait(WAIT_S)


class Hub:
    """Repositories are `{"owner/name": {"file.gguf": content}}`; files are told of as LFS files."""

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]], tls: ssl.SSLContext | None = None):
        self.repos = {repo: dict(files) for repo, files in repos.items()}
        self.asked: list[Asked] = []
        self.acts: list[tuple[str, list[Act], Act | None]] = []
        self.redirects = True  # files are elsewhere, under a signed URL
        self.tunnel_to = 0  # the port that it connects to as a proxy
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            # The handshake is for the connection's own thread: one that fails must not hold up the others.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on(self, path: str, *once: Act, then: Act | None = None) -> None:
        """The next requests for `path` get the acts of `once`, one each; those after them `then`, or what is right."""
        self.acts.insert(0, (path, list(once), then))

    def acts_on(self, path: str) -> bool:
        return any(part in path for part, _, _ in self.acts)

    def act_for(self, path: str) -> Act | None:
        for part, once, then in self.acts:
            if part in path:
                if once:
                    return once.pop(0)
                if then is not None:
                    return then
        return None

    def files_asked(self) -> list[Asked]:
        """The requests for contents."""
        return [asked for asked in self.asked if asked.path.startswith("/store/")]

    def stored(self, path: str) -> bytes:
        digest = urlsplit(path).path.rpartition("/")[2]
        contents = (content for files in list(self.repos.values()) for content in list(files.values()))
        return next(content for content in contents if sha256(content) == digest)

    def listing(self, repo: str) -> dict[str, Any]:
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": git(content)}
            | {"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 134}}
            for name, content in self.repos[repo].items()
        ]
        return {"id": repo, "sha": COMMIT, "siblings": siblings}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 0

    @property
    def hub(self) -> Hub:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        return hub

    def do_GET(self) -> None:
        self.close_connection = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(headers.get("host", ""), self.path, headers))
        try:
            act = self.hub.act_for(self.path)
            (act or behave)(self)
        except OSError:
            pass  # it had heard enough

    def do_CONNECT(self) -> None:
        if not self.hub.acts_on(self.path):
            self.hub.on(self.path, tunnel)
        self.do_GET()

    def handle(self) -> None:
        with suppress(ssl.SSLError, ConnectionError):  # a client may refuse our certificate
            super().handle()

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def whole(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.begin(status, {"Content-Length": str(len(content)), **(headers or {})})
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def behave(handler: Handler) -> None:
    """What an honest hub does."""
    hub, path = handler.hub, unquote(urlsplit(handler.path).path)
    if listing := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/.+)?", path):
        repo = next((repo for repo in hub.repos if repo.lower() == listing[1].lower()), None)
        if repo is None:
            return handler.whole(401, b'{"error":"Repository not found"}')
        return handler.whole(200, json.dumps(hub.listing(repo)).encode(), {"Content-Type": "application/json"})
    if resolve := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        content = hub.repos.get(resolve[1], {}).get(resolve[3])
        if content is None:
            return handler.whole(404, b"Entry not found")
        if hub.redirects:
            location = f"/store/{sha256(content)}?{SIGNATURE}"
            return handler.whole(302, b"", {"Location": location, "X-Linked-ETag": f'"{sha256(content)}"'})
        return send(handler, content)
    if path.startswith("/store/"):
        return send(handler, hub.stored(path))
    handler.whole(404, b"not here")


def send(handler: Handler, content: bytes, etag: str | None = None) -> None:
    """The content, or the rest of it if the client says that it has the beginning of this very content."""
    etag = etag or etag_of(content)
    asked = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
    if asked and handler.headers.get("If-Range") in (None, etag):
        start = int(asked[1])
        where = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}", "ETag": etag}
        return handler.whole(206, content[start:], where)
    handler.whole(200, content, {"ETag": etag})


# ---- acts ------------------------------------------------------------------------------------------------------------


def answer(status: int, content: bytes = b"", **headers: str) -> Act:
    """Header names with `_` for the dash."""
    return lambda handler: handler.whole(status, content, {k.replace("_", "-"): v for k, v in headers.items()})


def redirect(location: str) -> Act:
    return answer(302, Location=location)


def cut_after(n: int) -> Act:
    """Announces all and ends after `n` bytes: a short body."""

    def act(handler: Handler) -> None:
        content = handler.hub.stored(handler.path)
        asked = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        headers = {"Content-Length": str(len(content) - start), "ETag": etag_of(content)}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.begin(206 if asked else 200, headers)
        handler.wfile.write(content[start : start + n])

    return act


def chunked(content: bytes, *, endless: bool = False) -> Act:
    """Of a length that is not announced."""

    def act(handler: Handler) -> None:
        handler.begin(200, {"Transfer-Encoding": "chunked", "ETag": etag_of(content)})
        while True:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
            if not endless:
                handler.wfile.write(b"0\r\n\r\n")
                return

    return act


def drip(stop: threading.Event, every_s: float = 0.02) -> Act:
    """A byte now and then."""

    def act(handler: Handler) -> None:
        content = handler.hub.stored(handler.path)
        handler.begin(200, {"Content-Length": str(len(content)), "ETag": etag_of(content)})
        for i in range(len(content)):
            if stop.wait(every_s):
                return
            handler.wfile.write(content[i : i + 1])

    return act


def raw(content: bytes) -> Act:
    """Bytes that need not be HTTP."""

    def act(handler: Handler) -> None:
        handler.wfile.write(content)

    return act


def tunnel(handler: Handler) -> None:
    """What a proxy does after CONNECT."""
    handler.begin(200, {})
    near = handler.connection
    with socket.create_connection(("127.0.0.1", handler.hub.tunnel_to), WAIT_S) as far:
        other = {near: far, far: near}
        while True:
            for end in select.select([near, far], [], [], WAIT_S)[0]:
                piece = end.recv(1 << 16)
                if not piece:
                    return
                other[end].sendall(piece)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag_of(content: bytes) -> str:
    return f'"{sha256(content)[:32]}"'


@contextmanager
def running(repos: Mapping[str, Mapping[str, bytes]], tls: ssl.SSLContext | None = None) -> Iterator[Hub]:
    hub = Hub(repos, tls)
    try:
        yield hub
    finally:
        hub.close()
