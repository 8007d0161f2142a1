"""One model inside this program, without HTTP: `load` returns a `Model` whose methods block; threads may share it.

The engine is the server's own; by default it runs in a thread of this process, with `isolation="process"` in a child.
Errors are `errors.LmError`; an argument of a type that it cannot have is a TypeError, before anything runs.
"""

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from types import TracebackType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints, overload

from .api.answer import Answer, fold, spell_calls
from .api.read.fields import Fields
from .api.read.messages import parse_messages
from .api.read.tools import parse_offer
from .app import open_pool
from .app.looks import Looks
from .card import ModelCard
from .config import Config
from .core.disk.catalog import Catalog
from .core.disk.model_settings import FILE_NAME
from .core.loading.pool import Needs, purpose
from .errors import EngineGone, LoadFailed
from .events import TextDelta
from .media_arguments import picture_part, spelled_message
from .records import dataclass
from .request import Chat, Embed, Embedding, Generate, Prompt, Rerank, Sampling, Score, Text, senses, with_defaults
from .server import LoopThread
from .settings import ModelSettings

if TYPE_CHECKING:
    import numpy

SAMPLING_NAMES = frozenset(item.name for item in fields(Sampling))
GENERATE_NAMES = frozenset(item.name for item in fields(Generate)) - {"prompt", "sampling", "large"}

Piece = str | BaseException | None
Messages = str | Sequence[Mapping[str, Any]]


def load(path: str | Path, **options: Any) -> Model:
    """Loads the GGUF file `path`. `options` are those of `Config` that concern a model: `context_length`, `parallel`,
    `threads`, `gpu_layers`, `kv_type`, `lora`, `isolation`, ..."""
    given = {"ttl": 0, **options}
    return Model(Config.of(**{"isolation": "thread", **given, "models": [path]}), frozenset(given))


class OneModel:
    """A catalogue of the one model that `config` names. What the user has set for it in lmlite's home holds here, too, but
    for the options that were `given`."""

    def __init__(self, config: Config, given: Collection[str]):
        self._catalog = Catalog((), config.models, settings=config.home / FILE_NAME)
        self._own: dict[str, Any] = {
            item.name: getattr(ModelSettings(), item.name) for item in fields(ModelSettings) if item.name in given
        }
        if "ttl" in given:
            self._own["ttl_s"] = None
        found = self._found()
        if found is None:
            raise LoadFailed(str(config.models[0]), "it is not one GGUF model")
        self.card = found

    def _found(self) -> ModelCard | None:
        cards = self._catalog.named()
        if len(cards) != 1:
            return None
        return replace(cards[0], settings=replace(cards[0].settings, **self._own))

    def look(self) -> None:
        """Takes what is there now for the model. Runs in a thread."""
        self._catalog.rescan()
        found = self._found()
        if found is not None:
            self.card = replace(found, id=self.card.id)

    def cards(self) -> tuple[ModelCard, ...]:
        return (self.card,)

    def resolve(self, name: str) -> ModelCard | None:
        return self.card if name == self.card.id else None

    def matched(self, name: str) -> ModelCard | None:
        return None

    def default(self) -> ModelCard | None:
        return self.card

    def latest(self, card: ModelCard) -> ModelCard | None:
        return self.card

    async def settings_changed(self) -> bool:
        return False


class Model:
    """A loaded model. Close it, or use it as a context manager. `given` are the options that were not left to lmlite."""

    def __init__(self, config: Config, given: Collection[str] = ()):
        catalog = OneModel(config, given)
        card = catalog.card
        self._name, self._purpose = card.id, purpose(card)
        self._thread = LoopThread("lmlite-model", "model")
        try:
            self._pool = open_pool(config, catalog, look=Looks(catalog.look).fresh)
            self._thread.call(self._load())
        except BaseException:
            self.close()
            raise

    async def _load(self) -> None:
        async with self._pool.lease(self._name, self._purpose):
            pass

    # ---- answers

    @overload
    def chat(self, messages: Messages, *, tools: None = None, **params: Any) -> str: ...

    @overload
    def chat(self, messages: Messages, *, tools: Sequence[Mapping[str, Any]], **params: Any) -> dict[str, Any]: ...

    def chat(
        self, messages: Messages, *, tools: Sequence[Mapping[str, Any]] | None = None, **params: Any
    ) -> str | dict[str, Any]:
        """The answer to `messages` (`{"role": ..., "content": ...}`, or a string for one of the user), rendered by the
        model's own template. `params` are fields of `request.Generate` and `request.Sampling`: `max_tokens`, `stop`,
        `grammar`, `temperature`, ...

        `images` go with the user's last message: paths, bytes, numpy arrays or PIL images. They may stand in the content of
        messages, too, as items of a list, and so may sound: {"type": "audio", "audio": path or bytes}.

        With `tools`, and if need be `tool_choice` and `parallel_tool_calls`, all as in OpenAI's API, the answer is the
        assistant's whole message, to be appended to `messages`, before what its `tool_calls` give."""
        if tools is None:
            return "".join(self.chat_stream(messages, **params))
        names = ("tool_choice", "parallel_tool_calls")
        tools = list(as_sequence(tools, "tools", "a sequence of tools"))
        offer = parse_offer(Fields({"tools": tools, **{name: params.pop(name, None) for name in names}}))
        prompt = replace(
            chat_of(messages, params), tools=offer.tools, tool_choice=offer.choice, parallel_tool_calls=offer.parallel
        )
        return spell_message(self._thread.call(self._answer(Asked.of(prompt, {**params, "whole": True}))))

    def chat_stream(self, messages: Messages, **params: Any) -> Generator[str, None, None]:
        """The text of an answer in pieces, as they are made. Closing the generator early ends the work."""
        return self._pieces(Asked.of(chat_of(messages, params), params))

    def complete(self, prompt: str, **params: Any) -> str:
        """What follows `prompt`; no template is applied."""
        return "".join(self.complete_stream(prompt, **params))

    def complete_stream(self, prompt: str, **params: Any) -> Generator[str, None, None]:
        return self._pieces(Asked.of(Text(as_text(prompt, "prompt")), params))

    def embed(
        self, texts: Sequence[str], *, dimensions: int | None = None
    ) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
        """One L2-normalised row per text: float32, shape (len(texts), n_embd), or so many `dimensions` of them."""
        import numpy

        n_embd, vectors = self._thread.call(self._embed(Embed(as_strings(texts, "texts"), dimensions=dimensions)))
        rows = numpy.frombuffer(bytearray().join(item.vector for item in vectors), dtype="<f4")
        return rows.astype(numpy.float32, copy=False).reshape(len(vectors), dimensions or n_embd)

    async def _embed(self, embed: Embed) -> tuple[int, list[Embedding]]:
        async with self._pool.lease(self._name, "embedding") as lease:
            return lease.instance.n_embd, await lease.engine.embed(embed) if embed.inputs else []

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score per document, in their order; the higher, the more it says about `query`."""
        work = Rerank(as_text(query, "query"), as_strings(documents, "documents"))
        return [item.score for item in self._thread.call(self._rerank(work))]

    async def _rerank(self, rerank: Rerank) -> list[Score]:
        async with self._pool.lease(self._name, "rerank") as lease:
            return await lease.engine.rerank(rerank) if rerank.documents else []

    def _pieces(self, asked: Asked) -> Generator[str, None, None]:
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        future = self._thread.start(self._pump(asked, pieces))
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                self._thread.origin.check()  # there, nothing more would come
        finally:
            if self._thread.origin.is_here:
                future.cancel()

    def _completed(self, asked: Asked, card: ModelCard) -> Generate:
        effort_off = card.reasoning.effort_off if card.reasoning else None
        return with_defaults(asked.work, asked.given, card.settings, effort_off)

    async def _answer(self, asked: Asked) -> Answer:
        async with self._pool.lease(self._name, "chat", senses=senses(asked.work.prompt)) as lease:
            return fold([event async for event in lease.engine.run(self._completed(asked, lease.instance.card))])

    async def _pump(self, asked: Asked, pieces: queue.SimpleQueue[Piece]) -> None:
        """Runs in the loop; the last piece is None or the error."""
        needs: Needs = "chat" if isinstance(asked.work.prompt, Chat) else "text"
        try:
            async with self._pool.lease(self._name, needs, senses=senses(asked.work.prompt)) as lease:
                async for event in lease.engine.run(self._completed(asked, lease.instance.card)):
                    if isinstance(event, TextDelta) and event.text:
                        pieces.put(event.text)
        except asyncio.CancelledError:
            pieces.put(EngineGone(self._name, "the model was closed"))
            raise
        except Exception as error:
            pieces.put(error)
        else:
            pieces.put(None)

    # ---- end

    def close(self) -> None:
        """Ends the engine and frees its memory; may be called twice."""
        if self._thread.closed:
            return
        self._thread.origin.check()
        try:
            if hasattr(self, "_pool"):
                self._thread.call(self._pool.close())
        finally:
            self._thread.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None or self._thread.origin.is_here:  # what ends a child is not to be hidden
            self.close()


def spell_message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = spell_calls(os.urandom(8).hex(), 0, answer.tool_calls)
    return message


# ---- arguments -------------------------------------------------------------------------------------------------------


def chat_of(messages: Messages, params: dict[str, Any]) -> Chat:
    """Takes what concerns the template, and images, out of `params`. What a message may be is the same as over HTTP, and its
    content may have what Python has of pictures and sound: see `media_arguments`."""
    images = as_sequence(params.pop("images", ()), "images", "a sequence of pictures")
    if isinstance(messages, str):
        messages = ({"role": "user", "content": messages},)
    given = as_sequence(messages, "messages", "a string or a sequence of messages")
    template_kwargs = params.pop("template_kwargs", {})
    if not isinstance(template_kwargs, Mapping):
        raise wrong_type("template_kwargs", "a mapping", template_kwargs)
    for i, message in enumerate(given):
        if not isinstance(message, Mapping):
            raise wrong_type(f"messages[{i}]", "a mapping with a role and a content", message)
    spelled = [spelled_message(message) for message in given]
    if images:
        attach(spelled, images)
    return Chat(parse_messages(Fields({"messages": spelled})), template_kwargs)


def attach(messages: list[dict[str, Any]], images: Sequence[Any]) -> None:
    """Puts the images before what the user has said last."""
    asked = next((message for message in reversed(messages) if message.get("role") == "user"), None)
    if asked is None:
        raise ValueError("images go with a message of the user, and there is none")
    said = asked.get("content") or []
    asked["content"] = [*map(picture_part, images), *([{"type": "text", "text": said}] if isinstance(said, str) else said)]


def as_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    return value


def as_strings(value: object, name: str) -> tuple[str, ...]:
    return tuple(as_text(text, f"{name}[{i}]") for i, text in enumerate(as_sequence(value, name, "a sequence of strings")))


def as_sequence(value: object, name: str, expected: str) -> Sequence[Any]:
    """A string is none, although Python has it that it is."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise wrong_type(name, expected, value)
    return value


def wrong_type(name: str, expected: str, value: object) -> TypeError:
    return TypeError(f"{name} must be {expected}, not {type(value).__name__}")


@cache
def hints() -> Mapping[str, Any]:
    """The types of all parameters."""
    return {**get_type_hints(Sampling), **get_type_hints(Generate)}


def fits(value: object, hint: Any) -> bool:
    """Whether `value` is of the type `hint`; where a tuple is asked for, any sequence is one."""
    args = get_args(hint)
    match get_origin(hint):
        case kind if kind in (Union, UnionType):
            return any(fits(value, arm) for arm in args)
        case kind if kind is Literal:
            return any(type(value) is type(word) and value == word for word in args)
        case kind if kind is tuple:
            if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
                return False
            if args[-1] is Ellipsis:
                return all(fits(item, args[0]) for item in value)
            return len(value) == len(args) and all(map(fits, value, args))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


@dataclass(slots=True, frozen=True)
class Asked:
    """What a method was asked for; `given` are the parameters that it was told."""

    work: Generate
    given: frozenset[str]

    @classmethod
    def of(cls, prompt: Prompt, params: Mapping[str, Any]) -> Asked:
        """TypeError for a name that neither `Generate` nor `Sampling` has, or a value of another type than theirs."""
        if isinstance(params.get("stop"), str):
            params = {**params, "stop": (params["stop"],)}
        for name, value in params.items():
            if name not in SAMPLING_NAMES and name not in GENERATE_NAMES:
                raise TypeError(f"there is no parameter {name!r}")
            if not fits(value, hints()[name]):
                expected = next(item.type for kind in (Generate, Sampling) for item in fields(kind) if item.name == name)
                raise wrong_type(name, f"of type {expected}", value)
        sampling = Sampling(**{name: value for name, value in params.items() if name in SAMPLING_NAMES})
        rest = {name: value for name, value in params.items() if name in GENERATE_NAMES}
        return cls(Generate(prompt, sampling=sampling, **rest), frozenset(params))
