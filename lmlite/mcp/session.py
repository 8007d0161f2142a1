"""One conversation with one server of tools, in whichever revision of the protocol it speaks.

The newest is tried first; what a server answers to that, or that it does not, says what it is (MCP 2026-07-28, "versioning").
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from ..records import dataclass
from .message import MODERN_ERRORS, UNSUPPORTED_VERSION, Fault, Progress, Refused, RpcError
from .web import header_value

log = logging.getLogger(__name__)

T = TypeVar("T")

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
LEGACY_KNOWN: Final = frozenset((LEGACY, "2025-06-18", "2025-03-26", "2024-11-05"))
CLIENT: Final = {"name": "lmlite", "version": "1"}
META: Final = "io.modelcontextprotocol/"

PROBE_S: Final = 3.0
"""A program of an earlier revision may say nothing to what it does not know."""
START_S: Final = 60.0
"""For all that comes before the first list of tools: some programs are downloaded first."""
LIST_S: Final = 30.0
LIST_AGE_S: Final = 60.0
"""A list of tools is asked for anew after so long, even if nobody said that it has changed."""
LIST_AGE_MAX_S: Final = 3600.0

PAGES_MAX: Final = 64
TOOLS_MAX: Final = 512
NAME_MAX: Final = 128
DESCRIPTION_MAX: Final = 16 << 10
"""Characters; a longer one is cut."""
SCHEMA_NODES_MAX: Final = 20_000
NAMES_SHOWN: Final = 1000
"""Characters of a list's names in the log."""
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")


class Transport(Protocol):
    changed: bool

    @property
    def fault(self) -> Fault | None: ...

    async def start(self) -> None: ...

    async def request(
        self, method: str, params: Mapping[str, Any], headers: Mapping[str, str], progress: Progress | None = None
    ) -> dict[str, Any]: ...

    async def notify(self, method: str, params: Mapping[str, Any]) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True, frozen=True)
class Tool:
    """As its server describes it. `mirrored` are the headers that repeat arguments: (argument, header)."""

    name: str
    description: str
    schema: Mapping[str, Any]
    mirrored: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True, frozen=True)
class Given:
    """What a call gave: blocks of content as the server wrote them."""

    content: tuple[Mapping[str, Any], ...]
    failed: bool


class Session:
    """`open` first, `close` at the end. `label` is for the log. All raise `Fault`."""

    def __init__(self, label: str, transport: Transport, headers_of_version: bool):
        self.label, self._transport = label, transport
        self._on_web = headers_of_version
        self.version = ""
        self._tools: tuple[Tool, ...] | None = None
        self._stale_at = 0.0
        self._listing = asyncio.Lock()

    @property
    def fault(self) -> Fault | None:
        return self._transport.fault

    async def open(self) -> None:
        await within(START_S, self._open())

    async def _open(self) -> None:
        await self._transport.start()
        try:
            found = await within(PROBE_S if not self._on_web else START_S, self._ask("server/discover", {}, MODERN))
        except RpcError as error:
            if error.code != UNSUPPORTED_VERSION or not LEGACY_KNOWN & set(versions_of(error.details)):
                if error.code in MODERN_ERRORS:
                    raise
        except Refused as refused:
            if refused.status not in (400, 404, 405, 406, 415, 422):
                raise
        except TooLate:
            if self._on_web:
                raise
        else:
            if self._is_modern(found):
                return
        try:
            await self._initialize()
        except RpcError as error:
            if error.code != UNSUPPORTED_VERSION:
                raise
            if not self._is_modern(await self._ask("server/discover", {}, MODERN)):  # it was only late to say so
                raise

    def _is_modern(self, discovered: Mapping[str, Any]) -> bool:
        if MODERN not in versions_of({"supported": discovered.get("supportedVersions")}):
            return False
        self.version = MODERN
        return True

    async def _initialize(self) -> None:
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": CLIENT}
        found = await self._transport.request("initialize", params, {})
        version = found.get("protocolVersion")
        if version not in LEGACY_KNOWN:
            raise Fault(f"the server speaks a revision of the protocol that is unknown here: {str(version)[:40]}")
        self.version = str(version)
        await self._transport.notify("notifications/initialized", {})

    async def _ask(
        self,
        method: str,
        params: Mapping[str, Any],
        version: str,
        more: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        headers: dict[str, str] = {"MCP-Protocol-Version": version} if self._on_web else {}
        if version == MODERN:
            meta = {
                f"{META}protocolVersion": MODERN,
                f"{META}clientCapabilities": {},
                f"{META}clientInfo": CLIENT,
            }
            params = {**params, "_meta": meta}
            if self._on_web:
                headers |= {"Mcp-Method": method, **(more or {})}
        found = await self._transport.request(method, params, headers, progress)
        if found.get("resultType", "complete") != "complete":
            raise Fault("the server asks for more input, which nobody here can give")
        return found

    async def tools(self) -> tuple[Tool, ...]:
        """Those that it has now, or had a moment ago."""
        async with self._listing:
            if self._tools is None or self._transport.changed or time.monotonic() >= self._stale_at:
                self._transport.changed = False
                before, self._tools = self._tools, await within(LIST_S, self._list())
                if before is not None and before != self._tools:
                    names = ", ".join(ascii(tool.name) for tool in self._tools)
                    log.warning("mcp server %s: its tools are others now: %s", self.label, names[:NAMES_SHOWN])
            return self._tools

    async def _list(self) -> tuple[Tool, ...]:
        found: dict[str, Tool] = {}
        params: dict[str, Any] = {}
        age_s = LIST_AGE_S
        for _ in range(PAGES_MAX):
            page = await self._ask("tools/list", params, self.version)
            for tool in self._read_tools(page.get("tools")):
                if tool.name in found:
                    log.warning("mcp server %s: it has two tools %s; the first counts", self.label, ascii(tool.name))
                elif len(found) < TOOLS_MAX:
                    found[tool.name] = tool
            ttl_ms = page.get("ttlMs")
            if isinstance(ttl_ms, int | float) and not isinstance(ttl_ms, bool) and ttl_ms >= 0:
                age_s = min(ttl_ms / 1000, LIST_AGE_MAX_S)
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or not cursor or params.get("cursor") == cursor:
                break
            params = {"cursor": cursor}
        else:
            log.warning("mcp server %s: its list of tools has more than %d pages", self.label, PAGES_MAX)
        self._stale_at = time.monotonic() + age_s
        return tuple(found.values())

    def _read_tools(self, given: object) -> Iterator[Tool]:
        for value in given if isinstance(given, list) else ():
            try:
                yield read_tool(value)
            except ValueError as error:
                log.warning("mcp server %s: a tool is left out: %s", self.label, error)

    async def call(
        self, tool: Tool, arguments: Mapping[str, Any], timeout_s: float, longest_s: float | None = None
    ) -> Given:
        """A tool that tells of its progress has `timeout_s` again each time, up to `longest_s` in all."""
        more = {"Mcp-Name": header_value(tool.name)}
        for argument, header in tool.mirrored:
            value = arguments.get(argument)
            if isinstance(value, bool):
                more[header] = "true" if value else "false"
            elif isinstance(value, str | int):
                more[header] = header_value(str(value))
        params = {"name": tool.name, "arguments": arguments}
        patience = Patience(timeout_s, timeout_s if longest_s is None else longest_s)
        return read_given(await patience.wait(self._ask("tools/call", params, self.version, more, patience.renew)))

    async def close(self) -> None:
        await self._transport.close()


class TooLate(Fault):
    """No answer in time."""


class Patience:
    """Waits for `idle_s`, anew from each `renew`, and for no more than `longest_s`."""

    def __init__(self, idle_s: float, longest_s: float):
        self._clock = asyncio.get_running_loop().time
        self._idle_s, self._longest_s = idle_s, longest_s
        self._end = self._clock() + longest_s
        self._until = min(self._clock() + idle_s, self._end)
        self._renewed = False

    def renew(self) -> None:
        self._renewed = True
        self._until = min(self._clock() + self._idle_s, self._end)

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises `TooLate`."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done() and (left_s := self._until - self._clock()) > 0:
                await asyncio.wait([task], timeout=left_s)
            if task.done():
                return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        if self._renewed and self._until >= self._end:
            raise TooLate(f"the server has not come to an end within {self._longest_s:g} seconds")
        raise TooLate(f"the server does not answer within {min(self._idle_s, self._longest_s):g} seconds")


async def within(timeout_s: float, work: Any) -> Any:
    try:
        return await asyncio.wait_for(work, timeout_s)
    except asyncio.TimeoutError:
        raise TooLate(f"the server does not answer within {timeout_s:g} seconds") from None


def versions_of(details: object) -> Sequence[str]:
    supported = details.get("supported") if isinstance(details, dict) else None
    return [version for version in supported if isinstance(version, str)] if isinstance(supported, list) else []


def read_tool(value: object) -> Tool:
    """Raises ValueError for one that no model can be told of."""
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        raise ValueError("it has no name")
    if not 0 < len(name) <= NAME_MAX or not name.isprintable():
        raise ValueError(f"a name must have 1 to {NAME_MAX} letters that can be shown, and {ascii(name)[:80]} does not")
    schema = value.get("inputSchema")
    if not isinstance(schema, dict) or not schema:
        schema = {"type": "object", "properties": {}}
    if count_nodes(schema) > SCHEMA_NODES_MAX:
        raise ValueError(f"the schema of {ascii(name)} is too large")
    description = value.get("description")
    described = description[:DESCRIPTION_MAX] if isinstance(description, str) else ""
    return Tool(name, described, schema, tuple(mirrored(name, schema)))


def mirrored(name: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    properties = schema.get("properties")
    seen = set()
    for argument, property in properties.items() if isinstance(properties, dict) else ():
        if isinstance(property, dict) and "x-mcp-header" in property:
            header = property["x-mcp-header"]
            if not isinstance(header, str) or not _TOKEN.fullmatch(header) or header.lower() in seen:
                raise ValueError(f"{ascii(name)} names a header that cannot be")
            seen.add(header.lower())
            yield argument, f"Mcp-Param-{header}"


def count_nodes(value: object) -> int:
    n, pending = 0, [value]
    while pending and n <= SCHEMA_NODES_MAX:
        value = pending.pop()
        n += 1
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return n


def read_given(result: Mapping[str, Any]) -> Given:
    content = result.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    if not blocks and result.get("structuredContent") is not None:
        blocks = [{"type": "text", "text": spell_json(result["structuredContent"])}]
    return Given(tuple(blocks), result.get("isError") is True)


def spell_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
