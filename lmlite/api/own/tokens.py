"""What texts and conversations are as tokens: `POST /v1/tokenize` and `/v1/detokenize`, `/apply-template` and
`/v1/chat/completions/input_tokens`, in the shapes that llama.cpp's own server has for them.

Unlike there, control tokens in the text count as plain text unless `parse_special` asks otherwise: what a user's
words cost is the usual question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import MissingField
from ...records import dataclass
from ..read.fields import Fields, as_array
from ..read.sampling import as_token_ids
from ..spell import dumps


@dataclass(slots=True, frozen=True)
class TokenizeCall:
    """`reply` takes the token ids and the bytes of each."""

    model: str | None
    text: str
    add_special: bool
    parse_special: bool
    reply: Callable[[Sequence[int], Sequence[bytes]], str]


@dataclass(slots=True, frozen=True)
class DetokenizeCall:
    model: str | None
    tokens: tuple[int, ...]
    reply: Callable[[str], str]


def parse_tokenize(body: dict[str, Any]) -> TokenizeCall:
    """The text is in `content`, or in `text` or `input`, as other servers call it."""
    fields = Fields(body)
    given = [text for name in ("content", "text", "input") if (text := fields.string(name)) is not None]
    if not given:
        raise MissingField("content")
    return TokenizeCall(
        model=fields.name("model"),
        text=given[0],
        add_special=fields.boolean("add_special"),
        parse_special=fields.boolean("parse_special"),
        reply=_spell_pieces if fields.boolean("with_pieces") else _spell_tokens,
    )


def parse_detokenize(body: dict[str, Any]) -> DetokenizeCall:
    fields = Fields(body)
    tokens = as_array(fields.require("tokens"), "tokens")
    return DetokenizeCall(
        model=fields.name("model"),
        tokens=as_token_ids(tokens, "tokens") if tokens else (),
        reply=_spell_text,
    )


def _spell_tokens(tokens: Sequence[int], pieces: Sequence[bytes]) -> str:
    return dumps({"tokens": list(tokens)})


def _spell_pieces(tokens: Sequence[int], pieces: Sequence[bytes]) -> str:
    return dumps({"tokens": [{"id": id, "piece": _spell_piece(piece)} for id, piece in zip(tokens, pieces)]})


def _spell_piece(piece: bytes) -> str | list[int]:
    """Text where the token's bytes are whole characters, else the bytes."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


def spell_count(n_tokens: int) -> str:
    """OpenAI's shape of counting, of a chat request that is not answered."""
    return dumps({"object": "response.input_tokens", "input_tokens": n_tokens})


def spell_prompt(prompt: str, n_tokens: int) -> str:
    return dumps({"prompt": prompt, "input_tokens": n_tokens})


def _spell_text(text: str) -> str:
    return dumps({"content": text})
