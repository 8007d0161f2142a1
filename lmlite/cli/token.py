"""`lmlite token`: API tokens of the server of this home, made, listed and revoked whether it runs or not, and taken to others:
as digests, so that who reads them on the way cannot use them."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from typing import Any, Final

from ..config import home_folder
from ..errors import ConfigError
from ..principal import RIGHTS, Principal
from ..store.database import Database
from ..store.home import Home
from ..store.tokens import DIGEST_BYTES, SECRET_LENGTH, SHAPE, Token, TokenTable
from .terminal import escaped, put, put_json, say

UNITS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
SPAN: Final = re.compile(r"([0-9]{1,6})([mhdw])")
NAME_MAX: Final = 80
COUNT_MAX: Final = 10**9
FILE_MAX: Final = 16 << 20
"""Of exported tokens: some fifty thousand."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    help = "make, list, revoke or copy API tokens"
    parser = commands.add_parser("token", help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make one; it is shown this once", allow_abbrev=False)
    create.add_argument("name", metavar="NAME", type=_name, help="whose it is")
    create.add_argument(
        "--allow",
        metavar="RIGHTS",
        type=_rights,
        default=frozenset(RIGHTS) - {"admin"},
        help=f"what it may do, of {', '.join(RIGHTS)}, joined by ',' (default: all but admin)",
    )
    create.add_argument("--expires", metavar="SPAN", type=_span, help="after so long: 30d, 12h (default: never)")
    group = "those of one group share conversations and cached prompts"
    create.add_argument("--group", metavar="NAME", type=_name, help=group)
    create.add_argument("--max-requests", metavar="N", type=_count, default=0, help="requests that it may have at once")
    create.add_argument("--tokens-per-minute", metavar="N", type=_count, default=0, help="of prompts and answers together")
    listing = actions.add_parser("list", help="list them", allow_abbrev=False)
    revoke = actions.add_parser("revoke", help="end one, for the server that runs too", allow_abbrev=False)
    revoke.add_argument("name", metavar="NAME", help="its name, or the first part of it (sk-lm-XXXXXXXX)")
    export = actions.add_parser("export", help="print all for other servers, without what proves them", allow_abbrev=False)
    replace = actions.add_parser("import", help="have those that were exported, and no others", allow_abbrev=False)
    replace.add_argument("file", metavar="FILE", help="what `lmlite token export` printed; - is what comes in")
    for action, run in ((create, make), (listing, show), (revoke, end), (export, write), (replace, take)):
        action.add_argument("--home", metavar="DIR", help="the home folder of the server")
        action.add_argument("--json", action="store_true", help="as JSON")
        action.add_argument("--quiet", action="store_true", help="no messages but errors")
        action.set_defaults(run=run)


def make(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    now = time.time()
    scope = f"group {arguments.group}" if arguments.group else f"token {arguments.name}"
    principal = Principal(
        arguments.name, scope, arguments.allow, arguments.max_requests, arguments.tokens_per_minute
    )
    expires = None if arguments.expires is None else now + arguments.expires
    try:
        with table(arguments, environ) as known:
            text = known.create(principal, now, expires)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if arguments.json:
        put_json({"token": text, "name": arguments.name})
        return 0
    put(text)
    say(arguments, "It is shown this once. A server asks for tokens if it is started with --auth.")
    return 0


def show(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with table(arguments, environ) as known:
        tokens = known.all()
    if arguments.json:
        put_json([as_json(token) for token in tokens])
        return 0
    if not tokens:
        say(arguments, "There are no tokens. To make one: lmlite token create NAME")
    for token in tokens:
        told = [f"sk-lm-{token.id}", escaped(token.principal.name), ",".join(sorted(token.principal.rights))]
        if token.principal.scope.startswith("group "):
            told.append(escaped(token.principal.scope))
        if token.expires is not None:
            told.append(f"{'expired' if token.expires <= time.time() else 'expires'} {day(token.expires)}")
        put("  ".join(told))
    return 0


def end(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with table(arguments, environ) as known:
        was_there = known.revoke(arguments.name.removeprefix("sk-lm-").partition(":")[0])
    if not was_there:
        raise ConfigError(f"there is no token {arguments.name!r}")
    say(arguments, f"Token {escaped(arguments.name)} is revoked.")
    return 0


def write(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with table(arguments, environ) as known:
        put_json([exported(token) for token in known.all()])
    return 0


def take(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    try:
        if arguments.file == "-":
            text = sys.stdin.buffer.read(FILE_MAX + 1)
        else:
            with open(arguments.file, "rb") as file:
                text = file.read(FILE_MAX + 1)
        if len(text) > FILE_MAX:
            raise ValueError("it is too large")
        given = json.loads(text)
        if not isinstance(given, list):
            raise ValueError("it is no list")
        tokens = [imported(item) for item in given]
        with table(arguments, environ) as known:
            known.replace(tokens)
    except OSError as error:
        raise ConfigError(f"{arguments.file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{arguments.file}: this is not what `lmlite token export` prints: {error}") from None
    say(arguments, f"{len(tokens)} tokens are known, and no others.")
    return 0


def exported(token: Token) -> dict[str, Any]:
    principal = token.principal
    return {
        "id": token.id,
        "sha256": token.digest.hex(),
        "name": principal.name,
        "rights": sorted(principal.rights),
        "scope": principal.scope,
        "created": token.created,
        "expires": token.expires,
        "max_requests": principal.requests_max,
        "tokens_per_minute": principal.tokens_per_minute,
    }


def imported(item: Mapping[str, Any]) -> Token:
    digest, expires = bytes.fromhex(item["sha256"]), item["expires"]
    if not SHAPE.fullmatch(f"sk-lm-{item['id']}:{'a' * SECRET_LENGTH}") or len(digest) != DIGEST_BYTES:
        raise ValueError("an id or a digest has another form")
    try:
        name, rights = _name(item["name"]), _rights(",".join(item["rights"]))
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None
    principal = Principal(name, str(item["scope"]), rights, int(item["max_requests"]), int(item["tokens_per_minute"]))
    return Token(item["id"], digest, float(item["created"]), None if expires is None else float(expires), principal)


@contextmanager
def table(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[TokenTable]:
    flags = {} if arguments.home is None else {"home": arguments.home}
    with closing(Database(Home(home_folder(flags, environ)).state)) as database:
        yield TokenTable(database)


def as_json(token: Token) -> dict[str, Any]:
    principal = token.principal
    return {
        "id": token.id,
        "name": principal.name,
        "rights": sorted(principal.rights),
        "group": principal.scope.removeprefix("group ") if principal.scope.startswith("group ") else None,
        "created": day(token.created),
        "expires": None if token.expires is None else day(token.expires),
        "maxRequests": principal.requests_max or None,
        "tokensPerMinute": principal.tokens_per_minute or None,
    }


def day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _name(text: str) -> str:
    if not text.strip() or len(text) > NAME_MAX or not text.isprintable():
        raise argparse.ArgumentTypeError(f"a name has 1 to {NAME_MAX} printable characters")
    return text


def _rights(text: str) -> frozenset[str]:
    named = frozenset(filter(None, (word.strip() for word in text.split(","))))
    if unknown := sorted(named - frozenset(RIGHTS)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(RIGHTS)}")
    if not named:
        raise argparse.ArgumentTypeError("a token without rights is of no use")
    return named


def _span(text: str) -> int:
    match = SPAN.fullmatch(text)
    if match is None or match[1] == "0":
        raise argparse.ArgumentTypeError(f"{text!r} is not a span of time, as 90m, 12h, 30d or 4w are")
    return int(match[1]) * UNITS[match[2]]


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text[:12]) <= COUNT_MAX:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {COUNT_MAX}")
