"""Where model files are: LM Studio's layout in folders, the Hugging Face cache, single files; and what names tell of them.

Nothing is opened but small settings files. A walk never fails: a folder that cannot be read is empty. It goes no deeper
than `MAX_DEPTH` and follows no link out of its folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from ... import archive
from ...records import dataclass

MAX_DEPTH: Final = 3
"""Folders below a models folder: publisher, repository, and the one folder per quantization that some repositories have."""
MAX_ENTRIES: Final = 100_000
"""Directory entries looked at in one models folder: a home folder named by mistake must not hold up the server."""
MAX_PARTS: Final = 999
"""Parts of a split model; the largest published have some dozens."""
MAX_SETTINGS: Final = 1 << 20
"""Bytes of another program's settings file that are read at most."""

LINK_OUT: Final = "a link out of the models folder"
LINK_TO_NOTHING: Final = "a link to what is not there"
DEFINITION: Final = "model.yaml"
LOCAL: Final = "local"
"""The publisher of files that do not say whose they are."""
UNCATEGORIZED: Final = ("imported-models", "uncategorized")
"""Publisher and repository of files of which nothing tells where they are from. It is nobody's name."""


# ---- where models are ------------------------------------------------------------------------------------------------


def model_folders(home: Path, extra: Sequence[Path], environ: Mapping[str, str]) -> list[Path]:
    """lmlite's own folder (in `home`), the archive that lmlite was started from if it has models, LM Studio's folder if there
    is one, then `extra`; each once."""
    folders = [home / "models"]
    if environ.get(archive.VARIABLE):
        folders.append(Path(environ[archive.VARIABLE]))
    if lm_studio := lm_studio_home(environ):
        named = (_downloads_folder(lm_studio / "settings.json"), lm_studio / "models")
        folders += [folder for folder in named if folder is not None and folder.is_dir()][:1]
    folders.extend(extra)
    once: dict[str, Path] = {}
    for folder in folders:
        once.setdefault(real(folder), folder)
    return list(once.values())


def definition_folders(home: Path, environ: Mapping[str, str]) -> list[Path]:
    """Where each publisher/name/model.yaml is one model: lmlite's own folder and LM Studio's."""
    homes = [home, *filter(None, [lm_studio_home(environ)])]
    return [of_home / "hub" / "models" for of_home in homes]


def hub_caches(environ: Mapping[str, str]) -> list[Path]:
    """The Hugging Face cache, where its own variables say it is."""
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if environ.get(name):
            return [Path(environ[name]).expanduser() / below]
    caches = environ.get("XDG_CACHE_HOME")
    user_home = _user_home(environ)
    if caches or user_home:
        return [(Path(caches) if caches else Path(user_home, ".cache")) / "huggingface" / "hub"]
    return []


def lm_studio_home(environ: Mapping[str, str]) -> Path | None:
    """Where LM Studio keeps its things, whether it does or not; None if nothing tells."""
    if not (user_home := _user_home(environ)):
        return None
    pointed = _absolute(small_text(Path(user_home, ".lmstudio-home-pointer")))
    cached = Path(user_home, ".cache", "lm-studio")
    return pointed or (cached if cached.is_dir() else Path(user_home, ".lmstudio"))


def _user_home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or environ.get("USERPROFILE") or ""


def _downloads_folder(settings: Path) -> Path | None:
    try:
        content = json.loads(small_text(settings))
    except (ValueError, RecursionError):
        return None
    folder = content.get("downloadsFolder") if isinstance(content, dict) else None
    return _absolute(folder) if isinstance(folder, str) else None


def _absolute(text: str) -> Path | None:
    """The path that `text` is, if it can be one."""
    text = text.strip()
    if not text or not text.isprintable() or not os.path.isabs(text):
        return None
    return Path(text)


def small_text(path: Path, limit: int = MAX_SETTINGS) -> str:
    """The file's text, or "" if it is not a regular file of text, of at most `limit` bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return ""
            content = file.read(limit + 1)
        return "" if len(content) > limit else content.decode("utf-8-sig")
    except (OSError, ValueError):
        return ""


# ---- names -----------------------------------------------------------------------------------------------------------

_QUANT: Final = re.compile(
    r"[-._]((?:ud-|i1-)?(?:i?q[0-9](?:_[0-9a-z]{1,4}){0,3}|tq[12]_0|b?f16|f32|fp16|fp32|mxfp4(?:_moe)?|nvfp4))$",
    re.IGNORECASE,
)
GGUF_ENDING: Final = re.compile(r"[-._]gguf$", re.IGNORECASE)
_CACHED_REPO: Final = re.compile(r"models--(?:(.+?)--)?(.+)")
_REVISION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_PART: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.IGNORECASE | re.DOTALL)


@dataclass(slots=True, frozen=True)
class FileName:
    """A GGUF file's name taken apart: `Falcon-7B-Q4_K_M-00001-of-00002.gguf`."""

    base: str  # "Falcon-7B"
    quant: str | None  # "Q4_K_M"
    stem: str  # all but ending and number of the part: what the parts of one model share
    part: int = 1
    parts: int = 1


def file_name(name: str) -> FileName:
    stem, part, parts = name[: -len(".gguf")], 1, 1
    if (split := _PART.fullmatch(name)) and 1 <= int(split[2]) <= int(split[3]) <= MAX_PARTS:
        stem, part, parts = split[1], int(split[2]), int(split[3])
    base = GGUF_ENDING.sub("", stem)
    quant = _QUANT.search(base)
    if quant:
        base = base[: quant.start()]
    return FileName(GGUF_ENDING.sub("", base) or stem, quant[1] if quant else None, stem, part, parts)


def spellings_of(name: str) -> list[str]:
    """What a request may call the file of this name, wherever it lies: with and without its ending, and its part."""
    return [name, name[: -len(".gguf")], file_name(name).stem] if is_gguf(name) else [name]


def printable(name: str) -> str:
    """A name from the disk, fit for an id: what cannot be shown (or is not even Unicode) becomes `_`."""
    shown = "".join(c if c.isprintable() else "_" for c in unicodedata.normalize("NFC", name))
    return shown.strip() or "_"


def shown(path: str | Path) -> str:
    """A path for people, on one line and with nothing in it that a terminal would obey."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def key_of(name: str) -> str:
    """What two spellings of one name have in common."""
    return unicodedata.normalize("NFC", name).casefold()


def plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", key_of(name))


def real(path: str | Path) -> str:
    """The path without links; a path that cannot be one stays as it is, and finds nothing."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return os.fspath(path)


def is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf") and len(name) > len(".gguf")


def names_projector(name: str) -> bool:
    return "mmproj" in name.lower()


# ---- finding ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """A GGUF file as its place tells it; nothing of it is read yet."""

    path: Path
    publisher: str
    repo: str | None  # None: not in LM Studio's layout, so the file's name is all there is
    group: tuple[str, ...]  # files of one group share their projectors; () shares with none
    name: FileName
    spellings: list[str]  # paths and file names by which a request may name it
    named: bool = False  # on the command line
    refused: str | None = None  # why it is not to be read


class Walk:
    """One look at the folders. Files come with their real paths, in an order that depends on names only. A link out of its
    folder is followed if all are (`follow_links_out`), or if the user made it and `approvals` has it."""

    def __init__(self, follow_links_out: bool = False, approvals: Path | None = None):
        self.definitions: list[Path] = []  # the model.yaml files that were passed
        self.left_out: list[tuple[str, str]] = []  # what a person might look for in the list, and why it is not there
        self._follow_links_out = follow_links_out
        self._approvals = approvals
        self._entries_left = 0
        self._visited: set[tuple[int, int]] = set()

    def folder(self, folder: Path) -> Iterator[tuple[str, Found]]:
        """The GGUF files of publisher/repo/file.gguf, and those that lie about."""
        self._begin()
        root = real(folder)
        if os.path.isfile(root):
            yield from _in_archive(root)
        else:
            yield from self._below(root, root, ())

    def cache(self, cache: Path) -> Iterator[tuple[str, Found]]:
        """The GGUF files of a Hugging Face cache: of each repository the snapshot that its `main` is at. Names there are
        links to blobs of the same repository."""
        self._begin()
        root = real(cache)
        for entry in self._listed(root):
            named = _CACHED_REPO.fullmatch(entry.name)
            if named and _is_folder(entry) and self._may_follow(entry, root):
                repo = real(entry.path)
                if (snapshot := self._snapshot(repo)) is not None:
                    yield from self._below(snapshot, repo, (named[1] or LOCAL, named[2]))

    def definitions_of(self, folder: Path) -> None:
        """Passes publisher/name/model.yaml."""
        self._begin()
        root = real(folder)
        for publisher in filter(_is_folder, self._listed(root)):
            if self._may_follow(publisher, root):
                for model in filter(_is_folder, self._listed(publisher.path)):
                    if self._may_follow(model, root):
                        self._pass(os.path.join(model.path, DEFINITION), root)

    def _begin(self) -> None:
        self._entries_left = MAX_ENTRIES
        self._visited = set()

    def _below(self, start: str, boundary: str, place: tuple[str, ...]) -> Iterator[tuple[str, Found]]:
        """The files below `start`, which is at `place` in the layout; links may lead as far as `boundary`."""
        pending = [place]
        while pending:
            dirs = pending.pop()
            where = os.path.join(start, *dirs[len(place) :])
            real_where = real(where)
            below = []
            for entry in self._listed(where):
                inside = not entry.is_symlink() or _is_below(real(entry.path), boundary)
                if _is_folder(entry):
                    if len(dirs) < MAX_DEPTH and (inside or self._follow_links_out):
                        below.append((*dirs, entry.name))
                    elif not inside:
                        self.left_out.append((entry.path, f"{LINK_OUT}; --models-dir can name the folder that it leads to"))
                elif is_gguf(entry.name):
                    real_path = real(entry.path) if entry.is_symlink() else f"{real_where}{os.sep}{entry.name}"
                    found = _placed(Path(where) / entry.name, boundary, dirs)
                    if not inside and not self._follow_links_out and not self._is_approved(real_where, entry):
                        # Its target is never opened, so it must not pass for that target found elsewhere either.
                        found.refused, real_path = LINK_OUT, entry.path
                    yield real_path, found
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    self.left_out.append((entry.path, LINK_TO_NOTHING))
                elif entry.name == DEFINITION and len(dirs) == 2:
                    self._pass(entry.path, boundary)
            pending.extend(reversed(below))

    def _pass(self, definition: str, boundary: str) -> None:
        if os.path.isfile(definition) and (self._follow_links_out or _is_below(real(definition), boundary)):
            self.definitions.append(Path(definition))

    def _may_follow(self, entry: os.DirEntry[str], boundary: str) -> bool:
        return self._follow_links_out or not entry.is_symlink() or _is_below(real(entry.path), boundary)

    def _is_approved(self, where: str, link: os.DirEntry[str]) -> bool:
        if self._approvals is None:
            return False
        return approval(self._approvals, f"{where}{os.sep}{link.name}", real(link.path)).is_file()

    def _snapshot(self, repo: str) -> str | None:
        """The folder of the revision that `refs/main` names, else the youngest."""
        snapshots = os.path.join(repo, "snapshots")
        revision = small_text(Path(repo, "refs", "main")).strip()
        if _REVISION.fullmatch(revision) and os.path.isdir(os.path.join(snapshots, revision)):
            return os.path.join(snapshots, revision)
        folders = [entry for entry in self._listed(snapshots) if _is_folder(entry) and not entry.is_symlink()]
        return max(folders, key=lambda entry: (entry.stat().st_mtime_ns, entry.name)).path if folders else None

    def _listed(self, where: str) -> list[os.DirEntry[str]]:
        try:
            entries = listed(where, self._entries_left, self._visited)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            self.left_out.append((where, (getattr(error, "strerror", None) or "not a file name").lower()))
            return []
        if entries is None:
            self.left_out.append((where, "a link to a folder whose models are listed already"))
            return []
        self._entries_left -= len(entries)
        if self._entries_left <= 0:
            self.left_out.append((where, f"more than {MAX_ENTRIES} files and folders: the rest is not looked at"))
        return entries


def approval(approvals: Path, link: str, target: str) -> Path:
    """The file that says that `link`, a path without other links in it, may lead out of its folder to `target`, and to
    nothing else."""
    from hashlib import sha256

    return approvals / sha256(os.fsencode(link) + b"\0" + os.fsencode(target)).hexdigest()


def listed(where: str, limit: int, visited: set[tuple[int, int]]) -> list[os.DirEntry[str]] | None:
    """A folder's visible entries by name; None for a folder that was visited before (links make loops). Raises OSError, and
    ValueError for what can be no path."""
    status = os.stat(where)
    if (status.st_dev, status.st_ino) in visited:
        return None
    visited.add((status.st_dev, status.st_ino))
    with os.scandir(where) as entries:
        found = [entry for entry, _ in zip(entries, range(limit), strict=False)]
    # Links last: what is there twice goes by its own place.
    visible = (entry for entry in found if not entry.name.startswith("."))
    return sorted(visible, key=lambda entry: (entry.is_symlink(), entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip(os.sep) + os.sep)


def _in_archive(file: str) -> Iterator[tuple[str, Found]]:
    for name, part in archive.models(Path(file)).items():
        *dirs, last = name.split("/")
        path = part.path(last)
        yield str(path), _placed(path, file, tuple(dirs))


def _placed(path: Path, root: str, dirs: tuple[str, ...]) -> Found:
    in_layout = len(dirs) >= 2
    name = file_name(path.name)
    return Found(
        path=path,
        publisher=dirs[0] if in_layout else LOCAL,
        repo=dirs[1] if in_layout else None,
        group=(root, *dirs[:2]) if dirs else (),
        name=name,
        spellings=["/".join((*dirs, path.name)), *spellings_of(path.name)],
    )


def named_files(path: Path) -> Iterator[tuple[str, Found]]:
    """A file of the command line, with the other parts and the projector that lie beside it."""
    path = Path(os.path.abspath(path))
    name = file_name(path.name) if is_gguf(path.name) else FileName(path.name, None, path.name)
    folder = path.parent
    beside: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        beside = [entry.name for entry in listed(str(folder), MAX_ENTRIES, set()) or () if is_gguf(entry.name)]
    models = [file_name(other) for other in beside if not names_projector(other)]
    repo = GGUF_ENDING.sub("", folder.name)
    in_layout = bool(repo) and plain(name.base).startswith(plain(repo)) and bool(folder.parent.name)
    # A projector fits one model: among different models nothing tells whose it is.
    alone = {plain(other.base) for other in models} <= {plain(name.base)}
    wanted = {path.name}
    wanted.update(other for other in beside if _same_model(file_name(other), name) or (alone and names_projector(other)))
    for other in sorted(wanted):
        beside_path = folder / other
        yield real(beside_path), Found(
            path=beside_path,
            publisher=folder.parent.name if in_layout else LOCAL,
            repo=None,
            group=("", str(folder)),
            name=name if other == path.name else file_name(other),
            spellings=[*spellings_of(other), str(beside_path)],
        )


def _same_model(one: FileName, other: FileName) -> bool:
    return other.parts > 1 and (one.stem, one.parts) == (other.stem, other.parts)
