"""`lmlite serve`: runs one server in the foreground; its flags are the options of `config.py`.

SIGTERM, SIGINT and SIGHUP stop it in order (see `server.py`), a second one of them at once. It has its home folder for
itself, logs to the file there, and tells a service manager when it is ready.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..config import Config, Option, gather, options
from ..errors import ConfigError
from ..store.home import Home, Lock
from ..store.logfile import FORMAT, LogFile
from .notify import Notifier

if TYPE_CHECKING:
    from ..card import ModelCard
    from ..server import Service

log = logging.getLogger(__name__)

STDOUT, STDERR = 1, 2
BROKEN_SHOWN = 8
"""Files that are no models, told one by one."""
CLOSING_S = 10.0
"""After running requests had their time: engines end in well under this, or are killed."""
LM_STUDIO_FLAGS = {"host": ("--bind",), "port": ("-p",)}
"""What LM Studio's command line calls an option."""
DESCRIPTION = """Serve the models on this machine, or the bundled lmlite-tiny where there are none, to what speaks OpenAI's
API (/v1), Anthropic's (/v1/messages) or LM Studio's (/api/v0, /api/v1); GET / lists all paths. SIGTERM, SIGINT and SIGHUP
let running requests finish, for as long as --drain says; a second signal ends them. With --tls-cert SIGHUP reads it anew."""
EPILOG = """Every option is also an environment variable (--context-length: LMLITE_CONTEXT_LENGTH) and a key of
config.json in the home folder ("context_length": 4096). A flag wins over the variable, the variable over the file."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the server in the foreground",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add_options(parser)
    parser.set_defaults(run=run)


# ---- options ---------------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """All of `config.py`; the parser's `argument_default` must be SUPPRESS, so that only what was given is there."""
    for option in options():
        add_option(parser, option)
    parser.add_argument(
        "--cors", dest="allow_origin", action="append_const", const="*", help="let every web page call this server"
    )


def add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Values stay texts here: `config.py` reads them, so that flag, variable and file are refused in the same words."""
    flags = (option.flag, *LM_STUDIO_FLAGS.get(option.name, ()))
    if option.positional:
        parser.add_argument(option.name, nargs="*", metavar="MODEL.gguf", help=option.help)
    elif option.kind.shape == "switch":
        parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=option.help)
    elif option.kind.shape == "many":
        default = f"; default: {option.shown_default}" if option.default else ""
        help = f"{option.help}; may be given several times{default}"
        parser.add_argument(*flags, action="append", metavar=option.kind.metavar, help=help)
    else:
        help = f"{option.help} (default: {option.shown_default})"
        parser.add_argument(*flags, metavar=option.kind.metavar, help=help)


def given_options(arguments: argparse.Namespace) -> dict[str, object]:
    """What the command line says of the options, by name."""
    names = {option.name for option in options()}
    return {name: value for name, value in vars(arguments).items() if name in names and value != []}


# ---- the server ------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    import asyncio  # here and below: other commands need no server, and are quicker without

    config = gather(given_options(arguments), environ)
    home = Home(config.home)
    home.prepare()
    log_file = LogFile(home.log_file)
    with home.take(__version__, config.chosen(), daemon=log_file.has_stderr) as lock:
        open_log(config, log_file)
        asyncio.run(serve(config, lock, Notifier(environ)))
    return 0


def open_log(config: Config, log_file: LogFile) -> None:
    """To the file, and to stderr where that is not the file."""
    handlers: list[logging.Handler] = [log_file]
    if not log_file.has_stderr:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.addFilter(lambda record: record.name != __name__)  # this module has said it there in its own words
        handlers.append(terminal)
    level = logging.CRITICAL + 1 if config.log_level == "none" else config.log_level.upper()
    logging.basicConfig(level=level, format=FORMAT, handlers=handlers)


async def serve(config: Config, lock: Lock, notifier: Notifier) -> None:
    """Runs until a signal; the second one does not wait for running requests."""
    import asyncio

    from ..server import Service
    from ..wire.listening import inherited
    from . import tuning

    service = Service(config)
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, signals.put_nowait, number)
    if config.tls_cert is not None:
        loop.add_signal_handler(signal.SIGHUP, renew_certificate, service)
    await service.open(inherited(os.environ))
    lock.publish(service.port, service.url)
    say(STDOUT, f"lmlite is listening on {service.url}")
    log.info("lmlite %s is listening on %s, process %d", __version__, service.url, os.getpid())
    notifier.ready(f"listening on {service.url}")
    tuning.tune()
    tuning.settle()
    attendants = [
        loop.create_task(announce(service)),
        loop.create_task(notifier.keep_alive()),
        loop.create_task(tuning.give_memory_back()),
    ]
    await signals.get()
    for task in attendants:
        task.cancel()
    say(STDERR, "lmlite: stopping; a second signal ends running requests now")
    notifier.stopping(config.drain_delay + config.drain + CLOSING_S)
    closing = loop.create_task(service.close())
    second = loop.create_task(signals.get())
    await asyncio.wait((closing, second), return_when=asyncio.FIRST_COMPLETED)
    if not closing.done():
        service.expire()
    second.cancel()
    await closing
    log.info("stopped")


def renew_certificate(service: Service) -> None:
    """With a certificate, this is what SIGHUP means."""
    try:
        service.renew_certificate()
    except ConfigError as error:
        log.error("the certificate stays as it was: %s", error)
    else:
        log.info("the certificate was read again")


def stop_signals() -> list[signal.Signals]:
    """SIGHUP is a terminal that was closed; under nohup it is ignored, and stays so."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def say(descriptor: int, text: str) -> None:
    """One line, whatever has become of the reader: a closed pipe or a full disk stops no server."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{text}\n".encode(errors="backslashreplace"))


async def announce(service: Service) -> None:
    """The models and a first thing to try, once the disk has been looked at."""
    cards = await service.cards()
    sound = [shown(card) for card in cards if card.problem is None]
    say(STDOUT, f"models: {', '.join(sound) or 'none'}")
    broken = [card for card in cards if card.problem is not None]
    for one in broken[:BROKEN_SHOWN]:
        say(STDERR, f"lmlite: {shown(one)} cannot be loaded: {one.problem}")
    if len(broken) > BROKEN_SHOWN:
        say(STDERR, f"lmlite: {len(broken) - BROKEN_SHOWN} more cannot be loaded; lmlite ls tells why")
    if service.config.auth:
        say(STDOUT, "tokens: lmlite token create NAME makes one; export it as LM_API_TOKEN")
    if (card := worth_trying(cards, service.config.models)) is not None:
        say(STDOUT, f"try: {curl(service.url, card, service.config.auth)}")


def shown(card: ModelCard) -> str:
    return card.id if card.id.isprintable() else repr(card.id)


def worth_trying(cards: tuple[ModelCard, ...], named: tuple[Path, ...]) -> ModelCard | None:
    """A model of the command line before others, one that talks before one that does not."""
    files = {os.path.realpath(path) for path in named}
    sound = [card for card in cards if card.problem is None]
    sound.sort(key=lambda card: (os.path.realpath(card.paths[0]) not in files, card.type == "embedding"))
    return sound[0] if sound else None


def curl(url: str, card: ModelCard, auth: bool = False) -> str:
    """A command to be pasted into a shell. Of a certificate nothing is known but that it may be anybody's."""
    path, asked = "/v1/chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'
    if card.type == "embedding":
        path, asked = "/v1/embeddings", '"input": "Hello!"'
    if card.reranks:
        path, asked = "/v1/rerank", '"query": "Hello!", "documents": ["a greeting", "a farewell"]'
    text = f'{{"model": {json.dumps(card.id)}, {asked}}}'.replace("'", "'\\''")
    if url.startswith("unix:"):
        url = f"--unix-socket {shlex.quote(url.removeprefix('unix:'))} http://localhost"
    elif url.startswith("https:"):
        url = f"-k {url}"
    token = ' -H "Authorization: Bearer $LM_API_TOKEN"' if auth else ""
    return f"curl {url}{path}{token} -H 'Content-Type: application/json' -d '{text}'"
