"""Stress: hundreds of random chats at once, in random order, against a server whose cache has room for one context.

No answer may be wrong: each greedy one is what a fresh engine says to the same alone, or parts from it where two tokens
were all but equally likely; schemas and tools are kept. Nothing may be lost: at the end one answer takes each cell of the
cache, and the server and its engine hold as many descriptors and threads as after the first fifth, and hardly more memory.
Prints one JSON object; exit code 1 and the request, as it was sent, of the first answer that is wrong.

`python bench/soak.py [--chats 500] [--seed 1] [--clients 8]`; the same seed draws the same chats.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client  # noqa: E402
from lmlite.package import bundled_model  # noqa: E402
from tests import chats  # noqa: E402

GROWTH_KB = 8192
"""What either process may grow by after its first fifth: allocators and the cache of idle sequences' tokens settle late."""
FLAGS = tuple(
    part
    for name, value in chats.SERVER.items()
    for part in ("--" + name.replace("_", "-"), *(() if value is True else (str(value),)))
)


def settle(server: client.Running, baseline: dict[int, dict[str, int]] | None) -> dict[int, dict[str, int]]:
    """What each process holds; connections that clients left take a moment to be closed."""
    for _ in range(100):
        held = {pid: chats.holdings(pid) for pid in (server.pid, *server.children)}
        if baseline is not None and all(held[pid]["descriptors"] <= of["descriptors"] for pid, of in baseline.items()):
            break
        time.sleep(0.05)
    return held


def leaks(before: dict[int, dict[str, int]], after: dict[int, dict[str, int]]) -> list[str]:
    if before.keys() != after.keys():
        return [f"processes: {sorted(before)} became {sorted(after)}"]
    allowed = {"descriptors": 0, "threads": 0, "resident_kb": GROWTH_KB}
    return [
        f"{name} of process {pid}: {before[pid][name]} became {after[pid][name]}"
        for pid in before
        for name, growth in allowed.items()
        if after[pid][name] > before[pid][name] + growth
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with client.lmlite_server(bundled_model(), *FLAGS) as server:
        tools = chats.accepts_tools(server.port)
        plans = list(islice(chats.Plans(arguments.seed, tools), arguments.chats))
        first = len(plans) // 5
        began = time.perf_counter()
        answers = chats.talk_all(server.port, plans[:first], arguments.clients)
        before = settle(server, None)
        answers += chats.talk_all(server.port, plans[first:], arguments.clients)
        seconds = time.perf_counter() - began
        chats.fill_the_context(server.port)
        after = settle(server, before)
    result = {
        "bench": "soak",
        "chats": len(plans),
        "tools": tools,
        "left_early": sum(heard.finish_reason is None for heard in answers),
        "tool_calls": sum(len(heard.calls) for heard in answers),
        "seconds": round(seconds, 1),
        "held": {name: [list(of.values()) for of in held.values()] for name, held in (("early", before), ("late", after))},
        "leaks": leaks(before, after),
    }
    tied = 0
    for plan, heard in zip(plans, answers):
        verdict = chats.judge(plan, heard)
        tied += verdict.tied
        if verdict.wrong is not None:
            print(f"chat {plan.index} of seed {arguments.seed}: {verdict.wrong}\n{chats.spelled(plan)}")
            print(json.dumps({**result, "wrong": plan.index}, indent=1))
            return 1
    print(json.dumps({**result, "wrong": None, "near_ties": tied}, indent=1))
    return 1 if result["leaks"] else 0


if __name__ == "__main__":
    sys.exit(main())
