"""Claim: a tool call that has to be made is made. By each of llama.cpp's chat templates the bundled model is asked for one at
a temperature at which it says anything.

`python bench/calls.py [--times 20] [--tokens 1000] [NAME ...]` prints one JSON object; the names choose templates. Arguments
are bounded by their schemas, so that only words around them could go on without an end. Exit code 1 if an answer has no call,
words beside it or arguments that do not validate, or is cut ahead of the first call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import jsonschema

from bench import peers
from lmlite.api.openai.chat import parse_chat
from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.engine.worker import Process
from lmlite.errors import LmError
from lmlite.events import Finished, TextDelta, ToolCallArguments, ToolCallStart
from lmlite.package import bundled_model
from lmlite.request import Sampling

HOT: Final = 2.0
CONTEXT: Final = 8192  # the longest prompt has 3,400 tokens
PARALLEL: Final = 8
UINT32: Final = 4  # GGUF's number for it

SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1, "maxLength": 20},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "note": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "maxLength": 40},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,6}$"}, "maxItems": 3},
        },
        "required": ["text"],
        "additionalProperties": False,
    },
    "clock": {"type": "object", "properties": {}, "additionalProperties": False},
}


def body(parallel: bool) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
    return {
        "messages": [{"role": "user", "content": "Go on."}],
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": parallel,
    }


async def answered(engine: Engine, parallel: bool, seed: int, tokens: int) -> str:
    run = parse_chat(body(parallel)).turn.runs[0]
    asked = replace(run, max_tokens=tokens, sampling=Sampling(HOT, top_k=0, top_p=1, min_p=0, seed=seed))
    content, reason = "", ""
    calls: list[list[str]] = []
    try:
        async for event in engine.run(asked):
            match event:
                case TextDelta(text):
                    content += text
                case ToolCallStart(_, name):
                    calls.append([name, ""])
                case ToolCallArguments(index, text):
                    calls[index][1] += text
                case Finished():
                    reason = event.reason
    except LmError as e:
        return f"refused: {e}"
    return verdict(content, calls, reason)


def verdict(content: str, calls: list[list[str]], reason: str) -> str:
    cut = reason == "maxPredictedTokensReached"
    if content:
        return f"words beside it: {content[:60]!r}"
    if not calls:
        return "cut ahead of a call" if cut else "no call"
    for name, arguments in calls[:-1] if cut else calls:
        try:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        except (ValueError, KeyError, jsonschema.ValidationError) as e:
            return f"wrong arguments: {name} {arguments[:80]} ({str(e)[:60]})"
    return "called, and cut" if cut else "called"


def roomy(folder: Path) -> Path:
    """The bundled model, said to have been trained for that context: some prompts do not fit its own."""
    data = bytearray(bundled_model().read_bytes())
    key = b"llama.context_length"
    at = data.index(key) + len(key)
    assert struct.unpack_from("<I", data, at) == (UINT32,)
    struct.pack_into("<I", data, at + 4, CONTEXT)
    path = folder / "roomy.gguf"
    path.write_bytes(data)
    return path


async def asked(model: Path, template: Path, times: int, tokens: int) -> Counter[str]:
    settings = LoadSettings(
        context_length=CONTEXT, threads=1, parallel=PARALLEL, chat_template=template.read_text(encoding="utf-8")
    )
    engine = await Engine.open(Process(), template.stem)
    try:
        await engine.load(LoadSpec((model,), settings))
        return Counter(await asyncio.gather(*(answered(engine, seed % 2 == 0, seed, tokens) for seed in range(times))))
    finally:
        await engine.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of templates' names; all if none is given")
    arguments = parser.parse_args()
    names = arguments.names or [""]
    all_ends: Counter[str] = Counter()
    wrong: dict[str, dict[str, int]] = {}
    files = [file for file in sorted(peers.templates().glob("*.jinja")) if any(name in file.stem for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        model = roomy(Path(folder))
        for file in files:
            ends = asyncio.run(asked(model, file, arguments.times, arguments.tokens))
            all_ends.update({end.split(":")[0]: n for end, n in ends.items()})
            if some := {end: n for end, n in ends.items() if not end.startswith("called")}:
                wrong[file.stem] = some
            print(file.stem, dict(ends), file=sys.stderr, flush=True)
    print(json.dumps({"bench": "calls", "templates": len(files), "ends": dict(all_ends), "wrong": wrong}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
