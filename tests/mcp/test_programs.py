"""Programs that serve tools on their streams: in both revisions, and however badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.mcp.connections import Connections, Kept
from lmlite.mcp.file import Entry
from lmlite.mcp.message import NOISE_BYTES_MAX, Fault
from lmlite.mcp.session import DESCRIPTION_MAX, Given, Session
from tests.conftest import INSTALLED, TIMEOUT_S

PROGRAM = Path(__file__).parent / "program.py"
ALL = "add,echo,slow,progress,fail,crash,silent,huge,endless,garbage,asks,grow,environment,refuse,input"
CALL_S = 20.0


def entry(**options: str) -> Entry:
    arguments = tuple(f"{key}={value}" for key, value in {"tools": ALL, **options}.items())
    return Entry("demo", (sys.executable, str(PROGRAM), *arguments))


@contextlib.asynccontextmanager
async def connected(entry: Entry, **settings: Any) -> AsyncIterator[tuple[Connections, Kept]]:
    connections = Connections(**settings)
    try:
        async with connections.kept(entry) as kept:
            yield connections, kept
    finally:
        await connections.close()


async def call(
    session: Session, name: str, timeout_s: float = CALL_S, longest_s: float | None = None, **arguments: Any
) -> Given:
    tool = next(tool for tool in await session.tools() if tool.name == name)
    return await session.call(tool, arguments, timeout_s, longest_s)


def text_of(given: Given) -> str:
    (block,) = given.content
    return str(block["text"])


def heard(note: Path, method: str) -> list[Any]:
    lines = note.read_text().splitlines()
    return [json.loads(line.partition(" ")[2]) for line in lines if line.startswith(method + " ")]


@pytest.mark.parametrize(
    ("options", "version"),
    [({"era": "modern"}, "2026-07-28"), ({"era": "legacy"}, "2025-06-18"), ({"silent": "server/discover"}, "2025-06-18")],
)
def test_both_revisions_are_spoken(options: dict[str, str], version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmlite.mcp.session.PROBE_S", 1.0)

    async def scenario() -> None:
        async with connected(entry(**options)) as (connections, kept):
            session = await connections.session(kept)
            assert session.version == version
            assert text_of(await call(session, "add", a=2, b=3)) == "5"
            assert await call(session, "fail") == Given(({"type": "text", "text": "it went wrong"},), True)

    asyncio.run(scenario())


def test_lists_come_in_pages_and_are_asked_for_anew_when_they_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with connected(entry(page="5", note=str(tmp_path / "note"))) as (connections, kept):
            session = await connections.session(kept)
            assert [tool.name for tool in await session.tools()] == ALL.split(",")
            await session.tools()
            assert len(heard(tmp_path / "note", "tools/list")) == 3  # pages, and no second list
            await call(session, "grow")
            assert "tools are others now" not in caplog.text
            assert "late" in [tool.name for tool in await session.tools()]
            assert "tools are others now" in caplog.text

    asyncio.run(scenario())


def test_wrong_ids_garbage_and_second_answers_mislead_nobody() -> None:
    async def scenario() -> None:
        async with connected(entry()) as (connections, kept):
            session = await connections.session(kept)
            assert text_of(await call(session, "garbage")) == "right"
            assert text_of(await call(session, "echo", text="é\u2028\n")) == "é\u2028\n"

    asyncio.run(scenario())


def test_many_calls_at_once_get_their_own_answers() -> None:
    async def scenario() -> None:
        async with connected(entry()) as (connections, kept):
            session = await connections.session(kept)
            given = await asyncio.gather(*(call(session, "add", a=n, b=1) for n in range(50)))
            assert [text_of(one) for one in given] == [str(n + 1) for n in range(50)]

    asyncio.run(scenario())


def test_what_a_program_asks_of_its_client_is_answered_and_refused() -> None:
    async def scenario() -> None:
        async with connected(entry()) as (connections, kept):
            given = await call(await connections.session(kept), "asks")
            assert json.loads(text_of(given)) == [["error", "id", "jsonrpc"], ["id", "jsonrpc", "result"]]

    asyncio.run(scenario())


def test_a_hundred_megabytes_in_a_line_cost_the_one_call() -> None:
    async def scenario() -> None:
        async with connected(entry()) as (connections, kept):
            session = await connections.session(kept)
            with pytest.raises(Fault, match="longer than 4 MiB"):
                await call(session, "huge", text="100")
            assert text_of(await call(session, "add", a=1)) == "1"
            assert await connections.session(kept) is session

    asyncio.run(scenario())


def test_an_answer_of_a_million_values_costs_the_one_call() -> None:
    """To read it would keep everybody else waiting for a second."""

    async def scenario() -> None:
        async with connected(entry(tools="lists,echo")) as (connections, kept):
            session = await connections.session(kept)
            with pytest.raises(Fault, match="more than 60000 values"):
                await call(session, "lists", text="1000000")
            assert text_of(await call(session, "echo", text='[{",\\' * 100_000)) == '[{",\\' * 100_000, "of a text"
            assert (await call(session, "lists", text="10000")).content == ()
            assert await connections.session(kept) is session

    asyncio.run(scenario())


@pytest.mark.parametrize("tool", ["endless", "empty"])
def test_output_without_end_ends_the_program(monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    monkeypatch.setattr("lmlite.mcp.message.NOISE_BYTES_MAX", NOISE_BYTES_MAX >> 4)

    async def scenario() -> None:
        async with connected(entry(tools=f"{tool},add")) as (connections, kept):
            session = await connections.session(kept)
            with pytest.raises(Fault, match="nobody asked for"):
                await call(session, tool)
            again = await connections.session(kept)
            assert again is not session and text_of(await call(again, "add", a=1)) == "1"

    asyncio.run(scenario())


def test_a_tool_that_tells_of_its_progress_has_its_time_anew() -> None:
    async def scenario() -> None:
        async with connected(entry(era="modern")) as (connections, kept):
            session = await connections.session(kept)
            with pytest.raises(Fault, match="does not answer within 0.5 seconds"):
                await call(session, "slow", 0.5, CALL_S, text="1.2")
            assert text_of(await call(session, "progress", 2.0, CALL_S, text="30")) == "done"

    asyncio.run(scenario())


def test_progress_without_end_comes_to_one() -> None:
    async def scenario() -> None:
        async with connected(entry()) as (connections, kept):
            session = await connections.session(kept)
            with pytest.raises(Fault, match="has not come to an end within 1.5 seconds"):
                await call(session, "progress", 1.4, 1.5, text="x")

    asyncio.run(scenario())


def test_a_call_without_an_answer_ends_in_time_and_is_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(entry(note=str(tmp_path / "note"))) as (connections, kept):
            session = await connections.session(kept)
            with pytest.raises(Fault, match="does not answer within 0.2 seconds"):
                await call(session, "silent", 0.2)
            assert text_of(await call(session, "add", a=1)) == "1"
            (cancelled,) = heard(tmp_path / "note", "notifications/cancelled")
            assert cancelled["requestId"] == 4  # discover, initialize and the list came before

    asyncio.run(scenario())


def test_a_crash_fails_its_calls_with_its_last_words_and_the_next_one_starts_it_anew() -> None:
    async def scenario() -> None:
        async with connected(entry()) as (connections, kept):
            session = await connections.session(kept)
            with pytest.raises(Fault, match=r"has ended \(exit 3\): last words"):
                await call(session, "crash")
            assert text_of(await call(await connections.session(kept), "add", a=1)) == "1"

    asyncio.run(scenario())


def test_a_program_that_cannot_run_is_left_alone_for_longer_and_longer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(Entry("demo", (str(tmp_path / "missing"),))) as (connections, kept):
            waits = []
            for _ in range(3):
                with pytest.raises(Fault, match="No such file"):
                    await connections.session(kept)
                waits.append(kept.not_before - asyncio.get_running_loop().time())
            assert waits[0] < waits[1] < waits[2]
            kept.not_before += 60
            with pytest.raises(Fault, match="No such file.*tried again in 6[0-9] seconds"):
                await connections.session(kept)

    asyncio.run(scenario())


def test_c1_one_that_dies_at_its_start_is_told_with_its_last_words() -> None:
    script = "import sys; print('no licence', file=sys.stderr); sys.exit(3)"

    async def scenario() -> None:
        async with connected(Entry("demo", (sys.executable, "-c", script))) as (connections, kept):
            with pytest.raises(Fault, match=r"has ended \(exit 3\): no licence"):
                await connections.session(kept)

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_c2_one_that_never_answers_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    async def scenario() -> None:
        silent = entry(silent="initialize", children=str(pids))
        async with connected(silent) as (connections, kept):
            opening = asyncio.ensure_future(connections.session(kept))
            await asyncio.to_thread(await_pids, pids)
            opening.cancel()  # as its time would
            await asyncio.wait([opening])
            await asyncio.to_thread(await_end, await_pids(pids), 3.0)

    asyncio.run(scenario())


def test_c5_tools_that_no_model_can_be_told_of_are_left_out_and_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with connected(entry(tools="add,echo", odd="1")) as (connections, kept):
            session = await connections.session(kept)
            tools = {tool.name: tool for tool in await session.tools()}
            assert list(tools) == ["add", "echo", "wordy", "plain"]
            assert tools["echo"].description == "it does echo"  # the first of two
            assert len(tools["wordy"].description) == DESCRIPTION_MAX
            assert tools["plain"].schema == {"type": "object", "properties": {}}

    asyncio.run(scenario())
    for why in ("two tools 'echo'", "'two\\nlines' does not", "it has no name", "schema of 'deep' is too large"):
        assert why in caplog.text
    assert "\ntwo" not in caplog.text and "two\nlines" not in caplog.text


@pytest.mark.parametrize("method", ["initialize", "tools/list"])
def test_no_answer_at_the_beginning_is_a_fault_in_time(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmlite.mcp.session.LIST_S", 0.5)
    monkeypatch.setattr("lmlite.mcp.session.START_S", 0.5 if method == "initialize" else CALL_S)

    async def scenario() -> None:
        async with connected(entry(silent=method)) as (connections, kept):
            with pytest.raises(Fault, match="does not answer within 0.5 seconds"):
                await (await connections.session(kept)).tools()

    asyncio.run(scenario())


def test_errors_and_wishes_of_the_program_are_faults_of_the_call() -> None:
    async def scenario() -> None:
        async with connected(entry(era="modern")) as (connections, kept):
            session = await connections.session(kept)
            with pytest.raises(Fault, match="not so"):
                await call(session, "refuse")
            with pytest.raises(Fault, match="more input"):
                await call(session, "input")

    asyncio.run(scenario())


def test_a_program_sees_what_it_was_given_and_no_keys_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    demo = entry()

    async def scenario() -> None:
        async with connected(Entry("demo", demo.command, (("GIVEN", "yes"),))) as (connections, kept):
            seen = json.loads(text_of(await call(await connections.session(kept), "environment")))
            assert seen["GIVEN"] == "yes" and "HF_TOKEN" not in seen and seen["PATH"] == os.environ["PATH"]

    asyncio.run(scenario())


def test_one_that_nobody_uses_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "note"

    async def scenario() -> None:
        connections = Connections(idle_s=0.05)
        async with connections.kept(entry(note=str(note))) as kept:
            session = await connections.session(kept)
        deadline = time.monotonic() + TIMEOUT_S
        while "end of input" not in note.read_text():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        async with connections.kept(kept.entry) as kept:
            assert await connections.session(kept) is not session
        await connections.close()

    asyncio.run(scenario())


def test_another_entry_under_the_same_name_is_another_program() -> None:
    async def scenario() -> None:
        connections = Connections()
        for names in ("add", "echo"):
            async with connections.kept(entry(tools=names)) as kept:
                assert [tool.name for tool in await (await connections.session(kept)).tools()] == [names]
        await connections.close()

    asyncio.run(scenario())


# ---- their ends ------------------------------------------------------------------------------------------------------

SERVER = """
import asyncio, sys
from lmlite.mcp.connections import Connections
from lmlite.mcp.file import Entry

async def main():
    connections = Connections()
    async with connections.kept(Entry("demo", tuple(sys.argv[1:]))) as kept:
        await (await connections.session(kept)).tools()
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_end(pids: list[int], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"{alive} are still there"
        time.sleep(0.02)


def await_pids(path: Path) -> list[int]:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists() or path.read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(line) for line in path.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", ["killed", "stubborn"])
def test_c8_a_program_and_all_that_it_started_die_with_a_server_that_is_killed(tmp_path: Path, how: str) -> None:
    arguments = entry(children=str(tmp_path / "pids"), **({"stubborn": "1"} if how == "stubborn" else {})).command
    environment = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    server = subprocess.Popen([sys.executable, "-c", SERVER, *arguments], stdout=subprocess.PIPE, env=environment)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    pids = await_pids(tmp_path / "pids")
    assert all(map(is_alive, pids))
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    await_end(pids, TIMEOUT_S)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_crash_leaves_nothing_of_what_the_program_started(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(entry(children=str(tmp_path / "pids"))) as (connections, kept):
            session = await connections.session(kept)
            pids = await asyncio.to_thread(await_pids, tmp_path / "pids")
            with pytest.raises(Fault):
                await call(session, "crash")
            await asyncio.to_thread(await_end, pids, TIMEOUT_S)

    asyncio.run(scenario())
