"""One choice as a fold over its events, and what both OpenAI's and LM Studio's v0 payloads say about a finished one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import InternalError
from ..events import (
    Event,
    Finished,
    Leased,
    ReasoningDelta,
    StopReason,
    TextDelta,
    TokenLogprob,
    ToolCallArguments,
    ToolCallStart,
)
from ..records import dataclass

FINISH_REASON: Mapping[StopReason, str] = {
    "eosFound": "stop",
    "stopStringFound": "stop",
    "maxPredictedTokensReached": "length",
    "contextLengthReached": "length",
    "userStopped": "stop",
    "modelUnloaded": "stop",
    "toolCalls": "tool_calls",
    "failed": "stop",
}

LOGPROB_MIN = -9999.0
"""OpenAI's number for a token of no probability: JSON has no infinity, and a broken model's NaN goes here too."""


CALL_IDS = 10**9
"""LM Studio's ids of tool calls are nine decimal digits."""

CALL_STRIDE = 618_033_989
"""From one call's id to the next: no divisor in common with `CALL_IDS`, so that no two calls of an answer meet."""

CALLS_PER_CHOICE = 2**16


@dataclass(slots=True, frozen=True)
class ToolCall:
    name: str
    arguments: str  # the text of a JSON object, unless the answer was cut short


@dataclass(slots=True, frozen=True)
class Answer:
    reasoning: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    logprobs: tuple[TokenLogprob, ...]
    finished: Finished


def fold(events: Iterable[Event]) -> Answer:
    reasoning: list[str] = []
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    calls: list[tuple[str, list[str]]] = []
    finished: Finished | None = None
    for event in events:
        match event:
            case TextDelta():
                texts.append(event.text)
                logprobs.extend(event.logprobs)
            case ReasoningDelta(text=text):
                reasoning.append(text)
            case ToolCallStart(name=name):
                calls.append((name, []))
            case ToolCallArguments(index=index, text=text):
                calls[index][1].append(text)
            case Finished():
                finished = event
    if finished is None:
        raise InternalError
    tool_calls = tuple(ToolCall(name, "".join(arguments)) for name, arguments in calls)
    return Answer("".join(reasoning), "".join(texts), tool_calls, tuple(logprobs), finished)


def leased_of(runs: Sequence[Sequence[Event]]) -> Leased:
    """Of a turn whose runs these are: by whom they were made."""
    for event in runs[0]:
        if type(event) is Leased:
            return event
    raise InternalError


def call_id(suffix: str, choice: int, index: int) -> str:
    """Of the tool call `index` of a choice: the same in a stream and in the whole answer. `suffix` is `Served`'s."""
    place = choice * CALLS_PER_CHOICE + index
    return f"{(int(suffix, 36) + place * CALL_STRIDE) % CALL_IDS:09d}"


def spell_calls(suffix: str, choice: int, calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    """As OpenAI's messages have them."""
    return [
        {
            "id": call_id(suffix, choice, index),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(calls)
    ]


def count_usage(finished: Sequence[Finished], n: int) -> dict[str, Any]:
    """Token counts of all choices; a prompt counts once however many (`n`) choices were made of it."""
    prompt_tokens = sum(choice.stats.prompt_tokens for choice in finished[::n])
    completion_tokens = sum(choice.stats.generated_tokens for choice in finished)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def count_drafts(finished: Sequence[Finished], draft_model: str | None) -> dict[str, Any]:
    """LM Studio's counters of guessed tokens, for answers whose request asked for guesses."""
    counts = [choice.stats.draft for choice in finished if choice.stats.draft is not None]
    return {
        **({"draft_model": draft_model} if draft_model else {}),
        "total_draft_tokens_count": sum(count.total for count in counts),
        "accepted_draft_tokens_count": sum(count.accepted for count in counts),
        "rejected_draft_tokens_count": sum(count.rejected for count in counts),
        "ignored_draft_tokens_count": sum(count.ignored for count in counts),
    }


def spell_timings(finished: Sequence[Finished], n: int) -> dict[str, Any]:
    """llama.cpp's object. Several prompts and choices are worked on side by side: their tokens over the longest time."""
    prompts = [choice.stats for choice in finished[::n]]
    prompt_n = sum(stats.prompt_tokens - stats.cached_tokens for stats in prompts)
    prompt_ms = max(max(stats.first_token_ms - stats.queue_ms, 0.0) for stats in prompts)
    predicted_n = sum(choice.stats.generated_tokens for choice in finished)
    predicted_ms = max(choice.stats.generation_ms for choice in finished)
    drafts = [draft for choice in finished if (draft := choice.stats.draft) is not None and draft.total > 0]
    return {
        "cache_n": sum(stats.cached_tokens for stats in prompts),
        **_spell_pace("prompt", prompt_n, prompt_ms),
        **_spell_pace("predicted", predicted_n, predicted_ms),
        **({"draft_n": sum(d.total for d in drafts), "draft_n_accepted": sum(d.accepted for d in drafts)} if drafts else {}),
    }


def _spell_pace(what: str, n_tokens: int, ms: float) -> dict[str, Any]:
    return {
        f"{what}_n": n_tokens,
        f"{what}_ms": round(ms, 3),
        f"{what}_per_token_ms": round(ms / n_tokens, 6) if n_tokens else 0.0,
        f"{what}_per_second": round(n_tokens * 1000 / ms, 6) if ms > 0 else 0.0,
    }


def clamp_logprob(logprob: float) -> float:
    return max(LOGPROB_MIN, logprob)  # in this order NaN loses, too


def spell_logprobs(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """As OpenAI's chats and responses have them, a token each."""
    return [
        {
            "token": token.token,
            "logprob": None if token.logprob is None else clamp_logprob(token.logprob),
            "bytes": list(token.bytes),
            "top_logprobs": [
                {"token": top.token, "logprob": clamp_logprob(top.logprob), "bytes": list(top.bytes)} for top in token.top
            ],
        }
        for token in logprobs
    ]
