"""The models on disk: found in LM Studio's layout, read in place, named as LM Studio names them.

A scan never fails: a file that cannot be used is a card with a `problem`, a folder that cannot be read is empty. It opens
regular files only, goes no deeper than `MAX_DEPTH` and follows no link out of its folder. A name finds the model that it
names, or none. Ids: LM Studio's captured behaviour, contract section 2.
"""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..card import ModelCard, ModelType
from . import gguf
from .gguf import Facts, GgufError, Header

MAX_DEPTH: Final = 3
"""Folders below a models folder: publisher, repository, and the one folder per quantization that some repositories have."""
MAX_ENTRIES: Final = 100_000
"""Directory entries looked at in one models folder: a home folder named by mistake must not hold up the server."""
MAX_NAME: Final = 1024
"""Characters of a model's name in a request: publisher, repository and file of 255 bytes each, and their signs."""
MAX_PARTS: Final = 999
"""Parts of a split model; the largest published have some dozens."""
MAX_SETTINGS: Final = 1 << 20
"""Bytes of another program's settings file that are read at most."""

BUNDLED_PUBLISHER: Final = "lmlite"
LOCAL: Final = "local"
"""The publisher of files that do not say whose they are."""


def bundled_model() -> Path:
    """Where the package keeps the model that it brings along."""
    return Path(__file__).parent.parent / "models" / "lmlite-tiny.gguf"


# ---- where models are ------------------------------------------------------------------------------------------------


def model_folders(home: Path, extra: Sequence[Path], environ: Mapping[str, str]) -> list[Path]:
    """lmlite's own folder (in `home`), LM Studio's if there is one, then `extra`; each once."""
    folders = [home / "models"]
    user_home = environ.get("HOME") or environ.get("USERPROFILE")
    if user_home and (lm_studio := _lm_studio_models(Path(user_home))):
        folders.append(lm_studio)
    folders.extend(extra)
    once: dict[str, Path] = {}
    for folder in folders:
        once.setdefault(_real(folder), folder)
    return list(once.values())


def _lm_studio_models(user_home: Path) -> Path | None:
    pointed = _absolute(_small_text(user_home / ".lmstudio-home-pointer"))
    cached = user_home / ".cache" / "lm-studio"
    home = pointed or (cached if cached.is_dir() else user_home / ".lmstudio")
    for folder in (_downloads_folder(home / "settings.json"), home / "models"):
        if folder is not None and folder.is_dir():
            return folder
    return None


def _downloads_folder(settings: Path) -> Path | None:
    try:
        content = json.loads(_small_text(settings))
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


def _small_text(path: Path) -> str:
    """The file's text, or "" if it is not a small regular file of text."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return ""
            content = file.read(MAX_SETTINGS + 1)
        return "" if len(content) > MAX_SETTINGS else content.decode("utf-8-sig")
    except (OSError, ValueError):
        return ""


# ---- names -----------------------------------------------------------------------------------------------------------

_QUANT: Final = re.compile(
    r"[-._]((?:ud-|i1-)?(?:i?q[0-9](?:_[0-9a-z]{1,4}){0,3}|tq[12]_0|b?f16|f32|fp16|fp32|mxfp4(?:_moe)?|nvfp4))$",
    re.IGNORECASE,
)
_GGUF_ENDING: Final = re.compile(r"[-._]gguf$", re.IGNORECASE)
_PART: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.IGNORECASE | re.DOTALL)


@dataclass(slots=True, frozen=True)
class _FileName:
    """A GGUF file's name taken apart: `Falcon-7B-Q4_K_M-00001-of-00002.gguf`."""

    base: str  # "Falcon-7B"
    quant: str | None  # "Q4_K_M"
    stem: str  # all but the number of the part: what the parts of one model share
    part: int = 1
    parts: int = 1


def _file_name(name: str) -> _FileName:
    stem, part, parts = name[: -len(".gguf")], 1, 1
    if (split := _PART.fullmatch(name)) and 1 <= int(split[2]) <= int(split[3]) <= MAX_PARTS:
        stem, part, parts = split[1], int(split[2]), int(split[3])
    base = _GGUF_ENDING.sub("", stem)
    quant = _QUANT.search(base)
    if quant:
        base = base[: quant.start()]
    return _FileName(_GGUF_ENDING.sub("", base) or stem, quant[1] if quant else None, stem, part, parts)


def _printable(name: str) -> str:
    """A name from the disk, fit for an id: what cannot be shown (or is not even Unicode) becomes `_`."""
    shown = "".join(c if c.isprintable() else "_" for c in unicodedata.normalize("NFC", name))
    return shown.strip() or "_"


def _key(name: str) -> str:
    """What two spellings of one name have in common."""
    return unicodedata.normalize("NFC", name).casefold()


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", _key(name))


def _real(path: str | Path) -> str:
    """The path without links; a path that cannot be one stays as it is, and finds nothing."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return os.fspath(path)


def _is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf") and len(name) > len(".gguf")


def _names_projector(name: str) -> bool:
    return "mmproj" in name.lower()


# ---- a scan's steps --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """A GGUF file as its place tells it; nothing of it is read yet."""

    path: Path
    publisher: str
    repo: str | None  # None: not in LM Studio's layout, so the file's name is all there is
    group: tuple[str, ...]  # files of one group share their projectors; () shares with none
    name: _FileName
    spellings: list[str]  # paths by which a request may name it
    named: bool = False  # on the command line
    refused: str | None = None  # why it is not to be read


@dataclass(slots=True, frozen=True)
class _Seen:
    """What was read of a file. A file that was cut off behind its header has `facts` and a `problem`."""

    size: int
    problem: str | None
    facts: Facts | None = None
    header: Header | None = None  # of parts of a model only: their facts are told together


_Stamp = tuple[str, int, int, int]  # path, size, mtime in ns, inode


@dataclass(slots=True)
class _Entry:
    """One model: its file or parts, and what they say."""

    files: list[_Found]  # in order of the parts
    seen: list[_Seen]
    facts: Facts | None  # None: the first part could not be read
    projector: tuple[Path, int] | None = None  # and its size
    base: str = ""  # the id without publisher and quantization
    title: str = ""  # the same as it stands on disk
    id: str = ""

    @property
    def first(self) -> _Found:
        return self.files[0]

    @property
    def publisher(self) -> str:
        return _printable(self.first.publisher)

    @property
    def family(self) -> tuple[str, str]:
        """Entries of one family differ in quantization only."""
        return _key(self.publisher), self.base

    @property
    def quantization(self) -> str:
        known = self.facts.quantization if self.facts else "?"
        return (self.first.name.quant or "?").upper() if known == "?" else known

    @property
    def tag(self) -> str:
        """What stands behind the `@`. The file's name knows more variants than its header."""
        return (self.first.name.quant or self.quantization).lower()

    @property
    def size(self) -> int:
        return sum(seen.size for seen in self.seen) + (self.projector[1] if self.projector else 0)


@dataclass(slots=True, frozen=True)
class _Snapshot:
    cards: tuple[ModelCard, ...]
    named: tuple[ModelCard, ...]
    index: Mapping[str, ModelCard]


class Catalog:
    """The models in `folders` and the named `files`. With `bundled`, the package's own model stands in for an empty list.

    `aliases` maps names of the user's own to any name that `resolve` knows. The first question scans the disk; after
    that only `rescan` does. `rescan` may run in a thread of its own: the others see the old list or the new one.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        files: Sequence[Path] = (),
        *,
        aliases: Mapping[str, str] | None = None,
        bundled: bool = False,
        follow_links_out: bool = False,
    ):
        self._folders = tuple(folders)
        self._files = tuple(files)
        self._aliases = {_key(alias): target for alias, target in (aliases or {}).items()}
        self._bundled = bundled
        self._follow_links_out = follow_links_out
        self._cache: dict[_Stamp, _Seen] = {}
        self._snapshot: _Snapshot | None = None

    def cards(self) -> tuple[ModelCard, ...]:
        """All models by id, broken ones too."""
        return self._current().cards

    def named(self) -> tuple[ModelCard, ...]:
        """The models of the files that were named one by one, in the order of `cards`."""
        return self._current().named

    def default(self) -> ModelCard | None:
        """The one LLM that can be loaded, if there is exactly one."""
        llms = [card for card in self.cards() if card.type != "embedding" and card.problem is None]
        return llms[0] if len(llms) == 1 else None

    def resolve(self, name: str) -> ModelCard | None:
        """The model that `name` names, in any case: an alias, an id, `publisher/name`, `publisher/repo`, these with
        `@quant`, or `publisher/repo/file.gguf`. Without `@quant` a model on disk in several is taken as Q4_K_M, else
        nearest to that. None if two different models go by the name."""
        if len(name) > MAX_NAME:
            return None
        key = _key(name)
        if (target := self._aliases.get(key)) is not None:
            key = _key(target)
        return self._current().index.get(key)

    def rescan(self) -> None:
        """Looks at the disk again; files that have not changed are not read again."""
        cache: dict[_Stamp, _Seen] = {}
        entries = _gather(self._find(), self._cache, cache)
        _name_all(entries)
        cards = {entry.id: _card(entry) for entry in entries}
        index = _index(entries, cards)
        if self._bundled and (own := _bundled_card(self._cache, cache)):
            if all(card.problem for card in cards.values()):
                cards.setdefault(own.id, own)
            index.setdefault(_key(own.id), own)
            index.setdefault(_key(f"{own.publisher}/{own.id}"), own)
        self._cache = cache
        self._snapshot = _Snapshot(
            cards=tuple(cards[id] for id in sorted(cards)),
            named=tuple(cards[entry.id] for entry in sorted(entries, key=lambda e: e.id) if entry.first.named),
            index=index,
        )

    def _current(self) -> _Snapshot:
        if self._snapshot is None:
            self.rescan()
        assert self._snapshot is not None
        return self._snapshot

    def _find(self) -> list[_Found]:
        """Every file once, however many links and folders lead to it."""
        by_real_path: dict[str, _Found] = {}
        for folder in self._folders:
            for real_path, found in _walk(folder, self._follow_links_out):
                if first := by_real_path.get(real_path):
                    first.spellings += found.spellings
                else:
                    by_real_path[real_path] = found
        for path in self._files:
            for real_path, found in _named_files(path):
                first = by_real_path.get(str(found.path)) or by_real_path.setdefault(real_path, found)
                first.named, first.refused = True, None
                if first is not found:
                    first.spellings += found.spellings
        return list(by_real_path.values())


# ---- finding ---------------------------------------------------------------------------------------------------------


def _walk(folder: Path, follow_links_out: bool) -> Iterator[tuple[str, _Found]]:
    """The GGUF files below `folder` with their real paths, in an order that depends on names only."""
    root = _real(folder)
    visited: set[tuple[int, int]] = set()
    entries_left = MAX_ENTRIES
    pending: list[tuple[str, ...]] = [()]
    while pending:
        dirs = pending.pop()
        where = os.path.join(root, *dirs)
        real_where = _real(where)
        below = []
        for entry in _listed(where, entries_left, visited):
            entries_left -= 1
            inside = not entry.is_symlink() or _is_below(_real(entry.path), root)
            if _is_folder(entry):
                if len(dirs) < MAX_DEPTH and (inside or follow_links_out):
                    below.append((*dirs, entry.name))
            elif _is_gguf(entry.name):
                real_path = _real(entry.path) if entry.is_symlink() else f"{real_where}{os.sep}{entry.name}"
                found = _placed(Path(where) / entry.name, root, dirs)
                if not inside and not follow_links_out:
                    # Its target is never opened, so it must not pass for that target found elsewhere either.
                    found.refused, real_path = "a link out of the models folder", entry.path
                yield real_path, found
        pending.extend(reversed(below))


def _listed(where: str, limit: int, visited: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """A folder's visible entries by name; none of a folder that was visited before (links make loops)."""
    try:
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in visited:
            return []
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(where) as entries:
            listed = [entry for entry, _ in zip(entries, range(limit), strict=False)]
    except (OSError, ValueError):
        return []
    # Links last: what is there twice goes by its own place.
    visible = (entry for entry in listed if not entry.name.startswith("."))
    return sorted(visible, key=lambda entry: (entry.is_symlink(), entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip(os.sep) + os.sep)


def _placed(path: Path, root: str, dirs: tuple[str, ...]) -> _Found:
    in_layout = len(dirs) >= 2
    return _Found(
        path=path,
        publisher=dirs[0] if in_layout else LOCAL,
        repo=dirs[1] if in_layout else None,
        group=(root, *dirs[:2]) if dirs else (),
        name=_file_name(path.name),
        spellings=["/".join((*dirs, path.name))],
    )


def _named_files(path: Path) -> Iterator[tuple[str, _Found]]:
    """A file of the command line, with the other parts and the projector that lie beside it."""
    path = Path(os.path.abspath(path))
    name = _file_name(path.name) if _is_gguf(path.name) else _FileName(path.name, None, path.name)
    folder = path.parent
    beside = [entry.name for entry in _listed(str(folder), MAX_ENTRIES, set()) if _is_gguf(entry.name)]
    models = [_file_name(other) for other in beside if not _names_projector(other)]
    repo = _GGUF_ENDING.sub("", folder.name)
    in_layout = bool(repo) and _plain(name.base).startswith(_plain(repo)) and bool(folder.parent.name)
    # A projector fits one model: among different models nothing tells whose it is.
    alone = {_plain(other.base) for other in models} <= {_plain(name.base)}
    wanted = {path.name}
    wanted.update(other for other in beside if _same_model(_file_name(other), name) or (alone and _names_projector(other)))
    for other in sorted(wanted):
        beside_path = folder / other
        yield _real(beside_path), _Found(
            path=beside_path,
            publisher=folder.parent.name if in_layout else LOCAL,
            repo=None,
            group=("", str(folder)),
            name=name if other == path.name else _file_name(other),
            spellings=[other, str(beside_path)],
        )


def _same_model(one: _FileName, other: _FileName) -> bool:
    return other.parts > 1 and (one.stem, one.parts) == (other.stem, other.parts)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _inspect(path: Path, old: Mapping[_Stamp, _Seen], new: dict[_Stamp, _Seen]) -> _Seen:
    """Reads a file's header, unless `old` knows it; leaves what it found in `new`."""
    try:
        status = os.stat(path)
    except OSError as error:
        return _Seen(0, gguf.os_reason(error))
    except ValueError:  # a NUL in the path
        return _Seen(0, "not a file name")
    if not stat.S_ISREG(status.st_mode):
        return _Seen(0, "not a regular file")
    stamp = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
    seen = old.get(stamp) or _read(path, status.st_size)
    new[stamp] = seen
    return seen


def _read(path: Path, size: int) -> _Seen:
    try:
        header = gguf.read_header(path)
    except GgufError as error:
        return _Seen(size, error.reason)
    in_parts = _file_name(path.name).parts > 1
    return _Seen(size, header.incomplete, gguf.facts([header]), header if in_parts else None)


def _gather(files: Iterable[_Found], old: Mapping[_Stamp, _Seen], new: dict[_Stamp, _Seen]) -> list[_Entry]:
    """The models among `files`: parts put together, projectors given to their models, what is no model left out."""
    models: dict[tuple[str, str, int], list[tuple[_Found, _Seen]]] = {}
    projectors: dict[tuple[str, ...], list[tuple[Path, int, str]]] = {}
    for found in files:
        seen = _Seen(0, found.refused) if found.refused else _inspect(found.path, old, new)
        known = seen.facts
        if known.is_projector if known else _names_projector(found.path.name):
            if known and seen.problem is None:
                projectors.setdefault(found.group, []).append((found.path, seen.size, known.quantization))
        elif not _stands_beside(found, known):
            of_parts = found.name.parts > 1
            whole = (str(found.path.parent), found.name.stem if of_parts else found.path.name, found.name.parts)
            models.setdefault(whole, []).append((found, seen))
    entries = [_entry(parts) for parts in models.values()]
    for entry in entries:
        if entry.first.group and (fitting := projectors.get(entry.first.group)):
            path, size, _ = min(fitting, key=_projector_rank)
            entry.projector = path, size
    return entries


def _stands_beside(found: _Found, known: Facts | None) -> bool:
    """Whether the file is an adapter, an importance matrix or the like."""
    if known is None:
        return found.path.name.lower().startswith("imatrix")
    return known.general_type in gguf.NOT_MODELS or known.arch in gguf.NOT_MODELS


def _projector_rank(projector: tuple[Path, int, str]) -> tuple[int, str]:
    """Repositories offer a projector in several precisions; F16 is the one that every backend runs well."""
    path, _, quantization = projector
    order = ("F16", "BF16", "Q8_0", "F32")
    return order.index(quantization) if quantization in order else len(order), str(path)


def _entry(parts: list[tuple[_Found, _Seen]]) -> _Entry:
    parts.sort(key=lambda part: part[0].name.part)
    known = parts[0][1].facts
    if known and len(parts) > 1:
        known = gguf.facts([seen.header for _, seen in parts if seen.header])
    return _Entry(files=[found for found, _ in parts], seen=[seen for _, seen in parts], facts=known)


# ---- naming ----------------------------------------------------------------------------------------------------------


def _name_all(entries: list[_Entry]) -> None:
    """Gives every entry its id; equal folders get equal ids, whatever the order in which files appeared."""
    repos: dict[tuple[str, ...], list[_Entry]] = {}
    for entry in entries:
        if entry.first.repo is None:
            _set_base(entry, entry.first.name.base)
        else:
            repos.setdefault(entry.first.group, []).append(entry)
    for of_repo in repos.values():
        _name_repo(of_repo)
    families: dict[tuple[str, str], list[_Entry]] = {}
    for entry in entries:
        families.setdefault(entry.family, []).append(entry)
    publishers: dict[str, set[str]] = {}
    for publisher, base in families:
        publishers.setdefault(base, set()).add(publisher)
    taken: set[str] = set()
    for (_, base), family in families.items():
        of_whom = f"{family[0].publisher.lower()}/" if len(publishers[base]) > 1 else ""
        several = len({entry.tag for entry in family}) > 1
        for entry in family:
            entry.id = _free(f"{of_whom}{base}@{entry.tag}" if several else f"{of_whom}{base}", taken)


def _name_repo(entries: list[_Entry]) -> None:
    """A repository's name is its model's; of several models in it, only of the one whose files bear it."""
    repo = _GGUF_ENDING.sub("", entries[0].first.repo or "")
    one_model = len({_plain(entry.first.name.base) for entry in entries}) == 1
    for entry in entries:
        base = entry.first.name.base
        _set_base(entry, repo if repo and (one_model or _plain(base) == _plain(repo)) else base)


def _set_base(entry: _Entry, name: str) -> None:
    entry.title = re.sub(r"[-_ ]+", " ", _printable(name)).strip() or _printable(name)
    entry.base = _printable(name).lower()
    if entry.facts and entry.facts.is_embedding and not entry.base.startswith("text-embedding-"):
        entry.base = f"text-embedding-{entry.base}"


def _free(id: str, taken: set[str]) -> str:
    free, n = id, 1
    while free in taken:
        n += 1
        free = f"{id}:{n}"
    taken.add(free)
    return free


def _index(entries: list[_Entry], cards: Mapping[str, ModelCard]) -> dict[str, ModelCard]:
    """Every spelling that names one model. Where several quantizations of one go by it, the usual one is taken."""
    claims: dict[str, list[_Entry]] = {}
    for entry in entries:
        for spelling in _spellings(entry):
            claims.setdefault(spelling, []).append(entry)
    index = {
        spelling: cards[min(claimants, key=_pick_rank).id]
        for spelling, claimants in claims.items()
        if len({entry.family for entry in claimants}) == 1
    }
    index.update((_key(entry.id), cards[entry.id]) for entry in entries)
    return index


def _spellings(entry: _Entry) -> set[str]:
    names = {entry.base, entry.base.removeprefix("text-embedding-")}
    if entry.first.repo is not None:
        names.add(_printable(entry.first.repo))
    tagged = {f"{name}@{tag}" for name in names for tag in (entry.tag, entry.quantization)}
    spellings = {*names, *tagged, *(f"{entry.publisher}/{name}" for name in names | tagged)}
    for found in entry.files:
        spellings.update(found.spellings)
        spellings.update(_printable(spelling) for spelling in found.spellings)
    return {_key(spelling) for spelling in spellings}


def _pick_rank(entry: _Entry) -> tuple[bool, bool, float, int, str]:
    bits = entry.facts.bits_per_weight if entry.facts else None
    # Q4_K_M has 4.8 bits in most models.
    return _problem(entry) is not None, entry.tag != "q4_k_m", abs((bits or 99) - 4.8), entry.size, entry.id


# ---- cards -----------------------------------------------------------------------------------------------------------


def _bundled_card(old: Mapping[_Stamp, _Seen], new: dict[_Stamp, _Seen]) -> ModelCard | None:
    path = bundled_model()
    if not path.is_file():
        return None
    found = _Found(path, BUNDLED_PUBLISHER, None, (), _file_name(path.name), [])
    (entry,) = entries = [_entry([(found, _inspect(path, old, new))])]
    _name_all(entries)
    return _card(entry)


def _card(entry: _Entry) -> ModelCard:
    known = entry.facts
    kind: ModelType = "vlm" if entry.projector else "llm"
    if known and known.is_embedding:
        kind = "embedding"
    return ModelCard(
        id=entry.id,
        type=kind,
        publisher=entry.publisher,
        display_name=entry.title,
        arch=_printable(known.arch) if known and known.arch else "unknown",
        quantization=entry.quantization,
        bits_per_weight=known.bits_per_weight if known else None,
        size_bytes=entry.size,
        params_string=known.params_string if known else None,
        max_context_length=_context_length(known),
        paths=tuple(found.path for found in entry.files),
        mmproj=entry.projector[0] if entry.projector else None,
        has_chat_template=known.has_chat_template if known else False,
        trained_for_tool_use=known.trained_for_tool_use if known else False,
        reranks=known.is_reranker if known else False,
        problem=_problem(entry),
    )


def _context_length(known: Facts | None) -> int:
    n = known.context_length if known else None
    return n if n is not None and 0 < n <= gguf.MAX_CONTEXT else 0


def _problem(entry: _Entry) -> str | None:
    name, n = entry.first.name, len(entry.files)
    if n < name.parts:
        return f"{name.parts - n} of {name.parts} parts are missing"
    for found, seen in zip(entry.files, entry.seen, strict=True):
        if seen.problem:
            return f"part {found.name.part}: {seen.problem}" if n > 1 else seen.problem
    assert entry.facts is not None  # a file without a problem has them
    parts = entry.facts.split_count or 1
    if parts != name.parts:
        return f"a model of {parts} parts, named as one of {name.parts}"
    return _sense_problem(entry.facts)


def _sense_problem(known: Facts) -> str | None:
    """Headers that are sound in form and that an engine would die of, or could do nothing with."""
    if not known.arch:
        return "no architecture is named"
    if known.n_params == 0:
        return "a vocabulary without weights"
    if known.block_count is not None and not 0 < known.block_count <= gguf.MAX_BLOCKS:
        return f"block_count {known.block_count} is out of range"
    if known.context_length is None:
        return "no context_length is given"
    if not 0 < known.context_length <= gguf.MAX_CONTEXT:
        return f"context_length {known.context_length} is out of range"
    return None
