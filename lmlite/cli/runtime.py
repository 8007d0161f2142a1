"""`lmlite runtime ls`: the inference engine, of which there is one, built in."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from ..errors import LmError
from .terminal import put, put_json, table

FORMAT = "GGUF"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    runtime = commands.add_parser("runtime", help="list the inference engine", allow_abbrev=False)
    actions = runtime.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser(
        "ls",
        help="list it",
        description="Lists the inference engine. There is one: another comes with another build of lmlite.",
        allow_abbrev=False,
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=list_runtimes)


def list_runtimes(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from .version import as_json

    found = as_json()
    if "problem" in found:
        raise LmError(found["problem"])
    if arguments.json:
        put_json([{"name": found["runtime"], "version": found["llama.cpp"], "selected": True, "formats": [FORMAT.lower()]}])
    else:
        rows = [(f"{found['runtime']}@{found['llama.cpp'][:12]}", "\u2713", FORMAT)]
        put("\n" + table(("LLM ENGINE", "SELECTED", "MODEL FORMAT"), rows) + "\n")
    return 0
