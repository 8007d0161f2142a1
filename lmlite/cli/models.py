"""`lmlite ls` and `lmlite ps`: what is on disk and what is loaded, in LM Studio's words (contract section 8)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..errors import LmError
from .client import Client, NotRunning, add_flags
from .terminal import Cell, decimal_size, duration, escaped, put, put_json, say, style, table

LOCAL: Final = "Local"
"""The only device that models are on."""
STATUS_WORDS: Final = {"processingPrompt": "PROCESSING PROMPT"}

Entry = dict[str, Any]
"""A model, as `ls --json` tells it, or an instance, as `GET /lmlite/instances` does."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = commands.add_parser(
        "ls",
        help="list the models on disk",
        description="Lists the models on disk; with a server running also those that only it knows, and what is loaded.",
        allow_abbrev=False,
    )
    listing.add_argument("key", nargs="?", help="only this model and its quantizations")
    kind = listing.add_mutually_exclusive_group()
    kind.add_argument("--llm", action="store_true", help="only LLMs")
    kind.add_argument("--embedding", action="store_true", help="only embedding models")
    listing.add_argument("--variants", action="store_true", help="show the variants of each model")
    listing.add_argument("--detailed", action="store_true", help=argparse.SUPPRESS)  # LM Studio has it still
    listing.add_argument("--json", action="store_true", help="as JSON")
    add_flags(listing)
    listing.set_defaults(run=list_models)

    loaded = commands.add_parser(
        "ps", help="list the models that are loaded", description="Lists the loaded models.", allow_abbrev=False
    )
    loaded.add_argument("--json", action="store_true", help="as JSON")
    add_flags(loaded)
    loaded.set_defaults(run=list_loaded)


# ---- ls --------------------------------------------------------------------------------------------------------------


def list_models(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    models, loaded, notes = known_models(arguments, environ)
    if arguments.llm or arguments.embedding:
        models = [model for model in models if model["type"] == ("llm" if arguments.llm else "embedding")]
    if arguments.key is not None:
        models = of_one_model(arguments.key, models)
    if arguments.json:
        put_json(models)
    elif not models:
        say(arguments, "There are no such models." if arguments.llm or arguments.embedding else "You have no models.")
    else:
        show_models(models, loaded, arguments.variants or arguments.key is not None)
    if notes and not arguments.json and arguments.key is None:
        say(arguments, "\n".join(style(escaped(note), "yellow", stream=sys.stderr) for note in notes), "warn")
    return 0


def known_models(
    arguments: argparse.Namespace, environ: Mapping[str, str]
) -> tuple[list[Entry], set[str], Sequence[str]]:
    """All models, the keys of the loaded ones, and what is not among them. The disk is asked where no server runs and none
    was named."""
    try:
        client = Client.find(environ, arguments.host, arguments.port)
        told = client.get("/lmlite/models")
        loaded = {instance["model"] for instance in instances(client) if instance["status"] != "loading"}
        return told["models"], loaded, told.get("notes", ())
    except NotRunning:
        if arguments.host is not None or arguments.port is not None:
            raise
    return models_on_disk(environ)


def models_on_disk(environ: Mapping[str, str]) -> tuple[list[Entry], set[str], Sequence[str]]:
    import logging

    from ..api.own.models import spell
    from ..app.disk import open_catalog
    from ..config import gather

    logging.getLogger(__name__.partition(".cli")[0]).addHandler(logging.NullHandler())  # the notes say it
    catalog = open_catalog(gather({}, environ))
    return [spell(card) for card in catalog.cards()], set(), catalog.notes()


def instances(client: Client) -> list[Entry]:
    return instances_and_prompts(client)[0]


def instances_and_prompts(client: Client) -> tuple[list[Entry], dict[str, int] | None]:
    """The second is what the prompt cache has of the disk, where there is one."""
    told = client.get("/lmlite/instances")
    return told["instances"], told.get("promptCache")


def prompts_words(prompts: dict[str, int]) -> str:
    used, budget = decimal_size(prompts["usedBytes"]), decimal_size(prompts["budgetBytes"])
    return f"Prompt cache on the disk: {used} of {budget}"


def of_one_model(key: str, models: Sequence[Entry]) -> list[Entry]:
    """The model of that name; the name without a quantization stands for all of its quantizations."""
    wanted = key.casefold()
    found = [model for model in models if wanted in (model["modelKey"].casefold(), model["path"].casefold())]
    found = found or [model for model in models if model["modelKey"].casefold().partition("@")[0] == wanted]
    if not found:
        raise LmError(f'There is no model "{escaped(key)}". List those there are with: lmlite ls')
    return found


def show_models(models: Sequence[Entry], loaded: set[str], with_variants: bool) -> None:
    size = sum(model["sizeBytes"] for model in models)
    noun = "model" if len(models) == 1 else "models"
    put(f"\nYou have {len(models)} {noun}, taking up {decimal_size(size)} of disk space.")
    for title, type in (("LLM", "llm"), ("EMBEDDING", "embedding")):
        sound = [model for model in models if model["type"] == type and "problem" not in model]
        if sound:
            rows = [row for model in sound for row in model_rows(model, loaded, with_variants)]
            put("\n" + table((title, "PARAMS", "ARCH", "SIZE", "DEVICE", ""), rows))
    broken = [model for model in models if "problem" in model]
    if broken:
        rows = [
            (escaped(model["modelKey"]), decimal_size(model["sizeBytes"]), (escaped(model["problem"]), "red"))
            for model in broken
        ]
        put("\n" + table(("CANNOT BE LOADED", "SIZE", "REASON"), rows))
    put("")


def model_rows(model: Entry, loaded: set[str], with_variants: bool) -> list[tuple[Cell, ...]]:
    key, variants = model["modelKey"], model.get("variants") or []
    name = escaped(key)
    if model.get("aliases"):
        name += f" ({', '.join(map(escaped, model['aliases']))})"
    if len(variants) > 1 and not with_variants:
        name += f" ({len(variants)} variants)"
    senses = [word for word, key in (("sees", "vision"), ("hears", "hears")) if model.get(key)]
    if senses:
        name += f" ({', '.join(senses)})"
    mark: Cell = ("✓ LOADED", "green") if key in loaded else ""
    rows: list[tuple[Cell, ...]] = [
        (name, model.get("paramsString", ""), escaped(model["architecture"]), decimal_size(model["sizeBytes"]), LOCAL, mark)
    ]
    if with_variants:
        for variant in variants:
            selected = "selected" if variant == model.get("selectedVariant") else ""
            rows.append((f"  {escaped(variant)}", "", "", "", "", (selected, "dim")))
    return rows


# ---- ps --------------------------------------------------------------------------------------------------------------


def list_loaded(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    client = Client.find(environ, arguments.host, arguments.port)
    loaded, prompts = instances_and_prompts(client)
    if arguments.json:
        by_key = {model["modelKey"]: model for model in client.get("/lmlite/models")["models"]}
        put_json([spell_instance(instance, by_key.get(instance["model"])) for instance in loaded])
    elif not loaded:
        say(arguments, "No models are currently loaded.\n\nTo load a model, run:\n\n    lmlite load\n")
    else:
        head = ("IDENTIFIER", "MODEL", "STATUS", "SIZE", "CONTEXT", "PARALLEL", "THREADS", "DEVICE", "TTL")
        put("\n" + table(head, [instance_row(instance) for instance in loaded]) + "\n")
    if prompts is not None and not arguments.json:
        put(f"{prompts_words(prompts)}\n")
    return 0


def spell_instance(instance: Entry, model: Entry | None) -> Entry:
    """`ps --json`: what `ls --json` says of the model, and what is true of the instance. A model that is gone from the
    disk leaves what the instance knows."""
    known = model or {"type": instance["type"], "modelKey": instance["model"], "path": instance["path"]}
    return {
        **known,
        "sizeBytes": instance["sizeBytes"],
        "identifier": instance["identifier"],
        "ttlMs": instance["ttlMs"],
        "remainingTtlMs": instance["remainingTtlMs"],
        "lastUsedTime": instance["lastUsedTime"],
        "contextLength": instance["contextLength"],
        "status": instance["status"],
        "queued": instance["queued"],
        "parallel": None if instance["type"] == "embedding" else instance["parallel"],
        "threads": instance["threads"],
    }


def instance_row(instance: Entry) -> tuple[Cell, ...]:
    return (
        escaped(instance["identifier"]),
        escaped(instance["model"]),
        status_cell(instance),
        decimal_size(instance["sizeBytes"]),
        str(instance["contextLength"]),
        "" if instance["type"] == "embedding" else str(instance["parallel"]),
        str(instance["threads"] or ""),
        LOCAL,
        ttl_words(instance),
    )


def status_cell(instance: Entry) -> Cell:
    status = instance["status"]
    words = STATUS_WORDS.get(status, escaped(status).upper())
    if instance["queued"]:
        words += f" ({instance['queued']} queued)"
    return words if status == "idle" else (words, "cyan")


def ttl_words(instance: Entry) -> str:
    """`59m / 1h`: what is left of how much."""
    if instance["ttlMs"] is None:
        return ""
    whole = duration(instance["ttlMs"] / 1000)
    left = instance["remainingTtlMs"]
    return whole if left is None else f"{duration(left / 1000)} / {whole}"
