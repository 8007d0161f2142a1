"""The pool of loaded models, with a far end that the test plays by hand or that a fake plays, and time by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmlite import errors
from lmlite.card import ModelCard, ModelType
from lmlite.core.engine.cores import Cores
from lmlite.core.engine.frames import Kind
from lmlite.core.engine.payloads import LoadSettings
from lmlite.core.engine.worker import Placement
from lmlite.core.loading.crashes import CRASH_WINDOW_S, MAX_CRASHES, REQUEST_WINDOW_S
from lmlite.core.loading.pool import Lease, Needs, Pool
from lmlite.events import Event, Leased, LoadProgress, Started, TextDelta
from lmlite.request import Generate, Text
from lmlite.settings import ModelSettings
from tests.fakes import WORDS, FakeClock, FakeEngine, Peer, Script, error, fake_thread, frame, loaded


def card(name: str, type: ModelType = "llm", **more: Any) -> ModelCard:
    return ModelCard(
        id=name,
        type=type,
        publisher="tester",
        display_name=name,
        arch="fake",
        quantization="F32",
        bits_per_weight=32,
        size_bytes=4000,
        params_string=None,
        max_context_length=2048,
        **{"paths": (Path(f"{name}.gguf"),), **more},
    )


@dataclass
class Shelf:
    """A catalogue; its first card is the default."""

    listed: Sequence[ModelCard] = (
        *map(card, "abc"),
        card("e", "embedding"),
        card("r", "embedding", reranks=True),
    )

    def cards(self) -> tuple[ModelCard, ...]:
        return tuple(self.listed)

    def resolve(self, name: str) -> ModelCard | None:
        return next((known for known in self.listed if known.id == name), None)

    def matched(self, name: str) -> ModelCard | None:
        return None

    def default(self) -> ModelCard | None:
        return self.listed[0] if self.listed else None

    def latest(self, card: ModelCard) -> ModelCard | None:
        return self.resolve(card.id)

    async def settings_changed(self) -> bool:
        return False


@dataclass
class Stage:
    """A pool, the far ends that it started, in order, and its clock."""

    pool: Pool
    peers: list[Any]
    clock: FakeClock
    leaving: list[asyncio.Future[Any]] = field(default_factory=list)

    def ask(self, name: str | None = "a", needs: Needs = "chat", **more: Any) -> asyncio.Future[Lease]:
        """A request that ends as soon as it has its lease."""

        async def request() -> Lease:
            async with self.pool.lease(name, needs, **more) as lease:
                return lease

        return asyncio.ensure_future(request())

    async def hold(self, name: str | None = "a", needs: Needs = "chat", **more: Any) -> tuple[Lease, asyncio.Event]:
        """A request that keeps its lease until the event is set."""
        done = asyncio.Event()
        got: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

        async def request() -> None:
            async with self.pool.lease(name, needs, **more) as lease:
                got.set_result(lease)
                await done.wait()

        task: asyncio.Future[Any] = asyncio.ensure_future(request())
        self.leaving.append(task)
        await asyncio.wait([task, got], return_when=asyncio.FIRST_COMPLETED)
        if not got.done():
            task.result()
        return got.result(), done

    async def peer(self, index: int) -> Peer:
        """The far end of the `index`th engine started, which may be about to start."""
        await until(lambda: len(self.peers) > index and hasattr(self.peers[index], "_writer"))
        peer = self.peers[index]
        assert isinstance(peer, Peer)
        return peer


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def answer_load(peer: Peer) -> dict[str, Any]:
    kind, request_id, command = await peer.next()
    assert kind == Kind.LOAD
    peer.send(frame(Kind.LOADED, request_id, loaded(command)))
    assert isinstance(command, dict)
    return command


def play(
    scene: Callable[[Stage], Coroutine[Any, Any, None]],
    make: Callable[[], Any] = Peer,
    shelf: Shelf | None = None,
    ttl_s: float | None = None,
    settings: LoadSettings | None = None,
    **options: Any,
) -> None:
    """`options` are further ones of the pool."""

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # what was begun first is done first
        peers: list[Any] = []
        clock = FakeClock()

        def place() -> Placement:
            peers.append(make())
            placement: Placement = fake_thread(peers[-1]) if isinstance(peers[-1], FakeEngine) else peers[-1]
            return placement

        options.setdefault("cores", lambda: Cores(64, 32))
        pool = Pool(shelf or Shelf(), place, settings or LoadSettings(), ttl_s, clock=clock, **options)
        stage = Stage(pool, peers, clock)
        try:
            await scene(stage)
        finally:
            await pool.close()
            for task in stage.leaving:
                task.cancel()
            await asyncio.gather(*stage.leaving, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 30))


async def failure(answer: asyncio.Future[Any], expected: type[errors.LmError]) -> Any:
    with pytest.raises(expected) as caught:
        await answer
    return caught.value


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_fifty_requests_one_load() -> None:
    async def scene(stage: Stage) -> None:
        answers = [stage.ask() for _ in range(50)]
        peer = await stage.peer(0)
        assert stage.pool.state("a") == "loading"
        command = await answer_load(peer)
        assert command["path"] == "a.gguf"
        leases = await asyncio.gather(*answers)
        assert len(stage.peers) == 1 and len({id(lease.engine) for lease in leases}) == 1
        assert all(lease.loaded_now for lease in leases)
        assert not (await stage.ask()).loaded_now
        assert stage.pool.state("a") == "loaded" and [found.id for found in stage.pool.instances()] == ["a"]

    play(scene)


def test_a_lease_serves_requests() -> None:
    async def scene(stage: Stage) -> None:
        async with stage.pool.lease("a", "text") as lease:
            events = [event async for event in lease.engine.run(Generate(Text("x")))]
            assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "".join(WORDS)
            assert lease.instance.card.id == "a" and lease.instance.runtime.version == "fake"

    play(scene, FakeEngine)


def test_settings_and_split_parts_reach_the_engine() -> None:
    async def scene(stage: Stage) -> None:
        answer = stage.ask()
        command = await answer_load(await stage.peer(0))
        assert command["path"] == "a-1.gguf" and command["splits"] == ["a-1.gguf", "a-2.gguf"]
        assert (command["context_length"], command["parallel"], command["threads"]) == (512, 2, 3)
        assert (await answer).instance.context_length == 512

    parts = Shelf([card("a", paths=(Path("a-1.gguf"), Path("a-2.gguf")))])
    play(scene, shelf=parts, settings=LoadSettings(context_length=512, parallel=2, threads=3))


@pytest.mark.parametrize(("asked", "threads"), [(0, 0), (1, 1), (6, 6), (7, 6), (64, 6)])
def test_no_engine_gets_more_threads_than_cores_are_usable(
    asked: int, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage) -> None:
        answer = stage.ask()
        command = await answer_load(await stage.peer(0))
        assert (command["threads"], command["cores"]) == (threads, 4)
        assert (await answer).instance.threads == (threads or 4)
        told = [record.getMessage() for record in caplog.records if "threads" in record.getMessage()]
        assert told == ([f"'a' gets 6 threads, not {asked}: so many cores are usable"] if asked > 6 else [])

    play(scene, settings=LoadSettings(threads=asked), cores=lambda: Cores(6, 4))


def test_each_request_hears_of_its_load_and_who_answers() -> None:
    async def scene(stage: Stage) -> None:
        first: list[Event] = []
        second: list[Event] = []
        answers = [stage.ask(heard=first.append)]
        peer = await stage.peer(0)
        _, request_id, command = await peer.next()
        peer.send(frame(Kind.LOAD_PROGRESS, request_id, {"progress": 0.25}))
        await until(lambda: len(first) > 1)
        answers.append(stage.ask(heard=second.append))
        await asyncio.sleep(0)
        peer.send(frame(Kind.LOAD_PROGRESS, request_id, {"progress": 0.75}))
        peer.send(frame(Kind.LOADED, request_id, loaded(command)))
        lease, _ = await asyncio.gather(*answers)
        leased = Leased(lease.instance, lease.instance.load_ms / 1000)
        assert first == [Started("a", loads=True), LoadProgress(0.25), LoadProgress(0.75), leased]
        assert second == [Started("a", loads=True), LoadProgress(0.75), leased]
        third: list[Event] = []
        await stage.ask(heard=third.append)
        assert third == [Started("a", loads=False), Leased(lease.instance, None)]

    play(scene)


def test_a_waiter_that_leaves_takes_nobody_along() -> None:
    async def scene(stage: Stage) -> None:
        leaver, stayer = stage.ask(), stage.ask()
        peer = await stage.peer(0)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        await answer_load(peer)
        assert (await stayer).loaded_now and not peer.killed

    play(scene)


def test_the_last_waiter_to_leave_ends_the_load() -> None:
    async def scene(stage: Stage) -> None:
        answers = [stage.ask(), stage.ask()]
        peer = await stage.peer(0)
        await peer.next()
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        assert stage.pool.state("a") == "not-loaded"
        await peer.closed()
        again = stage.ask()
        await answer_load(await stage.peer(1))
        assert (await again).loaded_now

    play(scene)


def test_a_waiter_that_leaves_before_the_engine_has_started() -> None:
    async def scene(stage: Stage) -> None:
        answer = stage.ask()
        await asyncio.sleep(0)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        assert stage.pool.state("a") == "not-loaded"
        assert (await stage.ask()).loaded_now

    play(scene, FakeEngine)


def test_a_failed_load_is_told_to_all_and_forgotten() -> None:
    async def scene(stage: Stage) -> None:
        answers = [stage.ask() for _ in range(3)]
        peer = await stage.peer(0)
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.ERROR, request_id, error("load_failed")))
        for answer in answers:
            assert (await failure(answer, errors.LoadFailed)).reason == "the fake says load_failed"
        assert stage.pool.state("a") == "not-loaded"
        await peer.closed()
        again = stage.ask()
        await answer_load(await stage.peer(1))
        assert (await again).loaded_now

    play(scene)


def test_an_engine_that_dies_of_the_file_is_a_failed_load() -> None:
    async def scene(stage: Stage) -> None:
        answer = stage.ask()
        peer = await stage.peer(0)
        await peer.next()
        peer.end("crashed (SIGABRT)")
        assert (await failure(answer, errors.LoadFailed)).reason == "the engine ended: crashed (SIGABRT)"

    play(scene)


def test_an_engine_that_cannot_be_started() -> None:
    class Nowhere(Peer):
        async def start(self) -> Any:
            raise FileNotFoundError(2, "No such file or directory", "/some/where")

    async def scene(stage: Stage) -> None:
        reason = (await failure(stage.ask(), errors.LoadFailed)).reason
        assert reason == "no engine can be started: No such file or directory"
        assert stage.pool.state("a") == "not-loaded"

    play(scene, Nowhere)


def test_models_load_side_by_side() -> None:
    async def scene(stage: Stage) -> None:
        first, second = stage.ask("a"), stage.ask("b")
        await answer_load(await stage.peer(1))
        assert (await second).instance.id == "b" and not first.done()
        await answer_load(await stage.peer(0))
        assert (await first).instance.id == "a"

    play(scene)


# ---- which model -----------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known() -> None:
    async def scene(stage: Stage) -> None:
        found = await failure(stage.ask("nope"), errors.ModelNotFound)
        assert (found.name, found.known) == ("nope", ("a", "b", "c", "e", "r"))
        assert not stage.peers

    play(scene)


@pytest.mark.parametrize(
    "name, needs",
    [("e", "chat"), ("e", "text"), ("a", "embedding"), ("a", "rerank"), ("e", "rerank"), ("r", "embedding"), ("r", "text")],
)
def test_the_wrong_type_of_model_is_not_even_loaded(name: str, needs: Needs) -> None:
    async def scene(stage: Stage) -> None:
        assert (await failure(stage.ask(name, needs), errors.WrongModelType)).name == name
        assert not stage.peers

    play(scene)


def test_a_model_with_a_problem_is_refused_with_it() -> None:
    async def scene(stage: Stage) -> None:
        assert (await failure(stage.ask("a"), errors.LoadFailed)).reason == "bad magic"
        assert not stage.peers

    play(scene, shelf=Shelf([card("a", problem="bad magic")]))


def test_a_vision_model_chats() -> None:
    async def scene(stage: Stage) -> None:
        assert (await stage.ask("v")).instance.id == "v"

    play(scene, FakeEngine, Shelf([card("v", "vlm")]))


def test_no_name_means_the_one_loaded_or_the_default() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask("e", "embedding")
        await stage.ask("b")
        assert (await stage.ask(None)).instance.id == "b"
        assert (await stage.ask(None, "embedding")).instance.id == "e"
        await stage.ask("r", "rerank")
        assert (await stage.ask(None, "rerank")).instance.id == "r"
        await stage.ask("a")
        assert (await stage.ask(None)).instance.id == "a", "two are loaded: the default"

    play(scene, FakeEngine)


def test_no_name_and_no_model() -> None:
    async def scene(stage: Stage) -> None:
        found = await failure(stage.ask(None), errors.ModelNotFound)
        assert (found.name, found.known) == (None, ())

    play(scene, shelf=Shelf(()))


# ---- idle time -------------------------------------------------------------------------------------------------------


def test_an_idle_model_is_unloaded_after_its_time() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask()
        stage.clock.advance(59)
        assert stage.pool.state("a") == "loaded"
        stage.clock.advance(1)
        assert stage.pool.state("a") == "not-loaded" and stage.pool.instances() == ()
        assert (await stage.ask()).loaded_now
        assert len(stage.peers) == 2

    play(scene, FakeEngine, ttl_s=60)


def test_idle_time_counts_from_the_end_of_the_last_request() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask()
        stage.clock.advance(30)
        _, first_done = await stage.hold()
        _, second_done = await stage.hold()
        stage.clock.advance(1000)
        first_done.set()
        await asyncio.gather(stage.leaving[0])
        stage.clock.advance(1000)
        assert stage.pool.state("a") == "loaded", "in use"
        second_done.set()
        await asyncio.gather(stage.leaving[1])
        stage.clock.advance(59)
        await stage.ask()
        stage.clock.advance(59)
        assert stage.pool.state("a") == "loaded", "used again"
        stage.clock.advance(1)
        assert stage.pool.state("a") == "not-loaded"

    play(scene, FakeEngine, ttl_s=60)


def test_the_request_that_loads_sets_the_time() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask("a", asked=ModelSettings(ttl_s=10))
        await stage.ask("a", asked=ModelSettings(ttl_s=5000))
        await stage.ask("b")
        stage.clock.advance(10)
        assert (stage.pool.state("a"), stage.pool.state("b")) == ("not-loaded", "loaded")
        stage.clock.advance(50)
        assert stage.pool.state("b") == "not-loaded"

    play(scene, FakeEngine, ttl_s=60)


def test_a_shorter_time_overtakes_a_longer_one() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask("b")
        await stage.ask("a", asked=ModelSettings(ttl_s=10))
        stage.clock.advance(10)
        assert (stage.pool.state("a"), stage.pool.state("b")) == ("not-loaded", "loaded")

    play(scene, FakeEngine, ttl_s=60)


def test_without_a_time_models_stay() -> None:
    async def scene(stage: Stage) -> None:
        await stage.ask()
        stage.clock.advance(1e9)
        assert stage.pool.state("a") == "loaded"

    play(scene, FakeEngine)


def test_the_next_load_waits_until_the_last_engine_is_gone() -> None:
    class Slow(Peer):
        gate: asyncio.Event

        async def close(self) -> None:
            await self.gate.wait()
            await super().close()

    async def scene(stage: Stage) -> None:
        Slow.gate = asyncio.Event()
        first = stage.ask()
        await answer_load(await stage.peer(0))
        await first
        stage.clock.advance(60)
        again = stage.ask()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(stage.peers) == 1, "its memory is not free yet"
        Slow.gate.set()
        await answer_load(await stage.peer(1))
        await again

    play(scene, Slow, ttl_s=60)


# ---- death and crash loops -------------------------------------------------------------------------------------------


async def load_and_crash(stage: Stage, how: str = "crashed (SIGSEGV)") -> None:
    index = len(stage.peers)
    held = asyncio.ensure_future(stage.hold())
    peer = await stage.peer(index)
    await answer_load(peer)
    lease, done = await held
    answer = asyncio.ensure_future(lease.engine.stats())
    await peer.next()
    peer.end(how)
    assert (await failure(answer, errors.EngineGone)).reason == how
    done.set()


def test_a_dead_engine_is_loaded_again() -> None:
    async def scene(stage: Stage) -> None:
        await load_and_crash(stage)
        assert stage.pool.state("a") == "not-loaded" and stage.pool.instances() == ()
        again = stage.ask()
        await answer_load(await stage.peer(1))
        assert (await again).loaded_now

    play(scene)


def test_a_death_harms_no_other_model() -> None:
    async def scene(stage: Stage) -> None:
        other = stage.ask("b")
        await answer_load(await stage.peer(0))
        engine = (await other).engine
        await load_and_crash(stage)
        assert stage.pool.state("b") == "loaded" and engine.gone is None

    play(scene)


def test_a_model_that_keeps_crashing_is_refused_until_told_otherwise() -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(MAX_CRASHES + 1):
            await load_and_crash(stage)
            stage.clock.advance(1)
        refused = await failure(stage.ask(), errors.EngineGone)
        assert "4 times within 60 s" in refused.reason and "crashed (SIGSEGV)" in refused.reason
        assert len(stage.peers) == MAX_CRASHES + 1, "nothing was loaded for it"
        other = stage.ask("b")
        await answer_load(await stage.peer(MAX_CRASHES + 1))
        await other
        stage.clock.advance(1e6)
        await failure(stage.ask(), errors.EngineGone)
        assert await stage.pool.unload("a")
        again = stage.ask()
        await answer_load(await stage.peer(MAX_CRASHES + 2))
        assert (await again).loaded_now

    play(scene)


def test_crashes_now_and_then_are_no_loop() -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(3 * MAX_CRASHES):
            await load_and_crash(stage)
            stage.clock.advance(CRASH_WINDOW_S / MAX_CRASHES)
        assert stage.pool.state("a") == "not-loaded"

    play(scene)


async def send_and_crash(stage: Stage, text: str, beside: Sequence[Generate] = ()) -> None:
    """The engine ends while it takes in `text`; what runs `beside` it has begun to be answered."""
    index = len(stage.peers)
    held = asyncio.ensure_future(stage.hold())
    peer = await stage.peer(index)
    await answer_load(peer)
    lease, done = await held
    streams = [lease.engine.run(generate).batches() for generate in beside]
    for stream in streams:
        first = asyncio.ensure_future(anext(stream))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"well,"))
        await first
    answer = asyncio.ensure_future(lease.engine.tokenize(text))
    await peer.next()
    peer.end("crashed (SIGSEGV)")
    await failure(answer, errors.EngineGone)
    for stream in streams:
        with pytest.raises(errors.EngineGone):
            await anext(stream)
    done.set()


def test_a_request_that_twice_ended_an_engine_is_refused_and_its_model_is_not() -> None:
    async def scene(stage: Stage) -> None:
        await send_and_crash(stage, "bad")
        await send_and_crash(stage, "bad")
        held = asyncio.ensure_future(stage.hold())
        peer = await stage.peer(2)
        await answer_load(peer)
        lease, done = await held
        for _ in range(2 * MAX_CRASHES):
            with pytest.raises(errors.RequestRefused, match=r"ended the engine .* 2 times, last: crashed \(SIGSEGV\)"):
                await lease.engine.tokenize("bad")
        other = asyncio.ensure_future(lease.engine.tokenize("good"))
        kind, request_id, command = await peer.next()
        assert (kind, command["text"]) == (Kind.TOKENIZE, "good")
        peer.send(frame(Kind.TOKENS, request_id, {"tokens": [1], "pieces": [[97]]}))
        await other
        stage.clock.advance(REQUEST_WINDOW_S)
        again = asyncio.ensure_future(lease.engine.tokenize("bad"))
        assert (await peer.next())[2]["text"] == "bad"
        again.cancel()
        done.set()

    play(scene)


def test_a_request_is_judged_anew_when_its_model_is_loaded_or_unloaded_by_name() -> None:
    async def scene(stage: Stage) -> None:
        await send_and_crash(stage, "bad")
        await send_and_crash(stage, "bad")
        assert not await stage.pool.unload("a"), "it is not loaded"
        await send_and_crash(stage, "bad")

    play(scene)


def test_a_neighbour_that_was_being_answered_is_no_suspect() -> None:
    async def scene(stage: Stage) -> None:
        neighbour = Generate(Text("innocent"))
        await send_and_crash(stage, "bad", beside=[neighbour])
        await send_and_crash(stage, "bad", beside=[neighbour])
        await send_and_crash(stage, "worse", beside=[neighbour])

    play(scene)


def test_what_was_being_answered_is_a_suspect_where_there_is_nobody_else() -> None:
    async def scene(stage: Stage) -> None:
        bad = Generate(Text("ends the engine later"))
        for index in range(2):
            held = asyncio.ensure_future(stage.hold())
            peer = await stage.peer(index)
            await answer_load(peer)
            lease, done = await held
            batches = lease.engine.run(bad).batches()
            first = asyncio.ensure_future(anext(batches))
            _, request_id, _ = await peer.next()
            peer.send(frame(Kind.TEXT, request_id, b"well,"))
            await first
            peer.end("crashed (SIGSEGV)")
            with pytest.raises(errors.EngineGone):
                await anext(batches)
            done.set()
        held = asyncio.ensure_future(stage.hold())
        await answer_load(await stage.peer(2))
        lease, done = await held
        with pytest.raises(errors.RequestRefused):
            await anext(lease.engine.run(bad).batches())
        done.set()

    play(scene)


def test_crashes_of_different_requests_still_refuse_the_model() -> None:
    async def scene(stage: Stage) -> None:
        for text in ("a", "a", "b", "b", "c", "c"):  # three requests, by now refused
            await send_and_crash(stage, text)
        await send_and_crash(stage, "d")
        assert "4 times" in (await failure(stage.ask(), errors.EngineGone)).reason

    play(scene)


def test_a_file_that_kills_every_engine_is_refused() -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(MAX_CRASHES + 1):
            assert "ended" in (await failure(stage.ask(), errors.LoadFailed)).reason
        assert (await failure(stage.ask(), errors.EngineGone)).name == "a"
        assert len(stage.peers) == MAX_CRASHES + 1

    play(scene, lambda: FakeEngine(Script(die_at_load=True)))


# ---- unload and close ------------------------------------------------------------------------------------------------


def test_unload_ends_requests_and_frees_the_model() -> None:
    async def scene(stage: Stage) -> None:
        held = asyncio.ensure_future(stage.hold())
        peer = await stage.peer(0)
        await answer_load(peer)
        lease, _ = await held
        answer = asyncio.ensure_future(lease.engine.stats())
        await peer.next()
        assert await stage.pool.unload("a")
        assert (await failure(answer, errors.EngineGone)).reason == "unloaded"
        assert stage.pool.state("a") == "not-loaded"
        assert not await stage.pool.unload("a")
        # It was no crash.
        for _ in range(MAX_CRASHES + 1):
            again = stage.ask()
            await answer_load(await stage.peer(len(stage.peers)))
            await again
            await stage.pool.unload("a")

    play(scene)


def test_unload_during_the_load() -> None:
    async def scene(stage: Stage) -> None:
        answer = stage.ask()
        peer = await stage.peer(0)
        await peer.next()
        assert await stage.pool.unload("a")
        assert (await failure(answer, errors.EngineGone)).reason == "unloaded"
        await peer.closed()

    play(scene)


def test_close_lets_requests_finish() -> None:
    async def scene(stage: Stage) -> None:
        lease, done = await stage.hold()
        closing = asyncio.ensure_future(stage.pool.close(grace_s=30))
        await asyncio.sleep(0)
        await failure(stage.ask(), errors.ShuttingDown)
        events = [event async for event in lease.engine.run(Generate(Text("x")))]
        assert events and not closing.done()
        done.set()
        await closing
        assert stage.pool.instances() == ()

    play(scene, FakeEngine)


def test_close_ends_what_does_not_finish() -> None:
    async def scene(stage: Stage) -> None:
        held = asyncio.ensure_future(stage.hold())
        peer = await stage.peer(0)
        await answer_load(peer)
        lease, _ = await held
        running = asyncio.ensure_future(lease.engine.stats())
        loading = stage.ask("b")
        second = await stage.peer(1)
        await second.next()
        await stage.pool.close(grace_s=0.01)
        await failure(running, errors.ShuttingDown)
        await failure(loading, errors.ShuttingDown)
        await peer.closed()
        await second.closed()
        assert not stage.clock.armed

    play(scene, ttl_s=60)


# ---- draft models ----------------------------------------------------------------------------------------------------


async def answer_attach(peer: Peer, reply: Any = b"") -> list[str]:
    """The files that were to be attached."""
    kind, request_id, command = await peer.next()
    assert kind == Kind.ATTACH_DRAFT
    peer.send(frame(Kind.RESULT if reply == b"" else Kind.ERROR, request_id, reply))
    return command.get("splits") or [command["path"]]


def test_a_draft_model_is_attached_once_for_all_who_name_it() -> None:
    async def scene(stage: Stage) -> None:
        requests = [stage.ask("a", draft="b") for _ in range(3)]
        peer = await stage.peer(0)
        await answer_load(peer)
        assert await answer_attach(peer) == ["b.gguf"]
        await asyncio.gather(*requests)
        await stage.ask("a", draft="b")
        await stage.ask("a")
        assert [instance.id for instance in stage.pool.instances()] == ["a"]

    play(scene)


def test_another_draft_model_takes_the_place_of_the_first() -> None:
    async def scene(stage: Stage) -> None:
        first = stage.ask("a", draft="b")
        peer = await stage.peer(0)
        await answer_load(peer)
        await answer_attach(peer)
        await first
        second = stage.ask("a", draft="a")
        assert await answer_attach(peer) == ["a.gguf"]
        await second
        third = stage.ask("a", draft="b")
        assert await answer_attach(peer) == ["b.gguf"]
        await third

    play(scene)


def test_a_draft_model_that_is_given_up_is_attached_again() -> None:
    async def scene(stage: Stage) -> None:
        left = stage.ask("a", draft="b")
        peer = await stage.peer(0)
        await answer_load(peer)
        kind, request_id, _ = await peer.next()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert await peer.next() == (Kind.CANCEL, request_id, None)
        again = stage.ask("a", draft="b")
        await answer_attach(peer)
        await again

    play(scene)


@pytest.mark.parametrize(
    ("draft", "reply", "expected"),
    [
        ("b", error("invalid_request", param="draft_model"), errors.InvalidRequest),
        ("b", error("load_failed"), errors.LoadFailed),
        ("unknown", None, errors.ModelNotFound),
        ("e", None, errors.WrongModelType),
    ],
)
def test_a_draft_model_that_cannot_draft_is_the_fault_of_its_field(draft: str, reply: Any, expected: type[Exception]) -> None:
    async def scene(stage: Stage) -> None:
        request = stage.ask("a", draft=draft)
        if reply is not None:
            peer = await stage.peer(0)
            await answer_load(peer)
            await answer_attach(peer, reply)
        with pytest.raises(expected) as raised:
            await request
        assert isinstance(raised.value, errors.LmError)
        assert raised.value.param == "draft_model"
        if isinstance(raised.value, errors.LoadFailed):
            assert raised.value.name == "b"

    play(scene)
