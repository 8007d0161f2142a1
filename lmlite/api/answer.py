"""One choice as a fold over its events, and what both OpenAI's and LM Studio's v0 payloads say about a finished one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InternalError
from ..events import Event, Finished, StopReason, TextDelta, TokenLogprob

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


@dataclass(slots=True, frozen=True)
class Answer:
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finished: Finished


def fold(events: Iterable[Event]) -> Answer:
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    finished: Finished | None = None
    for event in events:
        if isinstance(event, TextDelta):
            texts.append(event.text)
            logprobs.extend(event.logprobs)
        elif isinstance(event, Finished):
            finished = event
    if finished is None:
        raise InternalError
    return Answer("".join(texts), tuple(logprobs), finished)


def count_usage(finished: Sequence[Finished], n: int) -> dict[str, Any]:
    """Token counts of all choices; a prompt counts once however many (`n`) choices were made of it."""
    prompt_tokens = sum(choice.stats.prompt_tokens for choice in finished[::n])
    completion_tokens = sum(choice.stats.generated_tokens for choice in finished)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def clamp_logprob(logprob: float) -> float:
    return max(LOGPROB_MIN, logprob)  # in this order NaN loses, too
