"""`POST /v1/completions`: raw prompts, as text or as token ids, with no template; `n` runs for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import InvalidRequest, InvalidType, UnsupportedField
from ...events import Finished
from ...request import Infill, Prompt, Text, Tokens
from ..answer import count_drafts
from ..dialect import Call, Origin, Reply
from ..read import unserved
from ..read.fields import Fields, as_string
from ..read.sampling import TOP_LOGPROBS_MAX, as_token_ids
from ..read.unserved import refuse
from ..served import Served
from .chat import detail_usage
from .completion import Choices, Projection, TextCompletion
from .shared import RUNS_MAX, parse_shared


def parse_completions(body: dict[str, Any]) -> Call:
    return parse_as(body, OPENAI)


def parse_as(body: dict[str, Any], projection: Projection) -> Call:
    fields = Fields(body)
    prompts = parse_prompts(fields.require("prompt"))
    if suffix := fields.string("suffix"):
        prompts = tuple(_before(prompt, suffix) for prompt in prompts)
    echo = fields.boolean("echo")
    top_logprobs = fields.integer("logprobs", 0, TOP_LOGPROBS_MAX)
    if (fields.integer("best_of", 1, RUNS_MAX) or 1) > 1:
        raise UnsupportedField("best_of", "above 1 is not supported")
    refuse(fields, unserved.TEXT)
    shared = parse_shared(fields, prompts[0])
    runs = shared.runs(prompts, top_logprobs=top_logprobs, echo=echo)
    reply = make_reply(projection, shared.choices(len(runs), top_logprobs is not None))
    return Call(shared.turn("text", runs), shared.stream, reply)


def _before(prompt: Prompt, suffix: str) -> Prompt:
    """What is wanted stands between the two."""
    if not isinstance(prompt, Text):
        raise InvalidType("prompt", "a string or an array of strings where there is a 'suffix'")
    return Infill(prompt.text, suffix)


def make_reply(projection: Projection, choices: Choices) -> Callable[[Origin], Reply]:
    def reply(origin: Origin) -> Reply:
        return TextCompletion(origin, projection, choices)

    return reply


def parse_prompts(given: object) -> tuple[Prompt, ...]:
    """A string, an array of strings, an array of token ids, or an array of such arrays."""
    if isinstance(given, str):
        return (Text(given),)
    if not isinstance(given, list):
        raise InvalidType("prompt", "a string, an array of strings, or token ids")
    if not given:
        raise InvalidRequest("'prompt' must not be empty", "prompt")
    if isinstance(given[0], str):
        return tuple(Text(as_string(text, f"prompt[{i}]")) for i, text in enumerate(given))
    if isinstance(given[0], list):
        return tuple(Tokens(as_token_ids(ids, f"prompt[{i}]")) for i, ids in enumerate(given))
    return (Tokens(as_token_ids(given, "prompt")),)


def _close(served: Served, finished: Sequence[Finished], choices: Choices) -> dict[str, Any]:
    return {
        **({"stats": count_drafts(finished, choices.draft_model)} if choices.drafted else {}),
        "system_fingerprint": served.model,
    }


OPENAI = Projection(detail_usage, _close)
