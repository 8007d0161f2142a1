"""What a dialect makes of one request body: the turn to be run, and the reply that spells what happens in it.

A `Reply` belongs to one HTTP request and is there before the model is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..errors import LmError
from ..events import Event
from ..exchange import Exchange
from ..records import dataclass
from ..request import Embed, Embedding, Rerank, Score
from ..turn import Turn

Frame = tuple[str | None, str]
"""One server-sent event: its name, if it has one, and its payload."""

DONE: Frame = (None, "[DONE]")


@dataclass(slots=True, frozen=True)
class Origin:
    """What sets one reply apart from all others, and no dialect may make up: `suffix` is 22 random characters of
    `[a-z0-9]`, `digits` 48 random hexadecimal ones, `created` Unix seconds. `keeps`: this server keeps turns."""

    suffix: str
    digits: str
    created: int
    keeps: bool = True


class Reply(ABC):
    """`stream` per event, then `end`, or `failed` at any time; or else `whole`, a fold over the same events.

    Events are numbered by their run in `Turn.runs`; those of the turn as a whole, up to `Leased`, are run 0's.
    """

    def begin(self) -> Iterable[Frame]:
        """What a stream says that must begin although nothing has happened yet."""
        return ()

    def alive(self) -> Iterable[Frame]:
        """The dialect's own word for "still at it"; none: a comment will do."""
        return ()

    @abstractmethod
    def stream(self, index: int, event: Event) -> Iterable[Frame]: ...

    @abstractmethod
    def end(self) -> Iterable[Frame]: ...

    @abstractmethod
    def failed(self, exc: LmError) -> Iterable[Frame]: ...

    @abstractmethod
    def whole(self, runs: Sequence[Sequence[Event]]) -> str: ...

    def exchange(self) -> Exchange | None:
        """The turn as it is to be kept, by what is known of it now; None: it is not. Asked for when the turn begins and
        when it is over, before `end` is said, `failed` is, or what is `whole` is sent."""
        return None


@dataclass(slots=True, frozen=True)
class Call:
    """`ignored` names what the request asked for and does not get, although it is answered. What runs in the `background`
    is answered before it has begun, and goes on without its client."""

    turn: Turn
    stream: bool
    reply: Callable[[Origin], Reply]
    ignored: tuple[str, ...] = ()
    background: bool = False


@dataclass(slots=True, frozen=True)
class CountCall:
    """`reply` takes the number of tokens that the first run's prompt has."""

    turn: Turn
    reply: Callable[[int], str]


@dataclass(slots=True, frozen=True)
class EmbedCall:
    """`pieces` spells the vectors of `embed.inputs` as JSON text, given the model's id, a piece per vector, so that a
    caller on an event loop can let others run in between where there are thousands."""

    model: str | None
    embed: Embed
    ttl_s: int | None
    pieces: Callable[[str, Sequence[Embedding]], Iterator[str]]

    def reply(self, model: str, vectors: Sequence[Embedding]) -> str:
        return "".join(self.pieces(model, vectors))


@dataclass(slots=True, frozen=True)
class RerankCall:
    """`reply` takes the model's id and the scores of `rerank.documents` in their order."""

    model: str | None
    rerank: Rerank
    ttl_s: int | None
    reply: Callable[[str, Sequence[Score]], str]
