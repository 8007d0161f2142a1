"""What ends an answer and how its tokens are chosen, over HTTP with the real engine: options that other servers have."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import Client

MODEL = "lmlite-tiny"
PROMPT = "The weather in Turin is"
QUESTION = {"role": "user", "content": "What is 3 + 4?"}


def complete(tiny: Client, **more: Any) -> dict[str, Any]:
    answer = tiny.post("/v1/completions", {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 24, **more})
    assert answer.status == 200, answer.body
    choice: dict[str, Any] = answer.json["choices"][0] | {"n": answer.json["usage"]["completion_tokens"]}
    return choice


def salts() -> tuple[str, str]:
    """Of two requests that share their cached prompts with nobody."""
    return uuid4().hex, uuid4().hex


def tokens_of(tiny: Client, text: str) -> list[int]:
    ids: list[int] = tiny.post("/v1/tokenize", {"model": MODEL, "content": text, "parse_special": True}).json["tokens"]
    return ids


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(tiny: Client) -> None:
    whole = complete(tiny, logprobs=0, ignore_eos=True)
    said = whole["logprobs"]["tokens"]
    place = next(i for i in range(3, 24) if said[i] not in said[:i])
    (token,) = tokens_of(tiny, said[place])
    ended = complete(tiny, ignore_eos=True, stop_token_ids=[token])
    assert ended["text"] == "".join(said[:place]) and ended["finish_reason"] == "stop"
    assert complete(tiny, ignore_eos=True, stop_token_ids=[])["text"] == whole["text"]
    put_off = complete(tiny, ignore_eos=True, stop_token_ids=[token], min_tokens=place + 2)
    assert put_off["n"] >= place + 2


def test_an_answer_has_the_tokens_that_it_must_have_before_it_ends(tiny: Client) -> None:
    (end,) = tokens_of(tiny, "<|im_end|>")
    eager = {"logit_bias": {str(end): 100}}
    assert complete(tiny, **eager)["n"] == 1
    later = complete(tiny, **eager, min_tokens=7)
    assert later["n"] == 8 and later["finish_reason"] == "stop"
    text = complete(tiny, ignore_eos=True)["text"]
    stop = text[3:5]
    assert complete(tiny, ignore_eos=True, stop=stop)["n"] < 12
    assert complete(tiny, ignore_eos=True, stop=stop, min_tokens=12)["n"] >= 12


def test_a_grammar_at_its_end_ends_an_answer_that_should_be_longer(tiny: Client) -> None:
    ended = complete(tiny, grammar='root ::= "yes"', min_tokens=20)
    assert ended["text"] == "yes" and ended["finish_reason"] == "stop"


def test_an_answer_ends_some_time_after_its_first_line(tiny: Client) -> None:
    long = {"grammar": 'root ::= "a\\n" [a-z]{400}', "max_tokens": 500}
    assert complete(tiny, **long)["n"] > 100
    short = complete(tiny, **long, t_max_predict_ms=1)
    assert "\n" in short["text"] and short["n"] < 100 and short["finish_reason"] == "length"
    one_line = complete(tiny, grammar="root ::= [a-z]{60}", max_tokens=100, t_max_predict_ms=1)
    assert len(one_line["text"]) == 60


@pytest.mark.parametrize(
    "options",
    [
        {"top_n_sigma": 1.0},
        {"dynatemp_range": 0.5, "dynatemp_exponent": 1.5},
        {"samplers": ["top-k", "nucleus", "temp"]},
        {"samplers": ["temperature", "top_p", "penalties"]},
        {"samplers": ["top_k", "top_p", "infill"]},
        {"samplers": "edskypmxt"},
        {"samplers": []},
    ],
    ids=str,
)
def test_the_same_seed_chooses_the_same(tiny: Client, options: dict[str, Any]) -> None:
    """Neither finds anything in the cache: what was computed with other tokens differs in its last bits, and where all of the
    vocabulary is chosen from, that is enough for another token."""
    one, two = (complete(tiny, temperature=1.0, seed=7, cache_salt=salt, **options)["text"] for salt in salts())
    assert one == two and one


def test_samplers_decide_what_counts(tiny: Client) -> None:
    greedy = complete(tiny)["text"]
    assert complete(tiny, samplers=["top_k", "temperature"])["text"] == greedy
    assert complete(tiny, samplers=["temperature", "top_k"], temperature=5, top_k=1, seed=1)["text"] == greedy
    assert complete(tiny, samplers=["temperature"], temperature=5, top_k=1, seed=1)["text"] != greedy


# ---- reasoning -------------------------------------------------------------------------------------------------------


def reason(tiny: Client, **more: Any) -> tuple[str, str, int]:
    body = {"model": MODEL, "messages": [QUESTION], "temperature": 0, "max_tokens": 200, **more}
    answer = tiny.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    message = answer.json["choices"][0]["message"]
    count = answer.json["usage"]["completion_tokens_details"]["reasoning_tokens"]
    return message.get("reasoning_content") or "", message["content"], count


THINK: dict[str, Any] = {"reasoning_effort": "low"}


def test_reasoning_ends_at_its_limit(tiny: Client) -> None:
    whole, _, n = reason(tiny, **THINK)
    assert n > 4
    short = ""
    for name in ("reasoning_budget", "thinking_budget_tokens", "reasoning_budget_tokens", "thinking_token_budget"):
        short, content, _ = reason(tiny, **THINK, **{name: 2})
        assert whole.startswith(short) and len(short) < len(whole)
        assert content and "think>" not in content
    assert reason(tiny, **THINK, reasoning_budget=-1)[0] == whole
    assert reason(tiny, **THINK, reasoning_budget=10_000)[0] == whole
    assert reason(tiny, **THINK, thinking={"type": "enabled", "budget_tokens": 2})[0] == short
    assert reason(tiny, reasoning={"effort": "low", "max_tokens": 2})[0] == short


def test_a_budget_of_nothing_is_no_reasoning(tiny: Client) -> None:
    for asked in ({}, THINK):
        reasoning, content, _ = reason(tiny, reasoning_budget=0, **asked)
        assert not reasoning.strip() and content


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [99_999_999]}, "stop_token_ids"),
        ({"stop_token_ids": list(range(1025))}, "stop_token_ids"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"samplers": ["top_k", "adaptive_p"]}, "samplers[1]"),
        ({"samplers": "kz"}, "samplers[1]"),
        ({"samplers": 3}, "samplers"),
        ({"samplers": ["top_k"] * 33}, "samplers"),
        ({"top_n_sigma": "1"}, "top_n_sigma"),
        ({"dynatemp_range": -1}, "dynatemp_range"),
        ({"reasoning_budget": -2}, "reasoning_budget"),
        ({"thinking_budget_tokens": "some"}, "thinking_budget_tokens"),
        ({"reasoning_budget_message": "enough"}, "reasoning_budget_message"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_named(tiny: Client, options: dict[str, Any], param: str) -> None:
    refused = tiny.post("/v1/completions", {"model": MODEL, "prompt": PROMPT, **options})
    assert refused.status == 400 and refused.json["error"]["param"] == param
