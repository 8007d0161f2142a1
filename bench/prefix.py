"""Claim: clients that come at once with the same new prefix wait for one prefill of it, not for one each.

8 clients with 500 shared tokens: the worst time to first token. 4 clients with 1500: the time until all are answered.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

import time  # noqa: E402

from bench import client, contest  # noqa: E402

CLAIMS = (
    contest.Claim("worst_first_token_s", "8 clients, one new 500-token prefix: worst first token", "s", ratio=0.3),
    contest.Claim("wall_s", "4 clients, one new 1500-token prefix: all answered", "s", ratio=0.4),
)


async def measure(server: client.Running) -> contest.Figures:
    asker = client.Client(server)
    await asker.usage(asker.words(600))
    worst = max(await together(asker, clients=8, shared=500))
    began = time.perf_counter()
    await together(asker, clients=4, shared=1500)
    return {"worst_first_token_s": worst, "wall_s": time.perf_counter() - began}


async def together(asker: client.Client, clients: int, shared: int) -> list[float]:
    prefix = asker.words(shared)
    return await asyncio.gather(*(asker.first_token_s(f"{prefix} {asker.words(8)}") for _ in range(clients)))


def main() -> None:
    arguments = contest.parse(__doc__, params="200M", rounds=2)
    figures = contest.contest(arguments.model, arguments.rounds, contest.contestants(8, 2048), measure)
    contest.report("prefix", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
