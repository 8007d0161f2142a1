"""A server of tools on the web: a POST for each message ("streamable HTTP"), answered with JSON or a stream of events; and
its predecessor, where answers come on one stream that was opened before."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from .http import Answer, Endpoint, Web
from .message import (
    MESSAGE_BYTES_MAX,
    NOISE_BYTES_MAX,
    Fault,
    Progress,
    Refused,
    Waiting,
    answer_to,
    is_request,
    notification,
    parse,
    progress_of,
    request,
    result_of,
    spell,
    with_token,
)

ACCEPT: Final = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
TEXT_MAX: Final = 300
"""Characters of an answer that is no message which are told."""
GOODBYE_S: Final = 2.0
ANSWERS_MAX: Final = 32
"""Requests of a server's own that are answered within one of ours: none of them is of use to it."""


class Streamable:
    """`headers` go with every request."""

    def __init__(self, web: Web, endpoint: Endpoint, headers: Mapping[str, str]):
        self.changed = False
        self.fault: Fault | None = None
        self._web, self._endpoint, self._headers = web, endpoint, dict(headers)
        self._ids = itertools.count(1)
        self._session: str | None = None

    async def start(self) -> None:
        pass

    async def request(
        self, method: str, params: Mapping[str, Any], headers: Mapping[str, str], progress: Progress | None = None
    ) -> dict[str, Any]:
        """Raises `Fault`; `Refused` where there was no message in the answer. Whoever waits no longer closes the connection,
        and tells a server that has sessions."""
        id = next(self._ids)
        try:
            return await self._request(id, method, with_token(params, id, progress), headers, progress)
        except asyncio.CancelledError:
            if self._session is not None and method != "initialize":
                said = self.notify("notifications/cancelled", {"requestId": id, "reason": "nobody waits for it"})
                asyncio.ensure_future(quietly(said))  # noqa: RUF006 - it has its own short time
            raise

    async def _request(
        self, id: int, method: str, params: Mapping[str, Any], headers: Mapping[str, str], progress: Progress | None
    ) -> dict[str, Any]:
        async with self._post(request(id, method, params), headers) as answer:
            session = answer.headers.get("mcp-session-id")
            if session and method == "initialize":
                if not session.isascii() or not session.isprintable():
                    raise Fault("the server's session has an id that cannot be sent")
                self._session = session
            if answer.status == 200 and answer.type == "text/event-stream":
                return result_of(await self._hear(answer, id, progress))
            text = await answer.read()
            message = parse(text)
            if message is not None and ("result" in message or isinstance(message.get("error"), dict)):
                if "result" in message and message.get("id") != id:
                    raise Fault("the server's answer is to another question")
                if answer.status == 404 and self._session is not None:
                    self._lose_session()
                return result_of(message, answer.status)
            if answer.status == 404 and self._session is not None:
                self._lose_session()
            raise Refused(answer.status, refusal(answer, text))

    def _lose_session(self) -> None:
        """The next one to use this server finds it at its beginning."""
        self._session = None
        self.fault = Fault("the server has ended the session")

    async def _hear(self, answer: Answer, id: int, progress: Progress | None) -> dict[str, Any]:
        n_answers = 0
        async for _, data in events(answer.body):
            message = parse(data)
            if message is None:
                continue
            if is_request(message):
                if self._session is not None and n_answers < ANSWERS_MAX:
                    n_answers += 1
                    await quietly(self._tell(answer_to(message)))
            elif message.get("method") == "notifications/tools/list_changed":
                self.changed = True
            elif progress is not None and progress_of(message) == id:
                progress()
            elif message.get("id") == id and "method" not in message:
                return message
        raise Fault("the server ended its answer too early")

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        await self._tell(notification(method, params))

    async def _tell(self, message: Mapping[str, Any]) -> None:
        async with self._post(message, {}) as answer:
            if answer.status >= 400:
                raise Refused(answer.status, f"the server refuses a notification ({answer.status})")

    def _post(
        self, message: Mapping[str, Any], headers: Mapping[str, str]
    ) -> contextlib.AbstractAsyncContextManager[Answer]:
        session = {} if self._session is None else {"Mcp-Session-Id": self._session}
        sent = {**ACCEPT, **self._headers, **headers, **session}
        return self._web.ask(self._endpoint, "POST", sent, spell(message))

    async def close(self) -> None:
        if self._session is not None:
            sent = {**self._headers, "Mcp-Session-Id": self._session}
            self._session = None
            await quietly(self._delete(sent))

    async def _delete(self, headers: Mapping[str, str]) -> None:
        async with self._web.ask(self._endpoint, "DELETE", headers):
            pass


class EventStream:
    """The transport of 2024-11-05: a stream is opened, and tells where messages go."""

    def __init__(self, web: Web, endpoint: Endpoint, headers: Mapping[str, str]):
        self.changed = False
        self._web, self._endpoint, self._headers = web, endpoint, dict(headers)
        self._ids = itertools.count(1)
        self._waiting = Waiting(self._reply, self._change)
        self._target: asyncio.Future[Endpoint] | None = None
        self._task: asyncio.Task[None] | None = None
        self._n_answers = 0

    @property
    def fault(self) -> Fault | None:
        return self._waiting.fault

    async def start(self) -> None:
        """Raises `Fault`."""
        self._target = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._read(self._target))
        waited: list[asyncio.Future[Any]] = [self._target, self._task]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not self._target.done():
            raise self._waiting.fault or Fault("the server ended its stream")

    async def request(
        self, method: str, params: Mapping[str, Any], headers: Mapping[str, str], progress: Progress | None = None
    ) -> dict[str, Any]:
        id = next(self._ids)
        future = self._waiting.expect(id, progress)
        try:
            await self._post(request(id, method, with_token(params, id, progress)))
            return result_of(await future)
        except asyncio.CancelledError:
            if method != "initialize":
                said = self.notify("notifications/cancelled", {"requestId": id, "reason": "nobody waits for it"})
                asyncio.ensure_future(quietly(said))  # noqa: RUF006 - it has its own short time
            raise
        finally:
            self._waiting.forget(id)

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        await self._post(notification(method, params))

    async def _post(self, message: Mapping[str, Any]) -> None:
        assert self._target is not None
        endpoint = self._target.result()
        async with self._web.ask(endpoint, "POST", {**ACCEPT, **self._headers}, spell(message)) as answer:
            if answer.status >= 400:
                raise Refused(answer.status, refusal(answer, await answer.read()))

    def _reply(self, message: dict[str, Any]) -> None:
        if self._n_answers < ANSWERS_MAX:
            self._n_answers += 1
            asyncio.ensure_future(quietly(self._post(message)))  # noqa: RUF006 - it has its own short time

    def _change(self) -> None:
        self.changed = True

    async def _read(self, target: asyncio.Future[Endpoint]) -> None:
        fault = Fault("the server ended its stream")
        try:
            headers = {**self._headers, "Accept": "text/event-stream"}
            async with self._web.ask(self._endpoint, "GET", headers) as answer:
                if answer.status != 200 or answer.type != "text/event-stream":
                    raise Refused(answer.status, refusal(answer, b""))
                async for name, data in events(answer.body):
                    if name == "endpoint" and not target.done():
                        target.set_result(self._endpoint.beside(data.decode("utf-8", "replace").strip()))
                    elif name in ("", "message"):
                        self._waiting.hear(data)
        except Fault as error:
            fault = error
        self._waiting.end(fault)

    async def close(self) -> None:
        self._waiting.end(Fault("the connection was closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


async def events(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    """Server-sent events: their names and what they say. Raises `Fault` for one that is longer than a message may be."""
    begun = b""
    lines: list[bytes] = []
    name, n, total = "", 0, 0
    async for piece in body:
        total += len(piece)
        *complete, begun = (begun + piece).split(b"\n")
        n += len(piece)
        for line in complete:
            line = line.removesuffix(b"\r")
            if not line:
                if lines:
                    yield name, b"\n".join(lines)
                name, lines, n = "", [], len(begun)
            elif line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"event:"):
                name = line[6:].strip().decode("utf-8", "replace")
        if n > MESSAGE_BYTES_MAX:
            raise Fault(f"the server's answer is longer than {MESSAGE_BYTES_MAX >> 20} MiB")
        if total > NOISE_BYTES_MAX:
            raise Fault(f"the server says more than {NOISE_BYTES_MAX >> 20} MiB")


def refusal(answer: Answer, text: bytes) -> str:
    """What is told of an answer that is no message."""
    said = " ".join(text.decode("utf-8", "replace").split())[:TEXT_MAX] if "html" not in answer.type else ""
    told = f"the server answers with status {answer.status}{f': {said}' if said else ''}"
    if answer.status in (401, 403) and (wanted := answer.headers.get("www-authenticate")):
        told += f" (it wants: {wanted[:TEXT_MAX]})"
    return told


def header_value(text: str) -> str:
    """Any text as a header can carry it: what is no plain ASCII, or could be taken for what is not, in Base64."""
    plain = text.isascii() and text.isprintable() and text.strip() == text
    if plain and not (text.startswith("=?base64?") and text.endswith("?=")):
        return text
    return f"=?base64?{base64.b64encode(text.encode(errors='replace')).decode()}?="


async def quietly(work: Any) -> None:
    """What a server need not hear: it has a moment, and no way to fail."""
    with contextlib.suppress(Fault, asyncio.TimeoutError):
        await asyncio.wait_for(work, GOODBYE_S)
