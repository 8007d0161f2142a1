"""Applies our changes of llama.cpp to copies of its files: the tree stays as it is, whichever it is.

`apply_all(TREE, FOLDER)` writes a copy of each file that vendor/patches has a unified diff for into FOLDER, under its path
in the tree. Raises `PatchError`, one paragraph, where a diff does not fit its file exactly: a change that was made for
other code than this must not be guessed at.
"""

from __future__ import annotations

from pathlib import Path

PATCHES = Path(__file__).resolve().parent / "patches"


class PatchError(Exception):
    """Why the tree cannot be built from, and what to do."""


def apply_all(tree: Path, folder: Path) -> list[Path]:
    """The copies, in the order of the diffs' names. One that is there already and right is not touched."""
    return [_apply_one(diff, tree, folder) for diff in sorted(PATCHES.glob("*.patch"))]


def _apply_one(diff: Path, tree: Path, folder: Path) -> Path:
    text = diff.read_text(encoding="utf-8")
    name = _target(text)
    try:
        changed = apply(text, (tree / name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise PatchError(
            f"vendor/patches/{diff.name} does not fit {tree / name}: {error}. It is made for the llama.cpp that "
            "vendor/llama.cpp.json names. Build from that one (unset LMLITE_LLAMA_CPP; if it is unset, remove "
            "vendor/llama.cpp, which is then fetched anew), or bring the diff up to date with your tree."
        ) from None
    copy = folder / name
    if not copy.is_file() or copy.read_text(encoding="utf-8") != changed:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(changed, encoding="utf-8")
    return copy


def _target(diff: str) -> str:
    """The file that a diff of one file is for."""
    return next(line.removeprefix("+++ b/").strip() for line in diff.splitlines() if line.startswith("+++ b/"))


def apply(diff: str, text: str) -> str:
    """`text` with all hunks of a unified diff applied, each where its lines are, character for character and only once.
    Raises ValueError. Lines may have moved: the same code a little further down is the same code."""
    for hunk in _hunks(diff):
        before, after = ("".join(line[1:] for line in hunk if line[0] in kinds) for kinds in (" -", " +"))
        n_places = f"\n{text}".count(f"\n{before}")
        if n_places != 1:
            first = next((line[1:].strip() for line in hunk if line[0] in " -" and line[1:].strip()), "")
            raise ValueError(f"the {len(hunk)} lines of it around `{first}` are there {n_places} times, not once")
        text = f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:]
    return text


def _hunks(diff: str) -> list[list[str]]:
    """The lines of each, with what they begin with."""
    hunks: list[list[str]] = []
    for line in diff.splitlines(keepends=True):
        if line.startswith("@@ "):
            hunks.append([])
        elif hunks and line[0] in " -+":
            hunks[-1].append(line)
        elif hunks:
            raise ValueError(f"`{line.strip()}` is no line of a diff")
    if not hunks:
        raise ValueError("the diff changes nothing")
    return hunks
