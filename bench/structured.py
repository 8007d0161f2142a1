"""Claim: what pydantic asks for is what it gets. Twenty ordinary models through `chat.completions.parse` of the openai client,
each 100 times, answered by the bundled model at a temperature at which it says anything.

Exit code 1 if an answer that ended by itself does not validate, or fewer than 95 % of them end within 1,500 tokens.
`python bench/structured.py [--times 100] [--only NAME] [--tools]`; needs `openai` and `pydantic`. With `--tools` the models
are the arguments of a tool that has to be called.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import openai
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from lmlite.server import Server  # noqa: E402

MODEL: Final = "lmlite-tiny"
HOT: Final = 1.5
TOKENS: Final = 1500
ENDED_MIN: Final = 0.95

Short = Annotated[str, Field(min_length=1, max_length=20)]
Day = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")]


class Person(BaseModel):
    name: Short
    age: int = Field(ge=0, le=130)
    born: Day


class Event(BaseModel):
    title: str = Field(max_length=40)
    starts: date
    attendees: list[Short] = Field(max_length=5)


class Color(Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Point(BaseModel):
    x: float = Field(ge=-1, le=1)
    y: float = Field(ge=-1, le=1)
    color: Color = Color.RED


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float = Field(gt=0, le=100)


class Square(BaseModel):
    kind: Literal["square"]
    side: float = Field(gt=0, le=100)


class Drawing(BaseModel):
    shapes: list[Annotated[Circle | Square, Field(discriminator="kind")]] = Field(min_length=1, max_length=4)


class Leaf(BaseModel):
    value: int = Field(ge=0, le=9)
    left: Leaf | None
    right: Leaf | None


class Folder(BaseModel):
    name: Annotated[str, Field(pattern=r"^[a-z]{1,8}$")]
    inside: list[Folder] = Field(max_length=2)


class Tags(BaseModel):
    chosen: set[Literal["news", "sport", "art", "food"]] = Field(min_length=1)
    numbers: set[Annotated[int, Field(ge=1, le=50)]] = Field(min_length=2, max_length=6)


class Address(BaseModel):
    street: str = Field(max_length=30)
    zip: str = Field(pattern=r"^\d{5}(-\d{4})?$")
    country: str = Field(pattern="^[A-Z]{2}$")


class Customer(BaseModel):
    id: UUID
    home: Address
    work: Address | None = None
    phone: Annotated[str, Field(pattern=r"^\+?[0-9 ]{6,14}$")] | None = None


class Price(BaseModel):
    amount: float = Field(ge=0, multiple_of=0.01, le=10000)
    currency: Literal["EUR", "USD", "JPY"]


class Line(BaseModel):
    sku: str = Field(pattern=r"^[A-Z]{3}-\d{4}$")
    count: int = Field(gt=0, lt=1000)
    price: Price


class Invoice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int = Field(ge=1, le=999999)
    lines: list[Line] = Field(min_length=1, max_length=3)
    paid: bool


class Verdict(BaseModel):
    reasons: list[Annotated[str, Field(max_length=30)]] = Field(min_length=1, max_length=3)
    label: Literal["positive", "negative", "neutral"]
    confidence: float = Field(ge=0, le=1)


class Settings(BaseModel):
    retries: int = Field(default=3, ge=0, le=10)
    timeout: float | None = Field(default=None, gt=0, le=600)
    hosts: list[IPv4Address] = Field(max_length=3)


class Pair(BaseModel):
    first: tuple[int, Literal["a", "b"]]
    second: tuple[bool, bool, bool]


class Scores(BaseModel):
    by_name: dict[Annotated[str, Field(pattern="^[a-z]{2,5}$")], Annotated[int, Field(ge=0, le=100)]] = Field(max_length=4)


class Clock(BaseModel):
    time: str = Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    zone: str = Field(pattern=r"^(UTC|[+-]\d{2}:\d{2})$")


class Text(BaseModel):
    kind: Literal["text"]
    body: str = Field(max_length=60)


class Jump(BaseModel):
    kind: Literal["jump"]
    target: int | Literal["end"]
    when: Expression | None


class Expression(BaseModel):
    operator: Literal["and", "or", "not"]
    names: list[Annotated[str, Field(pattern="^[a-z_]{1,10}$")]] = Field(max_length=3)


class Script(BaseModel):
    steps: list[Annotated[Text | Jump, Field(discriminator="kind")]] = Field(max_length=4)


class Move(BaseModel):
    piece: Literal["K", "Q", "R", "B", "N", ""]
    square: str = Field(pattern="^[a-h][1-8]$")
    check: bool


class Version(BaseModel):
    version: str = Field(pattern=r"^\d{1,3}\.\d{1,3}\.\d{1,3}(-[a-z0-9]{1,8})?$")
    stable: bool
    notes: Annotated[str, Field(max_length=80)] | None


class Matrix(BaseModel):
    rows: list[Annotated[list[Annotated[int, Field(ge=-9, le=9)]], Field(min_length=3, max_length=3)]] = Field(
        min_length=3, max_length=3
    )


MODELS: Final[tuple[type[BaseModel], ...]] = (
    Person, Event, Point, Drawing, Leaf, Folder, Tags, Customer, Invoice, Verdict, Settings, Pair, Scores, Clock, Script, Move,
    Version, Matrix, Address, Price,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--only")
    parser.add_argument("--tools", action="store_true")
    arguments = parser.parse_args()
    told: dict[str, Any] = {}
    n_ended = n_invalid = 0
    models = [model for model in MODELS if arguments.only in (None, model.__name__)]
    with (
        tempfile.TemporaryDirectory() as home,
        Server(port=0, home=Path(home)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
        ThreadPoolExecutor(arguments.clients) as pool,
    ):

        def ask(model: type[BaseModel], seed: int) -> str:
            try:
                answer = client.chat.completions.parse(
                    model=MODEL,
                    messages=[{"role": "user", "content": "Go on."}],
                    response_format=model,
                    temperature=HOT,
                    max_tokens=TOKENS,
                    seed=seed,
                )
            except openai.LengthFinishReasonError:
                return "cut"
            except openai.APIError as e:
                return f"refused: {e}"
            except ValueError as e:
                return f"invalid: {e}"
            return "ended" if isinstance(answer.choices[0].message.parsed, model) else "invalid"

        def call(model: type[BaseModel], seed: int) -> str:
            try:
                answer = client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "Go on."}],
                    tools=[openai.pydantic_function_tool(model)],
                    tool_choice="required",
                    parallel_tool_calls=False,
                    temperature=HOT,
                    max_tokens=TOKENS,
                    seed=seed,
                )
            except openai.APIError as e:
                return f"refused: {e}"
            if answer.choices[0].finish_reason == "length":
                return "cut"
            calls = answer.choices[0].message.tool_calls or []
            try:
                (arguments,) = [made.function.arguments for made in calls if made.type == "function"]
                model.model_validate_json(arguments)
            except ValueError as e:
                return f"invalid: {e}"
            return "ended"

        for model in models:
            ends = list(pool.map(call if arguments.tools else ask, [model] * arguments.times, range(arguments.times)))
            told[model.__name__] = {"ended": ends.count("ended"), "cut": ends.count("cut")}
            wrong = [end for end in ends if end not in ("ended", "cut")]
            if wrong:
                told[model.__name__]["wrong"] = wrong[:3]
            n_ended += ends.count("ended")
            n_invalid += len(wrong)
            print(model.__name__, told[model.__name__], file=sys.stderr, flush=True)
    n = arguments.times * len(models)
    print(json.dumps({"bench": "structured", "answers": n, "ended": n_ended, "wrong": n_invalid, "models": told}, indent=1))
    sys.exit(n_invalid > 0 or n_ended < ENDED_MIN * n)


if __name__ == "__main__":
    main()
