"""Shows that haproxy.cfg does what haproxy.md says: three nodes on this machine, conversations of five turns whose clients
send the whole history, one node stopped in the third turn and one killed in the fourth.

    python deploy/try_haproxy.py [--haproxy PROGRAM] [--conversations 200]

No stream is lost by the stop; the kill costs streams of its node alone; a later turn on a node that stays finds in the cache
what it shares with the turn before; a conversation that moves misses once. Prints one JSON object; exit code 1 if not so.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODES = ("a", "b", "c")
STOPPED, KILLED = "a", "b"
TURNS, STOP_TURN, KILL_TURN = 5, 2, 3
AT_ONCE = 8
ANSWER_TOKENS = 24
WORDS = "time year people way day man thing woman life child world school state family student group country problem".split()
SHARED = 0.97
"""Of the later turns on nodes that stay, that find what they share."""


@dataclass
class Conversation:
    messages: list[dict[str, str]]
    told: int = 0
    """Tokens of the last prompt: what the next one surely shares with it."""
    node: str = ""
    errors: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Seen:
    """Of one turn."""

    turn: int
    node: str
    moved: bool
    hit: bool


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


def until_ready(port: int, path: str = "/ready") -> None:
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"nobody is ready on port {port}")


def ask(port: int, conversation: Conversation, turn: int) -> Seen:
    """One turn; again, where its stream was lost."""
    drawn = random.Random(f"{conversation.messages[0]}{turn}")
    conversation.messages.append({"role": "user", "content": " ".join(drawn.choices(WORDS, k=12))})
    body = {
        "model": "lmlite-tiny",
        "messages": conversation.messages,
        "max_tokens": ANSWER_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for _ in range(5):
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
            continue
        chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
        usage = chunks[-1]["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        seen = Seen(turn, node, bool(turn) and node != conversation.node, cached >= conversation.told - 1)
        conversation.told, conversation.node = usage["prompt_tokens"], node
        conversation.messages.append({"role": "assistant", "content": text})
        return seen
    raise RuntimeError(f"turn {turn} got no answer in five attempts")


def config(port: int, ports: dict[str, int], path: Path) -> Path:
    """The recipe, with the addresses of this run."""
    text = (ROOT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8")
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    for name, found in ports.items():
        text, n = re.subn(rf"server {name} \S+", f"server {name} 127.0.0.1:{found}", text)
        assert n == 1
    path.write_text(text)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--haproxy", default="haproxy")
    parser.add_argument("--conversations", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        port, ports = free_port(), {name: free_port() for name in NODES}
        nodes = {}
        for name, found in ports.items():
            command = [sys.executable, "-m", "lmlite", "serve", "--port", str(found), "--home", f"{folder}/{name}"]
            command += ["--node", name, "--drain-delay", "3", "--drain", "600", "--kv-cells", "65536", "--log-level", "error"]
            nodes[name] = stack.enter_context(running(command, HOME=folder, PYTHONPATH=str(ROOT)))
        for found in ports.values():
            until_ready(found)
        stack.enter_context(running([arguments.haproxy, "-f", str(config(port, ports, Path(folder) / "haproxy.cfg"))]))
        until_ready(port, "/health")
        conversations = []
        for i in range(arguments.conversations):
            words = random.Random(i).choices(WORDS, k=40)
            conversations.append(Conversation([{"role": "system", "content": " ".join(words)}]))
        seen: list[Seen] = []
        lock = threading.Lock()

        def one(place: int, turn: int) -> None:
            if place == arguments.conversations // 3:
                if turn == STOP_TURN:
                    nodes[STOPPED].send_signal(signal.SIGTERM)
                elif turn == KILL_TURN:
                    nodes[KILLED].kill()
            found = ask(port, conversations[place], turn)
            with lock:
                seen.append(found)

        with ThreadPoolExecutor(AT_ONCE) as executor:
            for turn in range(TURNS):
                list(executor.map(lambda place, turn=turn: one(place, turn), range(arguments.conversations)))
        stopped = nodes[STOPPED].wait(60)
    errors = Counter(error for conversation in conversations for error in conversation.errors)
    stayed = [found for found in seen if found.turn and not found.moved]
    hits = sum(found.hit for found in stayed) / len(stayed)
    first = Counter(found.node for found in seen if not found.turn)
    moves = Counter((found.turn, found.node) for found in seen if found.moved)
    by_stop = sum(n for (turn, _), n in errors.items() if turn <= STOP_TURN)
    strangers = sum(n for (_, node), n in errors.items() if node not in ("", KILLED))
    figures = {
        "conversations by node at first": dict(first),
        "streams lost before the kill": by_stop,
        "streams lost by the kill": sum(errors.values()) - by_stop,
        "of them of other nodes": strangers,
        "moved, by turn and node": {f"{turn} to {node}": n for (turn, node), n in sorted(moves.items())},
        "later turns where they were": len(stayed),
        "found what they share": round(hits, 4),
        "exit code of the node that was stopped": stopped,
    }
    print(json.dumps({"bench": "haproxy", "figures": figures}, indent=1))
    return int(bool(by_stop or strangers or stopped) or hits < SHARED or sum(errors.values()) > AT_ONCE)


if __name__ == "__main__":
    sys.exit(main())
