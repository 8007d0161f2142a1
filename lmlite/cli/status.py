"""`lmlite status`: whether the server runs, and what is loaded, as `lms status` tells it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .client import Client, NotRunning, add_flags
from .models import instances_and_prompts, prompts_words
from .terminal import decimal_size, escaped, put, put_json, say, style


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    help = "tell whether the server runs, and which models are loaded"
    parser = commands.add_parser("status", help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_flags(parser)
    parser.set_defaults(run=show)


def show(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """A server that does not run is an answer, not a failure."""
    try:
        client = Client.find(environ, arguments.host, arguments.port)
        loaded, prompts = instances_and_prompts(client)
    except NotRunning:
        if arguments.json:
            put_json({"running": False, "models": []})
        else:
            put(f"Server: {style('OFF', 'yellow')}")
            say(arguments, "\nTo start it, run:\n\n    lmlite server start\n")
        return 0
    if arguments.json:
        keys = ("identifier", "model", "status", "sizeBytes", "contextLength")
        models: list[dict[str, Any]] = [{key: instance[key] for key in keys} for instance in loaded]
        kept = {} if prompts is None else {"promptCache": prompts}
        put_json({"running": True, "port": client.port, "models": models, **kept})
        return 0
    put(f"Server: {style('ON', 'green')} (port {client.port})\n")
    put("Loaded models:" if loaded else "No models are loaded.")
    for instance in loaded:
        put(f"  {escaped(instance['identifier'])} - {decimal_size(instance['sizeBytes'])}")
    if prompts is not None:
        put(f"\n{prompts_words(prompts)}")
    return 0
