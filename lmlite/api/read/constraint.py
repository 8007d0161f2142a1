"""Constraints on the answer: `response_format` and `grammar` become a `Grammar`, or are refused before a compiler runs.

Schemas and GBNF are read by the engine alone, which says what is wrong with them: two readings would differ, and in between
is where it hurts. What is looked at here is their size.
"""

from __future__ import annotations

import json
from typing import Any

from ...errors import InvalidRequest
from ...request import Grammar
from .fields import Fields, as_object, as_string

GRAMMAR_CHARS_MAX = 128 * 1024
"""Characters of a grammar or of a schema's text: the largest published tool grammars have a third of that."""


def parse_constraint(fields: Fields) -> Grammar | None:
    """`json_schema` is llama.cpp's own, beside OpenAI's `response_format`."""
    grammar = fields.string("grammar")
    form = fields.object("response_format")
    constraint = None if form is None else parse_format(form, "json_schema")
    schema = fields.object("json_schema")
    if schema is not None:
        if constraint is not None:
            raise InvalidRequest("'json_schema' and 'response_format' exclude each other", "json_schema")
        constraint = Grammar("json_schema", spell_schema(schema.values, "json_schema"))
    if not grammar:
        return constraint
    if constraint is not None:
        raise InvalidRequest("'grammar' and a schema of the answer exclude each other", "grammar")
    check_gbnf(grammar, "grammar")
    return Grammar("gbnf", grammar)


def parse_format(form: Fields, holder: str | None = None) -> Grammar | None:
    """OpenAI's word for what an answer is to be: its schema is in the field `holder`, if that is named, and else beside."""
    form.require("type")
    kind = form.choice("type", ("text", "json_object", "json_schema"))
    if kind == "text":
        return None
    strict = False
    if kind == "json_object":
        where = form.where("schema")
        schema = form.get("schema") or {"type": "object"}
    else:
        inner = form if holder is None else form.require_object(holder)
        where = inner.where("schema")
        schema = inner.require("schema")
        strict = inner.get("strict") is True
    return Grammar("json_schema", spell_schema(as_object(schema, where), where), strict)


def spell_schema(schema: Any, where: str) -> str:
    """The schema as JSON text. What it says is read by the engine alone; its depth is bounded already, by the body's."""
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if len(text) > GRAMMAR_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {GRAMMAR_CHARS_MAX} characters", where)
    return text


def check_gbnf(text: str, where: str) -> None:
    as_string(text, where)
    if len(text) > GRAMMAR_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {GRAMMAR_CHARS_MAX} characters", where)
