"""The fields that requests of all dialects share: model, sampling, limits, stops.

Ranges are inclusive and finite. A dialect that calls one of these otherwise says so; what it does not serve is its own to
refuse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

from ...errors import InvalidRequest, InvalidType, OutOfRange, UnsupportedField
from ...records import dataclass
from ...request import INT32_MAX, SAMPLERS, SAMPLING_INTEGERS, SAMPLING_NUMBERS, UNLIMITED, Draft, Generate, Prompt, Sampling
from ...settings import ModelSettings
from ...turn import Follows, Turn
from .fields import Fields, as_array, as_integer, as_number, as_object, as_string, clip

T = TypeVar("T")

INT64_MAX = 2**63 - 1

TTL_S_MAX = 366 * 24 * 3600
"""A year of idle time; whoever wants more wants no limit."""

STOP_MAX = 64
STOP_CHARS_MAX = 1024
"""Each decoded token is held against every stop string, and text that may begin one is held back from the client."""

LOGIT_BIAS_MAX = 16_384
"""Entries; each costs an addition per token."""

BREAKERS_MAX = 64
BREAKER_CHARS_MAX = 256

TOP_LOGPROBS_MAX = 20

DRAFT_MAX = 64
"""Tokens guessed at once: each takes a place in the batch that verifies them."""

OVERFLOW: Mapping[str, Literal["error", "stop", "drop_middle"]] = {
    "error": "error",
    "stopAtLimit": "stop",
    "truncateMiddle": "drop_middle",
}
"""LM Studio's words for what happens to what does not fit the context; an error is our default."""

ALIASES: Mapping[str, tuple[str, ...]] = {"repeat_penalty": ("repetition_penalty",)}
"""Other servers' names of fields of `Sampling`; ours count first."""

NUMBER_NAMES: Mapping[str, str] = {
    **{name: name for name in (*SAMPLING_NUMBERS, *SAMPLING_INTEGERS)},
    **{alias: name for name, aliases in ALIASES.items() for alias in aliases},
}
"""Fields of requests, and of `Sampling`: those that few set, so that what a request has is looked up here."""

SAMPLER_NAMES: Mapping[str, str] = {
    **{name: name for name in SAMPLERS},
    **{name.replace("_", ""): name for name in SAMPLERS},
    "nucleus": "top_p",
    "temp": "temperature",
    "typ": "typ_p",
    "typical_p": "typ_p",
}
SAMPLER_LETTERS: Mapping[str, str] = dict(zip("edskypmxti", SAMPLERS, strict=True))
SAMPLERS_MAX = 32

STOP_TOKENS_MAX = 1024

LORAS_MAX = 64
LORA_SCALE_MAX = 100.0

SEEDS = 2**32 - 1
"""Seeds the engine knows: 0 up to this number, excluded."""


MAX_TOKENS: Final = ("max_completion_tokens", "max_tokens", "n_predict")
"""The newer of OpenAI's two names wins if several are given, llama.cpp's own comes last."""


@dataclass(slots=True, frozen=True)
class Options:
    """What a request says apart from its prompt, its choices and its form. `generate` holds it with whatever prompt it was
    read with; those `given` are not the model's own to choose."""

    model: str | None
    ttl_s: int | None
    draft_model: str | None
    generate: Generate
    given: frozenset[str]

    def turn(self, needs: Literal["chat", "text"], runs: tuple[Generate, ...], follows: Follows | None = None) -> Turn:
        load = ModelSettings(ttl_s=self.ttl_s)
        return Turn(self.model, runs, needs, self.given, load, self.draft_model, follows)


def parse_options(
    fields: Fields, prompt: Prompt, *, max_tokens: Sequence[str] = MAX_TOKENS, stop: str = "stop"
) -> Options:
    """`prompt` is what the options are built around. `max_tokens` and `stop` are the dialect's names of these two; of
    several names the first that is given counts."""
    draft_model = fields.name("draft_model")
    draft = _parse_draft(fields, draft_model)
    sampling = parse_sampling(fields)
    limit, limit_name = _parse_max_tokens(fields, max_tokens)
    min_tokens = fields.integer("min_tokens", 0, INT32_MAX) or 0
    if limit is not None and limit >= 0 and min_tokens > limit:
        raise InvalidRequest(f"'min_tokens' must be at most '{limit_name}', {limit}", "min_tokens")
    return Options(
        model=fields.name("model"),
        ttl_s=parse_ttl(fields),
        draft_model=draft_model if draft and draft.kind == "model" else None,
        generate=Generate(
            prompt=prompt,
            max_tokens=UNLIMITED if limit is None else limit,
            stop=parse_stop(fields, stop),
            sampling=Sampling(**sampling),
            ignore_eos=fields.boolean("ignore_eos"),
            stop_tokens=_parse_stop_tokens(fields),
            min_tokens=min_tokens,
            line_ms=max(0, fields.integer("t_max_predict_ms", -1, INT32_MAX) or 0),
            reasoning_budget=parse_reasoning_budget(fields),
            overflow=OVERFLOW[fields.choice("context_overflow_policy", tuple(OVERFLOW)) or "error"],
            draft=draft,
            loras=_parse_loras(fields),
            scope=fields.name("cache_salt") or "",
        ),
        given=frozenset(sampling) | ({"max_tokens"} if limit is not None else frozenset()),
    )


def _parse_draft(fields: Fields, draft_model: str | None) -> Draft | None:
    """`draft_model` is LM Studio's; `speculative` is ours: false for none, true or an object for guesses from the text's
    own repetitions where no draft model is named, `max` for how many at once."""
    kind: Literal["model", "ngram"] = "model" if draft_model else "ngram"
    given = fields.get("speculative")
    if given is None or isinstance(given, bool):
        return Draft(kind) if given or (given is None and draft_model) else None
    wish = Fields(as_object(given, "speculative"), "speculative")
    ngram = wish.boolean("ngram", default=not draft_model)
    if ngram and draft_model:
        raise InvalidRequest("'speculative.ngram' and 'draft_model' exclude each other", "speculative.ngram")
    n_max = wish.integer("max", 1, DRAFT_MAX)
    if not ngram and not draft_model:
        return None
    return Draft(kind) if n_max is None else Draft(kind, n_max)


def _parse_max_tokens(fields: Fields, names: Sequence[str]) -> tuple[int | None, str]:
    """And the name it goes by. -1 is LM Studio's word for no limit but the context, 0 asks for no token at all; None if
    none is given."""
    given = [(value, name) for name in names if (value := fields.integer(name, UNLIMITED, INT32_MAX)) is not None]
    return given[0] if given else (None, "")


def first(values: Iterable[T | None]) -> T | None:
    """All are read, so that each is checked."""
    return next((value for value in list(values) if value is not None), None)


def parse_ttl(fields: Fields) -> int | None:
    """Seconds; 0 is never, None is what the model's own settings say."""
    return fields.integer("ttl", 0, TTL_S_MAX)


def parse_stop(fields: Fields, name: str = "stop") -> tuple[str, ...]:
    """Empty ones, which would stop everything at once, are what clients send that have none."""
    given, where = fields.get(name), fields.where(name)
    if given is None:
        return ()
    if isinstance(given, str):
        return (_check_stop(given, where),) if given else ()
    if not isinstance(given, list):
        raise InvalidType(where, "a string or an array of strings")
    stops = tuple(stop for i, value in enumerate(given) if (stop := _check_stop(value, f"{where}[{i}]")))
    if len(stops) > STOP_MAX:
        raise InvalidRequest(f"'{where}' must have at most {STOP_MAX} strings", where)
    return stops


def _check_stop(value: object, where: str) -> str:
    stop = as_string(value, where)
    if len(stop) > STOP_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {STOP_CHARS_MAX} characters", where)
    return stop


def _parse_stop_tokens(fields: Fields) -> tuple[int, ...]:
    given = fields.array("stop_token_ids")
    if not given:
        return ()
    if len(given) > STOP_TOKENS_MAX:
        raise OutOfRange("stop_token_ids", None, STOP_TOKENS_MAX)
    return as_token_ids(given, "stop_token_ids")


def parse_reasoning_budget(fields: Fields) -> int:
    """Tokens; -1 is no limit. Each server has its own name for it."""
    names = ("reasoning_budget", "reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget")
    budgets = [fields.integer(name, UNLIMITED, INT32_MAX) for name in names]
    for outer, name in (("reasoning", "max_tokens"), ("thinking", "budget_tokens")):
        if isinstance(fields.get(outer), dict):
            budgets.append((fields.object(outer) or fields).integer(name, UNLIMITED, INT32_MAX))
    budget = first(budgets)
    return UNLIMITED if budget is None else budget


def _parse_samplers(fields: Fields) -> tuple[str, ...] | None:
    """Names, in llama.cpp's spellings, or one text of its letters."""
    given = fields.get("samplers")
    if given is None:
        return None
    if not isinstance(given, (str, list)):
        raise InvalidType("samplers", "an array of strings")
    if len(given) > SAMPLERS_MAX:
        raise OutOfRange("samplers", None, SAMPLERS_MAX)
    known = SAMPLER_LETTERS if isinstance(given, str) else SAMPLER_NAMES
    steps = []
    for i, value in enumerate(given):
        name = as_string(value, f"samplers[{i}]")
        step = known.get(name if isinstance(given, str) else name.lower().replace("-", "_"))
        if step is None:
            raise UnsupportedField(f"samplers[{i}]", f"of '{clip(name)}' is not one of {', '.join(SAMPLERS)}")
        steps.append(step)
    return tuple(steps)


def parse_sampling(fields: Fields) -> dict[str, Any]:
    """Those fields of `Sampling` that are given."""
    given: dict[str, Any] = {}
    for name in {NUMBER_NAMES[field]: None for field in fields.values if field in NUMBER_NAMES}:
        if name in SAMPLING_INTEGERS:
            given[name] = fields.integer(name, *SAMPLING_INTEGERS[name])
        else:
            low, high = SAMPLING_NUMBERS[name]
            given[name] = first(fields.number(field, low, high) for field in (name, *ALIASES.get(name, ())))
    given["seed"] = _parse_seed(fields)
    given["logit_bias"] = _parse_logit_bias(fields)
    given["dry_sequence_breakers"] = _parse_breakers(fields)
    given["samplers"] = _parse_samplers(fields)
    return {name: value for name, value in given.items() if value is not None}


def _parse_seed(fields: Fields) -> int | None:
    """OpenAI's seeds are 64-bit and are folded into the engine's; -1 asks for a random one, as in LM Studio."""
    seed = fields.integer("seed", -INT64_MAX - 1, INT64_MAX)
    return None if seed is None or seed == -1 else seed % SEEDS


def _parse_logit_bias(fields: Fields) -> tuple[tuple[int, float], ...] | None:
    """OpenAI's object, or llama.cpp's array of pairs, where `false` bans a token."""
    given = fields.get("logit_bias")
    if given is None:
        return None
    if not isinstance(given, (dict, list)):
        raise InvalidType("logit_bias", "an object, or an array of pairs of a token id and a bias")
    if len(given) > LOGIT_BIAS_MAX:
        raise OutOfRange("logit_bias", None, LOGIT_BIAS_MAX)
    if isinstance(given, list):
        return tuple(_parse_bias(pair, f"logit_bias[{i}]") for i, pair in enumerate(given))
    biases = []
    for key, bias in given.items():
        # int() would take "+5", "5_0" and digits of other scripts
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= INT32_MAX):
            raise InvalidRequest(f"'logit_bias' has a key that is no token id: {clip(key)!r}", "logit_bias")
        biases.append((int(key), as_number(bias, f"logit_bias.{key}", -100.0, 100.0)))
    return tuple(biases)


def _parse_bias(value: object, where: str) -> tuple[int, float]:
    pair = as_array(value, where)
    if len(pair) != 2:
        raise InvalidRequest(f"'{where}' must be a token id and a bias", where)
    token, bias = pair
    ban = bias is False
    return as_integer(token, where, 0, INT32_MAX), -math.inf if ban else as_number(bias, where, -100.0, 100.0)


def _parse_breakers(fields: Fields) -> tuple[str, ...] | None:
    given = fields.array("dry_sequence_breakers")
    if given is None:
        return None
    if len(given) > BREAKERS_MAX:
        raise OutOfRange("dry_sequence_breakers", None, BREAKERS_MAX)
    breakers = tuple(as_string(breaker, f"dry_sequence_breakers[{i}]") for i, breaker in enumerate(given))
    for i, breaker in enumerate(breakers):
        if not 1 <= len(breaker) <= BREAKER_CHARS_MAX:
            where = f"dry_sequence_breakers[{i}]"
            raise InvalidRequest(f"'{where}' must have 1 to {BREAKER_CHARS_MAX} characters", where)
    return breakers


def _parse_loras(fields: Fields) -> tuple[tuple[int, float], ...] | None:
    """llama-server's `lora`: adapters by their place in the list that the model was loaded with; the others are off."""
    given = fields.array("lora")
    if given is None:
        return None
    if len(given) > LORAS_MAX:
        raise OutOfRange("lora", None, LORAS_MAX)
    chosen = {}
    for i, item in enumerate(given):
        choice = Fields(as_object(item, f"lora[{i}]"), f"lora[{i}]")
        id = as_integer(choice.require("id"), choice.where("id"), 0, INT32_MAX)
        if id in chosen:
            raise InvalidRequest(f"'lora' names adapter {id} twice", choice.where("id"))
        chosen[id] = as_number(choice.require("scale"), choice.where("scale"), -LORA_SCALE_MAX, LORA_SCALE_MAX)
    return tuple(chosen.items())


def as_token_ids(value: object, where: str) -> tuple[int, ...]:
    """A non-empty array of token ids; whether the vocabulary has them is for the engine to say."""
    ids = as_array(value, where)
    if not ids:
        raise InvalidRequest(f"'{where}' must not be empty", where)
    # the whole array at once first: it may hold a context's worth of ids
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) <= INT32_MAX:
        return tuple(ids)
    return tuple(as_integer(token, f"{where}[{i}]", 0, INT32_MAX) for i, token in enumerate(ids))
