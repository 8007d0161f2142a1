"""What the recipes of this folder are tried with: conversations of five turns, whose clients send the whole history, through
one address with several nodes behind it, while nodes stop and are killed; and what must come of it."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TURNS, STOP_TURN, KILL_TURN = 5, 2, 3
AT_ONCE = 8
ANSWER_TOKENS = 24
WORDS = "time year people way day man thing woman life child world school state family student group country problem".split()
SHARED = 0.97
"""Of the later turns on nodes that stay, that find what they share."""


@dataclass
class Conversation:
    """Every second one has a system prompt."""

    name: str
    model: str = "lmlite-tiny"
    messages: list[dict[str, str]] = field(default_factory=list)
    told: int = 0
    """Tokens of the last prompt: what the next one surely shares with it."""
    node: str = ""
    errors: list[tuple[int, str]] = field(default_factory=list)
    """The turns in which a stream was lost, and the nodes that had begun it; "" where none had."""


@dataclass
class Seen:
    """Of one turn."""

    turn: int
    node: str
    before: str
    """The node of the turn before."""
    hit: bool

    @property
    def moved(self) -> bool:
        return bool(self.turn) and self.node != self.before


# ---- programs --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def running(command: list[str], **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def serve(name: str, port: int, folder: Path, *options: str) -> list[str]:
    """The command of a node."""
    command = [sys.executable, "-m", "lmlite", "serve", "--node", name, "--port", str(port), "--home", str(folder / name)]
    return [*command, "--drain-delay", "3", "--drain", "600", "--kv-cells", "65536", "--log-level", "error", *options]


@contextmanager
def node(name: str, port: int, folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    with running(serve(name, port, folder, *options), HOME=str(folder), PYTHONPATH=str(ROOT)) as process:
        until_ready(port)
        yield process


def until_ready(port: int, path: str = "/ready") -> None:
    for _ in range(1200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"nobody is ready on port {port}")


# ---- conversations ---------------------------------------------------------------------------------------------------


def begun(i: int, model: str) -> Conversation:
    conversation = Conversation(f"{i} {model}", model)
    if i % 2:
        conversation.messages.append({"role": "system", "content": words(conversation.name, 40)})
    return conversation


def words(seed: str, n: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def ask(port: int, conversation: Conversation, turn: int) -> Seen:
    """One turn; again, where its stream was lost."""
    conversation.messages.append({"role": "user", "content": words(f"{conversation.name} {turn}", 12 if turn else 30)})
    body = {
        "model": conversation.model,
        "messages": conversation.messages,
        "max_tokens": ANSWER_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for attempt in range(8):
        node = ""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            node = response.headers.get("X-Lmlite-Node", "")
            said = response.read().decode()
            connection.close()
            if response.status != 200 or "data: [DONE]" not in said:
                raise OSError(f"status {response.status}: {said[:200]}")
        except (OSError, http.client.HTTPException):
            conversation.errors.append((turn, node))
            time.sleep(0.1 * attempt)
            continue
        chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
        usage = chunks[-1]["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        seen = Seen(turn, node, conversation.node, cached >= conversation.told - 1)
        conversation.told, conversation.node = usage["prompt_tokens"], node
        conversation.messages.append({"role": "assistant", "content": text})
        return seen
    raise RuntimeError(f"turn {turn} got no answer in eight attempts")


@dataclass
class Course:
    """What became of all conversations."""

    conversations: list[Conversation]
    seen: list[Seen]

    def lost(self) -> Counter[tuple[int, str]]:
        """Streams by turn and node."""
        return Counter(error for conversation in self.conversations for error in conversation.errors)

    def figures(self, killed: str) -> dict[str, object]:
        lost, later = self.lost(), [found for found in self.seen if found.turn]
        stayed = [found for found in later if not found.moved]
        moved = [found for found in later if found.moved]
        by_node = Counter(found.node for found in self.seen if not found.turn)
        by_turn = Counter((found.turn, found.node) for found in moved)
        return {
            "conversations by node at first": dict(by_node),
            "streams lost before the kill": sum(n for (turn, _), n in lost.items() if turn < KILL_TURN),
            "streams lost by the kill": sum(n for (turn, _), n in lost.items() if turn >= KILL_TURN),
            "of them of other nodes": sum(n for (_, node), n in lost.items() if node not in ("", killed)),
            "moved, by turn and node": {f"{turn} to {node}": n for (turn, node), n in sorted(by_turn.items())},
            "of them found what they share": sum(found.hit for found in moved),
            "later turns where they were": len(stayed),
            "found what they share": round(sum(found.hit for found in stayed) / len(stayed), 4),
        }


def drive(port: int, n: int, events: Mapping[int, Callable[[list[Conversation]], None]], models: tuple[str, ...]) -> Course:
    """`n` conversations with each of `models`, all their first turns, then all their second, ...; in those turns that
    `events` has, that happens while a third of them are answered."""
    conversations = [begun(i, model) for i in range(n) for model in models]
    seen: list[Seen] = []
    lock = threading.Lock()

    def one(place: int, turn: int) -> None:
        if place == len(conversations) // 3 and turn in events:
            events[turn](conversations)
        found = ask(port, conversations[place], turn)
        with lock:
            seen.append(found)

    with ThreadPoolExecutor(AT_ONCE) as executor:
        for turn in range(TURNS):
            list(executor.map(lambda place, turn=turn: one(place, turn), range(len(conversations))))
    return Course(conversations, seen)


def report(bench: str, figures: dict[str, object]) -> bool:
    """Prints them; whether they keep what the recipes promise."""
    print(json.dumps({"bench": bench, "figures": figures}, indent=1))
    lost = figures["streams lost before the kill"] or figures["of them of other nodes"]
    by_kill, shared = figures["streams lost by the kill"], figures["found what they share"]
    assert isinstance(by_kill, int) and isinstance(shared, float)
    return not lost and by_kill <= AT_ONCE and shared >= SHARED
