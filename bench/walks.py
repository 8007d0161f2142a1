"""Random walks through random schemas: no dead end, every text that ends is valid, valid texts are accepted.

`python bench/walks.py PROGRAM [--walks 1000000] [--seed 0]`: PROGRAM is build/lmlite-tests. Schemas are made up of every
keyword that is enforced; of each, texts are walked byte by byte, hot enough to be nonsense. The judge is the `jsonschema`
package, with numbers as decimals. Valid values are written anew in several canonical forms, and changed at random: what the
judge then says of them, the matcher must say, too. Prints one JSON object, and each text that is judged otherwise; exit code 1
if an end is dead or invalid, an invalid text accepted, or more than one in a thousand valid ones refused (members in another
order, mostly).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from decimal import Decimal, DecimalException
from pathlib import Path
from typing import Any, Final

import jsonschema

NAMES: Final = ("a", "b", "c", "ab", "d", "é")
PATTERNS: Final = ("^a", "b$", "^[ab]*$", "^[a-c]{1,3}$", "^x-", r"^\d{2,4}$", "^(ab|ba)+$", "^[^z]{2}$", "^[^a]*$", "a[^z]*b",
                   "^[a-z]+-[a-z]+$")  # fmt: skip
"""Without what the judge reads otherwise than JavaScript: dots, and the classes of letters and blanks."""
FORMATS: Final = ("date", "ipv4", "uuid")
DEPTH: Final = 3
REFUSED: Final = "valid and refused"
REFUSED_MAX: Final = 0.001


class Schemas:
    """Random ones. Those that nothing satisfies are among them."""

    def __init__(self, rng: random.Random):
        self._rng = rng

    def root(self) -> Any:
        schema = self.any(DEPTH)
        return {"$defs": {"x": self.any(2), "y": self.typed(1)}} | (schema if isinstance(schema, dict) else {})

    def any(self, depth: int) -> Any:
        rng = self._rng
        chance = rng.random()
        if depth <= 0:
            return self.leaf()
        if chance < 0.05:
            return rng.choice((True, {}))
        if chance < 0.2:
            kind = rng.choice(("anyOf", "oneOf", "allOf"))
            schema: Any = {kind: [self.any(depth - 1) for _ in range(rng.randint(1, 3))]}
            return {**self.typed(depth - 1), **schema} if rng.random() < 0.4 else schema
        if chance < 0.26:
            return {**self.typed(depth), "not": self.any(depth - 1)}
        if chance < 0.31:
            return {**self.typed(depth), "if": self.any(depth - 1), "then": self.any(depth - 1), "else": self.any(depth - 1)}
        if chance < 0.34:
            return {"$ref": rng.choice(("#/$defs/x", "#/$defs/y"))}
        return self.typed(depth)

    def leaf(self) -> Any:
        rng = self._rng
        kind = rng.choice(("string", "number", "integer", "boolean", "null", "enum", "const"))
        if kind == "enum":
            return {"enum": rng.sample([*NAMES, 1, 2.5, True, None, [], {"a": 1}], rng.randint(1, 4))}
        if kind == "const":
            return {"const": rng.choice(("a", 3, None, False, ["a", 1], {"b": "x"}))}
        return self.of_type(kind, 0)

    def typed(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        kind = rng.choice(("object", "object", "array", "array", "string", "number", "integer"))
        schema = self.of_type(kind, depth)
        if rng.random() < 0.15:
            schema["type"] = rng.sample(("null", "boolean", "string", "integer", kind), 2)
        if rng.random() < 0.1:
            schema.pop("type")
        return schema

    def of_type(self, kind: str, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": kind}
        match kind:
            case "string":
                self._string(schema)
            case "number" | "integer":
                self._number(schema)
            case "array":
                self._array(schema, depth)
            case "object":
                self._object(schema, depth)
        return schema

    def _some(self, **chances: float) -> list[str]:
        return [name for name, chance in chances.items() if self._rng.random() < chance]

    def _string(self, schema: dict[str, Any]) -> None:
        rng = self._rng
        for name in self._some(minLength=0.2, maxLength=0.5, pattern=0.4, format=0.1):
            match name:
                case "minLength":
                    schema[name] = rng.randint(0, 3)
                case "maxLength":
                    schema[name] = rng.randint(1, 6)
                case "pattern":
                    schema[name] = rng.choice(PATTERNS)
                case _:
                    schema[name] = rng.choice(FORMATS)

    def _number(self, schema: dict[str, Any]) -> None:
        rng = self._rng
        for name in self._some(minimum=0.4, maximum=0.4, exclusiveMinimum=0.15, exclusiveMaximum=0.15, multipleOf=0.2):
            if name == "multipleOf":
                schema[name] = rng.choice((1, 2, 3, 5, 7, 10, 0.5, 0.25, 0.1, 1.5))
            else:
                schema[name] = rng.choice((rng.randint(-20, 20), rng.randint(0, 1000), rng.randint(-99, 99) / 10))

    def _array(self, schema: dict[str, Any], depth: int) -> None:
        rng = self._rng
        for name in self._some(items=0.7, prefixItems=0.25, minItems=0.3, maxItems=0.5, uniqueItems=0.25, contains=0.2,
                               unevaluatedItems=0.08):  # fmt: skip
            match name:
                case "items" | "contains" | "unevaluatedItems":
                    schema[name] = False if name != "contains" and rng.random() < 0.15 else self.any(depth - 1)
                case "prefixItems":
                    schema[name] = [self.any(depth - 1) for _ in range(rng.randint(1, 3))]
                case "uniqueItems":
                    schema[name] = True
                case _:
                    schema[name] = rng.randint(0, 3) if name == "minItems" else rng.randint(1, 5)
        if "contains" in schema:
            for name in self._some(minContains=0.3, maxContains=0.3):
                schema[name] = rng.randint(0, 2)

    def _object(self, schema: dict[str, Any], depth: int) -> None:
        rng = self._rng
        chances = {
            "properties": 0.8, "required": 0.4, "additionalProperties": 0.5, "patternProperties": 0.2, "propertyNames": 0.15,
            "minProperties": 0.2, "maxProperties": 0.3, "dependentRequired": 0.12, "dependentSchemas": 0.08,
            "unevaluatedProperties": 0.08,
        }  # fmt: skip
        for name in self._some(**chances):
            match name:
                case "properties":
                    schema[name] = {key: self.any(depth - 1) for key in rng.sample(NAMES, rng.randint(1, 4))}
                case "required":
                    schema[name] = rng.sample(NAMES, rng.randint(1, 3))
                case "additionalProperties" | "unevaluatedProperties":
                    schema[name] = rng.choice((False, self.any(depth - 1)))
                case "patternProperties":
                    schema[name] = {rng.choice(PATTERNS): self.any(depth - 1) for _ in range(rng.randint(1, 2))}
                case "propertyNames":
                    schema[name] = rng.choice(({"enum": list(NAMES)}, {"pattern": rng.choice(PATTERNS)}, {"maxLength": 2}))
                case "dependentRequired":
                    schema[name] = {rng.choice(NAMES): rng.sample(NAMES, 1)}
                case "dependentSchemas":
                    schema[name] = {rng.choice(NAMES): self.any(depth - 1)}
                case _:
                    schema[name] = rng.randint(0, 3) if name == "minProperties" else rng.randint(1, 4)


def is_number(_: Any, value: object) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def is_integer(_: Any, value: object) -> bool:
    return is_number(_, value) and value == int(value)  # type: ignore[call-overload]


Judge: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many({"number": is_number, "integer": is_integer}),
)
FORMAT_CHECKER: Final = jsonschema.Draft202012Validator.FORMAT_CHECKER


def read(text: str) -> Any:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), "a name comes twice"
        return dict(pairs)

    return json.loads(text, parse_float=Decimal, object_pairs_hook=members)


def spellings(value: Any) -> list[str]:
    """Canonical ones, of what has plain numbers."""

    def spelled(number: Decimal) -> float:
        if "e" in repr(float(number)) or Decimal(repr(float(number))) != number:
            raise ValueError("no plain number")
        return float(number)

    try:
        return [
            json.dumps(value, default=spelled),
            json.dumps(value, default=spelled, ensure_ascii=False, separators=(",", ":")),
            json.dumps(value, default=spelled, indent=2),
        ]
    except ValueError:
        return []


def changed(value: Any, rng: random.Random) -> Any:
    """Some part of it otherwise; members keep their order, and new ones come last."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.7:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = rng.choice(keys), value.copy()
        if rng.random() < 0.3:
            del copy[key]
        else:
            copy[key] = changed(copy[key], rng)
        return copy
    if isinstance(value, list) and rng.random() < 0.5:
        return [*value, *rng.sample(value, min(1, len(value))), rng.choice((1, "a", None))]
    if isinstance(value, dict) and rng.random() < 0.5:
        return value | {rng.choice(("zz", "x-a", "12", "ba")): rng.choice((1, "ab", None, []))}
    return rng.choice(("", "a", "ab", "aab", "12", "x-y", 0, 1, 3, -7, 100, Decimal("2.5"), True, None, [], {}, ["a"]))


class Bench:
    def __init__(self, program: Path, seed: int):
        self._rng = random.Random(seed)
        self._process = subprocess.Popen([program, "walks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.counts = dict.fromkeys(("schemas", "unsatisfiable", "walks", "ended", "cut", "judged", "refused", "wrong"), 0)

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().rstrip("\n")

    def wrong(self, why: str, schema: Any, text: str) -> None:
        self.counts["refused" if why == REFUSED else "wrong"] += 1
        print(json.dumps({"why": why, "schema": schema, "text": text}), flush=True)

    def accepts(self, text: str) -> bool:
        return self.ask("T" + text.encode().hex()) == "1"

    def schema(self, schema: Any, n_walks: int) -> None:
        verdict, _, why = self.ask("S" + json.dumps(schema)).partition(" ")
        self.counts["schemas"] += 1
        if verdict != "ok":
            self.counts["unsatisfiable"] += "no value satisfies" in why
            if not ("no value satisfies" in why or "$ref" in why):
                self.wrong(f"{verdict} {why}", schema, "")
            return
        judged = json.dumps(schema).replace('$"', r'\\Z"')  # the judge's own `$` lets a line break follow
        judge = Judge(json.loads(judged, parse_float=Decimal), format_checker=FORMAT_CHECKER)
        for _ in range(n_walks):
            end, _, spelled = self.ask(f"R {self._rng.getrandbits(31)} {self._rng.choice((0, 10, 40, 120))}").partition(" ")
            text = bytes.fromhex(spelled).decode(errors="replace")  # one that was cut may end within a character
            self.counts["walks"] += 1
            if end == "cut":
                self.counts["cut"] += 1
                continue
            if end == "dead":
                self.wrong("a dead end", schema, text)
                continue
            self.counts["ended"] += 1
            try:
                value = read(text)
                if not judge.is_valid(value):
                    self.wrong("an invalid end", schema, text)
                    continue
                self.look_around(judge, schema, value)
            except (AssertionError, ValueError) as e:
                self.wrong(repr(e), schema, text)
            except (DecimalException, RecursionError):
                pass  # more digits than the judge can count, or a reference that leads it round

    def look_around(self, judge: Any, schema: Any, value: Any) -> None:
        for text in spellings(value)[: self._rng.choice((0, 1, 3))]:
            self.counts["judged"] += 1
            if not self.accepts(text):
                self.wrong(REFUSED, schema, text)
        other = changed(value, self._rng)
        valid = judge.is_valid(other)
        for text in spellings(other)[:1]:
            self.counts["judged"] += 1
            if self.accepts(text) != valid:
                self.wrong(REFUSED if valid else "invalid and accepted", schema, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--walks", type=int, default=1_000_000)
    parser.add_argument("--per-schema", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bench = Bench(args.program, args.seed)
    schemas = Schemas(random.Random(args.seed))
    while bench.counts["walks"] < args.walks:
        bench.schema(schemas.root(), args.per_schema)
    print(json.dumps(bench.counts))
    sys.exit(bench.counts["wrong"] > 0 or bench.counts["refused"] > REFUSED_MAX * bench.counts["judged"])


if __name__ == "__main__":
    main()
