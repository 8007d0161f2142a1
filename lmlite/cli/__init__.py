"""The `lmlite` command: argv in, exit code out. Data goes to stdout, messages to stderr.

Exit codes: 0 done, 1 failed, 2 a wrong option (nothing was started), 130 interrupted. One module per group of commands.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, Final

from ..errors import ConfigError, LmError

GROUPS: Final = {
    "serve": {"serve": "run the server in the foreground"},
    "server": {
        "server": "start, stop or look at the server in the background",
        "daemon": "`server` in other words: up, down, status",
    },
    "status": {"status": "tell whether the server runs, and which models are loaded"},
    "models": {"ls": "list the models on disk", "ps": "list the models that are loaded"},
    "loading": {"load": "load a model", "unload": "unload a model"},
    "get": {"get": "download a model"},
    "importing": {"import": "put a GGUF file into the models folder"},
    "chat": {"chat": "talk to a model"},
    "log": {"log": "watch what models and the server do"},
    "token": {"token": "make, list, revoke or copy API tokens"},
    "mcp": {"mcp": "list, try, add or remove MCP servers, whose tools models can call"},
    "service": {"service": "print a unit for systemd or launchd"},
    "vendor": {"vendor": "copy this package into another program"},
    "runtime": {"runtime": "list the inference engine"},
    "version": {"version": "show the versions of lmlite and llama.cpp"},
    "completion": {"completion": "print a script that completes commands in your shell", "__complete": ""},
}
"""Modules and the commands that their `add(commands)` adds, with their help: parsers whose default `run` is called with the
parsed arguments and the environment, and returns the exit code. Only the module of the command at hand is imported, and
none to say which commands there are."""
FAILED, WRONG_OPTION, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    open_missing_streams()
    groups = [group for group, commands in GROUPS.items() if argv and argv[0] in commands]
    bare = all(word.startswith("-") for word in argv)
    parser = build_overview() if bare else build_parser(groups or GROUPS)
    if argv and not groups and not argv[0].startswith("-"):
        known = (name for commands in GROUPS.values() for name in commands if not name.startswith("_"))
        parser.error(f"there is no command {argv[0]!r}; there are {', '.join(known)}")
    arguments = parser.parse_args(argv)
    if arguments.version:
        from . import version

        print(version.as_text())
        return 0
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return WRONG_OPTION
    try:
        code: int = arguments.run(arguments, os.environ)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has seen enough
        forget_output()
        return FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except ConfigError as error:
        print(f"lmlite: {error}", file=sys.stderr)
        return WRONG_OPTION
    except LmError as error:
        print(f"lmlite: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        forget_output()
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"lmlite: {where}{error.strerror or error}", file=sys.stderr)
        return FAILED


def open_missing_streams() -> None:
    """Whoever closed one (`>&-`) wants nothing from it; the next file that is opened must not take its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def forget_output() -> None:
    """What could not be written, the interpreter must not try to write once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Formatter(argparse.HelpFormatter):
    """Finds out for itself how wide the terminal is. argparse makes one for each argument, and would import `shutil` for that,
    which brings all kinds of archives."""

    def __init__(
        self, prog: str, indent_increment: int = 2, max_help_position: int = 24, width: int | None = None, **more: Any
    ):
        super().__init__(prog, indent_increment, max_help_position, room() if width is None else width, **more)


def room() -> int:
    """As `shutil.get_terminal_size` has it, but for argparse's margin of two."""
    with contextlib.suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns - 2
    with contextlib.suppress(AttributeError, ValueError, OSError):
        if (columns := os.get_terminal_size(sys.__stdout__.fileno()).columns) > 0:  # type: ignore[union-attr]
            return columns - 2
    return 80 - 2


class Parser(argparse.ArgumentParser):
    """Of arguments that it does not know a command says so itself, with its own usage. Any number of files may stand between
    its options."""

    def __init__(self, **how: Any):
        super().__init__(**{"formatter_class": Formatter, **how})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        many = next((action for action in self._actions if action.nargs == "*" and not action.option_strings), None)
        at_end: list[str] = []
        if many is not None and args is not None and "--" in args:
            args, at_end = args[: args.index("--")], args[args.index("--") + 1 :]
        found, unknown = super().parse_known_args(args, namespace)
        if many is not None:
            # What argparse takes at once ends at the first option; what comes later is left to whoever wants it.
            later = [word for word in unknown if not word.startswith("-") or word == "-"]
            unknown = [word for word in unknown if word.startswith("-") and word != "-"]
            if later or at_end:
                setattr(found, many.dest, [*(getattr(found, many.dest, None) or ()), *later, *at_end])
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def build_parser(groups: Iterable[str] = tuple(GROUPS)) -> argparse.ArgumentParser:
    parser, commands = begin_parser()
    for group in groups:
        import_module(f".{group}", __name__).add(commands)
    return parser


def build_overview() -> argparse.ArgumentParser:
    """A parser of the options that are no command's; of commands it knows what they are for."""
    parser, commands = begin_parser()
    for helps in GROUPS.values():
        for name, help in helps.items():
            if help:
                commands.add_parser(name, help=help)
    return parser


def begin_parser() -> tuple[Parser, argparse._SubParsersAction[Parser]]:
    parser = Parser(
        prog="lmlite",
        description="LM Studio's, OpenAI's and Anthropic's APIs in front of local GGUF models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", "-V", "-v", action="store_true", help="show the versions of lmlite and llama.cpp")
    return parser, parser.add_subparsers(dest="command", metavar="COMMAND")
