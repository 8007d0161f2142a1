"""Every option of lmlite, named once: flag, environment variable and config file key are derived from the field's name.

`context_length` is `--context-length`, `LMLITE_CONTEXT_LENGTH` and `"context_length"` in `$LMLITE_HOME/config.json`.
A flag wins over the environment, the environment over the file, the file over the default. A value that an option
cannot have raises `ConfigError`, which names the place that it came from and what is allowed.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from .errors import ConfigError
from .records import dataclass

DEFAULT_HOME = Path("~/.lmlite")
FILE_NAME = "config.json"
MAX_FILE_BYTES = 1 << 20
"""Far above any real config file; a mistaken `LMLITE_HOME` must not be read into memory whole."""

LOOPBACK = re.compile(r"localhost\.?|::1|(::ffff:)?127(\.[0-9]{1,3}){3}")
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,15}")
NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")
HEADER_TEXT = re.compile(r"[A-Za-z0-9._-]{0,64}")
SWITCH_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
LORA_SCALE_MAX = 100.0
CONTEXT_MAX = 1 << 24
PARALLEL_MAX = 64
BATCH_MAX = 1 << 14
EXPERTS_MAX = 1024
"""Of options of a load, whoever says them; at most what the engine takes."""
TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt")

T = TypeVar("T")


# ---- kinds of values -------------------------------------------------------------------------------------------------


class Refused(Exception):
    """A value that its option cannot have."""


@dataclass(slots=True, frozen=True)
class Kind:
    """How an option is read. `convert` takes a text or a JSON value and returns the value, or raises Refused."""

    allowed: str
    convert: Callable[[object], object]
    metavar: str
    words: tuple[tuple[str, int], ...] = ()
    shape: Literal["one", "many", "switch"] = "one"


@dataclass(slots=True, frozen=True)
class Option:
    name: str
    help: str
    kind: Kind
    default: object
    positional: bool = False

    @property
    def flag(self) -> str:
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "LMLITE_" + self.name.upper()

    @property
    def shown_default(self) -> str:
        """The default as a user would write it."""
        if isinstance(self.default, tuple):
            return ", ".join(map(str, self.default)) or "none"
        if self.default in ("", None):
            return "none"
        words = self.kind.words
        return next((word for word, number in words if number == self.default), f"{self.default}".removesuffix(".0"))

    def read(self, value: object, source: str) -> object:
        try:
            return self.kind.convert(value)
        except Refused:
            shown = value if isinstance(value, str) else repr(value)
            raise ConfigError(f"{source}: {shown[:200]!r} is not allowed, must be {self.kind.allowed}") from None


def whole(low: int, high: int, **words: int) -> Kind:
    """An integer between `low` and `high`, or one of `words`, which stand for a number."""

    def convert(value: object) -> int:
        if isinstance(value, str):
            if value in words:
                return words[value]
            value = int(value) if WHOLE_NUMBER.fullmatch(value) else None
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused
        if not low <= value <= high and value not in words.values():
            raise Refused
        return value

    allowed = " or ".join((f"a whole number from {low} to {high}", *words))
    return Kind(allowed, convert, "|".join(("N", *words)), tuple(words.items()))


def seconds(high: float) -> Kind:
    def convert(value: object) -> float:
        return to_number(value, 0, high)

    return Kind(f"seconds from 0 to {high:g}", convert, "S")


def one_of(*choices: str) -> Kind:
    def convert(value: object) -> str:
        if value not in choices:
            raise Refused
        return str(value)

    return Kind(" or ".join(choices), convert, "|".join(choices))


def level() -> Kind:
    """Of log records; Python's names, and `warn` as LM Studio's command line has it."""
    names = ("none", "error", "warning", "info", "debug")

    def convert(value: object) -> str:
        found = "warning" if value == "warn" else value
        if found not in names:
            raise Refused
        return str(found)

    return Kind(" or ".join((*names, "warn")), convert, "|".join(names))


def switch() -> Kind:
    def convert(value: object) -> bool:
        found = SWITCH_WORDS.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(found, bool):
            raise Refused
        return found

    return Kind("true or false", convert, "", shape="switch")


def text() -> Kind:
    def convert(value: object) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise Refused
        return value

    return Kind("a text", convert, "TEXT")


def header() -> Kind:
    """What can stand in a header."""

    def convert(value: object) -> str:
        if not isinstance(value, str) or not HEADER_TEXT.fullmatch(value):
            raise Refused
        return value

    return Kind("up to 64 letters, digits and -._", convert, "NAME")


def path() -> Kind:
    return Kind("a path", to_path, "DIR")


def own_path(shown: str = "FILE") -> Kind:
    """A path that stays one wherever it is read; none by default."""

    def convert(value: object) -> Path | None:
        return None if value == "" else Path(os.path.abspath(to_path(value)))

    return Kind("a path", convert, shown)


def paths() -> Kind:
    def convert(value: object) -> tuple[Path, ...]:
        return tuple(to_path(item) for item in to_items(value, os.pathsep))

    return Kind(f"paths (in a variable: joined by '{os.pathsep}')", convert, "DIR", shape="many")


def names() -> Kind:
    def convert(value: object) -> tuple[str, ...]:
        items = to_items(value, ",")
        if not all(isinstance(item, str) and item and item.isprintable() for item in items):
            raise Refused
        return tuple(str(item) for item in items)

    return Kind("names (in a variable: joined by ',')", convert, "NAME", shape="many")


def hosts() -> Kind:
    """At least one name or address; brackets around one of IPv6 are left out."""

    def convert(value: object) -> tuple[str, ...]:
        items = [str(item).strip().removeprefix("[").removesuffix("]") for item in to_items(value, ",")]
        if not items or not all(item and item.isprintable() for item in items):
            raise Refused
        return tuple(dict.fromkeys(items))

    return Kind("addresses (in a variable: joined by ',')", convert, "ADDRESS", shape="many")


def proxies() -> Kind:
    """IP addresses and networks, or `unix`."""

    def convert(value: object) -> tuple[str, ...]:
        items = [str(item).strip() for item in to_items(value, ",")]
        try:
            return tuple(item if item == "unix" else str(ipaddress.ip_network(item, strict=False)) for item in items)
        except ValueError:
            raise Refused from None

    return Kind("IP addresses or networks, or 'unix' (in a variable: joined by ',')", convert, "ADDRESS", shape="many")


def pairs() -> Kind:
    def convert(value: object) -> tuple[tuple[str, str], ...]:
        items = [f"{k}={v}" for k, v in value.items()] if isinstance(value, Mapping) else to_items(value, ",")
        split = [item if isinstance(item, tuple) else str(item).partition("=")[::2] for item in items]
        if not all(len(pair) == 2 and all(pair) for pair in split):
            raise Refused
        return tuple((str(name), str(target)) for name, target in split)

    allowed = "NAME=MODEL (in a variable: joined by ','; in the file: an object)"
    return Kind(allowed, convert, "NAME=MODEL", shape="many")


def cache_types() -> Kind:
    """One type for K and V, or two joined by a comma."""

    def convert(value: object) -> str:
        types = to_items(value, ",")
        if not 1 <= len(types) <= 2 or not all(type in CACHE_TYPES for type in types):
            raise Refused
        return ",".join(map(str, types))

    return Kind(f"one of {', '.join(CACHE_TYPES)}, or two of them joined by ','", convert, "TYPE[,TYPE]")


def chat_template() -> Kind:
    """Nothing: the model's own. A path stays one wherever it is read; whether there is such a file or name the load says."""

    def convert(value: object) -> str:
        if not isinstance(value, (str, Path)) or not (value == "" or str(value).isprintable()):
            raise Refused
        file = Path(value).expanduser()
        is_file = len(file.parts) > 1 or file.suffix in TEMPLATE_SUFFIXES or (value != "" and file.is_file())
        return os.path.abspath(file) if is_file else str(value)

    return Kind("the name of a template that llama.cpp has, or a Jinja file", convert, "TEMPLATE")


def shares() -> Kind:
    def convert(value: object) -> tuple[float, ...]:
        return tuple(to_number(item, 0, 1e6) for item in to_items(value, ","))

    return Kind("numbers from 0 to 1e6 joined by ','", convert, "N,N,...")


def loras() -> Kind:
    def convert(value: object) -> tuple[tuple[Path, float], ...]:
        return tuple(to_lora(item) for item in to_items(value, os.pathsep))

    allowed = f"PATH or PATH=SCALE with a scale of at most {LORA_SCALE_MAX:g} (in a variable: joined by '{os.pathsep}')"
    return Kind(allowed, convert, "PATH[=SCALE]", shape="many")


def to_lora(value: object) -> tuple[Path, float]:
    """A path may itself have an equals sign: only a number after the last one is a scale."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return to_path(value[0]), to_number(value[1], -LORA_SCALE_MAX, LORA_SCALE_MAX)
    if isinstance(value, str):
        path, _, scale = value.rpartition("=")
        if path and NUMBER.fullmatch(scale):
            return to_path(path), to_number(scale, -LORA_SCALE_MAX, LORA_SCALE_MAX)
    return to_path(value), 1.0


def to_number(value: object, low: float, high: float) -> float:
    if isinstance(value, str):
        value = float(value) if NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refused
    return float(value)


def to_path(value: object) -> Path:
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise Refused
    return Path(value).expanduser()


def to_items(value: object, separator: str) -> list[object]:
    if isinstance(value, str):
        return [item for item in value.split(separator) if item]
    if isinstance(value, Path):
        return [value]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise Refused


# ---- the options -----------------------------------------------------------------------------------------------------


def option(default: T, kind: Kind, help: str, *, positional: bool = False) -> T:
    return field(default=default, metadata={"kind": kind, "help": help, "positional": positional})


SMALL: Final[Mapping[str, object]] = MappingProxyType(
    {
        "context_length": 2048,
        "parallel": 1,
        "max_queue": 16,
        "idle_cells": 0,  # the cache has room for one request and no more
        "spill": 0,
        "eval_batch_size": 128,  # buffers for a step are as large as its batch
        "ttl": 300.0,
        "history_size": 16,
    }
)
"""What options are with --small where nothing else is said of them."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Config:
    """The settings of one server. `gather` (command line) and `of` (Python API) build it of checked values."""

    models: tuple[Path, ...] = option((), paths(), "GGUF files to serve besides those in the folders", positional=True)

    # ---- where it listens
    host: tuple[str, ...] = option(("127.0.0.1",), hosts(), "an address to listen on; :: is every one, of IPv4 too")
    port: int = option(1234, whole(0, 65535), "port to listen on; 0 takes a free one")
    unix_socket: Path | None = option(None, own_path(), "a socket file to listen on, in place of an address and a port")
    tls_cert: Path | None = option(None, own_path(), "certificate chain, in PEM form: what listens on an address speaks TLS")
    tls_key: Path | None = option(None, own_path(), "the certificate's key, without a password")
    auth: bool = option(False, switch(), "ask callers for an API token, which `lmlite token create` makes")
    insecure_no_auth: bool = option(
        False, switch(), "allow an address that other machines can reach, although nothing asks them for a token"
    )
    allow_host: tuple[str, ...] = option((), names(), "a further name that clients may call this server by")
    allow_origin: tuple[str, ...] = option((), names(), "a web origin that may call this server; * for all")
    trusted_proxy: tuple[str, ...] = option(
        (), proxies(), "an address or network whose X-Forwarded-For, -Host and -Proto are believed; unix: of --unix-socket"
    )

    # ---- what it serves
    home: Path = option(DEFAULT_HOME, path(), "folder of config.json and models/")
    models_dir: tuple[Path, ...] = option((), paths(), "a further folder of publisher/repo/file.gguf")
    alias: tuple[tuple[str, str], ...] = option((), pairs(), "a further name for a model, NAME=MODEL; a * in NAME is any text")
    v0_extras: bool = option(True, switch(), "tell in /api/v0 what newer LM Studios add to it; off: its published keys")

    # ---- how a model is run
    small: bool = option(False, switch(), "take as little memory as there is use for: one request at a time, no spare cache")
    isolation: str = option("process", one_of("process", "thread"), "run each model in a child process or in a thread")
    context_length: int = option(4096, whole(0, CONTEXT_MAX), "tokens one request may use; 0: the model's own limit")
    parallel: int = option(4, whole(1, PARALLEL_MAX), "sequences that decode at once")
    max_queue: int = option(512, whole(1, 1 << 20), "requests that may wait for a model; those beyond get 429")
    kv_cells: int = option(0, whole(0, CONTEXT_MAX), "cells of the KV cache that all sequences share; 0: chosen by memory")
    idle_cells: int = option(-1, whole(0, CONTEXT_MAX, auto=-1), "cells that prompts nobody is working on may keep")
    spill: int = option(-1, whole(0, 1 << 20, auto=-1), "MiB of host memory for prompts that had to leave their cells")
    prompt_cache: int = option(
        0, whole(0, 1 << 30), "MiB of the disk for beginnings of prompts, which are found again after a restart; 0: none"
    )
    prompt_cache_dir: Path | None = option(None, own_path("DIR"), "the folder for them; none: prompt-cache in the home")
    kv_type: str = option("f16", cache_types(), "type of the KV cache, or of K and of V")
    eval_batch_size: int = option(512, whole(1, BATCH_MAX), "prompt tokens per batch")
    threads: int = option(0, whole(0, 512), "CPU threads per model, at most one per usable core; 0: as many as are of use")
    gpu_layers: int = option(-1, whole(0, 9999, max=-1, off=0), "layers to keep on the GPU")
    kv_offload: bool = option(True, switch(), "keep the KV cache of layers on the GPU there too")
    main_gpu: int = option(0, whole(0, 63), "the GPU that holds the whole model with --split-mode none")
    split_mode: str = option("layer", one_of("none", "layer", "row", "tensor"), "how several GPUs share a model")
    tensor_split: tuple[float, ...] = option((), shares(), "the share of each GPU; none: by free memory")
    flash_attention: str = option("auto", one_of("auto", "on", "off"), "use flash attention")
    mmap: bool = option(True, switch(), "map model files into memory, not read them")
    mlock: bool = option(False, switch(), "keep models in memory, never swapped out")
    experts: int = option(0, whole(0, EXPERTS_MAX), "experts per token of a mixture model; 0: as it was trained")
    chat_template: str = option("", chat_template(), "a chat template, not the models' own: a name of llama.cpp's, or a file")
    projector: bool = option(True, switch(), "load the projector beside a model, with which it sees or hears")
    lora: tuple[tuple[Path, float], ...] = option((), loras(), "a LoRA adapter for the models of its architecture")

    # ---- which models are loaded
    memory_guard: bool = option(True, switch(), "refuse to load a model that does not fit the memory that is free")
    jit: bool = option(True, switch(), "load a model when a request names it; off: only models that were told to load")
    ttl: float = option(3600.0, seconds(1e9), "idle time after which a model loaded by a request leaves; 0: never")
    auto_evict: bool = option(True, switch(), "a model loaded by a request makes the one before it leave")
    max_loaded: int = option(0, whole(0, 1024), "models (and embedding models) loaded by requests; 0: one, if auto-evict")

    # ---- what it keeps
    history_size: int = option(1024, whole(0, 1 << 30), "MiB of responses and chats that are kept; the oldest go; 0: none")
    history_days: int = option(90, whole(0, 36500), "days that a response or chat is kept since it was made; 0: none are")

    # ---- pictures and sound
    fetch_media: bool = option(False, switch(), "fetch pictures and sound that requests name by URL, of public addresses only")

    # ---- servers of tools (MCP)
    mcp: bool = option(False, switch(), "let requests have models call the tools of mcp.json's servers; needs --auth")
    mcp_ephemeral: bool = option(False, switch(), "let requests name servers of tools by URL, for themselves")
    mcp_private: bool = option(False, switch(), "such URLs may lead to this machine and its network, too")
    mcp_rounds: int = option(25, whole(1, 1000), "rounds of calls that one request may have")
    mcp_parallel: int = option(4, whole(1, 64), "calls of one request that run at once")
    mcp_call_timeout: float = option(60.0, seconds(86400), "time that a tool has for a call, anew with each sign of progress")
    mcp_timeout: float = option(600.0, seconds(86400), "time after which a request calls no more tools")

    # ---- how it behaves
    download_stall: float = option(60.0, seconds(86400), "time a download may hardly move before it connects anew; 0: any")
    node: str = option("", header(), "a name that every answer bears as X-Lmlite-Node, of one server among several")
    drain_delay: float = option(0.0, seconds(3600), "time that a stopping server takes requests still, while /ready says 503")
    drain: float = option(10.0, seconds(3600), "time that running requests have to finish when the server stops")
    log_level: str = option("info", level(), "what is logged, to stderr and to the file")
    log_prompts: bool = option(False, switch(), "write prompts and answers to the log, too")

    @classmethod
    def of(cls, **values: Any) -> Config:
        """A config of Python values; neither the environment nor the config file is looked at."""
        known = {item.name: item for item in options()}
        for name in values:
            if name not in known:
                raise ConfigError(f"{name}: there is no such option; options: {', '.join(known)}")
        return cls.checked({name: known[name].read(value, name) for name, value in values.items()})

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Config:
        config = cls(**{"home": DEFAULT_HOME.expanduser(), **(SMALL if values.get("small") else {}), **values})
        if not config.unix_socket:
            config.check()
        if (config.tls_cert is None) != (config.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together: a certificate, and the key that belongs to it")
        if config.mcp and not config.auth:
            raise ConfigError(
                "mcp: programs of this machine would run for whoever asks; ask for tokens with --auth, "
                "and give the right 'mcp' to those that may"
            )
        return config

    def check(self) -> None:
        """Raises `ConfigError` where strangers could come in."""
        exposed = next((host for host in self.host if not is_loopback(host)), None)
        if exposed is not None and not (self.auth or self.insecure_no_auth):
            raise ConfigError(
                f"{exposed} can be reached by other machines and no token would be asked of them; "
                "listen on 127.0.0.1, ask for tokens with --auth, "
                "or say --insecure-no-auth (LMLITE_INSECURE_NO_AUTH=1) if that is what you want"
            )

    def chosen(self) -> dict[str, Any]:
        """The options that have another value than their default, as the config file would have them."""
        values = {item.name: getattr(self, item.name) for item in options() if item.name != "home"}
        defaults = {item.name: item.default for item in options()}
        return {name: to_json(value) for name, value in values.items() if value != defaults[name]}

    @property
    def loopback(self) -> bool:
        return all(map(is_loopback, self.host))


def is_loopback(host: str) -> bool:
    return LOOPBACK.fullmatch(host.lower()) is not None


def to_json(value: object) -> object:
    """An option's value as JSON has it; equal to another's where the values are."""
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return os.path.abspath(value) if isinstance(value, Path) else value


def options() -> Iterator[Option]:
    """All options in the order of their definition."""
    for item in fields(Config):
        yield Option(item.name, item.metadata["help"], item.metadata["kind"], item.default, item.metadata["positional"])


# ---- where values come from ------------------------------------------------------------------------------------------


def gather(flags: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    """The config of a command line: `flags` has the texts of those flags that were given, by option name."""
    home = home_folder(flags, environ)
    file = home / FILE_NAME
    keys = read_file(file)
    values: dict[str, object] = {"home": home}
    for item in options():
        if item.name != "home":
            value = pick(item, flags, environ, keys, file)
            if value is not None:
                values[item.name] = value
    return Config.checked(values)


def home_folder(flags: Mapping[str, object], environ: Mapping[str, str]) -> Path:
    """The home folder alone, for those who only look who has it."""
    home_option = next(item for item in options() if item.name == "home")
    home = pick(home_option, flags, environ, {}, Path()) or DEFAULT_HOME.expanduser()
    assert isinstance(home, Path)
    return home


def pick(
    item: Option, flags: Mapping[str, object], environ: Mapping[str, str], keys: Mapping[str, object], file: Path
) -> object | None:
    """The value from the first source that has one, or None."""
    if item.name in flags:
        return item.read(flags[item.name], item.flag)
    if environ.get(item.variable):
        return item.read(environ[item.variable], item.variable)
    if item.name in keys:
        return item.read(keys[item.name], f"{file}: {item.name}")
    return None


def read_file(file: Path) -> Mapping[str, object]:
    """The keys of the config file, {} if there is none."""
    try:
        with open(file, "rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        if len(raw) > MAX_FILE_BYTES:
            raise ValueError("is too large")
        keys = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(keys, dict):
        raise ConfigError(f"{file}: is not a JSON object")
    known = [item.name for item in options() if item.name != "home"]
    for key in keys:
        if key not in known:
            raise ConfigError(f"{file}: there is no option {key!r}; options: {', '.join(known)}")
    return keys
