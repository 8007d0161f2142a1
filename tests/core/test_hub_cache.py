"""The Hugging Face cache, read in place: which files of it are models, and which of its links are followed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from lmlite.core.disk.catalog import Catalog
from lmlite.core.disk.model_files import hub_caches
from tests.core.gguf_files import gguf, llama, projector
from tests.core.test_catalog import found, ids


def download(cache: Path, repo: str, revision: str, name: str, content: bytes | None = None, main: bool = True) -> Path:
    """As the Hub's own client leaves a file; `content` None is a sound model."""
    root = cache / f"models--{repo.replace('/', '--')}"
    blob = root / "blobs" / f"{revision}{name.replace('/', '')}".encode().hex()
    link = root / "snapshots" / revision / name
    for folder in (blob.parent, link.parent, root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(gguf(llama()) if content is None else content)
    link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (root / "refs/main").write_text(revision)
    return link


def cached(cache: Path) -> Catalog:
    return Catalog([], caches=[cache])


def test_a_cached_model_is_named_by_its_repository(tmp_path: Path) -> None:
    link = download(tmp_path, "acme/Falcon-7B-GGUF", "a1", "Falcon-7B-Q4_K_M.gguf")
    download(tmp_path, "acme/Falcon-7B-GGUF", "a1", "mmproj-F16.gguf", gguf(projector()))
    (card,) = cached(tmp_path).cards()
    assert (card.id, card.publisher, card.paths, card.problem) == ("falcon-7b", "acme", (link,), None)
    assert card.type == "vlm"
    assert found(cached(tmp_path), "acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf") == card


def test_parts_in_a_folder_of_their_own_are_one_model(tmp_path: Path) -> None:
    for no in range(2):
        values = {**(llama() if no == 0 else {}), "split.no": no, "split.count": 2}
        download(tmp_path, "acme/Falcon", "a1", f"Q4_K_M/Falcon-Q4_K_M-{no + 1:05d}-of-00002.gguf", gguf(values))
    (card,) = cached(tmp_path).cards()
    assert (card.id, len(card.paths), card.problem) == ("falcon", 2, None)


def test_only_the_snapshot_of_main_counts(tmp_path: Path) -> None:
    download(tmp_path, "acme/Falcon", "b2", "Falcon-Q8_0.gguf")
    new = download(tmp_path, "acme/Falcon", "a1", "Falcon-Q4_K_M.gguf")
    download(tmp_path, "acme/Falcon", "c3", "Falcon-F16.gguf", main=False)
    assert [card.paths for card in cached(tmp_path).cards()] == [(new,)]


@pytest.mark.parametrize("main", [None, "gone", "../../x", "", "a1/../b2", "\0", "x" * 9999])
def test_without_a_main_the_youngest_snapshot_counts(tmp_path: Path, main: str | None) -> None:
    young = download(tmp_path, "acme/Falcon", "a1", "Falcon-Q4_K_M.gguf", main=False)
    old = download(tmp_path, "acme/Falcon", "b2", "Falcon-Q8_0.gguf", main=False)
    os.utime(old.parent, (1, 1))
    if main is not None:
        (tmp_path / "models--acme--Falcon/refs/main").write_text(main)
    assert [card.paths for card in cached(tmp_path).cards()] == [(young,)]


def test_links_lead_to_blobs_of_their_own_repository_only(tmp_path: Path) -> None:
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(gguf(llama()))
    cache = tmp_path / "hub"
    link = download(cache, "acme/Falcon", "a1", "Falcon-Q4_K_M.gguf")
    for name, target in (("Owl-Q4_K_M.gguf", outside), ("gone.gguf", cache / "none")):
        (link.parent / name).symlink_to(target)
    (cache / "models--acme--linked").symlink_to(tmp_path)
    problems = {card.id: card.problem for card in cached(cache).cards()}
    assert problems == {
        "falcon": None,
        "owl": "a link out of the models folder",
        "gone": "a link out of the models folder",
    }


def test_what_is_no_models_repository_is_left_alone(tmp_path: Path) -> None:
    for name in ("datasets--acme--x/snapshots/a1", "models--", "version.txt", ".locks/models--acme--x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models--acme--file").write_text("")
    (tmp_path / "models--acme--empty/snapshots").mkdir(parents=True)
    download(tmp_path, "falcon", "a1", "falcon.gguf")
    download(tmp_path, "acme/torch", "a1", "model.safetensors", b"x")
    (card,) = cached(tmp_path).cards()
    assert (card.id, card.publisher) == ("falcon", "local")
    assert ids(cached(tmp_path / "none")) == []


def test_the_cache_is_not_written(tmp_path: Path) -> None:
    download(tmp_path, "acme/Falcon", "a1", "Falcon-Q4_K_M.gguf")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    cached(tmp_path).cards()
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_cached_file_that_is_named_too_is_one_model(tmp_path: Path) -> None:
    link = download(tmp_path, "acme/Falcon-GGUF", "a1", "Falcon-Q4_K_M.gguf")
    catalog = Catalog([], [link], caches=[tmp_path, tmp_path])
    assert [card.id for card in catalog.named()] == ids(catalog) == ["falcon"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/u"}, ["/u/.cache/huggingface/hub"]),
        ({"HOME": "/u", "XDG_CACHE_HOME": "/x"}, ["/x/huggingface/hub"]),
        ({"HOME": "/u", "HF_HOME": "/h"}, ["/h/hub"]),
        ({"HOME": "/u", "HF_HOME": "/h", "HF_HUB_CACHE": "/c"}, ["/c"]),
        ({"HUGGINGFACE_HUB_CACHE": "/old"}, ["/old"]),
        ({}, []),
    ],
)
def test_the_cache_is_where_its_variables_say(environ: Mapping[str, str], expected: list[str]) -> None:
    assert hub_caches(environ) == [Path(path) for path in expected]
