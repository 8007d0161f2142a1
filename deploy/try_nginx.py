"""Shows that nginx.conf does what nginx.md says: three nodes on this machine, conversations of five turns whose clients send
the whole history, one node stopped in the third turn and one killed in the fourth.

    python deploy/try_nginx.py [--nginx PROGRAM] [--conversations 200]

No stream is lost by the stop; the kill costs streams of its node alone; a later turn on a node that stays finds in the cache
what it shares with the turn before; a conversation that moves misses once. Prints one JSON object; exit code 1 if not so.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from conversations import KILL_TURN, ROOT, STOP_TURN, drive, free_port, node, report, running, until_ready

NODES = {"a": 1241, "b": 1242, "c": 1243}
STOPPED, KILLED = "a", "b"


def config(port: int, ports: dict[str, int], folder: Path) -> Path:
    """The recipe, with the addresses and files of this run."""
    text = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8").replace("listen 8080", f"listen 127.0.0.1:{port}")
    for name, written in NODES.items():
        text = text.replace(f"server 127.0.0.1:{written} ", f"server 127.0.0.1:{ports[name]} ")
    places = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    head = f"pid {folder}/nginx.pid; error_log {folder}/nginx.log; daemon off;\n"
    path = folder / "nginx.conf"
    path.write_text(head + text.replace("http {", f"http {{ {places}"))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nginx", default="nginx")
    parser.add_argument("--conversations", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder, port, ports = Path(made), free_port(), {name: free_port() for name in NODES}
        folder.chmod(0o755)  # its workers may be somebody else
        nodes = {name: stack.enter_context(node(name, found, folder, "--drain-delay", "0")) for name, found in ports.items()}
        proxy = stack.enter_context(running([arguments.nginx, "-p", made, "-c", str(config(port, ports, folder))]))
        until_ready(port, "/health")
        events = {
            STOP_TURN: lambda _: nodes[STOPPED].send_signal(signal.SIGTERM),
            KILL_TURN: lambda _: nodes[KILLED].kill(),
        }
        course = drive(port, arguments.conversations, events, ("lmlite-tiny",))
        stopped = nodes[STOPPED].wait(60)
        proxy.terminate()  # in order, or its workers stay
        proxy.wait(10)
    figures = {**course.figures(KILLED), "exit code of the node that was stopped": stopped}
    return int(not report("nginx", figures) or bool(stopped))


if __name__ == "__main__":
    sys.exit(main())
