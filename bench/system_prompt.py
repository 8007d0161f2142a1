"""Claim: the second conversation under a long system prompt pays for its own words only, whatever the model's memory is like.

Three conversations in turn with one new system prompt of 1500 tokens and a message of 20 each: the time to the only token of
each answer, for a model with sliding windows and for a hybrid one.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

import time  # noqa: E402

from bench import client, contest  # noqa: E402
from bench.random_model import Memory, random_weights  # noqa: E402

CHAT = "/v1/chat/completions"
SYSTEM, MESSAGE = 1500, 20
WHICH = ("first", "second", "third")
KINDS: dict[Memory, str] = {"window": "sliding windows", "hybrid": "a hybrid model"}


def claims(memory: Memory) -> tuple[contest.Claim, ...]:
    text = f"{KINDS[memory]}, one system prompt of {SYSTEM} tokens"
    return (
        contest.Claim("first", f"{text}: first answer", "s", ratio=1.03),
        contest.Claim("second", f"{text}: second", "s", ratio=1.1),
        contest.Claim("third", f"{text}: third", "s", ratio=1.1),
    )


async def measure(server: client.Running) -> contest.Figures:
    asker = client.Client(server)
    await say(asker, asker.words(20), asker.words(MESSAGE))
    system = asker.words(SYSTEM)
    return {which: await say(asker, system, asker.words(MESSAGE)) for which in WHICH}


async def say(asker: client.Client, system: str, message: str) -> float:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": message}]
    began = time.perf_counter()
    await client.whole(asker.port, CHAT, {"model": asker.model, "messages": messages, "max_tokens": 1})
    return time.perf_counter() - began


def main() -> None:
    arguments = contest.parse(__doc__, params="200M", rounds=2)
    for memory in KINDS:
        model = random_weights(arguments.params, memory=memory)
        figures = contest.contest(model, arguments.rounds, contest.contestants(4, 4096), measure)
        contest.report("system_prompt", model, figures, claims(memory))


if __name__ == "__main__":
    main()
