"""Claims: who asks for tokens pays next to nothing for it, and a flood of wrong ones reaches nobody else.

To admit a request costs at most 20 µs: CPU time in this process, on a database with a hundred tokens. While another process
sends wrong tokens as fast as one core can, by GET on eight connections that stay or by POST on ever new ones, `/health` takes
at most twice as long as a bare asyncio echo that is asked at the same time, each 99 of 100 times; and the log keeps its bound.
Who leaves without an answer needs no pause between two: while one does, `/health` on new connections, of the same address and
of another, is answered as soon as a bare echo under such a flood, twice its time, each 99 of 100 times.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, health  # noqa: E402
from lmlite.app.auth import Door, GuardedDoor  # noqa: E402
from lmlite.app.request_log import LINES_MAX  # noqa: E402
from lmlite.errors import HttpError  # noqa: E402
from lmlite.principal import RIGHTS, Principal  # noqa: E402
from lmlite.store.database import Database  # noqa: E402
from lmlite.store.home import Home  # noqa: E402
from lmlite.store.tokens import TokenTable  # noqa: E402

TOKENS, CALLS, TURNS = 100, 5000, 9
CONNECTIONS, PIPELINED = 8, 20
ROUNDS = 3
ADMIT_US, RATIO, LOG_SLACK = 20.0, 2.0, 1.1  # the last: what is told of the start, and of lines that were left out
WHO = ("same", "other")
ADDRESSES = ("127.0.0.1", "127.0.0.2")
"""The flood's own, and another."""
WRONG = "sk-lm-AAAAAAAA:" + "a" * 20


def make_tokens(home: Path, n: int) -> list[str]:
    database = Database(Home(home).state)
    table = TokenTable(database)
    made = [table.create(Principal(f"t{i}", f"token t{i}", frozenset(RIGHTS)), time.time(), None) for i in range(n)]
    database.close()
    return made


# ---- what it costs to be let in --------------------------------------------------------------------------------------


def cost_us(work: Callable[[], object]) -> float:
    """CPU time, and the median of turns, so that what else the machine does counts little."""
    taken = []
    for _ in range(TURNS):
        began = time.thread_time()
        for _ in range(CALLS):
            work()
        taken.append((time.thread_time() - began) / CALLS * 1e6)
    return statistics.median(taken)


def refused(door: Door, headers: dict[str, str]) -> None:
    try:
        door.admit(headers, "chat")
    except HttpError:
        return
    raise RuntimeError("it was let in")


def measure_doors() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        token = make_tokens(Path(folder), TOKENS)[TOKENS // 2]
        door, headers = GuardedDoor(Home(Path(folder)).state), {"host": "x", "authorization": f"Bearer {token}"}
        found = {
            "admit_us": cost_us(lambda: door.admit(headers, "chat")),
            "refuse_us": cost_us(lambda: refused(door, {"authorization": f"Bearer {WRONG}"})),
            "open_us": cost_us(lambda: Door().admit(headers, "chat")),
        }
        door.close()
        return found


# ---- a flood ---------------------------------------------------------------------------------------------------------


def flood(port: int, question: bytes, size: int, seconds: float) -> int:
    """How many were answered, each with `size` bytes: as many as one core sends, on a few connections, some at a time."""

    async def keep_on() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        n = 0
        with contextlib.suppress(asyncio.TimeoutError):
            while (left_s := end - time.perf_counter()) > 0:
                writer.write(question * PIPELINED)
                await asyncio.wait_for(reader.readexactly(size * PIPELINED), left_s)
                n += PIPELINED
        writer.close()
        return n

    async def run() -> int:
        return sum(await asyncio.gather(*(keep_on() for _ in range(CONNECTIONS))))

    end = time.perf_counter() + seconds
    return asyncio.run(run())


def knock(port: int, question: bytes, size: int, seconds: float) -> int:
    """How many connections were answered, each to its one question."""

    async def keep_on() -> int:
        n = 0
        while time.perf_counter() < end:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(question)
            n += b" 401 " in await reader.read(1 << 16)
            writer.transport.abort()
        return n

    async def run() -> int:
        return sum(await asyncio.gather(*(keep_on() for _ in range(CONNECTIONS))))

    end = time.perf_counter() + seconds
    return asyncio.run(run())


def leave(port: int, question: bytes, seconds: float) -> int:
    """How many connections brought the question and were closed at once."""
    n, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        with socket.create_connection(("127.0.0.1", port)) as sock, contextlib.suppress(OSError):
            sock.sendall(question)
        n += 1
    return n


def ask_anew(port: int, question: bytes, source: str) -> list[float]:
    """Milliseconds of each answer, each on a connection of its own, from the address `source`."""
    taken = []
    end = time.perf_counter() + health.ASK_S
    while (began := time.perf_counter()) < end:
        with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as sock:
            sock.sendall(question)
            if not sock.recv(1 << 16):
                raise RuntimeError("the server hung up")
        taken.append((time.perf_counter() - began) * 1e3)
        time.sleep(max(0.0, began + health.PERIOD_S - time.perf_counter()))
    return taken


def answer_bytes(port: int, question: bytes) -> int:
    """How long the answer is."""
    with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rb") as stream:
        sock.sendall(question)
        head = b"".join(iter(stream.readline, b"\r\n"))
        if b" 401 " not in head.split(b"\r\n")[0]:
            raise RuntimeError("it is not refused")
        return len(head) + 2 + int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


@contextmanager
def guarded() -> Iterator[tuple[client.Running, Path]]:
    """A server that asks for tokens, and its log."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_tokens(home, TOKENS)
        log = home / "log"
        command = client.lmlite("--home", home, "--auth")
        with open(log, "wb") as stderr, client.serving(command, stderr=stderr) as server:
            yield server, log


async def measure_floods(executor: ProcessPoolExecutor) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    named = f"Host: 127.0.0.1\r\nAuthorization: Bearer {WRONG}\r\n"
    get = f"GET /v1/models HTTP/1.1\r\n{named}\r\n".encode()
    post = f"POST /v1/responses HTTP/1.1\r\n{named}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    seconds, health_question = health.ASK_S + 2, client.request("/health")
    found: dict[str, float] = {}
    for name, sending, question in (("get", flood, get), ("post", knock, post)):
        with guarded() as (server, log), health.echoing() as echo:
            began = time.perf_counter()
            size, before = answer_bytes(server.port, get), client.cpu_s(server.pid)
            sent = loop.run_in_executor(executor, sending, server.port, question, size, seconds)
            await asyncio.sleep(1)
            answered, echoed = await asyncio.gather(
                loop.run_in_executor(executor, health.ask, server.port, health_question),
                loop.run_in_executor(executor, health.ask, echo, health_question),
            )
            found |= {
                f"{name}_p99_ms": health.p99(answered),
                f"{name}_echo_p99_ms": health.p99(echoed),
                f"{name}_ratio": health.p99(answered) / health.p99(echoed),
                f"{name}_per_s": await sent / seconds,
                f"{name}_cores": (client.cpu_s(server.pid) - before) / seconds,
                f"{name}_log_lines_per_s": log.read_bytes().count(b"\n") / (time.perf_counter() - began),
            }
    return found


async def measure_leaving(executor: ProcessPoolExecutor) -> dict[str, float]:
    """Both under the same flood, one after the other: the echo would have its own share of a machine's cores."""
    loop = asyncio.get_running_loop()
    question = f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {WRONG}\r\n\r\n".encode()
    found: dict[str, float] = {}
    with guarded() as (server, _), health.echoing() as echo:
        for name, port in (("leave_echo", echo), ("leave", server.port)):
            sent = loop.run_in_executor(executor, leave, port, question, health.ASK_S + 2)
            await asyncio.sleep(1)
            asked = (loop.run_in_executor(executor, ask_anew, port, client.request("/health"), at) for at in ADDRESSES)
            for at, taken in zip(WHO, await asyncio.gather(*asked)):
                found |= {f"{name}_{at}_p99_ms": health.p99(taken), f"{name}_{at}_max_ms": max(taken)}
            found[f"{name}_per_s"] = await sent / (health.ASK_S + 2)
    return found | {f"leave_{at}_ratio": found[f"leave_{at}_p99_ms"] / found[f"leave_echo_{at}_p99_ms"] for at in WHO}


def main() -> None:
    doors = measure_doors()
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as executor:
        rounds = [asyncio.run(measure_floods(executor)) | asyncio.run(measure_leaving(executor)) for _ in range(ROUNDS)]
    figures = {**doors, **{name: statistics.median(one[name] for one in rounds) for name in rounds[0]}}
    kept = {"admit": figures["admit_us"] <= ADMIT_US}
    for name in ("get", "post"):
        kept[f"{name}_ratio"] = figures[f"{name}_ratio"] <= RATIO
        kept[f"{name}_log"] = figures[f"{name}_log_lines_per_s"] <= LINES_MAX * LOG_SLACK
    kept |= {f"leave_{at}_ratio": figures[f"leave_{at}_ratio"] <= RATIO for at in WHO}
    print(json.dumps({"bench": "tokens", "figures": figures, "rounds": rounds, "kept": kept}, indent=1))
    sys.exit(not all(kept.values()))


if __name__ == "__main__":
    main()
