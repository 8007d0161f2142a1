"""Servers of tools on the web, for tests: on loopback, in the test's own loop, as well or as badly as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TOOLS = [
    {"name": "add", "inputSchema": {"type": "object", "properties": {"a": {"x-mcp-header": "First"}, "b": {}}}},
    {"name": "wrong", "inputSchema": {"type": "object", "properties": {"a": {"x-mcp-header": "no header\r\n"}}}},
    {"name": "größer", "inputSchema": {}},
]


@dataclass
class Heard:
    method: str
    path: str
    headers: Mapping[str, str]
    message: Any


@dataclass
class WebServer:
    """`era` is "modern", "legacy" or "old" (one stream of events). `answers` stand for a whole answer to a method of the
    protocol; b"" is none at all."""

    era: str = "modern"
    as_events: bool = False
    answers: dict[str, bytes] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    port: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    stream: asyncio.StreamWriter | None = None
    tls: ssl.SSLContext | None = None
    n_progress: int = 0  # notifications before the answer to a call

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{'sse' if self.era == 'old' else 'mcp'}?key=k"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[WebServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    def said(self, method: str) -> list[Heard]:
        return [heard for heard in self.heard if heard.message and heard.message.get("method") == method]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:-2])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        message: Any = json.loads(body) if body else None
        self.heard.append(Heard(method, path, headers, message))
        name = message.get("method", "answer") if message else method
        if name in self.answers:
            if answer := self.answers[name]:
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
                self.left.set()
        elif self.era == "old":
            await self._answer_old(reader, writer, method, message)
        elif method == "DELETE":
            writer.write(whole(204, b""))
        elif "id" not in message:
            writer.write(whole(202, b""))
        elif self.era == "legacy" and name != "initialize" and headers.get("mcp-session-id") != "s1":
            writer.write(whole(400, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no session"}}'))
        else:
            self._write(writer, self._result(message))

    def _write(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        more = {"Mcp-Session-Id": "s1"} if self.era == "legacy" else {}
        text = json.dumps(message).encode()
        if self.as_events:
            first = b': hello\r\n\r\nevent: message\r\ndata: {"jsonrpc":"2.0","method":"notifications/progress"}\r\n\r\n'
            told = b"".join(b"data: " + progress + b"\r\n\r\n" for progress in self._progress())
            text = first + told + b"data: " + text + b"\r\n\r\n"
        writer.write(whole(200, text, "text/event-stream" if self.as_events else "application/json", **more))

    async def _answer_old(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, message: Any
    ) -> None:
        if method == "GET":
            self.stream = writer
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: endpoint\ndata: /post?s=1\n\n")
            await reader.read()
        elif self.heard[-1].path != "/post?s=1":
            writer.write(whole(405, b""))
        else:
            writer.write(whole(202, b""))
            if "id" in message and self.stream is not None:
                for progress in self._progress():
                    self.stream.write(b"event: message\ndata: " + progress + b"\n\n")
                self.stream.write(b"event: message\ndata: " + json.dumps(self._result(message)).encode() + b"\n\n")

    def _progress(self) -> Iterator[bytes]:
        """Of the last request, and once of one that nobody made."""
        params = self.heard[-1].message.get("params", {})
        token = params.get("_meta", {}).get("progressToken")
        for one in (*[token] * self.n_progress, 999) if token is not None else ():
            told = {"progressToken": one, "progress": 0.5, "message": "on its way"}
            yield json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": told}).encode()

    def _result(self, message: dict[str, Any]) -> dict[str, Any]:
        params = message["params"]
        found: dict[str, Any] = {}
        match message["method"]:
            case "server/discover" if self.era == "modern":
                found = {"supportedVersions": ["2026-07-28"], "capabilities": {}}
            case "initialize" if self.era != "modern":
                found = {"protocolVersion": "2025-11-25" if self.era == "legacy" else "2024-11-05", "capabilities": {}}
            case "tools/list":
                found = {"tools": TOOLS}
            case "tools/call" if params["name"] == "add":
                total = params["arguments"]["a"] + params["arguments"]["b"]
                found = {"content": [{"type": "text", "text": str(total)}]}
            case "tools/call":
                found = {"content": [], "structuredContent": {"name": params["name"]}}
            case _:
                return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "unknown"}}
        return {"jsonrpc": "2.0", "id": message["id"], "result": found}


def whole(status: int, body: bytes, type: str = "application/json", **headers: str) -> bytes:
    """In chunks of an odd size, if there is a body."""
    lines = [f"HTTP/1.1 {status} Some Words", f"Content-Type: {type}", "Transfer-Encoding: chunked"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    chunks = [body[place : place + 7] for place in range(0, len(body), 7)]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return "\r\n".join((*lines, "", "")).encode() + chunked + b"0\r\n\r\n"
