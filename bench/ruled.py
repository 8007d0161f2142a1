"""Claim: a JSON schema costs next to nothing of the speed: 8 streams with one have 0.95 of the tokens per second of 8 without.

Random weights know no JSON: nearly every likely token is forbidden, which is the worst that there is. Answers with and without
take turns on one server, greedy and at temperature 1 without a cut; the schema's lists are too long to end.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest  # noqa: E402

STREAMS, PROMPT, N = 8, 16, 60
PAIRS = 3
ROW: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 12},
        "kind": {"enum": ["circle", "square", "none of these"]},
        "size": {"type": "number", "minimum": 0, "maximum": 100},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,8}$"}, "maxItems": 3},
    },
    "required": ["name", "kind", "size", "tags"],
    "additionalProperties": False,
}
SCHEMA: Final = {"type": "array", "items": ROW, "minItems": 100}
CLAIMS = (
    contest.Claim("greedy", "8 streams with a schema, of those without, greedy", "", bound=0.95, more=True),
    contest.Claim("hot", "the same at temperature 1 without a cut", "", bound=0.95, more=True),
)


async def tokens_per_s(server: client.Running, bodies: list[dict[str, Any]]) -> float:
    began = time.perf_counter()
    answers = await asyncio.gather(*(client.whole(server.port, client.COMPLETIONS, body) for body in bodies))
    n = sum(int(answer["usage"]["completion_tokens"]) for answer in answers)
    assert n == N * len(bodies), "an answer ended"
    return n / (time.perf_counter() - began)


async def measure(server: client.Running) -> contest.Figures:
    asker = client.Client(server)
    figures: contest.Figures = {}
    for name, sampling in {"greedy": {}, "hot": {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}}.items():
        ratios = []
        for _ in range(PAIRS):
            plain = [{**asker.body(asker.words(PROMPT), N), **sampling} for _ in range(STREAMS)]
            ruled = [{**body, "json_schema": SCHEMA} for body in plain]
            without = await tokens_per_s(server, plain)
            ratios.append(await tokens_per_s(server, ruled) / without)
            print(name, json.dumps([round(without, 1), round(ratios[-1], 3)]), file=sys.stderr, flush=True)
        figures[name] = statistics.median(ratios)
    return figures


def main() -> None:
    arguments = contest.parse(__doc__, params="500M", rounds=1)
    serve = contest.contestants(STREAMS, 512)
    serve = {name: serve[name] for name in (contest.OURS, "unified")}
    contest.report("ruled", arguments.model, contest.contest(arguments.model, arguments.rounds, serve, measure), CLAIMS)


if __name__ == "__main__":
    main()
