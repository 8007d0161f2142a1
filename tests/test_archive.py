"""Models inside another file: how they are named and found, and that an engine uses them where they lie."""

from __future__ import annotations

import asyncio
import json
import os
import zipfile
from pathlib import Path

import pytest

from lmlite import archive
from lmlite.core.disk.catalog import Catalog
from lmlite.core.disk.gguf import GgufError, read_header
from lmlite.core.disk.stamps import Stamps
from lmlite.core.engine.payloads import path_value
from lmlite.package import bundled_model
from tests.core.gguf_files import gguf, llama, projector
from tests.core.test_real_engine import complete, loaded

PAGE = 65536


def within(path: Path, content: bytes, begin: int = PAGE, behind: bytes = b"behind" * 100) -> archive.Part:
    path.write_bytes(b"\0" * begin + content + behind)
    return archive.Part(str(path), begin, len(content))


def packed(path: Path, models: dict[str, bytes]) -> Path:
    """An archive as `setup.py pyz` writes it: models, then a zip file that tells where they are."""
    index = {}
    content = b"#!"
    for name, model in models.items():
        content += b"\0" * (-len(content) % PAGE)
        index[name] = (len(content), len(model))
        content += model
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(archive.INDEX, json.dumps(index))
    path.write_bytes(content + path.read_bytes())
    return path


def test_a_part_is_named_by_its_file_its_place_and_itself(tmp_path: Path) -> None:
    part = archive.Part(f"{tmp_path}/a.pyz", 4096, 12)
    assert archive.part(part.path("falcon.gguf")) == part
    assert path_value(part.path("falcon.gguf")) == f"{tmp_path}/a.pyz@4096+12"


@pytest.mark.parametrize("name", ["a.gguf", "a@1+2", "a@1+2/", "a@-1+2/b.gguf", "a@1/b.gguf", "@1+2/b.gguf", "a@1+2/b/c"])
def test_any_other_path_is_itself(name: str) -> None:
    assert archive.part(name) is None
    assert path_value(Path("/x", name)) == str(Path("/x", name))


def test_what_is_really_called_so_goes_before(tmp_path: Path) -> None:
    folder = tmp_path / "a@1+2"
    folder.mkdir()
    (folder / "b.gguf").write_bytes(b"")
    assert archive.part(folder / "b.gguf") is None


def test_a_part_has_its_own_size_and_its_files_times(tmp_path: Path) -> None:
    part = within(tmp_path / "a", b"GGUF" * 9)
    status, around = archive.stat(part.path("b.gguf")), os.stat(tmp_path / "a")
    assert (status.st_size, status.st_mtime_ns, status.st_ino) == (36, around.st_mtime_ns, around.st_ino)


def test_a_part_that_its_file_is_too_short_for_is_not_there(tmp_path: Path) -> None:
    part = within(tmp_path / "a", b"GGUF" * 9, behind=b"")
    os.truncate(tmp_path / "a", PAGE + 35)
    with pytest.raises(FileNotFoundError):
        archive.stat(part.path("b.gguf"))


def test_a_header_inside_is_read_as_one_by_itself(tmp_path: Path) -> None:
    part = within(tmp_path / "a", bundled_model().read_bytes(), begin=12345)
    assert read_header(part.path("tiny.gguf")) == read_header(bundled_model())


def test_a_header_inside_ends_where_the_part_does(tmp_path: Path) -> None:
    part = within(tmp_path / "a", bundled_model().read_bytes())
    with pytest.raises(GgufError, match="cut off"):
        read_header(archive.Part(part.file, part.begin, 1000).path("tiny.gguf"))


def test_models_of_an_archive_are_listed_as_those_of_a_folder(tmp_path: Path) -> None:
    models = {
        "acme/Falcon-GGUF/Falcon-Q8_0.gguf": gguf(llama("falcon")),
        "0/eagle.gguf": gguf(llama("eagle")),
        "0/mmproj-eagle.gguf": gguf(projector()),
    }
    cards = Catalog([packed(tmp_path / "any name", models)]).cards()
    assert [(card.id, card.publisher, card.type) for card in cards] == [
        ("eagle", "local", "vlm"),
        ("falcon", "acme", "llm"),
    ]
    assert [card.problem for card in cards] == [None, None]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive_has_no_models(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert archive.models(tmp_path / "a") == {}
    assert Catalog([tmp_path / "a"]).cards() == ()


@pytest.mark.parametrize("index", ["", "[]", "[1]", '{"a.gguf": 1}', '{"a.gguf": [1]}', '{"a.gguf": ["x", "y"]}'])
def test_an_index_that_makes_no_sense_tells_of_no_models(index: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as zipped:
        zipped.writestr(archive.INDEX, index)
    assert archive.models(tmp_path / "a") == {}


@pytest.mark.parametrize("begin", [PAGE, 100])
def test_an_engine_uses_a_model_inside_as_one_by_itself(begin: int, tmp_path: Path) -> None:
    """Mapped where it begins on a page, read where it does not; in both cases there is no copy of it on the disk."""
    part = within(tmp_path / "a.pyz", bundled_model().read_bytes(), begin)

    async def texts() -> None:
        async with loaded() as alone, loaded(part.path("tiny.gguf")) as inside:
            assert (await complete(inside, "What is"))[0] == (await complete(alone, "What is"))[0]
            assert inside.pid is not None
            if (maps := Path(f"/proc/{inside.pid}/maps")).exists():
                mapped = [line for line in maps.read_text().splitlines() if line.endswith("/a.pyz")]
                assert bool(mapped) == (begin % PAGE == 0)
                # No more of the file than the model.
                assert all(int(line.split()[2], 16) >= begin for line in mapped)

    asyncio.run(texts())
    assert [path.name for path in tmp_path.iterdir()] == ["a.pyz"]


def test_an_archive_that_is_replaced_is_a_model_that_is_replaced(tmp_path: Path) -> None:
    part = within(tmp_path / "a", b"GGUF" * 9)

    async def change() -> str | None:
        stamps = Stamps([part.path("b.gguf")])
        assert await stamps.change() is None
        within(tmp_path / "new", b"GGUF" * 9)
        (tmp_path / "new").replace(tmp_path / "a")
        return await stamps.change()

    assert asyncio.run(change()) == "replaced"
