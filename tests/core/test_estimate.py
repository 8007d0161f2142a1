"""What a load will take, told before it: against the sizes that the file implies, and against what an engine then has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from lmlite.core.engine import Engine
from lmlite.core.estimate import Estimate, estimate
from lmlite.core.guard import MemoryGuard
from lmlite.core.payloads import DeviceMemory, LoadSettings, LoadSpec, Lora
from lmlite.core.worker import Placement, Process
from lmlite.errors import InvalidRequest, LmError, LoadFailed, MemoryRefused
from lmlite.request import Embed, Generate, Sampling, Tokens
from tests.core.gguf_files import gguf as gguf_bytes
from tests.core.gguf_files import llama as llama_header
from tests.fakes import FakeEngine, Script, error, fake_thread
from tests.memory_models import MEMORIES, N_EMBD, Memory, byte_tokens, write_model
from tests.random_models import Llama, RandomLora, copied, with_tensors, write_bert

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


def test_a_quantised_cache_takes_less(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    half = told(path, kv_cells=CELLS, k_cache_type="q8_0", v_cache_type="q8_0")
    assert half.kv_cache == told(path, kv_cells=CELLS).kv_cache * 34 // 64


def test_the_cache_has_room_for_as_many_contexts_as_run_at_once(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    assert told(path, context_length=512, parallel=3).kv_cells == 512 * 3


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


def test_a_projector_is_counted_by_its_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "full")
    projector = tmp_path / "mmproj.gguf"
    projector.write_bytes(bytes(12345))
    found = asyncio.run(estimate(Process, LoadSpec((path,)), projector=projector))
    assert found.projector == 12345 and found.total == found.weights + found.kv_cache + found.compute + 12345


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
    assert asyncio.run(compare(write_bert(tmp_path / "bert.gguf"), LoadSettings())) == pytest.approx(1, abs=0.3)


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
    asyncio.run(guard.check(LoadSpec((path,), LoadSettings(**settings))))  # type: ignore[arg-type]


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
    shared = Estimate(110, 0, 0, 0, 100, devices=(host, device("GPU0", 100, 0, shared=True)))
    assert shared.host == 110 and shared.shortage(110) is None
