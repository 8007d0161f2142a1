"""Claim: this tree's streams cost no more CPU and begin no later than those of another checkout: TREE, with its library built.

Both servers run and are measured in turns, in one run: in front of a fake engine CPU per token of chat completions, the time
to the first token and CPU per whole answer; with the bundled model on one thread CPU per token of server and engine, and the
first token on a connection that was used before. Figures are medians of the rounds, ratios those of the pairs. Both servers
are started several times: where the machine puts a process makes a tenth of its speed, for as long as that one lives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from bench import client, contest, first_token, overhead, stream  # noqa: E402
from lmlite.package import bundled_model  # noqa: E402
from tests.core import gguf_files  # noqa: E402

PACE_S = 0.001
TOKENS = 1600
ASKED = 100


async def in_front_of_a_fake(server: client.Running) -> contest.Figures:
    chat = {"messages": stream.MESSAGES, "max_tokens": 1}
    server.model = (await client.whole(server.port, stream.CHAT, chat))["model"]
    whole = await stream.requests(server, stream.CHAT, chat, 200, 4)
    found = {f"fake: CPU per token, {n} streams, µs": await stream.tokens(server, n, TOKENS // n) for n in (1, 4, 16)}
    found["fake: CPU per whole answer, µs"] = whole["cpu_us"]
    found["fake: first token, median, ms"] = await first_token_ms(server, server.model, "hello")
    return found


async def of_the_model(server: client.Running) -> contest.Figures:
    asker = client.Client(server)
    pids = [server.pid, *server.children]
    await overhead.four(asker, 20)
    before = [client.cpu_s(pid) for pid in pids]
    await overhead.four(asker, overhead.N)
    us = [(client.cpu_s(pid) - began) * 1e6 / (overhead.STREAMS * overhead.N) for pid, began in zip(pids, before)]
    first = await first_token_ms(server, server.model, asker.words(8))
    return {"model: CPU per token, µs": sum(us), "model: the server's, µs": us[0], "model: first token, median, ms": first}


async def first_token_ms(server: client.Running, model: str, text: str) -> float:
    """On one connection, again and again."""
    kept = await first_token.Connection.open(server.port)
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4, "stream": True}
    taken = []
    for _ in range(ASKED):
        asked, came, _ = await kept.ask(body)
        taken.append((came - asked) * 1e3)
    kept.close()
    return statistics.median(taken)


def fake(tree: Path, model: Path) -> AbstractContextManager[client.Running]:
    command: list[str | Path] = [sys.executable, tree / "bench" / "stream.py", "--pace", str(PACE_S), "--serve", model]
    return client.serving(command, tree)


def in_turns(
    trees: Mapping[str, Path],
    starts: int,
    rounds: int,
    serve: Callable[[Path], AbstractContextManager[client.Running]],
    measure: Callable[[client.Running], Coroutine[Any, Any, contest.Figures]],
) -> dict[str, list[contest.Figures]]:
    """Of both, which wait for each other."""
    seen: dict[str, list[contest.Figures]] = {name: [] for name in trees}
    for start in range(starts):
        with ExitStack() as stack:
            servers = {name: stack.enter_context(serve(trees[name])) for name in sorted(trees, reverse=start % 2 == 1)}
            for turn in range(rounds + 1):
                for name in sorted(servers, reverse=turn % 2 == 1):  # who is first changes
                    found = asyncio.run(measure(servers[name]))
                    seen[name] += [found] if turn else []  # the first warms up
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="per start")
    arguments = parser.parse_args()
    trees = {"before": arguments.tree.resolve(), "now": ROOT}
    often = arguments.starts, arguments.rounds
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "fake.gguf"
        model.write_bytes(gguf_files.gguf(gguf_files.llama()))
        tell(figures, in_turns(trees, *often, lambda tree: fake(tree, model), in_front_of_a_fake))
    threads = ("--threads", 1)
    tell(
        figures,
        in_turns(trees, *often, lambda tree: client.lmlite_server(bundled_model(), *threads, tree=tree), of_the_model),
    )
    print(json.dumps({"bench": "before", "figures": figures}, indent=1, ensure_ascii=False))


def tell(figures: dict[str, dict[str, Any]], seen: Mapping[str, Sequence[contest.Figures]]) -> None:
    for figure in seen["now"][0]:
        before, now = ([run[figure] for run in seen[name]] for name in ("before", "now"))
        ratios = sorted(new / old for old, new in zip(before, now))
        figures[figure] = {name: round_(statistics.median(found)) for name, found in (("before", before), ("now", now))}
        figures[figure]["ratio"] = round_(statistics.median(ratios))
        figures[figure]["quartiles"] = [round_(quartile) for quartile in statistics.quantiles(ratios)[::2]]


def round_(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
