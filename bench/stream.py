"""What the server costs without a model: CPU per streamed token and requests per second, on a fake engine.

The fake is a process of its own that says a token every --pace seconds and stream, so that tokens are not merged; the
CPU is that of the server's process alone. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from bench import client  # noqa: E402
from tests.core import gguf_files  # noqa: E402
from tests.fakes import FakeEngine, Script  # noqa: E402

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
DIALECTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": (CHAT, "max_tokens", {"messages": MESSAGES}),
    "v0": ("/api/v0/chat/completions", "max_tokens", {"messages": MESSAGES}),
    "responses": ("/v1/responses", "max_output_tokens", {"input": "hello"}),
    "messages": ("/v1/messages", "max_tokens", {"messages": MESSAGES}),
    "native": ("/api/v1/chat", "max_output_tokens", {"input": "hello"}),
}
"""Where each is, its limit of tokens, and the rest of its body but for the model."""
ROUNDS = 3


class PacedEngine(FakeEngine):
    pace_s = 0.001

    def _generate(self, request_id: int, command: dict[str, Any]) -> Iterator[bytes]:
        for said in super()._generate(request_id, command):
            time.sleep(self.pace_s)
            yield said


def engine(pace_s: float, fd: int) -> None:
    paced = PacedEngine(Script())
    paced.pace_s = pace_s
    paced.serve(fd)


def serve(model: Path, pace_s: float) -> None:
    """The server under measurement, in front of fakes."""
    command = (sys.executable, __file__, "--pace", str(pace_s), "--engine")
    client.serve_fakes(command, models=[model], home=model.parent)


async def tokens(server: client.Running, streams: int, n: int, dialect: str = "chat") -> float:
    """Microseconds of server CPU per token."""
    path, limit, body = DIALECTS[dialect]
    body = {"model": server.model, **body}
    await client.stream(server.port, path, {**body, limit: 10})
    before = client.cpu_s(server.pid)
    await asyncio.gather(*(client.stream(server.port, path, {**body, limit: n}) for _ in range(streams)))
    return (client.cpu_s(server.pid) - before) / (streams * n) * 1e6


async def dialects(server: client.Running, n: int) -> dict[str, float]:
    """The same for each, in turns: medians, and how many times that of chat completions."""
    taken: dict[str, list[float]] = {dialect: [] for dialect in DIALECTS}
    for _ in range(ROUNDS):
        for dialect, found in taken.items():
            found.append(await tokens(server, 4, n // 4, dialect))
    us = {dialect: statistics.median(found) for dialect, found in taken.items()}
    told = {dialect: round(value, 1) for dialect, value in us.items()}
    return {**told, **{f"{dialect}, of chat": round(us[dialect] / us["chat"], 2) for dialect in us if dialect != "chat"}}


async def requests(server: client.Running, path: str, body: dict[str, Any] | None, n: int, clients: int) -> dict[str, float]:
    """`n` requests over `clients` kept-alive connections."""
    raw = client.request(path, body)

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(n // clients):
            writer.write(raw)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.close()

    before, began = client.cpu_s(server.pid), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    elapsed, cpu = time.perf_counter() - began, client.cpu_s(server.pid) - before
    return {"per_s": round(n / elapsed), "cpu_us": round(cpu / n * 1e6, 1)}


async def measure(server: client.Running, n: int) -> dict[str, Any]:
    chat = {"messages": MESSAGES, "max_tokens": 1}
    server.model = (await client.whole(server.port, CHAT, chat))["model"]
    return {
        "cpu_us_per_token_1_stream": round(await tokens(server, 1, n), 1),
        "cpu_us_per_token_4_streams": round(await tokens(server, 4, n // 4), 1),
        "cpu_us_per_token_16_streams": round(await tokens(server, 16, n // 16), 1),
        "cpu_us_per_token_of_dialects": await dialects(server, n),
        "health": await requests(server, "/health", None, 8000, 8),
        "chat_whole": await requests(server, CHAT, chat, 800, 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--pace", type=float, default=0.001)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine is not None:
        return engine(arguments.pace, arguments.engine)
    if arguments.serve is not None:
        return serve(arguments.serve, arguments.pace)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "fake.gguf"
        model.write_bytes(gguf_files.gguf(gguf_files.llama()))
        with client.serving([sys.executable, __file__, "--pace", str(arguments.pace), "--serve", model]) as server:
            print(json.dumps({"bench": "stream", **asyncio.run(measure(server, arguments.tokens))}, indent=1))


if __name__ == "__main__":
    main()
