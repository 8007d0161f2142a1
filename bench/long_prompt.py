"""Claim: a long prompt that arrives while streams run neither stops them nor those who come behind it.

4 streams run; 4000 tokens arrive, then 20. The longest gap in the streams from then on, the time to first token of the
short one, and, for what this costs, that of the long one.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest  # noqa: E402

STREAMS, LONG, SHORT = 4, 4000, 20
CLAIMS = (
    contest.Claim("gap_s", "4 streams, 4000 tokens arrive: longest gap", "s", bound=0.5),
    contest.Claim("short_s", "20 tokens behind them: first token", "s", bound=1.0),
    contest.Claim("long_s", "those 4000 tokens: first token", "s"),
)


class Listener:
    """Hears a stream until it is told to leave; `gap_s` is the longest silence while `counts`."""

    def __init__(self, asker: client.Client):
        self.asker, self.gap_s, self.leave, self.counts = asker, 0.0, False, False
        self.heard = asyncio.Event()

    async def listen(self) -> None:
        last = 0.0
        body = self.asker.body(self.asker.words(8), 3000)
        async for moment, _ in client.arrivals(self.asker.port, client.COMPLETIONS, body):
            if self.counts:
                self.gap_s = max(self.gap_s, moment - last)
            last = moment
            self.heard.set()
            if self.leave:
                return


async def measure(server: client.Running) -> contest.Figures:
    asker = client.Client(server)
    await asker.usage(asker.words(600))
    listeners = [Listener(asker) for _ in range(STREAMS)]
    streams = [asyncio.ensure_future(listener.listen()) for listener in listeners]
    for listener in listeners:
        await listener.heard.wait()
    await asyncio.sleep(0.3)
    for listener in listeners:
        listener.counts = True
    long = asyncio.ensure_future(asker.first_token_s(asker.words(LONG)))
    await asyncio.sleep(0.1)
    short_s = await asker.first_token_s(asker.words(SHORT))
    long_s = await long
    for listener in listeners:
        listener.leave = True
    await asyncio.gather(*streams)
    return {"gap_s": max(listener.gap_s for listener in listeners), "short_s": short_s, "long_s": long_s}


def main() -> None:
    arguments = contest.parse(__doc__, params="200M", rounds=2)
    serve = contest.contestants(8, 8192)
    del serve["defaults"]  # its four places are taken by the streams: what comes later waits for their last token
    figures = contest.contest(arguments.model, arguments.rounds, serve, measure)
    contest.report("long_prompt", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
