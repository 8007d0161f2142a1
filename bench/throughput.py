"""Claim: 8 streams at once decode as fast as llama-batched-bench, which has no server, no sampling and no text.

Greedy answers to short prompts, while all of them run: from the moment that each has a token to the moment that the first
has its last. The model is large enough that a step is what counts: with a small one this would measure the client, which
shares the machine's cores.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest, peers  # noqa: E402

STREAMS, PROMPT, N = 8, 16, 100
CLAIMS = (
    contest.Claim("tokens_per_s", "8 streams together", "tokens/s", more=True),
    contest.Claim("of_raw", "the same, of llama-batched-bench", "", bound=0.97, ratio=1.0, more=True),
)


async def measure(server: client.Running, model: Path) -> contest.Figures:
    """Beside the yardstick's mean of the minutes before and after, because machines drift."""
    before = raw(model)
    asker = client.Client(server)
    bodies = [asker.body(asker.words(PROMPT), N) for _ in range(STREAMS)]
    heard = await asyncio.gather(*(moments(server.port, body) for body in bodies))
    began, ended = max(seen[0] for seen in heard), min(seen[-1] for seen in heard)
    rate = sum(began < moment <= ended for seen in heard for moment in seen) / (ended - began)
    return {"tokens_per_s": rate, "of_raw": rate / ((before + raw(model)) / 2)}


async def moments(port: int, body: dict[str, Any]) -> list[float]:
    """When each token of a streamed answer came; a step takes so long that no two share an event."""
    return [moment async for moment, _ in client.arrivals(port, client.COMPLETIONS, body)]


def raw(model: Path) -> float:
    return peers.batched_bench(model, STREAMS, PROMPT, N, client.CORES)[0]


def main() -> None:
    arguments = contest.parse(__doc__, params="500M", rounds=4)
    serve = contest.contestants(STREAMS, 512)
    del serve["defaults"]  # its four places never have eight streams at once
    figures = contest.contest(arguments.model, arguments.rounds, serve, partial(measure, model=arguments.model))
    contest.report("throughput", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
