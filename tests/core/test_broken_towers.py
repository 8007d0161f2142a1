"""Projectors that are broken, cut off or another model's: each is found when the model is loaded, by name, wherever the engine
runs, and what sees as it should is loaded all the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSpec
from lmlite.core.engine.worker import Process, Thread
from lmlite.core.loading.memory_guard import MemoryGuard
from lmlite.errors import EngineGone, LmError, LoadFailed
from lmlite.package import bundled_model
from tests.media_models import WRITERS, text_model_of
from tests.random_models import Llama

Array = npt.NDArray[Any]


@dataclass
class Parts:
    """Of a projector's file, to be changed."""

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Parts:
        reader = gguf.GGUFReader(str(path))
        facts = {key: found.contents() for key, found in reader.fields.items() if not key.startswith("GGUF.")}
        shaped = {t.name: np.array(t.data).reshape(tuple(reversed([int(n) for n in t.shape]))) for t in reader.tensors}
        return cls(facts, shaped)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(str(path), str(self.facts.pop("general.architecture")))
        for key, value in self.facts.items():
            match value:
                case bool():
                    writer.add_bool(key, value)
                case int():
                    writer.add_uint32(key, value)
                case float():
                    writer.add_float32(key, value)
                case str():
                    writer.add_string(key, value)
                case list():
                    writer.add_array(key, value)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def without(*names: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        for name in names:
            del parts.tensors[name]

    return change


def telling(**facts: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        for key, value in facts.items():
            parts.facts["clip." + key.replace("__", ".")] = value

    return change


def filled(value: float, name: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts.tensors[name][...] = value

    return change


def halved(ending: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        for name in parts.tensors:
            if name.endswith(ending):
                parts.tensors[name] = parts.tensors[name].astype(np.float16)

    return change


def rows(name: str, n: int) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts.tensors[name] = parts.tensors[name][:n].copy()

    return change


def narrower(parts: Parts) -> None:
    for name in ("mm.2.weight", "mm.2.bias"):
        parts.tensors[name] = parts.tensors[name][:96].copy()


def without_fact(key: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        del parts.facts[key]

    return change


BROKEN: dict[str, tuple[str, Callable[[Parts], None], str]] = {
    "no output matrix": ("mlp", without("mm.2.weight"), r"lacks the tensor 'mm\.2\.weight'"),
    "no queries in one block": ("mlp", without("v.blk.1.attn_q.weight"), r"lacks the tensor 'v\.blk\.1\.attn_q\.weight'"),
    "no norm in one block": ("gemma3", without("v.blk.1.ln2.weight"), r"lacks the tensor 'v\.blk\.1\.ln2\.weight'"),
    "no patches": ("mlp", without("v.patch_embd.weight"), r"lacks the tensor 'v\.patch_embd\.weight'"),
    "more blocks than there are": ("mlp", telling(vision__block_count=9), r"lacks blocks: .* 9, and there are 3"),
    "millions of blocks": ("mlp", telling(vision__block_count=2**31), r"block_count is 2147483648"),
    "a short table of positions": ("mlp", rows("v.position_embd.weight", 9), r"positions has 9 rows, and a picture 16"),
    "another short table": ("gemma3", rows("v.position_embd.weight", 63), r"positions has 63 rows, and a picture 64"),
    "a short table for sounds": ("ultravox", rows("a.position_embd.weight", 700), r"positions has 700 rows"),
    "norms of half precision": ("mlp", halved("ln1.weight"), r"'v\.blk\.0\.ln1\.weight' is of type f16"),
    "biases of half precision": ("pixtral", halved("mm.1.bias"), r"'mm\.1\.bias' is of type f16"),
    "weights that are no numbers": ("mlp", filled(float("nan"), "v.blk.0.ffn_up.weight"), r"no numbers"),
    "infinite weights": ("qwen2vl", filled(float("inf"), "mm.2.weight"), r"no numbers"),
    "silence that is no number": ("ultravox", filled(float("nan"), "mm.a.mlp.2.weight"), r"no numbers"),
    "another patch size": ("mlp", telling(vision__patch_size=7), r"patches are 7 pixels wide, .* 14"),
    "patches of nothing": ("pixtral", telling(vision__patch_size=0), r"patch_size is 0"),
    "pictures smaller than a patch": ("mlp", telling(vision__image_size=0), r"smaller than its patches"),
    "no heads": ("gemma3", telling(vision__attention__head_count=0), r"head_count is 0"),
    "heads that do not fit": ("gemma3", telling(vision__attention__head_count=7), r"shared out to 7 heads"),
    "a bias that is too short": ("qwen2vl", rows("v.blk.1.attn_out.bias", 21), r"'v\.blk\.1\.attn_out\.bias' has 21 numbers"),
    "a matrix that is too small": (
        "pixtral",
        rows("v.blk.0.ffn_down.weight", 32),
        r"ffn_down\.weight' does not fit its width",
    ),
    "queries that are too short": ("ultravox", rows("a.blk.0.attn_q.weight", 10), r"attn_q\.bias' has 32 numbers, .* 10"),
    "a width that its norms do not have": (
        "mlp",
        telling(vision__embedding_length=32),
        r"has 64 numbers, and there have to be 32",
    ),
    "no kind": ("mlp", without_fact("clip.projector_type"), r"of what kind"),
    "an unknown kind": ("mlp", telling(projector_type="oracle"), r"oracle"),
    "no senses": ("mlp", telling(has_vision_encoder=False), r"neither sees nor hears"),
    "no colors": ("mlp", without_fact("clip.vision.image_mean"), r"image_mean"),
    "a number that is a text": ("mlp", telling(vision__block_count="three"), r"block_count is of type str"),
    "rows of another width": ("mlp", narrower, r"n_embd|projector"),
}


def broken_file(name: str, folder: Path) -> tuple[Path, Path]:
    """The text model, and its projector."""
    family, change, _ = BROKEN[name]
    parts = Parts.of(WRITERS[family](folder / "whole.gguf"))
    change(parts)
    return text_model_of(family, folder), parts.write(folder / "mmproj.gguf")


async def load(text: Path, projector: Path) -> None:
    engine = await Engine.open(Process(), "m")
    try:
        await engine.load(LoadSpec((text,), projector=projector))
    finally:
        await engine.close()


def refusal(text: Path, projector: Path) -> str:
    with pytest.raises(LoadFailed) as caught:
        asyncio.run(load(text, projector))
    assert caught.value.reason.isprintable() and str(projector.parent) not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_projector_is_named_and_ends_nothing(tmp_path: Path, name: str) -> None:
    text, projector = broken_file(name, tmp_path)
    assert re.search(BROKEN[name][2], refusal(text, projector)), refusal(text, projector)


@pytest.mark.parametrize("family", WRITERS)
def test_what_was_written_anew_unchanged_is_loaded(tmp_path: Path, family: str) -> None:
    whole = WRITERS[family](tmp_path / "whole.gguf")
    asyncio.run(load(text_model_of(family, tmp_path), Parts.of(whole).write(tmp_path / "mmproj.gguf")))


@pytest.mark.parametrize("begin", [0, 8192])
def test_a_projector_within_another_file_is_read_there(tmp_path: Path, begin: int) -> None:
    whole = WRITERS["mlp"](tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "archive").write_bytes(bytes(begin) + whole + bytes(100))
    asyncio.run(load(bundled_model(), tmp_path / f"archive@{begin}+{len(whole)}"))
    cut = refusal(bundled_model(), tmp_path / f"archive@{begin}+{len(whole) - 1000}")
    assert f"cut off: its file has {len(whole) - 1000} of" in cut


@pytest.mark.parametrize("missing", [1, 200, 5000])
def test_a_projector_whose_end_is_missing_is_told_with_both_sizes(tmp_path: Path, missing: int) -> None:
    path = WRITERS["mlp"](tmp_path / "mmproj.gguf")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-missing])
    assert f"cut off: its file has {size - missing} of " in refusal(bundled_model(), path)


def test_files_that_are_no_projectors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(b"")
    assert "no GGUF file" in refusal(bundled_model(), path)
    path.write_bytes(WRITERS["mlp"](tmp_path / "whole.gguf").read_bytes()[:500])
    assert "no GGUF file" in refusal(bundled_model(), path)
    assert "architecture is 'llama'" in refusal(bundled_model(), bundled_model())
    assert "is no file" in refusal(bundled_model(), tmp_path)


def test_a_tower_of_rows_and_columns_is_refused_beside_a_model_without(tmp_path: Path) -> None:
    assert "another model" in refusal(bundled_model(), WRITERS["qwen2vl"](tmp_path / "mmproj.gguf"))


def test_a_tower_of_another_width_names_both(tmp_path: Path) -> None:
    text = tmp_path / "wide.gguf"
    Llama(n_embd=64).write(text)
    assert re.search(r"n_embd|64", refusal(text, WRITERS["mlp"](tmp_path / "mmproj.gguf")))


# ---- in a thread, where a death would be everybody's ------------------------------------------------------------------


def in_a_thread(text: Path, projector: Path) -> None:
    async def run() -> None:
        guard = MemoryGuard(Process, tries=True)
        async with guard.room(LoadSpec((text,), projector=projector)) as spec:
            engine = await Engine.open(Thread(), "m")
            try:
                await engine.load(spec)
            finally:
                await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_projector_does_not_end_the_process_that_would_load_it(tmp_path: Path, name: str) -> None:
    with pytest.raises((LoadFailed, EngineGone)) as caught:
        in_a_thread(*broken_file(name, tmp_path))
    assert re.search(BROKEN[name][2], str(caught.value))


def test_a_whole_projector_is_loaded_in_a_thread_and_tried_once(tmp_path: Path) -> None:
    projector, started = WRITERS["mlp"](tmp_path / "mmproj.gguf"), []

    def place() -> Process:
        started.append(1)
        return Process()

    async def run() -> None:
        guard = MemoryGuard(place, tries=True)
        for _ in range(3):
            async with guard.room(LoadSpec((bundled_model(),), projector=projector)):
                pass

    asyncio.run(run())
    in_a_thread(bundled_model(), projector)
    assert len(started) == 1


def test_where_no_process_can_be_started_a_projector_is_loaded_untried(tmp_path: Path) -> None:
    def place() -> Process:
        raise OSError("no more processes")

    async def run() -> LoadSpec:
        async with MemoryGuard(place, tries=True).room(
            LoadSpec((bundled_model(),), projector=projector), checked=False
        ) as spec:
            return spec

    projector = WRITERS["mlp"](tmp_path / "mmproj.gguf")
    assert asyncio.run(run()).loads == projector


def test_what_ends_the_engine_that_tries_it_is_told(tmp_path: Path) -> None:
    class Dies:
        def __call__(self) -> Process:
            return Process(command=["/bin/false"])

    async def run() -> None:
        async with MemoryGuard(Dies(), tries=True).room(LoadSpec((bundled_model(),), projector=projector)):
            raise AssertionError("it went on")

    projector = WRITERS["mlp"](tmp_path / "mmproj.gguf")
    with pytest.raises(LmError):
        asyncio.run(run())
