"""The tools of servers in a turn: which there are, and rounds of the model until it calls none of them any more.

Between two rounds no lease is held and no place taken. What a tool does wrong is told to the model, which goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from ..api.read.media import decode
from ..api.transcript import Piece, Transcript, result_message
from ..beside import Turns, beside
from ..errors import InvalidRequest, ToolServerFailed
from ..events import (
    ApprovalAsked,
    CallResumed,
    DraftCounts,
    Event,
    Finished,
    RoundOver,
    Stats,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolRefused,
    ToolResult,
    ToolsListed,
)
from ..mcp.connections import Connections
from ..mcp.file import Entry, ServerFile
from ..mcp.http import NotPublic
from ..mcp.message import INVALID_PARAMS, Fault, RpcError
from ..mcp.session import Given, Session, Tool
from ..messages import MediaPart, Message, Sense, ToolCallPart
from ..records import dataclass
from ..request import UNLIMITED, Chat
from ..tool_servers import ServerTool, ToolServer
from ..turn import Approval, Turn, behind_calls, call_of
from ..values import load_whole

TOOLS_MAX: Final = 512
"""Of all servers of a turn: as many as a request may bring along."""
TEXT_MAX: Final = 256 << 10
"""Characters of a result that the model is told: more than fits any context that would leave room for an answer."""
MEDIA_MAX: Final = 8
"""Pictures and sounds of one result: a page of search hits has as many, and each takes hundreds of tokens."""
REFUSED_MAX: Final = 3
"""Calls in a row that could not be made; a model that has got nowhere by then answers without."""
IDS: Final = 10**9
MANY: Final = 1000
"""Messages, or calls, that take longer to look through than a thread does to do it."""
AHEAD: Final = 64
"""Calls that are begun before the first of them is told; as many as `Limits.parallel` are made at once."""
TOGETHER: Final = 32
"""Calls that are told in one go, if they have come together: the reply takes a millisecond or two to spell them."""
TOOLS_SMALL: Final = 32
"""That are told to an engine within a millisecond."""

R = TypeVar("R", ToolResult | ToolRefused, ToolResult | ToolRefused | ApprovalAsked)
Take = Callable[[int, list[Event]], bool]
Play = Callable[[Turn, Take], Awaitable[None]]
"""Runs one round of a turn, to its `Finished`."""


@dataclass(slots=True, frozen=True)
class Limits:
    """`rounds` and the times as in `config.Config`."""

    rounds: int = 25
    parallel: int = 4
    call_s: float = 60.0
    turn_s: float = 600.0


# ---- the servers of a turn -------------------------------------------------------------------------------------------


class Toolbox(Protocol):
    """The tools of one turn."""

    @property
    def listed(self) -> Sequence[ToolsListed]: ...

    async def call(self, tool: ServerTool, arguments: Mapping[str, Any], timeout_s: float, longest_s: float) -> Given:
        """`timeout_s` is for each sign of life, `longest_s` for all. Raises `Fault`."""
        ...


Opening = Callable[[], Awaitable[Session]]


@dataclass(slots=True)
class Opened:
    """`sessions` give each server's session anew where it was lost, `tools` how servers know what models call."""

    listed: list[ToolsListed] = field(default_factory=list)
    sessions: dict[ToolServer, Opening] = field(default_factory=dict)
    tools: dict[str, Tool] = field(default_factory=dict)

    async def call(self, tool: ServerTool, arguments: Mapping[str, Any], timeout_s: float, longest_s: float) -> Given:
        try:
            session = await asyncio.wait_for(self.sessions[tool.server](), timeout_s)
        except asyncio.TimeoutError:
            raise Fault(f"the server does not answer within {timeout_s:g} seconds") from None
        return await session.call(self.tools[tool.called], arguments, timeout_s, longest_s)


class ToolServers:
    """All servers that turns may use."""

    def __init__(self, file: ServerFile, connections: Connections):
        self._file, self._connections = file, connections

    @contextlib.asynccontextmanager
    async def open(self, servers: Sequence[ToolServer], taken: Collection[str] = ()) -> AsyncIterator[Opened]:
        """`taken` are the names of the request's own tools. Raises `ToolServerFailed` and `InvalidRequest`."""
        opened = Opened()
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                try:
                    opening = await self._opening(server, stack)
                    tools = await (await opening()).tools()
                except Fault as fault:
                    raise failure(server, fault) from None
                opened.sessions[server] = opening
                offer(opened, server, tools, taken)
            yield opened

    async def _opening(self, server: ToolServer, stack: contextlib.AsyncExitStack) -> Opening:
        if server.kind == "plugin":
            entry = await asyncio.to_thread(self._file.find, server.label)
            if entry is None:
                raise Fault(f"there is no server of that name in {self._file.paths[0].name}")
            kept = await stack.enter_async_context(self._connections.kept(entry))
            return lambda: self._connections.session(kept)
        stranger = Stranger(self._connections, Entry(server.label, url=server.url, headers=server.headers))
        stack.push_async_callback(stranger.close)
        return stranger.session

    async def close(self) -> None:
        await self._connections.close()


class Stranger:
    """A server that one request brought along: it has a session of its own."""

    def __init__(self, connections: Connections, entry: Entry):
        self._connections, self._entry = connections, entry
        self._session: Session | None = None
        self._lock = asyncio.Lock()

    async def session(self) -> Session:
        async with self._lock:
            if self._session is None or self._session.fault is not None:
                await self.close()
                self._session = await self._connections.open_stranger(self._entry)
            return self._session

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


def failure(server: ToolServer, fault: Fault) -> ToolServerFailed:
    if server.kind == "plugin":
        return ToolServerFailed(f"The tools of '{server.label[:80]}' cannot be used: {fault}", False, server.param)
    url = server.url.partition("?")[0][:200]
    message = f"Unable to connect to remote MCP server '{server.label[:80]}' at url '{url}'. {fault}"
    if isinstance(fault, NotPublic):
        message += " Only public addresses are connected to for requests (--mcp-private)."
        return ToolServerFailed(message, True, server.param, 403)
    return ToolServerFailed(message, True, server.param)


def offer(opened: Opened, server: ToolServer, tools: Sequence[Tool], taken: Collection[str] = ()) -> None:
    """A name that another tool has already gets its server's before it, and where that is taken too, a number behind it."""
    offered = []
    for tool in tools:
        if server.allowed is not None and tool.name not in server.allowed:
            continue
        called = next(name for name in names_for(server, tool) if name not in opened.tools and name not in taken)
        opened.tools[called] = tool
        offered.append(ServerTool(called, tool.name, server, tool.description, tool.schema))
    if len(opened.tools) > TOOLS_MAX:
        raise InvalidRequest(f"the servers have more than {TOOLS_MAX} tools; allow fewer of them", server.param)
    opened.listed.append(ToolsListed(server, tuple(offered)))


def names_for(server: ToolServer, tool: Tool) -> Iterator[str]:
    yield tool.name
    yield f"{server.label}__{tool.name}"
    yield from (f"{server.label}__{tool.name}_{n}" for n in itertools.count(2))


# ---- rounds ----------------------------------------------------------------------------------------------------------


class Loop:
    """Rounds until the model calls no tool of a server, or one that the client has to run; see `run.Rounds.run`. `expect`
    tells the senses of the model that will answer: calls that were approved are made before it is at hand."""

    def __init__(
        self,
        turn: Turn,
        box: Toolbox,
        limits: Limits,
        play: Play,
        take: Take,
        drained: Callable[[], Awaitable[None]],
        expect: Callable[[Turn], Awaitable[frozenset[Sense]]],
    ):
        (work,) = turn.runs
        prompt = work.prompt
        assert isinstance(prompt, Chat)
        self._turn, self._box, self._limits, self._play = turn, box, limits, play
        self._take, self._drained, self._expect = take, drained, expect
        self._servers = {tool.called: tool for listed in box.listed for tool in listed.tools}
        self._tools = {(tool.server.label, tool.name): tool for tool in reversed(self._servers.values())}
        self._work = replace(work, large=work.large or len(self._servers) > TOOLS_SMALL)
        self._clients = {tool["function"]["name"] for tool in prompt.tools}
        self._prompt = replace(prompt, tools=(*prompt.tools, *(tool.spell() for tool in self._servers.values())))
        self._stats: Stats | None = None
        self._n_calls = 0  # that the model has made
        self._n_made = 0  # of them, those that a server was given
        self._n_refused = 0  # in a row
        self._senses = frozenset[Sense]()  # each round tells them anew
        self._first_id = random.randrange(IDS)
        self._began = asyncio.get_running_loop().time()

    async def run(self) -> None:
        if self._turn.approvals:
            self._senses = await self._expect(self._turn)
        messages, approvals = self._prompt.messages, self._turn.approvals
        pending = await beside(lambda: waiting(messages, approvals), len(messages) + len(approvals) > MANY)
        await self._tell(list(self._box.listed))
        if self._turn.approvals:
            await self._resume(pending)
        n_rounds = 0
        while True:
            n_rounds += 1
            is_last = n_rounds > self._limits.rounds or not self._may_call()
            heard = await self._round(is_last)
            finished = heard.finished
            assert finished is not None
            self._stats = finished.stats if self._stats is None else add(self._stats, finished.stats)
            calls = [piece for piece in heard.pieces if piece.kind == "tool_call"]
            mine = [piece for piece in calls if piece.name not in self._clients]
            if finished.reason != "toolCalls" or not mine or is_last:
                break
            await self._tell([RoundOver()])
            results = await self._results(mine)
            given = [result for result in results if not isinstance(result, ApprovalAsked)]
            if len(given) < len(calls):  # the rest is the client's, to be run or to be let through
                break
            await self._go_on(heard, calls, given)
            if self._left() == 0:
                finished = replace(finished, reason="maxPredictedTokensReached")
                break
        await self._tell([replace(finished, stats=self._stats)])

    def _may_call(self) -> bool:
        if self._n_refused >= REFUSED_MAX or self._left_s() <= 0:
            return False
        return self._turn.max_calls is None or self._n_made < self._turn.max_calls

    def _left_s(self) -> float:
        return self._limits.turn_s - (asyncio.get_running_loop().time() - self._began)

    def _left(self) -> int | None:
        """Tokens that the answer may still have; None: any number."""
        if self._work.max_tokens == UNLIMITED:
            return None
        return max(0, self._work.max_tokens - (self._stats.generated_tokens if self._stats else 0))

    async def _tell(self, events: list[Event]) -> None:
        if events and not self._take(0, events):
            await self._drained()

    async def _round(self, is_last: bool) -> Transcript:
        heard = Transcript()
        offset = self._n_calls

        def hear(index: int, events: list[Event]) -> bool:
            told: list[Event] = []
            for event in events:
                if offset and isinstance(event, ToolCallStart | ToolCallArguments | ToolCallEnd):
                    event = replace(event, index=event.index + offset)
                heard.hear(event)
                if not isinstance(event, Finished):
                    told.append(event)
            return self._take(index, told) if told else True

        prompt = replace(self._prompt, tool_choice="none") if is_last else self._prompt
        left = self._left()
        work = replace(self._work, prompt=prompt, max_tokens=self._work.max_tokens if left is None else left)
        await self._play(replace(self._turn, runs=(work,)), hear)
        self._n_calls += sum(piece.kind == "tool_call" for piece in heard.pieces)
        if heard.leased is not None:
            self._senses = heard.leased.instance.senses
        return heard

    async def _go_on(
        self, heard: Transcript, calls: Sequence[Piece], results: Sequence[ToolResult | ToolRefused]
    ) -> None:
        """The next round sees what the model said and what it was given. A call that had to be has been made."""
        for piece, result in zip(calls, results, strict=True):
            piece.result = result
        messages = self._prompt.messages
        await self._prompt_with(lambda: (*messages, *heard.messages(str)), len(messages) + len(calls))

    async def _prompt_with(self, messages: Callable[[], tuple[Message, ...]], n: int) -> None:
        """`n` tells how many there are, about."""
        prompt = self._prompt
        choice = "auto" if prompt.tool_choice == "required" else prompt.tool_choice
        put_together = partial(replace, prompt, tool_choice=choice, continues=None)
        self._prompt = await beside(lambda: put_together(messages=messages()), n > MANY)

    # ---- calls

    async def _resume(self, pending: Sequence[tuple[ToolCallPart, Approval]]) -> None:
        """The calls of earlier turns that somebody has decided about: their results join the conversation."""
        gate, turns = asyncio.Semaphore(self._limits.parallel), Turns()
        decided = await beside(lambda: self._decided(pending), len(pending) > MANY)
        given = [(one, approval) for one, approval in decided if approval.given]
        if given and not self._servers:
            one, approval = given[0]
            raise InvalidRequest(f"the server of the call of '{one.name[:80]}' is not among the request's", approval.param)
        for begin in range(0, len(given), TOGETHER):
            some = given[begin : begin + TOGETHER]
            await self._tell([CallResumed(one.index, one.id, one.name, one.arguments, one.tool) for one, _ in some])
            await turns.pause()
        results = await self._in_order(
            self._result(one, gate) if approval.given else denied(one, approval.reason) for one, approval in decided
        )
        messages = self._prompt.messages

        def joined() -> tuple[Message, ...]:
            answers = [result_message(one.name, result) for (one, _), result in zip(decided, results, strict=True)]
            return tuple(behind_calls([*messages, *answers]))

        await self._prompt_with(joined, len(messages) + len(decided))

    def _decided(self, pending: Sequence[tuple[ToolCallPart, Approval]]) -> list[tuple[Asked, Approval]]:
        return [
            (Asked(-1 - place, call.id, call.name, call.arguments, self._find(call.name, approval.label)), approval)
            for place, (call, approval) in enumerate(pending)
        ]

    def _find(self, name: str, label: str) -> ServerTool | None:
        """By the name that the model knows, or its server's own."""
        return self._tools.get((label, name)) or self._servers.get(name)

    async def _results(self, calls: Sequence[Piece]) -> list[ToolResult | ToolRefused | ApprovalAsked]:
        gate = asyncio.Semaphore(self._limits.parallel)

        def begin(piece: Piece) -> Awaitable[ToolResult | ToolRefused | ApprovalAsked] | ToolRefused | ApprovalAsked:
            id, tool = f"{(self._first_id + piece.number) % IDS:09d}", self._servers.get(piece.name)
            asked = Asked(piece.number, id, piece.name, piece.text, tool)
            return self._ask_approval(asked) if tool and tool.needs_approval else self._result(asked, gate)

        return await self._in_order(map(begin, calls))

    def _ask_approval(self, asked: Asked) -> ToolRefused | ApprovalAsked:
        assert asked.tool is not None
        _, problem = read_arguments(asked)
        if problem:
            self._n_refused += 1
            return ToolRefused(asked.index, asked.id, problem, asked.tool)
        return ApprovalAsked(asked.index, asked.tool)

    async def _in_order(self, works: Iterable[Awaitable[R] | R]) -> list[R]:
        """What comes of the calls, each told as soon as those before it are."""
        rest, turns = iter(works), Turns()
        begun: deque[asyncio.Future[R] | R] = deque()
        results: list[R] = []
        try:
            while True:
                for work in itertools.islice(rest, AHEAD - len(begun)):
                    begun.append(asyncio.ensure_future(work) if isinstance(work, Awaitable) else work)
                if not begun:
                    return results
                told: list[Event] = []
                while begun and len(told) < TOGETHER:
                    first = begun[0]
                    if isinstance(first, asyncio.Future):
                        if told and not first.done():
                            break
                        first = await first
                    begun.popleft()
                    told.append(first)
                    results.append(first)
                await self._tell(told)
                await turns.pause()
        finally:
            tasks = [one for one in begun if isinstance(one, asyncio.Future)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _result(self, asked: Asked, gate: asyncio.Semaphore) -> ToolResult | ToolRefused:
        index, id, tool = asked.index, asked.id, asked.tool
        arguments, problem = read_arguments(asked)
        if tool is None or problem:
            self._n_refused += 1
            return ToolRefused(index, id, problem, tool)
        if not self._may_call():
            return told(index, id, tool, "no more tools can be called for this request")
        self._n_made += 1
        async with gate:
            left_s = max(0.0, self._left_s())
            try:
                given = await self._box.call(tool, arguments, min(self._limits.call_s, left_s), left_s)
            except RpcError as error:
                if error.code == INVALID_PARAMS:
                    self._n_refused += 1
                    return ToolRefused(index, id, str(error), tool)
                return told(index, id, tool, str(error))
            except Fault as fault:
                return told(index, id, tool, str(fault))
        self._n_refused = 0
        media: tuple[MediaPart, ...] = ()
        if any(shows(block, self._senses) for block in given.content):
            media = await asyncio.to_thread(media_of, given, self._senses)
        text = text_of(given, len(media))
        return ToolResult(index, id, tool, spell_blocks(given.content), text, given.failed, media=media)


@dataclass(slots=True, frozen=True)
class Asked:
    """A call as the model wrote it. `tool` is None where there is none of that `name`."""

    index: int
    id: str
    name: str
    arguments: str
    tool: ServerTool | None


def waiting(messages: Sequence[Message], approvals: Sequence[Approval]) -> list[tuple[ToolCallPart, Approval]]:
    """The calls that have no result and were decided about. One that the model has gone on from is not made any more, whoever
    says so again, but stays denied. Raises `InvalidRequest` for a decision about nothing."""
    answered = {call_of(message) for message in messages if message.role == "tool"}
    decided: dict[str, Approval] = {}
    for approval in approvals:
        decided.setdefault(approval.id, approval)
    speakers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    pending: list[tuple[ToolCallPart, Approval]] = []
    for place in speakers:
        for part in messages[place].parts:
            if not isinstance(part, ToolCallPart) or part.id not in decided:
                continue
            approval = decided.pop(part.id)
            if part.id in answered:
                continue
            if place == speakers[-1] or not approval.given:
                pending.append((part, approval))
    for approval in decided.values():
        raise InvalidRequest(f"no call waits for a decision about '{approval.id[:80]}'", approval.param)
    return pending


def denied(asked: Asked, reason: str) -> ToolRefused:
    return ToolRefused(asked.index, asked.id, f"The user did not approve this call{f': {reason}' if reason else '.'}", None)


def told(index: int, id: str, tool: ServerTool, error: str) -> ToolResult:
    """Of a server that gave nothing."""
    text = f"Error: {error}"
    return ToolResult(index, id, tool, spell_blocks([{"type": "text", "text": text}]), text, True, error)


def read_arguments(asked: Asked) -> tuple[Mapping[str, Any], str]:
    """The arguments, and what is wrong with the call, in LM Studio's words where it has some."""
    tool = asked.tool
    if tool is None:
        return {}, f"Cannot find tool with name {asked.name[:128]}."
    try:
        arguments = load_whole(asked.arguments) if asked.arguments else {}
    except (ValueError, RecursionError):
        return {}, "The arguments are not JSON."
    if not isinstance(arguments, dict):
        return {}, "The arguments are not a JSON object."
    required = tool.schema.get("required")
    names = required if isinstance(required, list) else []
    missing = [name for name in names if isinstance(name, str) and name not in arguments]
    return arguments, f"The arguments lack {', '.join(missing)[:200]}." if missing else ""


def spell_blocks(blocks: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(list(blocks), ensure_ascii=False, separators=(",", ":"))


def media_of(given: Given, senses: frozenset[Sense]) -> tuple[MediaPart, ...]:
    """The pictures and sounds that the model can be shown. What is no Base64 is none."""
    shown: list[MediaPart] = []
    for block in given.content:
        kind, data = block.get("type"), block.get("data")
        if len(shown) < MEDIA_MAX and isinstance(data, str) and shows(block, senses):
            with contextlib.suppress(InvalidRequest):
                shown.append(MediaPart("image" if kind == "image" else "audio", decode(data, "data")))
    return tuple(shown)


def shows(block: Mapping[str, Any], senses: frozenset[Sense]) -> bool:
    return (block.get("type") == "image" and "vision" in senses) or (block.get("type") == "audio" and "audio" in senses)


def text_of(given: Given, n_shown: int = 0) -> str:
    """What the model is told: the texts, and of all else that it is there; of media only where none of them is shown."""
    told = [block for block in given.content if not (n_shown and block.get("type") in ("image", "audio"))]
    text = "\n".join(map(block_text, told)) or ("" if n_shown else "(nothing)")
    if len(text) > TEXT_MAX:
        text = f"{text[:TEXT_MAX]}\n[{len(text) - TEXT_MAX} more characters were cut off]"
    return f"Error: {text}" if given.failed else text


def block_text(block: Mapping[str, Any]) -> str:
    match block:
        case {"type": "text", "text": str() as text}:
            return text
        case {"type": "resource", "resource": {"text": str() as text}}:
            return text
        case {"type": "resource_link", "uri": str() as uri}:
            return f"[{block.get('name') or 'resource'}: {uri}]"
        case {"type": str() as kind, "mimeType": str() as mime}:
            return f"[{kind[:40]} of type {mime[:80]}, which cannot be shown here]"
    return "[something that cannot be shown here]"


def add(a: Stats, b: Stats) -> Stats:
    """Of two rounds: the wait for the first token is the first one's."""
    draft = a.draft if b.draft is None else b.draft
    if a.draft is not None and b.draft is not None:
        draft = DraftCounts(
            a.draft.total + b.draft.total,
            a.draft.accepted + b.draft.accepted,
            a.draft.rejected + b.draft.rejected,
            a.draft.ignored + b.draft.ignored,
        )
    return Stats(
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        generated_tokens=a.generated_tokens + b.generated_tokens,
        queue_ms=a.queue_ms + b.queue_ms,
        first_token_ms=a.first_token_ms,
        generation_ms=a.generation_ms + b.generation_ms,
        reasoning_tokens=a.reasoning_tokens + b.reasoning_tokens,
        draft=draft,
    )
