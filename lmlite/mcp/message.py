"""JSON-RPC 2.0 as the Model Context Protocol uses it, and who waits for which answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..values import holds_more, load_whole

MESSAGE_BYTES_MAX: Final = 4 << 20
"""Of one message: far more than any context takes."""
VALUES_MAX: Final = 60_000
"""In one message: parsed in less than the loop may be kept from others, which 4 MiB of empty lists are not by far."""
LINE_COST: Final = 256
"""Bytes that a line counts for at least, among what nobody asked for: it takes as long as so many of a longer one."""
NOISE_BYTES_MAX: Final = 256 << 20
"""Of all that a server says between two answers that somebody waits for. One that says more says it to nobody."""

METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
UNSUPPORTED_VERSION: Final = -32022
MODERN_ERRORS: Final = frozenset((-32020, -32021, UNSUPPORTED_VERSION))
"""Errors that only servers of the revision of 2026-07-28 know."""

_ID: Final = re.compile(rb'"id"\s*:\s*([0-9]{1,15})\s*[,}]')
_END: Final = 4 << 10
"""Bytes at either end of a message that is too long, in which its id is looked for."""


class Fault(Exception):
    """A server of tools did not do what it was asked for. The text is for whoever asked; it holds no header and no URL."""


class RpcError(Fault):
    """It answered with an error of its own."""

    def __init__(self, code: int, message: str, details: Any = None, status: int | None = None):
        super().__init__(f"{message[:2000]} ({code})")
        self.code, self.details, self.status = code, details, status


class Refused(Fault):
    """It answered with the HTTP status `status` and no message."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


def spell(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def request(id: int, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def notification(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})}


def parse(text: bytes) -> dict[str, Any] | None:
    """A message; None for what is none. Raises `Fault` for one that would take too long to read."""
    if holds_more(text, VALUES_MAX):
        raise Fault(f"the server's answer holds more than {VALUES_MAX} values")
    try:
        found = load_whole(text.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def result_of(message: Mapping[str, Any], status: int | None = None) -> dict[str, Any]:
    """Raises `RpcError`, and `Fault` for an answer that is none."""
    if isinstance(error := message.get("error"), dict):
        code, text = error.get("code"), error.get("message")
        raise RpcError(code if type(code) is int else 0, text if isinstance(text, str) else "", error.get("data"), status)
    if isinstance(result := message.get("result"), dict):
        return result
    raise Fault("the server's answer is neither a result nor an error")


def is_request(message: Mapping[str, Any]) -> bool:
    """Of the server's own."""
    return isinstance(message.get("method"), str) and message.get("id") is not None


def answer_to(message: Mapping[str, Any]) -> dict[str, Any]:
    """What this client answers to a server's own request: that it is there, and that it can do nothing else for it."""
    answer = {"jsonrpc": "2.0", "id": message["id"]}
    if message["method"] == "ping":
        return {**answer, "result": {}}
    return {**answer, "error": {"code": METHOD_NOT_FOUND, "message": "this client has no such method"}}


NO_REQUEST: Final = 0
"""Requests are numbered from 1."""

Progress = Callable[[], None]
"""Called when the server says that a request is under way. What it says of how far, nobody here wants to know."""


def with_token(params: Mapping[str, Any], id: int, progress: Progress | None) -> Mapping[str, Any]:
    """The params of the request `id`, whose number is the name of its progress, too."""
    return params if progress is None else {**params, "_meta": {**params.get("_meta", {}), "progressToken": id}}


def progress_of(message: Mapping[str, Any]) -> int | None:
    """The request whose progress a notification tells."""
    params = message.get("params")
    if message.get("method") != "notifications/progress" or not isinstance(params, dict):
        return None
    token = params.get("progressToken")
    return token if type(token) is int else None


class Waiting:
    """Requests on one stream of messages: each answer goes to whoever asked, and everything else to nobody."""

    def __init__(self, reply: Callable[[dict[str, Any]], None], changed: Callable[[], None]):
        self._reply, self._changed = reply, changed
        self._futures: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._progress: dict[int, Progress] = {}
        self._noise = 0
        self.fault: Fault | None = None
        """Why nothing will be answered any more."""

    def expect(self, id: int, progress: Progress | None = None) -> asyncio.Future[dict[str, Any]]:
        if self.fault is not None:
            raise self.fault
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._futures[id] = future
        if progress is not None:
            self._progress[id] = progress
        return future

    def forget(self, id: int) -> None:
        self._futures.pop(id, None)
        self._progress.pop(id, None)

    def hear(self, text: bytes) -> None:
        """One message, or whatever else it is. Raises `Fault` where there is no end of that."""
        try:
            message = parse(text) if text.lstrip()[:1] == b"{" else None
        except Fault as fault:
            message = None
            self._fail_meant(text[:_END], text[-_END:], fault)
        if message is not None:
            if isinstance(message.get("method"), str):
                if message.get("id") is not None:
                    self._reply(answer_to(message))
                elif message["method"] == "notifications/tools/list_changed":
                    self._changed()
                elif (progress := self._progress.get(progress_of(message) or NO_REQUEST)) is not None:
                    progress()
            elif self._settle(message.get("id"), message):
                self._noise = 0
                return
        self.hear_noise(max(len(text), LINE_COST))

    def _settle(self, id: object, message: dict[str, Any]) -> bool:
        """Whether somebody waited for it."""
        future = self._futures.get(id) if type(id) is int else None
        if future is None or future.done():
            return False
        future.set_result(message)
        return True

    def hear_noise(self, n_bytes: int) -> None:
        self._noise += n_bytes
        if self._noise > NOISE_BYTES_MAX:
            raise Fault(f"the server says more than {NOISE_BYTES_MAX >> 20} MiB that nobody asked for")

    def hear_too_long(self, beginning: bytes, end: bytes) -> None:
        """Of a message longer than `MESSAGE_BYTES_MAX` these ends."""
        self._fail_meant(beginning, end, Fault(f"the server's answer is longer than {MESSAGE_BYTES_MAX >> 20} MiB"))

    def _fail_meant(self, beginning: bytes, end: bytes, fault: Fault) -> None:
        """Whoever a message was for that is not read, if its ends tell that, is told why."""
        for found in _ID.finditer(beginning[:_END] + b" " + end[-_END:]):
            future = self._futures.get(int(found[1]))
            if future is not None and not future.done():
                future.set_exception(fault)
                return

    def end(self, fault: Fault) -> None:
        if self.fault is None:
            self.fault = fault
        for future in self._futures.values():
            if not future.done():
                future.set_exception(fault)
        self._futures.clear()


class Lines:
    """Bytes as they come, cut into lines. One that is too long is skipped, and told by its two ends."""

    def __init__(self, waiting: Waiting):
        self._waiting = waiting
        self._begun = bytearray()
        self._skipping = False
        self._head = self._tail = b""

    def feed(self, chunk: bytes) -> None:
        *lines, rest = chunk.split(b"\n")
        for piece in lines:
            self._add(piece)
            self._complete()
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        if self._skipping:
            self._tail = (self._tail + piece)[-_END:]
            self._waiting.hear_noise(len(piece))
            return
        self._begun += piece
        if len(self._begun) > MESSAGE_BYTES_MAX:
            self._head, self._tail = bytes(self._begun[:_END]), bytes(self._begun[-_END:])
            self._begun.clear()
            self._skipping = True

    def _complete(self) -> None:
        if self._skipping:
            self._skipping = False
            self._waiting.hear_too_long(self._head, self._tail)
            return
        line = bytes(self._begun)
        self._begun.clear()
        if line.strip():
            self._waiting.hear(line)
        else:
            self._waiting.hear_noise(LINE_COST)
