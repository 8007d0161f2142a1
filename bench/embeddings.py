"""Texts per second: one request of many texts, and several clients with one text at a time, beside llama.cpp itself.

The yardstick is the best that raw llama.cpp calls reach on the same tokens at any packing (`raw_embed.cpp`, tokenizing
not timed); `llama-server` runs too. All take turns in each round, the medians of the rounds count; a run during which
other programs had a noticeable part of the CPU does not. Prints one JSON object, then rows for the table in README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from bench import client, peers  # noqa: E402

EMBEDDINGS = "/v1/embeddings"
BUDGETS = (1, 32, 64, 96, 128, 192, 256, 320, 384, 512, 768, 1 << 20)  # tokens per call; 1: each text alone
REST_S = 0.15
"""Compute threads look out for more work for a while after the last; the next contender must not run beside them."""
OTHERS_SHARE, ATTEMPTS = 0.1, 3
"""A run counts if other programs had at most this much of one CPU meanwhile; else it is tried again."""
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother area "
    "money story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city community name president team minute idea body information back parent"
).split()


def make_texts(n: int) -> list[str]:
    """Sentences of 4 to 26 words: about 17 tokens each, as search queries and short passages have."""
    chance = random.Random(5)
    return [" ".join(chance.choices(WORDS, k=chance.randint(4, 26))) for _ in range(n)]


# ---- contenders: each computes all texts once and returns the seconds ------------------------------------------------


@contextmanager
def raw_calls(model: Path, threads: int, texts: Sequence[str]) -> Iterator[Callable[[int], float]]:
    """llama.cpp's own calls, in packs of at most so many tokens."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(texts) + "\n")
        file.flush()
        command = [str(part) for part in (ROOT / "build" / "lmlite-raw-embed", model, threads, file.name)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
            stdin, stdout = process.stdin, process.stdout
            assert stdin is not None and stdout is not None
            if not stdout.readline():
                raise RuntimeError("lmlite-raw-embed did not start")

            def run(budget: int) -> float:
                stdin.write(f"{budget}\n")
                return float(stdout.readline())

            try:
                yield run
            finally:
                stdin.close()


def is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not body:
        return False
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(answer.decode())
    return len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


def over_http(port: int, requests: Sequence[bytes], clients: int) -> float:
    """The seconds that `clients` kept-alive connections take for all requests, each its share one after the other. Plain
    sockets in one thread: a client takes its CPU from the compute threads."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(clients)]
        left = {sock: deque(requests[place::clients]) for place, sock in enumerate(sockets)}
        received = dict.fromkeys(sockets, b"")
        began = time.perf_counter()
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ, sock)
            sock.sendall(left[sock].popleft())
        while selector.get_map():
            for key, _ in selector.select():
                sock = key.data
                if not (chunk := sock.recv(1 << 20)):
                    raise RuntimeError("a connection was closed")
                received[sock] += chunk
                if not is_whole(received[sock]):
                    continue
                if left[sock]:
                    received[sock] = b""
                    sock.sendall(left[sock].popleft())
                else:
                    selector.unregister(sock)
        return time.perf_counter() - began


def contenders(name: str, port: int, texts: Sequence[str], clients: int) -> dict[str, Callable[[], float]]:
    model = asyncio.run(client.whole(port, "/v1/models"))["data"][0]["id"]

    def request(given: object, **more: str) -> bytes:
        return client.request(EMBEDDINGS, {"model": model, "input": given, **more})

    together = [request(texts)]
    packed = [request(texts, encoding_format="base64")]
    apart = [request(text) for text in texts]
    return {
        f"{name}: one request": partial(over_http, port, together, 1),
        f"{name}: one request, base64": partial(over_http, port, packed, 1),
        f"{name}: {clients} clients": partial(over_http, port, apart, clients),
    }


# ---- a machine that others use too -----------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def others_cpu_s() -> float:
    """What all programs but the contenders and this one have had of the CPU since the machine was started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    own = sum(client.cpu_s(pid) for pid in family(os.getpid()))
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - own


def undisturbed(run: Callable[[], float]) -> float | None:
    """The seconds of a run that had the machine to itself, None if none of some attempts had."""
    for _ in range(ATTEMPTS):
        time.sleep(REST_S)
        others, began = others_cpu_s(), time.perf_counter()
        seconds = run()
        if others_cpu_s() - others <= OTHERS_SHARE * (time.perf_counter() - began):
            return seconds
    return None


# ---- the run ---------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Texts per second of each contender."""
    texts = make_texts(arguments.texts)
    with ExitStack() as stack:
        raw = stack.enter_context(raw_calls(arguments.model, arguments.threads, texts))
        command = client.lmlite(arguments.model, "--threads", str(arguments.threads))
        server = stack.enter_context(client.serving(command))
        runs: dict[str, Callable[[], float]] = {}
        runs |= contenders("lmlite", server.port, texts, arguments.clients)
        if not arguments.alone:
            flags: list[object] = ["--embeddings", "-t", arguments.threads, "-np", arguments.slots]
            peer = stack.enter_context(peers.llama_server(arguments.model, *flags))
            runs |= contenders("llama-server", peer.port, texts, arguments.clients)
        for budget in BUDGETS:
            runs[f"raw: {budget}"] = partial(raw, budget)
        for run in runs.values():
            run()  # warm
        taken = defaultdict(list)
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                if (seconds := undisturbed(run)) is not None:
                    taken[name].append(seconds)
    if few := [name for name in runs if len(taken[name]) < 3]:
        raise SystemExit(f"the machine was too busy to measure {', '.join(few)}")
    return {name: arguments.texts / statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an embedding model, as GGUF")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--slots", type=int, default=4, help="llama-server's -np (its own default is 4)")
    parser.add_argument("--alone", action="store_true", help="without llama-server")
    arguments = parser.parse_args()
    rates = measure(arguments)
    budgets = {name: rate for name, rate in rates.items() if name.startswith("raw")}
    best = max(budgets, key=lambda name: budgets[name])
    ratios = {name: round(rate / rates[best], 3) for name, rate in rates.items() if name not in budgets}
    rounded = {name: round(rate, 1) for name, rate in rates.items()}
    print(json.dumps({"bench": "embeddings", "best": best, "ratios": ratios, "texts_per_s": rounded}, indent=1))
    for case in ("one request", f"{arguments.clients} clients"):
        columns = [f"{rates[name]:.0f}" for name in (f"lmlite: {case}", f"llama-server: {case}", best) if name in rates]
        print(f"| embeddings, {case} | {' | '.join(columns)} | {ratios[f'lmlite: {case}']} |")


if __name__ == "__main__":
    main()
