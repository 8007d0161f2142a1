"""Shows that haproxy.cfg does what haproxy.md says: three nodes on this machine, conversations of five turns whose clients
send the whole history, one node stopped in the third turn and one killed in the fourth.

    python deploy/try_haproxy.py [--haproxy PROGRAM] [--conversations 200]

No stream is lost by the stop; the kill costs streams of its node alone; a later turn on a node that stays finds in the cache
what it shares with the turn before; a conversation that moves misses once. Prints one JSON object; exit code 1 if not so.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from conversations import KILL_TURN, ROOT, STOP_TURN, drive, free_port, node, report, running, until_ready

NODES = ("a", "b", "c")
STOPPED, KILLED = "a", "b"


def config(port: int, ports: dict[str, int], path: Path) -> Path:
    """The recipe, with the addresses of this run."""
    text = (ROOT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8")
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    for name, found in ports.items():
        text, n = re.subn(rf"server {name} \S+", f"server {name} 127.0.0.1:{found}", text)
        assert n == 1
    path.write_text(text)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--haproxy", default="haproxy")
    parser.add_argument("--conversations", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder, port, ports = Path(made), free_port(), {name: free_port() for name in NODES}
        nodes = {name: stack.enter_context(node(name, found, folder)) for name, found in ports.items()}
        stack.enter_context(running([arguments.haproxy, "-f", str(config(port, ports, folder / "haproxy.cfg"))]))
        until_ready(port, "/health")
        events = {
            STOP_TURN: lambda _: nodes[STOPPED].send_signal(signal.SIGTERM),
            KILL_TURN: lambda _: nodes[KILLED].kill(),
        }
        course = drive(port, arguments.conversations, events, ("lmlite-tiny",))
        stopped = nodes[STOPPED].wait(60)
    figures = {**course.figures(KILLED), "exit code of the node that was stopped": stopped}
    return int(not report("haproxy", figures) or bool(stopped))


if __name__ == "__main__":
    sys.exit(main())
