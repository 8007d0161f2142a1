"""Constraints on the answer: `response_format` and `grammar` become a `Grammar`, or are refused before a compiler runs.

llama.cpp's schema compiler recurses per nesting level; what would trip it is refused here by depth, size and order. GBNF is
read by the engine alone, which says what is wrong with it: two readings would differ, and in between is where it hurts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from ...errors import InvalidRequest, InvalidType, OutOfRange
from ...request import Grammar
from .fields import Fields, as_object, as_string, clip
from .json_body import DEPTH_MAX

INT64_MAX = 2**63 - 1

GRAMMAR_CHARS_MAX = 128 * 1024
"""Characters of a grammar or of a schema's text: the largest published tool grammars have a third of that."""

ENUM_MAX = 4096
"""Values of all `enum` lists of a schema: each is an alternative that every token is tried against."""

OPTIONAL_PAIRS_MAX = 250_000
"""Pairs of optional properties, summed over the objects of a schema: the grammar says of each which others may follow it,
and half a million of such rules take the engine's compiler seconds. 500 in one object."""

REPEAT_MAX = 2000
"""Repetitions of one item that a schema may ask for."""

_BRACES = re.compile(r"\{([^}]*)\}?")
_REPETITION = re.compile(r"\s*([0-9]+)\s*(?:,\s*(?:([0-9]+)\s*)?)?")

_BOUNDS = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
    ("exclusiveMinimum", "maximum"),
    ("minimum", "exclusiveMaximum"),
    ("exclusiveMinimum", "exclusiveMaximum"),
)
_COUNTS = ("minLength", "minItems", "minProperties", "maxLength", "maxItems", "maxProperties")


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
    if kind == "json_object":
        where = form.where("schema")
        schema = form.get("schema") or {"type": "object"}
    else:
        inner = form if holder is None else form.require_object(holder)
        where = inner.where("schema")
        schema = inner.require("schema")
    return Grammar("json_schema", spell_schema(as_object(schema, where), where))


def spell_schema(schema: Any, where: str) -> str:
    """The schema as JSON text, checked. Its depth is bounded already, by the body's."""
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if len(text) > GRAMMAR_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {GRAMMAR_CHARS_MAX} characters", where)
    n_enum = n_pairs = 0
    for node in _objects(schema):
        _check_bounds(node, where)
        pattern = node.get("pattern")
        if isinstance(pattern, str):
            structure = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
            _check_nesting(structure, where)
            _check_repetitions(structure, where)
        enum = node.get("enum")
        n_enum += len(enum) if isinstance(enum, list) else 0
        n_pairs += _count_optional(node) ** 2
    if n_enum > ENUM_MAX:
        raise InvalidRequest(f"'{where}' must have at most {ENUM_MAX} enum values", where)
    if n_pairs > OPTIONAL_PAIRS_MAX:
        most = math.isqrt(OPTIONAL_PAIRS_MAX)
        raise InvalidRequest(f"'{where}' has too many optional properties: an object may have {most} of them", where)
    return text


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _count_optional(node: dict[str, Any]) -> int:
    properties, required = node.get("properties"), node.get("required")
    if not isinstance(properties, dict):
        return 0
    named = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    return len(properties.keys() - named)


def _check_bounds(node: dict[str, Any], where: str) -> None:
    for name in _COUNTS:
        count = node.get(name)
        if isinstance(count, (bool, float, str)):
            raise InvalidType(f"{where}: {name}", "an integer")
        if isinstance(count, int) and not 0 <= count <= REPEAT_MAX:
            raise OutOfRange(f"{where}: {name}", 0, REPEAT_MAX)
    for low, high in _BOUNDS:
        least, most = _read_bound(node.get(low), where), _read_bound(node.get(high), where)
        if least is not None and most is not None and least > most:
            raise InvalidRequest(f"'{where}' has a {low} of {least} above its {high} of {most}", where)


def _read_bound(value: Any, where: str) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and abs(value) > INT64_MAX:
        raise InvalidRequest(f"'{where}' has a bound beyond 64 bits", where)
    return value


def check_gbnf(text: str, where: str) -> None:
    as_string(text, where)
    if len(text) > GRAMMAR_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {GRAMMAR_CHARS_MAX} characters", where)


def _check_nesting(structure: str, where: str) -> None:
    depth = 0
    for character in re.findall(r"[()]", structure):
        depth += 1 if character == "(" else -1
        if depth > DEPTH_MAX:
            raise InvalidRequest(f"'{where}' nests parentheses deeper than {DEPTH_MAX} levels", where)


def _check_repetitions(structure: str, where: str) -> None:
    for inside in _BRACES.findall(structure):
        counts = _REPETITION.fullmatch(inside)
        if counts is None:
            continue  # a literal brace, or an error that the compiler names
        least = counts[1].lstrip("0") or "0"
        most = (counts[2] or least).lstrip("0") or "0"
        if max(len(least), len(most)) > len(str(REPEAT_MAX)) or not int(least) <= int(most) <= REPEAT_MAX:
            raise InvalidRequest(
                f"'{where}' has a repetition out of order or above {REPEAT_MAX}: {{{clip(inside)}}}", where
            )
