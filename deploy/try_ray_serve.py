"""Shows that ray_serve.py does what ray_serve.md says, on this machine alone: conversations of five turns whose clients send
the whole history through two replicas, one of them killed in the fourth turn; two models, a client that leaves, and more
streams than one replica should have.

    python deploy/try_ray_serve.py [--conversations 200]

The kill costs streams of its replica alone; a later turn on a replica that stays finds in the cache what it shares with the
turn before; a conversation that moves misses once. Prints JSON; exit code 1 if not so.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join((str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
sys.path.append(str(HERE.parent))

import ray  # noqa: E402
from conversations import KILL_TURN, Conversation, drive, free_port, report  # noqa: E402
from ray import serve  # noqa: E402
from ray_serve import build  # noqa: E402

TOGETHER = 12
"""Streams, of which a replica should have two."""
MODELS = ("lmlite-tiny", "lmlite-tiny-vision")


@contextmanager
def cluster(port: int):
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def run(**arguments: Any) -> None:
    serve.run(build(arguments), name="lmlite", route_prefix="/")


def asked(port: int, path: str, body: dict[str, Any] | None = None, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    text = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, text, {"Content-Type": "application/json", **headers})
    return connection.getresponse()


def kill_one(conversations: list[Conversation], killed: list[str]) -> None:
    """A replica's name ends in its process's id. The engine of one that is killed ends with it."""
    killed.append(conversations[0].node)
    os.kill(int(killed[0].rpartition(".")[2]), signal.SIGKILL)


def long_stream(words: str, tokens: int) -> dict[str, Any]:
    return {
        "model": "lmlite-tiny",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }


def leave(port: int) -> float:
    """A client leaves in mid-stream. What its engine still works on two seconds later."""
    named = {"X-Conversation-Id": "of one that leaves"}
    answer = asked(port, "/v1/chat/completions", long_stream("Hello!", 3000), **named)
    assert answer.status == 200 and answer.read(200)
    answer.close()
    time.sleep(2)
    told = asked(port, "/metrics", **named).read().decode()
    return sum(float(value) for value in re.findall(r"^lmlite_requests_running\S* (\S+)$", told, re.MULTILINE))


def pieces(port: int) -> int:
    """In how many pieces, apart in time, a stream comes."""
    answer, times = asked(port, "/v1/chat/completions", long_stream("Once", 200)), []
    while answer.read1(1 << 16):
        times.append(time.perf_counter())
    return len(times)


def crowd(port: int) -> int:
    """More streams than a replica should have, until there are more replicas; how many there are then."""
    most, end = 1, time.monotonic() + 90

    def one(place: int) -> None:
        while time.monotonic() < end and most < 2:
            asked(port, "/v1/chat/completions", long_stream(f"Once {place}", 1000)).read()

    with ThreadPoolExecutor(TOGETHER) as executor:
        for place in range(TOGETHER):
            executor.submit(one, place)
        while time.monotonic() < end and most < 2:
            time.sleep(0.5)
            states = serve.status().applications["lmlite"].deployments["model-0"].replica_states
            most = max(most, sum(n for state, n in states.items() if str(getattr(state, "value", state)) == "RUNNING"))
    return most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=200)
    arguments = parser.parse_args()
    port, killed = free_port(), list[str]()
    options = {"kv_cells": 65536}
    with cluster(port):
        run(replicas=[2, 2], models={"lmlite-tiny": options})
        course = drive(
            port, arguments.conversations, {KILL_TURN: lambda there: kill_one(there, killed)}, ("lmlite-tiny",)
        )
        kept = report("ray serve, two replicas", course.figures(killed[0]))
        run(replicas=[1, 3], streams=2, upscale_delay_s=1, models={name: options for name in MODELS})
        both = drive(port, 10, {}, MODELS)
        nodes = Counter((conversation.node, i % 2) for i, conversation in enumerate(both.conversations))
        figures = {
            "replicas of two models": len(nodes),
            "models listed": [item["id"] for item in json.loads(asked(port, "/v1/models").read())["data"]],
            "found what they share": sum(found.hit for found in both.seen) / len(both.seen),
            "pieces of a stream": pieces(port),
            "running after its client left": leave(port),
            f"replicas for {TOGETHER} streams": crowd(port),
        }
    print(json.dumps({"bench": "ray serve, two models", "figures": figures}, indent=1))
    kept = kept and figures["replicas of two models"] >= 2 and set(MODELS) <= set(figures["models listed"])
    kept = kept and figures["pieces of a stream"] > 10 and figures["running after its client left"] == 0
    return int(not (kept and figures[f"replicas for {TOGETHER} streams"] > 1))


if __name__ == "__main__":
    sys.exit(main())
