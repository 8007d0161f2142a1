"""`lmlite import`: files go where they belong, whole or not at all, and never over others."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import importing
from tests.cli.conftest import Command
from tests.core.gguf_files import gguf, llama


def write(path: Path, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf(llama(**more)))
    return path


def models(home: Path) -> list[str]:
    """What lies below the models folder, hidden files too."""
    root = home / "models"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


# ---- how -------------------------------------------------------------------------------------------------------------


def test_file_is_moved_and_listed(command: Command, home: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "Falcon-7B-Q4_K_M.gguf")
    content = file.read_bytes()
    done = command("import", str(file), "--user-repo", "acme/Falcon-7B-GGUF")
    target = home / "models/acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf"
    assert (done.code, done.out) == (0, f"File moved to {target}\n")
    assert (target.read_bytes() == content, file.exists(), models(home)) == (
        True,
        False,
        ["acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf"],
    )
    assert [entry["modelKey"] for entry in command("ls", "--json").json] == ["falcon-7b"]


def test_what_comes_from_nowhere_goes_by_its_files_name_also_after_the_next(
    command: Command, home: Path, tmp_path: Path
) -> None:
    names = []
    for name in ("Falcon-7B-Q4_K_M", "Owl", "Falcon-7B-Q8_0"):
        assert command("import", str(write(tmp_path / f"{name}.gguf"))).code == 0
        names.append([entry["modelKey"] for entry in command("ls", "--json").json])
    assert names == [["falcon-7b"], ["falcon-7b", "owl"], ["falcon-7b", "falcon-7b@q8_0", "owl"]]


@pytest.mark.parametrize(("flag", "word"), [("-c", "copied"), ("-l", "hard linked"), ("-L", "linked")])
def test_file_stays_where_it_is_not_moved(command: Command, home: Path, tmp_path: Path, flag: str, word: str) -> None:
    file = write(tmp_path / "m.gguf")
    done = command("import", flag, str(file), "--user-repo", "acme/m")
    target = home / "models/acme/m/m.gguf"
    assert (done.code, done.out) == (0, f"File {word} to {target}\n")
    assert file.read_bytes() == target.read_bytes()
    assert {"-c": not target.samefile(file), "-l": not target.is_symlink(), "-L": target.is_symlink()}[flag]
    assert target.samefile(file) == (flag != "-c")
    assert models(home) == ["acme/m/m.gguf"]


def test_link_that_was_imported_is_followed_as_long_as_it_leads_there(command: Command, home: Path, tmp_path: Path) -> None:
    def problems() -> list[str | None]:
        return [entry.get("problem") for entry in command("ls", "--json").json if entry["publisher"] == "acme"]

    file, other = write(tmp_path / "m.gguf"), write(tmp_path / "secret.gguf")
    link = home / "models/acme/m/m.gguf"
    assert command("import", "-L", str(file), "--user-repo", "acme/m").code == 0
    assert problems() == [None]
    link.unlink()
    link.symlink_to(other)
    assert problems() == ["a link out of the models folder"]
    link.unlink()
    link.symlink_to(file)
    assert problems() == [None]
    link.rename(link.with_name("renamed.gguf"))
    assert problems() == ["a link out of the models folder"]


def test_dry_run_tells_and_does_nothing(command: Command, home: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf")
    done = command("import", "--dry-run", str(file), "--user-repo", "acme/m")
    assert (done.code, done.out) == (0, f"File would be moved to {home}/models/acme/m/m.gguf\n")
    assert (file.exists(), home.exists()) == (True, False)


def test_json_names_every_file(command: Command, home: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf")
    assert command("import", "-c", str(file), "--user-repo", "acme/m", "--json").json == {
        "publisher": "acme",
        "repo": "m",
        "mode": "copy",
        "dryRun": False,
        "files": [{"source": str(file), "path": str(home / "models/acme/m/m.gguf")}],
    }


def test_all_parts_go_together(command: Command, home: Path, tmp_path: Path) -> None:
    for n in (1, 2):
        write(tmp_path / f"m-0000{n}-of-00002.gguf")
    done = command("import", str(tmp_path / "m-00002-of-00002.gguf"), "--user-repo", "acme/m")
    assert (done.code, done.out.count("File moved to ")) == (0, 2)
    assert models(home) == ["acme/m/m-00001-of-00002.gguf", "acme/m/m-00002-of-00002.gguf"]
    write(tmp_path / "n-00001-of-00003.gguf")
    done = command("import", str(tmp_path / "n-00001-of-00003.gguf"))
    assert (done.code, "2 of 3 parts are missing" in done.err) == (1, True)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-c", "-l", "-L", "-y"])
def test_nothing_is_overwritten(command: Command, home: Path, tmp_path: Path, flag: str) -> None:
    there = write(home / "models/acme/m/m.gguf")
    before = there.read_bytes()
    file = write(tmp_path / "m.gguf", general__name="another")
    done = command("import", flag, str(file), "--user-repo", "acme/m")
    assert (done.code, done.out, done.err) == (1, "", f"lmlite: {there} exists already.\n")
    assert (there.read_bytes(), file.exists()) == (before, True)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\3\4 a zip", gguf(llama())[:-8], gguf(llama())[:200]])
def test_what_is_no_whole_gguf_is_refused_before_anything_is_touched(
    command: Command, home: Path, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    done = command("import", str(file))
    assert (done.code, done.out, "cannot be imported: " in done.err) == (1, "", True)
    assert (file.read_bytes(), home.exists()) == (content, False)


def test_names_that_are_no_models_and_missing_files_are_refused(command: Command, tmp_path: Path) -> None:
    assert "does not end in .gguf" in command("import", str(write(tmp_path / "m.bin"))).err
    assert "no such file" in command("import", str(tmp_path / "none.gguf")).err
    assert "is a directory" in command("import", str(folder(tmp_path / "folder.gguf"))).err
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "not a regular file" in command("import", str(tmp_path / "pipe.gguf")).err


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ["acme", "acme/", "/m", "../m", "acme/..", "a/b/c", "acme/.hidden", "a b/c", "-a/b", ""])
def test_repository_that_is_no_name_exits_2(command: Command, home: Path, tmp_path: Path, name: str) -> None:
    assert command("import", str(write(tmp_path / "m.gguf")), f"--user-repo={name}").code == 2
    assert not home.exists()


def test_symbolic_link_is_not_moved_but_its_file_can_be_copied(command: Command, home: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(write(tmp_path / "blob.gguf"))
    assert "is a symbolic link" in command("import", str(link)).err
    assert command("import", "-c", str(link), "--user-repo", "acme/m").code == 0
    copied = home / "models/acme/m/link.gguf"
    assert (copied.is_symlink(), copied.is_file()) == (False, True)


def test_disk_without_room_is_told_with_both_numbers(
    command: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "m.gguf")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    done = command("import", "-c", str(file))
    assert (done.code, " are needed, 100 B are free" in done.err, models(home)) == (1, True, [])


def test_part_that_fails_takes_the_others_back(
    command: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [write(tmp_path / f"m-0000{n}-of-00002.gguf") for n in (1, 2)]
    move = importing.move

    def fail_at_the_second(step: importing.Step) -> None:
        if step.source == parts[1]:
            raise OSError(errno.EIO, "Input/output error")
        move(step)

    monkeypatch.setattr(importing, "move", fail_at_the_second)
    done = command("import", str(parts[0]))
    assert (done.code, "input/output error" in done.err) == (1, True)
    assert (models(home), [part.exists() for part in parts]) == ([], [True, True])


def test_move_to_another_file_system_is_a_copy(
    command: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "m.gguf")
    content = file.read_bytes()
    link = os.link

    def between_systems(source: str | Path, target: Path) -> None:
        if str(source) == str(file):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", between_systems)
    assert command("import", str(file), "--user-repo", "acme/m").code == 0
    assert ((home / "models/acme/m/m.gguf").read_bytes(), file.exists()) == (content, False)
    assert models(home) == ["acme/m/m.gguf"]
    file = write(tmp_path / "n.gguf")
    assert "copy it with -c" in command("import", "-l", str(file)).err


# ---- whose it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "metadata", "repo"),
    [
        ("m.gguf", {}, "imported-models/uncategorized"),
        ("m.gguf", {"general.organization": "Acme Labs"}, "Acme-Labs/m-GGUF"),
        ("Falcon-7B-Q4_K_M.gguf", {"general.quantized_by": "bird", "general.author": "acme"}, "bird/Falcon-7B-GGUF"),
        ("m.gguf", {"general.repo_url": "https://huggingface.co/bird/Falcon-7B-GGUF"}, "bird/Falcon-7B-GGUF"),
        ("m.gguf", {"general.repo_url": "https://example.org/a/b"}, "imported-models/uncategorized"),
        ("m.gguf", {"general.organization": "../../etc"}, "etc/m-GGUF"),
        ("m.gguf", {"general.organization": "\x1b\n"}, "imported-models/uncategorized"),
        ("hub/models--bird--Falcon-GGUF/snapshots/abc/m.gguf", {}, "bird/Falcon-GGUF"),
        ("models/bird/Falcon-GGUF/m.gguf", {"general.organization": "acme"}, "bird/Falcon-GGUF"),
        ("models/m.gguf", {}, "imported-models/uncategorized"),
        ("models/a/b/c/d/m.gguf", {}, "imported-models/uncategorized"),
    ],
)
def test_repository_is_guessed(
    command: Command, home: Path, tmp_path: Path, place: str, metadata: dict[str, object], repo: str
) -> None:
    file = write(tmp_path / "from" / place, **metadata)
    done = command("import", str(file), "--json")
    assert f"{done.json['publisher']}/{done.json['repo']}" == repo
    assert models(home) == [f"{repo}/{file.name}"]


def test_user_at_a_terminal_says_where_it_belongs(command: Command, home: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", general__organization="acme")
    done = command("import", str(file), typed="\n")
    assert (done.code, file.exists(), "Nothing was imported" in done.err) == (1, True, True)
    done = command("import", str(file), typed="2\n")
    assert "  1. acme/m-GGUF\n  2. imported-models/uncategorized\n" in done.err
    assert (done.code, models(home)) == (0, ["imported-models/uncategorized/m.gguf"])
    file = write(tmp_path / "n.gguf", general__organization="acme")
    assert command("import", "-y", str(file), typed="").code == 0
    assert models(home)[0] == "acme/n-GGUF/n.gguf"
