"""Prompts on the disk, end to end: they are there after a restart and an unload, and a server or an engine that is killed
while it writes them leaves nothing that the next one would trust."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmlite.package import bundled_model
from tests.conftest import INSTALLED, Client, address, until
from tests.test_metrics import scrape

PIECE = 128
N_TOKENS = 1100
KEPT = N_TOKENS // PIECE * PIECE
MODEL = bundled_model().stem


@dataclass
class Server:
    process: subprocess.Popen[str]
    client: Client

    def say(self, prompt: list[int], n: int = 12, **more: Any) -> tuple[str, int]:
        """The greedy answer, and how many tokens of the prompt were known."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": n, "temperature": 0, "ignore_eos": True, **more}
        answer = self.client.post("/v1/completions", body)
        assert answer.status == 200, answer.body
        return answer.json["choices"][0]["text"], answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]

    def counted(self, name: str) -> float:
        return scrape(self.client).total(f"lmlite_prompt_cache_disk_{name}")

    def engines(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def serving(home: Path, *flags: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "lmlite", "serve", "--port", "0", "--home", str(home), "--parallel", "4"]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen([*command, *flags], stdout=pipe, stderr=nowhere, text=True, cwd=INSTALLED) as process:
        try:
            client = Client(int(address(process).rsplit(":", 1)[1].split("/")[0]))
            yield Server(process, client)
            client.close()
        finally:
            process.terminate()


def numbers(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 1000) for _ in range(N_TOKENS)]


def files(home: Path) -> list[Path]:
    return [path for path in (home / "prompt-cache").glob("*/*") if not path.name.startswith(".")]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What is answered without a prompt cache."""
    with serving(tmp_path_factory.mktemp("plain")) as server:
        return {seed: server.say(numbers(seed))[0] for seed in range(3)}


def test_prompts_are_there_after_an_unload_and_a_restart(tmp_path: Path, expected: dict[int, str]) -> None:
    with serving(tmp_path, "--prompt-cache", "64") as server:
        assert server.say(numbers(0)) == (expected[0], 0)
        until(lambda: len(files(tmp_path)) == N_TOKENS // PIECE)
        (there,) = server.client.get("/lmlite/instances").json["instances"]
        assert server.client.post("/api/v1/models/unload", {"instance_id": there["identifier"]}).status == 200
        assert server.say(numbers(0)) == (expected[0], KEPT)
        assert server.counted("tokens_total") == KEPT
    with serving(tmp_path, "--prompt-cache", "64") as server:
        assert server.say(numbers(0)) == (expected[0], KEPT)
        assert (server.counted("hits_total"), server.counted("damaged_total")) == (1, 0)
        assert server.counted("bytes") == sum(path.stat().st_size for path in files(tmp_path))
        held = sum(path.stat().st_size for path in files(tmp_path))
        told = server.client.get("/lmlite/instances").json
        assert (len(told["instances"]), told["promptCache"]) == (1, {"usedBytes": held, "budgetBytes": 64 << 20})
    folder = tmp_path / "prompt-cache"
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path)} == {0o600}


def test_without_the_option_nothing_is_written(tmp_path: Path, expected: dict[int, str]) -> None:
    with serving(tmp_path) as server:
        assert server.say(numbers(0)) == (expected[0], 0)
        assert "promptCache" not in server.client.get("/lmlite/instances").json
        assert server.client.post("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 1}).status == 200
    assert not (tmp_path / "prompt-cache").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the engine is found through /proc")
@pytest.mark.parametrize("victim", ["server", "engine"])
def test_who_is_killed_while_prompts_are_saved_leaves_what_is_whole(
    tmp_path: Path, expected: dict[int, str], victim: str
) -> None:
    """Beside a stream a prompt is saved bit by bit, so that there is a middle."""
    with serving(tmp_path, "--prompt-cache", "64") as server:
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        other = Client(server.client.port)
        stream = other.start("POST", "/v1/completions", body)
        assert stream.readline().startswith(b"data: ")
        for seed in range(2):
            assert server.say(numbers(seed)) == (expected[seed], 0)
        until(lambda: len(files(tmp_path)) > 0)
        if victim == "engine":
            (engine,) = server.engines()
            os.kill(engine, signal.SIGKILL)
            stream.read()  # tells of the end
            check(server, tmp_path, expected)
        else:
            server.process.kill()
            server.process.wait()
        other.close()
    with serving(tmp_path, "--prompt-cache", "64") as server:
        check(server, tmp_path, expected)


def check(server: Server, home: Path, expected: dict[int, str]) -> None:
    n_known = {seed: server.say(numbers(seed)) for seed in range(3)}
    assert {seed: text for seed, (text, _) in n_known.items()} == expected
    assert all(n % PIECE == 0 for _, n in n_known.values()) and n_known[0][1] > 0
    assert server.counted("damaged_total") == 0
    until(lambda: len(files(home)) == len(expected) * (N_TOKENS // PIECE))  # what was missing is written now
    assert not list((home / "prompt-cache").glob("*/.new-*"))
