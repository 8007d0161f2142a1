"""The models on disk: found by `model_files`, read in place, named as LM Studio names them, with the settings made for them.

A scan never fails: a file that cannot be used is a card with a `problem`. It opens regular files only. A name finds the
model that it names, or none. Ids: LM Studio's captured behaviour, contract section 2.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Final

from ... import archive
from ...card import ModelCard, ModelType, Reasoning
from ...errors import ConfigError
from ...package import BUNDLED_PUBLISHER, bundled_model, bundled_vision_model
from ...records import dataclass
from ...settings import ModelSettings
from . import gguf, given_ids, known_headers, model_settings, model_yaml
from .aliases import Aliases
from .gguf import Facts, GgufError
from .known_headers import Seen, Stamp, stamp_of
from .model_files import (
    DEFINITION,
    GGUF_ENDING,
    LINK_TO_NOTHING,
    LOCAL,
    UNCATEGORIZED,
    Found,
    Walk,
    file_name,
    key_of,
    named_files,
    names_projector,
    plain,
    printable,
    shown,
    small_text,
)
from .model_settings import Entry
from .model_yaml import Definition, YamlError
from .mounts import at_hand, looked
from .titles import title_of

log = logging.getLogger(__name__)

MAX_NAME: Final = 1024
"""Characters of a model's name in a request: publisher, repository and file of 255 bytes each, and their signs."""
MAX_CHAIN: Final = 8
"""Models of model.yaml made of each other."""

TICK_NS: Final = 2_000_000_000
"""The coarsest step in which a file system notes when a file was written (FAT)."""


# ---- a scan's steps --------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Projector:
    """What sees or hears for a model that lies beside it."""

    path: Path
    size: int
    quantization: str
    sees: bool
    hears: bool


@dataclass(slots=True)
class _Entry:
    """One model: its file or parts, and what they say."""

    files: list[Found]  # in order of the parts
    seen: list[Seen]
    facts: Facts | None  # None: the first part could not be read
    projector: Projector | None = None
    base: str = ""  # the id without publisher and quantization
    title: str = ""  # the same for people to read
    id: str = ""

    @property
    def first(self) -> Found:
        return self.files[0]

    @property
    def path(self) -> str:
        return str(self.first.path)

    @property
    def is_embedding(self) -> bool:
        return self.facts is not None and self.facts.is_embedding

    @property
    def publisher(self) -> str:
        return printable(self.first.publisher)

    @property
    def family(self) -> tuple[str, str]:
        """Entries of one family differ in quantization only."""
        return key_of(self.publisher), self.base

    @property
    def possible_ids(self) -> set[str]:
        """All that it could be called, whatever there is beside it."""
        bases = {_base(self, name) for name in (self.first.name.base, GGUF_ENDING.sub("", self.first.repo or "")) if name}
        plain_ids = {f"{base}{tag}" for base in bases for tag in ("", f"@{self.tag}")}
        return plain_ids | {f"{self.publisher.lower()}/{id}" for id in plain_ids}

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
        return sum(seen.size for seen in self.seen) + (self.projector.size if self.projector else 0)


@dataclass(slots=True)
class _Models:
    """What a scan makes. `index` leads from every spelling that names one model to its id."""

    cards: dict[str, ModelCard]
    index: dict[str, str]
    unlisted: set[str] = field(default_factory=set)  # ids that are known, but stand for no model of their own
    models: dict[str, str] = field(default_factory=dict)  # the catalogue model of each id of a variant


@dataclass(slots=True, frozen=True)
class _Snapshot:
    cards: tuple[ModelCard, ...]
    named: tuple[ModelCard, ...]
    known: Mapping[str, ModelCard]  # by id
    index: Mapping[str, str]
    further: frozenset[str]  # ids of the package's own models but the first


class Catalog:
    """The models in `folders`, in the Hugging Face `caches`, the named `files`, and those that model.yaml files in folders
    and `definitions` make of them. With `bundled`, the package's own models stand in for an empty list.

    Links that lead out of their folder are refused, but for those that `approvals` has (`model_files.approval`).
    `aliases` maps names of the user's own, and patterns of names, to any name that the disk has; `settings` is the file
    with the user's settings of single models; `state` is lmlite's own folder, where it may keep what it has read. The first
    question scans the disk; after that only `rescan` does. `rescan` may run in a thread of its own: the others see the old
    list or the new one.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        files: Sequence[Path] = (),
        *,
        caches: Sequence[Path] = (),
        definitions: Sequence[Path] = (),
        settings: Path | None = None,
        state: Path | None = None,
        aliases: Mapping[str, str] | None = None,
        bundled: bool = False,
        follow_links_out: bool = False,
        approvals: Path | None = None,
    ):
        self._folders = tuple(folders)
        self._files = tuple(files)
        self._caches = tuple(caches)
        self._definitions = _Definitions(definitions)
        self._settings = _Settings(settings)
        self._aliases = Aliases(aliases or {})
        self._bundled = bundled
        self._follow_links_out = follow_links_out
        self._approvals = approvals
        self._kept = state / known_headers.FILE_NAME if state else None
        self._ids = given_ids.GivenIds(state / given_ids.FILE_NAME if state else None)
        self._cache: dict[Stamp, Seen] = {}
        self._found: list[Found] = []
        self._defined: list[Definition] = []
        self._left_out: list[tuple[str, str]] = []
        self._notes: tuple[str, ...] = ()
        self._snapshot: _Snapshot | None = None

    def cards(self) -> tuple[ModelCard, ...]:
        """All models by id, broken ones too."""
        return self._current().cards

    def named(self) -> tuple[ModelCard, ...]:
        """The models of the files that were named one by one, in the order of `cards`."""
        return self._current().named

    def notes(self) -> tuple[str, ...]:
        """What a person has to know who misses something in `cards`: a sentence each."""
        self._current()
        return self._notes

    def default(self) -> ModelCard | None:
        """The one LLM that can be loaded, if there is exactly one. Of the package's own that is the first."""
        further = self._current().further
        llms = [
            card for card in self.cards() if card.type != "embedding" and card.problem is None and card.id not in further
        ]
        return llms[0] if len(llms) == 1 else None

    def resolve(self, name: str) -> ModelCard | None:
        """The model that `name` names, in any case: an alias, an id, `publisher/name`, `publisher/repo`, these with
        `@quant`, or `publisher/repo/file.gguf`. Without `@quant` a model on disk in several is taken as Q4_K_M, else
        nearest to that. None if two different models go by the name."""
        return self._find_named(name, self._aliases.key)

    def matched(self, name: str) -> ModelCard | None:
        """The model of the alias with a `*` that `name` has the form of: for names that nothing goes by."""
        return self._find_named(name, self._aliases.matched)

    def _find_named(self, name: str, key: Callable[[str], str | None]) -> ModelCard | None:
        if len(name) > MAX_NAME:
            return None
        current = self._current()
        return current.known.get(current.index.get(key(name) or "", ""))

    def latest(self, card: ModelCard) -> ModelCard | None:
        """The card that the model of `card` has now; None if the model is gone."""
        return self._current().known.get(card.id)

    async def settings_changed(self) -> bool:
        """Whether the settings file is another than at the last scan."""
        return await looked(self._settings.changed, self._settings.is_at_hand)

    def rescan(self) -> None:
        """Looks at the disk again; files that have not changed are not read again."""
        if self._snapshot is None and self._kept is not None:
            self._cache = known_headers.load(self._kept)
            self._ids.load()
        cache: dict[Stamp, Seen] = {}
        walk = Walk(self._follow_links_out, self._approvals)
        found = self._find(walk)
        notes = self._definitions.notes
        definitions = self._definitions.read(walk)
        settings_changed = self._settings.read()
        entries = _gather(found, self._cache, cache)
        own = _bundled(self._cache, cache) if self._bundled else []
        unchanged = found == self._found and cache.keys() == self._cache.keys() and not settings_changed
        unchanged = unchanged and walk.left_out == self._left_out and notes == self._definitions.notes
        if self._snapshot is not None and unchanged and definitions == self._defined:
            return
        if self._kept is not None and not cache.keys() <= self._cache.keys():
            known_headers.save(self._kept, cache)
        self._found, self._defined, self._cache, self._left_out = found, definitions, cache, walk.left_out
        self._snapshot = self._arranged(entries, definitions, own)
        self._note()

    def _arranged(self, entries: list[_Entry], definitions: list[Definition], own: list[ModelCard]) -> _Snapshot:
        _name_all(entries, self._ids.by_path)
        self._ids.give({entry.path: entry.id for entry in entries})
        claims = _claims(entries)
        models = _Models({entry.id: _card(entry) for entry in entries}, _index(entries, claims))
        _define(models, definitions, claims)
        _note_unread(models, self._definitions.unread, claims)
        standing_in = _stand_in(models, own)
        self._set(models)
        self._list_aliases(models)
        return _Snapshot(
            cards=tuple(card for id, card in sorted(models.cards.items()) if id not in models.unlisted),
            named=tuple(models.cards[entry.id] for entry in sorted(entries, key=lambda e: e.id) if entry.first.named),
            known=models.cards,
            index=models.index,
            further=frozenset(standing_in[1:]),
        )

    def _note(self) -> None:
        """Tells each once, when it comes to be true."""
        left_out = [f"{shown(path)} is left out: {why}" for path, why in self._left_out]
        index = self._current().index
        aliases = [
            f"the alias {shown(alias)} stands for {shown(target)}, and there is no such model"
            for alias, target, key in self._aliases
            if key not in index
        ]
        settings = [
            f"{model_settings.FILE_NAME}: there is no model {shown(name)}"
            for name in self._settings.entries
            if self._aliases.key(name) not in index
        ]
        for level, notes in ((logging.INFO, [*left_out, *settings]), (logging.WARNING, aliases)):
            for note in notes:
                if note not in self._notes:
                    log.log(level, "%s", note)
        self._notes = (*left_out, *self._definitions.notes, *aliases, *settings, *self._settings.notes)

    def _set(self, models: _Models) -> None:
        """Gives the cards what the user has set; a variant has what its model has, too."""
        said: dict[str, Entry] = {}
        for name, entry in self._settings.entries.items():
            id = models.index.get(self._aliases.key(name))
            if id is not None:
                said[id] = _join(entry, said.get(id))
        for variant, model in models.models.items():
            if model in said:
                said[variant] = _join(said[variant], said[model]) if variant in said else said[model]
        for id, entry in said.items():
            card = models.cards[id]
            settings = entry.settings.over(card.settings)
            models.cards[id] = replace(card, settings=settings, problem=card.problem or entry.problem)
        for id, card in models.cards.items():
            if card.reasoning is not None and card.settings.template_kwargs:
                models.cards[id] = replace(card, reasoning=_told(card.reasoning, card.settings))

    def _list_aliases(self, models: _Models) -> None:
        for alias, _, key in self._aliases:
            id = models.index.get(key)
            if id is not None:
                models.cards[id] = replace(models.cards[id], aliases=(*models.cards[id].aliases, alias))

    def _current(self) -> _Snapshot:
        if self._snapshot is None:
            self.rescan()
        assert self._snapshot is not None
        return self._snapshot

    def _find(self, walk: Walk) -> list[Found]:
        """Every file once, however many links and folders lead to it."""
        by_real_path: dict[str, Found] = {}
        for real_path, found in self._walked(walk):
            if first := by_real_path.get(real_path):
                if found.spellings[0] != first.spellings[0] and found.path.is_symlink():
                    walk.left_out.append((str(found.path), f"a link to {shown(first.spellings[0])}, which is listed"))
                first.spellings += found.spellings
            else:
                by_real_path[real_path] = found
        for path in self._files:
            for real_path, found in named_files(path):
                first = by_real_path.get(str(found.path)) or by_real_path.setdefault(real_path, found)
                first.named, first.refused = True, None
                if first is not found:
                    first.spellings += found.spellings
        return list(by_real_path.values())

    def _walked(self, walk: Walk) -> Iterator[tuple[str, Found]]:
        for folder in self._folders:
            yield from walk.folder(folder)
        for cache in self._caches:
            yield from walk.cache(cache)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _inspect(path: Path, old: Mapping[Stamp, Seen], new: dict[Stamp, Seen]) -> Seen:
    """Reads a file's header, unless `old` knows it; leaves what it found in `new`."""
    try:
        status = archive.stat(path)
    except OSError as error:
        return Seen(0, LINK_TO_NOTHING if os.path.islink(path) and not os.path.exists(path) else gguf.os_reason(error))
    except ValueError:  # a NUL in the path
        return Seen(0, "not a file name")
    if not stat.S_ISREG(status.st_mode):
        return Seen(0, "not a regular file")
    stamp = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
    seen = old.get(stamp) or _read(path, status.st_size)
    new[stamp] = seen
    return seen


def _read(path: Path, size: int) -> Seen:
    try:
        header = gguf.read_header(path)
    except GgufError as error:
        return Seen(size, error.reason)
    in_parts = file_name(path.name).parts > 1
    return Seen(header.size, header.incomplete, gguf.facts([header]), header if in_parts else None)


def _gather(files: Iterable[Found], old: Mapping[Stamp, Seen], new: dict[Stamp, Seen]) -> list[_Entry]:
    """The models among `files`: parts put together, projectors given to their models, what is no model left out."""
    models: dict[tuple[str, str, int], list[tuple[Found, Seen]]] = {}
    projectors: dict[tuple[str, ...], list[Projector]] = {}
    for found in files:
        seen = Seen(0, found.refused) if found.refused else _inspect(found.path, old, new)
        known = seen.facts
        if known.is_projector if known else names_projector(found.path.name):
            if known and seen.problem is None:
                projector = Projector(found.path, seen.size, known.quantization, known.sees, known.hears)
                projectors.setdefault(found.group, []).append(projector)
        elif not _stands_beside(found, known):
            of_parts = found.name.parts > 1
            whole = (_folder(found), found.name.stem if of_parts else found.path.name, found.name.parts)
            models.setdefault(whole, []).append((found, seen))
    entries = [_entry(parts) for parts in models.values()]
    for entry in entries:
        if entry.first.group and (fitting := projectors.get(entry.first.group)):
            entry.projector = min(fitting, key=_projector_rank)
    return entries


def _folder(found: Found) -> str:
    """Where parts of one model lie together."""
    return str(found.path.parent) if archive.part(found.path) is None else "/".join(found.group)


def _stands_beside(found: Found, known: Facts | None) -> bool:
    """Whether the file is an adapter, an importance matrix or the like."""
    if known is None:
        return found.path.name.lower().startswith("imatrix")
    return known.general_type in gguf.NOT_MODELS or known.arch in gguf.NOT_MODELS


def _projector_rank(projector: Projector) -> tuple[int, str]:
    """Repositories offer a projector in several precisions; F16 is the one that every backend runs well."""
    order = ("F16", "BF16", "Q8_0", "F32")
    known = projector.quantization in order
    return order.index(projector.quantization) if known else len(order), str(projector.path)


def _entry(parts: list[tuple[Found, Seen]]) -> _Entry:
    parts.sort(key=lambda part: part[0].name.part)
    known = parts[0][1].facts
    if known and len(parts) > 1:
        known = gguf.facts([seen.header for _, seen in parts if seen.header])
    return _Entry(files=[found for found, _ in parts], seen=[seen for _, seen in parts], facts=known)


# ---- naming ----------------------------------------------------------------------------------------------------------


_NUMBERED: Final = re.compile(r":[0-9]+$")
"""What tells models apart that share all of their names."""


def _name_all(entries: list[_Entry], given: Mapping[str, str] | None = None) -> None:
    """Gives every entry its id: the one that it was `given` before, by its path, for nobody's name changes because others
    have come. Equal folders of new models get equal ids, whatever the order in which files appeared."""
    repos: dict[tuple[str, ...], list[_Entry]] = {}
    for entry in entries:
        if entry.first.repo is None:
            _set_base(entry, entry.first.name.base)
        else:
            repos.setdefault(entry.first.group, []).append(entry)
    for of_repo in repos.values():
        _name_repo(of_repo)
    taken: set[str] = set()
    for entry in entries:
        before = (given or {}).get(entry.path, "")
        if before not in taken and _NUMBERED.sub("", before) in entry.possible_ids:
            entry.id = before
            taken.add(before)
    families: dict[tuple[str, str], list[_Entry]] = {}
    for entry in entries:
        families.setdefault(entry.family, []).append(entry)
    publishers: dict[str, set[str]] = {}
    for publisher, base in families:
        publishers.setdefault(base, set()).add(publisher)
    for (_, base), family in families.items():
        of_whom = f"{family[0].publisher.lower()}/" if len(publishers[base]) > 1 else ""
        several = len({entry.tag for entry in family}) > 1
        for entry in family:
            if not entry.id:
                entry.id = _free(f"{of_whom}{base}@{entry.tag}" if several else f"{of_whom}{base}", taken)


def _name_repo(entries: list[_Entry]) -> None:
    """A repository's name is its model's; of several models in it, only of the one whose files bear it."""
    first = entries[0].first
    repo = GGUF_ENDING.sub("", first.repo or "")
    if (key_of(first.publisher), key_of(repo)) == UNCATEGORIZED:
        repo = ""
    one_model = len({plain(entry.first.name.base) for entry in entries}) == 1
    for entry in entries:
        base = entry.first.name.base
        _set_base(entry, repo if repo and (one_model or plain(base) == plain(repo)) else base)


def _set_base(entry: _Entry, name: str) -> None:
    entry.title = title_of(name, entry.is_embedding)
    entry.base = _base(entry, name)


def _base(entry: _Entry, name: str) -> str:
    base = printable(name).lower()
    if entry.is_embedding and not base.startswith("text-embedding-"):
        base = f"text-embedding-{base}"
    return base


def _free(id: str, taken: set[str]) -> str:
    free, n = id, 1
    while free in taken:
        n += 1
        free = f"{id}:{n}"
    taken.add(free)
    return free


def _claims(entries: list[_Entry]) -> dict[str, list[_Entry]]:
    """The spellings that name one model, each with that model's quantizations that it may mean."""
    claims: dict[str, list[_Entry]] = {}
    for entry in entries:
        for spelling in _spellings(entry):
            claims.setdefault(spelling, []).append(entry)
    one_model = {spelling: of for spelling, of in claims.items() if len({entry.family for entry in of}) == 1}
    own = {key_of(entry.id): [entry] for entry in entries}
    return {**one_model, **{spelling: entry for spelling, entry in own.items() if spelling not in one_model}}


def _index(entries: list[_Entry], claims: Mapping[str, list[_Entry]]) -> dict[str, str]:
    """Where several quantizations of one model go by a spelling, the usual one is taken."""
    index = {spelling: min(claimants, key=_pick_rank).id for spelling, claimants in claims.items()}
    index.update((key_of(entry.id), entry.id) for entry in entries)
    return index


def _spellings(entry: _Entry) -> set[str]:
    names = {entry.base, entry.base.removeprefix("text-embedding-")}
    if entry.first.repo is not None:
        names.add(printable(entry.first.repo))
    tagged = {f"{name}@{tag}" for name in names for tag in (entry.tag, entry.quantization)}
    spellings = {*names, *tagged, *(f"{entry.publisher}/{name}" for name in names | tagged)}
    for found in entry.files:
        spellings.update(found.spellings)
        spellings.update(printable(spelling) for spelling in found.spellings)
    return {key_of(spelling) for spelling in spellings}


def _pick_rank(entry: _Entry) -> tuple[bool, bool, float, int, str]:
    bits = entry.facts.bits_per_weight if entry.facts else None
    # Q4_K_M has 4.8 bits in most models.
    return _problem(entry) is not None, entry.tag != "q4_k_m", abs((bits or 99) - 4.8), entry.size, entry.id


# ---- models of model.yaml --------------------------------------------------------------------------------------------


class _Definitions:
    """The model.yaml files that were read, by what tells that they are still the same."""

    def __init__(self, folders: Sequence[Path]):
        self._folders = tuple(folders)
        self._read: dict[Stamp, Definition | str] = {}  # a text: why it is ignored
        self._can_read: bool | None = None  # None: there was no file yet that would have to be
        self.unread: list[Path] = []  # for want of a parser
        self.notes: list[str] = []

    def read(self, walk: Walk) -> list[Definition]:
        """Those that `walk` has passed, and those of the own folders."""
        for folder in self._folders:
            walk.definitions_of(folder)
        if walk.definitions and self._can_read is None:
            self._can_read = model_yaml.can_read()
            if not self._can_read:
                log.warning("model.yaml files are ignored: %s", NO_PARSER)
        if not self._can_read:
            self.unread = walk.definitions
            self.notes = [f"{shown(path)} is ignored: {NO_PARSER}" for path in walk.definitions]
            return []
        stamps = {stamp: path for path in walk.definitions if (stamp := stamp_of(path)) is not None}
        self._read = {stamp: self._of(stamp, path) for stamp, path in stamps.items()}
        ignored = [(stamps[stamp], why) for stamp, why in self._read.items() if isinstance(why, str)]
        self.notes = [f"{shown(path)} is ignored: {why}" for path, why in ignored]
        return [definition for definition in self._read.values() if isinstance(definition, Definition)]

    def _of(self, stamp: Stamp, path: Path) -> Definition | str:
        if stamp in self._read:
            return self._read[stamp]
        try:
            definition = model_yaml.parse(small_text(path))
        except YamlError as error:
            log.warning("%s is ignored: %s", ascii(str(path)), error.reason)
            return error.reason
        for why in definition.ignored:
            log.info("%s: %s", ascii(str(path)), ascii(why))
        return definition


NO_PARSER: Final = "PyYAML is not installed (pip install 'lmlite[yaml]')"


def _note_unread(models: _Models, unread: list[Path], claims: Mapping[str, list[_Entry]]) -> None:
    """Tells it of the models that such a file seems to be about: those it names, and those beside it."""
    for path in unread:
        names = {"/".join(path.parent.parts[-2:]), *model_yaml.mentions(small_text(path))}
        for entry in (entry for name in names for entry in claims.get(key_of(name), ())):
            models.cards[entry.id] = replace(models.cards[entry.id], note=f"its {DEFINITION} is ignored: {NO_PARSER}")


def _define(models: _Models, definitions: list[Definition], claims: Mapping[str, list[_Entry]]) -> None:
    """Adds the models that `definitions` make. One of LM Studio's catalogue stands for its files, which keep their own
    names too but are not listed twice."""
    by_id = {key_of(definition.id): definition for definition in reversed(definitions)}
    stood_for: set[str] = set()
    for key, definition in sorted(by_id.items()):
        entries, lower = _made_of(definition, by_id, claims)
        if entries:
            _define_one(models, key, definition, lower, entries)
            if definition.from_catalogue:
                stood_for.update(entry.id for entry in entries)
    models.unlisted |= stood_for


def _made_of(
    definition: Definition, by_id: Mapping[str, Definition], claims: Mapping[str, list[_Entry]]
) -> tuple[list[_Entry], list[Definition]]:
    """The files that the definition stands on, and the definitions in between, the nearest first."""
    between: list[Definition] = []
    while True:
        known = [next((claims[key_of(name)] for name in names if key_of(name) in claims), []) for names in definition.bases]
        entries = list({id(entry): entry for of_base in known for entry in of_base}.values())
        lower = next((by_id[key_of(names[0])] for names in definition.bases if key_of(names[0]) in by_id), None)
        if entries or lower is None or len(between) == MAX_CHAIN:
            return entries, between
        between.append(lower)
        definition = lower


def _define_one(
    models: _Models, key: str, definition: Definition, lower: list[Definition], entries: list[_Entry]
) -> None:
    taken = set(models.cards)
    chosen = min(entries, key=_pick_rank)
    own_id = _free(definition.id, taken)
    ids = {entry.id: _free(f"{own_id}@{entry.tag}", taken) for entry in sorted(entries, key=lambda entry: entry.id)}
    for entry in entries:
        card = models.cards[entry.id]
        for layer in (*reversed(lower), definition):
            card = _overridden(card, layer)
        variant = ids[entry.id]
        card = replace(card, variants=tuple(ids.values()), selected_variant=variant)
        if entry is chosen:
            models.cards[own_id] = replace(card, id=own_id)
            models.index[key] = models.index[key_of(own_id)] = models.index[key_of(variant)] = own_id
        else:
            models.cards[variant] = replace(card, id=variant)
            models.unlisted.add(variant)
            models.index[key_of(variant)] = variant
            models.models[variant] = own_id


def _overridden(card: ModelCard, definition: Definition) -> ModelCard:
    publisher, _, name = definition.id.rpartition("/")
    told = definition.trained_for_tool_use
    return replace(
        card,
        publisher=publisher or LOCAL,
        # A catalogue's model is what its files are; one's own is told apart from them.
        display_name=card.display_name if definition.from_catalogue else title_of(name, card.type == "embedding"),
        arch=definition.arch or card.arch,
        params_string=definition.params_string or card.params_string,
        max_context_length=definition.max_context_length or card.max_context_length,
        trained_for_tool_use=card.trained_for_tool_use if told is None else told,
        reasoning=None if definition.reasoning is False else card.reasoning,
        settings=definition.settings.over(card.settings),
    )


# ---- settings of the user's ------------------------------------------------------------------------------------------


class _Settings:
    """The settings file: its entries as it was last read, by the names in it. A file that cannot be read changes nothing."""

    def __init__(self, path: Path | None):
        self._path = path
        self._stamp: Stamp | None = None
        self._content = ""
        self._read_at_ns = 0
        self.is_at_hand = path is None or at_hand([path])
        self.entries: Mapping[str, Entry] = {}
        self.notes: tuple[str, ...] = ()

    def changed(self) -> bool:
        """Whether the file is another than when it was read. One that had just been written then may have been written to
        once more without a sign of it but its content."""
        if self._path is None:
            return False
        stamp = stamp_of(self._path)
        if stamp is None or stamp != self._stamp:
            return stamp != self._stamp
        if self._read_at_ns - stamp[2] >= TICK_NS:
            return False
        now_ns = time.time_ns()
        if small_text(self._path) != self._content:
            return True
        self._read_at_ns = now_ns
        return False

    def read(self) -> bool:
        """Reads the file if it is another than before; whether it was."""
        if self._path is None or not self.changed():
            return False
        self._read_at_ns = time.time_ns()
        self._stamp = stamp_of(self._path)
        self._content = small_text(self._path)
        self.notes = ()
        if self._stamp is None:
            self.entries = {}
            return True
        try:
            self.entries = model_settings.parse(self._content)
        except ConfigError as error:
            log.error("the settings of models stay as they were: %s", error)
            self.notes = (f"{error}: its settings do not count",)
            return True
        for name, entry in self.entries.items():
            if entry.problem is not None:
                log.error("the model %s cannot be loaded: %s", ascii(name), entry.problem)
        return True


def _join(above: Entry, below: Entry | None) -> Entry:
    if below is None:
        return above
    return Entry(above.settings.over(below.settings), above.problem or below.problem)


def _told(reasoning: Reasoning, settings: ModelSettings) -> Reasoning:
    """What is true of reasoning where a request says nothing, after the settings have spoken."""
    said = settings.template_kwargs
    word = said.get("reasoning_effort")
    if said.get("enable_thinking") is False or (word is not None and word == reasoning.effort_off):
        word = "off"
    elif word not in reasoning.options and "enable_thinking" in said:
        word = "on"
    return replace(reasoning, default=word) if word in reasoning.options else reasoning


# ---- cards -----------------------------------------------------------------------------------------------------------


def _stand_in(models: _Models, own: list[ModelCard]) -> list[str]:
    """The package's own models are always known, but listed only where nothing else can be loaded. Returns their ids."""
    alone = all(card.problem is not None for card in models.cards.values())
    standing_in = [card.id for card in own if card.id not in models.cards]
    for card in own:
        if card.id in standing_in:
            models.cards[card.id] = card
            if not alone:
                models.unlisted.add(card.id)
        for name in (card.id, f"{card.publisher}/{card.id}"):
            models.index.setdefault(key_of(name), card.id)
    return standing_in


def _bundled(old: Mapping[Stamp, Seen], new: dict[Stamp, Seen]) -> list[ModelCard]:
    paths = [path for path in (bundled_model(), bundled_vision_model()) if path.is_file()]
    files = [replace(found, publisher=BUNDLED_PUBLISHER) for path in paths for _, found in named_files(path)]
    entries = _gather(files, old, new)
    _name_all(entries)
    return [_card(entry) for entry in entries]


def _card(entry: _Entry) -> ModelCard:
    known = entry.facts
    projector = None if entry.is_embedding else entry.projector
    kind: ModelType = "vlm" if projector and projector.sees else "llm"
    if entry.is_embedding:
        kind = "embedding"
    return ModelCard(
        id=entry.id,
        type=kind,
        publisher=entry.publisher,
        display_name=entry.title,
        arch=printable(known.arch) if known and known.arch else "unknown",
        quantization=entry.quantization,
        bits_per_weight=gguf.nominal_bits(entry.quantization),
        size_bytes=entry.size,
        params_string=known.params_string if known else None,
        max_context_length=_context_length(known),
        paths=tuple(found.path for found in entry.files),
        mmproj=projector.path if projector else None,
        hears=projector is not None and projector.hears,
        has_chat_template=known.has_chat_template if known else False,
        trained_for_tool_use=known.trained_for_tool_use if known else False,
        reasoning=known.reasoning if known else None,
        reranks=known.is_reranker if known else False,
        problem=_problem(entry),
    )


def _context_length(known: Facts | None) -> int:
    n = known.context_length if known else None
    return n if n is not None and 0 < n <= gguf.MAX_CONTEXT else 0


def _problem(entry: _Entry) -> str | None:
    name, n = entry.first.name, len(entry.files)
    numbers = [found.name.part for found in entry.files]
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        return f"part {twice[0]} is there twice"
    if n < name.parts:
        return f"{name.parts - n} of {name.parts} parts are missing"
    for found, seen in zip(entry.files, entry.seen, strict=True):
        if seen.problem:
            return f"part {found.name.part}: {seen.problem}" if n > 1 else seen.problem
        if n > 1 and seen.facts is not None and seen.facts.split_no not in (None, found.name.part - 1):
            return f"part {found.name.part} says that it is part {seen.facts.split_no + 1}"
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
