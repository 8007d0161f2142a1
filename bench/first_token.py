"""Claim: the first token leaves within 3 ms of its computation on every connection, also on one that was used before.

A kernel that gathers small segments holds an answer's second one back until the first is acknowledged, which the client's
kernel delays by 40 ms on a connection that was used before, and never on a new one. The bundled model is asked in turns with
llama-server; then a fake engine, whose only word is the time at which it said it, tells what lies between computation and
arrival: streamed and whole, over IPv4 and IPv6.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from bench import client, contest, peers  # noqa: E402
from lmlite.core.engine.frames import Kind, pack  # noqa: E402
from tests.core import gguf_files  # noqa: E402
from tests.fakes import FakeEngine, finished, frame  # noqa: E402

CHAT = "/v1/chat/completions"
HOSTS = ("127.0.0.1", "::1")
TIMES = 50
PROMPT_S = 0.02
"""What the fake takes for a prompt: the answer's head must not wait for its first token, nor the token for the head."""
FIRST_WORD = re.compile(rb'"content": ?"[^"]')
"""What comes before it names the role alone."""
CLAIMS = (
    contest.Claim("kept_ms", f"first token on a connection used before, median of {TIMES}", "ms", ratio=1.0),
    contest.Claim("kept_p90_ms", "the same, 90 of 100", "ms"),
    contest.Claim("new_ms", "the same on a new connection", "ms"),
)


# ---- beside llama-server ---------------------------------------------------------------------------------------------


class Connection:
    """One connection, kept: requests on it one after the other. A server that hangs up behind an answer, as llama-server
    does behind a streamed one, is connected to anew, as a client would, and within the time that is measured."""

    def __init__(self, port: int, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._port, self._host = port, host
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1") -> Connection:
        return cls(port, host, *await asyncio.open_connection(host, port))

    async def ask(self, body: dict[str, Any]) -> tuple[float, float, bytes]:
        """When it was asked, when the first token had come, and what had come by then. The answer is read to its end."""
        asked = time.perf_counter()
        self._writer.write(client.request(CHAT, body))
        said = await self._reader.read(1 << 16)
        if not said:
            self._writer.close()
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
            self._writer.write(client.request(CHAT, body))
        end = b"\r\n0\r\n\r\n" if body.get("stream") else b"}"  # of a whole one: of its JSON, in one piece
        while not FIRST_WORD.search(said) and not said.endswith(end):  # an answer may have none
            said += await self._more()
        came, first = time.perf_counter(), said
        while not said.endswith(end):
            said += await self._more()
        return asked, came, first

    async def _more(self) -> bytes:
        piece = await self._reader.read(1 << 16)
        if not piece:
            raise RuntimeError("the server hung up")
        return piece

    def close(self) -> None:
        self._writer.close()


async def measure(server: client.Running) -> contest.Figures:
    asker = client.Client(server)

    def body() -> dict[str, Any]:
        message = {"role": "user", "content": asker.words(8)}
        return {"model": server.model, "messages": [message], "max_tokens": 4, "stream": True, "temperature": 0}

    kept = await Connection.open(server.port)
    await kept.ask(body())
    of_kept, of_new = [], []
    for _ in range(TIMES):
        asked, came, _ = await kept.ask(body())
        of_kept.append((came - asked) * 1e3)
        new = await Connection.open(server.port)
        asked, came, _ = await new.ask(body())
        of_new.append((came - asked) * 1e3)
        new.close()
    kept.close()
    p90 = sorted(of_kept)[TIMES * 9 // 10]
    return {"kept_ms": statistics.median(of_kept), "kept_p90_ms": p90, "new_ms": statistics.median(of_new)}


# ---- from computation to arrival -------------------------------------------------------------------------------------


class ClockEngine(FakeEngine):
    def _generate(self, request_id: int, command: dict[str, Any]) -> Iterator[bytes]:
        yield frame(Kind.PROMPT_PROGRESS, request_id, {"done": 1, "total": 1, "cached": 0, "ms": 1.0})
        time.sleep(PROMPT_S)
        yield pack(Kind.TEXT, request_id, b"<%.6f>" % time.perf_counter())
        yield frame(Kind.FINISHED, request_id, finished())


def serve(model: Path) -> None:
    """A server in front of fakes, on both of this machine's own addresses."""
    client.serve_fakes((sys.executable, __file__, "--engine"), models=[model], host=HOSTS, home=model.parent)


async def delays(port: int) -> dict[str, float]:
    """Milliseconds from a token's computation to its arrival; the worst of each kind."""
    found: dict[str, float] = {}
    for host in HOSTS:
        for stream in (False, True):
            kept = await Connection.open(port, host)
            body = {"messages": [{"role": "user", "content": "hello"}], "stream": stream}
            await kept.ask(body)
            taken = []
            for _ in range(TIMES):
                _, came, said = await kept.ask(body)
                taken.append((came - float(said.split(b"<")[1].split(b">")[0])) * 1e3)
            kept.close()
            kind = f"{'streamed' if stream else 'whole'}, {host}"
            found |= {f"{kind}: median, ms": statistics.median(taken), f"{kind}: worst, ms": max(taken)}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    if sys.argv[1:2] == ["--engine"]:
        ClockEngine().serve(int(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
        return
    arguments = contest.parse(__doc__, params=None, rounds=3)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "fake.gguf"
        model.write_bytes(gguf_files.gguf(gguf_files.llama()))
        with client.serving([sys.executable, __file__, "--serve", model]) as server:
            found = asyncio.run(delays(server.port))
        print(json.dumps({"bench": "first_token", "from computation to arrival": found}, indent=1))
    figures = contest.contest(
        arguments.model,
        arguments.rounds,
        {
            contest.OURS: lambda model: client.lmlite_server(model),
            "defaults": lambda model: peers.llama_server(model, "-t", client.CORES, "-c", 8192),
        },
        measure,
    )
    contest.report("first_token", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
