"""Servers that listen behind a certificate, in a file, or on sockets that were handed to them."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli.client import Client as Commands
from lmlite.config import Config
from lmlite.errors import ConfigError
from lmlite.store.home import Home
from lmlite.wire import tls
from tests.conftest import INSTALLED, TIMEOUT_S, FakeServer

Serve = Callable[..., FakeServer]
PEM = Path(__file__).parent / "hub" / "hub.example.pem"
"""A certificate and its key, of no worth."""
KEYS = Path(__file__).parent / "wire"
HELLO: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
SECURED = {"tls_cert": PEM, "tls_key": PEM}


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(PEM))
    context.check_hostname = False
    return context


def ask(connection: http.client.HTTPConnection, path: str, body: Any = None) -> tuple[int, bytes]:
    content = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    connection.request("GET" if body is None else "POST", path, content, headers)
    response = connection.getresponse()
    return response.status, response.read()


class FileConnection(http.client.HTTPConnection):
    def __init__(self, path: Path):
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


# ---- TLS -------------------------------------------------------------------------------------------------------------


def test_answers_and_streams_come_through_tls(serve_fake: Serve) -> None:
    server = serve_fake(**SECURED)
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=TIMEOUT_S, context=trusting())
    for _ in range(2):  # on one connection
        assert ask(connection, "/v1/chat/completions", HELLO)[0] == 200
        status, body = ask(connection, "/v1/chat/completions", {**HELLO, "stream": True})
        assert status == 200 and body.endswith(b"data: [DONE]\n\n")
    connection.close()


def test_plain_http_is_told_at_once_what_the_port_speaks(serve_fake: Serve) -> None:
    server = serve_fake(**SECURED)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    status, body = ask(connection, "/v1/chat/completions", {**HELLO, "user": "x" * 100_000})
    assert status == 400 and "https" in json.loads(body)["error"]
    connection.close()


def test_versions_before_1_2_are_refused(serve_fake: Serve) -> None:
    server = serve_fake(**SECURED)
    old = trusting()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=TIMEOUT_S, context=old)
    with pytest.raises(OSError):
        connection.connect()
    connection.close()
    assert server.service.url.startswith("https://")


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (KEYS / "another.key.pem", "does not belong"),
        (KEYS / "locked.key.pem", "encrypted"),
        (Path(__file__), "PEM form"),
        (KEYS / "none.pem", "cannot be read"),
    ],
)
def test_a_key_that_does_not_do_is_named_with_the_reason(key: Path, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        tls.context(PEM, key)
    assert str(key) in str(refused.value)


def test_a_certificate_that_is_read_again_and_no_good_leaves_the_one_before(tmp_path: Path, serve_fake: Serve) -> None:
    pair = tmp_path / "pair.pem"
    pair.write_bytes(PEM.read_bytes())
    server = serve_fake(tls_cert=pair, tls_key=pair)
    pair.write_text("nothing")
    with pytest.raises(ConfigError):
        server.service.renew_certificate()
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=TIMEOUT_S, context=trusting())
    assert ask(connection, "/health")[0] == 200
    connection.close()


def test_a_certificate_comes_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="go together"):
        Config.of(home=tmp_path, tls_cert=PEM)


# ---- a file ----------------------------------------------------------------------------------------------------------


def test_a_server_listens_in_a_file_for_its_owner_only(serve_fake: Serve, tmp_path: Path) -> None:
    path = tmp_path / "run" / "lmlite.sock"
    server = serve_fake(unix_socket=path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    connection = FileConnection(path)
    assert ask(connection, "/v1/chat/completions", HELLO)[0] == 200
    assert server.service.url == f"unix:{path}"
    connection.close()
    server.close()
    assert not path.exists()


def test_whoever_may_use_the_file_may_call_the_server_what_they_like_and_web_pages_may_still_not(
    serve_fake: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "lmlite.sock"
    serve_fake(unix_socket=path)
    connection = FileConnection(path)
    for headers, expected in (
        ({"Host": "lmlite"}, 200),
        ({"Host": "ai.example:8080"}, 200),
        ({"Host": "ai.example", "Origin": "https://evil.example"}, 403),  # through a proxy, then
        ({"Host": "lmlite", "X-Forwarded-Host": "not a name", "X-Forwarded-For": "203.0.113.7"}, 200),
    ):
        connection.request("GET", "/v1/models", headers=headers)
        response = connection.getresponse()
        response.read()
        assert response.status == expected, headers
    connection.close()


def test_the_log_names_the_client_that_a_trusted_proxy_names_and_no_other(
    serve_fake: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lmlite")
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Host": "ai.example"}
    trusting = serve_fake(trusted_proxy=["127.0.0.0/8"], allow_host=["ai.example"], home=tmp_path / "trusting")
    assert trusting.client().get("/v1/models", **forwarded).status == 200
    assert trusting.client().get("/v1/models", **{**forwarded, "X-Forwarded-Host": "evil.example"}).status == 403
    trusting.settle()
    assert caplog.text.count("GET /v1/models from 203.0.113.7: ") == 2
    caplog.clear()
    plain = serve_fake(home=tmp_path / "plain")
    assert plain.client().get("/v1/models", **forwarded).status == 200
    plain.settle()
    assert "GET /v1/models: 200" in caplog.text and "203.0.113.7" not in caplog.text


def test_a_proxy_is_named_by_an_address_or_a_network(tmp_path: Path) -> None:
    given = ["10.0.0.7/8", "::1", "unix"]
    assert Config.of(home=tmp_path, trusted_proxy=given).trusted_proxy == ("10.0.0.0/8", "::1/128", "unix")
    with pytest.raises(ConfigError, match="IP addresses or networks"):
        Config.of(home=tmp_path, trusted_proxy=["proxy.example"])


def test_the_file_of_a_dead_server_is_replaced_and_nothing_else_is(serve_fake: Serve, tmp_path: Path) -> None:
    path = tmp_path / "lmlite.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    serve_fake(unix_socket=path)
    with pytest.raises(ConfigError, match="another program listens"):
        serve_fake(unix_socket=path, home=tmp_path / "second")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        serve_fake(unix_socket=file, home=tmp_path / "third")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("options", [{"unix_socket": True}, SECURED], ids=["file", "tls"])
def test_commands_find_such_a_server_through_its_lock(
    serve_fake: Serve, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {"unix_socket": tmp_path / "a.sock"} if "unix_socket" in options else options
    server = serve_fake(**options)
    home = Home(server.config.home)
    home.prepare()
    with home.take("0", server.config.chosen(), daemon=False) as lock:
        lock.publish(server.service.port, server.service.url)
        client = Commands.find({"LMLITE_HOME": str(server.config.home)})
        assert client.get("/health") == {"status": "ok"}


# ---- sockets of others -----------------------------------------------------------------------------------------------

HANDED_OVER = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
os.dup2(listening.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid() if sys.argv[1] == "mine" else 1), LISTEN_FDS="1")
from lmlite.wire.listening import inherited
found = inherited(os.environ)
print([sock.getsockname() == listening.getsockname() for sock in found], [os.get_inheritable(3) for _ in found])
"""


@pytest.mark.parametrize(("whose", "expected"), [("mine", "[True] [False]"), ("others", "[] []")])
def test_sockets_are_taken_that_were_handed_to_this_process(whose: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANDED_OVER, whose],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=INSTALLED,
        env={**os.environ, "PYTHONPATH": str(INSTALLED)},
        close_fds=True,
    )
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr
