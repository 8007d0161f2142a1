"""Claim: what is cached for one token's owner tells nothing to another's; within a group it is shared.

A neighbour asks for a new prompt each time; then a stranger, another one each time, asks for that very one or for one that
nobody has asked for, as chance decides, 200 times each. The engine must say of none that anything was cached, and the times to
the first token must not tell the one kind from the other (Mann-Whitney, two-sided, p > 0.01). The neighbour's housemate asks,
too, now and then: that one must find the prompt.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest  # noqa: E402
from lmlite.principal import RIGHTS, Principal  # noqa: E402
from lmlite.store.database import Database  # noqa: E402
from lmlite.store.home import Home  # noqa: E402
from lmlite.store.tokens import TokenTable  # noqa: E402

PROBES = 200
WARM_UP = 20
WORDS = 150
HOUSEMATE_EVERY = 10
P_MIN = 0.01


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided p of the hypothesis that the two are alike, by the normal approximation with ties."""
    ordered = sorted([(value, 0) for value in a] + [(value, 1) for value in b])
    rank_sum, ties, place = 0.0, 0, 0
    while place < len(ordered):
        end = place
        while end < len(ordered) and ordered[end][0] == ordered[place][0]:
            end += 1
        rank_sum += sum(kind == 0 for _, kind in ordered[place:end]) * (place + 1 + end) / 2
        ties += (end - place) ** 3 - (end - place)
        place = end
    n, m = len(a), len(b)
    variance = n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1)))
    z = (abs(rank_sum - n * (n + 1) / 2 - n * m / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(max(z, 0.0) / math.sqrt(2))


class Caller:
    """One token's owner, on a connection of its own."""

    def __init__(self, port: int, token: str):
        self._port, self.token = port, token

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[dict[str, Any], float]:
        """The answer, and the seconds that it took."""
        head, _, rest = client.request(path, body).partition(b"\r\n")
        question = head + b"\r\nAuthorization: Bearer " + self.token.encode() + b"\r\n" + rest
        began = time.perf_counter()
        self._writer.write(question)
        told = await self._reader.readuntil(b"\r\n\r\n")
        raw = await self._reader.readexactly(int(told.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        taken_s = time.perf_counter() - began
        answer = json.loads(raw)
        if b" 200 " not in told.split(b"\r\n")[0] + b" ":
            raise RuntimeError(f"{path}: {answer}")
        return answer, taken_s

    async def probe(self, model: str, prompt: str) -> tuple[int, float]:
        """How many tokens were cached, and the seconds to the first token, which is the only one."""
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        answer, taken_s = await self.ask(client.COMPLETIONS, body)
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"]), taken_s


async def measure(port: int, tokens: dict[str, str], strangers: Sequence[str], path: Path) -> dict[str, Any]:
    callers = {name: Caller(port, token) for name, token in tokens.items()}
    for caller in callers.values():
        await caller.open()
    listed = (await callers["neighbour"].ask("/v1/models"))[0]["data"]
    model = next(entry["id"] for entry in listed if entry["id"].removesuffix("-q8_0") in path.stem.lower())
    chance = random.Random(1)
    kinds = ["cached"] * PROBES + ["new"] * PROBES
    chance.shuffle(kinds)
    times: dict[str, list[float]] = {"cached": [], "new": []}
    strangers_cached = 0
    shared: list[tuple[int, float]] = []
    for place, kind in enumerate([*kinds[:WARM_UP], *kinds]):
        callers["stranger"].token = strangers[place]
        asked, other = (" ".join(chance.choices(client.WORDS, k=WORDS)) for _ in range(2))
        await callers["neighbour"].probe(model, asked)
        n_cached, taken_s = await callers["stranger"].probe(model, asked if kind == "cached" else other)
        if place >= WARM_UP:
            times[kind].append(taken_s)
            strangers_cached = max(strangers_cached, n_cached)
        if place % HOUSEMATE_EVERY == 0:
            shared.append(await callers["housemate"].probe(model, asked))
    found = {f"{kind}_median_ms": statistics.median(taken) * 1e3 for kind, taken in times.items()}
    found["housemate_median_ms"] = statistics.median(taken_s for _, taken_s in shared) * 1e3
    found["p"] = mann_whitney(times["cached"], times["new"])
    return {**found, "strangers_cached_tokens": strangers_cached, "housemates_cached_tokens": min(n for n, _ in shared)}


def main() -> None:
    arguments = contest.parse(__doc__, params=None, rounds=1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        database = Database(Home(home).state)
        table = TokenTable(database)
        scopes = {"neighbour": "group house", "housemate": "group house", "stranger": "token stranger"}
        scopes |= {f"stranger {n}": f"token stranger {n}" for n in range(WARM_UP + 2 * PROBES)}
        made = {
            name: table.create(Principal(name, scope, frozenset(RIGHTS)), time.time(), None)
            for name, scope in scopes.items()
        }
        tokens, strangers = dict(list(made.items())[:3]), list(made.values())[3:]
        database.close()
        rounds = []
        for _ in range(arguments.rounds):
            with client.serving(client.lmlite(arguments.model, "--home", home, "--auth", "--log-level", "warning")) as server:
                rounds.append(asyncio.run(measure(server.port, tokens, strangers, arguments.model)))
    kept = all(
        one["p"] > P_MIN and one["strangers_cached_tokens"] == 0 and one["housemates_cached_tokens"] > WORDS
        for one in rounds
    )
    print(json.dumps({"bench": "scopes", "model": arguments.model.name, "rounds": rounds, "kept": kept}, indent=1))
    sys.exit(not kept)


if __name__ == "__main__":
    main()
