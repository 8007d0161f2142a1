"""Any conforming event loop serves and loads: asyncio's own, and uvloop, whose transports share no class with it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lmlite
from tests.conftest import INSTALLED, Client, FakeServer

uvloop = pytest.importorskip("uvloop", reason="uvloop has no wheel for this platform")


def test_a_server_in_uvloop_answers_and_stops(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lmlite.Server(port=0, home=tmp_path, models_dir=[tmp_path]) as server:
            client = Client(server.port)
            chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
            whole = await asyncio.to_thread(client.post, "/v1/chat/completions", chat)
            assert whole.status == 200 and whole.json["usage"]["completion_tokens"] > 0
            stream = await asyncio.to_thread(client.post, "/v1/chat/completions", chat | {"stream": True})
            assert stream.events[-1][1] == "[DONE]"
            client.close()

    uvloop.run(ask())


LOADING = """
import uvloop
uvloop.install()
import lmlite
from pathlib import Path
with lmlite.load(Path(lmlite.__file__).parent / "models" / "lmlite-tiny.gguf", isolation="ISOLATION") as model:
    print(len(model.complete("Hello", max_tokens=3)) > 0)
"""


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_model_is_loaded_where_uvloop_is_installed(isolation: str) -> None:
    program = LOADING.replace("ISOLATION", isolation)
    command = [sys.executable, "-W", "ignore", "-c", program]
    environ = {"PYTHONPATH": str(INSTALLED)}  # and there: what is run with -c takes its modules from where it is first
    done = subprocess.run(command, env=environ, cwd=INSTALLED, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_small_writes_are_sent_at_once(serve_fake: Callable[..., FakeServer], family: int) -> None:
    """With Nagle's algorithm a stream's first token on a connection that was used before waits for the client's delayed
    acknowledgement."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    server = serve_fake(host=host)
    with socket.create_connection((host, server.port), timeout=30) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"

        async def delays() -> list[int]:
            sockets = [c._transport.get_extra_info("socket") for c in server.service.app._connections]
            return [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in sockets]

        assert [bool(on) for on in server.thread.call(delays())] == [True]
