"""A process that serves gives memory back when nothing large is under way, and not before."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.app.scrape import resident_bytes
from lmlite.cli import tuning
from tests.conftest import INSTALLED

MB = 1 << 20


def looks(monkeypatch: pytest.MonkeyPatch, seen: Iterator[tuple[int, float]]) -> list[int]:
    """Gives `give_memory_back` its looks at the process: MB in memory, seconds of CPU since the last. Returns, when it has
    seen all, what was in memory each time that it trimmed."""
    trimmed: list[int] = []
    now = [0, 0.0]

    async def sleep(seconds: float) -> None:
        try:
            now[0], busy_s = next(seen)
        except StopIteration:
            raise asyncio.CancelledError from None
        now[1] += busy_s

    def libc(name: str, *arguments: int) -> int:
        assert (name, arguments) == ("malloc_trim", (0,))
        trimmed.append(int(now[0]))
        now[0] = 30
        return 1

    monkeypatch.setattr(tuning, "glibc", lambda: libc)
    monkeypatch.setattr(tuning, "resident_bytes", lambda: int(now[0]) * MB)
    monkeypatch.setattr("time.process_time", lambda: now[1])
    now[0] = 30
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(tuning.give_memory_back(sleep))
    return trimmed


def test_memory_goes_back_when_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, iter([(30, 0.0), (200, 0.0), (30, 0.0), (31, 0.0)])) == [200]


def test_memory_that_will_be_wanted_at_once_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, iter([(200, 4.0), (210, 4.0), (220, 0.1)])) == [220]


def test_memory_goes_back_now_and_then_where_it_is_never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [(200 + look, 4.0) for look in range(30)]
    assert looks(monkeypatch, iter(busy)) == [211, 223]
    with_pauses = [(200 if look % 10 else 30, 4.0) for look in range(1, 60)]
    assert looks(monkeypatch, iter(with_pauses)) == []


def test_all_goes_back_when_it_is_idle_after_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, iter([(40, 2.0), (40, 0.0), (30, 0.0), (40, 0.0), (40, 0.5), (40, 0.05)])) == [40, 40]


def test_what_was_in_use_goes_back_once_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, iter([(100, 0.9), (100, 0.9), (100, 0.05)])) == [100, 100, 100]


def test_a_collection_is_left_out_where_it_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[bool] = []
    monkeypatch.setattr("gc.collect", lambda: collected.append(True))
    for n_objects in (tuning.OBJECTS, 10):
        monkeypatch.setattr("gc.get_objects", lambda n_objects=n_objects: [None] * n_objects)
        assert looks(monkeypatch, iter([(200, 0.0)])) == [200]
        assert len(collected) == (n_objects == 10)


def test_little_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, itertools.repeat((40, 0.0), 3)) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what /proc says")
def test_a_process_knows_what_it_has_in_memory() -> None:
    before = (resident_bytes() or 0)
    block = bytearray(64 * MB)
    assert (resident_bytes() or 0) - before > 60 * MB
    del block


REFUSED = """
import http.client, json, sys
from lmlite.app.scrape import resident_bytes
from lmlite.cli import tuning
from lmlite.server import Server

def refuse(port, prompt):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(3):
        connection.request("POST", "/v1/completions", json.dumps({"prompt": prompt, "temperature": "warm"}))
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (400, True)
    connection.close()

tuning.tune()
with Server(port=0, home=sys.argv[1]) as server:
    refuse(server.port, "word")
    before = resident_bytes()
    for size in (300_000, 1_000_000, 2_000_000, 4_000_000, 6_000_000):
        refuse(server.port, "word " * size)
    for _ in range(100):  # the last of those may still be on its way out, on a machine that is busy
        refuse(server.port, "word")
        tuning.glibc()("malloc_trim", 0)
        if (kept := (resident_bytes() - before) >> 20) < 12:
            break
    print(kept)
"""


@pytest.mark.skipif(tuning.glibc() is None, reason="another C library")
def test_nothing_of_what_large_requests_took_is_kept_where_trimming_does_not_reach(tmp_path: Path) -> None:
    """glibc trims holes in the arenas of threads, and never what is free at their ends."""
    environ = {"PYTHONPATH": str(INSTALLED), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(tmp_path)], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12, "MB; it was 28 to 54"
