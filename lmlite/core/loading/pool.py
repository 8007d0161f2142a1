"""Which models are loaded: when they are told to, or just in time, until nobody has used them for a while.

A request holds a `Lease`. However many want a model that is not loaded, it is loaded once; a load that nobody waits for
any more is given up. Models that were loaded just in time share the pool's places: where none is free, the one that is
idle longest leaves; where all are in use, who wants another model waits in a line, and one model takes no further
requests until it is done and has left. Requests for it join the line. So no running request is ever cut short, and
nobody waits for ever. Models that were told to load have no part in this.

A dead engine is forgotten at once and the next lease loads again, unless the model keeps crashing; a request that keeps
ending engines is refused before its model is (`crashes.py`). A model whose files have changed is loaded anew by the request
that notices, and for it; those that run on the old files go on with them, as long as nobody has written to these.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, Protocol

from ...card import Instance, ModelCard, Presence
from ...errors import (
    EffortRefused,
    EngineGone,
    InternalError,
    InvalidRequest,
    LmError,
    LoadFailed,
    MemoryRefused,
    ModelFileChanged,
    ModelNotFound,
    ModelNotLoaded,
    ModelUnloaded,
    QueueFull,
    SenseMissing,
    ShuttingDown,
    WrongModelType,
)
from ...events import Event, Leased, LoadProgress, Started
from ...messages import Sense
from ...metrics import Loads
from ...records import dataclass
from ...settings import UNSAID, ModelSettings
from ..disk.stamps import Stamps
from ..engine.client import Engine
from ..engine.cores import Cores, cores
from ..engine.line import Clock, Timer
from ..engine.payloads import LoadSettings, LoadSpec
from ..engine.worker import Placement
from .crashes import Crashes
from .effective import effective, fitting, refused, with_share
from .slot import Place, Slot, instance_of

log = logging.getLogger(__name__)

NONE: Final[frozenset[Sense]] = frozenset()
Needs = Literal["chat", "text", "embedding", "rerank", "any"]
LoadState = Literal["not-loaded", "loading", "loaded"]
Room = Callable[[LoadSpec, bool], AbstractAsyncContextManager[LoadSpec]]

_ABILITY: Final[dict[Needs, str]] = {
    "chat": "chat",
    "text": "text completion",
    "embedding": "embeddings",
    "rerank": "reranking",
    "any": "anything",
}


class Shelf(Protocol):
    def cards(self) -> tuple[ModelCard, ...]: ...

    def resolve(self, name: str) -> ModelCard | None: ...

    def matched(self, name: str) -> ModelCard | None:
        """For names of models and instances that there are not."""
        ...

    def default(self) -> ModelCard | None: ...

    def latest(self, card: ModelCard) -> ModelCard | None: ...

    async def settings_changed(self) -> bool:
        """Whether the settings of models have changed since the catalogue looked."""
        ...


@dataclass(slots=True, frozen=True)
class Meant:
    """What the name in a request means, once and for all of it: a model, or the one `instance` with a name of its own."""

    card: ModelCard
    instance: str | None = None


@dataclass(slots=True, frozen=True)
class Lease:
    """`loaded_now` tells that this request waited for the load."""

    engine: Engine
    instance: Instance
    loaded_now: bool


class Pool:
    """For one event loop. `place` gives each new engine its placement; `room` lasts as long as a load, gives its spec the
    memory that there is, and raises if that is too little and the load is to be checked; `look` brings the catalogue up to
    date with the disk. Without `jit` requests load nothing. Of what they load, `max_jit` models stay at once (None: all), and
    as many embedding models, each for `ttl_s` after its last request (None: for ever)."""

    def __init__(
        self,
        catalog: Shelf,
        place: Callable[[], Placement],
        settings: LoadSettings,
        ttl_s: float | None = None,
        *,
        jit: bool = True,
        max_jit: int | None = None,
        room: Room | None = None,
        cores: Callable[[], Cores] = cores,
        look: Callable[[], Awaitable[None]] | None = None,
        clock: Clock | None = None,
        prompt_cache: Path | None = None,
    ):
        self._catalog, self._place, self._settings = catalog, place, settings
        self._ttl_s, self._jit, self._n_places = ttl_s, jit, math.inf if max_jit is None else max_jit
        self._room, self._look, self._cores, self._own_clock = room or unbounded, look or nothing, cores, clock
        self._prompt_cache = prompt_cache
        self.counted = Loads()
        self._slots: dict[str, Slot] = {}  # by their ids
        self._outdated: set[Slot] = set()  # in use for the last time; nobody finds them any more
        self._closing: dict[asyncio.Task[None], Slot] = {}  # engines on their way out
        self._line: list[Place] = []
        self._crashes = Crashes()
        self._timer: asyncio.TimerHandle | Timer | None = None
        self._timer_due = 0.0
        self._leases = 0
        self._stopping = False
        self._quiet = asyncio.Event()  # set when the last lease ends while stopping

    # ---- leases

    @contextlib.asynccontextmanager
    async def lease(
        self,
        name: str | None,
        needs: Needs,
        asked: ModelSettings = UNSAID,
        heard: Callable[[Event], object] | None = None,
        *,
        draft: str | None = None,
        effort: str | None = None,
        senses: frozenset[Sense] = NONE,
    ) -> AsyncIterator[Lease]:
        """The engine of the model or instance `name` for the time of one request; of several instances of the model the
        least busy. None means the one loaded model that can do it, or the catalogue's default; where these lack a sense, the
        one model that has it. What is `asked` counts if this request causes the load. `heard` gets `Started`, `LoadProgress`
        and `Leased`. The model `draft` is loaded beside it to draft for it, in the place of any other: a request that was
        drafted for by that one goes on with this one. `effort` is a word of its `card.Reasoning` that the model must know,
        `senses` what it must have.

        Raises `ModelNotFound`, `ModelNotLoaded`, `WrongModelType`, `SenseMissing`, `EffortRefused`, `LoadFailed`,
        `ModelUnloaded`, `EngineGone`, `QueueFull`, `ShuttingDown`, `BuildError`, what the room raises, and `InvalidRequest`
        for a draft model that does not fit the model. Who uses the engine hears `ModelFileChanged` if its files are written to
        meanwhile.
        """
        meant = await self._meant(name, needs, senses)
        draft_card = None if draft is None else drafter((await self.resolve(draft, "draft_model")).card)
        card, slots = await self._choose(meant, needs, senses)
        slots = self._sensing(card, slots, asked, senses)
        if effort is not None and (card.reasoning is None or effort not in card.reasoning.options):
            raise EffortRefused(card.id, effort, card.reasoning.options if card.reasoning else ())
        self._leases += 1
        slot = None
        try:
            slot = self._least_busy(slots) or await self._wait_place(card, asked)
            loaded_now = not slot.loaded
            if heard is not None:
                heard(Started(slot.id, loaded_now))
            if loaded_now:
                await slot.wait(None if heard is None else lambda fraction: heard(LoadProgress(fraction)))
                if not serves(slot.card, needs):  # its file is another one since it was chosen
                    raise WrongModelType(slot.card.id, _ABILITY[needs])
            assert slot.engine is not None and slot.instance is not None
            for sense in sorted(senses - slot.instance.senses):
                raise self._missing(slot.card, sense)
            if draft_card is not None:
                await self._attach(slot, slot.engine, draft_card)
            if heard is not None:
                heard(Leased(slot.instance, slot.instance.load_ms / 1000 if loaded_now else None))
            yield Lease(slot.engine, slot.instance, loaded_now)
        finally:
            self._end(slot)

    async def expect(
        self, name: str | None, needs: Needs, asked: ModelSettings, senses: frozenset[Sense] = NONE
    ) -> frozenset[Sense]:
        """All senses that a lease of these could ask for. Raises what the lease would raise whatever a load says:
        `ModelNotFound`, `WrongModelType`, `SenseMissing`, `ShuttingDown`."""
        card, slots = self._present(await self._meant(name, needs, senses), needs, senses)
        self._sensing(card, slots, asked, senses)
        return card.senses if self._with_projector(card, slots, asked) else NONE

    async def _meant(self, name: str | None, needs: Needs, senses: frozenset[Sense]) -> Meant | None:
        meant = None if name is None else await self.resolve(name)
        if meant is None and (not self.instances() or await self._catalog.settings_changed()):
            await self._look()
        if senses and not senses <= self._present(meant, needs, senses)[0].senses:
            await self._look()  # what it sees with may have come since
        return meant

    async def resolve(self, name: str, param: str = "model") -> Meant:
        """What the field `param` of a request means. The disk is looked at again for a model that is unknown, or that may
        have gone since, and for settings that have changed. Raises `ModelNotFound`."""
        meant = self._known(name)
        if meant is None or not self._uses(meant.card) or await self._catalog.settings_changed():
            await self._look()
            meant = self._known(name)
            if meant is None:
                raise ModelNotFound(name, tuple(known.id for known in self._catalog.cards()), param)
        return meant

    def _known(self, name: str) -> Meant | None:
        """A model that is loaded is known by its id even if the catalogue has lost it."""
        slot = self._slots.get(name) or self._slots.get(name.lower())
        if slot is not None and slot.id != slot.card.id:
            return Meant(slot.card, slot.id)
        card = self._catalog.resolve(name) or (slot.card if slot is not None else self._catalog.matched(name))
        return None if card is None else Meant(card)

    async def _choose(
        self, meant: Meant | None, needs: Needs, senses: frozenset[Sense] = NONE
    ) -> tuple[ModelCard, list[Slot]]:
        """What there is of it at this moment, all of whose files have been looked at. Others may have their turns
        meanwhile."""
        card, _ = self._present(meant, needs, senses)
        await self._crashes.reconsider(card)
        seen: set[Slot] = set()
        while True:
            card, slots = self._present(meant, needs, senses)
            unseen = [slot for slot in self._instances_of(card) if slot.loaded and slot not in seen]
            if not unseen:
                return card, slots
            for slot in unseen:
                await self._renew_changed(slot)
            seen.update(unseen)

    def _present(
        self, meant: Meant | None, needs: Needs, senses: frozenset[Sense] = NONE
    ) -> tuple[ModelCard, list[Slot]]:
        """A model as it is now, and those of its instances that can be meant."""
        if self._stopping:
            raise ShuttingDown
        card, slots = self._unnamed(needs, senses) if meant is None else self._named(meant)
        if not serves(card, needs):
            raise WrongModelType(card.id, _ABILITY[needs])
        return card, slots

    def _named(self, meant: Meant) -> tuple[ModelCard, list[Slot]]:
        """Raises `ModelNotFound` if it has gone since."""
        if meant.instance is not None:
            slots = [self._slots[meant.instance]] if meant.instance in self._slots else []
            card = slots[0].card if slots else None
        else:
            slots = self._instances_of(meant.card)
            card = self._catalog.latest(meant.card) or (slots[0].card if slots else None)
        if card is None:
            raise ModelNotFound(meant.instance or meant.card.id, tuple(known.id for known in self._catalog.cards()))
        return card, slots

    def _unnamed(self, needs: Needs, senses: frozenset[Sense]) -> tuple[ModelCard, list[Slot]]:
        needs = "text" if needs == "any" else needs
        active = {slot.card.id: slot.card for slot in self._slots.values() if serves(slot.card, needs)}
        if len(active) > 1:
            active = {id: card for id, card in active.items() if senses <= card.senses}
        card = next(iter(active.values())) if len(active) == 1 else self._catalog.default() if self._jit else None
        if senses and self._jit and (card is None or not senses <= card.senses):
            able = [other for other in self._catalog.cards() if senses <= other.senses and other.problem is None]
            card = able[0] if len(able) == 1 else card
        if card is None:
            known = tuple(known.id for known in self._catalog.cards()) if self._jit else tuple(self._slots)
            raise ModelNotFound(None, known)
        return card, self._instances_of(card)

    def _sensing(
        self, card: ModelCard, slots: list[Slot], asked: ModelSettings, senses: frozenset[Sense]
    ) -> list[Slot]:
        """Those of `slots` that have the senses; as far as that is known before a load."""
        for sense in sorted(senses):
            if sense not in card.senses:
                raise self._missing(card, sense)
            if not self._with_projector(card, slots, asked):
                raise SenseMissing(card.id, sense, left_out=True)
        return [slot for slot in slots if slot.settings.projector] if senses else slots

    def _with_projector(self, card: ModelCard, slots: list[Slot], asked: ModelSettings) -> bool:
        """Whether one of the instances has it, or the one that would be loaded."""
        if slots:
            return any(slot.settings.projector for slot in slots)
        return self._settled(card, asked, jit=True)[0].projector

    def _missing(self, card: ModelCard, sense: Sense) -> SenseMissing:
        """Loaded ones that could do it are named first."""
        if sense in card.senses:
            return SenseMissing(card.id, sense, left_out=True)
        loaded = [slot.card for slot in self._slots.values() if slot.loaded]
        able = [other.id for other in (*loaded, *self._catalog.cards()) if sense in other.senses and not other.problem]
        return SenseMissing(card.id, sense, tuple(id for id in dict.fromkeys(able) if id != card.id))

    def _instances_of(self, card: ModelCard) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.card.id == card.id]

    def _least_busy(self, slots: Sequence[Slot]) -> Slot | None:
        """Counts one more user of it."""
        slot = min((slot for slot in slots if not slot.closed), key=lambda slot: (not slot.loaded, slot.users), default=None)
        if slot is not None:
            if not slot.loaded and slot.users >= slot.settings.max_queue:
                raise QueueFull(slot.settings.max_queue)
            self._admit(slot, 1)
        return slot

    def _admit(self, slot: Slot, n_users: int) -> None:
        slot.users += n_users
        slot.asked_at = self._clock.time()
        slot.used_at = time.time()

    def _leave(self, slot: Slot) -> None:
        slot.users -= 1
        slot.used_at = time.time()
        if not slot.users:
            self._unused(slot)

    def _unused(self, slot: Slot) -> None:
        """The last user has left."""
        if slot in self._outdated:
            self._retire(slot, ModelFileChanged(slot.card.id), "its last request on the old file is done")
        elif self._slots.get(slot.id) is not slot or (slot.kept and not slot.loaded):
            return  # unloaded, or dead; or it has to be there, whoever waits
        elif not slot.loaded:
            self._retire(slot, ModelUnloaded(slot.card.id), "nobody waits for it any more")
        else:
            slot.idle_since = self._clock.time()
            if slot.ttl_s is not None:
                self._arm(slot.idle_since + slot.ttl_s)
        if self._line:
            self._advance()

    def _end(self, slot: Slot | None) -> None:
        """A lease, or a load that was told, is over; it had the slot, or never got one."""
        if slot is not None:
            self._leave(slot)
        self._leases -= 1
        if self._stopping and not self._leases:
            self._quiet.set()

    # ---- draft models

    async def _attach(self, slot: Slot, engine: Engine, card: ModelCard) -> None:
        """One at a time; who waited for the same one finds it done."""
        async with slot.attaching:
            if slot.draft is not None and slot.draft.paths == card.paths:
                if not await slot.draft.change():
                    return
                await self._look()
                latest = self._catalog.latest(card)
                if latest is None:
                    raise ModelNotFound(card.id, tuple(known.id for known in self._catalog.cards()), "draft_model")
                card = drafter(latest)
            slot.draft = None  # unknown, if this is cancelled
            files = await asyncio.to_thread(Stamps, card.paths)
            files.remember()
            try:
                async with self._room(draft_spec(card, slot.settings), slot.checked) as spec:
                    await engine.attach_draft(spec.paths, spec.host_memory)
            except LoadFailed as failed:
                raise LoadFailed(card.id, failed.reason, "draft_model") from None
            except MemoryRefused as refused:
                raise MemoryRefused(refused.needed, refused.available, "draft_model") from None
            slot.draft = files

    # ---- whose turn it is

    async def _wait_place(self, card: ModelCard, asked: ModelSettings) -> Slot:
        """The slot of a model that no open one is there for, this request counted as its user."""
        place = self._place_in_line(card, asked)
        if place.waiting >= place.settings.max_queue:
            raise QueueFull(place.settings.max_queue)
        place.waiting += 1
        self._advance()
        try:
            return await asyncio.shield(place.came)
        except asyncio.CancelledError:
            if place in self._line:
                place.waiting -= 1
                if not place.waiting:
                    self._line.remove(place)
                    self._advance()
            elif not place.came.exception():  # its turn has come, for this request too
                self._leave(place.came.result())
            raise

    def _place_in_line(self, card: ModelCard, asked: ModelSettings) -> Place:
        for place in self._line:
            if place.card.id == card.id:
                return place
        if not self._jit:
            raise ModelNotLoaded(card.id)
        self._refuse(card)
        settings = effective(self._settings, asked.over(card.settings))
        place = Place(card, settings, asked, asyncio.get_running_loop().create_future())
        self._line.append(place)
        return place

    def _advance(self) -> None:
        """Serves the line in its order as far as that goes, and makes way for the rest of it. Embedding models have places of
        their own: a client that looks things up before it asks must not load two models for each question."""
        for embeds in (False, True):
            self._serve(embeds)
            self._make_way(embeds)

    def _serve(self, embeds: bool) -> None:
        while place := next((place for place in self._line if is_embedding(place.card) == embeds), None):
            slot = next(iter(self._instances_of(place.card)), None)  # nobody before this turn waits for its place
            if slot is None and self._n_taken(embeds) >= self._n_places:
                break
            self._line.remove(place)
            try:
                slot = slot or self._begin(place.card, self._free_id(place.card), place.asked, jit=True)
            except LmError as error:
                place.came.set_exception(error)
                place.came.exception()  # seen, even if nobody waits
            else:
                self._admit(slot, place.waiting)
                place.came.set_result(slot)

    def _n_taken(self, embeds: bool) -> int:
        """Places whose memory is in use, that of engines on their way out included. What runs on files that are no longer
        there has none: it would keep who comes waiting for as long as an answer can be."""
        all_there = {*self._slots.values(), *self._closing.values()}
        return sum(slot.jit and is_embedding(slot.card) == embeds for slot in all_there)

    def _make_way(self, embeds: bool) -> None:
        """As many slots as are waited for leave, idle ones first; those in use take no more requests until then."""
        staying = [slot for slot in self._slots.values() if slot.jit and is_embedding(slot.card) == embeds]
        n_leaving = self._n_taken(embeds) - len(staying)
        waiting = [place.card.id for place in self._line if is_embedding(place.card) == embeds]
        wanted = len(waiting) - n_leaving
        for slot in sorted((slot for slot in staying if slot.idle), key=lambda slot: slot.idle_since)[: max(0, wanted)]:
            self._retire(slot, ModelUnloaded(slot.card.id), f"evicted, to make way for {', '.join(map(repr, waiting))}")
            staying.remove(slot)
            wanted -= 1
        staying.sort(key=lambda slot: (not slot.closed, slot.asked_at))
        for place, slot in enumerate(staying):
            slot.closed = place < wanted

    # ---- loading

    async def load(
        self,
        name: str,
        settings: ModelSettings | None = None,
        *,
        identifier: str | None = None,
        gpu: float | None = None,
        checked: bool = True,
        on_begin: Callable[[str], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Instance:
        """A new instance of the model `name`, which stays until it is unloaded, or for its TTL after the last request
        where `settings` or the model's own name one. `identifier` is what it is called; else it gets the model's id, or
        that with a number. `gpu` is the share (0..1) of the layers that are to be on the GPU. `on_begin` gets this id.
        Without `checked` memory is no matter.

        Raises as `lease` does, and `InvalidRequest` for an identifier that means something else.
        """
        card = (await self.resolve(name)).card
        asked = await with_share(card, settings or ModelSettings(), gpu)
        if self._stopping:
            raise ShuttingDown
        id = self._free_id(card) if identifier is None else self._chosen_id(card, identifier)
        self._crashes.forgive(card.id)
        slot = self._begin(card, id, asked, checked=checked)
        self._admit(slot, 1)
        self._leases += 1
        try:
            if on_begin is not None:
                on_begin(id)
            await slot.wait(on_progress)
            assert slot.instance is not None
            return slot.instance
        finally:
            self._end(slot)

    async def spec(self, card: ModelCard, settings: ModelSettings, gpu: float | None = None) -> LoadSpec:
        """What such a load of the model would ask of an engine."""
        asked = await with_share(card, settings, gpu)
        return await self._spec_of(card, effective(self._settings, asked.over(card.settings)))

    async def _spec_of(self, card: ModelCard, settings: LoadSettings) -> LoadSpec:
        """What the machine cannot do is not asked for, and told."""
        there = self._cores()
        if settings.threads > there.usable:
            log.warning("%r gets %d threads, not %d: so many cores are usable", card.id, there.usable, settings.threads)
            settings = replace(settings, threads=there.usable)
        fits = await fitting(card, settings)
        folder = self._prompt_cache if settings.prompt_cache_bytes > 0 else None
        return LoadSpec(card.paths, fits, projector=card.mmproj, cores=there.fast, prompt_cache=folder)

    def _free_id(self, card: ModelCard) -> str:
        names = itertools.chain([card.id], (f"{card.id}:{n}" for n in itertools.count(2)))
        return next(name for name in names if self._is_free(name, card))

    def _chosen_id(self, card: ModelCard, identifier: str) -> str:
        """Names count in any case, so the ids of instances are in lower case, as those of models are."""
        if not self._is_free(identifier.lower(), card):
            raise InvalidRequest(f"'{identifier}' is the name of another model or instance", "identifier")
        return identifier.lower()

    def _is_free(self, name: str, card: ModelCard) -> bool:
        """Whether an instance of the model can be called so."""
        meant = self._catalog.resolve(name)
        return name not in self._slots and (meant is None or meant.id == card.id)

    def _refuse(self, card: ModelCard) -> None:
        """What is known before the load."""
        if card.problem is not None:
            raise LoadFailed(card.id, card.problem)
        self._crashes.refuse(card)

    def _begin(self, card: ModelCard, id: str, asked: ModelSettings, *, jit: bool = False, checked: bool = True) -> Slot:
        self._refuse(card)
        slot = self._slot_of(card, id, asked, jit, checked)
        slot.load = asyncio.get_running_loop().create_task(self._load(slot))
        return slot

    def _begin_again(self, old: Slot) -> None:
        """In the place of `old`, under its id and as it was asked for, with what there is on disk now."""
        slot = self._slot_of(old.card, old.id, old.asked, old.jit, old.checked)
        slot.kept = not slot.jit
        slot.load = asyncio.get_running_loop().create_task(self._load(slot, anew=True))

    def _slot_of(self, card: ModelCard, id: str, asked: ModelSettings, jit: bool, checked: bool) -> Slot:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        settings, ttl_s = self._settled(card, asked, jit)
        slot = self._slots[id] = Slot(id, card, settings, jit, ttl_s, checked, asked, ready)
        return slot

    def _settled(self, card: ModelCard, asked: ModelSettings, jit: bool) -> tuple[LoadSettings, float | None]:
        """What the model is loaded with, and how long it stays idle."""
        settings = asked.over(card.settings)
        ttl_s = self._ttl_s if jit and settings.ttl_s is None else settings.ttl_s
        return effective(self._settings, settings), ttl_s or None

    async def _look_again(self, slot: Slot) -> None:
        """The slot's model is what the disk has of it now; raises if that cannot be loaded."""
        await self._look()
        card = self._catalog.latest(slot.card)
        if card is None:
            raise ModelNotFound(slot.id, tuple(known.id for known in self._catalog.cards()))
        self._crashes.forgive(card.id)
        self._refuse(card)
        slot.card = card
        slot.settings, slot.ttl_s = self._settled(card, slot.asked, slot.jit)

    async def _load(self, slot: Slot, anew: bool = False) -> None:
        """Ends with `ready` settled, but for a load that was given up: who gives it up settles it."""
        card = slot.card
        try:
            if anew:
                await self._look_again(slot)
                card = slot.card
            slot.files = await asyncio.to_thread(Stamps, files_of(slot))
            slot.files.remember()
            spec = await self._spec_of(card, slot.settings)
            async with self._room_beside_outdated(card.id, spec, slot.checked) as spec:
                slot.engine = await Engine.open(
                    self._place(),
                    card.id,
                    clock=self._own_clock,
                    on_gone=lambda: self._lost(slot),
                    judge=lambda mark: self._crashes.refuse_request(card, mark, self._clock.time()),
                    verdict=lambda: self._judge_end(slot),
                )
                slot.instance = instance_of(slot.id, card, await slot.engine.load(spec, slot.progress))
            self.counted.loaded(card.id, slot.instance.load_ms / 1000)
            log.info("%r is loaded, after %.2f s", slot.id, slot.instance.load_ms / 1000)
            for warning in slot.instance.warnings:
                log.warning("%r: %s", slot.id, warning)
            slot.ready.set_result(None)
            if not slot.users:
                self._unused(slot)
        except asyncio.CancelledError:
            if slot.engine is not None:
                await slot.engine.close()
            raise
        except EngineGone as gone:  # what kills an engine during the load is the file
            self._load_failed(slot, LoadFailed(card.id, f"the engine ended: {gone.reason}"))
        except OSError as error:
            self._load_failed(slot, LoadFailed(card.id, f"no engine can be started: {error.strerror}"))
        except InvalidRequest as error:
            self._load_failed(slot, refused(card, error))
        except LmError as error:
            self._load_failed(slot, error)
        except BaseException:
            self._load_failed(slot, InternalError())
            raise

    @contextlib.asynccontextmanager
    async def _room_beside_outdated(self, card_id: str, spec: LoadSpec, checked: bool) -> AsyncIterator[LoadSpec]:
        """Room for the model, whose last engine is gone. Where the memory that is missing is in use by requests on files that
        are outdated, these are waited for."""
        while True:
            await self._all_gone(card_id)  # the memory of the last engine has to be free for the next
            async with contextlib.AsyncExitStack() as held:
                try:
                    spec = await held.enter_async_context(self._room(spec, checked))
                except MemoryRefused:
                    if not self._outdated:
                        raise
                else:
                    yield spec
                    return
            ends = [asyncio.ensure_future(slot.left.wait()) for slot in self._outdated]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()

    def _load_failed(self, slot: Slot, error: LmError) -> None:
        self.counted.failed(slot.card.id)
        log.warning("%r is not loaded: %s", slot.id, error)
        if self._slots.get(slot.id) is slot:
            self._retire(slot, error, "it is not loaded")
            self._advance()

    # ---- leaving

    def _retire(self, slot: Slot, error: LmError, why: str) -> None:
        """Forgets the slot, sees its engine off in the background; whoever waits or runs gets `error`."""
        self._forget(slot)
        if slot.loaded:
            log.info("%r is unloaded: %s", slot.id, why)
        if not slot.ready.done():
            slot.ready.set_exception(error)
            slot.ready.exception()  # seen, even if nobody waits
        assert slot.load is not None
        if slot.loaded or slot.load is asyncio.current_task():
            if slot.engine is not None:
                self._see_off(slot, asyncio.get_running_loop().create_task(slot.engine.close(error)))
        else:
            slot.load.cancel()
            self._see_off(slot, slot.load)

    def _forget(self, slot: Slot) -> None:
        self._outdated.discard(slot)
        if self._slots.get(slot.id) is slot:
            del self._slots[slot.id]

    def _see_off(self, slot: Slot, task: asyncio.Task[None]) -> None:
        def gone(task: asyncio.Task[None]) -> None:
            del self._closing[task]
            slot.left.set()
            self._advance()

        self._closing[task] = slot
        task.add_done_callback(gone)

    async def _renew_changed(self, slot: Slot) -> None:
        """Has the slot leave if it is of what its files no longer say: at once if what it runs on was written to, else when
        its requests are done. Another one takes its place."""
        change = None if slot.files is None else await slot.files.change()
        if change is None and self._has_come(slot):
            change = "replaced"
        if change is None or self._slots.get(slot.id) is not slot:
            return
        if change == "rewritten" or not slot.users:
            self._retire(slot, ModelFileChanged(slot.card.id), f"a file of it was {change}")
        else:
            log.info("%r is to be unloaded after its %d running requests: a file of it was %s", slot.id, slot.users, change)
            self._forget(slot)
            self._outdated.add(slot)
        if slot.closed:
            self._advance()  # others were before who finds it changed
        else:
            self._begin_again(slot)

    def _has_come(self, slot: Slot) -> bool:
        """Whether it is loaded without a projector, and one lies beside it now."""
        latest = self._catalog.latest(slot.card)
        return latest is not None and slot.card.mmproj is None and latest.mmproj is not None and slot.settings.projector

    async def _judge_end(self, slot: Slot) -> LmError | None:
        """What those are told who used an engine that has ended by itself, if that was not its fault: files that get shorter
        end whoever has them in memory."""
        for files in (slot.files, slot.draft):
            if files is not None and await files.change() == "rewritten":
                self._crashes.forgive(slot.card.id)
                return ModelFileChanged(slot.card.id)
        return None

    def _lost(self, slot: Slot) -> None:
        """The engine has ended by itself. Why is known once it is closed; its requests hear it from the engine."""
        self.counted.crashed(slot.card.id)
        log.error("the engine of %r has ended", slot.id)
        if slot.files is not None:
            suspects = slot.engine.suspects() if slot.engine is not None else frozenset()
            self._crashes.note(slot.card, slot.files, self._clock.time(), suspects)
        if slot.engine is not None:
            self._see_off(slot, asyncio.get_running_loop().create_task(self._inquire(slot.card, slot.engine)))
        if slot.loaded:
            self._forget(slot)

    async def _inquire(self, card: ModelCard, engine: Engine) -> None:
        await engine.close()
        self._crashes.explain(card, engine.gone or "unknown")

    # ---- time

    @property
    def _clock(self) -> Clock:
        return self._own_clock or asyncio.get_running_loop()

    def _arm(self, due: float) -> None:
        """One timer for all models, set to the earliest end of an idle time."""
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._clock.call_later(max(0.0, due - self._clock.time()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.time()
        for slot in list(self._slots.values()):
            if not slot.idle or slot.ttl_s is None:
                continue
            due = slot.idle_since + slot.ttl_s
            if due <= now:
                self._retire(slot, ModelUnloaded(slot.card.id), f"its TTL is over, {slot.ttl_s:g} s without a request")
            else:
                self._arm(due)

    # ---- what is loaded, and an end to it

    def instances(self) -> tuple[Instance, ...]:
        """Those that are loaded."""
        now = self._clock.time()
        return tuple(instance for slot in self._slots.values() if (instance := slot.seen(now)) is not None)

    def engines(self) -> tuple[tuple[Instance, Engine], ...]:
        """Those that are loaded, without a lease: to be asked how they are, and nothing that is work."""
        slots = self._slots.values()
        return tuple((slot.instance, slot.engine) for slot in slots if slot.instance is not None and slot.engine)

    def waiting(self) -> dict[str, int]:
        """How many requests wait for a model to be loaded, by its card's id."""
        counts: dict[str, int] = {}
        for place in self._line:
            counts[place.card.id] = counts.get(place.card.id, 0) + place.waiting
        for slot in self._slots.values():
            if not slot.loaded and slot.users:
                counts[slot.card.id] = counts.get(slot.card.id, 0) + slot.users
        return counts

    def presences(self) -> tuple[Presence, ...]:
        """Those that are loaded or loading."""
        now = self._clock.time()
        return tuple(slot.presence(now) for slot in self._slots.values())

    def state(self, card_id: str) -> LoadState:
        slots = [slot for slot in self._slots.values() if slot.card.id == card_id]
        if any(slot.loaded for slot in slots):
            return "loaded"
        return "loading" if slots else "not-loaded"

    def _uses(self, card: ModelCard) -> bool:
        """Whether the model is loaded or being loaded, as one to be asked or as one that drafts."""
        slots = self._slots.values()
        return any(slot.card.id == card.id or (slot.draft and slot.draft.paths == card.paths) for slot in slots)

    async def unload(self, instance_id: str) -> bool:
        """Ends the instance, its running requests too (`ModelUnloaded`); returns when its memory is free, False if there was
        none. A model that is refused for its crashes gets another chance."""
        slot = self._slots.get(instance_id) or self._slots.get(instance_id.lower())
        if slot is None:
            return self._crashes.forgive(instance_id)
        self._crashes.forgive(slot.card.id)
        self._retire(slot, ModelUnloaded(slot.card.id), "a request unloaded it")
        while leaving := [task for task, leaver in self._closing.items() if leaver is slot]:
            await asyncio.wait(leaving)
        return True

    async def close(self, grace_s: float = 0.0) -> None:
        """No lease from now on; those there are have `grace_s` to end, then get `ShuttingDown`. Returns when no engine
        is left."""
        self._stopping = True
        if self._leases and grace_s > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), grace_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        line, self._line = self._line, []
        for place in line:
            place.came.set_exception(ShuttingDown())
            place.came.exception()
        for slot in (*self._slots.values(), *self._outdated):
            self._retire(slot, ShuttingDown(), "the server stops")
        await self._all_gone()

    async def _all_gone(self, card_id: str | None = None) -> None:
        own = asyncio.current_task()  # a load that was given up leaves too, and must not wait for itself
        while leaving := {task for task, slot in self._closing.items() if card_id in (None, slot.card.id)} - {own}:
            await asyncio.wait(leaving)


@contextlib.asynccontextmanager
async def unbounded(spec: LoadSpec, checked: bool) -> AsyncIterator[LoadSpec]:
    """Room for all."""
    yield spec


async def nothing() -> None:
    """There is no disk to look at."""


def files_of(slot: Slot) -> list[Path]:
    """All that is read when it is loaded."""
    projector = [slot.card.mmproj] if slot.card.mmproj is not None and slot.settings.projector else []
    return [*slot.card.paths, *projector, *(lora.path for lora in slot.settings.loras)]


def draft_spec(card: ModelCard, target: LoadSettings) -> LoadSpec:
    """How an engine loads a model that drafts for the one that has the settings `target`."""
    own = LoadSettings()
    return LoadSpec(
        card.paths,
        replace(
            target, kv_cells=0, n_experts=0, k_cache_type=own.k_cache_type, v_cache_type=own.v_cache_type, loras=()
        ),
    )


def is_embedding(card: ModelCard) -> bool:
    return card.type == "embedding"


def serves(card: ModelCard, needs: Needs) -> bool:
    return needs in (purpose(card), "any") or (needs == "chat" and purpose(card) == "text")


def drafter(card: ModelCard) -> ModelCard:
    """`card`, if it can draft."""
    if not serves(card, "text"):
        raise WrongModelType(card.id, "drafting", "draft_model")
    if card.problem is not None:
        raise LoadFailed(card.id, card.problem, "draft_model")
    return card


def purpose(card: ModelCard) -> Needs:
    """What every model of the kind can do."""
    if is_embedding(card):
        return "rerank" if card.reranks else "embedding"
    return "text"
