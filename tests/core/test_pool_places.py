"""The pool's places, instances, files and failures: fake engines played by hand, and time by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import pytest

from lmlite import errors
from lmlite.core.disk import stamps
from lmlite.core.engine.client import Engine
from lmlite.core.engine.frames import Kind
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.loading.crashes import MAX_CRASHES
from lmlite.messages import Sense
from lmlite.request import Generate, Text
from lmlite.settings import UNSAID, ModelSettings
from tests.core.test_pool import Shelf, Stage, answer_load, card, failure, load_and_crash, play, until
from tests.fakes import FakeEngine, Peer, finished, frame

Turns = Callable[[], Any]


async def settled() -> None:
    """Everything that can happen without the far ends has happened, in the thread for disks too."""
    for _ in range(3):
        await asyncio.to_thread(lambda: None)
        await turns()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def loaded(stage: Stage) -> list[str]:
    return [instance.id for instance in stage.pool.instances()]


def one_place(scene: Any, make: Callable[[], Any] = FakeEngine, **options: Any) -> None:
    play(scene, make, max_jit=1, **options)


# ---- places ----------------------------------------------------------------------------------------------------------


def test_an_idle_model_leaves_for_the_next() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask("a")
        assert (await stage.ask("b")).loaded_now
        assert loaded(stage) == ["b"]
        await stage.ask("c")
        assert loaded(stage) == ["c"]

    one_place(scene)


def test_embedding_models_have_places_of_their_own() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask("a")
        await stage.ask("e", "embedding")
        assert loaded(stage) == ["a", "e"]
        assert not (await stage.ask("a")).loaded_now
        await stage.ask("r", "rerank")
        assert loaded(stage) == ["a", "r"]
        await stage.ask("b")
        assert sorted(loaded(stage)) == ["b", "r"]

    one_place(scene)


def test_the_next_model_loads_when_the_memory_of_the_last_is_free() -> None:
    class Slow(Peer):
        async def close(self) -> None:
            await gate.wait()
            await super().close()

    gate = asyncio.Event()

    async def scene(stage: Stage) -> None:
        first = stage.ask("a")
        await answer_load(await stage.peer(0))
        await first
        second = stage.ask("b")
        await settled()
        third = stage.ask("c")
        await settled()
        assert (len(stage.peers), loaded(stage)) == (1, [])
        gate.set()
        await answer_load(await stage.peer(1))
        assert (await second).instance.id == "b"
        await answer_load(await stage.peer(2))
        await third

    one_place(scene, Slow)


def test_who_wants_another_model_waits_for_running_requests() -> None:
    async def scene(stage: Stage) -> None:
        lease, done = await stage.hold("a")
        other = stage.ask("b")
        await settled()
        assert not other.done() and loaded(stage) == ["a"]
        events = [event async for event in lease.engine.run(Generate(Text("x")))]
        assert events, "the running request is served to its end"
        done.set()
        assert (await other).instance.id == "b"
        assert loaded(stage) == ["b"]

    one_place(scene)


def test_later_requests_for_the_loaded_model_do_not_starve_the_one_that_waits() -> None:
    async def scene(stage: Stage) -> None:
        _, first_done = await stage.hold("a")
        order: list[str] = []

        def ask(name: str) -> asyncio.Future[Any]:
            answer = stage.ask(name)
            answer.add_done_callback(lambda _: order.append(name))
            return answer

        answers = [ask("b")]
        await settled()
        answers += [ask("a") for _ in range(5)]
        await settled()
        assert not order
        first_done.set()
        await asyncio.gather(*answers)
        assert order == ["b", *["a"] * 5]
        assert len(stage.peers) == 3, "five requests, one load"

    one_place(scene)


def test_the_line_is_first_come_first_served() -> None:
    async def scene(stage: Stage) -> None:
        _, done = await stage.hold("a")
        order: list[str] = []
        answers = []
        for name in ("c", "b", "d", "b", "c"):
            answers.append(stage.ask(name))
            answers[-1].add_done_callback(lambda done: order.append(done.result().instance.id))
            await settled()
        done.set()
        await asyncio.gather(*answers)
        assert order == ["c", "c", "b", "b", "d"]

    one_place(scene, shelf=Shelf([card(name) for name in "abcd"]))


def test_a_model_takes_requests_again_when_nobody_waits_for_its_place_any_more() -> None:
    async def scene(stage: Stage) -> None:
        lease, _ = await stage.hold("a")
        other, behind = stage.ask("b"), stage.ask("a")
        await settled()
        assert not behind.done()
        other.cancel()
        again = await behind
        assert again.engine is lease.engine and not again.loaded_now
        assert (await stage.ask("a")).engine is lease.engine
        assert len(stage.peers) == 1

    one_place(scene)


def test_a_place_that_comes_when_the_last_who_waited_left_is_not_lost() -> None:
    async def scene(stage: Stage) -> None:
        _, done = await stage.hold("a")
        leaving = [stage.ask("b") for _ in range(3)]
        await settled()
        done.set()
        await until(lambda: stage.pool.state("b") != "not-loaded")
        for answer in leaving:
            answer.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert (await stage.ask("a")).instance.id == "a"
        assert (await stage.ask("b")).instance.id == "b"

    one_place(scene)


def test_the_line_is_bounded() -> None:
    async def scene(stage: Stage) -> None:
        _, done = await stage.hold("a")
        waiting = [stage.ask("b") for _ in range(3)]
        await settled()
        assert (await failure(stage.ask("b"), errors.QueueFull)).limit == 3
        done.set()
        await asyncio.gather(*waiting)

    one_place(scene, settings=LoadSettings(max_queue=3))


def test_what_waits_for_a_load_is_bounded() -> None:
    async def scene(stage: Stage) -> None:
        waiting = [stage.ask("a") for _ in range(3)]
        await settled()
        await failure(stage.ask("a"), errors.QueueFull)
        await answer_load(await stage.peer(0))
        await asyncio.gather(*waiting)

    play(scene, settings=LoadSettings(max_queue=3))


def test_a_failed_load_gives_its_place_to_the_next() -> None:
    async def scene(stage: Stage) -> None:
        first = stage.ask("a")
        peer = await stage.peer(0)
        second = stage.ask("b")
        await peer.next()
        peer.end("crashed (SIGABRT)")
        await failure(first, errors.LoadFailed)
        await answer_load(await stage.peer(1))
        assert (await second).instance.id == "b"

    one_place(scene, Peer)


def test_a_load_that_nothing_can_be_started_for_gives_its_place_to_the_next() -> None:
    """Not even an engine to be seen off is there, whose end would call the next."""

    async def scene(stage: Stage) -> None:
        gate.clear()
        first, second = stage.ask("a"), stage.ask("b")
        await settled()
        gate.set()
        await failure(first, errors.EngineError)
        assert (await second).instance.id == "b"

    @contextlib.asynccontextmanager
    async def room(spec: LoadSpec, checked: bool) -> AsyncIterator[LoadSpec]:
        await gate.wait()
        if spec.paths[0].name == "a.gguf":
            raise errors.EngineError("insufficient_memory", "a", 422)
        yield spec

    gate = asyncio.Event()
    one_place(scene, room=room)


def test_a_crash_gives_its_place_to_the_next() -> None:
    async def scene(stage: Stage) -> None:
        held = asyncio.ensure_future(stage.hold("a"))
        peer = await stage.peer(0)
        await answer_load(peer)
        await held
        other = stage.ask("b")
        await settled()
        assert len(stage.peers) == 1
        peer.end("crashed (SIGSEGV)")
        await answer_load(await stage.peer(1))
        assert (await other).instance.id == "b"

    one_place(scene, Peer)


def test_of_several_places_the_one_idle_longest_is_given() -> None:
    async def scene(stage: Stage) -> None:
        for name in "abc":
            await stage.ask(name)
            stage.clock.advance(1)
        await stage.ask("a")
        stage.clock.advance(1)
        await stage.ask("d")
        assert set(loaded(stage)) == {"a", "c", "d"}

    play(scene, FakeEngine, Shelf([card(name) for name in "abcd"]), max_jit=3)


def test_of_busy_models_one_makes_way_and_the_others_go_on() -> None:
    async def scene(stage: Stage) -> None:
        _, a_done = await stage.hold("a")
        stage.clock.advance(1)
        lease, b_done = await stage.hold("b")
        waiting = stage.ask("c")
        await settled()
        assert (await stage.ask("b")).engine is lease.engine, "it was asked for last, so it stays"
        behind = stage.ask("a")
        await settled()
        assert not behind.done()
        b_done.set()  # the first to be free makes way, whichever it is
        assert (await waiting).instance.id == "c"
        assert (await behind).instance.id == "a" and len(stage.peers) == 3, "which was never away"
        a_done.set()

    play(scene, FakeEngine, Shelf([card(name) for name in "abc"]), max_jit=2)


def test_shutting_down_ends_the_line() -> None:
    async def scene(stage: Stage) -> None:
        await stage.hold("a")
        waiting = stage.ask("b")
        await settled()
        await stage.pool.close()
        await failure(waiting, errors.ShuttingDown)

    one_place(scene)


def test_random_comings_and_goings_starve_nobody_and_keep_the_bound() -> None:
    """Each request gets the model that it asked for; never more than the places are loaded; at the end nobody waits."""
    import random

    async def scene(stage: Stage) -> None:
        draw = random.Random(7)

        async def request(name: str) -> None:
            async with stage.pool.lease(name, "chat") as lease:
                assert lease.instance.id == name and lease.engine.gone is None
                assert len({p.id for p in stage.pool.presences()}) <= 2
                for _ in range(draw.randrange(20)):
                    await asyncio.sleep(0)
                assert lease.engine.gone is None, "cut short"

        requests = []
        for _ in range(400):
            requests.append(asyncio.ensure_future(request(draw.choice("abcd"))))
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            if draw.random() < 0.2:
                draw.choice(requests).cancel()
        ends = await asyncio.gather(*requests, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends
        assert sum(end is None for end in ends) > 200

    play(scene, FakeEngine, Shelf([card(name) for name in "abcd"]), max_jit=2)


# ---- models that were told to load -----------------------------------------------------------------------------------


def test_a_model_that_was_told_to_load_stays() -> None:
    async def scene(stage: Stage) -> None:
        instance = await stage.pool.load("a")
        await stage.ask("b")
        await stage.ask("e", "embedding")
        stage.clock.advance(1e6)
        assert loaded(stage) == ["a"]
        assert not (await stage.ask("a")).loaded_now
        assert instance.remaining_ttl_s is None

    one_place(scene, ttl_s=60)


def test_a_model_that_was_told_for_how_long_leaves_then() -> None:
    async def scene(stage: Stage) -> None:
        await stage.pool.load("a", ModelSettings(ttl_s=10))
        await stage.pool.load("b")
        stage.clock.advance(9)
        assert stage.pool.instances()[0].remaining_ttl_s == 1
        await stage.ask("a")
        stage.clock.advance(9)
        assert loaded(stage) == ["a", "b"]
        stage.clock.advance(1)
        assert loaded(stage) == ["b"]

    play(scene, FakeEngine, ttl_s=60, shelf=Shelf([card("a"), card("b", settings=ModelSettings(ttl_s=0))]))


def test_a_model_that_is_loaded_again_is_there_twice() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask("a")
        assert [(await stage.pool.load("a")).id for _ in range(2)] == ["a:2", "a:3"]
        leases = [await stage.hold("a") for _ in range(3)]
        assert {lease.instance.id for lease, _ in leases} == {"a", "a:2", "a:3"}, "the least busy"
        leases[1][1].set()
        await settled()
        assert (await stage.ask("a")).instance.id == leases[1][0].instance.id
        assert (await stage.ask("A:2")).instance.id == "a:2"
        assert await stage.pool.unload("a:2")
        await failure(stage.ask("a:2"), errors.ModelNotFound)
        assert (await stage.pool.load("a")).id == "a:2"

    play(scene, FakeEngine)


def test_identifiers_that_mean_something_else_are_refused() -> None:
    async def scene(stage: Stage) -> None:
        assert (await stage.pool.load("a", identifier="Mine")).id == "mine"
        assert (await stage.ask("mine")).instance.id == "mine"
        assert (await stage.ask("a")).instance.id == "mine"
        for name, identifier in (("a", "MINE"), ("b", "mine"), ("a", "b")):
            with pytest.raises(errors.InvalidRequest) as refused:
                await stage.pool.load(name, identifier=identifier)
            assert refused.value.param == "identifier"
        assert (await stage.pool.load("b", identifier="b")).id == "b"

    play(scene, FakeEngine)


def test_numbers_skip_ids_of_other_models() -> None:
    async def scene(stage: Stage) -> None:
        assert [(await stage.pool.load("a")).id for _ in range(2)] == ["a", "a:3"]

    play(scene, FakeEngine, Shelf([card("a"), card("a:2")]))


def test_a_load_that_its_client_leaves_goes_on_for_whoever_wants_it() -> None:
    async def scene(stage: Stage) -> None:
        telling = asyncio.ensure_future(stage.pool.load("a"))
        peer = await stage.peer(0)
        request = stage.ask("a")
        await settled()
        telling.cancel()
        await answer_load(peer)
        assert (await request).instance.id == "a"

        alone = asyncio.ensure_future(stage.pool.load("b"))
        peer = await stage.peer(1)
        alone.cancel()
        await peer.closed()
        assert loaded(stage) == ["a"]

    play(scene)


def test_settings_of_the_request_stand_over_the_models_and_those_over_the_servers() -> None:
    async def scene(stage: Stage) -> None:
        asking = stage.ask("a")
        command = await answer_load(await stage.peer(0))
        assert (command["context_length"], command["parallel"], command["threads"]) == (2048, 3, 5)
        assert (command["k_cache_type"], command["v_cache_type"]) == ("q8_0", "q8_0")
        await asking
        telling = asyncio.ensure_future(stage.pool.load("a", ModelSettings(context_length=64, kv_type="f32,q4_0")))
        command = await answer_load(await stage.peer(1))
        assert (command["context_length"], command["parallel"], command["threads"]) == (64, 3, 5)
        assert (command["k_cache_type"], command["v_cache_type"]) == ("f32", "q4_0")
        await telling
        stage.clock.advance(8)
        assert [presence.remaining_ttl_s for presence in stage.pool.presences()] == [1, 1]

    own = ModelSettings(context_length=2048, parallel=3, kv_type="q8_0", ttl_s=9)
    play(scene, shelf=Shelf([card("a", settings=own)]), settings=LoadSettings(parallel=8, threads=5), ttl_s=60)


def test_the_memory_is_asked_for_before_a_load_unless_it_is_forced() -> None:
    async def scene(stage: Stage) -> None:
        await failure(stage.ask("a"), errors.MemoryRefused)
        with pytest.raises(errors.MemoryRefused):
            await stage.pool.load("a")
        assert not stage.peers
        assert (await stage.pool.load("a", checked=False)).id == "a"
        assert stage.peers[0].commands[0][2]["host_memory"] == 1

    play(scene, FakeEngine, room=narrow)


@contextlib.asynccontextmanager
async def narrow(spec: LoadSpec, checked: bool) -> AsyncIterator[LoadSpec]:
    """Room for one byte, and for nothing that is checked."""
    if checked:
        raise errors.MemoryRefused(2, 1)
    yield replaced(spec, host_memory=1)


def test_without_jit_only_what_was_told_to_load_is_served() -> None:
    async def scene(stage: Stage) -> None:
        assert (await failure(stage.ask("a"), errors.ModelNotLoaded)).status == 404
        assert (await failure(stage.ask(None), errors.ModelNotFound)).known == ()
        await failure(stage.ask("nope"), errors.ModelNotFound)
        await stage.pool.load("b")
        assert (await stage.ask(None)).instance.id == (await stage.ask("b")).instance.id == "b"
        assert len(stage.peers) == 1

    play(scene, FakeEngine, jit=False)


# ---- idle time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repetition", range(20))
def test_idle_time_never_ends_a_stream(repetition: int) -> None:
    async def scene(stage: Stage) -> None:
        asking = asyncio.ensure_future(stage.hold("a"))
        peer = await stage.peer(0)
        await answer_load(peer)
        lease, done = await asking
        heard: list[Any] = []
        run = hear(lease.engine, heard)
        _, request_id, _ = await peer.next()
        for _ in range(10):
            heard.clear()
            peer.send(frame(Kind.TEXT, request_id, b"word"))
            await until(lambda: bool(heard))
            stage.clock.advance(31)
        peer.send(frame(Kind.FINISHED, request_id, finished()))
        await run
        done.set()
        await settled()
        stage.clock.advance(59)
        assert stage.pool.state("a") == "loaded"
        stage.clock.advance(1)
        assert stage.pool.state("a") == "not-loaded"

    play(scene, ttl_s=60)


def test_idle_time_does_not_pass_while_a_request_waits_in_line() -> None:
    async def scene(stage: Stage) -> None:
        _, done = await stage.hold("a")
        waiting = stage.ask("b")
        await settled()
        stage.clock.advance(1e6)
        assert loaded(stage) == ["a"]
        done.set()
        await waiting

    one_place(scene, ttl_s=60)


@pytest.mark.parametrize(
    ("asked", "own", "stays_s"), [(None, None, None), (None, 7, 7), (3, 7, 3), (None, 0, None), (3, None, 3)]
)
def test_what_was_told_to_load_stays_unless_the_load_or_the_models_settings_name_a_time(
    asked: float | None, own: float | None, stays_s: float | None
) -> None:
    shelf = Shelf([card("a", settings=ModelSettings(ttl_s=own))])

    async def scene(stage: Stage) -> None:
        await stage.pool.load("a", ModelSettings(ttl_s=asked))
        await stage.ask("a", asked=ModelSettings(ttl_s=1))  # a request that loads nothing sets no time
        (there,) = stage.pool.presences()
        assert there.ttl_s == stays_s
        stage.clock.advance((stays_s or 1e6) - 0.5)
        assert loaded(stage) == ["a"]
        stage.clock.advance(1)
        assert loaded(stage) == ([] if stays_s else ["a"])

    play(scene, FakeEngine, shelf, ttl_s=2)


def test_the_log_tells_why_a_model_was_unloaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf, path, _ = files_of(tmp_path)
    shelf.listed = [*shelf.listed, card("b")]
    caplog.set_level("INFO", "lmlite.core.loading.pool")

    async def scene(stage: Stage) -> None:
        await stage.ask("a")
        await stage.ask("b")
        stage.clock.advance(60)
        await stage.ask("a")
        replace(path)
        await stage.ask("a")
        await stage.pool.unload("a")
        await stage.ask("b")

    one_place(scene, shelf=shelf, ttl_s=60)
    told = [record.getMessage() for record in caplog.records if "is unloaded" in record.getMessage()]
    assert told == [
        "'a' is unloaded: evicted, to make way for 'b'",
        "'b' is unloaded: its TTL is over, 60 s without a request",
        "'a' is unloaded: a file of it was replaced",
        "'a' is unloaded: a request unloaded it",
        "'b' is unloaded: the server stops",
    ]


# ---- files -----------------------------------------------------------------------------------------------------------


def files_of(tmp_path: Path) -> tuple[Shelf, Path, Path]:
    """A model of two parts."""
    paths = tmp_path / "a-1.gguf", tmp_path / "a-2.gguf"
    for path in paths:
        path.write_bytes(b"weights")
    return Shelf([card("a", paths=paths)]), *paths


def rewrite(path: Path) -> None:
    path.write_bytes(b"other weights")


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    rewrite(other)
    os.replace(other, path)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def link(path: Path) -> None:
    os.link(path, path.with_suffix(".link"))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def edit(path: Path) -> None:
    """In place, as long as before, with the time from before."""
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"W")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def swap(path: Path) -> None:
    """Another file that says the same."""
    copy = path.with_suffix(".new")
    copy.write_bytes(path.read_bytes())
    os.replace(copy, path)


@pytest.mark.parametrize("change", [rewrite, replace, append, edit, swap])
@pytest.mark.parametrize("part", [0, 1])
def test_a_changed_file_is_loaded_anew_by_and_for_the_next_request(
    tmp_path: Path, change: Callable[[Path], None], part: int
) -> None:
    shelf, *paths = files_of(tmp_path)

    async def scene(stage: Stage) -> None:
        old = await stage.ask("a")
        assert not (await stage.ask("a")).loaded_now
        change(paths[part])
        answers = await asyncio.gather(*[stage.ask("a") for _ in range(5)])
        assert len(stage.peers) == 2 and all(lease.engine is not old.engine for lease in answers)
        assert answers[0].loaded_now and loaded(stage) == ["a"]
        assert not (await stage.ask("a")).loaded_now

    play(scene, FakeEngine, shelf)


@pytest.mark.parametrize("change", [touch, link])
def test_a_file_of_which_only_the_times_have_changed_is_what_was_loaded(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    shelf, *paths = files_of(tmp_path)

    async def scene(stage: Stage) -> None:
        lease, done = await stage.hold("a")
        (slot,) = stage.pool._slots.values()
        assert slot.files is not None and slot.files._said is not None
        await slot.files._said  # what is not known yet is a change
        for path in paths:
            change(path)
        assert not any(lease.loaded_now for lease in await asyncio.gather(*[stage.ask("a") for _ in range(5)]))
        assert len(stage.peers) == 1 and lease.engine.gone is None
        done.set()
        edit(paths[1])  # what is remembered of it has not been forgotten
        assert (await stage.ask("a")).loaded_now

    play(scene, FakeEngine, shelf)


def test_a_projector_is_a_file_of_its_model(tmp_path: Path) -> None:
    shelf, path, projector = files_of(tmp_path)
    shelf.listed = [card("a", paths=(path,), mmproj=projector)]

    async def scene(stage: Stage) -> None:
        await stage.ask("a")
        replace(projector)
        assert (await stage.ask("a")).loaded_now

    play(scene, FakeEngine, shelf)


def test_a_projector_that_comes_is_loaded_for_the_first_that_needs_it(tmp_path: Path) -> None:
    shelf, path, projector = files_of(tmp_path)
    shelf.listed = [card("a", paths=(path,))]

    has_come = False

    async def look() -> None:
        if has_come:
            shelf.listed = [card("a", "vlm", paths=(path,), mmproj=projector)]

    async def scene(stage: Stage) -> None:
        nonlocal has_come
        assert not (await stage.ask("a")).instance.vision
        vision: frozenset[Sense] = frozenset(["vision"])
        with pytest.raises(errors.SenseMissing):
            await stage.pool.expect("a", "chat", UNSAID, vision)
        has_come = True
        await stage.pool.expect("a", "chat", UNSAID, vision)
        seeing = await stage.ask("a", senses=vision)
        assert seeing.loaded_now and seeing.instance.vision
        assert not (await stage.ask("a")).loaded_now

    play(scene, FakeEngine, shelf, look=look)


@pytest.mark.parametrize("max_jit", [None, 1])
def test_running_requests_go_on_with_the_file_that_they_have_open(tmp_path: Path, max_jit: int | None) -> None:
    shelf, path, _ = files_of(tmp_path)

    async def scene(stage: Stage) -> None:
        lease, done = await stage.hold("a")
        replace(path)
        new = await stage.ask("a")  # while the old one is in use
        assert new.engine is not lease.engine and new.instance.id == "a"
        assert [event async for event in lease.engine.run(Generate(Text("x")))]
        done.set()
        await until(lambda: lease.engine.gone is not None)
        assert new.engine.gone is None and loaded(stage) == ["a"]

    play(scene, FakeEngine, shelf, max_jit=max_jit)


def test_what_has_changed_is_looked_at_before_it_is_loaded(tmp_path: Path) -> None:
    shelf, path, _ = files_of(tmp_path)
    (old,) = shelf.listed
    other = tmp_path / "a-3.gguf"

    async def look() -> None:
        if path.exists():
            shelf.listed = [replaced(old, paths=(path, other), settings=ModelSettings(parallel=7))]
        else:
            shelf.listed = []

    async def scene(stage: Stage) -> None:
        await stage.pool.load("a", ModelSettings(context_length=512), identifier="mine")
        replace(path)
        other.write_bytes(b"weights")
        again = await stage.ask("mine")
        assert (again.loaded_now, again.instance.context_length, again.instance.parallel) == (True, 512, 7)
        assert again.instance.card.paths == (path, other)
        lease, done = await stage.hold("mine")
        path.unlink()
        for name in ("mine", "a", "mine"):
            assert (await failure(stage.ask(name), errors.ModelNotFound)).status == 404
        assert [event async for event in lease.engine.run(Generate(Text("x")))]
        done.set()

    play(scene, FakeEngine, shelf, look=look)


def test_what_was_told_to_load_is_there_though_who_found_it_changed_has_left(tmp_path: Path) -> None:
    shelf, path, _ = files_of(tmp_path)

    async def scene(stage: Stage) -> None:
        loading = asyncio.ensure_future(stage.pool.load("a", ModelSettings(ttl_s=5)))
        await answer_load(await stage.peer(0))
        await loading
        replace(path)
        leaving = stage.ask("a")
        peer = await stage.peer(1)
        leaving.cancel()
        await asyncio.wait([leaving])
        await answer_load(peer)
        await until(lambda: loaded(stage) == ["a"])
        stage.clock.advance(5)  # and it stays as long as it was told to
        assert loaded(stage) == []

    play(scene, shelf=shelf, ttl_s=60)


def test_requests_on_a_file_that_was_written_to_are_ended(tmp_path: Path) -> None:
    shelf, path, _ = files_of(tmp_path)

    async def scene(stage: Stage) -> None:
        held = asyncio.ensure_future(stage.hold("a"))
        peer = await stage.peer(0)
        await answer_load(peer)
        lease, _ = await held
        running = asyncio.ensure_future(lease.engine.stats())
        await peer.next()
        rewrite(path)
        again = stage.ask("a")
        await failure(running, errors.ModelFileChanged)
        await answer_load(await stage.peer(1))
        assert (await again).loaded_now

    play(scene, shelf=shelf)


@pytest.mark.parametrize("rewritten", [True, False])
def test_an_engine_that_ends_of_a_file_that_was_written_to_is_no_crash(tmp_path: Path, rewritten: bool) -> None:
    """It has the file in memory: where that gets shorter, there is none any more."""
    shelf, path, _ = files_of(tmp_path)

    async def scene(stage: Stage) -> None:
        for n in range(MAX_CRASHES + 2):
            asked = stage.ask("a")
            peer = await stage.peer(n)
            await answer_load(peer)
            lease = await asked
            running = asyncio.ensure_future(lease.engine.tokenize(str(n)))
            await peer.next()
            if rewritten:
                path.write_bytes(b"x" * n)
            peer.end("crashed (SIGBUS)")
            await failure(running, errors.ModelFileChanged if rewritten else errors.EngineGone)
            if n == MAX_CRASHES and not rewritten:
                await failure(stage.ask("a"), errors.EngineGone)
                return

    play(scene, shelf=shelf)


def test_the_memory_that_requests_on_the_old_file_have_is_waited_for(tmp_path: Path) -> None:
    shelf, path, _ = files_of(tmp_path)
    n_asked = 0

    @contextlib.asynccontextmanager
    async def room(spec: LoadSpec, checked: bool) -> AsyncIterator[LoadSpec]:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 2:
            raise errors.MemoryRefused(2, 1)
        yield spec

    async def scene(stage: Stage) -> None:
        _, done = await stage.hold("a")
        replace(path)
        again = stage.ask("a")
        await until(lambda: n_asked == 2)
        await settled()
        assert not again.done()
        done.set()
        assert (await again).loaded_now and n_asked == 3

    play(scene, FakeEngine, shelf, room=room)


def test_who_waits_for_the_place_of_a_model_gets_it_when_its_file_changes(tmp_path: Path) -> None:
    shelf, path, _ = files_of(tmp_path)
    shelf.listed = [*shelf.listed, card("b")]

    async def scene(stage: Stage) -> None:
        _, done = await stage.hold("a")
        other = stage.ask("b")
        await settled()
        replace(path)
        again = stage.ask("a")
        assert (await other).loaded_now
        done.set()
        assert (await again).loaded_now

    one_place(scene, shelf=shelf)


class SlowDisk:
    """Of a network, perhaps: whoever looks at a file waits while it is `stuck`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._answers, look = threading.Event(), stamps.stamp
        self._answers.set()

        def slow_look(file: str) -> stamps.Stamp | None:
            assert self._answers.wait(30)
            return look(file)

        monkeypatch.setattr(stamps, "stamp", slow_look)
        monkeypatch.setattr(stamps, "at_hand", lambda paths: False)

    @contextlib.contextmanager
    def stuck(self) -> Iterator[None]:
        self._answers.clear()
        try:
            yield
        finally:
            self._answers.set()


def test_a_disk_that_does_not_answer_keeps_only_its_own_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, path, _ = files_of(tmp_path)
    disk = SlowDisk(monkeypatch)

    async def scene(stage: Stage) -> None:
        lease, done = await stage.hold("a")
        replace(path)
        with disk.stuck():
            again = stage.ask("a")
            await turns()
            assert [event async for event in lease.engine.run(Generate(Text("x")))]
            assert not again.done()
        assert (await again).loaded_now
        done.set()

    play(scene, FakeEngine, shelf)


def test_a_model_that_leaves_while_its_files_are_looked_at_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, *_ = files_of(tmp_path)
    disk = SlowDisk(monkeypatch)

    async def scene(stage: Stage) -> None:
        await stage.ask("a")
        with disk.stuck():
            again = stage.ask("a")
            await turns()
            assert await stage.pool.unload("a")
        assert (await again).loaded_now

    play(scene, FakeEngine, shelf)


def test_a_draft_model_whose_file_has_changed_is_attached_again(tmp_path: Path) -> None:
    shelf, path, _ = files_of(tmp_path)
    shelf.listed = [*shelf.listed, card("b")]

    async def scene(stage: Stage) -> None:
        for changes in (False, False, True, False):
            if changes:
                replace(path)
            await stage.ask("b", draft="a")
        assert [kind for kind, _, _ in stage.peers[0].commands].count(Kind.ATTACH_DRAFT) == 2

    play(scene, FakeEngine, shelf)


def test_memory_is_asked_for_before_a_draft_model_is_attached() -> None:
    async def scene(stage: Stage) -> None:
        await stage.pool.load("a", ModelSettings(kv_cells=9, kv_type="q8_0", parallel=2))
        refused = await failure(stage.ask("a", draft="b"), errors.MemoryRefused)
        assert (refused.needed, refused.available, refused.param) == (2, 1, "draft_model")
        await stage.ask("a", draft="c")
        (attached,) = [command for kind, _, command in stage.peers[0].commands if kind == Kind.ATTACH_DRAFT]
        assert attached == {"path": "c.gguf", "host_memory": 7}
        assert asked == ["a", "b", "c"]

    @contextlib.asynccontextmanager
    async def room(spec: LoadSpec, checked: bool) -> AsyncIterator[LoadSpec]:
        asked.append(spec.paths[0].stem)
        if spec.paths[0].stem != "a":  # as the engine loads it
            assert (spec.settings.kv_cells, spec.settings.k_cache_type, spec.settings.parallel) == (0, "f16", 2)
        if spec.paths[0].stem == "b":
            raise errors.MemoryRefused(2, 1)
        yield replaced(spec, host_memory=7)

    asked: list[str] = []
    play(scene, FakeEngine, room=room)


# ---- failures --------------------------------------------------------------------------------------------------------


async def crash_often(stage: Stage) -> None:
    for _ in range(MAX_CRASHES + 1):
        await load_and_crash(stage, "out_of_memory")
    refused = await failure(stage.ask("a"), errors.EngineGone)
    assert "out_of_memory" in refused.reason and refused.status == 503


def test_a_model_that_is_told_to_load_gets_another_chance() -> None:
    async def scene(stage: Stage) -> None:
        await crash_often(stage)
        telling = asyncio.ensure_future(stage.pool.load("a"))
        await answer_load(await stage.peer(MAX_CRASHES + 1))
        await telling
        assert (await stage.ask("a")).instance.id == "a"

    play(scene)


def test_a_new_file_gets_another_chance(tmp_path: Path) -> None:
    shelf, path, _ = files_of(tmp_path)

    async def scene(stage: Stage) -> None:
        await crash_often(stage)
        replace(path)
        again = stage.ask("a")
        await answer_load(await stage.peer(MAX_CRASHES + 1))
        assert (await again).loaded_now

    play(scene, shelf=shelf)


def test_what_is_unloaded_tells_its_requests_so() -> None:
    async def scene(stage: Stage) -> None:
        held = asyncio.ensure_future(stage.hold("a"))
        peer = await stage.peer(0)
        await answer_load(peer)
        lease, _ = await held
        running = asyncio.ensure_future(lease.engine.stats())
        await peer.next()
        await stage.pool.unload("a")
        for request in (running, asyncio.ensure_future(lease.engine.stats())):
            told = await failure(request, errors.ModelUnloaded)
            assert (told.message, told.status, told.code) == ("Model unloaded.", 409, "model_unloaded")

    play(scene)


# ---- what it is doing ------------------------------------------------------------------------------------------------


def test_a_presence_tells_what_an_instance_is_doing() -> None:
    async def scene(stage: Stage) -> None:
        def status() -> tuple[str, int]:
            (presence,) = stage.pool.presences()
            return presence.status, presence.queued

        held = asyncio.ensure_future(stage.hold("a"))
        peer = await stage.peer(0)
        assert status() == ("loading", 1)
        await answer_load(peer)
        lease, done = await held
        (presence,) = stage.pool.presences()
        assert (presence.status, presence.ttl_s, presence.remaining_ttl_s) == ("idle", 60, 60)

        whole = hear(lease.engine, [], whole=True)
        id = (await peer.next())[1]
        assert status() == ("processingPrompt", 0)
        peer.send(frame(Kind.PROMPT_PROGRESS, id, {"done": 3, "total": 3, "cached": 1, "ms": 2.5}))
        await until(lambda: status() == ("generating", 0))
        peer.send(frame(Kind.FINISHED, id, finished()))
        await whole
        assert status() == ("idle", 0)

        heard: list[Any] = []
        runs = [hear(lease.engine, heard) for _ in range(3)]
        ids = [(await peer.next())[1] for _ in runs]
        assert status() == ("processingPrompt", 1)
        peer.send(frame(Kind.TEXT, ids[0], b"word"))
        await until(lambda: bool(heard))
        assert status() == ("generating", 1)
        for id in ids:
            peer.send(frame(Kind.FINISHED, id, finished()))
        await asyncio.gather(*runs)
        assert status() == ("idle", 0)
        done.set()
        await settled()
        stage.clock.advance(10)
        (presence,) = stage.pool.presences()
        assert presence.remaining_ttl_s == 50 and presence.used_at is not None

    play(scene, ttl_s=60, settings=LoadSettings(parallel=2))


def hear(engine: Engine, heard: list[Any], whole: bool = False) -> asyncio.Future[None]:
    async def run() -> None:
        async for event in engine.run(Generate(Text("x"), whole=whole)):
            heard.append(event)

    return asyncio.ensure_future(run())
