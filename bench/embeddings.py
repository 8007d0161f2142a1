"""Texts per second: one request of many texts, and several clients with one text at a time, beside llama.cpp itself.

The yardstick is the best that raw llama.cpp calls reach on the same tokens at any packing (`raw_embed.cpp`, tokenizing
not timed); `llama-server` runs too. A first pass finds the best packing; then it is measured afresh before and after each
run of a contender, whose ratio is to the mean of the two, so that what drifts on the machine cancels out. The medians
count. A run does not if other programs had a noticeable part of the CPU meanwhile. Prints one JSON object, then rows for
the table in README.md.
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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from bench import client, peers  # noqa: E402

EMBEDDINGS = "/v1/embeddings"
BUDGETS = (1, 32, 64, 96, 128, 192, 256, 320, 384, 512, 768, 1 << 20)  # tokens per call; 1: each text alone
QUIET_S, QUIET_SHARE, REST_S = 0.02, 0.1, 2.0
"""llama.cpp's compute threads look out for more work for a fifth of a second after the last: the next contender does not
begin before all of them together had less than this share of a CPU for so long, or there is no rest to be had."""
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


def contenders_cpu_s() -> float:
    """What the contenders and this program have had of the CPU."""
    return sum(client.cpu_s(pid) for pid in family(os.getpid()))


def others_cpu_s() -> float:
    """What all other programs have had of it since the machine was started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - contenders_cpu_s()


def settle() -> None:
    """Returns once the contenders are at rest."""
    deadline = time.perf_counter() + REST_S
    while time.perf_counter() < deadline:
        before, began = contenders_cpu_s(), time.perf_counter()
        time.sleep(QUIET_S)
        if contenders_cpu_s() - before < QUIET_SHARE * (time.perf_counter() - began):
            return
    raise SystemExit("the contenders do not come to rest")


def undisturbed(*runs: Callable[[], float]) -> list[float] | None:
    """The seconds of runs that had the machine to themselves one after the other, None if none of some attempts had."""
    for _ in range(ATTEMPTS):
        others, elapsed, seconds = 0.0, 0.0, []
        for run in runs:
            settle()
            others_before, began = others_cpu_s(), time.perf_counter()
            seconds.append(run())
            elapsed += time.perf_counter() - began
            others += others_cpu_s() - others_before
        if others <= OTHERS_SHARE * elapsed:
            return seconds
    return None


# ---- the run ---------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """Of one contender: seconds, and texts per second over those of the raw calls beside it, run by run."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


def best_packing(raw: Callable[[int], float], rounds: int) -> int:
    taken: defaultdict[int, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for budget in random.sample(BUDGETS, len(BUDGETS)):
            if (seconds := undisturbed(partial(raw, budget))) is not None:
                taken[budget] += seconds
    if few := [budget for budget in BUDGETS if len(taken[budget]) < 3]:
        raise SystemExit(f"the machine was too busy to measure packs of {few} tokens")
    return min(BUDGETS, key=lambda budget: statistics.median(taken[budget]))


def measure(arguments: argparse.Namespace) -> tuple[int, dict[str, Measured]]:
    """The best packing of raw calls, and the contenders."""
    texts = make_texts(arguments.texts)
    with ExitStack() as stack:
        raw = stack.enter_context(raw_calls(arguments.model, arguments.threads, texts))
        for budget in BUDGETS:
            raw(budget)  # warm
        budget = arguments.packing or best_packing(raw, max(3, arguments.rounds // 3))
        command = client.lmlite(arguments.model, "--threads", str(arguments.threads))
        server = stack.enter_context(client.serving(command))
        runs = contenders("lmlite", server.port, texts, arguments.clients)
        if not arguments.alone:
            flags: list[object] = ["--embeddings", "-t", arguments.threads, "-np", arguments.slots]
            peer = stack.enter_context(peers.llama_server(arguments.model, *flags))
            runs |= contenders("llama-server", peer.port, texts, arguments.clients)
        for run in runs.values():
            run()  # warm
        measured = {name: Measured() for name in runs}
        yardstick = partial(raw, budget)
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                if (three := undisturbed(yardstick, run, yardstick)) is not None:
                    before, seconds, after = three
                    measured[name].seconds.append(seconds)
                    measured[name].ratios.append((before + after) / 2 / seconds)
    if few := [name for name, runs_of in measured.items() if len(runs_of.seconds) < 3]:
        raise SystemExit(f"the machine was too busy to measure {', '.join(few)}")
    return budget, measured


def spread(values: Sequence[float]) -> list[float]:
    """The median between the quartiles."""
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an embedding model, as GGUF")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--slots", type=int, default=4, help="llama-server's -np (its own default is 4)")
    parser.add_argument("--packing", type=int, help="tokens per raw call, if the best is known")
    parser.add_argument("--alone", action="store_true", help="without llama-server")
    arguments = parser.parse_args()
    budget, measured = measure(arguments)
    rates = {name: arguments.texts / statistics.median(runs.seconds) for name, runs in measured.items()}
    ratios = {name: spread(runs.ratios) for name, runs in measured.items()}
    rounded = {name: round(rate, 1) for name, rate in rates.items()}
    print(json.dumps({"bench": "embeddings", "packing": budget, "ratios": ratios, "texts_per_s": rounded}, indent=1))
    for case in ("one request", f"{arguments.clients} clients"):
        both = [str(ratios[f"{name}: {case}"][1]) for name in ("lmlite", "llama-server") if f"{name}: {case}" in ratios]
        print(f"| embeddings, {case}, texts/s of the best raw packing | {' | '.join(both)} |")


if __name__ == "__main__":
    main()
