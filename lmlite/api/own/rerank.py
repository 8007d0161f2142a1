"""`POST /v1/rerank`: a query and documents in, the documents' scores out, the best first.

The shape is Jina's, which Cohere's clients and llama.cpp's own server share. A score is what the model gives, a logit or
a probability: clients compare scores of one answer, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import InvalidRequest, InvalidType, MissingField, UnsupportedField
from ...request import Rerank, Score
from ..dialect import RerankCall
from ..read.fields import Fields, as_array, as_string
from ..read.sampling import parse_ttl
from ..spell import dumps

DOCUMENTS_MAX = 2048
"""As many as an embeddings request may have inputs."""
TOP_N_MAX = 2**31 - 1


def parse_rerank(body: dict[str, Any]) -> RerankCall:
    fields = Fields(body)
    if fields.get("rank_fields") is not None:
        raise UnsupportedField("rank_fields")
    query = as_string(fields.require("query"), "query")
    if not query:
        raise InvalidRequest("'query' must not be empty", "query")
    documents = _parse_documents(as_array(fields.require("documents"), "documents"))
    return RerankCall(
        model=fields.name("model"),
        rerank=Rerank(query, documents),
        ttl_s=parse_ttl(fields),
        reply=_make_reply(documents, fields.integer("top_n", 1, TOP_N_MAX), fields.boolean("return_documents")),
    )


def _parse_documents(given: Sequence[object]) -> tuple[str, ...]:
    """Strings, or objects with a `text`. An empty one is scored like any other: of many, some may be."""
    if not given:
        raise InvalidRequest("'documents' must not be empty", "documents")
    if len(given) > DOCUMENTS_MAX:
        raise InvalidRequest(f"'documents' must have at most {DOCUMENTS_MAX} entries", "documents")
    return tuple(_text_of(document, f"documents[{i}]") for i, document in enumerate(given))


def _text_of(document: object, where: str) -> str:
    if isinstance(document, str):
        return document
    if not isinstance(document, dict):
        raise InvalidType(where, "a string or an object with a text")
    if document.get("text") is None:
        raise MissingField(f"{where}.text")
    return as_string(document["text"], f"{where}.text")


def _make_reply(
    documents: Sequence[str], top_n: int | None, return_documents: bool
) -> Callable[[str, Sequence[Score]], str]:
    def reply(model: str, scores: Sequence[Score]) -> str:
        best = sorted(range(len(scores)), key=lambda i: (-scores[i].score, i))[:top_n]
        n_tokens = sum(score.n_tokens for score in scores)
        return dumps(
            {
                "model": model,
                "object": "list",
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
                "results": [_spell(i, scores[i], documents[i] if return_documents else None) for i in best],
            }
        )

    return reply


def _spell(index: int, score: Score, document: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": float(f"{score.score:.9g}")}
    if document is not None:
        result["document"] = {"text": document}
    return result
