"""Claim: a streamed token costs the server's processes at most 30 µs of CPU over what decoding it costs at all.

4 streams of the bundled model on one compute thread, where a step is short enough for the rest to show: CPU time of the
server and its engine per token, less that of llama-batched-bench for the same sequences. Both are CPU times, so that
other load on the machine matters little; what starts a process up is in neither.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest, peers  # noqa: E402

STREAMS, PROMPT, N = 4, 8, 400
CLAIMS = (contest.Claim("over_raw_us", "CPU per streamed token over raw decoding, 4 streams", "µs", bound=30),)


async def measure(server: client.Running, model: Path) -> contest.Figures:
    """Less the mean of two raw runs, just before and just after: what a step costs drifts more than the difference is."""
    asker = client.Client(server)
    await four(asker, 20)
    raw = raw_us(model)
    pids = [server.pid, *server.children]
    before = [client.cpu_s(pid) for pid in pids]
    await four(asker, N)
    us = [(client.cpu_s(pid) - began) * 1e6 / (STREAMS * N) for pid, began in zip(pids, before)]
    raw = (raw + raw_us(model)) / 2
    return {"total_us": sum(us), "front_us": us[0], "raw_us": raw, "over_raw_us": sum(us) - raw}


async def four(asker: client.Client, n: int) -> None:
    bodies = [asker.body(asker.words(PROMPT), n) for _ in range(STREAMS)]
    await asyncio.gather(*(client.stream(asker.port, client.COMPLETIONS, body) for body in bodies))


def raw_us(model: Path) -> float:
    """CPU per token of a run of N steps, less that of a run of one."""
    long, short = (peers.batched_bench(model, STREAMS, PROMPT, n, 1, "--kv-unified")[1] for n in (N + 1, 1))
    return (long - short) * 1e6 / (STREAMS * N)


def main() -> None:
    arguments = contest.parse(__doc__, params=None, rounds=7)
    serve = {
        contest.OURS: lambda model: client.lmlite_server(model, "--threads", 1),
        "defaults": lambda model: peers.llama_server(model, "-t", 1, "-c", 8192),
    }
    figures = contest.contest(arguments.model, arguments.rounds, serve, partial(measure, model=arguments.model))
    contest.report("overhead", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
