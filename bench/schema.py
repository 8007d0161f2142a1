"""JSON schemas: how many are judged rightly, what they take to compile and per token, beside llguidance and xgrammar.

`python bench/schema.py SCHEMAS.jsonl.gz` with one object a line: `name`, `schema`, `tests` (each `valid` and `data`), as in
MaskBench; a text is `json.dumps(data)`. A schema is right if it is taken and all of its texts are judged as they should be.
Times are CPU time of one thread with the 151,936 tokens of Qwen2, in microseconds; prints one JSON object. `mask_us` is a
mask of all tokens, `token_us` what a sampler takes that tests a few candidates, `greedy_us` and `hot_us` what the choice takes
more than without a schema where the model knows nothing of JSON, at temperature 0 and at 1 without a cut.
llguidance (with numpy) and xgrammar are measured where this interpreter has them.
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
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench import peers  # noqa: E402

Judge = Callable[[str], tuple[bool, list[float], list[float]]]
"""Of a text: whether it is accepted, the time of each token and of each mask."""


TIMES: Final = ("compile_us", "token_us", "mask_us", "greedy_us", "hot_us")


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
    greedy_us: list[float] = field(default_factory=list)
    hot_us: list[float] = field(default_factory=list)

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
        counts = {name: getattr(self, name) for name in ("right", "taken", "valid_refused", "invalid_accepted")}
        return counts | {name: spread for name in TIMES if (spread := spread_of(getattr(self, name)))}


def spread_of(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    spread = {"mean": statistics.mean(values), "median": cuts[49], "p99": cuts[98], "max": max(values)}
    return {name: round(value, 1) for name, value in spread.items()}


class Ours:
    """The engine's own matcher, in a program of its own."""

    def __init__(self, program: Path) -> None:
        command = [program, peers.vocabulary()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, line: str) -> list[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().split()

    def compile(self, schema: Any, result: Result) -> Judge | None:
        verdict, us, *_ = self._ask("S" + json.dumps(schema))
        result.compile_us.append(float(us))
        if verdict != "ok":
            return None
        times = self._ask("W")
        bar = times.index("|")
        result.greedy_us += map(float, times[:bar])
        result.hot_us += map(float, times[bar + 1 :])
        return self._judge

    def _judge(self, text: str) -> tuple[bool, list[float], list[float]]:
        verdict, _, *times = self._ask("T" + text)
        bar = times.index("|")
        return verdict == "1", [float(t) for t in times[:bar]], [float(t) for t in times[bar + 1 :]]


class Tokens:
    """The tokens that all engines have: their bytes, empty where they are not shown."""

    def __init__(self, lines: list[str]) -> None:
        self.ends = [i for i, line in enumerate(lines) if line == "end"]
        self.hidden = [i for i, line in enumerate(lines) if not line or line == "end"]
        self.bytes = [b"" if line == "end" else bytes.fromhex(line) for line in lines]
        self._ids = {token: i for i, token in reversed(list(enumerate(self.bytes))) if token}
        self._longest = max(map(len, self.bytes))

    def split(self, text: bytes) -> list[int]:
        """The longest token first, at each place."""
        ids = []
        while text:
            size = next(n for n in range(min(self._longest, len(text)), 0, -1) if text[:n] in self._ids)
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids


def cpu_us() -> float:
    return time.thread_time_ns() / 1e3


class Guidance:
    """llguidance, over the same tokens."""

    def __init__(self, tokens: Tokens) -> None:
        llguidance = importlib.import_module("llguidance")
        masks = importlib.import_module("llguidance.numpy")

        self._lib, self._fill, self._tokens = llguidance, masks.fill_next_token_bitmask, tokens

        class Tokenizer:
            eos_token_id = tokens.ends[0]
            bos_token_id = None
            special_token_ids = tokens.hidden

            def __call__(self, text: str | bytes) -> list[int]:
                return tokens.split(text.encode() if isinstance(text, str) else text)

        own = Tokenizer()
        hidden = set(tokens.hidden)
        own.tokens = [b"\xff<%d>" % i if i in hidden else token for i, token in enumerate(tokens.bytes)]  # type: ignore[attr-defined]
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(own))
        self._mask = masks.allocate_token_bitmask(1, len(tokens.bytes))

    def compile(self, schema: Any, result: Result) -> Judge | None:
        started = cpu_us()
        try:
            grammar = self._lib.LLMatcher.grammar_from_json_schema(json.dumps(schema))
            compiled = self._lib.LLMatcher(self._tokenizer, grammar, log_level=0)
        except ValueError:
            return None
        finally:
            result.compile_us.append(cpu_us() - started)
        if compiled.is_error():
            return None

        def judge(text: str) -> tuple[bool, list[float], list[float]]:
            matcher = compiled.deep_copy()
            times = []
            for token in self._tokens.split(text.encode()):
                started = cpu_us()
                self._fill(matcher, self._mask, 0)
                times.append(cpu_us() - started)
                if not matcher.consume_token(token):
                    return False, [], times
            return matcher.is_accepting(), [], times

        return judge


class XGrammar:
    """xgrammar, over the same tokens, with white space as free as it gets."""

    def __init__(self, tokens: Tokens) -> None:
        self._lib, self._tokens = importlib.import_module("xgrammar"), tokens
        info = self._lib.TokenizerInfo(tokens.bytes, vocab_type=self._lib.VocabType.RAW, stop_token_ids=tokens.ends)
        self._compiler = self._lib.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._mask = self._lib.allocate_token_bitmask(1, len(tokens.bytes))

    def compile(self, schema: Any, result: Result) -> Judge | None:
        started = cpu_us()
        try:
            compiled = self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=True, strict_mode=False)
        except RuntimeError:
            return None
        finally:
            result.compile_us.append(cpu_us() - started)

        def judge(text: str) -> tuple[bool, list[float], list[float]]:
            matcher = self._lib.GrammarMatcher(compiled)
            times = []
            for token in self._tokens.split(text.encode()):
                started = cpu_us()
                matcher.fill_next_token_bitmask(self._mask)
                times.append(cpu_us() - started)
                if not matcher.accept_token(token):
                    return False, [], times
            return matcher.accept_token(self._tokens.ends[0]), [], times

        return judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemas", type=Path)
    parser.add_argument("--without", nargs="*", default=[], help="peers that are left out")
    args = parser.parse_args()
    folder = next(path.parent for path in ROOT.glob("build/native-*/build.ninja"))
    subprocess.run(["cmake", "--build", folder, "--target", "lmlite-schema-bench"], check=True, stdout=sys.stderr)
    program = folder / "lmlite-schema-bench"
    engines: dict[str, Any] = {"lmlite": Ours(program)}
    spelled = subprocess.run([program, peers.vocabulary(), "tokens"], check=True, stdout=subprocess.PIPE, text=True).stdout
    for name, peer in {"llguidance": Guidance, "xgrammar": XGrammar}.items():
        if name in args.without:
            continue
        try:
            engines[name] = peer(Tokens(spelled.splitlines()))
        except ImportError:
            print(f"{name} is not installed", file=sys.stderr)
    results = {name: Result() for name in engines}
    with gzip.open(args.schemas, "rt") as lines:
        cases = [json.loads(line) for line in lines]
    for case in cases:
        for name, engine in engines.items():
            results[name].add(case["tests"], engine.compile(case["schema"], results[name]))
    print(json.dumps({"schemas": len(cases), **{name: result.tell() for name, result in results.items()}}, indent=1))


if __name__ == "__main__":
    main()
