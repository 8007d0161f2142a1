"""Claim: a picture that arrives while streams run stops none of them, and is answered hardly later for it.

Four streams run; a picture that nobody has seen arrives, for a tower of 42 million weights. Until its answer: the longest gap
in the streams and what each keeps of its speed; and how long the answer takes, beside what it takes of an idle server.
"""

from __future__ import annotations

import asyncio
import base64
import random
import statistics
import struct
import sys
import tempfile
import time
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import gguf

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest, peers  # noqa: E402
from tests.media_models import write_mlp  # noqa: E402

STREAMS, SIDE = 4, 1024
ANSWERS = 3  # of an idle server, and beside the streams; of both their median counts, since a machine has its moods
CONTEXT = 8192  # of each stream, which must not end before the picture is answered
CHAT = "/v1/chat/completions"
CLAIMS = (
    contest.Claim("gap_s", "4 streams, a picture arrives: longest gap", "s", bound=0.5),
    contest.Claim("kept", "the slowest stream's speed meanwhile, of its own before", "", bound=0.4, more=True),
    contest.Claim("slower", "the answer's time, of that of an idle server", "times", bound=2.0),
    contest.Claim("answer_s", "the answer's time", "s"),
)


def noise(seed: int) -> bytes:
    """A picture that does not compress, and another one for each seed."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    drawn = random.Random(seed)
    rows = b"".join(b"\0" + drawn.randbytes(SIDE * 3) for _ in range(SIDE))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows, 1)) + part(b"IEND", b"")


def said(server: client.Running, content: Any, n: int) -> dict[str, Any]:
    return {"model": server.model, "messages": [{"role": "user", "content": content}], "max_tokens": n, "ignore_eos": True}


async def answer_s(server: client.Running, picture: bytes) -> float:
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"{time.time_ns()}: what is this?"}]
    began = time.perf_counter()
    await client.whole(server.port, CHAT, said(server, content, 1))
    return time.perf_counter() - began


class Stream:
    """Hears an answer, and keeps when each piece came."""

    def __init__(self, server: client.Running, number: int):
        self.times: list[float] = []
        self.heard, self.leave = asyncio.Event(), False
        self._body = said(server, f"Tell me story number {number}.", CONTEXT - 200)
        self._port = server.port

    async def listen(self) -> None:
        async for moment, n in client.arrivals(self._port, CHAT, self._body):
            self.times += [moment] * n
            self.heard.set()
            if self.leave:
                return

    def speed(self, begin: float, end: float) -> float:
        return sum(begin <= moment < end for moment in self.times) / (end - begin)

    def gap_s(self, begin: float, end: float) -> float:
        times = [begin, *(moment for moment in self.times if begin <= moment < end), end]
        return max(b - a for a, b in zip(times, times[1:]))


async def measure(server: client.Running) -> contest.Figures:
    pictures = [noise(seed) for seed in range(1 + 2 * ANSWERS)]
    await answer_s(server, pictures[0])
    idle_s = statistics.median([await answer_s(server, picture) for picture in pictures[1 : 1 + ANSWERS]])
    streams = [Stream(server, number) for number in range(STREAMS)]
    listening = [asyncio.ensure_future(stream.listen()) for stream in streams]
    for stream in streams:
        await stream.heard.wait()
    taken_s, kept, gaps_s = [], [], []
    for picture in pictures[1 + ANSWERS :]:
        await asyncio.sleep(0.5)
        before = time.perf_counter()
        await asyncio.sleep(1.5)
        began = time.perf_counter()
        taken_s.append(await answer_s(server, picture))
        end = time.perf_counter()
        kept.append(min(stream.speed(began, end) / stream.speed(before, began) for stream in streams))
        gaps_s.append(max(stream.gap_s(began, end) for stream in streams))
    for stream in streams:
        stream.leave = True
    await asyncio.gather(*listening)
    slower = statistics.median(taken_s) / idle_s
    return {"gap_s": max(gaps_s), "kept": statistics.median(kept), "slower": slower, "answer_s": statistics.median(taken_s)}


def width_of(model: Path) -> int:
    fields = gguf.GGUFReader(str(model)).fields
    return int(fields[f"{fields['general.architecture'].contents()}.embedding_length"].contents())


def contestants(model: Path, folder: Path) -> dict[str, contest.Serve]:
    tower = write_mlp(folder / "mmproj-big.gguf", n_blocks=13, width=512, side=24, hidden=2048, n_embd=width_of(model))

    def lmlite(model: Path) -> AbstractContextManager[client.Running]:
        linked = folder / model.name
        if not linked.exists():
            linked.symlink_to(model)
        return client.lmlite_server(linked, "--parallel", STREAMS + 1, "--context-length", CONTEXT)

    def llama_server(model: Path) -> AbstractContextManager[client.Running]:
        room = (STREAMS + 1) * CONTEXT
        shape = ("-t", client.CORES, "-c", room, "-np", STREAMS + 1, "--kv-unified")
        return peers.llama_server(model, "--mmproj", tower, *shape, "--no-repack")

    return {contest.OURS: lmlite, "llama-server": llama_server}


def main() -> None:
    arguments = contest.parse(__doc__, params="100M", rounds=2)
    with tempfile.TemporaryDirectory() as folder:
        figures = contest.contest(arguments.model, arguments.rounds, contestants(arguments.model, Path(folder)), measure)
    contest.report("image_gap", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
