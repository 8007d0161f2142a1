"""Answers of `/v1/messages`: blocks in their order, one open at a time.

The first event tells what the prompt takes, so it waits for the engine to have seen it; a stream that must begin before
counts at its end. A token costs a join of three strings: all that stays the same in a block's deltas is spelled once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring as quote
from typing import Any, Final

from ...errors import InternalError, LmError
from ...events import (
    Event,
    Finished,
    Leased,
    PromptProgress,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    Started,
    StopReason,
    TextDelta,
    TextEnd,
    TextStart,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from ..cut_json import ending, is_json
from ..dialect import Frame, Origin, Reply
from ..spell import dumps
from ..transcript import Piece, Transcript
from .error import error_object

SIGNATURE: Final = "bG1saXRl"
"""Of thoughts: clients keep it and send it back, and nobody looks at it."""

STOP_REASONS: Final[Mapping[StopReason, str]] = {
    "eosFound": "end_turn",
    "stopStringFound": "stop_sequence",
    "maxPredictedTokensReached": "max_tokens",
    "contextLengthReached": "max_tokens",  # the newer "model_context_window_exceeded" is none to older clients
    "userStopped": "end_turn",
    "modelUnloaded": "end_turn",
    "toolCalls": "tool_use",
    "failed": "end_turn",
}

PING: Final[Frame] = ("ping", '{"type":"ping"}')
STOP: Final[Frame] = ("message_stop", '{"type":"message_stop"}')


class MessageReply(Reply):
    """`asked` is the model by the name that the request has for it: all there is before it is resolved."""

    def __init__(self, origin: Origin, asked: str | None):
        self._suffix = origin.suffix
        self._model = asked or ""
        self._begun = False
        self._n_blocks = 0
        self._delta = ""  # what a delta of the open block begins with
        self._arguments: list[str] = []  # of the open call
        self._finished: Finished | None = None

    # ---- streamed

    def begin(self) -> Iterator[Frame]:
        yield from self._start(0, 0)

    def alive(self) -> Iterable[Frame]:
        return (PING,)

    def stream(self, index: int, event: Event) -> Iterable[Frame]:
        kind = type(event)
        if kind is TextDelta or kind is ReasoningDelta:
            text = event.text  # type: ignore[union-attr]
            return (("content_block_delta", self._delta + quote(text) + "}}"),) if text else ()
        if kind is ToolCallArguments:
            self._arguments.append(event.text)  # type: ignore[union-attr]
            return (("content_block_delta", self._delta + quote(event.text) + "}}"),)  # type: ignore[union-attr]
        return self._change(event)

    def _change(self, event: Event) -> Iterator[Frame]:
        """What is no delta."""
        match event:
            case Started(model=model):
                self._model = model
            case Leased(instance=instance):
                self._model = instance.id
            case PromptProgress(total=total, cached=cached):
                if not self._begun:
                    yield from self._start(total - cached, cached)
                    yield PING
            case TextStart():
                yield from self._open('{"type":"text","text":""}', "text_delta", "text")
            case ReasoningStart():
                yield from self._open('{"type":"thinking","thinking":"","signature":""}', "thinking_delta", "thinking")
            case ToolCallStart(index=number, name=name):
                self._arguments.clear()
                block = f'{{"type":"tool_use","id":"{call_id(self._suffix, number)}","name":{quote(name)},"input":{{}}}}'
                yield from self._open(block, "input_json_delta", "partial_json")
            case TextEnd():
                yield self._close()
            case ReasoningEnd():
                signed = f'{{"type":"signature_delta","signature":"{SIGNATURE}"}}'
                yield "content_block_delta", f'{{"type":"content_block_delta","index":{self._n_blocks},"delta":{signed}}}'
                yield self._close()
            case ToolCallEnd():
                if rest := ending("".join(self._arguments)):
                    yield "content_block_delta", self._delta + quote(rest) + "}}"
                yield self._close()
            case Finished():
                self._finished = event

    def _start(self, input_tokens: int, cached_tokens: int) -> Iterator[Frame]:
        self._begun = True
        usage = spell_usage(input_tokens, cached_tokens, 0)
        message = spell_message(self._suffix, self._model, "[]", None, None, usage)
        yield "message_start", f'{{"type":"message_start","message":{message}}}'

    def _open(self, block: str, delta: str, field: str) -> Iterator[Frame]:
        if not self._begun:
            yield from self._start(0, 0)
        index = self._n_blocks
        self._delta = f'{{"type":"content_block_delta","index":{index},"delta":{{"type":"{delta}","{field}":'
        yield "content_block_start", f'{{"type":"content_block_start","index":{index},"content_block":{block}}}'

    def _close(self) -> Frame:
        index = self._n_blocks
        self._n_blocks += 1
        return "content_block_stop", f'{{"type":"content_block_stop","index":{index}}}'

    def end(self) -> Iterator[Frame]:
        finished = self._finished
        if finished is None:
            raise InternalError
        if not self._begun:
            yield from self._start(0, 0)
        reason, found = spell_stop(finished)
        delta = {"stop_reason": reason, "stop_sequence": found}
        yield "message_delta", dumps({"type": "message_delta", "delta": delta, "usage": count_usage(finished)})
        yield STOP

    def failed(self, exc: LmError) -> Iterable[Frame]:
        return (("error", dumps(error_object(exc, self._suffix))),)

    # ---- whole

    def whole(self, runs: Sequence[Sequence[Event]]) -> str:
        said = Transcript()
        for event in runs[0]:
            said.hear(event)
        if said.finished is None or said.leased is None:
            raise InternalError
        blocks = ",".join([self._spell_block(piece) for piece in said.pieces])
        reason, found = spell_stop(said.finished)
        usage = count_usage(said.finished)
        return spell_message(self._suffix, said.leased.instance.id, f"[{blocks}]", reason, found, usage)

    def _spell_block(self, piece: Piece) -> str:
        text = piece.text
        if piece.kind == "text":
            return f'{{"type":"text","text":{quote(text)}}}'
        if piece.kind == "reasoning":
            return f'{{"type":"thinking","thinking":{quote(text)},"signature":"{SIGNATURE}"}}'
        arguments = text + ending(text)
        head = f'{{"type":"tool_use","id":"{call_id(self._suffix, piece.number)}","name":{quote(piece.name)}'
        return f'{head},"input":{arguments if is_json(arguments) else "{}"}}}'


def spell_message(
    suffix: str, model: str, content: str, reason: str | None, found: str | None, usage: Mapping[str, Any]
) -> str:
    """`content` is JSON."""
    head = f'{{"id":"msg_{suffix}","type":"message","role":"assistant","model":{quote(model)},"content":{content}'
    stop = f'"stop_reason":{dumps(reason)},"stop_sequence":{dumps(found)}'
    return f'{head},{stop},"usage":{dumps(usage)}}}'


def call_id(suffix: str, number: int) -> str:
    """The same in a stream and in the whole answer, and of no other call of a conversation."""
    return f"toolu_{suffix}{number:02}"


def spell_stop(finished: Finished) -> tuple[str, str | None]:
    """And the string that was found, if one was."""
    return STOP_REASONS[finished.reason], finished.stop_string


def count_usage(finished: Finished) -> dict[str, Any]:
    stats = finished.stats
    thoughts = {"output_tokens_details": {"thinking_tokens": stats.reasoning_tokens}} if stats.reasoning_tokens else {}
    cached = stats.cached_tokens
    return {**spell_usage(stats.prompt_tokens - cached, cached, stats.generated_tokens), **thoughts}


def spell_usage(input_tokens: int, cached_tokens: int, output_tokens: int) -> dict[str, Any]:
    """What was in the cache is no input in this family's words; nobody pays for what goes into it."""
    return {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": output_tokens,
    }
