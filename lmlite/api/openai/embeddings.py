"""`POST /v1/embeddings` and `/api/v0/embeddings`: texts or token ids in, vectors as numbers or base64 out.

`dimensions` takes so many of a vector's first numbers; whether the model has them is for the engine to see. Numbers come
spelled by the engine, in the digits that give back the same float32.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...errors import InvalidRequest, InvalidType
from ...request import INT32_MAX, Embed, Embedding
from ..dialect import EmbedCall
from ..read import unserved
from ..read.fields import Fields, as_string
from ..read.sampling import as_token_ids, parse_ttl
from ..read.unserved import refuse
from ..spell import dumps

INPUTS_MAX = 2048
"""OpenAI's limit, which clients split their batches by."""


def parse_embeddings(body: dict[str, Any]) -> EmbedCall:
    fields = Fields(body)
    refuse(fields, unserved.EMBEDDINGS)
    inputs = parse_inputs(fields.require("input"))
    encoding = fields.choice("encoding_format", ("float", "base64"))
    return EmbedCall(
        model=fields.name("model"),
        embed=Embed(inputs, encoding != "base64", fields.integer("dimensions", 1, INT32_MAX)),
        ttl_s=parse_ttl(fields),
        pieces=make_pieces(_spell_base64 if encoding == "base64" else bytes.decode),
    )


def parse_inputs(given: object) -> tuple[str | tuple[int, ...], ...]:
    """A string, an array of strings, an array of token ids, or an array of such arrays; none of them empty."""
    if isinstance(given, str):
        return (_check_text(given, "input"),)
    if not isinstance(given, list):
        raise InvalidType("input", "a string, an array of strings, or token ids")
    if not given:
        raise InvalidRequest("'input' must not be empty", "input")
    if isinstance(given[0], (str, list)) and len(given) > INPUTS_MAX:
        raise InvalidRequest(f"'input' must have at most {INPUTS_MAX} entries", "input")
    if isinstance(given[0], str):
        return tuple(_check_text(text, f"input[{i}]") for i, text in enumerate(given))
    if isinstance(given[0], list):
        return tuple(as_token_ids(ids, f"input[{i}]") for i, ids in enumerate(given))
    return (as_token_ids(given, "input"),)


def _check_text(value: object, where: str) -> str:
    text = as_string(value, where)
    if not text:
        raise InvalidRequest(f"'{where}' must not be empty", where)
    return text


def make_pieces(spell: Callable[[bytes], str]) -> Callable[[str, Sequence[Embedding]], Iterator[str]]:
    def pieces(model: str, vectors: Sequence[Embedding]) -> Iterator[str]:
        yield '{"object":"list","data":['
        for i, embedding in enumerate(vectors):
            comma = "," if i else ""
            yield f'{comma}{{"object":"embedding","embedding":{spell(embedding.vector)},"index":{i}}}'
        n_tokens = sum(embedding.n_tokens for embedding in vectors)
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        yield f'],"model":{dumps(model)},"usage":{dumps(usage)}}}'

    return pieces


def _spell_base64(vector: bytes) -> str:
    return f'"{b64encode(vector).decode()}"'
