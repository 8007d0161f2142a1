"""Servers of tools made with the official packages, as programs and on the web, through every dialect, with the real engine
and the bundled model, which calls them; `tests/clients.md` lists them. Without a registry there is nothing to try."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lmlite.mcp.connections import Connections
from lmlite.mcp.file import Entry
from lmlite.server import Server
from tests.conftest import TIMEOUT_S, Client, FakeServer
from tests.fakes import Script
from tests.test_native_tools import token
from tests.test_openai_client import UNREACHABLE, fetch, node_folder

__all__ = ["node_folder", "token"]

Serve = Callable[..., FakeServer]
SERVER = Path(__file__).parent / "mcp" / "package_server.py"
SUM = "Add 2 and 3."
STARTS_S = 90.0
"""On a machine that has much else to do."""

pytestmark = pytest.mark.timeout(600)  # packages are fetched, and programs of many modules begin


@contextlib.contextmanager
def on_the_web(command: list[str], environment: Mapping[str, str]) -> Iterator[str]:
    """The URL of a server that takes its port by `PORT`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [word.replace("PORT", str(port)) for word in command]
    environment = {**os.environ, **environment, "PORT": str(port)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + STARTS_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def check_dialects(
    tmp_path: Path, token: dict[str, str], servers: dict[str, Any], tool: str, result: str, asked: str = SUM
) -> None:
    """Each of `servers` (entries of mcp.json) has a `tool` that adds, or does what is `asked`."""
    home = tmp_path / "home"
    (home / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    with Server(port=0, home=home, auth=True, mcp=True, mcp_ephemeral=True, mcp_private=True) as server:
        client = Client(server.port)
        client.connection.timeout = STARTS_S
        for label, entry in servers.items():
            native(client, token, {"type": "plugin", "id": f"mcp/{label}", "allowed_tools": [tool]}, result, asked)
            named = {"type": "mcp", "server_label": label, "allowed_tools": [tool]}
            responses(client, token, named, result, asked)
            if "url" in entry:
                responses(client, token, {**named, "server_url": entry["url"], "require_approval": "never"}, result, asked)
            asyncio.run(asyncio.wait_for(messages(client, token, entry, tool, result, asked), STARTS_S))
        client.close()


def native(client: Client, token: dict[str, str], integration: dict[str, Any], result: str, question: str) -> None:
    asked = {"model": "lmlite-tiny", "temperature": 0, "input": question, "integrations": [integration]}
    called, message = client.post("/api/v1/chat", asked, **token).json["output"]
    assert question != SUM or called["arguments"] == {"a": 2, "b": 3}
    assert json.loads(called["output"])[0]["text"] == result
    assert message["type"] == "message"


def responses(client: Client, token: dict[str, str], tool: dict[str, Any], result: str, question: str) -> None:
    asked = {"model": "lmlite-tiny", "temperature": 0, "input": question, "tools": [tool]}
    _, called, message = client.post("/v1/responses", asked, **token).json["output"]
    assert (called["output"], called["error"], message["type"]) == (result, None, "message")


async def messages(
    client: Client, token: dict[str, str], entry: dict[str, Any], name: str, result: str, question: str
) -> None:
    """Anthropic's clients have the servers themselves: this one knows them by lmlite's own client."""
    connections = Connections()
    command = (entry["command"], *entry["args"]) if "command" in entry else ()
    env = tuple(entry.get("env", {}).items())
    async with connections.kept(Entry("client", command, env, url=entry.get("url", ""))) as kept:
        session = await connections.session(kept)
        tool = next(tool for tool in await session.tools() if tool.name == name)
        offered = {"name": tool.name, "description": tool.description, "input_schema": tool.schema}
        said: list[Any] = [{"role": "user", "content": question}]
        asked = {"model": "lmlite-tiny", "temperature": 0, "max_tokens": 100, "tools": [offered]}
        answer = await asyncio.to_thread(client.post, "/v1/messages", {**asked, "messages": said}, **token)
        use = next(block for block in answer.json["content"] if block["type"] == "tool_use")
        given = await session.call(tool, use["input"], TIMEOUT_S)
        assert given.content[0]["text"] == result
        content = [{"type": "tool_result", "tool_use_id": use["id"], "content": list(given.content)}]
        said += [{"role": "assistant", "content": answer.json["content"]}, {"role": "user", "content": content}]
        answer = await asyncio.to_thread(client.post, "/v1/messages", {**asked, "messages": said}, **token)
        assert answer.status == 200 and answer.json["content"][0]["type"] == "text"
    await connections.close()


@pytest.mark.parametrize("version", ["1.30.*", "2.*"])
def test_pythons_package_in_both_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: dict[str, str], version: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), f"mcp=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and ("No matching distribution" in done.stderr or any(word in done.stderr for word in UNREACHABLE)):
        pytest.skip("pip cannot fetch mcp here")
    assert done.returncode == 0, done.stderr
    path = {"PYTHONPATH": str(folder)}
    with on_the_web([sys.executable, str(SERVER), "PORT"], path) as url:
        program = {"command": sys.executable, "args": [str(SERVER), "stdio"], "env": path}
        check_dialects(tmp_path, token, {"program": program, "web": {"url": url}}, "add", "5")


def test_npms_server_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: dict[str, str], node_folder: Path
) -> None:
    fetch(node_folder, "@modelcontextprotocol/server-everything")
    monkeypatch.setenv("HOME", str(tmp_path))
    script = str(node_folder / "node_modules/@modelcontextprotocol/server-everything/dist/index.js")
    with on_the_web(["node", script, "streamableHttp"], {}) as url:
        program = {"command": "node", "args": [script, "stdio"]}
        servers = {"program": program, "web": {"url": url}}
        check_dialects(tmp_path, token, servers, "get-sum", "The sum of 2 and 3 is 5.")


def test_npms_server_of_files(
    serve_fake: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: dict[str, str], node_folder: Path
) -> None:
    """The bundled model knows no paths: those that are asked for are said here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    fetch(node_folder, "@modelcontextprotocol/server-filesystem")
    script = str(node_folder / "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js")
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "note.txt").write_text("the secret word is plover")
    (tmp_path / "other.txt").write_text("not yours")
    program = {"command": "node", "args": [script, str(folder)]}
    shown = f"Allowed directories:\n{folder}"
    check_dialects(tmp_path, token, {"files": program}, "list_allowed_directories", shown, "List the allowed directories.")
    calls = tuple(
        (name, (json.dumps({"path": str(path)}),))
        for name, path in (
            ("list_directory", folder),
            ("read_text_file", folder / "note.txt"),
            ("read_text_file", tmp_path / "other.txt"),
        )
    )
    client = serve_fake(Script(calls=calls, call_rounds=1), auth=True, mcp=True).client()
    asked: dict[str, Any] = {"model": "talker", "input": "what is in my files?"}
    *called, _ = client.post("/api/v1/chat", {**asked, "integrations": ["mcp/files"]}, **token).json["output"]
    texts = [json.loads(one["output"])[0]["text"] for one in called]
    assert texts[:2] == ["[FILE] note.txt", "the secret word is plover"] and "denied" in texts[2]
    tools = [{"type": "mcp", "server_label": "files"}]
    _, *items, _ = client.post("/v1/responses", {**asked, "tools": tools}, **token).json["output"]
    assert [item["output"] for item in items[:2]] == texts[:2] and "denied" in items[2]["error"]
