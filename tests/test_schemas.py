"""Schemas end to end: answers of the bundled model, hot enough to be nonsense, validate against what was asked for."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from lmlite.server import Server

MODEL = "lmlite-tiny"
HOT = 1.5
ENDED_MIN = 0.5
"""Of the answers, at least so many come to an end within their tokens: of random trees some grow without end."""


@pytest.fixture
def client(tiny_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: float = Field(gt=0, lt=100)


class Owner(BaseModel):
    name: str = Field(min_length=1, max_length=20)
    born: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(max_length=3)


class Tree(BaseModel):
    value: int = Field(multiple_of=5, ge=0, le=100)
    left: Tree | None
    right: Tree | None


class Point(BaseModel):
    x: float = Field(ge=0, le=1)
    tags: set[Literal["a", "b", "c"]] = Field(min_length=2)
    note: Annotated[str, Field(max_length=8)] | None


@pytest.mark.parametrize("model", [Owner, Tree, Point], ids=lambda model: str(model.__name__))
def test_answers_are_what_pydantic_asks_for(client: openai.OpenAI, model: type[BaseModel]) -> None:
    ended = 0
    for seed in range(20):
        try:
            answer = client.chat.completions.parse(
                model=MODEL,
                messages=[{"role": "user", "content": "Go on."}],
                response_format=model,
                temperature=HOT,
                max_tokens=900,
                seed=seed,
            )
        except openai.LengthFinishReasonError:
            continue
        ended += 1
        assert isinstance(answer.choices[0].message.parsed, model)
    assert ended >= ENDED_MIN * 20


SCHEMAS: list[Any] = [
    {"type": "string", "pattern": r"^\d{4}$"},
    {"type": "string", "pattern": '^"$'},
    {"type": "number", "minimum": 0, "maximum": 1},
    {
        "propertyNames": {"pattern": "^[a-c]{1,2}$"},
        "additionalProperties": {"type": "integer", "maximum": 99, "minimum": 0},
        "type": "object",
        "minProperties": 2,
        "maxProperties": 3,
    },
    {"type": "array", "items": {"type": "string", "format": "ipv4"}, "minItems": 1, "maxItems": 2},
    {"type": ["integer", "null"], "multipleOf": 7, "minimum": 1, "maximum": 1000},
    {
        "type": "object",
        "properties": {"a": True, "b": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
        "not": {"required": ["a"]},
    },
    {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 30}, {"type": "number", "minimum": 20, "maximum": 50}]},
    {
        "type": "array",
        "contains": {"const": 7},
        "items": {"type": "integer", "minimum": 0, "maximum": 20},
        "maxItems": 4,
        "uniqueItems": True,
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_answers_validate(client: openai.OpenAI, schema: Any) -> None:
    for seed in range(8):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Go on."}],
            response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
            temperature=HOT,
            max_tokens=300,
            seed=seed,
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "stop"
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        validator.validate(json.loads(choice.message.content or ""))


def ask(client: openai.OpenAI, schema: Any, strict: bool = False) -> Any:
    form: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": strict}}
    said: Any = [{"role": "user", "content": "Go on."}]
    return client.chat.completions.create(model=MODEL, messages=said, response_format=form, max_tokens=100)


def test_a_schema_that_nothing_satisfies_is_refused_by_the_engine(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no value satisfies"):
        ask(client, {"type": "integer", "minimum": 2, "maximum": 1})


def test_what_cannot_be_enforced_is_refused_if_strict_and_logged_if_not(
    client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    schema = {"type": "string", "maxLength": 3, "pattern": r"^(.)\1$"}
    with pytest.raises(openai.BadRequestError, match="pattern"):
        ask(client, schema, strict=True)
    ask(client, schema)
    assert any("not enforced: pattern" in record.getMessage() for record in caplog.records)
    ask(client, {"type": "string", "format": "no-such-format", "maxLength": 5}, strict=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["chat/completions", "responses"])
def test_a_header_names_what_of_the_schema_is_not_enforced(tiny_server: Server, dialect: str, stream: bool) -> None:
    def headers(schema: Any) -> Any:
        if dialect == "responses":
            rules: Any = {"text": {"format": {"type": "json_schema", "name": "it", "schema": schema}}, "input": "Go on."}
            rules["max_output_tokens"] = 20
        else:
            rules = {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}
            rules |= {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 20}
        body = json.dumps({"model": MODEL, "stream": stream, **rules}).encode()
        asked = urllib.request.Request(f"{tiny_server.url}/v1/{dialect}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            answer.read()
            return answer.headers

    assert "pattern" in headers({"type": "string", "maxLength": 3, "pattern": r"^(.)\1$"})["X-Lmlite-Unenforced"]
    assert "X-Lmlite-Unenforced" not in headers({"type": "string", "maxLength": 3})
