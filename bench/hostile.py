"""Stress: thousands of hostile requests in random order, beside somebody's stream.

Broken HTTP, broken JSON, values out of their ranges, grammars and schemas built to hurt, prompts of megabytes, bombs in
gzip, clients that leave at any moment: a fixed set of kinds, drawn in an order that a seed gives. Before them each kind
is sent once, some are drawn, and every KV cell is written once, which settles allocators and caches: from there on the
server and its engine must stay the processes that they are and grow by no more than a tenth; a neighbour streams all the
while and must never wait for over half a second. Memory is read when it is quiet, three times, 500 requests apart, at the
beginning and at the end: Python gives arenas of a megabyte back whole or not at all, so one reading is 4 MB off. Every
kind gets the status that it should, every time. Prints one JSON object; exit code 1 if something of this is not so.

With `--media`, pictures or sounds that are broken, cut off, huge, bombs or something else are shown to a model that sees or
hears, in every dialect, between whole ones.

`python bench/hostile.py [--requests 5000] [--seed 1] [--clients 4] [--media pictures|sounds] [--isolation thread]`
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to stress

from bench import client  # noqa: E402
from lmlite.package import bundled_model, bundled_vision_model  # noqa: E402
from tests import media_files, media_models  # noqa: E402
from tests.test_hostile_requests import BASES, DIALECTS, HELLO, REFUSED, SERVED  # noqa: E402

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, NATIVE = "/v1/responses", "/v1/messages", "/api/v1/chat"
CONTEXT, KV_CELLS = 2048, 8192
FLAGS = ("--context-length", CONTEXT, "--kv-cells", KV_CELLS, "--parallel", 4, "--spill", 16)
GAP_MAX_S = 0.5
GROWTH = 0.10
SETTLE_S = 14.0
"""Server and engine look every five seconds whether it has become quiet, and give memory back then."""
LARGE_EVERY = 60
"""Of so many requests one has a body of many megabytes: more would measure the machine's memory bus."""
LARGE_BYTES = 4 << 20
MEGABYTES = 31
MOST_BODY = 32 << 20
PIECE = 256 << 10
"""Bytes that are written at once: a transport copies what it is given, and the neighbour is heard in the same loop."""
STREAM_TOKENS = 400
READINGS, BETWEEN = 3, 500
"""Of the memory, at the beginning and at the end, and the drawn requests before each; the median counts."""
WARM = READINGS * BETWEEN
USER = {"role": "user", "content": "Hi"}

Statuses = tuple[int, ...]
"""What a kind may be answered with; none of them: the connection may end without a word."""


@dataclass(slots=True, frozen=True)
class Kind:
    name: str
    raw: bytes
    statuses: Statuses
    leaves_after: float | None = None  # seconds until the client closes, whatever has come


def post(path: str, body: bytes, *headers: str, type: str = "application/json") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {type}", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "Connection: close", "", "")).encode() + body


def json_post(path: str, body: Any) -> bytes:
    return post(path, json.dumps(body).encode())


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {target} HTTP/1.1", *headers, "", "")).encode()


def http_kinds() -> Iterator[Kind]:
    host = "Host: localhost"
    for name, raw, status in (
        ("length and coding", post(CHAT, b"{}", "Transfer-Encoding: chunked"), 400),
        ("two lengths", post(CHAT, b"{}", "Content-Length: 2"), 400),
        ("a signed length", b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nhello", 400),
        ("an unknown coding", b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("a chunk of negative size", b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        ("a bare line feed", b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
        ("no host", get("/health"), 400),
        ("somebody's host", get("/health", "Host: evil.example"), 403),
        ("a foreign page", get("/health", host, "Origin: http://evil.example"), 403),
        ("a cross-site image", get("/health", host, "Sec-Fetch-Site: cross-site"), 403),
        ("a form", post(CHAT, b"{}", "Origin: http://localhost", type="text/plain"), 415),
        ("an encoding", post(CHAT, b"{}", "Content-Encoding: br"), 415),
        ("no gzip", post(CHAT, b"hello", "Content-Encoding: gzip"), 400),
        ("a bomb", post(CHAT, gzip.compress(bytes(64 << 20)), "Content-Encoding: gzip"), 413),
        ("a long target", get("/" + "x" * 100_000, host), 414),
        ("a long header", get("/health", host, "X: " + "y" * 100_000), 431),
        ("many headers", get("/health", host, *["X: y"] * 5000), 431),
        ("a way up", get("/../../etc/passwd", host), 400),
        ("an escaped way up", get("/%2e%2e%2f%2e%2e%2fetc/passwd", host), 400),
        ("a NUL", get("/v1/models/%00", host), 400),
        ("nowhere", get("/nowhere", host), 404),
        ("another method", b"PUT /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        ("a proxy's", b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        ("an announced flood", b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
        ("an expectation", post(CHAT, b"{}", "Expect: the unexpected"), 417),
        ("a TLS hello", bytes.fromhex("16030100f1010000ed0303") + bytes(200), 400),
        ("noise", bytes(range(256)) * 20, 400),
    ):
        yield Kind(name, raw, (status,))


def json_kinds() -> Iterator[Kind]:
    for name, body in (
        ("nothing", b""),
        ("a word", b"hello"),
        ("a tail", b"{} {}"),
        ("bytes", b'{"messages": "\xff\xfe"}'),
        ("UTF-16", '{"messages": []}'.encode("utf-16")),
        ("an array", b"[]"),
        ("no number", b'{"temperature": NaN}'),
        ("infinity", b'{"temperature": 1e999}'),
        ("digits", b'{"seed": ' + b"9" * 5000 + b"}"),
        ("brackets", b'{"messages":' + b"[" * 100_000),
        ("half a surrogate", b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    ):
        yield Kind(f"JSON: {name}", post(CHAT, body), (400,))


def value_kinds() -> Iterator[Kind]:
    for field_name, value in (
        ("max_tokens", -5), ("max_tokens", "2"), ("max_tokens", True), ("max_tokens", 10**11), ("n", 0), ("n", 10**6),
        ("temperature", -1), ("top_p", 2), ("min_p", -3), ("typical_p", -9), ("xtc_probability", 7), ("seed", 0.5),
        ("stop", 123), ("stop", ["x"] * 50_000), ("stream", "yes"), ("messages", []), ("messages", "Hi"),
        ("messages", [{"role": "god", "content": "x"}]), ("tools", {}), ("tool_choice", "f"), ("logit_bias", {"x": 1}),
        ("ttl", -5), ("top_logprobs", 99), ("chat_template_kwargs", {"messages": []}),
    ):  # fmt: skip
        yield Kind(f"{field_name}: {str(value)[:20]}", json_post(CHAT, {"messages": [USER], field_name: value}), (400,))
    for path, body, status in (
        (CHAT, {"model": "nobody", "messages": [USER]}, 404),
        (CHAT, {"model": "../../x", "messages": [USER]}, 404),
        (EMBED, {"input": "x", "model": "lmlite-tiny"}, 400),
        (EMBED, {"input": [], "model": "lmlite-tiny"}, 400),
        (TEXT, {"prompt": [10**9]}, 400),
        (TEXT, {"prompt": []}, 400),
        ("/v1/tokenize", {"content": 1}, 400),
        ("/v1/rerank", {"query": "x", "documents": [1]}, 400),
        ("/api/v1/models/load", {"model": "nobody"}, 404),
        ("/api/v1/models/load", {"model": "lmlite-tiny", "context_length": -1}, 400),
        ("/api/v1/models/unload", {"instance_id": "nobody"}, 404),
        ("/api/v0/chat/completions", {"messages": [USER], "top_k": "many"}, 400),
    ):
        yield Kind(f"{path} {json.dumps(body)[:50]}", json_post(path, body), (status,))


def engine_kinds() -> Iterator[Kind]:
    for refused, (name, change) in [(True, case) for case in REFUSED] + [(False, case) for case in SERVED]:
        for stream in (False, True):
            body = {**HELLO, "max_tokens": 4, **change, "stream": stream}
            yield Kind(f"{name}{', streamed' * stream}", json_post(CHAT, body), (400,) if refused else (200,))
    for policy in ("stopAtLimit", "truncateMiddle"):
        body = {"messages": [{"role": "user", "content": "word " * 5000}], "context_overflow_policy": policy, "max_tokens": 2}
        yield Kind(f"too long, {policy}", json_post(CHAT, body), (200, 400))


def dialect_kinds(large: bool) -> Iterator[Kind]:
    for name, path, change, statuses in DIALECTS:
        raw = json_post(path, {**BASES[path], **change})
        if (len(raw) > LARGE_BYTES) == large:
            yield Kind(f"{path}: {name}", raw, statuses)


def leaving_kinds() -> Iterator[Kind]:
    words = "one two three " * 300
    for path, body in {CHAT: {}, **BASES}.items():
        asked = {"input": words} if "input" in body else {"messages": [{"role": "user", "content": words}]}
        raw = json_post(path, {**body, **asked, "stream": True})
        yield Kind(f"{path}: leaves in the head", raw[:30], (), 0.0)
        yield Kind(f"{path}: leaves in the body", raw[:-10], (), 0.0)
        for wait_s in (0.0, 0.01, 0.05, 0.2):
            yield Kind(f"{path}: leaves after {wait_s} s", raw, (), wait_s)


def large_kinds() -> Iterator[Kind]:
    words = "word " * (MEGABYTES * 200_000)
    yield Kind("a prompt of megabytes", json_post(CHAT, {"messages": [{"role": "user", "content": words}]}), (400,))
    yield Kind("a text of megabytes", json_post(TEXT, {"prompt": words}), (400,))
    yield Kind("more than a body may have", json_post(TEXT, {"prompt": words + words}), (413, 0))  # a reset may be faster


def showing(file: media_files.MediaFile, model: str, turn: int) -> tuple[str, dict[str, Any]]:
    """A request about the file; each turn is another dialect's."""
    data = base64.b64encode(file.data).decode()
    limit = {"model": model, "max_tokens": 4}
    if file.kind == "audio":
        parts = [
            {"type": "text", "text": "What is it?"},
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        ]
        return CHAT, {**limit, "messages": [{"role": "user", "content": parts}]}
    url = f"data:image/png;base64,{data}"
    match turn % 4:
        case 0:
            content: list[Any] = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
            return CHAT, {**limit, "messages": [{"role": "user", "content": content}]}
        case 1:
            content = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": url}]
            return RESPONSES, {
                "model": model,
                "max_output_tokens": 4,
                "store": False,
                "input": [{"role": "user", "content": content}],
            }
        case 2:
            source = {"type": "base64", "media_type": "image/png", "data": data}
            content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
            return MESSAGES, {**limit, "messages": [{"role": "user", "content": content}]}
        case _:
            content = [{"type": "text", "content": "What is it?"}, {"type": "image", "data_url": url}]
            return NATIVE, {"model": model, "max_output_tokens": 4, "store": False, "input": content}


def media_kinds(media: str, model: str) -> Iterator[Kind]:
    kind = "audio" if media == "sounds" else "image"
    whole = [file for file in media_files.whole().values() if file.kind == kind]
    for turn, file in enumerate(file for file in media_files.hostile() if file.kind == kind):
        raw = json_post(*showing(file, model, turn))
        yield Kind(file.name, raw, (400, 413, 0) if len(raw) > MOST_BODY else (400,))
    for turn in range(4 * len(whole)):
        file = whole[turn // 4]
        yield Kind(f"a whole {file.name}, {turn % 4}", json_post(*showing(file, model, turn)), (200,))


# ---- sending them ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Findings:
    answered: Counter[int] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    beside: list[str] = field(default_factory=list)  # what ran at the end of the longest gap
    streams: int = 0
    tokens: int = 0


async def send(port: int, kind: Kind) -> int:
    """The status of the answer; 0 if there was none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if kind.leaves_after is not None:
            writer.write(kind.raw)
            await asyncio.sleep(kind.leaves_after)
            return 0
        answer = asyncio.ensure_future(reader.readline())
        try:
            for begin in range(0, len(kind.raw), PIECE):
                writer.write(kind.raw[begin : begin + PIECE])
                await asyncio.wait_for(writer.drain(), 60)
        except ConnectionError:
            pass  # answered before all was sent
        line = await asyncio.wait_for(answer, 60)
        while await asyncio.wait_for(reader.read(1 << 16), 60):
            if kind.raw.startswith(b"GET") or b"Connection: close" not in kind.raw[:1000]:
                break
        return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
    except ConnectionError:
        return 0
    finally:
        writer.transport.abort() if kind.leaves_after is None else writer.close()


async def work(port: int, plan: Iterator[Kind], found: Findings) -> None:
    for kind in plan:
        found.running[kind.name] += 1
        status = await send(port, kind)
        found.running[kind.name] -= 1
        found.answered[status] += 1
        if kind.leaves_after is None and status not in kind.statuses:
            found.wrong[f"{kind.name}: {status}, not {kind.statuses}"] += 1


async def neighbour(port: int, model: str, found: Findings, over: asyncio.Event) -> None:
    """Streams one answer after the other until it is over; what counts is the time between two pieces, the first excepted."""
    wish = {"max_tokens": STREAM_TOKENS, "ignore_eos": True, "stream": True}
    body = {"model": model, "prompt": "Once upon a time", **wish}
    while not over.is_set():
        last = None
        async for arrived, events in client.arrivals(port, TEXT, body):
            if last is not None and arrived - last > found.longest_s:
                found.longest_s = arrived - last
                found.beside = [name for name, n in found.running.items() if n]
            last = arrived
            found.tokens += events
        found.streams += 1


def plans_of(seed: int, n: int, media: str | None, model: str) -> tuple[list[Kind], list[Kind]]:
    """Each kind once and `WARM` drawn ones; `n` drawn ones."""
    if media:
        every = rare = list(media_kinds(media, model))
        ordinary = [kind for kind in every if len(kind.raw) < LARGE_BYTES]
    else:
        light = (http_kinds(), json_kinds(), value_kinds(), engine_kinds(), dialect_kinds(large=False), leaving_kinds())
        ordinary, rare = list(chain(*light)), [*large_kinds(), *dialect_kinds(large=True)]
        every = [*ordinary, *rare]
    draw = random.Random(seed)
    each = draw.sample(every, len(every))
    drawn = [draw.choice(rare if i % LARGE_EVERY == LARGE_EVERY - 1 else ordinary) for i in range(WARM + n)]
    return [*each, *drawn[:WARM]], drawn[WARM:]


async def touch_cells(port: int, model: str) -> None:
    """Prompts of a context each that share nothing, twice as many as there are cells for: with them, what is spilled."""
    for i in range(0, 2 * KV_CELLS // CONTEXT, 4):
        prompts = [[100 + (k * (7 + j) + j) % 1000 for k in range(CONTEXT - 8)] for j in range(i, i + 4)]
        wish = {"model": model, "max_tokens": 4, "ignore_eos": True}
        await asyncio.gather(*(client.whole(port, TEXT, {"prompt": prompt, **wish}) for prompt in prompts))


async def settled(server: client.Running) -> dict[int, float]:
    """MB of each process, once they fall no more: connections that were left are closed, free memory is given back."""
    lowest: dict[int, float] = {}
    end = time.perf_counter() + SETTLE_S
    while time.perf_counter() < end:
        await asyncio.sleep(1)
        held = {pid: client.rss_mb(pid) for pid in (server.pid, *server.children)}
        lowest = {pid: min(mb, lowest.get(pid, mb)) for pid, mb in held.items()}
    return lowest


async def run(
    server: client.Running, each: list[Kind], plan: list[Kind], n_clients: int
) -> tuple[Findings, dict[int, float], dict[int, float]]:
    found = Findings()

    async def part(kinds: list[Kind]) -> dict[int, float]:
        shared, over = iter(kinds), asyncio.Event()
        beside = asyncio.ensure_future(neighbour(server.port, server.model, found, over))
        await asyncio.gather(*(work(server.port, shared, found) for _ in range(n_clients)))
        over.set()
        await beside
        return await settled(server)

    async def median_of_parts(kinds: list[Kind]) -> dict[int, float]:
        """Of the readings, the first of them after all but the last so and so many."""
        ends = [len(kinds) - BETWEEN * left for left in reversed(range(READINGS))]
        readings = [await part(kinds[begin:end]) for begin, end in pairwise((0, *map(partial(max, 0), ends)))]
        return {pid: median(held.get(pid, inf) for held in readings) for pid in readings[-1]}

    await touch_cells(server.port, server.model)
    before = await median_of_parts(each)
    return found, before, await median_of_parts(plan)


def model_for(media: str | None, folder: Path) -> Path:
    if media == "pictures":
        return bundled_vision_model()
    if media == "sounds":
        media_models.write_ultravox(folder / "mmproj-listener.gguf")
        return Path(shutil.copy(bundled_model(), folder / "listener.gguf"))
    return bundled_model()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--media", choices=("pictures", "sounds"))
    parser.add_argument("--isolation", choices=("process", "thread"), default="process")
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = model_for(arguments.media, Path(folder))
        with client.lmlite_server(model, *FLAGS, "--isolation", arguments.isolation) as server:
            each, plan = plans_of(arguments.seed, arguments.requests, arguments.media, server.model)
            found, before, after = asyncio.run(run(server, each, plan, arguments.clients))
    broken = [f"{kind} ({n} times)" for kind, n in found.wrong.most_common()]
    if before.keys() != after.keys():
        broken.append(f"processes {sorted(before)} became {sorted(after)}")
    broken += [
        f"process {pid} grew from {before[pid]:.1f} to {after[pid]:.1f} MB"
        for pid in before.keys() & after.keys()
        if after[pid] > before[pid] * (1 + GROWTH)
    ]
    if found.longest_s > GAP_MAX_S or not found.tokens:
        broken.append(f"the neighbour waited for {found.longest_s:.2f} s beside {', '.join(found.beside)}")
    result = {
        "bench": "hostile",
        "media": arguments.media,
        "isolation": arguments.isolation,
        "requests": len(each) + len(plan),
        "kinds": len(each) - WARM,
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "statuses": dict(sorted(found.answered.items())),
        "memory_mb": [[round(held[pid], 1) for pid in sorted(held)] for held in (before, after)],
        "neighbour": {"streams": found.streams, "events": found.tokens, "longest_gap_s": round(found.longest_s, 3)},
        "broken": broken,
    }
    print(json.dumps(result, indent=1))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
