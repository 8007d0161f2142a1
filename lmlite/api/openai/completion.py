"""Replies of `/chat/completions` and `/completions`, for OpenAI's dialect and for v0, which is a projection of it.

A chunk costs a join of three strings: all that stays the same in a choice's chunks is spelled once. `stream` gives a
choice's events one after the other in the order of the engine; `whole` folds the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from json.encoder import encode_basestring as quote
from typing import Any, ClassVar

from ...errors import InternalError, LmError
from ...events import (
    Event,
    Finished,
    Leased,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallArguments,
    ToolCallStart,
)
from ...records import dataclass
from ..answer import FINISH_REASON, Answer, call_id, clamp_logprob, fold, leased_of, spell_logprobs, spell_timings
from ..dialect import DONE, Frame, Origin, Reply
from ..served import Served
from ..spell import dumps
from .error import error_object


@dataclass(slots=True, frozen=True)
class Choices:
    """How many choices a request has, `n` for each prompt, `total` in all; whether its stream ends in usage; whether
    tokens are guessed for it, and by which model if by one; whether the usage goes with why it ended, in LM Studio's word;
    whether log probabilities are wanted, and, as llama.cpp's server has them, timings and the progress of prompts."""

    total: int
    n: int
    include_usage: bool
    drafted: bool = False
    draft_model: str | None = None
    include_stats: bool = False
    logprobs: bool = False
    timings: bool = False
    progress: bool = False


@dataclass(slots=True, frozen=True)
class Projection:
    """What sets a dialect's payloads apart: the usage (of `n` choices per prompt), the keys that close a whole answer,
    and those that a whole chat message has beyond role and content (of the choice that the number says)."""

    usage: Callable[[Sequence[Finished], int], dict[str, Any]]
    closing: Callable[[Served, Sequence[Finished], Choices], dict[str, Any]]
    message: Callable[[Served, int, Answer], dict[str, Any]] | None = None


class Completion(Reply):
    """The reply, but for the spelling of one choice, which `ChatCompletion` and `TextCompletion` add."""

    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]
    delta_head: ClassVar[str]
    """What stands between a chunk's choice index and its text."""
    delta_tail: ClassVar[str]
    """What stands between the text and `"logprobs"`."""
    no_text: ClassVar[str]
    """What stands for the text where there is none yet."""

    def __init__(self, origin: Origin, projection: Projection, choices: Choices):
        self._origin = origin
        self._projection = projection
        self._choices = choices
        self._finished: list[Finished | None] = [None] * choices.total
        self._started = [False] * choices.total

    def _meet(self, served: Served) -> None:
        """From here on it is known who answers."""
        self._served = served
        head = {
            "id": f"{self.id_prefix}-{served.suffix}",
            "object": self.chunk_object,
            "created": served.created,
            "model": served.model,
            "system_fingerprint": served.model,
        }
        self._chunk = dumps(head)[:-1] + ',"choices":['
        self._heads = self._spell_heads(self.delta_head)
        self._tail = self.delta_tail + '"logprobs":null,"finish_reason":null}]}'

    def _spell_heads(self, delta_head: str) -> list[str]:
        return [f'{self._chunk}{{"index":{i},{delta_head}' for i in range(self._choices.total)]

    def spell_choice(self, index: int, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def spell_logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        raise NotImplementedError

    def spell_last(self, index: int, reason: str) -> dict[str, Any]:
        """The choice of a chunk that ends its stream."""
        raise NotImplementedError

    def _logprobs_of(self, index: int, answer: Answer) -> dict[str, Any] | None:
        """Where they were asked for, even those of no token are an object."""
        return self.spell_logprobs(index, answer.logprobs) if answer.logprobs or self._choices.logprobs else None

    def stream(self, index: int, event: Event) -> Iterable[Frame]:
        if type(event) is TextDelta:
            if event.logprobs:
                return (self._text_with_logprobs(index, event),)
            if not event.text:
                return ()
            self._started[index] = True
            return ((None, self._heads[index] + quote(event.text) + self._tail),)
        if type(event) is Finished:
            return self._finish(index, event)
        if type(event) is PromptProgress:
            return (self._progress(index, event),) if self._choices.progress else ()
        if type(event) is Leased:
            self._meet(Served(self._origin, event.instance))
            return ()
        return self.spell_other(index, event)

    def spell_other(self, index: int, event: Event) -> Iterable[Frame]:
        """Of what is neither text nor the end."""
        return ()

    def _text_with_logprobs(self, index: int, event: TextDelta) -> Frame:
        self._started[index] = True
        logprobs = dumps(self.spell_logprobs(index, event.logprobs))
        tail = f'{self.delta_tail}"logprobs":{logprobs},"finish_reason":null}}]}}'
        return None, self._heads[index] + quote(event.text) + tail

    def _progress(self, index: int, event: PromptProgress) -> Frame:
        progress = {
            "total": event.total,
            "cache": event.cached,
            "processed": event.done,
            "time_ms": round(event.elapsed_ms),
        }
        return None, f'{self._heads[index]}{self.no_text}{self._tail[:-1]},"prompt_progress":{dumps(progress)}}}'

    def _finish(self, index: int, event: Finished) -> Iterator[Frame]:
        self._finished[index] = event
        if not self._started[index]:  # an empty answer has a text too, and its role
            if self._choices.logprobs:
                yield self._text_with_logprobs(index, TextDelta(""))
            else:
                yield None, f'{self._heads[index]}""{self._tail}'
        is_last = not self._choices.include_usage and None not in self._finished
        timings = self._timings() if is_last else ""
        yield None, f"{self._chunk}{dumps(self.spell_last(index, FINISH_REASON[event.reason]))}]{timings}}}"

    def _timings(self) -> str:
        """The member of the last chunk."""
        return f',"timings":{dumps(spell_timings(self._all(), self._choices.n))}' if self._choices.timings else ""

    def _all(self) -> list[Finished]:
        finished = [choice for choice in self._finished if choice is not None]
        if len(finished) < self._choices.total:
            raise InternalError
        return finished

    def end(self) -> Iterable[Frame]:
        if self._choices.include_usage:
            finished = self._all()
            usage = dumps(self._projection.usage(finished, self._choices.n))
            stats = f',"stats":{dumps({"stop_reason": finished[0].reason})}' if self._choices.include_stats else ""
            return (None, f'{self._chunk}],"usage":{usage}{stats}{self._timings()}}}'), DONE
        return (DONE,)

    def failed(self, exc: LmError) -> Iterable[Frame]:
        return (("error", dumps({"error": error_object(exc)})),)

    def whole(self, runs: Sequence[Sequence[Event]]) -> str:
        self._served = Served(self._origin, leased_of(runs).instance)
        answers = [fold(events) for events in runs]
        finished = [answer.finished for answer in answers]
        return dumps(
            {
                "id": f"{self.id_prefix}-{self._served.suffix}",
                "object": self.object,
                "created": self._served.created,
                "model": self._served.model,
                "choices": [self.spell_choice(i, answer) for i, answer in enumerate(answers)],
                "usage": self._projection.usage(finished, self._choices.n),
                **self._projection.closing(self._served, finished, self._choices),
                **({"timings": spell_timings(finished, self._choices.n)} if self._choices.timings else {}),
            }
        )


class ChatCompletion(Completion):
    id_prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    delta_head = '"delta":{"role":"assistant","content":'
    delta_tail = "},"
    no_text = "null"
    reasoning_head = '"delta":{"role":"assistant","reasoning_content":'

    def _meet(self, served: Served) -> None:
        super()._meet(served)
        self._reasoning_heads = self._spell_heads(self.reasoning_head)

    def spell_other(self, index: int, event: Event) -> Iterable[Frame]:
        if type(event) is ReasoningDelta:
            self._started[index] = True
            return ((None, self._reasoning_heads[index] + quote(event.text) + self._tail),)
        if type(event) is ToolCallArguments:
            call = f'{{"index":{event.index},"function":{{"arguments":{quote(event.text)}}}}}'
            return (self._delta(index, f'"tool_calls":[{call}]'),)
        if type(event) is ToolCallStart:
            id = call_id(self._served.suffix, index, event.index)
            function = f'{{"name":{quote(event.name)},"arguments":""}}'
            call = f'{{"index":{event.index},"id":"{id}","type":"function","function":{function}}}'
            return (self._delta(index, f'"role":"assistant","tool_calls":[{call}]'),)
        return ()

    def _delta(self, index: int, members: str) -> Frame:
        self._started[index] = True
        return None, f'{self._chunk}{{"index":{index},"delta":{{{members}{self._tail}'

    def spell_choice(self, index: int, answer: Answer) -> dict[str, Any]:
        more = self._projection.message
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": answer.text,
                **(more(self._served, index, answer) if more else {}),
            },
            "logprobs": self._logprobs_of(index, answer),
            "finish_reason": FINISH_REASON[answer.finished.reason],
        }

    def spell_logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"content": spell_logprobs(logprobs), "refusal": None}

    def spell_last(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}


class TextCompletion(Completion):
    id_prefix = "cmpl"
    object = chunk_object = "text_completion"
    delta_head = '"text":'
    delta_tail = ","
    no_text = '""'

    def __init__(self, origin: Origin, projection: Projection, choices: Choices):
        super().__init__(origin, projection, choices)
        self._offsets = [0] * choices.total

    def spell_choice(self, index: int, answer: Answer) -> dict[str, Any]:
        self._offsets[index] = 0
        return {
            "index": index,
            "text": answer.text,
            "logprobs": self._logprobs_of(index, answer),
            "finish_reason": FINISH_REASON[answer.finished.reason],
        }

    def spell_logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """`text_offset` counts characters over the whole choice, of the prompt too where it is echoed; a token that begins
        inside one has its offset."""
        offsets = []
        for token in logprobs:
            shown = token.bytes if token.shown is None else token.bytes[len(token.bytes) - token.shown :]
            inside = bool(shown) and _is_continuation(shown[0])
            offsets.append(max(self._offsets[index] - inside, 0))
            self._offsets[index] += sum(not _is_continuation(byte) for byte in shown)
        return {
            "tokens": [token.token for token in logprobs],
            "token_logprobs": [None if t.logprob is None else clamp_logprob(t.logprob) for t in logprobs],
            "top_logprobs": [_spell_top(token) for token in logprobs] if any(t.top for t in logprobs) else None,
            "text_offset": offsets,
        }

    def spell_last(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}


def _is_continuation(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def _spell_top(token: TokenLogprob) -> dict[str, float] | None:
    """By text, as this older shape has it; of two tokens that read the same the likelier one is kept."""
    if token.logprob is None:
        return None
    spelled: dict[str, float] = {}
    for top in token.top:
        spelled.setdefault(top.token, clamp_logprob(top.logprob))
    return spelled
