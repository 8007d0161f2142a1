"""Measures lmlite and llama-server in turns, in one run on one machine, and holds the outcome against what is claimed.

A bench is a coroutine that takes a running server and returns figures by name, and the claims about them. It prints one
JSON object, then one table line per claim. A ratio is lmlite's figure over that of llama-server's better setting, each
the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import client, peers
from bench.random_model import SHAPES, random_weights
from lmlite.package import bundled_model

Figures = dict[str, float]
Serve = Callable[[Path], AbstractContextManager[client.Running]]
OURS = "lmlite"


@dataclass
class Claim:
    """`figure` of lmlite, or its ratio to the peers' best, is at most (or with `more`, at least) `bound`."""

    figure: str
    text: str
    unit: str
    bound: float | None = None
    ratio: float | None = None
    more: bool = False

    def best(self, values: Sequence[float]) -> float:
        return max(values) if self.more else min(values)

    def keeps(self, value: float, bound: float) -> bool:
        return value >= bound if self.more else value <= bound


def contestants(parallel: int, context: int) -> dict[str, Serve]:
    """`context` tokens per request; the peers have room for as many as run at once."""
    room = ("-t", client.CORES, "-c", parallel * context)
    unified = (*room, "-np", parallel, "--kv-unified")
    return {
        OURS: lambda model: client.lmlite_server(model, "--parallel", parallel, "--context-length", context),
        "defaults": lambda model: peers.llama_server(model, *room),
        "unified": lambda model: peers.llama_server(model, *unified),
        "unified, small batches": lambda model: peers.llama_server(model, *unified, "-b", 128, "-ub", 128),
    }


def parse(doc: str | None, params: str | None, rounds: int) -> argparse.Namespace:
    """`params` None: the bundled model instead of random weights."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--model", type=Path, help="a GGUF file in place of the bench's own")
    parser.add_argument("--params", choices=SHAPES, default=params, help="the size of random weights")
    parser.add_argument("--rounds", type=int, default=rounds)
    arguments = parser.parse_args()
    if arguments.model is None:
        arguments.model = random_weights(arguments.params) if arguments.params else bundled_model()
    return arguments


def contest(
    model: Path, rounds: int, serve: Mapping[str, Serve], measure: Callable[[client.Running], Awaitable[Figures]]
) -> dict[str, Figures]:
    """The medians of each contestant; every round starts each server anew."""
    seen: dict[str, list[Figures]] = {name: [] for name in serve}
    for _ in range(rounds):
        for name, start in serve.items():
            with start(model) as server:
                seen[name].append(asyncio.run(as_coroutine(measure(server))))
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in seen.items()}


async def as_coroutine(work: Awaitable[Figures]) -> Figures:
    return await work


# ---- the outcome -----------------------------------------------------------------------------------------------------


def report(bench: str, model: Path, figures: Mapping[str, Figures], claims: Sequence[Claim]) -> None:
    judged = [judge(claim, figures) for claim in claims]
    print(json.dumps({"bench": bench, "model": model.name, "figures": figures, "claims": judged}, indent=1))
    for claim, outcome in zip(claims, judged):
        print(table_line(claim, outcome))


def judge(claim: Claim, figures: Mapping[str, Figures]) -> dict[str, Any]:
    ours = figures[OURS][claim.figure]
    theirs = {name: of[claim.figure] for name, of in figures.items() if name != OURS and claim.figure in of}
    best = claim.best(list(theirs.values())) if theirs else None
    name = next((name for name, value in theirs.items() if value == best), None)
    ratio = ours / best if best else None
    kept = claim.bound is None or claim.keeps(ours, claim.bound)
    if claim.ratio is not None:
        kept = kept and ratio is not None and claim.keeps(ratio, claim.ratio)
    return {"claim": claim.text, "lmlite": ours, "peers": theirs, "best": name, "ratio": ratio, "kept": kept}


def table_line(claim: Claim, outcome: Mapping[str, Any]) -> str:
    sign = ">=" if claim.more else "<="
    wanted = [f"ratio {sign} {claim.ratio}"] if claim.ratio is not None else []
    wanted += [f"{sign} {claim.bound} {claim.unit}"] if claim.bound is not None else []
    theirs = ", ".join(f"{value:.3g} ({name})" for name, value in outcome["peers"].items())
    ratio = "" if outcome["ratio"] is None else f"{outcome['ratio']:.2f}"
    cells = (f"{claim.text}, {claim.unit}", f"{outcome['lmlite']:.3g}", theirs, ratio, " and ".join(wanted))
    return f"| {' | '.join(cells)} | {'yes' if outcome['kept'] else 'NO'} |"
