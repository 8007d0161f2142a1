"""Claims: guesses that come true make an answer faster, guesses that do not cost little, many streams cost nothing.

Greedy text of these random weights repeats one word, so n-grams and a small model of the same vocabulary guess nearly all of
it: that is the most there is to gain. Text drawn at a high temperature cannot be guessed: that is what trying costs. Tokens
per second of one stream and of 8, beside llama-server without speculation and with its n-grams or its draft model; and of 8
beside the same server's without, in pairs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from bench import client, contest, peers  # noqa: E402
from bench.random_model import random_weights  # noqa: E402

STREAMS, CONTEXT, N = 8, 1024, 128
PAIRS = 7
KINDS = ("ngram", "draft")
HOPELESS = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
CLAIMS = (
    contest.Claim("ngram_1", "n-grams, one stream that repeats itself", "tokens/s", ratio=1.0, more=True),
    contest.Claim("draft_1", "a draft model a fifth in size, one stream that it guesses", "tokens/s", ratio=1.0, more=True),
    contest.Claim("ngram_8", "n-grams, 8 such streams", "tokens/s", ratio=0.95, more=True),
    contest.Claim("draft_8", "a draft model, 8 such streams", "tokens/s", ratio=0.95, more=True),
    contest.Claim("ngram_8_paired", "n-grams, 8 such streams", "of the same server without", bound=0.97, more=True),
    contest.Claim("draft_8_paired", "a draft model, 8 such streams", "of the same server without", bound=0.97, more=True),
    contest.Claim("hopeless_ngram_1", "n-grams, one stream of noise", "tokens/s", ratio=0.9, more=True),
    contest.Claim("hopeless_draft_1", "a draft model, one stream of noise", "tokens/s", ratio=0.9, more=True),
)


async def speed(asker: client.Client, streams: int, **wish: Any) -> float:
    bodies = [{**asker.body(asker.words(40), N // streams + 16), **wish} for _ in range(streams)]
    began = time.perf_counter()
    await asyncio.gather(*(client.whole(asker.port, client.COMPLETIONS, body) for body in bodies))
    return streams * (N // streams + 16) / (time.perf_counter() - began)


async def speeds(server: client.Running, kinds: tuple[str, ...], wishes: dict[str, dict[str, Any]]) -> contest.Figures:
    asker = client.Client(server)
    figures: contest.Figures = {}
    for kind in kinds:
        wish = wishes.get(kind, {})
        await speed(asker, 1, **wish)  # a draft model is attached by the first who names it
        figures[f"{kind}_1"] = await speed(asker, 1, **wish)
        figures[f"{kind}_{STREAMS}"] = await speed(asker, STREAMS, **wish)
        figures[f"hopeless_{kind}_1"] = await speed(asker, 1, **wish, **HOPELESS)
        if wish:
            pairs = [await speed(asker, STREAMS, **wish) / await speed(asker, STREAMS) for _ in range(PAIRS)]
            figures[f"{kind}_{STREAMS}_paired"] = statistics.median(pairs)
    return figures


class Contest:
    """Which kinds of speculation a server is measured for, by the contestant's name; one without any is for all."""

    def __init__(self, draft: Path):
        self.draft = draft
        self.kinds: tuple[str, ...] = KINDS
        self.wishes: dict[str, dict[str, Any]] = {}

    def serve(self) -> dict[str, contest.Serve]:
        room = ("-t", client.CORES, "-c", STREAMS * CONTEXT, "-np", STREAMS, "--kv-unified")
        drafts = (*room, "-md", self.draft, "--spec-type", "draft-simple")
        return {
            contest.OURS: self.ours,
            "plain": self.theirs(KINDS, *room),
            "ngram-simple": self.theirs(("ngram",), *room, "--spec-type", "ngram-simple"),
            "draft-simple": self.theirs(("draft",), *drafts),
            "draft-simple, 16 at once": self.theirs(("draft",), *drafts, "--spec-draft-n-max", 16),
        }

    @contextmanager
    def ours(self, model: Path) -> Iterator[client.Running]:
        flags = ("--parallel", str(STREAMS), "--context-length", str(CONTEXT))
        with tempfile.TemporaryDirectory() as home, client.serving(
            client.lmlite(model, self.draft, "--home", home, *flags)
        ) as server:
            server.model = asyncio.run(client.id_of(server.port, model))
            draft_id = asyncio.run(client.id_of(server.port, self.draft))
            self.kinds, self.wishes = KINDS, {"ngram": {"speculative": True}, "draft": {"draft_model": draft_id}}
            yield server

    def theirs(self, kinds: tuple[str, ...], *flags: object) -> contest.Serve:
        @contextmanager
        def serve(model: Path) -> Iterator[client.Running]:
            with peers.llama_server(model, *flags) as server:
                self.kinds, self.wishes = kinds, {}
                yield server

        return serve

    async def measure(self, server: client.Running) -> contest.Figures:
        return await speeds(server, self.kinds, self.wishes)


def main() -> None:
    arguments = contest.parse(__doc__, params="500M", rounds=2)
    target = random_weights(arguments.params, "target")
    entered = Contest(random_weights(arguments.params, "draft"))
    figures = contest.contest(target, arguments.rounds, entered.serve(), entered.measure)
    contest.report("speculative", target, figures, CLAIMS)


if __name__ == "__main__":
    main()
