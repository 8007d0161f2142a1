"""`lmlite server start|stop|status`: the server of this home in the background; `lmlite daemon` is the same in other words.

The lock of the home folder tells which process that is. Starting runs `lmlite serve` in a session of its own, with its
messages in the log file, and returns when it listens; its failure is shown as if it had been in the foreground.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config, gather, home_folder, options, read_file, to_json
from ..errors import LmError
from ..store.home import Home, Owner
from ..store.logfile import open_log
from . import serve
from .client import add_message_flags
from .terminal import LEVELS, say

if TYPE_CHECKING:
    from subprocess import Popen

READY_S = 30.0
"""A server listens within a fraction of a second; a machine that swaps or has a cold disk gets its time."""
KILLED_S = 10.0
"""For a killed process to be gone; the kernel takes what it had mapped apart first."""
POLL_S = 0.02
MAX_WORDS = 4 << 10
"""Bytes of a failed server's last words that are shown."""
BOOT = "import sys; sys.path[:] = [*filter(None, sys.path), {path!r}]; from {package} import main; sys.exit(main())"
"""Runs this very package, installed, copied or in an archive; never one that lies in the current folder."""

Run = Callable[[argparse.Namespace, Mapping[str, str]], int]


# ---- commands --------------------------------------------------------------------------------------------------------


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("server", help="start, stop or look at the server in the background", allow_abbrev=False)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add_start(actions, "start", "start the server and wait until it listens")
    add_action(actions, "stop", "stop the server; running requests have its --drain time to finish", stop)
    add_action(actions, "status", "tell whether the server runs, and on which port", show_status, json=True)
    group = commands.add_parser("daemon", help="`server` in other words: up, down, status", allow_abbrev=False)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    add_start(actions, "up", "the same as `server start`")
    actions.choices["up"].add_argument("--json", action="store_true", help="tell as JSON what then runs")
    actions.choices["up"].set_defaults(run=start_daemon)
    add_action(actions, "down", "the same as `server stop`", stop_daemon, json=True)
    add_action(actions, "status", "tell whether the server runs, and in which process", show_daemon, json=True)


def add_start(actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str) -> None:
    parser = actions.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}. Without --port it takes the one it had last, or 1234.",
        epilog=serve.EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    serve.add_options(parser)
    add_message_flags(parser)
    parser.set_defaults(run=start)


def add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str, run: Run, json: bool = False
) -> None:
    parser = actions.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False)
    parser.add_argument("--home", metavar="DIR", default=argparse.SUPPRESS, help="the server's home folder")
    if json:
        parser.add_argument("--json", action="store_true", help="tell it as JSON")
    messages = add_message_flags(parser)
    messages.add_argument("--log-level", choices=LEVELS, default="info", help="which are shown (default: info)")
    parser.set_defaults(run=run)


def start(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    given = serve.given_options(arguments)
    if environ.get("LMS_SERVER_HOST"):  # as LM Studio's command line has it
        environ = {"LMLITE_HOST": environ["LMS_SERVER_HOST"], **environ}
    config = gather(given, environ)
    home = Home(config.home)
    home.prepare()
    if (owner := home.owner()) is not None:
        return tell_running(arguments, owner, config, given)
    chosen = set(given)
    if not is_port_chosen(config, given, environ) and (last := home.last_owner()) is not None and last.port:
        config, chosen = replace(config, port=last.port), {*chosen, "port"}
    process, words_from = spawn(home, flags_of(config, chosen), environ)
    if (owner := wait_until_ready(home, process)) is None:
        if (owner := home.owner()) is not None and owner.pid != process.pid:  # another start was faster
            return tell_running(arguments, owner, config, given)
        return tell_failure(home, process, words_from)
    say(arguments, f"Success! Server is now running on port {owner.port}")
    return 0


def stop(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    home = home_of(arguments, environ)
    owner = home.owner()
    if owner is None:
        raise LmError("The server is not running.")
    if owner.pid is None:
        raise LmError(f"{home.root} is in use by a server that does not tell its process id.")
    defaults = Config.of()
    ending = float(owner.options.get("drain_delay", defaults.drain_delay)) + float(owner.options.get("drain", defaults.drain))
    end(home, owner, owner.pid, ending + serve.CLOSING_S)
    say(arguments, f"Stopped the server on port {owner.port}." if owner.url else "Stopped the server while it started.")
    return 0


def show_status(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    home = home_of(arguments, environ)
    owner = home.owner()
    running = owner is not None and owner.url is not None
    last = owner or home.last_owner()
    port = {"port": last.port} if last is not None and last.port is not None else {}
    if arguments.json:
        print(json.dumps({"running": running, **port}))
    elif running:
        print(f"The server is running on port {port['port']}.")
    else:
        print("The server is starting." if owner else "The server is not running.")
    return 0


def start_daemon(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return start(arguments, environ) or (show_daemon(arguments, environ) if "json" in arguments else 0)


def stop_daemon(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return stop(arguments, environ) or (show_daemon(arguments, environ) if arguments.json else 0)


def show_daemon(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    owner = home_of(arguments, environ).owner()
    if arguments.json:
        status: dict[str, Any] = {"status": "not-running"}
        if owner is not None:
            status = {"status": "running", "pid": owner.pid, "isDaemon": owner.daemon, "version": owner.version}
        print(json.dumps(status))
    elif owner is None:
        print("lmlite is not running.")
    else:
        print(f"lmlite {owner.version} is running, process {owner.pid}.")
    return 0


def home_of(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Home:
    """The home that the command line or the environment names; no other option is looked at."""
    given = {"home": arguments.home} if "home" in arguments else {}
    named = {name: value for name, value in environ.items() if name == "LMLITE_HOME"}
    return Home(home_folder(given, named))


def tell(text: str) -> None:
    """Messages go to stderr, as LM Studio's do."""
    print(text, file=sys.stderr)


# ---- starting --------------------------------------------------------------------------------------------------------


def is_port_chosen(config: Config, given: Mapping[str, object], environ: Mapping[str, str]) -> bool:
    return "port" in given or bool(environ.get("LMLITE_PORT")) or "port" in read_file(Home(config.home).config_file)


def tell_running(arguments: argparse.Namespace, owner: Owner, config: Config, given: Mapping[str, object]) -> int:
    """A server that runs is as good as one that was started, unless the command line asks for another. A level is for the
    messages of this command, too: no reason to fail."""
    where = f"port {owner.port}" if owner.url else "its way up"
    if others := differing(owner, config, given):
        tell(
            f"lmlite: the server is already running on {where}, with another {', another '.join(others)}; "
            "stop it first with `lmlite server stop`"
        )
        return 1
    say(arguments, f"The server is already running on {where}.")
    return 0


def differing(owner: Owner, config: Config, given: Mapping[str, object]) -> list[str]:
    """The flags that the running server does not obey. What was not said may be as it is."""
    defaults = {option.name: to_json(option.default) for option in options()}
    running = {**defaults, **owner.options, "port": owner.port}
    asked = {name: to_json(getattr(config, name)) for name in given if name not in ("home", "log_level")}
    if asked.get("port") == 0:  # any
        del asked["port"]
    flags = {option.name: option.flag for option in options()}
    return sorted(flags[name] for name, value in asked.items() if value != running[name])


def spawn(home: Home, flags: Sequence[str], environ: Mapping[str, str]) -> tuple[Popen[bytes], int]:
    """The server's process, and where in the log file its words begin."""
    from subprocess import DEVNULL, Popen

    try:
        words = open_log(home.log_file)
    except OSError:  # as any log: dropped
        words = os.open(os.devnull, os.O_WRONLY)
    try:
        words_from = os.fstat(words).st_size
        command = [*own_command(), "serve", *flags]
        process = Popen(command, env=dict(environ), stdin=DEVNULL, stdout=words, stderr=words, start_new_session=True)
    finally:
        os.close(words)
    return process, words_from


def own_command() -> list[str]:
    """What runs the `lmlite` command of this very package, from any folder."""
    package = __name__.rpartition(".")[0]
    path = Path(__file__).absolute().parents[__name__.count(".")]
    return [sys.executable, "-c", BOOT.format(path=str(path), package=package)]


def flags_of(config: Config, names: Collection[str]) -> list[str]:
    """The command line that gives the options `names` the values that `config` has; paths are absolute."""
    flags: list[str] = []
    files: list[str] = []
    for option in options():
        if option.name not in names:
            continue
        match to_json(getattr(config, option.name)):
            case bool() as on:
                flags.append(option.flag if on else f"--no-{option.flag[2:]}")
            case list() as items if option.positional:
                files = [spelled(item) for item in items]
            case list() as items if option.kind.shape == "many":
                flags += [f"{option.flag}={spelled(item, '=')}" for item in items]
            case None:
                flags.append(f"{option.flag}=")
            case value:
                flags.append(f"{option.flag}={spelled(value, ',')}")
    return [*flags, *["--", *files] * bool(files)]


def spelled(value: object, joint: str = "") -> str:
    """A value of an option as its flag takes it."""
    match value:
        case list() as items:
            return joint.join(spelled(item) for item in items)
        case float() as number:
            return f"{number:.9f}".rstrip("0").rstrip(".")
    return str(value)


def wait_until_ready(home: Home, process: Popen[bytes]) -> Owner | None:
    """What the server tells once it listens; None if it ended, or was ended because it took too long."""
    patience = time.monotonic() + READY_S
    while process.poll() is None:
        owner = home.last_owner()
        if owner is not None and owner.pid == process.pid and owner.url is not None:
            return owner
        if time.monotonic() >= patience:
            process.kill()
            process.wait()
            return None
        time.sleep(POLL_S)
    return None


def tell_failure(home: Home, process: Popen[bytes], words_from: int) -> int:
    """The server's own words and exit code, as in the foreground."""
    words = b""
    with contextlib.suppress(OSError), open(home.log_file, "rb") as file:
        file.seek(max(words_from, file.seek(0, os.SEEK_END) - MAX_WORDS))
        words = file.read().strip()
    tell(words.decode(errors="backslashreplace") or "lmlite: the server did not start")
    code = process.returncode
    return code if code > 0 else 1


# ---- stopping --------------------------------------------------------------------------------------------------------


def end(home: Home, owner: Owner, pid: int, patience_s: float) -> None:
    """Returns when the server has let go of its home; kills it where it takes longer than it said it would."""
    for number, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILLED_S)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            raise LmError(f"The server is process {pid} of another user, who can stop it.") from None
        if wait_until_gone(home, owner, seconds):
            return
    raise LmError(f"The server, process {pid}, cannot be ended.")


def wait_until_gone(home: Home, owner: Owner, seconds: float) -> bool:
    patience = time.monotonic() + seconds
    while (found := home.owner()) is not None and found.pid == owner.pid:
        if time.monotonic() >= patience:
            return False
        time.sleep(POLL_S)
    return True
