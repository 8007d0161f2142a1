"""`lmlite vendor DIR`: a copy of the package, engine and all, for another program to bring along under a name of its own.

The package refers to itself by relative imports only, keeps nothing outside of itself and loads its library by its own
path: any number of copies, of any versions, work in one process.
"""

from __future__ import annotations

import argparse
import keyword
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .. import __version__
from ..core.engine import native
from ..errors import ConfigError, LmError
from ..package import ROOT

LEFT_OUT: Final = ("__pycache__",)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    help = "copy this package into another program"
    parser = commands.add_parser("vendor", help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR", help="the folder for it, of packages that the program brings along")
    parser.add_argument("--name", metavar="NAME", default="lmlite", help="what it is to be called there (default: lmlite)")
    parser.add_argument("--replace", action="store_true", help="put it in the place of one that is there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    name: str = arguments.name
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(f"--name: {name!r} is not the name of a package")
    native.engine_path()  # raises BuildError
    folder = Path(arguments.folder).expanduser()
    target = folder / name
    if target.exists() and not (arguments.replace and is_copy(target)):
        hint = "--replace puts another in its place" if is_copy(target) else "and is no copy of lmlite"
        raise LmError(f"{target} is there, {hint}.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as begun:
        copy = Path(begun) / "new"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if target.exists():
            os.rename(target, Path(begun) / "old")
        os.rename(copy, target)
    print(f"lmlite {__version__} is in {target}", file=sys.stderr)
    return 0


def is_copy(package: Path) -> bool:
    return (package / "core" / "engine" / "native.py").is_file() and (package / "package.py").is_file()
