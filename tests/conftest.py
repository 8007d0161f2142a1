"""What tests of whole servers share: a server with a fake engine, and one with the real engine and the bundled model.

The real one is not optional: where the native library is missing, tests that ask for it fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent
# At the end: where lmlite is installed, that is what is tested, not the tree beside the tests.
sys.path.append(str(ROOT))

import lmlite  # noqa: E402
from lmlite.app import App  # noqa: E402
from lmlite.config import Config  # noqa: E402
from lmlite.server import LoopThread, Server, Service  # noqa: E402
from tests.core.gguf_files import bert, gguf, llama, projector  # noqa: E402
from tests.fakes import FakeEngine, Script, fake_thread  # noqa: E402

INSTALLED = Path(lmlite.__file__).parent.parent
"""Where the package lies that is tested, for the PYTHONPATH of child processes."""
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")
# How fast examples are made, and tried, says something of what else the machine does.
TIMEOUT_S = 30.0
"""Far above any answer of a fake engine: a test that waits this long has found a hang."""
POLL_S = 0.005


def until(there: Callable[[], bool]) -> None:
    """Waits for what nothing tells of: files of another process, its memory."""
    end = time.monotonic() + TIMEOUT_S
    while not there():
        assert time.monotonic() < end
        time.sleep(POLL_S)


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str | None, str]]:
        """The server-sent events of the body: names and payloads."""
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            lines = dict(line.split(": ", 1) for line in block.split("\n"))
            found.append((lines.get("event"), lines["data"]))
        return found


@dataclass
class Client:
    """One keep-alive connection to a server on loopback."""

    port: int
    connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        response = self.start(method, path, body, headers)
        return Answer(response.status, dict(response.getheaders()), response.read())

    def start(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """The response with its body still to be read."""
        content = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        type_of_body = {"Content-Type": "application/json"} if content is not None else {}
        self.connection.request(method, path, content, {**type_of_body, **(headers or {})})
        return self.connection.getresponse()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, headers)

    def close(self) -> None:
        self.connection.close()


def address(process: subprocess.Popen[str]) -> str:
    """The URL that a server says when it is there."""
    assert process.stdout is not None
    url = re.search(r"http://\S+", process.stdout.readline())
    assert url is not None
    return url[0]


def complete(url: str, model: str, n_tokens: int) -> None:
    """A completion of so many tokens is what the server gives."""
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": n_tokens}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == n_tokens


@dataclass
class FakeServer:
    """A running server whose engines are fakes; `engines` are those it started, in order."""

    config: Config
    script: Script = field(default_factory=Script)
    engines: list[FakeEngine] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    service: Service = field(init=False)
    thread: LoopThread = field(init=False)
    closing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.thread = LoopThread("test-server")
        self.service = Service(self.config, App(self.config, self.place))
        self.thread.call(self.service.open())

    def place(self) -> Any:
        self.engines.append(FakeEngine(self.script))
        return fake_thread(self.engines[-1])

    @property
    def port(self) -> int:
        return self.service.port

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def client(self) -> Client:
        self.clients.append(Client(self.port))
        return self.clients[-1]

    def settle(self) -> None:
        """Returns when what is ready in the server's loop has run: what an answer leaves behind is gone."""

        async def turns() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.thread.call(turns())

    def expire(self) -> None:
        """Who stops it waits for `drain_delay` no longer, nor will."""
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self.thread.loop.call_soon_threadsafe(self.service.expire)

    def close(self) -> None:
        with self.closing:
            if not self.thread.closed:
                self.thread.call(self.service.close())
                self.thread.close()


@pytest.fixture(scope="session", autouse=True)
def no_hub_cache() -> Iterator[None]:
    """No models of whoever runs the tests, wherever their cache is; where HOME is another, so is the cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model `talker`, an embedding model `text-embedding-embedder` and a reranker `text-embedding-judge`; only
    their headers are sound."""
    folder = tmp_path_factory.mktemp("models")
    models = {"acme/talker-GGUF/talker-Q4_K_M.gguf": llama(), "acme/embedder/embedder-Q4_K_M.gguf": bert()}
    models["acme/judge/judge-Q4_K_M.gguf"] = bert(bert__pooling_type=4)
    for place, values in models.items():
        path = folder / place
        path.parent.mkdir(parents=True)
        path.write_bytes(gguf(values))
    return folder


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    """Beside `talker` a model `seer`, which sees, and `hearer`, which hears."""
    folder = tmp_path / "seeing"
    for name, senses in (("seer", {"vision": True}), ("hearer", {"vision": False, "audio": True})):
        place = folder / "acme" / f"{name}-GGUF"
        place.mkdir(parents=True)
        (place / f"{name}-Q4_K_M.gguf").write_bytes(gguf(llama()))
        marks = {f"clip.has_{sense}_encoder": has for sense, has in senses.items()}
        file = f"mmproj-{'hears' if name == 'hearer' else 'sees'}-f16.gguf"
        (place / file).write_bytes(gguf(projector() | marks))
    return folder


@pytest.fixture
def serve_fake(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., FakeServer]]:
    """Starts servers with fake engines: `serve_fake(Script(...), parallel=2)`."""
    monkeypatch.setenv("HOME", str(tmp_path))  # no models of whoever runs the tests
    servers: list[FakeServer] = []

    def serve(script: Script | None = None, **options: Any) -> FakeServer:
        settings = {"port": 0, "home": tmp_path / "home", "models_dir": [model_folder], "drain": 5, **options}
        servers.append(FakeServer(Config.of(**settings), script or Script()))
        return servers[-1]

    yield serve
    for server in servers:
        for client in server.clients:
            client.close()
        server.expire()
        server.close()


@pytest.fixture
def fake_server(serve_fake: Callable[..., FakeServer]) -> FakeServer:
    return serve_fake()


@contextlib.contextmanager
def bare_server(home: Path) -> Iterator[Server]:
    """The real engine in a child process, with the bundled models: as `lmlite serve` on a machine without models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        server = Server(port=0, home=home)
    with server:
        yield server


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with bare_server(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def tiny(tiny_server: Server) -> Iterator[Client]:
    client = Client(tiny_server.port)
    yield client
    client.close()
