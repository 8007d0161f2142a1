"""Rerank requests in Jina's and Cohere's forms, scores out with the best first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmlite.api.own import rerank
from lmlite.errors import InvalidRequest
from lmlite.request import Rerank, Score

BODY = {"query": "q", "documents": ["a", "b", "c"]}
SCORES = [Score(-1.5, 3), Score(0.1, 4), Score(0.1, 5)]


def spelled(scores: list[Score], **more: Any) -> Any:
    return json.loads(rerank.parse_rerank({**BODY, **more}).reply("falcon-7b", scores))


def test_documents_are_strings_or_objects_with_a_text() -> None:
    body = {"model": "owl", "query": "q", "documents": ["a", {"text": "b", "id": 7}, ""], "ttl": 60}
    call = rerank.parse_rerank(body)
    assert (call.model, call.rerank, call.ttl_s) == ("owl", Rerank("q", ("a", "b", "")), 60)


def test_the_best_come_first_and_equals_in_their_order() -> None:
    text = rerank.parse_rerank(BODY).reply("falcon-7b", SCORES)
    assert text == (
        '{"model":"falcon-7b","object":"list","usage":{"prompt_tokens":12,"total_tokens":12},"results":['
        '{"index":1,"relevance_score":0.1},{"index":2,"relevance_score":0.1},{"index":0,"relevance_score":-1.5}]}'
    )


@pytest.mark.parametrize(("top_n", "indices"), [(1, [1]), (2, [1, 2]), (99, [1, 2, 0]), (None, [1, 2, 0])])
def test_top_n_cuts_the_list_and_not_the_usage(top_n: int | None, indices: list[int]) -> None:
    answer = spelled(SCORES, top_n=top_n)
    assert [result["index"] for result in answer["results"]] == indices
    assert answer["usage"]["total_tokens"] == 12


def test_documents_come_back_on_request() -> None:
    answer = spelled(SCORES, return_documents=True, documents=["a", {"text": "é"}, "c"])
    assert [result["document"] for result in answer["results"]] == [{"text": "é"}, {"text": "c"}, {"text": "a"}]


def test_a_score_has_the_digits_of_its_float() -> None:
    assert spelled([Score(0.10000000149011612, 1)] * 3)["results"][0]["relevance_score"] == 0.100000001


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"query": None}, "query"),
    ({"query": ""}, "query"),
    ({"query": ["q"]}, "query"),
    ({"documents": None}, "documents"),
    ({"documents": []}, "documents"),
    ({"documents": "a"}, "documents"),
    ({"documents": {"text": "a"}}, "documents"),
    ({"documents": ["a", 1]}, "documents[1]"),
    ({"documents": ["a", None]}, "documents[1]"),
    ({"documents": [["a"]]}, "documents[0]"),
    ({"documents": [{"title": "a"}]}, "documents[0].text"),
    ({"documents": [{"text": 1}]}, "documents[0].text"),
    ({"documents": ["a"] * 10_000}, "documents"),
    ({"top_n": 0}, "top_n"),
    ({"top_n": -1}, "top_n"),
    ({"top_n": 1.5}, "top_n"),
    ({"top_n": True}, "top_n"),
    ({"top_n": 10**30}, "top_n"),
    ({"return_documents": 1}, "return_documents"),
    ({"rank_fields": ["title"]}, "rank_fields"),
    ({"model": 1}, "model"),
    ({"ttl": -1}, "ttl"),
]


@pytest.mark.parametrize(("change", "param"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rerank.parse_rerank({**BODY, **change})
    assert caught.value.param == param
