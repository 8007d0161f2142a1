"""Single-stream decoding through the whole server, beside llama-server and llama-bench.

The streamed answer of a server that has just started, from its first token to its last; llama-bench has no server, no
sampling and no text. The client shares the machine's cores with the two that decode.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest, peers  # noqa: E402

N = 150
CLAIMS = (
    contest.Claim("tokens_per_s", "one stream, against llama-server", "tokens/s", ratio=1.0, more=True),
    contest.Claim("of_raw", "one stream, of llama-bench", "", more=True),
)


async def measure(server: client.Running) -> contest.Figures:
    asker = client.Client(server)
    _, first, last = await client.stream(server.port, client.COMPLETIONS, asker.body(asker.words(4), N))
    return {"tokens_per_s": (N - 1) / (last - first)}


def llama_bench(model: Path) -> float:
    line, _ = peers.run("llama-bench", "-m", model, "-t", client.CORES, "-p", 0, "-n", N, "-r", 1, "-fa", 1, "-o", "jsonl")
    return float(line["avg_ts"])


def main() -> None:
    arguments = contest.parse(__doc__, params="200M", rounds=5)
    serve = contest.contestants(1, 2048)
    serve = {name: serve[name] for name in (contest.OURS, "defaults")}
    before = llama_bench(arguments.model)
    figures = contest.contest(arguments.model, arguments.rounds, serve, measure)
    raw = (before + llama_bench(arguments.model)) / 2
    for of in figures.values():
        of["of_raw"] = of["tokens_per_s"] / raw
    contest.report("decode", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
