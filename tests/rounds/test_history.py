"""History in a loop: what is acknowledged is on the disk, the loop waits for no disk, and a client is told of a full one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import NotKept, StateError, UnknownExchange, UnknownPrevious
from lmlite.exchange import Exchange, Status
from lmlite.messages import text_message
from lmlite.rounds.history import History
from lmlite.store import database as database_module
from lmlite.store.database import Database
from lmlite.store.history import HistoryTable
from lmlite.store.home import Home
from tests.conftest import INSTALLED, FakeServer


def exchange(id: str, previous: str | None = None, status: Status = "completed", created: float = 2e9) -> Exchange:
    asked = (text_message("user", f"to {id}"),)
    answer = (text_message("assistant", f"from {id}"),)
    return Exchange(id, "response", "", "falcon", created, status, previous, asked, answer, "{}", "[]")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Home(tmp_path / "home").state


@asynccontextmanager
async def kept_in(path: Path, size_mib: int = 16, days: int = 36500) -> AsyncIterator[History]:
    database = Database(path)
    history = History(database, size_mib, days)
    history.open()
    yield history
    await history.close()
    database.close()


def in_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lmlite-history"]


def test_what_is_kept_is_there_after_a_restart_and_can_be_gone_on_from(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            await history.keep(exchange("a"))
            await history.keep(exchange("b", "a"))
        async with kept_in(path) as history:
            assert await history.find("b", "") == exchange("b", "a")
            assert [message.role for message in await history.conversation("b", "")] == ["user", "assistant"] * 2
            await history.delete("b", "", "response")
            with pytest.raises(UnknownExchange):
                await history.find("b", "")
        async with kept_in(path) as history:
            with pytest.raises(UnknownPrevious):
                await history.conversation("b", "")

    in_loop(scenario)


def test_an_id_is_known_from_its_beginning_and_reads_as_failed_after_a_crash(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            history.begin(exchange("a", status="in_progress"))
            assert (await history.find("a", "")).status == "in_progress"
            await history.keep(exchange("a"))
            assert (await history.find("a", "")).status == "completed"
            history.begin(exchange("b", "a", status="queued"))
        async with kept_in(path) as history:
            assert (await history.find("a", "")).status == "completed"
            assert (await history.find("b", "")).status == "failed"

    in_loop(scenario)


def test_what_a_turn_goes_on_from_stays_from_its_beginning_on(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            await history.keep(exchange("a"))
            history.begin(exchange("b", "a", status="in_progress"))
            await history.delete("a", "", "response")
            await history.keep(exchange("b", "a"))
            assert len(await history.conversation("b", "")) == 4
            with pytest.raises(UnknownPrevious):
                await history.keep(exchange("c", "a"))

    in_loop(scenario)


def test_a_history_that_nobody_uses_touches_neither_disk_nor_threads(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path, size_mib=0) as history:
            assert not history.keeps
            history.begin(exchange("a", status="queued"))
            await history.keep(exchange("a"))
            assert threads() == []
            with pytest.raises(UnknownPrevious):
                await history.conversation("a", "")
        async with kept_in(path):
            pass
        assert threads() == []

    in_loop(scenario)
    assert not path.parent.exists()


def test_many_that_wait_share_a_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    transaction = database_module._transaction

    def counted(connection: Any) -> Any:
        commits.append(1)
        return transaction(connection)

    async def scenario() -> None:
        async with kept_in(path) as history:
            await history.keep(exchange("first"))
            monkeypatch.setattr(database_module, "_transaction", counted)
            with history._table._database._lock:  # a commit that takes long
                waiting = [asyncio.ensure_future(history.keep(exchange(str(i)))) for i in range(200)]
                await asyncio.sleep(0)
            await asyncio.gather(*waiting)
            assert len(commits) <= 2

    in_loop(scenario)


def test_the_loop_goes_on_while_the_disk_is_slow(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            await history.keep(exchange("a"))
            with history._table._database._lock:
                keeping = asyncio.ensure_future(history.keep(exchange("b", "a")))
                history.begin(exchange("c", "a", status="in_progress"))
                for _ in range(100):
                    await asyncio.sleep(0)
                assert not keeping.done()
            await keeping

    in_loop(scenario)


def test_a_client_that_leaves_takes_nothing_with_it(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            await history.keep(exchange("a"))
            with history._table._database._lock:
                leaving = asyncio.ensure_future(history.keep(exchange("b", "a")))
                await asyncio.sleep(0)
                leaving.cancel()
            await history.keep(exchange("c", "b"))
            assert len(await history.conversation("c", "")) == 6

    in_loop(scenario)


def fill(history: History) -> None:
    with history._table._database.reading() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_is_told_to_the_one_whose_turn_it_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            await history.keep(exchange("a"))
            fill(history)
            large = replace(exchange("b", "a"), body='"' + "x" * (1 << 20) + '"')
            history.begin(replace(large, status="in_progress"))
            small, refused = await asyncio.gather(
                history.keep(exchange("c", "a")), history.keep(large), return_exceptions=True
            )
            assert small is None
            assert isinstance(refused, NotKept)
            assert (refused.status, refused.code) == (422, "not_stored")
            assert "full" in refused.message
            assert await history.find("a", "") == exchange("a")
            assert len(await history.conversation("c", "")) == 4

    in_loop(scenario)
    assert "turns cannot be kept" in caplog.text


def test_a_home_that_cannot_be_written_is_told_as_well(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def scenario() -> None:
        async with kept_in(tmp_path / "file" / "state.sqlite3") as history:
            history.begin(exchange("a", status="in_progress"))
            with pytest.raises(NotKept, match="cannot be opened"):
                await history.keep(exchange("a"))

    in_loop(scenario)


def test_a_bug_in_one_turn_is_its_own(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            broken: Any = replace(exchange("a"), asked=None)  # type: ignore[arg-type]
            half = replace(exchange("a"), body="\ud800")
            keeping = map(history.keep, (broken, half, exchange("b")))
            wrong, unwritten, right = await asyncio.gather(*keeping, return_exceptions=True)
            assert isinstance(wrong, TypeError) and isinstance(unwritten, NotKept) and "Unicode" in str(unwritten)
            assert right is None

    in_loop(scenario)


@pytest.mark.parametrize("word", [b"\xe0ABLE exchanges", b"xABLE exchanges"])
def test_damage_that_sqlite_cannot_tell_of_in_words_leaves_nobody_waiting(path: Path, word: bytes) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            await history.keep(exchange("a"))
        path.write_bytes(path.read_bytes().replace(b"TABLE exchanges", word))
        async with kept_in(path) as history:
            await history.keep(exchange("b"))
            assert (await history.find("b", "")).id == "b"
        assert [other for other in path.parent.iterdir() if ".damaged-" in other.name]

    in_loop(scenario)


def test_whatever_goes_wrong_whoever_waits_hears_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise LookupError("a bug")

    async def scenario() -> None:
        async with kept_in(path) as history:
            for method in ("recover", "sweep", "write"):
                monkeypatch.setattr(HistoryTable, method, broken)
            with pytest.raises(LookupError):
                await history.keep(exchange("a"))
            monkeypatch.undo()
            await history.keep(exchange("a"))

    in_loop(scenario)


def test_what_waits_is_kept_before_the_end_and_nothing_after_it(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            keeping = asyncio.ensure_future(history.keep(exchange("a")))
            await asyncio.sleep(0)
        await keeping
        history.begin(exchange("b"))
        later: list[Awaitable[Any]] = [history.find("a", ""), history.delete("a", "", "response")]
        for one in later:
            with pytest.raises(StateError):
                await one
        with pytest.raises(NotKept):
            await history.keep(exchange("c"))
        async with kept_in(path) as again:
            assert await again.find("a", "") == exchange("a")

    in_loop(scenario)
    assert threads() == []


def test_old_turns_go_when_a_server_starts(path: Path) -> None:
    async def scenario() -> None:
        async with kept_in(path) as history:
            await history.keep(exchange("old", created=1e9))
            await history.keep(exchange("new"))
        async with kept_in(path, days=1) as history:
            while True:
                try:
                    await history.find("old", "")
                except UnknownExchange:
                    break
            assert await history.find("new", "") == exchange("new")

    in_loop(scenario)


def test_a_server_brings_its_history_in_order_and_closes_it(serve_fake: Callable[..., FakeServer], tmp_path: Path) -> None:
    server = serve_fake()
    history = server.service.app.history

    async def tell() -> None:
        await history.keep(exchange("a"))
        history.begin(exchange("b", "a", status="in_progress"))
        await history.find("b", "")

    server.thread.call(tell())
    server.close()
    assert threads() == []
    assert not Home(tmp_path / "home").state.with_name("state.sqlite3-wal").exists()
    again = serve_fake()
    assert again.thread.call(again.service.app.history.find("b", "")).status == "failed"


def test_a_server_whose_clients_keep_nothing_has_no_database(fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.client().post("/v1/chat/completions", {"model": "talker", "messages": [{"role": "user", "content": "hi"}]})
    fake_server.close()
    assert not Home(tmp_path / "home").state.exists()


def test_a_server_that_keeps_nothing_does_without_the_code_of_the_database(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from lmlite.app import App
from lmlite.config import Config
app = App(Config.of(home=sys.argv[1]))

async def live():
    app.open()
    await app.close()

asyncio.run(live())
print("sqlite3" in sys.modules)
"""
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    command = [sys.executable, "-c", program, str(tmp_path / "home")]
    told = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    assert told.stdout == "False\n"


KEEPER = """
import asyncio, sys
from pathlib import Path
from lmlite.exchange import Exchange
from lmlite.messages import text_message
from lmlite.rounds.history import History
from lmlite.store.database import Database

async def line(history, name):
    previous, i = None, 0
    while True:
        id = f"{name}-{i}"
        turn = Exchange(id, "chat", "", "m", 2e9, "in_progress", previous, (text_message("user", id),), (), "{}", "[]")
        history.begin(turn)
        await history.keep(Exchange(id, "chat", "", "m", 2e9, "completed", previous, turn.asked, turn.asked, "{}", "[]"))
        print(id, flush=True)
        previous, i = id, i + 1

async def main():
    history = History(Database(Path(sys.argv[1])), 1024, 36500)
    history.open()
    await asyncio.gather(*(line(history, f"{sys.argv[2]}{n}") for n in range(8)))

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    acknowledged: list[str] = []
    for life in "xyz":
        child = subprocess.Popen(
            [sys.executable, "-c", KEEPER, path, life],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(INSTALLED)},
        )
        assert child.stdout is not None
        with child.stdout:
            acknowledged += [child.stdout.readline().strip() for _ in range(40)]
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert database_module.check(path) == "ok"

    async def scenario() -> None:
        async with kept_in(path) as history:
            for id in acknowledged:
                assert (await history.find(id, "")).status == "completed"
                turns = int(id.rpartition("-")[2]) + 1
                assert len(await history.conversation(id, "")) == 2 * turns

    in_loop(scenario)
