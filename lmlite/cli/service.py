"""`lmlite service systemd|launchd`: prints a unit that runs this very lmlite with these options, for a service manager.

What was said on the command line or in a variable is written into the unit, so that the service is what `serve` would
be now; paths are made absolute. The config file is read when the service starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..config import Config, gather, options
from ..errors import ConfigError
from ..store.home import Home
from . import serve, server

WATCHDOG_S: Final = 60
"""A server whose loop stood still for this long answers nobody; loading and generating happen elsewhere."""
OPEN_FILES: Final = 65536
"""Clients are descriptors; the usual 1024 are few for a server of streams."""
STATE_FOLDER: Final = "lmlite"
LABEL: Final = "lmlite"
PLAIN: Final = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")

HARDENING: Final = (
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures=native",
)
"""None of these needs privileges, nor keeps from a process what models need: devices, mapped files, locked memory, code
that a GPU's driver compiles (so no PrivateDevices, MemoryDenyWriteExecute or SystemCallFilter)."""
SYSTEM_HARDENING: Final = (
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "ProtectControlGroups=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelLogs=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "CapabilityBoundingSet=",
)
"""What needs namespaces, which a user's own manager does not always have."""


# ---- the command -----------------------------------------------------------------------------------------------------


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("service", help="print a unit for systemd or launchd", allow_abbrev=False)
    managers = group.add_subparsers(metavar="MANAGER", required=True)
    add_manager(managers, "systemd", "print a unit of Type=notify", print_systemd)
    add_manager(managers, "launchd", "print a property list for macOS", print_launchd)


def add_manager(
    managers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str, run: server.Run
) -> None:
    parser = managers.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}, which starts the server with the options given here.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--system", action="store_true", default=False, help="for the machine, not for this user")
    parser.add_argument("--run-as", metavar="USER", default=None, help="with --system: the user that the server runs as")
    serve.add_options(parser)
    parser.set_defaults(run=run)


def print_systemd(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config, chosen = read(arguments, environ)
    print(systemd(own_command(), config, chosen, arguments.system, arguments.run_as), end="")
    folder, control = "~/.config/systemd/user", "systemctl --user"
    if arguments.system:
        folder, control = "/etc/systemd/system", "systemctl"
    hint(f"{folder}/lmlite.service", f"{control} daemon-reload && {control} enable --now lmlite")
    return 0


def print_launchd(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config, chosen = read(arguments, environ)
    if not arguments.system:
        Home(config.home).prepare()  # launchd makes no folder for a log
    print(launchd(own_command(), config, chosen, arguments.run_as), end="")
    folder, domain = "~/Library/LaunchAgents", "gui/$(id -u)"
    if arguments.system:
        folder, domain = "/Library/LaunchDaemons", "system"
    hint(f"{folder}/{LABEL}.plist", f"launchctl bootstrap {domain} {folder}/{LABEL}.plist")
    return 0


def hint(file: str, command: str) -> None:
    """For a person, not for the file."""
    if sys.stderr.isatty():
        print(f"Write this to {file}, then: {command}", file=sys.stderr)


def read(arguments: argparse.Namespace, environ: Mapping[str, str]) -> tuple[Config, set[str]]:
    """The options, and the names of those that the unit must have. Raises `ConfigError`."""
    given = serve.given_options(arguments)
    config = gather(given, environ)
    chosen = {option.name for option in options() if option.name in given or environ.get(option.variable)}
    if arguments.run_as is not None and not arguments.system:
        raise ConfigError("--run-as: a user's own service runs as that user; it is for --system")
    if arguments.run_as is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", arguments.run_as):
        raise ConfigError(f"--run-as: {arguments.run_as!r} is not the name of a user")
    return config, chosen


def own_command() -> list[str]:
    """What runs this lmlite from any folder: the installed command, the archive that it was started from (what that unpacked
    is a cache, and may go), or else the interpreter with its package."""
    script = Path(sys.argv[0]).absolute()
    if zipfile.is_zipfile(script):
        return [sys.executable, str(script)]
    if script.name == "lmlite" and script.is_file() and os.access(script, os.X_OK):
        return [str(script)]
    return server.own_command()


# ---- systemd ---------------------------------------------------------------------------------------------------------


def systemd(command: Sequence[str], config: Config, chosen: set[str], system: bool, user: str | None) -> str:
    """The unit's text. Raises `ConfigError` for a home that its user could not have."""
    dynamic = system and user is None
    if dynamic and "home" in chosen:
        raise ConfigError(
            f"home: the user of a --system unit is made for it and has /var/lib/{STATE_FOLDER}; "
            "name one with --run-as who has another home folder"
        )
    if not system:
        chosen = {*chosen, "home"}
    start = [*command, "serve", *server.flags_of(config, chosen)]
    service = [
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join(map(quoted, start))}",
        *owner(dynamic, user),
        "Restart=on-failure",
        "RestartSec=1",
        "# A wrong option or a port that is taken is not another one a second later.",
        "RestartPreventExitStatus=2",
        f"WatchdogSec={WATCHDOG_S}",
        f"TimeoutStopSec={config.drain_delay + config.drain + serve.CLOSING_S:g}",
        "# The server ends its engines itself; an engine that ran out of memory does not end the server.",
        "KillMode=mixed",
        "OOMPolicy=continue",
        f"LimitNOFILE={OPEN_FILES}",
        "UMask=0077",
        *["LimitMEMLOCK=infinity"] * config.mlock,
        *HARDENING,
        *(SYSTEM_HARDENING if dynamic else ()),
    ]
    return "\n".join(
        (
            "[Unit]",
            "Description=lmlite: the APIs of LM Studio and OpenAI for models on this machine",
            *["After=network.target"] * system,
            "",
            "[Service]",
            *service,
            "",
            "[Install]",
            f"WantedBy={'multi-user.target' if system else 'default.target'}",
            "",
        )
    )


def owner(dynamic: bool, user: str | None) -> Iterable[str]:
    if user is not None:
        return (f"User={user}",)
    if not dynamic:
        return ()
    home = f"%S/{STATE_FOLDER}"
    return (
        "DynamicUser=yes",
        f"StateDirectory={STATE_FOLDER}",
        "StateDirectoryMode=0700",
        f"Environment=HOME={home} LMLITE_HOME={home}",
    )


def quoted(word: str) -> str:
    """One word of ExecStart (systemd.service: COMMAND LINES): no specifier, no variable, no end before its end."""
    word = word.replace("%", "%%").replace("$", "$$")
    if PLAIN.fullmatch(word):
        return word
    escaped = "".join(ESCAPES.get(c, c) for c in word)
    return f'"{escaped}"'


ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


# ---- launchd ---------------------------------------------------------------------------------------------------------


def log_of(config: Config, chosen: set[str], user: str | None) -> Path:
    """The log in the home of whoever the server runs as, where that is known."""
    if "home" in chosen:
        return Home(Path(os.path.abspath(config.home))).log_file
    with contextlib.suppress(KeyError, ImportError):
        import pwd

        return Home(Path(pwd.getpwnam(user or "").pw_dir, ".lmlite")).log_file
    return Path("/Library/Logs", f"{LABEL}.log")


def launchd(command: Sequence[str], config: Config, chosen: set[str], user: str | None) -> str:
    """The property list's text."""
    import plistlib

    if user is None:
        chosen = {*chosen, "home"}
    job: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": [*command, "serve", *server.flags_of(config, chosen)],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ExitTimeOut": int(config.drain_delay + config.drain + serve.CLOSING_S),
        "ProcessType": "Interactive",  # another type is throttled
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        # A launch that fails says why there; a server finds that it is its own log, and bounds it.
        **dict.fromkeys(("StandardOutPath", "StandardErrorPath"), str(log_of(config, chosen, user))),
    }
    if user is not None:
        job["UserName"] = user
    return plistlib.dumps(job, sort_keys=False).decode()
