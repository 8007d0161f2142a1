"""Golden files in and out: JSON spells the internal types one to one, so that a case reads as a table of both sides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmlite.api.anthropic import messages as anthropic
from lmlite.api.dialect import Call, Origin, Reply
from lmlite.api.lmstudio import chat as lmstudio_chat
from lmlite.api.lmstudio import v0 as lmstudio_v0
from lmlite.api.openai import chat as openai_chat
from lmlite.api.openai import responses as openai_responses
from lmlite.api.openai import text as openai_text
from lmlite.card import Instance, ModelCard, Runtime
from lmlite.events import (
    DraftCounts,
    Event,
    Finished,
    Leased,
    LoadProgress,
    PromptProgress,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    Started,
    Stats,
    TextDelta,
    TextEnd,
    TextStart,
    TokenLogprob,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    TopToken,
)

GOLDEN = Path(__file__).parent / "golden"

PARSE = {
    "messages": anthropic.parse_messages,
    "openai_chat": openai_chat.parse_chat,
    "native": lmstudio_chat.parse_chat,
    "openai_text": openai_text.parse_completions,
    "openai_responses": openai_responses.parse_responses,
    "v0_chat": lmstudio_v0.parse_chat,
    "v0_text": lmstudio_v0.parse_completions,
}

CARD = ModelCard(
    id="falcon-7b",
    type="llm",
    publisher="acme",
    display_name="Falcon 7B",
    arch="llama",
    quantization="Q4_K_M",
    bits_per_weight=4,
    size_bytes=4_368_439_296,
    params_string="7B",
    max_context_length=32768,
    paths=(Path("/models/acme/falcon/falcon.gguf"),),
    trained_for_tool_use=True,
)
INSTANCE = Instance(
    id="falcon-7b",
    card=CARD,
    runtime=Runtime("llama.cpp-linux-x86_64-cpu", "0.1.0"),
    context_length=4096,
    parallel=4,
    kv_cells=8192,
    eval_batch_size=512,
    threads=8,
    flash_attention=True,
    gpu_layers=0,
    n_params=7_000_000_000,
    n_embd=4096,
    vocab_size=32000,
    load_ms=1234.5,
)
ORIGIN = Origin("k3v9x0qz7m1t5w8r2b6d4f", "5f0c1d2e3a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d", 1780000001)
LEASED = (Started("falcon-7b", loads=False), Leased(INSTANCE, load_s=None))
"""What comes before all that an engine says."""


def cases(folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of every golden file of a folder."""
    for path in sorted((GOLDEN / folder).glob("*.json")):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def spell_call(call: Call) -> dict[str, Any]:
    """A call as JSON values; what equals its default is left out, so that a case shows what the request changed."""
    turn = call.turn
    return {
        "model": turn.model,
        "stream": call.stream,
        "ttl_s": turn.load.ttl_s,
        "needs": turn.needs,
        **({"draft_model": turn.draft_model} if turn.draft_model else {}),
        **({"context_length": turn.load.context_length} if turn.load.context_length else {}),
        **({"effort": turn.effort} if turn.effort else {}),
        **({"follows": asdict(turn.follows)} if turn.follows else {}),
        **({"ignored": list(call.ignored)} if call.ignored else {}),
        **({"background": True} if call.background else {}),
        "runs": [_changes(run) for run in turn.runs],
    }


def _changes(value: Any) -> Any:
    """A dataclass as its class's name and the fields that differ from their defaults."""
    fields = asdict(value)
    spelled: dict[str, Any] = {"is": type(value).__name__}
    for name, field in value.__dataclass_fields__.items():
        current = getattr(value, name)
        if current == field.default or current == {}:
            continue
        nested = hasattr(current, "__dataclass_fields__")
        spelled[name] = _changes(current) if nested else json.loads(json.dumps(fields[name], default=bytes.hex))
    return spelled


def read_events(run: Sequence[dict[str, Any]]) -> list[Event]:
    return bracketed([_read_event(event) for event in run])


def bracketed(events: Sequence[Event]) -> list[Event]:
    """With the starts and the ends of the answer's parts, which an engine tells and a case leaves out."""
    told: list[Event] = []
    open_end: Event | None = None  # what will close the part that is open
    for event in events:
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallStart | Finished):
            start, end = _brackets(event)
            if open_end is not None and open_end != end:
                told.append(open_end)
            if start is not None and open_end != end:
                told.append(start)
            open_end = end
        told.append(event)
    return told


def _brackets(event: Event) -> tuple[Event | None, Event | None]:
    """Of the part that `event` belongs to: what opens it and what closes it."""
    if isinstance(event, TextDelta):
        return TextStart(), TextEnd()
    if isinstance(event, ReasoningDelta):
        return ReasoningStart(), ReasoningEnd()
    return None, ToolCallEnd(event.index) if isinstance(event, ToolCallStart) else None


def leased(runs: Sequence[Sequence[Event]]) -> list[list[Event]]:
    """The events of whole turns whose engines say these."""
    return [[*(LEASED if index == 0 else ()), *run] for index, run in enumerate(runs)]


def _read_event(event: dict[str, Any]) -> Event:
    if "text" in event:
        return TextDelta(event["text"], tuple(_read_token(token) for token in event.get("logprobs", ())))
    if "reasoning" in event:
        return ReasoningDelta(event["reasoning"])
    if "call" in event:
        return ToolCallStart(*event["call"])
    if "arguments" in event:
        return ToolCallArguments(*event["arguments"])
    if "finished" in event:
        return Finished(event["finished"], _read_stats(**event["stats"]), event.get("stop_string"))
    if "prompt" in event:
        return PromptProgress(*event["prompt"])
    return LoadProgress(event["load"])


def _read_stats(draft: list[int] | None = None, **stats: Any) -> Stats:
    return Stats(**stats, draft=None if draft is None else DraftCounts(*draft))


def _read_token(token: list[Any]) -> TokenLogprob:
    text, octets, logprob, top = token
    return TokenLogprob(text, bytes(octets), logprob, tuple(TopToken(t, bytes(b), p) for t, b, p in top))


def interleave(runs: Sequence[Sequence[Event]]) -> Iterator[tuple[int, Event]]:
    """The events of all runs as they might arrive: one of each in turn."""
    for step in range(max(map(len, runs))):
        for index, run in enumerate(runs):
            if step < len(run):
                yield index, run[step]


def stream_frames(reply: Reply, runs: Sequence[Sequence[Event]]) -> list[tuple[str | None, str]]:
    """Of a turn whose engines say these."""
    frames: list[tuple[str | None, str]] = []
    for index, event in (*((0, event) for event in LEASED), *interleave(runs)):
        frames += reply.stream(index, event)
    return frames + list(reply.end())
