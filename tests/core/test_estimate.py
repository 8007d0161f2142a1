"""What a load will take, told before it: against the sizes that the file implies, and against what an engine then has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from lmlite.core.engine import native
from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import DeviceMemory, LoadSettings, LoadSpec, Lora
from lmlite.core.engine.worker import Placement, Process
from lmlite.core.loading.estimate import HOST, Estimate, estimate
from lmlite.core.loading.memory_guard import MemoryGuard
from lmlite.errors import InvalidRequest, LmError, LoadFailed, MemoryRefused
from lmlite.messages import MediaPart, Message, TextPart
from lmlite.package import bundled_model
from lmlite.request import Chat, Embed, Generate, Sampling, Tokens
from tests import media_files
from tests.core.gguf_files import gguf as gguf_bytes
from tests.core.gguf_files import llama as llama_header
from tests.fakes import FakeEngine, Script, error, fake_thread
from tests.media_models import write_mlp, write_pixtral
from tests.memory_models import MEMORIES, N_EMBD, Memory, byte_tokens, write_model
from tests.random_models import Llama, RandomLora, copied, with_quants, with_tensors, write_bert

CELLS = 1 << 18  # enough to outweigh the process itself
MIB = 1 << 20


def told(path: Path, **settings: object) -> Estimate:
    return asyncio.run(estimate(Process, LoadSpec((path,), LoadSettings(**settings))))  # type: ignore[arg-type]


def tensor_bytes(path: Path) -> int:
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(str(path)).tensors)


# ---- its parts -------------------------------------------------------------------------------------------------------


def test_weights_and_cache_are_what_the_file_implies(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    found = told(path, kv_cells=CELLS)
    assert found.weights == pytest.approx(tensor_bytes(path), rel=0.01)
    assert found.kv_cache == CELLS * 2 * 2 * N_EMBD * 2  # two layers, keys and values, 16 bits
    assert found.kv_cells == CELLS and found.gpu == found.projector == 0
    assert found.total == found.host == found.weights + found.kv_cache + found.compute


@pytest.mark.skipif(native.build_info()["backend"] != "cpu", reason="there may be a GPU")
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16"])
def test_without_a_gpu_all_memory_is_the_machines(tmp_path: Path, kind: str) -> None:
    """Also what the CPU repacks for its own instructions, which has a kind of memory of its own."""
    source = write_model(tmp_path / "model.gguf", "full")
    found = told(with_quants(source, tmp_path / "quants.gguf", gguf.GGMLQuantizationType[kind]))
    assert ([device.name for device in found.devices], found.gpu) == (["CPU"], 0)
    assert found.host == found.total


def test_a_quantised_cache_takes_less(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    half = told(path, kv_cells=CELLS, k_cache_type="q8_0", v_cache_type="q8_0")
    assert half.kv_cache == told(path, kv_cells=CELLS).kv_cache * 34 // 64


def test_prompts_on_their_way_to_a_disk_take_memory_too(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "window")  # whose prompts go as a whole
    spec = LoadSpec((path,), LoadSettings(kv_cells=CELLS, prompt_cache_bytes=1 << 30))
    without = asyncio.run(estimate(Process, spec))
    with_it = asyncio.run(estimate(Process, replace(spec, prompt_cache=tmp_path / "cache")))
    assert with_it.compute - without.compute == pytest.approx(3 * min(without.kv_cache, 256 * MIB), rel=0.05)
    assert not (tmp_path / "cache").exists()


def test_the_cache_has_room_for_as_many_contexts_as_run_at_once(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    assert told(path, context_length=512, parallel=3).kv_cells == 512 * 3


@pytest.mark.parametrize("mmap", [True, False])
def test_more_than_one_context_takes_a_quarter_of_the_memory_that_is_named_at_most(tmp_path: Path, mmap: bool) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    unmapped = 0 if mmap else tensor_bytes(path)
    spec = LoadSpec((path,), LoadSettings(context_length=512, parallel=8, mmap=mmap))
    for cells in (8 * 512, 1024, 512):  # all of them, some, and never fewer than one context
        spec = replace(spec, host_memory=unmapped + 4 * cells * 2 * 2 * N_EMBD * 2 * (1 if cells > 512 else 0) + 1)
        assert asyncio.run(estimate(Process, spec)).kv_cells == asyncio.run(cells_of(spec)) == cells


async def cells_of(spec: LoadSpec) -> int:
    """As an engine that has loaded it says."""
    engine = await Engine.open(Process(), "model")
    try:
        return (await engine.load(spec)).kv_cells
    finally:
        await engine.close()


def test_states_of_a_recurrent_model_grow_with_the_sequences_and_not_with_the_cells(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "recurrent")
    few, many = told(path, parallel=2), told(path, parallel=6)
    assert many.kv_cache == 2 * few.kv_cache > 0  # two more than run at once are kept
    assert told(path, parallel=2, kv_cells=CELLS).kv_cache == few.kv_cache


def test_an_adapter_is_counted_with_the_weights(tmp_path: Path) -> None:
    base = Llama()
    path = base.write(tmp_path / "model.gguf")
    lora = RandomLora(base).write(tmp_path / "lora.gguf")
    more = told(path, loras=(Lora(lora),)).weights - told(path).weights
    assert more == lora.stat().st_size


def test_a_projector_is_counted_with_its_buffers(tmp_path: Path) -> None:
    projector = write_pixtral(tmp_path / "mmproj.gguf")
    without = told(bundled_model())
    found = asyncio.run(estimate(Process, LoadSpec((bundled_model(),), projector=projector)))
    assert without.projector == 0 and found.projector > projector.stat().st_size + (10 << 20)
    assert found.total == found.weights + found.kv_cache + found.compute + found.projector
    assert found.total == pytest.approx(without.total + found.projector, rel=0.02)


def test_a_projector_that_is_broken_has_no_estimate(tmp_path: Path) -> None:
    projector = tmp_path / "mmproj.gguf"
    projector.write_bytes(bytes(12345))
    with pytest.raises(LoadFailed, match="projector"):
        asyncio.run(estimate(Process, LoadSpec((bundled_model(),), projector=projector)))


def test_what_is_too_large_for_any_machine_is_still_told(tmp_path: Path) -> None:
    path = Llama(n_ctx=1 << 20, n_head=256, head_size=256).write(tmp_path / "model.gguf")
    found = told(path, context_length=1 << 20, k_cache_type="f32", v_cache_type="f32")
    assert found.kv_cache == (1 << 20) * 2 * 2 * 256 * 256 * 4  # a terabyte


# ---- against an engine -----------------------------------------------------------------------------------------------


def peak(pid: int | None) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


async def compare(path: Path, settings: LoadSettings) -> float:
    """The estimate over the engine's peak."""
    spec = LoadSpec((path,), settings)
    found = await estimate(Process, spec)
    placement = Process()
    engine = await Engine.open(placement, "model")
    try:
        loaded = await engine.load(spec)
        assert (found.kv_cells, found.context_length) == (loaded.kv_cells, loaded.context_length)
        tokens = byte_tokens(b"x" * (loaded.context_length - 1))
        if loaded.type == "embedding":
            await engine.embed(Embed(((5,) * loaded.context_length,)))
            await engine.embed(Embed(((5,) * loaded.context_length,) * 16))  # as many side by side as may
        else:
            async for _ in engine.run(Generate(Tokens(tokens), max_tokens=1, sampling=Sampling(temperature=0))):
                pass
        return (found.total + found.file_pages) / peak(placement.pid)
    finally:
        await engine.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("memory", [memory for memory in MEMORIES if memory != "recurrent"])
def test_an_engine_takes_what_was_told(tmp_path: Path, memory: Memory, mmap: bool) -> None:
    path = write_model(tmp_path / "model.gguf", memory)
    assert asyncio.run(compare(path, LoadSettings(kv_cells=CELLS, mmap=mmap))) == pytest.approx(1, abs=0.15)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
def test_small_models_are_mostly_the_process_itself(tmp_path: Path) -> None:
    states = write_model(tmp_path / "states.gguf", "recurrent")
    assert asyncio.run(compare(states, LoadSettings())) == pytest.approx(1, abs=0.3)
    encoder = write_bert(tmp_path / "bert.gguf", n_ctx=256)
    assert asyncio.run(compare(encoder, LoadSettings(threads=1))) == pytest.approx(1, abs=0.3)
    assert asyncio.run(compare(encoder, LoadSettings(threads=4))) == pytest.approx(1, abs=0.3)


async def compare_seeing(projector: Path, *pictures: bytes) -> tuple[int, int]:
    """What was told, and the peak once the cache was full and the pictures were looked at, one after the other."""
    spec = LoadSpec((bundled_model(),), LoadSettings(context_length=2048, kv_cells=2048), projector=projector)
    found = await estimate(Process, spec)
    placement = Process()
    engine = await Engine.open(placement, "model")
    try:
        await engine.load(spec)
        async for _ in engine.run(Generate(Tokens((500,) * 2047), max_tokens=1, sampling=Sampling(temperature=0))):
            pass
        for data in pictures:
            asked = Message("user", (MediaPart("image", data), TextPart("What is it?")))
            async for _ in engine.run(Generate(Chat((asked,)), max_tokens=1, sampling=Sampling(temperature=0))):
                pass
        return found.total + found.file_pages, peak(placement.pid)
    finally:
        await engine.close()


PICTURE = 96 * MIB
"""What decoding one may take."""


def picture(side: int, interlaced: bool = False) -> bytes:
    steps = [(8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)] if interlaced else [(1, 1)]
    rows = sum((3 * (side // across) + 1) * (side // down) for across, down in steps)
    return media_files.png_of(media_files.png_head(side, side, interlaced=int(interlaced)), bytes(rows))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
@pytest.mark.timeout(300)
def test_a_model_that_sees_takes_what_was_told(tmp_path: Path) -> None:
    large = write_mlp(tmp_path / "large.gguf", n_blocks=8, width=512, side=24)
    of_any_size = write_pixtral(tmp_path / "of-any-size.gguf")
    for projector, side in ((large, 336), (of_any_size, 1000)):
        usual = picture(side)
        for data in (usual, picture(5696)):  # 32 million pixels, of which few are held at a time
            told, took = asyncio.run(compare_seeing(projector, data))
            assert 0.85 * took < told < 1.15 * took + PICTURE
        told, took = asyncio.run(compare_seeing(projector, usual, picture(4992, interlaced=True)))  # as much as any may take
        assert told / took == pytest.approx(1, abs=0.15)


# ---- what cannot be estimated ----------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_loaded_has_no_estimate(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(llama_header()))
    with pytest.raises(LoadFailed):
        told(path)


def with_pooling(path: Path, pooling: int) -> Path:
    reader, writer = copied(Llama().write(path.with_suffix(".bare")), path, "")
    writer.add_uint32("llama.pooling_type", pooling)
    return with_tensors(reader, writer, path)


def test_a_pooling_type_that_says_nothing_makes_no_embedding_model(tmp_path: Path) -> None:
    unsaid = told(with_pooling(tmp_path / "unsaid.gguf", 0xFFFFFFFF))  # llama.cpp's -1
    assert unsaid.kv_cells == 4 * 2048
    mean = told(with_pooling(tmp_path / "mean.gguf", 1))
    assert mean.kv_cells == 2048


def test_settings_that_the_model_cannot_have_are_refused_as_by_a_load(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="experts"):
        told(write_model(tmp_path / "model.gguf", "full"), n_experts=2)


def test_an_engine_with_a_model_estimates_nothing(tmp_path: Path) -> None:
    spec = LoadSpec((write_model(tmp_path / "model.gguf", "full"),))

    async def run() -> None:
        engine = await Engine.open(Process(), "model")
        try:
            await engine.load(spec)
            with pytest.raises(LmError, match="has a model"):
                await engine.measure(spec)
        finally:
            await engine.close()

    asyncio.run(run())


# ---- the guard -------------------------------------------------------------------------------------------------------


def place(script: Script, started: list[FakeEngine] | None = None) -> Callable[[], Placement]:
    def start() -> Placement:
        engine = FakeEngine(script)
        if started is not None:
            started.append(engine)
        return fake_thread(engine)

    return start


def check(guard: MemoryGuard, path: Path, **settings: int) -> None:
    async def load() -> None:
        async with guard.room(LoadSpec((path,), LoadSettings(**settings))):  # type: ignore[arg-type]
            pass

    asyncio.run(load())


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    with pytest.raises(MemoryRefused, match="4000001 bytes") as refused:
        check(MemoryGuard(place(Script(needed=4_000_001)), lambda: 4_000_000), path)
    assert (refused.value.needed, refused.value.available) == (4_000_001, 4_000_000)
    check(MemoryGuard(place(Script(needed=4_000_000)), lambda: 4_000_000), path)


def test_the_real_engine_tells_the_guard(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    with pytest.raises(MemoryRefused) as refused:
        check(MemoryGuard(Process, lambda: 64 * MIB), path, kv_cells=CELLS)
    assert refused.value.needed > 128 * MIB


def test_a_model_that_took_little_is_not_asked_about_again(tmp_path: Path) -> None:
    started: list[FakeEngine] = []
    path = write_model(tmp_path / "model.gguf", "full")
    free = [8_000_000]
    guard = MemoryGuard(place(Script(needed=6_000_000), started), lambda: free[0])
    check(guard, path)
    check(guard, path)
    assert len(started) == 1
    check(guard, path, parallel=2)  # with other settings it may take more
    assert len(started) == 2
    path.write_bytes(path.read_bytes() + bytes(1))  # and so may another file
    check(guard, path)
    assert len(started) == 3
    free[0] = 5_000_000
    with pytest.raises(MemoryRefused):
        check(guard, path)


def test_a_model_that_fits_twice_over_is_not_asked_about(tmp_path: Path) -> None:
    started: list[FakeEngine] = []
    path = write_model(tmp_path / "model.gguf", "full")
    guard = MemoryGuard(place(Script(needed=1 << 60), started), lambda: 16 << 30)
    check(guard, path)
    assert not started
    with pytest.raises(MemoryRefused):
        check(guard, path, context_length=0)  # as long as the file says, which its size does not tell


@pytest.mark.parametrize(
    "script", [Script(estimate_error=error("load_failed")), Script(estimate_error=error("internal")), Script(die_at_load=True)]
)
def test_an_estimate_that_fails_refuses_nothing(tmp_path: Path, script: Script) -> None:
    check(MemoryGuard(place(script), lambda: 0), write_model(tmp_path / "model.gguf", "full"))
    check(MemoryGuard(place(script), lambda: 0), tmp_path / "missing.gguf")


class Loads:
    """Loads of files of their own, all of which need `needed` bytes; `free` changes when the test says so."""

    def __init__(self, folder: Path, needed: int, free: int):
        self.free, self._folder, self._script = free, folder, Script(needed=needed)
        self._looks = 0
        self.guard = MemoryGuard(place(self._script), self._look)

    def _look(self) -> int:
        self._looks += 1
        return self.free

    async def until_estimated(self) -> None:
        """The estimate of the load that was asked for last is known, and what it means."""
        while self._looks < 3:  # is it small, what is there for it, does it fit
            await asyncio.sleep(0)

    def need(self, n: int) -> None:
        self._script.needed = n

    async def begin(self, name: str, **more: bool) -> Callable[[], Awaitable[int]]:
        """A load that has room; called, it is over, and tells the memory that it was given."""
        task, let_go = self.ask(name, **more)
        await let_go.wait_until_in(task)

        async def end() -> int:
            let_go.out.set()
            return await task

        return end

    def ask(self, name: str, **more: bool) -> tuple[asyncio.Future[int], Door]:
        door = Door()
        path = self._folder / f"{name}.gguf"
        path.write_bytes(bytes(1000))
        self._looks = 0
        return asyncio.ensure_future(door.go_through(self.guard.room(LoadSpec((path,)), **more))), door


class Door:
    def __init__(self) -> None:
        self.is_in, self.out = asyncio.Event(), asyncio.Event()

    async def go_through(self, room: AbstractAsyncContextManager[LoadSpec]) -> int:
        async with room as spec:
            self.is_in.set()
            await self.out.wait()
            return spec.host_memory

    async def wait_until_in(self, task: asyncio.Future[int]) -> None:
        waiting = asyncio.ensure_future(self.is_in.wait())
        task.add_done_callback(lambda _: waiting.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        if task.done():
            task.result()


def test_loads_at_the_same_time_share_the_memory(tmp_path: Path) -> None:
    async def scene() -> None:
        loads = Loads(tmp_path, needed=4_000_000, free=9_000_000)
        first, second = await loads.begin("a"), await loads.begin("b")
        third, door = loads.ask("c")
        await loads.until_estimated()
        assert not third.done() and not door.is_in.is_set()
        assert await first() == 9_000_000
        await door.wait_until_in(third)  # the first took nothing, and leaves its share
        assert await second() == 5_000_000
        door.out.set()
        assert await third == 5_000_000

    asyncio.run(scene())


def test_a_load_for_which_the_first_left_too_little_is_refused_then(tmp_path: Path) -> None:
    async def scene() -> None:
        loads = Loads(tmp_path, needed=4_000_000, free=7_000_000)
        first = await loads.begin("a")
        second, _ = loads.ask("b")
        await loads.until_estimated()
        loads.free = 3_000_000
        await first()
        with pytest.raises(MemoryRefused) as refused:
            await second
        assert (refused.value.needed, refused.value.available) == (4_000_000, 3_000_000)

    asyncio.run(scene())


def test_what_would_not_even_fit_alone_does_not_wait_for_others(tmp_path: Path) -> None:
    async def scene() -> None:
        loads = Loads(tmp_path, needed=4_000_000, free=7_000_000)
        first = await loads.begin("a")
        loads.need(8_000_000)
        with pytest.raises(MemoryRefused):
            await loads.begin("b")
        await first()

    asyncio.run(scene())


def test_a_load_that_is_not_checked_counts_for_the_others(tmp_path: Path) -> None:
    async def scene() -> None:
        loads = Loads(tmp_path, needed=4_000_000, free=5_000_000)
        first = await loads.begin("a")
        forced = await loads.begin("b", checked=False)
        assert await forced() == 1_000_000 and await first() == 5_000_000
        forced = await loads.begin("c", checked=False)
        loads.need(4_999_001)  # beside the 1000 bytes of the file
        waiting, door = loads.ask("d")
        await loads.until_estimated()
        assert not door.is_in.is_set()
        await forced()
        await door.wait_until_in(waiting)
        door.out.set()
        await waiting

    asyncio.run(scene())


def test_each_gpu_has_to_have_room_for_its_own_part() -> None:
    def device(name: str, needed: int, free: int, **more: bool) -> DeviceMemory:
        return DeviceMemory(name, more.get("gpu", True), more.get("shared", False), needed, 0, 0, free)

    host = device("CPU", 10, 0, gpu=False, shared=True)
    fits = Estimate(110, 0, 0, 0, 100, devices=(host, device("GPU0", 60, 60), device("GPU1", 40, 50)))
    assert fits.host == 10
    assert fits.shortage(10) is None
    assert fits.shortage(9) == (10, 9)
    full = Estimate(110, 0, 0, 0, 100, devices=(host, device("GPU0", 60, 60), device("GPU1", 40, 39)))
    assert full.shortage(1000) == (40, 39)
    assert fits.shortage(12, {HOST: 2, "GPU0": 0}) is None
    assert fits.shortage(12, {HOST: 3}) == (10, 9)
    assert fits.shortage(12, {"GPU1": 11}) == (40, 39) and fits.takes == {HOST: 10, "GPU0": 60, "GPU1": 40}
    shared = Estimate(110, 0, 0, 0, 100, devices=(host, device("GPU0", 100, 0, shared=True)))
    assert shared.host == 110 and shared.shortage(110) is None
