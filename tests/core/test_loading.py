"""Load settings with the real engine: each does what it says, and what cannot be is refused by the key's name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import lmlite
from lmlite.app import open_pool
from lmlite.config import CACHE_TYPES, Config, options
from lmlite.core.disk.catalog import Catalog
from lmlite.core.engine.client import Engine
from lmlite.core.engine.frames import Kind
from lmlite.core.engine.native import build_info
from lmlite.core.engine.payloads import Loaded, LoadSettings, LoadSpec, Lora
from lmlite.core.engine.worker import Process
from lmlite.core.loading.effective import fitting
from lmlite.errors import EngineError, InvalidRequest, LmError, LoadFailed
from lmlite.events import Finished, TextDelta
from lmlite.package import bundled_model
from lmlite.request import Generate, Sampling, Tokens
from tests.fakes import FakeEngine, fake_thread
from tests.random_models import Llama, RandomLora, write_bert

GREEDY = Sampling(temperature=0)
PROMPT = tuple(range(259, 285)) * 2  # letters
OTHER_PROMPT = tuple(range(284, 258, -1))
EXACT: dict[str, Any] = {"k_cache_type": "f32", "v_cache_type": "f32", "flash_attention": False}

Said = tuple[list[tuple[bytes, float]], Finished]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Llama().write(tmp_path_factory.mktemp("llama") / "llama.gguf")


@contextlib.asynccontextmanager
async def an_engine(process: Process | None = None) -> AsyncIterator[Engine]:
    engine = await Engine.open(process or Process(), "model")
    try:
        yield engine
    finally:
        await engine.close()


async def load(engine: Engine, path: Path, **settings: Any) -> Loaded:
    return await engine.load(LoadSpec((path,), LoadSettings(**settings)))


async def say(engine: Engine, prompt: tuple[int, ...] = PROMPT, max_tokens: int = 12, **more: Any) -> Said:
    """The greedy tokens with their logprobs, and the end."""
    work = Generate(Tokens(prompt), max_tokens=max_tokens, sampling=GREEDY, top_logprobs=1, ignore_eos=True, **more)
    events = [event async for event in engine.run(work)]
    assert isinstance(events[-1], Finished)
    said = [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]
    return [(token.bytes, token.logprob or 0.0) for token in said], events[-1]


def tokens_of(said: Said) -> list[bytes]:
    return [raw for raw, _ in said[0]]


def first_logprob(said: Said) -> float:
    return said[0][0][1]


def with_model(path: Path, test: Callable[[Engine, Loaded], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        async with an_engine() as engine:
            await test(engine, await load(engine, path, **settings))

    asyncio.run(run())


def say_once(path: Path, **settings: Any) -> Said:
    found = []

    async def test(engine: Engine, loaded: Loaded) -> None:
        found.append(await say(engine))

    with_model(path, test, **settings)
    return found[0]


def refusal(path: Path, good: Path, **settings: Any) -> LmError:
    """What the load is refused with; the engine must live on and load `good` next."""

    async def run() -> LmError:
        async with an_engine() as engine:
            with pytest.raises(LmError) as refused:
                await load(engine, path, **settings)
            await load(engine, good)
            assert len((await say(engine))[0]) == 12
            return refused.value

    return asyncio.run(run())


# ---- KV cache --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact(llama: Path) -> Said:
    return say_once(llama, k_cache_type="f32", v_cache_type="f32")


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_every_cache_type_decodes_close_to_the_exact_one(llama: Path, exact: Said, kind: str) -> None:
    async def test(engine: Engine, loaded: Loaded) -> None:
        error = abs(first_logprob(await say(engine)) - first_logprob(exact))
        assert error < 0.3
        assert (error > 1e-6) == (kind not in ("f32", "f16"))
        both = await asyncio.gather(say(engine), say(engine, OTHER_PROMPT))
        assert [len(said) for said, _ in both] == [12, 12]
        assert both[0][1].stats.cached_tokens == len(PROMPT) - 1

    with_model(llama, test, k_cache_type=kind, v_cache_type=kind)


@pytest.mark.parametrize(("k", "v"), [("q8_0", "q4_0"), ("f16", "iq4_nl"), ("q5_1", "bf16"), ("f32", "f16")])
def test_k_and_v_may_have_different_types(llama: Path, exact: Said, k: str, v: str) -> None:
    said = say_once(llama, k_cache_type=k, v_cache_type=v)
    assert abs(first_logprob(said) - first_logprob(exact)) < 0.3


def test_a_quantised_k_cache_works_without_flash_attention(llama: Path, exact: Said) -> None:
    said = say_once(llama, k_cache_type="q8_0", flash_attention=False)
    assert abs(first_logprob(said) - first_logprob(exact)) < 0.3


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"k_cache_type": "q8_0"}, "k_cache_type"),
        ({"k_cache_type": "q4_0", "v_cache_type": "q4_0"}, "k_cache_type"),
        ({"v_cache_type": "q8_0"}, "v_cache_type"),
        ({"k_cache_type": "q8_0", "flash_attention": False}, "k_cache_type"),
        ({"v_cache_type": "q8_0", "flash_attention": False}, "v_cache_type"),
        ({"k_cache_type": "q6_K"}, "k_cache_type"),
        ({"v_cache_type": "i32"}, "v_cache_type"),
        ({"k_cache_type": "iq2_xs"}, "k_cache_type"),
        ({"k_cache_type": ""}, "k_cache_type"),
    ],
)
def test_cache_types_that_the_heads_do_not_allow_are_refused(
    tmp_path: Path, llama: Path, settings: dict[str, Any], param: str
) -> None:
    narrow = Llama(head_size=20).write(tmp_path / "narrow.gguf")
    refused = refusal(narrow, llama, **settings)
    assert isinstance(refused, InvalidRequest)
    assert refused.param == param


def test_an_embedding_model_has_no_use_for_cache_types(tmp_path: Path) -> None:
    async def test(engine: Engine, loaded: Loaded) -> None:
        assert loaded.type == "embedding"

    with_model(write_bert(tmp_path / "bert.gguf"), test, k_cache_type="q8_0", v_cache_type="q8_0")


def test_a_cache_larger_than_the_memory_is_refused_and_its_type_counts(tmp_path: Path, llama: Path) -> None:
    wide = Llama(n_head=16, head_size=512).write(tmp_path / "wide.gguf")
    possible = {}
    for kind in ("f16", "q8_0"):
        refused = refusal(wide, llama, kv_cells=1 << 24, k_cache_type=kind, v_cache_type=kind)
        assert isinstance(refused, EngineError) and refused.code == "out_of_memory"
        possible[kind] = int(re.findall(r"\d+", str(refused))[0])
    assert possible["q8_0"] / possible["f16"] == pytest.approx(32 * 2 / 34, rel=0.2)


# ---- experts ---------------------------------------------------------------------------------------------------------


def test_the_number_of_experts_changes_what_is_said(tmp_path: Path) -> None:
    path = Llama(n_experts=4).write(tmp_path / "moe.gguf")
    said = {}

    async def test(engine: Engine, loaded: Loaded) -> None:
        said[loaded.n_experts] = first_logprob(await say(engine))

    for n_experts in (0, 1, 3, 4):
        with_model(path, test, n_experts=n_experts)
    assert list(said) == [2, 1, 3, 4]
    assert len(set(said.values())) == 4


@pytest.mark.parametrize(
    ("model", "n_experts"),
    [(Llama(), 1), (Llama(n_experts=4), 5), (Llama(n_experts=4), 2**31 - 1), (Llama(n_experts=4, n_used=(2, 1)), 1)],
)
def test_numbers_of_experts_that_the_model_cannot_have_are_refused(
    tmp_path: Path, llama: Path, model: Llama, n_experts: int
) -> None:
    refused = refusal(model.write(tmp_path / "model.gguf"), llama, n_experts=n_experts)
    assert isinstance(refused, InvalidRequest)
    assert refused.param == "n_experts"


# ---- files and devices -----------------------------------------------------------------------------------------------


def test_a_model_that_is_read_says_the_same_as_one_that_is_mapped(llama: Path) -> None:
    assert say_once(llama, mmap=False)[0] == say_once(llama)[0]


def locked_bytes(pid: int) -> int:
    return int(re.findall(r"VmLck:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux only")
@pytest.mark.parametrize("mmap", [True, False])
def test_mlock_locks_the_model_or_says_that_it_may_not(llama: Path, mmap: bool) -> None:
    async def run() -> None:
        async with an_engine(process := Process()) as engine:
            assert process.pid is not None
            resource.prlimit(process.pid, resource.RLIMIT_MEMLOCK, (4096, 4096))  # a privileged process does not care
            try:
                await load(engine, llama, mlock=True, mmap=mmap)
            except InvalidRequest as refused:
                assert refused.param == "mlock"
                await load(engine, llama)
            else:
                assert locked_bytes(process.pid) > sum(w.nbytes for w in Llama().weights().values())
            assert len((await say(engine))[0]) == 12

    asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"main_gpu": 63}, "main_gpu"),
        ({"tensor_split": (1.0,) * 60}, "tensor_split"),
        ({"tensor_split": (-1.0,)}, "tensor_split"),
        ({"split_mode": "diagonal"}, "split_mode"),
        ({"threads": 100_000}, "threads"),
        ({"eval_batch_size": 0}, "eval_batch_size"),
        ({"gpu_layers": -2}, "gpu_layers"),
        ({"idle_cells": -2}, "idle_cells"),
        ({"spill_bytes": -2}, "spill_bytes"),
    ],
)
def test_settings_that_no_machine_has_are_refused(llama: Path, settings: dict[str, Any], param: str) -> None:
    refused = refusal(llama, llama, **settings)
    assert isinstance(refused, InvalidRequest)
    assert refused.param == param


@pytest.mark.skipif(build_info()["backend"] != "cpu", reason="for builds without a GPU")
def test_settings_for_gpus_are_refused_or_harmless_without_one(llama: Path) -> None:
    for settings, param in (({"split_mode": "tensor"}, "split_mode"), ({"tensor_split": (1.0,)}, "tensor_split")):
        refused = refusal(llama, llama, **settings)
        assert isinstance(refused, InvalidRequest)
        assert refused.param == param
    alone = say_once(llama)[0]
    assert say_once(llama, split_mode="row", offload_kv_cache=False, gpu_layers=99)[0] == alone
    assert say_once(llama, split_mode="none")[0] == alone


# ---- LoRA ------------------------------------------------------------------------------------------------------------


FIRST, SECOND = RandomLora(Llama()), RandomLora(Llama(), seed=12, rank=3)


@pytest.fixture(scope="module")
def adapters(llama: Path) -> tuple[Lora, Lora]:
    folder = llama.parent
    return Lora(FIRST.write(folder / "first.gguf")), Lora(SECOND.write(folder / "second.gguf"), scale=0.0)


def assert_close(said: Said, expected: Said) -> None:
    assert tokens_of(said) == tokens_of(expected)
    assert [p for _, p in said[0]] == pytest.approx([p for _, p in expected[0]], abs=1e-3)


@pytest.mark.parametrize("loras", [(), ((0, 0.0), (1, -0.0))])
def test_an_adapter_at_scale_0_changes_nothing(llama: Path, adapters: tuple[Lora, ...], loras: Any) -> None:
    async def test(engine: Engine, loaded: Loaded) -> None:
        assert (await say(engine, loras=loras))[0] == alone

    alone = say_once(llama)[0]
    with_model(llama, test, loras=adapters)
    assert say_once(llama, loras=(adapters[1],))[0] == alone


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_an_adapter_is_what_merging_it_would_be(
    tmp_path: Path, llama: Path, adapters: tuple[Lora, ...], scale: float
) -> None:
    merged = say_once(Llama().write(tmp_path / "merged.gguf", FIRST.merged(scale)))

    async def test(engine: Engine, loaded: Loaded) -> None:
        assert_close(await say(engine, loras=((0, scale),)), merged)

    assert tokens_of(merged) != tokens_of(say_once(llama))
    with_model(llama, test, loras=adapters)
    assert_close(say_once(llama, loras=(Lora(adapters[0].path, scale),)), merged)


def test_several_sets_in_parallel_each_say_what_they_say_alone(llama: Path, adapters: tuple[Lora, ...]) -> None:
    sets = (None, (), ((0, 1.0),), ((1, 1.0),), ((0, 0.5), (1, 0.5)), ((0, 1.0),))

    async def test(engine: Engine, loaded: Loaded) -> None:
        alone = [await say(engine, OTHER_PROMPT, 100, loras=loras) for loras in sets]
        together = await asyncio.gather(*(say(engine, OTHER_PROMPT, 100, loras=loras) for loras in sets))
        for said, expected in zip(together, alone):
            assert_close(said, expected)
        assert len({tuple(tokens_of(said)) for said in alone}) == 4

    with_model(llama, test, loras=adapters, parallel=6, **EXACT)


def test_a_set_does_not_wait_for_the_end_of_another(llama: Path, adapters: tuple[Lora, ...]) -> None:
    """Each of three gets its turns while the others run, and goes on where it was."""
    sets = ((), ((0, 1.0),), ((1, 1.0),))

    async def test(engine: Engine, loaded: Loaded) -> None:
        expected = [await say(engine, OTHER_PROMPT, 12, loras=loras) for loras in sets]
        streams = [long_run(engine, loras) for loras in sets]
        begun = [await anext(stream) for stream in streams]  # all are at work; none can have ended: it would take a second
        assert begun == [tokens_of(said)[0] for said in expected]
        for stream, said in zip(streams, expected):
            for token in tokens_of(said)[1:]:
                assert await anext(stream) == token
        for stream in streams:
            await stream.aclose()

    with_model(llama, test, loras=adapters, **EXACT)


async def long_run(engine: Engine, loras: Any) -> AsyncGenerator[bytes, None]:
    work = Generate(Tokens(OTHER_PROMPT), sampling=GREEDY, top_logprobs=1, ignore_eos=True, loras=loras)
    async with contextlib.aclosing(engine.run(work).batches()) as batches:
        async for batch in batches:
            for event in batch:
                for token in event.logprobs if isinstance(event, TextDelta) else ():
                    yield token.bytes


def test_prefixes_are_shared_within_a_set_only(llama: Path, adapters: tuple[Lora, ...]) -> None:
    async def test(engine: Engine, loaded: Loaded) -> None:
        async def cached(loras: Any) -> int:
            return (await say(engine, loras=loras))[1].stats.cached_tokens

        assert [await cached(loras) for loras in ((), ((0, 1.0),), ((0, 0.5),), ((1, 1.0),))] == [0] * 4
        assert [await cached(loras) for loras in ((), None, ((1, 0.0), (0, 1.0)))] == [len(PROMPT) - 1] * 3

    with_model(llama, test, loras=adapters)


@pytest.mark.parametrize("loras", [((2, 1.0),), ((0, 1.0), (0, 1.0))])
def test_adapters_that_are_not_there_are_refused(llama: Path, adapters: tuple[Lora, ...], loras: Any) -> None:
    async def test(engine: Engine, loaded: Loaded) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await say(engine, loras=loras)
        assert refused.value.param == "lora"
        assert len((await say(engine))[0]) == 12

    with_model(llama, test, loras=adapters)


def test_files_that_are_no_adapter_for_the_model_are_refused_by_name(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    for path in (
        tmp_path / "missing.gguf",
        tmp_path / "noise.gguf",
        llama,
        FIRST.write(tmp_path / "other_arch.gguf", arch="qwen2"),
        RandomLora(Llama(n_ff=32)).write(tmp_path / "other_shape.gguf"),
        FIRST.write(tmp_path / "activated.gguf", invocation=(1, 2)),
    ):
        refused = refusal(llama, llama, loras=(Lora(path),))
        assert isinstance(refused, LoadFailed)
        assert str(path) in str(refused)


# ---- from the options to the engine ----------------------------------------------------------------------------------


def test_options_reach_the_engine() -> None:
    config = Config.of(
        **{"models": [bundled_model()], "kv_type": "q8_0,q4_0", "kv_offload": False, "experts": 3, "mmap": False},
        **{"mlock": True, "main_gpu": 1, "split_mode": "row", "tensor_split": "3,1", "lora": ["/a=0.5", "/b=c"]},
    )
    command = load_command(config)
    assert command | {
        "k_cache_type": "q8_0",
        "v_cache_type": "q4_0",
        "offload_kv_cache": False,
        "n_experts": 3,
        "mmap": False,
        "mlock": True,
        "main_gpu": 1,
        "split_mode": "row",
        "tensor_split": [3, 1],
        "loras": [{"path": "/a", "scale": 0.5}, {"path": "/b=c", "scale": 1.0}],
    } == command


def load_command(config: Config) -> dict[str, Any]:
    fake = FakeEngine()

    async def run() -> None:
        catalog = Catalog((), config.models)
        pool = open_pool(config, catalog, lambda: fake_thread(fake))
        async with pool.lease(None, "text"):
            pass
        await pool.close()

    asyncio.run(run())
    ((kind, _, command), *_) = fake.commands
    assert kind == Kind.LOAD
    return dict(command)


def test_one_cache_type_is_for_both() -> None:
    command = load_command(Config.of(models=[bundled_model()], kv_type="q5_0"))
    assert (command["k_cache_type"], command["v_cache_type"]) == ("q5_0", "q5_0")


@pytest.mark.parametrize("end", [0, -1])
def test_the_engine_takes_what_the_options_allow(llama: Path, end: int) -> None:
    known = {item.name for item in fields(LoadSettings)}
    settings: dict[str, Any] = {}
    for option in options():
        bounds = re.match(r"a whole number from (-?\d+) to (\d+)", option.kind.allowed)
        if bounds and option.name in known - {"main_gpu"}:
            settings[option.name] = int(bounds.groups()[end])
    assert len(settings) > 5

    async def run() -> None:
        async with an_engine() as engine:
            await engine.load(LoadSpec((llama,), LoadSettings(**settings), vocab_only=True))

    asyncio.run(run())


def test_a_model_gets_the_adapters_of_its_architecture(tmp_path: Path, adapters: tuple[Lora, ...]) -> None:
    missing = Lora(tmp_path / "missing.gguf")
    foreign = Lora(FIRST.write(tmp_path / "foreign.gguf", arch="qwen2"))
    (card,) = Catalog((), (Llama().write(tmp_path / "llama.gguf"),)).named()
    settings = asyncio.run(fitting(card, LoadSettings(loras=(adapters[0], foreign, missing))))
    assert settings.loras == (adapters[0], missing)


def test_python_loads_adapters_and_chooses_among_them(llama: Path, adapters: tuple[Lora, ...]) -> None:
    options = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    with lmlite.load(llama, lora=[adapters[0].path, (adapters[1].path, 0)]) as model:
        texts = [model.complete("a b c", loras=loras, **options) for loras in (None, ((0, 1.0),), ())]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(("cores", "threads"), [(0, 3), (1, 3), (8, 3), (2, 0)])
def test_threads_are_what_is_said_and_one_for_a_model_that_gains_nothing_from_more(
    llama: Path, cores: int, threads: int
) -> None:
    async def run() -> None:
        spec = LoadSpec((llama,), LoadSettings(threads=threads), cores=cores)
        async with an_engine() as engine:
            assert (await engine.measure(spec)).threads == (threads or 1)
            assert (await engine.load(spec)).threads == (threads or 1)

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux only")
def test_what_lies_behind_the_tensors_need_not_be_locked(llama: Path, tmp_path: Path) -> None:
    """Only a process without privileges is refused what is beyond its limit."""
    holed = tmp_path / "holed.gguf"
    shutil.copy(llama, holed)
    os.truncate(holed, 1 << 30)

    async def run() -> None:
        async with an_engine(process := Process()) as engine:
            assert process.pid is not None
            resource.prlimit(process.pid, resource.RLIMIT_MEMLOCK, (4 << 20, 4 << 20))
            await load(engine, holed, mlock=True)
            assert 0 < locked_bytes(process.pid) <= 4 << 20

    asyncio.run(run())


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_what_lies_behind_the_tensors_is_never_read(tmp_path: Path, isolation: str) -> None:
    """A hole of a terabyte was mapped and read ahead: a minute, and all of the machine's memory."""
    file = tmp_path / "holed.gguf"
    shutil.copy(bundled_model(), file)
    try:
        os.truncate(file, 1 << 40)
    except OSError:
        pytest.skip("this file system has no files of a terabyte")
    with lmlite.load(file, isolation=isolation) as model, lmlite.load(bundled_model(), isolation=isolation) as whole:
        assert model.complete("Hello", max_tokens=8, temperature=0.0) == whole.complete("Hello", max_tokens=8, temperature=0.0)
