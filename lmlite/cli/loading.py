"""`lmlite load` and `lmlite unload`, in LM Studio's words (contract section 8). A load is shown as it goes on."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from ..errors import LmError
from .client import Client, NotRunning, ServerError, add_flags
from .models import Entry, instances
from .terminal import Bar, binary_size, choose, decimal_size, escaped, is_interactive, put, put_json, say, style

SEPARATORS: Final = re.compile(r"[-_./@: ]+")
SHOWN_MATCHES: Final = 8
"""Of the models that a name might mean, in a refusal; on a terminal all are shown."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    load = commands.add_parser(
        "load",
        help="load a model",
        description="Loads a model, which then stays until it is unloaded. Starts the server if it is not running.",
        allow_abbrev=False,
    )
    load.add_argument("key", nargs="?", help="the model, or a part of its name")
    load.add_argument("--gpu", type=share, metavar="off|max|0..1", help="the share of its layers to keep on the GPU")
    load.add_argument("-c", "--context-length", type=at_least(1), metavar="N", help="tokens that one request may use")
    load.add_argument("--parallel", type=at_least(1), metavar="N", help="requests that are worked on at once")
    load.add_argument("--ttl", type=at_least(1), metavar="S", help="idle seconds until it leaves (default: its own, or never)")
    load.add_argument("--identifier", metavar="NAME", help="the name for requests to use (default: the model's key)")
    load.add_argument("--no-projector", action="store_true", help="without what it sees or hears with")
    load.add_argument("--estimate-only", action="store_true", help="tell the memory that it needs and load nothing")
    load.add_argument("--force", action="store_true", help="load it even if memory seems not to suffice")
    load.add_argument("--exact", action="store_true", help="take the key as it is, not as a part of a name")
    load.add_argument("--local", action="store_true", help=argparse.SUPPRESS)  # LM Studio's; there are no others here
    load.add_argument("-y", "--yes", action="store_true", help="ask nothing: of several models that match, take the first")
    load.add_argument("--json", action="store_true", help="tell the result as JSON")
    add_flags(load)
    load.set_defaults(run=load_model)

    unload = commands.add_parser(
        "unload", help="unload a model", description="Unloads a model; the one loaded if none is named.", allow_abbrev=False
    )
    unload.add_argument("identifier", nargs="?", help="the identifier that `lmlite ps` shows, or a part of it")
    unload.add_argument("-a", "--all", action="store_true", help="unload all models")
    add_flags(unload)
    unload.set_defaults(run=unload_model)


def at_least(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and low <= int(text[:16]):
            return int(text[:16])
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")

    return read


def share(text: str) -> str | float:
    if text in ("off", "max"):
        return text
    if re.fullmatch(r"0|1|[01]?\.[0-9]{1,9}", text) and float(text) <= 1:
        return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed, must be off, max or a number from 0 to 1")


# ---- load ------------------------------------------------------------------------------------------------------------


def load_model(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    client = running_server(arguments, environ, may_start=arguments.key is not None or is_interactive())
    models: list[Entry] = client.get("/lmlite/models")["models"]
    key = pick(client, models, arguments.key, exact=arguments.exact, yes=arguments.yes)
    if arguments.estimate_only:
        return tell_estimate(client, arguments, key)
    try:
        loaded = follow_load(client, load_body(arguments, key), escaped(key))
    except ServerError as error:
        if error.code == "insufficient_memory":
            raise LmError(f"{error.message}. Load it all the same with --force") from None
        raise
    if arguments.json:
        put_json(loaded)
        return 0
    size = next((model["sizeBytes"] for model in models if model["modelKey"] == key), None)
    done = f"Model loaded successfully in {loaded['load_time_seconds']:.2f}s."
    say(arguments, style(done, "green", stream=sys.stderr))
    if size is not None:  # as LM Studio has it, and as `ls` does
        say(arguments, f"({binary_size(size)}, {decimal_size(size)} on disk)")
    for warning in loaded.get("warnings", ()):
        say(arguments, style(f"Warning: {escaped(warning)}", "yellow", stream=sys.stderr))
    say(arguments, f'To use the model in the API/SDK, use the identifier "{escaped(loaded["instance_id"])}".')
    return 0


def running_server(arguments: argparse.Namespace, environ: Mapping[str, str], may_start: bool = True) -> Client:
    """The server of this home, started if need be, and if it may; one that was named must be running."""
    try:
        client = Client.find(environ, arguments.host, arguments.port)
        client.get("/health")
        return client
    except NotRunning:
        if arguments.host is not None or arguments.port is not None:
            raise
    if not may_start:
        raise LmError("Name the model to load: lmlite load MODEL. List those there are with: lmlite ls")
    from . import server

    if server.start(argparse.Namespace(), environ):
        raise LmError("The server could not be started.")
    return Client.find(environ)


def load_body(arguments: argparse.Namespace, key: str) -> dict[str, Any]:
    """What was not said is the server's to choose."""
    said = {name: getattr(arguments, name) for name in ("gpu", "context_length", "parallel", "ttl", "identifier")}
    body = {"model": key, **{name: value for name, value in said.items() if value is not None}}
    if arguments.no_projector:
        body["projector"] = False
    return {**body, "force": True} if arguments.force else body


def follow_load(client: Client, body: Mapping[str, Any], label: str) -> Entry:
    """Loads and shows how far it is. Leaving early (Ctrl-C) closes the connection, and nobody wants that load then."""
    with Bar(1.0, f"Loading {label}") as bar:
        for name, payload in client.events("POST", "/api/v1/models/load", {**body, "stream": True}):
            if name == "model_load.progress":
                bar.update(payload["progress"])
            elif name == "model_load.end":
                loaded: Entry = payload
                return loaded
    raise ServerError(502, "connection_lost", "the server ended the load without a word")


def tell_estimate(client: Client, arguments: argparse.Namespace, key: str) -> int:
    body = load_body(arguments, key)
    asked = {name: value for name, value in body.items() if name not in ("ttl", "identifier", "force")}
    estimate = client.post("/lmlite/estimate", asked)
    if arguments.json:
        put_json(estimate)
        return 0
    put(f"Model: {escaped(key)}")
    if estimate["gpu_total"] or estimate.get("gpu_available"):  # else there is none
        put(f"Estimated GPU Memory:   {binary_size(estimate['gpu_total'])}")
    put(f"Estimated Total Memory: {binary_size(estimate['total'])}")
    put(f"Compute Threads:        {estimate['threads']}")
    free = binary_size(estimate["available"])
    verdict = f"it fits, {free} are free." if estimate["fits"] else f"it does not fit, only {free} are free."
    put(f"\nEstimate: {style(verdict, 'green' if estimate['fits'] else 'red')}")
    return 0


# ---- which model -----------------------------------------------------------------------------------------------------


def pick(client: Client, models: Sequence[Entry], name: str | None, *, exact: bool = False, yes: bool = False) -> str:
    """The key of the model that `name` names, or is a part of the name of. Of several the user takes one, or `yes` the
    first. Raises `LmError` where nobody can be asked."""
    if name is not None:
        if (key := resolved(client, name)) is not None:
            return key
        if exact:
            raise LmError(f'There is no model "{escaped(name)}". List those there are with: lmlite ls')
    found = matching(name or "", [model for model in models if "problem" not in model])
    if not found:
        of_that_name = f' matches "{escaped(name)}"' if name else " can be loaded"
        raise LmError(f"No model{of_that_name}. List those there are with: lmlite ls")
    if len(found) == 1 or (yes and name is not None):
        return str(found[0]["modelKey"])
    return asked_for(found, name)


def asked_for(found: Sequence[Entry], name: str | None) -> str:
    if not is_interactive():
        listed = ", ".join(escaped(model["modelKey"]) for model in found[:SHOWN_MATCHES])
        listed += ", ..." if len(found) > SHOWN_MATCHES else ""
        if name is None:
            raise LmError(f"Name a model, one of: {listed}")
        raise LmError(f'"{escaped(name)}" matches several models: {listed}. Name one of them, or take the first with -y')
    choices = [f"{escaped(model['modelKey'])}  {decimal_size(model['sizeBytes'])}" for model in found]
    index = choose("Which model?", choices)
    if index is None:
        raise LmError("No model was chosen.")
    return str(found[index]["modelKey"])


def resolved(client: Client, name: str) -> str | None:
    """The key of the model that the server knows by `name`: aliases, paths, any case."""
    from urllib.parse import quote

    try:
        return str(client.get(f"/api/v0/models/{quote(name, safe='', errors='surrogateescape')}")["id"])
    except ServerError as error:
        if error.status == 404:
            return None
        raise


def matching(query: str, models: Sequence[Entry]) -> list[Entry]:
    """The models that have all words of `query` in their names, those that begin with it first; where there are none,
    those that have its letters in that order in their keys."""
    words = [word for word in SEPARATORS.split(query.casefold()) if word]
    found = [model for model in models if all(word in name_of(model) for word in words)]
    if not found:
        letters = "".join(words)
        found = [model for model in models if in_order(letters, model["modelKey"].casefold())]
    return sorted(found, key=lambda model: match_rank(query.casefold(), model["modelKey"].casefold()))


def name_of(model: Entry) -> str:
    return f"{model['publisher']}/{model['modelKey']} {model['path']}".casefold()


def in_order(letters: str, text: str) -> bool:
    rest: Iterator[str] = iter(text)
    return all(letter in rest for letter in letters)


def match_rank(query: str, key: str) -> tuple[bool, bool, int, str]:
    name = key.rpartition("/")[2]
    return not name.startswith(query), query not in key, len(key), key


# ---- unload ----------------------------------------------------------------------------------------------------------


def unload_model(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if arguments.all and arguments.identifier is not None:
        raise LmError("Name a model or say --all, not both.")
    client = Client.find(environ, arguments.host, arguments.port)
    loaded = instances(client)
    if arguments.all:
        return unload_all(client, arguments, identifiers(loaded))
    identifier = the_one_to_unload(identifiers(meant(client, arguments.identifier, loaded)), arguments.identifier)
    client.post("/api/v1/models/unload", {"instance_id": identifier})
    say(arguments, f'Model "{escaped(identifier)}" unloaded.')
    return 0


def unload_all(client: Client, arguments: argparse.Namespace, loaded: Sequence[str]) -> int:
    if not loaded:
        say(arguments, "No models to unload.")
        return 0
    for identifier in loaded:
        say(arguments, f'Unloading "{escaped(identifier)}"...')
        try:
            client.post("/api/v1/models/unload", {"instance_id": identifier})
        except ServerError as error:
            if error.status != 404:  # gone by itself meanwhile
                raise
    say(arguments, f"Unloaded {len(loaded)} {'model' if len(loaded) == 1 else 'models'}.")
    return 0


def identifiers(loaded: Sequence[Entry]) -> list[str]:
    return [str(instance["identifier"]) for instance in loaded]


def meant(client: Client, name: str | None, loaded: Sequence[Entry]) -> list[Entry]:
    """The instances that `name` may mean: the one of that name, those of the model of that name, or those that it is a part
    of the name of. All without a name. Raises `LmError` if it means none."""
    if name is None:
        return list(loaded)
    wanted = name.casefold()
    if same := [instance for instance in loaded if instance["identifier"].casefold() == wanted]:
        return same
    key = resolved(client, name)
    words = [word for word in SEPARATORS.split(wanted) if word]
    found = [instance for instance in loaded if instance["model"] == key] or [
        instance
        for instance in loaded
        if words and all(word in f"{instance['identifier']} {instance['model']}".casefold() for word in words)
    ]
    if not found:
        listed = f"loaded: {', '.join(map(escaped, identifiers(loaded)))}" if loaded else "none is loaded"
        raise LmError(f'No loaded model matches "{escaped(name)}"; {listed}')
    return found


def the_one_to_unload(loaded: Sequence[str], name: str | None = None) -> str:
    if not loaded:
        raise LmError("No models are currently loaded.")
    if len(loaded) == 1:
        return loaded[0]
    if not is_interactive():
        listed = ", ".join(escaped(identifier) for identifier in loaded)
        which = "Several models are loaded" if name is None else f'"{escaped(name)}" matches several loaded models'
        raise LmError(f"{which}: {listed}. Name one of them, or unload all with --all")
    index = choose("Which model?", [escaped(identifier) for identifier in loaded])
    if index is None:
        raise LmError("No model was chosen.")
    return loaded[index]
