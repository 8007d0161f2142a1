"""JSON schemas: how many are judged rightly, what they take to compile and per token, beside llguidance where it is installed.

`python bench/schema.py SCHEMAS.jsonl.gz` with one object a line: `name`, `schema`, `tests` (each `valid` and `data`), as in
MaskBench; a text is `json.dumps(data)`. A schema is right if it is taken and all of its texts are judged as they should be.
Times are of one thread at a vocabulary of 152 k made-up tokens, in microseconds; prints one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

Judge = Callable[[str], tuple[bool, list[float], list[float]]]
"""Of a text: whether it is accepted, the time of each token and of each mask."""


@dataclass
class Result:
    """What one engine makes of all schemas."""

    right: int = 0
    taken: int = 0
    valid_refused: int = 0
    invalid_accepted: int = 0
    compile_us: list[float] = field(default_factory=list)
    token_us: list[float] = field(default_factory=list)
    mask_us: list[float] = field(default_factory=list)

    def add(self, tests: list[dict[str, Any]], judge: Judge | None) -> None:
        if judge is None:
            return
        self.taken += 1
        good = True
        for test in tests:
            accepted, tokens, masks = judge(json.dumps(test["data"]))
            self.token_us += tokens
            self.mask_us += masks
            good = good and accepted == test["valid"]
            self.valid_refused += test["valid"] and not accepted
            self.invalid_accepted += accepted and not test["valid"]
        self.right += good

    def tell(self) -> dict[str, Any]:
        spread = {name: spread_of(getattr(self, name)) for name in ("compile_us", "token_us", "mask_us")}
        return {k: getattr(self, k) for k in ("right", "taken", "valid_refused", "invalid_accepted")} | spread


def spread_of(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    spread = {"mean": statistics.mean(values), "median": cuts[49], "p99": cuts[98], "max": max(values)}
    return {name: round(value, 1) for name, value in spread.items()}


class Ours:
    """The engine's own matcher, in a program of its own."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, line: str) -> list[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().split()

    def compile(self, schema: Any, result: Result) -> Judge | None:
        verdict, us, *_ = self._ask("S" + json.dumps(schema))
        result.compile_us.append(float(us))
        return self._judge if verdict == "ok" else None

    def _judge(self, text: str) -> tuple[bool, list[float], list[float]]:
        verdict, _, *times = self._ask("T" + text)
        bar = times.index("|")
        return verdict == "1", [float(t) for t in times[:bar]], [float(t) for t in times[bar + 1 :]]


class Guidance:
    """llguidance, over the same tokens."""

    def __init__(self, tokens: list[bytes]) -> None:
        llguidance = importlib.import_module("llguidance")
        masks = importlib.import_module("llguidance.numpy")

        self._lib, self._masks = llguidance, masks
        longest = {token: i for i, token in reversed(list(enumerate(tokens))) if token}
        longest_size = max(map(len, longest))

        class Tokenizer:
            eos_token_id = 2
            bos_token_id = 1
            special_token_ids = (0, 1, 2, 3)

            def __call__(self, text: str | bytes) -> list[int]:
                rest, ids = text.encode() if isinstance(text, str) else text, []
                while rest:
                    size = next(n for n in range(min(longest_size, len(rest)), 0, -1) if rest[:n] in longest)
                    ids.append(longest[rest[:size]])
                    rest = rest[size:]
                return ids

        own = Tokenizer()
        own.tokens = tokens  # type: ignore[attr-defined]
        self._split = own
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(own))
        self._mask = masks.allocate_token_bitmask(1, len(tokens))

    def compile(self, schema: Any, result: Result) -> Judge | None:
        started = time.perf_counter()
        grammar = self._lib.LLMatcher.grammar_from_json_schema(schema)
        matcher = self._lib.LLMatcher(self._tokenizer, grammar)
        result.compile_us.append((time.perf_counter() - started) * 1e6)
        if matcher.is_error():
            return None

        def judge(text: str) -> tuple[bool, list[float], list[float]]:
            matcher.reset()
            times = []
            for token in self._split(text):
                started = time.perf_counter()
                self._masks.fill_next_token_bitmask(matcher, self._mask, 0)
                times.append((time.perf_counter() - started) * 1e6)
                if not matcher.consume_token(token):
                    return False, [], times
            return matcher.is_accepting(), [], times

        return judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemas", type=Path)
    args = parser.parse_args()
    folder = next(path.parent for path in ROOT.glob("build/native-*/build.ninja"))
    subprocess.run(["cmake", "--build", folder, "--target", "lmlite-schema-bench"], check=True, stdout=sys.stderr)
    program = folder / "lmlite-schema-bench"
    engines: dict[str, Any] = {"lmlite": Ours(program)}
    try:
        spelled = subprocess.run([program, "tokens"], check=True, stdout=subprocess.PIPE, text=True).stdout
        engines["llguidance"] = Guidance([bytes.fromhex(line) for line in spelled.splitlines()])
    except ImportError:
        print("llguidance is not installed", file=sys.stderr)
    results = {name: Result() for name in engines}
    with gzip.open(args.schemas, "rt") as lines:
        cases = [json.loads(line) for line in lines]
    for case in cases:
        for name, engine in engines.items():
            results[name].add(case["tests"], engine.compile(case["schema"], results[name]))
    print(json.dumps({"schemas": len(cases), **{name: result.tell() for name, result in results.items()}}, indent=1))


if __name__ == "__main__":
    main()
