"""Claim: a conversation is the same through all dialects: 300 random chats of the bundled model, streamed and whole.

Each turn is asked in the words of every dialect (v0, OpenAI's chats, Responses, Messages, the native chat), with the
conversation or by the id of the turn before; each must get the same text, reasoning, calls and counts of the prompt.
Greedy, so that only a near tie may make a difference, and not often: exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from lmlite.server import Server  # noqa: E402
from tests import voices  # noqa: E402

TIED_MAX = 0.1
"""Of all turns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tally = voices.Tally()
    with tempfile.TemporaryDirectory() as home, Server(port=0, home=Path(home)) as server:
        for chat in islice(voices.random_chats(arguments.seed), arguments.chats):
            voices.compare(server.port, chat, tally)
    print(json.dumps({"bench": "voices", "chats": arguments.chats, **asdict(tally)}, indent=1))
    sys.exit(bool(tally.wrong) or tally.tied > TIED_MAX * tally.turns)


if __name__ == "__main__":
    main()
