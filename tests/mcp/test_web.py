"""Servers of tools on the web: in all three revisions of the way there, and however badly."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from lmlite.mcp.connections import Connections
from lmlite.mcp.file import Entry
from lmlite.mcp.http import Endpoint, NotPublic
from lmlite.mcp.message import Fault
from lmlite.mcp.session import Session
from lmlite.mcp.web import header_value
from tests.conftest import TIMEOUT_S
from tests.mcp.web_server import WebServer, whole

CERTIFICATE = Path(__file__).parents[1] / "hub" / "hub.example.pem"
"""Of hub.example, signed by itself, with its key."""
SECRET = (("Authorization", "Bearer secret"),)


async def opened(server: WebServer, **entry: Any) -> Session:
    return await Connections(allow_private=True).open_stranger(Entry("demo", url=server.url, **entry))


async def add(session: Session, timeout_s: float = TIMEOUT_S) -> str:
    tool = next(tool for tool in await session.tools() if tool.name == "add")
    (block,) = (await session.call(tool, {"a": 2, "b": 3}, timeout_s)).content
    return str(block["text"])


@pytest.mark.parametrize("as_events", [False, True])
@pytest.mark.parametrize(("era", "version"), [("modern", "2026-07-28"), ("legacy", "2025-11-25"), ("old", "2024-11-05")])
def test_each_revision_is_spoken(era: str, version: str, as_events: bool) -> None:
    async def scenario() -> None:
        async with WebServer(era, as_events).serving() as server:
            session = await opened(server, headers=SECRET)
            assert session.version == version
            assert await add(session) == "5"
            await session.close()
            assert {heard.headers["authorization"] for heard in server.heard} == {"Bearer secret"}
            assert ("DELETE" in [heard.method for heard in server.heard]) == (era == "legacy")
            (called,) = server.said("tools/call")
            assert called.path == ("/post?s=1" if era == "old" else "/mcp?key=k")
            if era == "legacy":
                assert called.headers["mcp-session-id"] == "s1"
                assert called.headers["mcp-protocol-version"] == version

    asyncio.run(scenario())


@pytest.mark.parametrize("era", ["modern", "legacy", "old"])
def test_progress_is_heard_of_the_request_that_it_is_about(era: str) -> None:
    async def scenario() -> None:
        async with WebServer(era, as_events=True, n_progress=3).serving() as server:
            session = await opened(server)
            n_heard = 0

            def hear() -> None:
                nonlocal n_heard
                n_heard += 1

            version = {"MCP-Protocol-Version": session.version} if era != "old" else {}
            asked = {"name": "add", "arguments": {"a": 2, "b": 3}}
            found = await session._transport.request("tools/call", asked, version, hear)
            assert found["content"][0]["text"] == "5" and n_heard == 3
            await session._transport.request("tools/list", {}, version)
            assert "_meta" not in server.said("tools/list")[-1].message["params"]
            await session.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("era", ["legacy", "old"])
def test_a_server_with_sessions_is_told_that_nobody_waits_any_more(era: str) -> None:
    async def scenario() -> None:
        async with WebServer(era, answers={"tools/call": b"" if era == "legacy" else whole(202, b"")}).serving() as server:
            session = await opened(server)
            calling = asyncio.ensure_future(add(session))
            while not server.said("tools/call"):
                await asyncio.sleep(0.01)
            calling.cancel()
            await asyncio.wait([calling])
            while not server.said("notifications/cancelled"):
                await asyncio.sleep(0.01)
            (cancelled,) = server.said("notifications/cancelled")
            assert cancelled.message["params"]["requestId"] == server.said("tools/call")[0].message["id"]
            await session.close()

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))


def test_headers_repeat_what_the_newest_revision_wants_repeated() -> None:
    async def scenario() -> None:
        async with WebServer().serving() as server:
            session = await opened(server)
            tools = {tool.name: tool for tool in await session.tools()}
            assert list(tools) == ["add", "größer"]  # one names a header that cannot be
            await add(session)
            given = await session.call(tools["größer"], {}, TIMEOUT_S)
            assert given.content == ({"type": "text", "text": '{"name": "größer"}'},)
            first, second = server.said("tools/call")
            told = {name: value for name, value in first.headers.items() if name.startswith("mcp-")}
            assert told == {
                "mcp-protocol-version": "2026-07-28",
                "mcp-method": "tools/call",
                "mcp-name": "add",
                "mcp-param-first": "2",
            }
            assert second.headers["mcp-name"] == "=?base64?Z3LDtsOfZXI=?="
            meta = first.message["params"]["_meta"]
            assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"

    asyncio.run(scenario())


def test_values_that_no_header_can_carry_are_written_in_base64() -> None:
    assert header_value("plain text") == "plain text"
    for text in ("é", " a", "a\n", "=?base64?eA==?="):
        assert header_value(text).startswith("=?base64?") and header_value(text).isascii()


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
MANY_VALUES = b'{"jsonrpc":"2.0","id":77,"result":{"content":[' + b"[]," * 70_000 + b"[]]}}"
ANSWERS = {
    "redirect": (REDIRECT, "redirects"),
    "no http": (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
    "endless head": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "does not speak HTTP"),
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "too early"),
    "cut stream": (whole(200, b"data: {}\n\n", "text/event-stream"), "too early"),
    "no json": (whole(200, b"<html>", "text/html"), "status 200"),
    "wrong id": (whole(200, b'{"jsonrpc":"2.0","id":77,"result":{}}'), "another question"),
    "not a result": (whole(200, b'{"jsonrpc":"2.0","id":77,"result":5}'), "another question"),
    "too long": (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (5 << 20), "longer than 4 MiB"),
    "too long an event": (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"x" * (5 << 20), "4 MiB"),
    "too many values": (whole(200, MANY_VALUES), "more than 60000 values"),
    "too many in an event": (whole(200, b"data: " + MANY_VALUES + b"\n\n", "text/event-stream"), "more than 60000 values"),
    "compressed": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n", "compressed"),
    "no chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "does not speak HTTP"),
    "error": (whole(500, b"it hurts"), "status 500: it hurts"),
    "wants a token": (whole(401, b"", WWW_Authenticate='Bearer resource="m"'), 'it wants: Bearer resource="m"'),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none_is_a_fault_of_the_call(name: str) -> None:
    answer, told = ANSWERS[name]

    async def scenario() -> None:
        async with WebServer().serving() as server:
            session = await opened(server)
            assert await add(session) == "5"
            server.answers["tools/call"] = answer
            with pytest.raises(Fault, match=told):
                await add(session)
            del server.answers["tools/call"]
            assert await add(session) == "5"

    asyncio.run(scenario())


def test_whoever_waits_no_longer_closes_the_connection() -> None:
    async def scenario() -> None:
        async with WebServer(answers={"tools/call": b""}).serving() as server:
            session = await opened(server)
            with pytest.raises(Fault, match="does not answer within 0.2 seconds"):
                await add(session, 0.2)
            await asyncio.wait_for(server.left.wait(), TIMEOUT_S)

    asyncio.run(scenario())


def test_a_session_that_was_ended_is_begun_anew() -> None:
    async def scenario() -> None:
        async with WebServer("legacy").serving() as server:
            connections = Connections()
            async with connections.kept(Entry("demo", url=server.url)) as kept:
                session = await connections.session(kept)
                await session.tools()
                server.answers["tools/call"] = whole(404, b"")
                with pytest.raises(Fault):
                    await add(session)
                del server.answers["tools/call"]
                assert await add(await connections.session(kept)) == "5"
            await connections.close()

    asyncio.run(scenario())


# ---- where URLs may lead ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:127.0.0.1"], ["93.184.216.34", "192.168.0.1"]],
)
def test_c9_a_url_of_a_request_must_not_lead_here(addresses: list[str]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return addresses

    async def scenario() -> None:
        with pytest.raises(NotPublic):
            await Connections(resolve=resolve).open_stranger(Entry("demo", url="http://rebound.example/mcp"))

    asyncio.run(scenario())


def test_a_host_is_looked_up_once_and_that_address_is_connected_to() -> None:
    n = 0

    async def resolve(host: str, port: int) -> list[str]:
        nonlocal n
        n += 1
        assert host == "tools.example"
        return ["127.0.0.1"]

    async def scenario() -> None:
        async with WebServer().serving() as server:
            connections = Connections(allow_private=True, resolve=resolve)
            url = f"http://tools.example:{server.port}/mcp"
            session = await connections.open_stranger(Entry("demo", url=url))
            assert await add(session) == "5"
            assert n == 1 and {heard.headers["host"] for heard in server.heard} == {f"tools.example:{server.port}"}

    asyncio.run(scenario())


def test_tls_asks_for_the_name_that_was_given_and_trusts_nobody_else() -> None:
    asked: list[str] = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    tls.sni_callback = lambda _, name, __: asked.append(name)

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def scenario() -> None:
        async with WebServer(tls=tls).serving() as server:
            connections = Connections(allow_private=True, resolve=resolve)
            known = Entry("demo", url=f"https://hub.example:{server.port}/mcp")
            with pytest.raises(Fault, match="no certificate that can be trusted"):
                await connections.open_stranger(known)
            connections._web._tls = ssl.create_default_context(cafile=str(CERTIFICATE))
            assert await add(await connections.open_stranger(known)) == "5"
            assert set(asked) == {"hub.example"}
            with pytest.raises(Fault, match="no certificate that can be trusted"):
                await connections.open_stranger(Entry("demo", url=f"https://other.example:{server.port}/mcp"))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "http:///x", "http://a:99999/", "http://u:p@a/", "http://a/ b", "http://a/\r\nx: y", "http://[::1"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(Fault):
        asyncio.run(Endpoint.find(url, public_only=False))


def test_an_endpoint_of_another_server_is_not_gone_to() -> None:
    async def scenario() -> None:
        endpoint = await Endpoint.find("http://127.0.0.1:5/sse", public_only=False)
        assert endpoint.beside("/post?x=1").target == "/post?x=1"
        for other in ("http://127.0.0.1:6/", "https://127.0.0.1:5/", "//other.example/"):
            with pytest.raises(Fault, match="not its own"):
                endpoint.beside(other)

    asyncio.run(scenario())
