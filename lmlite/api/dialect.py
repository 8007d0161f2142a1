"""What a dialect makes of one request body: the work for an engine, and the reply that spells the engine's events.

A `Reply` belongs to one HTTP request. Its choices are numbered by the index of their run in `Call.runs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from ..errors import LmError
from ..events import Event
from ..request import Embed, Embedding, Generate, Prompt, Rerank, Score, with_defaults
from ..settings import ModelSettings
from .served import Served

Frame = tuple[str | None, str]
"""One server-sent event: its name, if it has one, and its payload."""

DONE: Frame = (None, "[DONE]")


class Reply(Protocol):
    """`begin`, `stream` per event, then `end`, or `failed` any time; or else `whole`, a fold over the same events."""

    def begin(self) -> Iterable[Frame]: ...

    def stream(self, index: int, event: Event) -> Iterable[Frame]: ...

    def end(self) -> Iterable[Frame]: ...

    def failed(self, exc: LmError) -> Iterable[Frame]: ...

    def whole(self, runs: Sequence[Sequence[Event]]) -> str: ...


@dataclass(slots=True, frozen=True)
class Call:
    """`model` is None where the request names none; `ttl_s` counts only if this request loads the model. Runs that are
    drafted by a model are so by `draft_model`. `given` are the names that `request.with_defaults` wants."""

    model: str | None
    runs: tuple[Generate, ...]
    stream: bool
    ttl_s: int | None
    reply: Callable[[Served], Reply]
    needs: Literal["chat", "text"]
    given: frozenset[str]
    draft_model: str | None = None

    def with_defaults(self, model: ModelSettings, effort_off: str | None = None) -> Call:
        """For the model that turned out to answer: what the request leaves open is the model's to say. Choices of one
        prompt go on sharing it."""
        runs: list[Generate] = []
        prompts: dict[int, Prompt] = {}
        for work in self.runs:
            run = with_defaults(work, self.given, model, effort_off)
            runs.append(replace(run, prompt=prompts.setdefault(id(work.prompt), run.prompt)))
        return replace(self, runs=tuple(runs))


@dataclass(slots=True, frozen=True)
class EmbedCall:
    """`pieces` spells the vectors of `embed.inputs` as JSON text, a piece per vector, so that a caller on an event loop
    can let others run in between where there are thousands."""

    model: str | None
    embed: Embed
    ttl_s: int | None
    pieces: Callable[[Served, Sequence[Embedding]], Iterator[str]]

    def reply(self, served: Served, vectors: Sequence[Embedding]) -> str:
        return "".join(self.pieces(served, vectors))


@dataclass(slots=True, frozen=True)
class RerankCall:
    """`reply` takes the scores of `rerank.documents` in their order."""

    model: str | None
    rerank: Rerank
    ttl_s: int | None
    reply: Callable[[Served, Sequence[Score]], str]
