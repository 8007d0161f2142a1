"""A fake engine: the far end of an engine's socket in plain Python, for tests of all that stands in front of one.

`FakeEngine.serve` works alone (in a thread through `fake_thread`, in a process through `fake_process`); `Peer` does
nothing by itself: a test reads the commands and writes the frames by hand, in its own loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lmlite.core.engine.frames import HEADER, MAX_PAYLOAD, Kind, pack
from lmlite.core.engine.payloads import Report
from lmlite.core.engine.worker import Process, Thread

MEDIA_TOKENS = 16
"""What each picture and sound takes of a prompt."""
BROKEN = b"broken"
"""What begins so is no picture."""

WORDS = ("The ", "quick ", "brown ", "fox ", "jumps ", "over ", "the ", "lazy ", "dog. ")


def frame(kind: Kind, request_id: int, value: Any) -> bytes:
    return pack(kind, request_id, value if isinstance(value, bytes) else json.dumps(value).encode())


def finished(reason: str = "eosFound", n_tokens: int = 1, **more: Any) -> dict[str, Any]:
    times = {"queue_ms": 0.5, "first_token_ms": 2.0, "generation_ms": 10.0}
    counts = {"prompt_tokens": 3, "cached_tokens": 1, "generated_tokens": n_tokens, "reasoning_tokens": 0}
    return {"reason": reason, "stop_string": None, **counts, **times, **more}


def error(code: str, **details: Any) -> dict[str, Any]:
    return {"code": code, "message": f"the fake says {code}", "details": details}


def loaded(command: dict[str, Any], embedding: bool = False) -> dict[str, Any]:
    return {
        "type": "embedding" if embedding else "llm",
        "arch": "fake",
        "context_length": command.get("context_length") or 2048,
        "train_context_length": 2048,
        "parallel": command.get("parallel", 4),
        "kv_cells": command.get("kv_cells") or 8192,
        "eval_batch_size": command.get("eval_batch_size", 512),
        "threads": command.get("threads") or command.get("cores") or 1,
        "flash_attention": bool(command.get("flash_attention")),
        "gpu_layers": max(0, command.get("gpu_layers", 0)),
        "offload_kv_cache": False,
        "n_experts": 0,
        "n_params": 1000,
        "n_embd": 4,
        "vocab_size": 256,
        "size_bytes": 4000,
        "load_ms": 1.5,
        "has_chat_template": not embedding,
        "tool_use": not embedding,
        "vision": "projector" in command,
        "audio": "projector" in command and "hears" in command["projector"],
        "warnings": [],
        "runtime": {"name": "llama.cpp-linux-x86_64-cpu", "version": "fake"},
    }


def estimated(command: dict[str, Any], needed: int) -> dict[str, Any]:
    memory = {"weights": needed, "kv_cache": 0, "compute": 0, "free": 0}
    return {
        "devices": [{"name": "CPU", "gpu": False, "shares_host_memory": True, **memory}],
        "process": 0,
        "file_pages": 0,
        "context_length": command.get("context_length") or 2048,
        "kv_cells": command.get("kv_cells") or 8192,
        "threads": command.get("threads") or command.get("cores") or 1,
        "estimate_ms": 1.5,
    }


# ---- an engine that works alone --------------------------------------------------------------------------------------


@dataclass
class Script:
    """What the fake does. All fields but `hold` can be given as JSON to the process."""

    words: tuple[str, ...] = WORDS  # said over and over until max_tokens; once, if that is unlimited
    reasoning: tuple[str, ...] = ()  # said before the words, in a chat
    calls: tuple[tuple[str, tuple[str, ...]], ...] = ()  # made instead of the words, where tools are offered: name, arguments
    call_rounds: int | None = None  # so often since the user's last word; then the words are said
    burst: bool = False  # all tokens of a request in one write; else one write per token
    embedding: bool = False
    needed: int = 4000  # bytes that a load takes, by its estimate
    estimate_error: dict[str, Any] | None = None
    load_error: dict[str, Any] | None = None
    generate_error: dict[str, Any] | None = None
    die_at_load: bool = False
    die_after: int | None = None  # tokens of one request, then the process aborts (a thread closes its socket)
    silent_after: int | None = None  # tokens of one request, then nothing more comes, nor heartbeats
    garbage_after: int | None = None  # tokens of one request, then bytes that are no frame
    hold: Callable[[Kind], None] | None = None  # called with each command before it is answered; may block


@dataclass
class FakeEngine:
    """One engine with a byte tokenizer and scripted words. `commands` is everything that it was told."""

    script: Script = field(default_factory=Script)
    die: Callable[[], None] | None = None
    commands: list[tuple[Kind, int, Any]] = field(default_factory=list)
    media: list[bytes] = field(default_factory=list)  # all that it was sent, in order

    def serve(self, fd: int) -> int:
        """Until the peer closes; returns 0 then. Every running request advances by one token in turn."""
        with socket.socket(fileno=fd) as sock:
            running: dict[int, Iterator[bytes]] = {}
            self._sent: dict[int, list[bytes]] = {}  # media by the requests that follow
            received = bytearray()
            try:
                while True:
                    if not running or select.select([sock], [], [], 0)[0]:
                        chunk = sock.recv(1 << 20)
                        if not chunk:
                            return 0
                        received += chunk
                        for kind, request_id, payload in take_frames(received):
                            self._obey(sock, running, kind, request_id, payload)
                    for request_id, tokens in list(running.items()):
                        said = next(tokens, None)
                        if said is None:
                            del running[request_id]
                        else:
                            sock.sendall(said)
            except (BrokenPipeError, ConnectionResetError):
                return 0
            except _Died:
                return -1

    def _obey(
        self, sock: socket.socket, running: dict[int, Iterator[bytes]], kind: Kind, request_id: int, payload: bytes
    ) -> None:
        if kind == Kind.MEDIA:
            self._sent.setdefault(request_id, []).append(payload)
            self.media.append(payload)
            return
        command = json.loads(payload) if payload else {}
        self.commands.append((kind, request_id, command))
        if self.script.hold is not None:
            self.script.hold(kind)
        media = self._sent.pop(request_id, [])
        broken = next((index for index, file in enumerate(media) if file.startswith(BROKEN)), None)
        indices = [part["index"] for part in media_parts(command)]
        assert indices == list(range(len(media))), "media and the messages that speak of them do not fit"
        if broken is not None:
            sock.sendall(frame(Kind.ERROR, request_id, error("invalid_request", param="media", index=broken)))
            return
        if kind == Kind.CANCEL:
            if running.pop(request_id, None):
                sock.sendall(frame(Kind.FINISHED, request_id, finished("userStopped")))
        elif kind == Kind.GENERATE and self.script.generate_error is None:
            tokens = self._generate(request_id, command)
            running[request_id] = iter([b"".join(tokens)]) if self.script.burst else tokens
        else:
            sock.sendall(self._answer(kind, request_id, command))

    def _answer(self, kind: Kind, request_id: int, command: dict[str, Any]) -> bytes:
        script = self.script
        if kind == Kind.LOAD:
            if script.die_at_load:
                self._die()
            if script.load_error is not None:
                return frame(Kind.ERROR, request_id, script.load_error)
            progress = frame(Kind.LOAD_PROGRESS, request_id, {"progress": 0.5})
            return progress + frame(Kind.LOADED, request_id, loaded(command, script.embedding))
        if kind == Kind.ESTIMATE:
            if script.die_at_load:
                self._die()
            if script.estimate_error is not None:
                return frame(Kind.ERROR, request_id, script.estimate_error)
            return frame(Kind.ESTIMATED, request_id, estimated(command, script.needed))
        if kind == Kind.GENERATE:
            return frame(Kind.ERROR, request_id, script.generate_error)
        if kind == Kind.EMBED:
            counts = [len(text) for text in command["inputs"]]
            vectors = [vector_of(text) for text in command["inputs"]]
            if command.get("as_json"):
                vectors = [json.dumps(struct.unpack("<4f", vector)).encode() for vector in vectors]
            rows = b"".join(frame(Kind.EMBEDDING, request_id, vector) for vector in vectors)
            return rows + frame(Kind.FINISHED, request_id, {"prompt_tokens": counts})
        if kind == Kind.RERANK:
            counts = [len(command["query"]) + len(text) for text in command["documents"]]
            scores = [struct.pack("<f", score_of(command["query"], text)) for text in command["documents"]]
            rows = b"".join(frame(Kind.EMBEDDING, request_id, score) for score in scores)
            return rows + frame(Kind.FINISHED, request_id, {"prompt_tokens": counts})
        if kind == Kind.TOKENIZE:
            ids = list(command["text"].encode())
            return frame(Kind.TOKENS, request_id, {"tokens": ids, "pieces": [[byte] for byte in ids]})
        if kind == Kind.DETOKENIZE:
            return frame(Kind.RESULT, request_id, bytes(command["tokens"]))
        if kind == Kind.ATTACH_DRAFT:
            return frame(Kind.RESULT, request_id, b"")
        if kind == Kind.RENDER:
            prompt = rendered(command).encode()
            counted = b"%d\n" % count(command) if command.get("count") else b""
            return frame(Kind.RESULT, request_id, counted + prompt)
        counters = [field.name for field in fields(Report)]
        return frame(Kind.REPORT, request_id, dict.fromkeys(counters, 0))

    def _generate(self, request_id: int, command: dict[str, Any]) -> Iterator[bytes]:
        script = self.script
        prompt = command.get("text") or command.get("tokens") or rendered(command)
        limit = command.get("max_tokens", -1)
        is_chat, calling = "messages" in command, command.get("tools") and command["tool_choice"] != "none"
        if script.call_rounds is not None and calling:
            calling = rounds_of(command["messages"]) < script.call_rounds
        texts = [pack(Kind.REASONING, request_id, word.encode()) for word in script.reasoning if is_chat]
        n_reasoning = len(texts)
        if calling and script.calls:
            texts += tool_calls(request_id, script.calls)
        else:
            texts += [pack(Kind.TEXT, request_id, word.encode()) for word in script.words]
        n_tokens = len(texts) if limit < 0 else limit
        n_prompt = count(command) if is_chat else len(prompt)
        progress = {"total": n_prompt, "cached": 0}
        if command.get("progress"):
            yield frame(Kind.PROMPT_PROGRESS, request_id, {"done": 0, "ms": 0.0, **progress})
        yield frame(Kind.PROMPT_PROGRESS, request_id, {"done": n_prompt, "ms": 1.5, **progress})
        for place in range(n_tokens):
            if place == script.die_after:
                self._die()
            if place == script.silent_after:
                return
            if place == script.garbage_after:
                yield b"\xff" * 64
            yield texts[place % len(texts)]
        reason = "maxPredictedTokensReached" if limit >= 0 else "toolCalls" if calling and script.calls else "eosFound"
        counts = {"prompt_tokens": n_prompt, "cached_tokens": 0, "reasoning_tokens": min(n_reasoning, n_tokens)}
        if "draft" in command:
            counts["draft"] = {"total": 6, "accepted": 3, "rejected": 2, "ignored": 1}
        yield frame(Kind.FINISHED, request_id, finished(reason, n_tokens, **counts))

    def _die(self) -> None:
        if self.die is not None:
            self.die()
        raise _Died


class _Died(Exception):
    pass


def rounds_of(messages: Iterable[dict[str, Any]]) -> int:
    """Of calls since the user's last word."""
    n = 0
    for message in messages:
        n = 0 if message["role"] == "user" else n + bool(message.get("tool_calls"))
    return n


def tool_calls(request_id: int, calls: Iterable[tuple[str, Iterable[str]]]) -> list[bytes]:
    """Frames of whole calls: the name alone, then the pieces of the arguments."""
    frames = []
    for index, (name, pieces) in enumerate(calls):
        frames.append(frame(Kind.TOOL_CALL, request_id, {"index": index, "name": name, "arguments": ""}))
        frames += [frame(Kind.TOOL_CALL, request_id, {"index": index, "arguments": piece}) for piece in pieces]
    return frames


def rendered(chat: dict[str, Any]) -> str:
    return "".join(f"<{message['role']}>{said(message['content'])}" for message in chat["messages"])


def said(content: Any) -> Any:
    """Media as marks; what has none as it came."""
    if isinstance(content, list) and any(part["type"] == "media" for part in content):
        return "".join(part.get("text", f"<{part.get('kind')}>") for part in content)
    return content


def media_parts(command: dict[str, Any]) -> list[dict[str, Any]]:
    contents = [message["content"] for message in command.get("messages", ()) if isinstance(message["content"], list)]
    return [part for content in contents for part in content if part["type"] == "media"]


def count(chat: dict[str, Any]) -> int:
    """Tokens: a byte each, and those of media."""
    marks = media_parts(chat)
    n_marks = sum(len(f"<{part['kind']}>") for part in marks)
    return len(rendered(chat).encode()) - n_marks + MEDIA_TOKENS * len(marks)


def vector_of(text: Any) -> bytes:
    """Four floats that differ from text to text and have the length 1."""
    raw = [float(1 + sum(text if isinstance(text, list) else text.encode()) % (7 + place)) for place in range(4)]
    norm = sum(value * value for value in raw) ** 0.5
    return struct.pack("<4f", *(value / norm for value in raw))


def score_of(query: str, document: str) -> float:
    """How many of the query's words the document has."""
    return float(sum(word in document.split() for word in query.split()))


def take_frames(received: bytearray) -> Iterator[tuple[Kind, int, bytes]]:
    """The whole frames at the start of `received`, which loses them."""
    while len(received) >= HEADER.size:
        length, kind, request_id = HEADER.unpack_from(received)
        assert length <= MAX_PAYLOAD, "a command that no engine would take"
        if len(received) < HEADER.size + length:
            return
        payload = bytes(received[HEADER.size : HEADER.size + length])
        del received[: HEADER.size + length]
        yield Kind(kind), request_id, payload


def fake_thread(engine: FakeEngine | None = None) -> Thread:
    """A placement with the fake in a thread."""
    return Thread((engine or FakeEngine()).serve)


def fake_process(log: Callable[[str], None] | None = None, **script: Any) -> Process:
    """A placement with the fake in a child process; `script` are the fields of `Script`."""
    return Process((sys.executable, "-c", START, json.dumps(script)), log)


START = f"import sys; sys.path.append({str(Path(__file__).parents[1])!r}); from tests.fakes import main; main()"


def main() -> None:
    script = json.loads(sys.argv[1])
    if "words" in script:
        script["words"] = tuple(script["words"])
    sys.exit(FakeEngine(Script(**script), lambda: os.kill(os.getpid(), signal.SIGABRT)).serve(int(sys.argv[2])))


# ---- an engine that does nothing by itself ---------------------------------------------------------------------------


class Peer:
    """The far end in the test's own loop, and the placement that leads to it. `killed` and `fate_word` tell its end."""

    pid = None

    def __init__(self) -> None:
        self.killed = False
        self.fate_word: str | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._ended = asyncio.Event()

    # the test's side

    async def next(self) -> tuple[Kind, int, Any]:
        """The next command: its kind, its request id, its JSON; of media the bytes."""
        length, kind, request_id = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        payload = await self._reader.readexactly(length)
        if kind == Kind.MEDIA:
            return Kind.MEDIA, request_id, payload
        return Kind(kind), request_id, json.loads(payload) if payload else None

    def send(self, *frames: bytes) -> None:
        """All of `frames` in one write."""
        self._writer.write(b"".join(frames))

    def end(self, fate: str) -> None:
        """The engine dies."""
        self.fate_word = fate
        self._ended.set()
        self._writer.transport.abort()

    async def closed(self) -> None:
        """Returns when the near end is closed."""
        while await self._reader.read(1 << 16):
            pass

    # the placement

    async def start(self) -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=far, limit=MAX_PAYLOAD)
        return near

    def fate(self) -> str | None:
        return self.fate_word

    def kill(self) -> None:
        self.killed = True
        self._ended.set()

    async def wait(self, timeout_s: float) -> bool:
        return self._ended.is_set()

    async def close(self) -> None:
        self._writer.close()


class FakeClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[FakeTimer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object], /) -> FakeTimer:
        timer = FakeTimer(self.now + delay, callback)
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.due <= end and not timer.cancelled]:
            timer = min(due, key=lambda timer: timer.due)
            self._timers.remove(timer)
            self.now = max(self.now, timer.due)
            timer.callback()
        self.now = end

    @property
    def armed(self) -> int:
        return sum(not timer.cancelled for timer in self._timers)


@dataclass(eq=False)
class FakeTimer:
    due: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Gate:
    """Holds a fake thread at one kind of command until the test opens it."""

    def __init__(self, kind: Kind) -> None:
        self._kind, self._open = kind, threading.Event()

    def __call__(self, kind: Kind) -> None:
        if kind == self._kind:
            self._open.wait(30)

    def open(self) -> None:
        self._open.set()
