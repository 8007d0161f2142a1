"""A process that serves gives memory back when nothing large is under way, and not before."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator

import pytest

from lmlite.app.scrape import resident_bytes
from lmlite.cli import tuning

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


def test_little_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, itertools.repeat((40, 0.0), 3)) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what /proc says")
def test_a_process_knows_what_it_has_in_memory() -> None:
    before = (resident_bytes() or 0)
    block = bytearray(64 * MB)
    assert (resident_bytes() or 0) - before > 60 * MB
    del block
