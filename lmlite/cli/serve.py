"""`lmlite serve`: runs one server until SIGTERM or SIGINT; its flags are the options of `config.py`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from ..card import ModelCard
from ..config import Config, Option, gather, options
from ..server import Service

EPILOG = """Every option is also an environment variable (--context-length: LMLITE_CONTEXT_LENGTH) and a key of
config.json in the home folder ("context_length": 4096). A flag wins over the variable, the variable over the file."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the server",
        description="Serve the models on this machine, or the bundled lmlite-tiny where there are none.",
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for option in options():
        add_option(parser, option)
    parser.set_defaults(run=run)


def add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Values stay texts here: `config.py` reads them, so that flag, variable and file are refused in the same words."""
    if option.positional:
        parser.add_argument(option.name, nargs="*", metavar="MODEL.gguf", help=option.help)
    elif option.kind.shape == "switch":
        parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=option.help)
    elif option.kind.shape == "many":
        help = f"{option.help}; may be given several times"
        parser.add_argument(option.flag, action="append", metavar=option.kind.metavar, help=help)
    else:
        help = f"{option.help} (default: {option.shown_default})"
        parser.add_argument(option.flag, metavar=option.kind.metavar, help=help)


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    names = {option.name for option in options()}
    given = {name: value for name, value in vars(arguments).items() if name in names and value != []}
    config = gather(given, environ)
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(serve(config))
    return 0


async def serve(config: Config) -> None:
    """Runs until a signal; the second one does not wait for running requests."""
    service = Service(config)
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.put_nowait, number)
    await service.open()
    print(f"lmlite is listening on {service.url}", flush=True)
    announcing = loop.create_task(announce(service))
    await signals.get()
    announcing.cancel()
    print("lmlite: stopping; a second signal ends running requests now", file=sys.stderr, flush=True)
    closing = loop.create_task(service.close())
    second = loop.create_task(signals.get())
    await asyncio.wait((closing, second), return_when=asyncio.FIRST_COMPLETED)
    if not closing.done():
        service.expire()
    second.cancel()
    await closing


async def announce(service: Service) -> None:
    """The models and a first thing to try, once the disk has been looked at."""
    cards = await service.cards()
    print(f"models: {', '.join(card.id if card.id.isprintable() else repr(card.id) for card in cards)}")
    if (card := worth_trying(cards, service.config.models)) is not None:
        print(f"try: {curl(service.url, card)}")
    sys.stdout.flush()


def worth_trying(cards: tuple[ModelCard, ...], named: tuple[Path, ...]) -> ModelCard | None:
    """A model of the command line before others, one that talks before one that does not."""
    files = {os.path.realpath(path) for path in named}
    sound = [card for card in cards if card.problem is None]
    sound.sort(key=lambda card: (os.path.realpath(card.paths[0]) not in files, card.type == "embedding"))
    return sound[0] if sound else None


def curl(url: str, card: ModelCard) -> str:
    """A command to be pasted into a shell."""
    path, asked = "/v1/chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'
    if card.type == "embedding":
        path, asked = "/v1/embeddings", '"input": "Hello!"'
    if card.reranks:
        path, asked = "/v1/rerank", '"query": "Hello!", "documents": ["a greeting", "a farewell"]'
    text = f'{{"model": {json.dumps(card.id)}, {asked}}}'.replace("'", "'\\''")
    return f"curl {url}{path} -H 'Content-Type: application/json' -d '{text}'"
