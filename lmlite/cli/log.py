"""`lmlite log stream`: what models are told and say, and what the server and its engines log, as it happens."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .client import Client, add_flags
from .terminal import escaped, printable, put, say, style

LEVEL_STYLES: Final[Mapping[str, str]] = {"error": "red", "warn": "yellow", "debug": "dim"}
STAT_WORDS: Final[Mapping[str, str]] = {
    "stopReason": "Stop Reason",
    "tokensPerSecond": "Tokens/Second",
    "timeToFirstTokenSec": "Time to First Token (s)",
    "promptTokensCount": "Prompt Tokens",
    "predictedTokensCount": "Predicted Tokens",
    "totalTokensCount": "Total Tokens",
    "totalDraftTokensCount": "Draft Tokens",
    "acceptedDraftTokensCount": "Accepted Draft Tokens",
}
"""The statistics that are shown, in this order."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    log = commands.add_parser("log", help="watch what models and the server do", allow_abbrev=False)
    actions = log.add_subparsers(dest="action", metavar="ACTION", required=True)
    stream = actions.add_parser(
        "stream",
        help="show it as it happens",
        description="Shows prompts as models see them and what they answer, or the server's log, until Ctrl-C. Nothing is "
        "kept: what happened before is not shown.",
        allow_abbrev=False,
    )
    sources = ("model", "server", "runtime")
    stream.add_argument("-s", "--source", choices=sources, default="model", help="what to watch (default: model)")
    stream.add_argument("--filter", type=types, metavar="input,output", help="of models: prompts, answers, or both")
    stream.add_argument("--stats", action="store_true", help="of models: speed and token counts of each answer")
    stream.add_argument("--json", action="store_true", help="one JSON object per line")
    add_flags(stream)
    stream.set_defaults(run=stream_log)


def types(text: str) -> str:
    words = [word.strip() for word in text.split(",")]
    if not words or not set(words) <= {"input", "output"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed, must be input, output or input,output")
    return ",".join(words)


def stream_log(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ends with the server, or when the user has seen enough: both are what was asked for."""
    query = f"?source={arguments.source}" + ("&stats=1" if arguments.stats else "")
    if arguments.filter is not None:
        query += f"&filter={arguments.filter}"
    client = Client.find(environ, arguments.host, arguments.port)
    try:
        for _, told in client.events("GET", f"/lmlite/log{query}", on_open=lambda: say(arguments, "Streaming logs.")):
            if arguments.json:
                print(json.dumps(told), flush=True)
            else:
                put("\n".join(block(told["timestamp"] / 1000, told["data"])))
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 0
    say(arguments, "The server has stopped.")
    return 0


def block(unix_s: float, data: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one event for a person, with nothing in them that a terminal would obey."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
    match data:
        case {"type": "server.log", "content": content, "level": level}:
            yield log_line(when, level, content)
        case {"type": "runtime.log", "message": message, "level": level}:
            pid = f"[{data['pid']}]" if "pid" in data else ""
            yield log_line(when, level, message, pid)
        case {"type": "log.lost", "lines": lines}:
            yield style(f"({lines} lines are missing here: they came faster than they were shown)", "yellow")
        case _:
            yield from prediction(when, data)


def log_line(when: str, level: str, text: str, more: str = "") -> str:
    shown = f"[{when}][{escaped(level).upper()}]{more} {printable(text)}"
    return style(shown, LEVEL_STYLES[level]) if level in LEVEL_STYLES else shown


def prediction(when: str, data: Mapping[str, Any]) -> Iterator[str]:
    """Of whatever it has, in LM Studio's order; what has several lines stands below its name."""
    yield style(f"timestamp: {when}", "dim")
    for key, value in data.items():
        match value:
            case {**pairs} if key == "stats":
                yield style("stats:", "bold")
                known = [name for name in STAT_WORDS if name in pairs]
                yield from (f"  {STAT_WORDS[name]}: {escaped(str(pairs[name]))}" for name in known)
            case str() if key in ("input", "output", "reasoning"):
                yield style(f"{key}:", "bold")
                yield printable(value)
            case str():
                yield f"{escaped(key)}: {escaped(value)}"
            case _:
                yield f"{escaped(key)}: {json.dumps(value)}"
    yield ""
