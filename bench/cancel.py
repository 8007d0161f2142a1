"""Claim: a client that leaves in the middle of a 16,000-token prefill frees its place within half a second.

One place (`--parallel 1`): a long prompt is being processed, its client closes the connection, and at that moment
another client asks with four words. Its time to first token is what the place took to become free, and its own short
prefill. 20 times, each at a random moment of the prefill; every single one counts, not the median.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

import random  # noqa: E402

from bench import client, contest, peers  # noqa: E402

LONG, TIMES, PEER_TIMES = 16_000, 20, 5
CLAIMS = (
    contest.Claim("worst_s", f"a client leaves a 16k prefill: the next one's first token, worst of {TIMES}", "s", bound=0.5),
)


async def measure(server: client.Running) -> contest.Figures:
    asker = client.Client(server)
    moments = random.Random(1)
    waited = []
    for _ in range(TIMES if server.model != peers.MODEL else PEER_TIMES):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(client.request(client.COMPLETIONS, {**asker.body(asker.words(LONG), 4), "stream": True}))
        await writer.drain()
        await asyncio.sleep(moments.uniform(0.3, 2.0))
        assert not reader.at_eof()
        writer.close()
        waited.append(await asker.first_token_s(asker.words(4)))
    return {"worst_s": max(waited), "times": len(waited), "within_half_a_second": sum(s <= 0.5 for s in waited)}


def main() -> None:
    arguments = contest.parse(__doc__, params="200M", rounds=1)
    figures = contest.contest(arguments.model, arguments.rounds, contest.contestants(1, 20_480), measure)
    contest.report("cancel", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
