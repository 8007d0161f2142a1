"""One request for an answer, whoever's dialect it came in: plain data, to be run (`rounds/`) and told as `events`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import is_
from typing import Literal

from .messages import Message, Sense, ToolCallPart, ToolResultPart
from .records import dataclass
from .request import Chat, Generate, Prompt, senses, with_defaults
from .settings import UNSAID, ModelSettings
from .tool_servers import ToolServer


@dataclass(slots=True, frozen=True)
class Follows:
    """The kept turn `id`, which another one goes on from: its conversation stands before that one's messages, but behind
    the first `n_leading` of them, which are said of this turn alone. With `one_system` the latest system message is the
    only one, and the first."""

    id: str
    n_leading: int = 0
    one_system: bool = False

    def join(self, earlier: Sequence[Message], messages: Sequence[Message]) -> tuple[Message, ...]:
        joined = [*messages[: self.n_leading], *earlier, *messages[self.n_leading :]]
        if self.one_system:
            systems = [message for message in (*earlier, *messages) if message.role == "system"]
            joined = systems[-1:] + [message for message in joined if message.role != "system"]
        return tuple(name_results(behind_calls(joined)))


def behind_calls(messages: Sequence[Message]) -> list[Message]:
    """What a call gave stands behind it, before whatever was said while somebody thought about approving it."""
    groups: list[list[Message]] = [[]]  # each begins with what somebody said; results are behind it
    made: dict[str, list[Message]] = {}  # calls, and where their results belong
    for message in messages:
        if message.role == "tool":
            made.get(call_of(message), groups[-1]).append(message)
            continue
        groups.append([message])
        made.update((part.id, groups[-1]) for part in message.parts if isinstance(part, ToolCallPart))
    return [message for group in groups for message in group]


def call_of(message: Message) -> str:
    """The id of the call that a message of a tool answers."""
    return next((part.call_id for part in message.parts if isinstance(part, ToolResultPart)), "")


def name_results(messages: Sequence[Message]) -> list[Message]:
    """Results of calls of another turn are told whose they are."""
    called: dict[str, str] = {}
    named = []
    for message in messages:
        called.update((part.id, part.name) for part in message.parts if isinstance(part, ToolCallPart))
        parts = [
            replace(part, name=called.get(part.call_id, "")) if isinstance(part, ToolResultPart) and not part.name else part
            for part in message.parts
        ]
        named.append(message if parts == list(message.parts) else replace(message, parts=tuple(parts)))
    return named


@dataclass(slots=True, frozen=True)
class Approval:
    """What somebody decided about the call `id` that waits for it at the end of the conversation. `label` is its server's,
    where that was said; `param` is where the request decides it."""

    id: str
    given: bool
    reason: str = ""
    label: str = ""
    param: str | None = None


@dataclass(slots=True, frozen=True)
class Turn:
    """`model` is None where the request names none. `runs` are its choices, of one prompt or of several; their events are
    numbered by their places here. Runs that are drafted by a model are so by `draft_model`. What `load` says counts only if
    this turn has the model loaded. `given` are the names that `request.with_defaults` wants. `effort` is a word of
    `card.Reasoning` that the model must know, None if it need not; what it says to a template the prompt has. Tools of
    `servers` are called by this server, round after round, and before the first one what `approvals` say; such a turn has one
    run."""

    model: str | None
    runs: tuple[Generate, ...]
    needs: Literal["chat", "text"]
    given: frozenset[str]
    load: ModelSettings = UNSAID
    draft_model: str | None = None
    follows: Follows | None = None
    effort: str | None = None
    servers: tuple[ToolServer, ...] = ()
    max_calls: int | None = None  # of servers' tools; None: no limit of its own
    approvals: tuple[Approval, ...] = ()

    @property
    def senses(self) -> frozenset[Sense]:
        """What a model has to have for its prompts."""
        return frozenset(sense for prompt in self.prompts() for sense in senses(prompt))

    def prompts(self) -> list[Prompt]:
        """Each once, however many choices of it there are."""
        return list({id(run.prompt): run.prompt for run in self.runs}.values())

    def with_defaults(self, model: ModelSettings, effort_off: str | None = None) -> Turn:
        """For the model that turned out to answer: what the request leaves open is the model's to say. Choices of one
        prompt go on sharing it."""
        runs: list[Generate] = []
        prompts: dict[int, Prompt] = {}
        for work in self.runs:
            run = with_defaults(work, self.given, model, effort_off)
            prompt = prompts.setdefault(id(work.prompt), run.prompt)
            runs.append(run if run.prompt is prompt else replace(run, prompt=prompt))
        return self if all(map(is_, runs, self.runs)) else replace(self, runs=tuple(runs))

    def after(self, earlier: Sequence[Message]) -> Turn:
        """With the conversation that it goes on from, which is the messages `earlier`."""
        if self.follows is None:
            return self
        runs = []
        for work in self.runs:
            assert isinstance(work.prompt, Chat)
            messages = self.follows.join(earlier, work.prompt.messages)
            runs.append(replace(work, prompt=replace(work.prompt, messages=messages)))
        return replace(self, runs=tuple(runs), follows=None)
