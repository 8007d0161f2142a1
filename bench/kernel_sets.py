"""Greedy answers of a portable build's sets of kernels: where two sets answer differently, is it a near tie?

Sets round differently. An answer of one may leave that of another only at a token that both had nearly as likely as the
next best: nearer than the sets differ where they agree. Prints one JSON object; exit code 1 if there is another difference.
Which sets run is a matter of the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from bench import client  # noqa: E402

SETS = {
    "x86_64": ("sse42", "haswell", "alderlake", "icelake", "zen4", "sapphirerapids"),
    "aarch64": ("armv8", "dotprod", "i8mm"),
}
N_LIKELY = 5
NEAR = 1.0
"""Times the largest difference of agreeing steps: what a tie may be apart."""


class Step(NamedTuple):
    token: str
    likely: dict[str, float]  # log probabilities of the best few


async def answers(server: client.Running, prompts: list[str], n_tokens: int) -> list[list[Step]]:
    told = []
    for prompt in prompts:
        body = {"model": server.model, "prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "logprobs": N_LIKELY}
        told.append((await client.whole(server.port, client.COMPLETIONS, body))["choices"][0]["logprobs"])
    return [[Step(*step) for step in zip(it["tokens"], it["top_logprobs"])] for it in told]


def run(kernels: str, model: Path, prompts: list[str], n_tokens: int, tree: Path | None) -> list[list[Step]]:
    os.environ["LMLITE_KERNELS"] = kernels
    with client.lmlite_server(model, "--threads", "1", tree=tree) as server:
        return asyncio.run(answers(server, prompts, n_tokens))


def named(kernels: str, tree: Path | None) -> str:
    """What the build computes with when it is told so."""
    code = "from lmlite.core.engine import native; print(native.build_info()['kernels'])"
    environ = {**os.environ, "LMLITE_KERNELS": kernels, **({} if tree is None else {"PYTHONPATH": str(tree)})}
    told = subprocess.run([sys.executable, "-c", code], env=environ, cwd=tree, check=True, capture_output=True, text=True)
    return told.stdout.strip()


def compare(ours: list[list[Step]], theirs: list[list[Step]]) -> dict[str, Any]:
    apart = 0.0  # of one token's log probability, where both sets had written the same
    ties: list[float] = []
    for mine, other in zip(ours, theirs):
        for a, b in zip(mine, other):
            both = a.likely.keys() & b.likely.keys()
            apart = max([apart, *(abs(a.likely[token] - b.likely[token]) for token in both)])
            if a.token != b.token:
                ties.append(abs(a.likely[a.token] - a.likely.get(b.token, -100.0)))
                break
    return {
        "answers": len(ours),
        "that_differ": len(ties),
        "widest_tie": round(max(ties, default=0.0), 5),
        "largest_difference_of_a_log_probability": round(apart, 5),
        "kept": all(tie <= NEAR * apart for tie in ties),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tree", type=Path, help="where the portable package lies, if it is not the one that is imported")
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    chance = random.Random(1)
    prompts = [" ".join(chance.choices(client.WORDS, k=chance.randint(2, 30))) for _ in range(arguments.answers)]
    sets = [name for name in SETS[os.uname().machine] if named(name, arguments.tree) == name]
    told = {name: run(name, arguments.model, prompts, arguments.tokens, arguments.tree) for name in sets}
    compared = {name: compare(told[sets[0]], told[name]) for name in sets[1:]}
    print(json.dumps({"beside": sets[0], **compared}, indent=1))
    sys.exit(not all(it["kept"] for it in compared.values()))


if __name__ == "__main__":
    main()
