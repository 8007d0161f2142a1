"""Claim: 99 of 100 times `/health` answers within 5 ms, whatever the server is doing.

A process of its own asks 100 times a second: while nothing happens, 50 streams run, bodies of 12,500 messages or prompts of
5 MB come one upon the other, 3,000 connections are opened, a model is loaded and unloaded all the time. Another process asks
a bare asyncio echo just so, at the same time: what that one takes is the machine's doing, whose cores the clients, the engine
and the echo share.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest, peers  # noqa: E402

PERIOD_S, ASK_S = 0.01, 10.0
CONNECTION_MAX = 50
"""Questions on one connection: llama-server ends it after a hundred."""
STREAMS, STREAM_TOKENS = 50, 1900
MESSAGES, PROMPT_WORDS = 12_500, 1_000_000
CONNECTIONS = 3000
CHAT = "/v1/chat/completions"
ECHO = "bare echo beside it"
CASES = {
    "idle": "nothing else happens",
    "streams": f"{STREAMS} streams",
    "messages": f"bodies of {MESSAGES} messages without pause",
    "prompts": "prompts of 5 MB without pause",
    "connections": f"{CONNECTIONS} connections are opened, again and again",
    "loads": "a model comes and goes",
}
CLAIMS = tuple(contest.Claim(case, f"/health, 99 of 100: {text}", "ms", bound=5) for case, text in CASES.items())

Load = Callable[[], Coroutine[Any, Any, None]]


# ---- who asks --------------------------------------------------------------------------------------------------------


def ask(port: int, question: bytes) -> list[float]:
    """Milliseconds of each answer. One that comes after the next question was due makes that one late, too."""
    taken: list[float] = []
    due = ended = time.perf_counter()
    end = due + ASK_S
    while ended < end:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            for _ in range(CONNECTION_MAX):
                due += PERIOD_S
                time.sleep(max(0.0, due - time.perf_counter()))
                began = due if ended > due else time.perf_counter()
                sock.sendall(question)
                if not sock.recv(1 << 16):
                    raise RuntimeError("the server hung up")
                ended = time.perf_counter()
                taken.append((ended - began) * 1e3)
    return taken


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.data_received = transport.write  # type: ignore[method-assign]


def echo(sock: socket.socket) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Echo, sock=sock)
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def echoing() -> Iterator[int]:
    """The port of an echo in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        process = multiprocessing.get_context("spawn").Process(target=echo, args=(sock,), daemon=True)
        process.start()
        try:
            yield int(sock.getsockname()[1])
        finally:
            process.terminate()
            process.join()


# ---- what goes on meanwhile ------------------------------------------------------------------------------------------


async def stream(port: int, model: str) -> None:
    body = {"model": model, "prompt": "Hello", "max_tokens": STREAM_TOKENS, "ignore_eos": True}
    await client.stream(port, client.COMPLETIONS, body)


async def post(port: int, question: bytes) -> None:
    """Whatever the answer: these are more than a context holds, which only those who read them all can tell."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(question)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
    writer.close()


async def connect(port: int) -> None:
    """All of them are open at once. A server may end some: it has to answer those that it keeps."""
    opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)))
    for _, writer in opened:
        writer.close()


async def come_and_go(port: int, model: str) -> None:
    with contextlib.suppress(RuntimeError):  # it may be gone
        await client.whole(port, "/api/v1/models/unload", {"instance_id": model})
    await client.whole(port, "/api/v1/models/load", {"model": model})


def question(model: str, messages: list[dict[str, str]]) -> bytes:
    return client.request(CHAT, {"model": model, "messages": messages, "max_tokens": 1})


@asynccontextmanager
async def going_on(load: Load, times: int) -> AsyncIterator[list[int]]:
    """Does so many `load`s at a time, again and again; the list gets the number of those that ended."""
    ended = [0]

    async def again() -> None:
        while True:
            await load()
            ended[0] += 1

    tasks = [asyncio.create_task(again()) for _ in range(times)]
    try:
        await asyncio.sleep(1)
        yield ended
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


# ---- the run ---------------------------------------------------------------------------------------------------------


def p99(taken: list[float]) -> float:
    return sorted(taken)[len(taken) * 99 // 100]


async def measure(executor: Executor, echo_port: int, server: client.Running) -> contest.Figures:
    port, model = server.port, server.model
    words = {"role": "user", "content": "word " * PROMPT_WORDS}
    loads: dict[str, tuple[Load, int]] = {
        "idle": (partial(asyncio.sleep, 1), 1),
        "streams": (partial(stream, port, model), STREAMS),
        "messages": (partial(post, port, question(model, [{"role": "user", "content": "hello"}] * MESSAGES)), 1),
        "prompts": (partial(post, port, question(model, [words])), 1),
        "connections": (partial(connect, port), 1),
    }
    if model != peers.MODEL:
        loads["loads"] = (partial(come_and_go, port, model), 1)
    figures: contest.Figures = {}
    loop = asyncio.get_running_loop()
    for case, (load, times) in loads.items():
        async with going_on(load, times) as ended:
            answered, echoed = await asyncio.gather(
                loop.run_in_executor(executor, ask, port, client.request("/health")),
                loop.run_in_executor(executor, ask, echo_port, client.request("/health")),
            )
            figures |= {case: p99(answered), f"{case}_max": max(answered), f"{case}_ended": ended[0]}
            figures |= {f"{case}_echo": p99(echoed), f"{case}_echo_max": max(echoed)}
    return figures


def main() -> None:
    arguments = contest.parse(__doc__, params=None, rounds=3)
    serve: dict[str, contest.Serve] = {
        contest.OURS: lambda model: client.lmlite_server(model),
        "defaults": lambda model: peers.llama_server(model, "-t", client.CORES, "-c", 8192, "--threads-http", 2 * STREAMS),
    }
    with echoing() as echo_port, ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        figures = contest.contest(arguments.model, arguments.rounds, serve, partial(measure, executor, echo_port))
    figures[ECHO] = {case: figures[contest.OURS][f"{case}_echo"] for case in CASES}
    contest.report("health", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
