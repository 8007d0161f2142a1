"""What the prompt cache has of the disk, as it is told to people."""

from __future__ import annotations

from pathlib import Path

from lmlite.store.prompt_files import held_bytes

MODEL = "0123456789abcdef" * 2


def test_files_of_all_models_count_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(bytes(1000))
    for number, name in enumerate((MODEL, MODEL[::-1], "somebody-elses")):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "piece").write_bytes(bytes(10 + number))
        (tmp_path / name / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / name / "folder" / "inner").write_bytes(bytes(100))
    (tmp_path / MODEL.replace("0", "f")).symlink_to(tmp_path / MODEL)
    assert held_bytes(tmp_path) == 10 + 11


def test_folder_that_nobody_has_made_yet_is_empty(tmp_path: Path) -> None:
    assert held_bytes(tmp_path / "none") == 0
