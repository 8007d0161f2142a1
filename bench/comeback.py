"""Claim: whoever returns to a conversation after eight others used the server pays for the last message only.

A conversation of 1000 tokens, eight others of 300, then the first again with 20 more: the prompt tokens that are
computed again, and the time that the first token of the answer takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

import time  # noqa: E402

from bench import client, contest  # noqa: E402

TALK, OTHERS, OTHER, MESSAGE = 1000, 8, 300, 20
CLAIMS = (
    contest.Claim("recomputed", f"return after 8 others, {MESSAGE} new tokens: computed again", "tokens", bound=MESSAGE + 1),
    contest.Claim("first_token_s", "the same: first token", "s"),
)


async def measure(server: client.Running) -> contest.Figures:
    asker = client.Client(server)
    talk = asker.words(TALK)
    await asker.usage(talk)
    for _ in range(OTHERS):
        await asker.usage(asker.words(OTHER))
    began = time.perf_counter()
    usage = await asker.usage(f"{talk} {asker.words(MESSAGE)}", 1)
    recomputed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    return {"recomputed": recomputed, "first_token_s": time.perf_counter() - began}


def main() -> None:
    arguments = contest.parse(__doc__, params="200M", rounds=2)
    figures = contest.contest(arguments.model, arguments.rounds, contest.contestants(4, 4096), measure)
    contest.report("comeback", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
