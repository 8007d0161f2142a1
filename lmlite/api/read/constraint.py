"""Constraints on the answer: `response_format`, `grammar` and their like become a `Grammar`, or are refused before a compiler
runs.

Schemas, GBNF and regular expressions are read by the engine alone, which says what is wrong with them: two readings would
differ, and in between is where it hurts. What is looked at here is their size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from ...errors import InvalidRequest, UnsupportedField
from ...request import Grammar
from .fields import Fields, as_array, as_boolean, as_object, as_string

GRAMMAR_CHARS_MAX = 128 * 1024
"""Characters of a grammar or of a schema's text: the largest published tool grammars have a third of that."""


CHOICES_MAX = 4096
"""Texts of a choice."""


def parse_constraint(fields: Fields) -> Grammar | None:
    """OpenAI's `response_format`, and what servers of open models have beside it: llama.cpp's `grammar` and `json_schema`,
    vLLM's `structured_outputs` and `guided_...`, SGLang's `regex` and `ebnf`. One of them at most."""
    found: dict[str, Grammar] = {}

    def add(of: Fields, name: str, read: Callable[[Any, str], Grammar | None]) -> None:
        if (value := of.get(name)) is not None and (grammar := read(value, of.where(name))) is not None:
            found[of.where(name)] = grammar

    add(fields, "response_format", lambda form, where: parse_format(Fields(as_object(form, where), where), "json_schema"))
    for name in ("json_schema", "guided_json"):
        add(fields, name, _parse_schema)
    for name in ("guided_regex", "regex"):
        add(fields, name, _parse_regex)
    add(fields, "guided_choice", _parse_choice)
    if (structured := fields.object("structured_outputs")) is not None:
        if unknown := set(structured.values) - STRUCTURED:
            where = structured.where(min(unknown))
            raise UnsupportedField(where, "is not served")
        add(structured, "json", _parse_schema)
        add(structured, "json_object", _parse_any_object)
        add(structured, "regex", _parse_regex)
        add(structured, "choice", _parse_choice)
        add(structured, "grammar", _parse_gbnf)
    for name in ("guided_grammar", "ebnf", "grammar"):
        add(fields, name, _parse_gbnf)
    if len(found) > 1:
        first, *_, last = found
        raise InvalidRequest(f"'{last}' and '{first}' exclude each other", last)
    return next(iter(found.values()), None)


STRUCTURED: Final = frozenset(("json", "json_object", "regex", "choice", "grammar"))
"""What vLLM's `structured_outputs` may hold here."""


def _parse_schema(value: Any, where: str) -> Grammar:
    """Some clients send a schema as its text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if len(value) <= GRAMMAR_CHARS_MAX else value
        except (ValueError, RecursionError):
            raise InvalidRequest(f"'{where}' is no JSON", where) from None
    return Grammar("json_schema", spell_schema(value if isinstance(value, bool) else as_object(value, where), where))


def _parse_any_object(value: Any, where: str) -> Grammar | None:
    return Grammar("json_schema", '{"type":"object"}') if as_boolean(value, where) else None


def _parse_regex(value: Any, where: str) -> Grammar | None:
    return Grammar("regex", _bounded(value, where)) if value != "" else None


def _parse_gbnf(value: Any, where: str) -> Grammar | None:
    return Grammar("gbnf", _bounded(value, where)) if value != "" else None


def _parse_choice(value: Any, where: str) -> Grammar | None:
    texts = [as_string(text, f"{where}[{i}]") for i, text in enumerate(as_array(value, where))]
    if len(texts) > CHOICES_MAX:
        raise InvalidRequest(f"'{where}' must have at most {CHOICES_MAX} texts", where)
    spelled = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return Grammar("choice", _bounded(spelled, where)) if texts else None


def _bounded(value: Any, where: str) -> str:
    text = as_string(value, where)
    if len(text) > GRAMMAR_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {GRAMMAR_CHARS_MAX} characters", where)
    return text


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
