"""`lmlite version`: what is installed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from .. import __version__
from ..errors import BuildError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    help = "show the versions of lmlite and llama.cpp"
    parser = commands.add_parser("version", help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="show them as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(json.dumps(as_json()) if arguments.json else as_text())
    return 0


def as_text() -> str:
    found = as_json()
    if "llama.cpp" not in found:
        return f"lmlite {found['version']}\nllama.cpp: {found['problem']}"
    return f"lmlite {found['version']}\nllama.cpp {found['llama.cpp']} ({found['backend']})"


def as_json() -> dict[str, str]:
    """`version` is lmlite's; `llama.cpp` (a commit), `backend` and `runtime` (a name that has both) are there if the native
    library is, else `problem`."""
    from ..core.engine import native

    try:
        built = native.build_info()
    except BuildError as error:
        return {"version": __version__, "problem": str(error)}
    names = {"llama.cpp": "llama_cpp", "backend": "backend", "runtime": "runtime"}
    return {"version": __version__, **{ours: built[name] for ours, name in names.items()}}
