"""Kill: `kill -9` of the server at random moments, while it downloads models and answers, again and again.

After each: the state database is sound, no file that a catalogue would list is anything but the whole file of the hub, and no
engine outlives its server. After the last: every download that was begun ends by itself in the right bytes, wherever it was
cut; every turn that was acknowledged is kept, with its whole conversation, and none that was told of seems to run on. Prints
one JSON object; exit code 1 if a promise was broken.

`python bench/kill.py [--times 200] [--seed 1]`; the hub is one of our own on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client  # noqa: E402
from lmlite.errors import LmError  # noqa: E402
from lmlite.package import bundled_model  # noqa: E402
from lmlite.store import database  # noqa: E402
from lmlite.store.database import Database  # noqa: E402
from lmlite.store.history import HistoryTable  # noqa: E402
from lmlite.store.home import Home  # noqa: E402
from tests.core.gguf_files import gguf, llama, projector  # noqa: E402
from tests.hub import misbehaving  # noqa: E402
from tests.hub.misbehaving import Hub  # noqa: E402

LONGEST_LIFE_S = 0.7
"""A server lives until a random moment before this: through its start, its first answers, and parts of downloads. Every
other one lives so long after its first turn was kept: through commits."""
FIRST_TURN_S = 20.0
TALKS = 2
"""Conversations at once in each dialect that keeps them: their turns share commits."""
TURNS = 40
"""Of a conversation, until another is begun: the model's context is short."""
BYTES_PER_S = 6 << 20
PIECE = 64 << 10
MODEL_BYTES = 1 << 20
ORPHAN_S = 3.0
"""An engine ends when its socket does; a step of it takes a moment."""
END_S = 120.0
CHAT = {"model": bundled_model().stem, "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True}


def repository(draw: random.Random, index: int) -> dict[str, bytes]:
    """One file, or two parts and a projector; a small sound header and then weights that are nobody's."""
    weights = [draw.randbytes(MODEL_BYTES) for _ in range(2)]
    if index % 2:
        return {f"m{index}-Q4_K_M.gguf": gguf(llama()) + weights[0] + weights[1]}
    parts = {f"m{index}-Q4_K_M-0000{i + 1}-of-00002.gguf": gguf(llama()) + content for i, content in enumerate(weights)}
    return {**parts, "mmproj-F16.gguf": gguf(projector()) + bytes([index % 256]) * 1000}


def pace(handler: misbehaving.Handler) -> None:
    """Sends a file as a line of `BYTES_PER_S` would, from where it is asked for."""
    content = handler.hub.stored(handler.path)
    etag = misbehaving.etag_of(content)
    asked = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
    start = int(asked[1]) if asked and handler.headers.get("If-Range") == etag else 0
    headers = {"Content-Length": str(len(content) - start), "ETag": etag}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    handler.begin(206 if start else 200, headers)
    for at in range(start, len(content), PIECE):
        handler.wfile.write(content[at : at + PIECE])
        time.sleep(PIECE / BYTES_PER_S)


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    return asyncio.run(client.whole(port, path, body))


# ---- turns that are kept ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dialect:
    """One that keeps turns; its event `begins` tells an id before the end, one of `ends` when it is kept."""

    path: str
    begins: str
    ends: tuple[str, ...]

    def id_in(self, said: dict[str, Any]) -> str | None:
        inner = said.get("response") or said.get("result") or said
        found = inner.get("response_id") or inner.get("id")
        return found if isinstance(found, str) else None


OPEN = ("queued", "in_progress")
DIALECTS = (
    Dialect("/v1/responses", "response.created", ("response.completed", "response.incomplete")),
    Dialect("/api/v1/chat", "", ("chat.end",)),
)


@dataclass
class Told:
    """What clients were told: `kept` are acknowledged turns, with how many turns their conversations have; `begun` are ids
    that were told before their end."""

    kept: dict[str, tuple[int, Dialect]] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    more: threading.Event = field(default_factory=threading.Event)  # a turn was kept


class Talk(threading.Thread):
    """A conversation, whole and streamed in turns, until its server is gone."""

    def __init__(self, port: int, dialect: Dialect, told: Told):
        super().__init__(daemon=True)
        self.port, self.dialect, self.told = port, dialect, told

    def run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=END_S)
        previous: str | None = None
        with contextlib.suppress(OSError, HTTPException, ValueError):
            for turn in count():
                depth = turn % TURNS
                body = {"model": CHAT["model"], "input": "And then?", "store": True, "max_output_tokens": 4}
                if depth:
                    body["previous_response_id"] = previous
                previous = (self.stream if turn % 2 else self.whole)(connection, body, depth + 1)
        connection.close()

    def whole(self, connection: HTTPConnection, body: dict[str, Any], turns: int) -> str:
        connection.request("POST", self.dialect.path, json.dumps(body), {"Content-Type": "application/json"})
        return self.keep(json.loads(connection.getresponse().read()), turns)

    def stream(self, connection: HTTPConnection, body: dict[str, Any], turns: int) -> str:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", self.dialect.path, json.dumps({**body, "stream": True}), headers)
        kept = ""
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                said = json.loads(line[6:])
                if said.get("type") == self.dialect.begins and (id := self.dialect.id_in(said)):
                    self.told.begun.add(id)
                if said.get("type") in self.dialect.ends:
                    kept = self.keep(said, turns)
        if not kept:
            raise ValueError("the stream ended early")
        return kept

    def keep(self, said: dict[str, Any], turns: int) -> str:
        id = self.dialect.id_in(said)
        if id is None:
            raise ValueError(f"no id in {said}")
        self.told.kept[id] = turns, self.dialect
        self.told.more.set()
        return id


def lost_turns(path: Path, told: Told) -> list[str]:
    """What of all that was told is not so."""
    kept = Database(path)
    with kept.reading() as connection:
        rows = {id: (scope, status) for id, scope, status in connection.execute("SELECT id, scope, status FROM exchanges")}
    wrong = [f"{id} was told and reads as {rows[id][1]}" for id in told.begun if rows.get(id, ("", ""))[1] in OPEN]
    table = HistoryTable(kept, 1 << 40, 36500)
    for id, (turns, _) in told.kept.items():
        if id not in rows:
            wrong.append(f"{id} was acknowledged and is gone")
            continue
        try:
            found = len(table.conversation(id, rows[id][0]))
        except LmError as error:
            wrong.append(f"{id}: {error}")
        else:
            if found < 2 * turns:
                wrong.append(f"the conversation of {id} has {found} messages after {turns} turns")
    kept.close()
    return wrong


# ---- files -----------------------------------------------------------------------------------------------------------


def visible(models: Path) -> list[Path]:
    files = (path for path in models.rglob("*") if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(models).parts)]


def wrong_files(models: Path, hub: Hub) -> list[str]:
    """Files that would be listed and are not what the hub has."""
    wrong = []
    for path in visible(models):
        publisher, repo, name = path.relative_to(models).parts
        if path.read_bytes() != hub.repos[f"{publisher}/{repo}"].get(name):
            wrong.append(str(path.relative_to(models)))
    return wrong


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def orphans(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + ORPHAN_S
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


class Trial:
    """One home and one hub, and server after server on them."""

    def __init__(self, home: Path, hub: Hub, draw: random.Random):
        self.home, self.hub, self.draw = Home(home), hub, draw
        self.begun: list[str] = []
        self.told = Told()
        self.chats: list[socket.socket] = []
        self.talks: list[Talk] = []
        self.ready_s: list[float] = []
        self.broken: list[str] = []

    def command(self) -> list[str | Path]:
        return client.lmlite("--home", self.home.root, "--log-level", "warning")

    def round(self) -> None:
        with client.serving(self.command()) as server:
            self.ready_s.append(server.ready_s)
            life_s = self.draw.uniform(0, LONGEST_LIFE_S)
            children: list[int] = []
            self.talk(server.port)
            with contextlib.suppress(OSError, ValueError):
                self.keep_busy(server.port)
                if self.draw.random() < 0.5:
                    self.told.more.wait(FIRST_TURN_S)
                dies_at = time.monotonic() + life_s
                while time.monotonic() < dies_at:
                    time.sleep(max(min(0.02, dies_at - time.monotonic()), 0))
                    children = server.children
            server.process.kill()
            server.process.wait()
        for chat in self.chats:
            chat.close()
        self.chats.clear()
        for talk in self.talks:
            talk.join()
        self.check(children)

    def talk(self, port: int) -> None:
        self.told.more.clear()
        self.talks = [Talk(port, dialect, self.told) for dialect in DIALECTS for _ in range(TALKS)]
        for talk in self.talks:
            talk.start()

    def keep_busy(self, port: int) -> None:
        chat = socket.create_connection(("127.0.0.1", port), 10)
        chat.sendall(client.request("/v1/chat/completions", CHAT))
        self.chats.append(chat)
        running = [job for job in ask(port, "/lmlite/downloads")["downloads"] if job["status"] == "downloading"]
        for _ in range(2 - len(running)):
            repo = f"acme/m{len(self.begun)}"
            self.hub.repos[repo] = repository(self.draw, len(self.begun))
            self.begun.append(repo)
            ask(port, "/api/v1/models/download", {"model": repo})

    def check(self, children: list[int]) -> None:
        if self.home.state.exists() and (verdict := database.check(self.home.state)) != "ok":
            self.broken.append(f"the database: {verdict}")
        self.broken += [f"half of {name} is listed" for name in wrong_files(self.home.models, self.hub)]
        self.broken += [f"engine {pid} outlives its server" for pid in orphans(children)]

    def finish(self) -> dict[str, int]:
        """Lets what is left come to its end; the jobs by status."""
        statuses: dict[str, int] = {}
        with client.serving(self.command()) as server:
            deadline = time.monotonic() + END_S
            while time.monotonic() < deadline:
                jobs = ask(server.port, "/lmlite/downloads")["downloads"]
                statuses = {status: sum(job["status"] == status for job in jobs) for status in {job["status"] for job in jobs}}
                if set(statuses) <= {"completed"}:
                    break
                time.sleep(0.1)
            else:
                self.broken.append(f"downloads that do not end: {statuses}")
            known = {job["model"] for job in jobs}
            for id, (_, dialect) in self.told.kept.items():
                if dialect.path == "/v1/responses":
                    ask(server.port, f"{dialect.path}/{id}")
        self.check([])
        self.broken += lost_turns(self.home.state, self.told)
        kept = {dialect for _, dialect in self.told.kept.values()}
        self.broken += [f"{dialect.path} kept no turn" for dialect in DIALECTS if dialect not in kept]
        for repo in known:
            there = {path.name for path in visible(self.home.models / repo)}
            if there != set(self.hub.repos[repo]):
                self.broken.append(f"{repo} is not whole: {sorted(there)}")
        self.broken += [f"{path.name} was left behind" for path in self.home.models.rglob(".download/*")]
        return statuses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, misbehaving.running({}) as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HOME": folder}
        os.environ.pop("HF_TOKEN", None)
        hub.on("/store/", then=pace)
        trial = Trial(Path(folder) / "home", hub, random.Random(arguments.seed))
        for _ in range(arguments.times):
            trial.round()
        statuses = trial.finish()
        asked = hub.files_asked()
        result = {
            "bench": "kill",
            "kills": arguments.times,
            "seconds": round(time.monotonic() - began, 1),
            "downloads": statuses,
            "turns_kept": {dialect.path: sum(kept is dialect for _, kept in trial.told.kept.values()) for dialect in DIALECTS},
            "turns_told_of_before_their_end": len(trial.told.begun - trial.told.kept.keys()),
            "files_fetched_from_the_start": sum(one.range is None for one in asked),
            "files_taken_up": sum(one.range is not None for one in asked),
            "slowest_start_s": round(max(trial.ready_s), 2),
            "broken": trial.broken,
        }
    print(json.dumps(result, indent=1))
    return 1 if trial.broken else 0


if __name__ == "__main__":
    sys.exit(main())
