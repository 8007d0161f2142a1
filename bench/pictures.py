"""Different pictures, in several sizes and from several clients at once, to the bundled model that sees: the memory of its
engine becomes flat once what it keeps of prompts is full.

`python bench/pictures.py [--pictures 1000] [--clients 4] [--spill 16]` (MiB for prompts that had to leave their cells)
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from lmlite.server import Server  # noqa: E402
from tests.media_files import png_head, png_of  # noqa: E402

MODEL = "lmlite-tiny-vision"
SIZES = ((64, 64), (224, 224), (640, 480), (1280, 720), (1920, 1080), (900, 1600))
QUIET_S = 12  # until the engine has given back what is free


def picture(number: int) -> bytes:
    """A rectangle of some color somewhere."""
    draw = random.Random(number)
    width, height = SIZES[number % len(SIZES)]
    ground, color = draw.randbytes(3), draw.randbytes(3)
    left, top = draw.randrange(width // 2), draw.randrange(height // 2)
    empty = b"\0" + ground * width
    drawn = b"\0" + ground * left + color * (width // 3) + ground * (width - left - width // 3)
    rows = empty * top + drawn * (height // 3) + empty * (height - top - height // 3)
    return png_of(png_head(width, height), rows)


class Asking:
    def __init__(self, server: Server, n: int):
        self._base = f"http://127.0.0.1:{server.port}"
        self._numbers = iter(range(n))
        self._lock = threading.Lock()
        self.done = 0

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self._base + path, timeout=60) as response:
            return str(response.read().decode())

    def ask(self, number: int) -> None:
        url = "data:image/png;base64," + base64.b64encode(picture(number)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is in the picture?"}]
        body = {"model": MODEL, "max_tokens": 12, "messages": [{"role": "user", "content": content}]}
        request = urllib.request.Request(
            self._base + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            json.load(response)

    def ask_all(self) -> None:
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            self.ask(number)
            with self._lock:
                self.done += 1


def private_mb(pid: int) -> float:
    found = re.search(r"^Anonymous: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return round(int(found[1]) / 1024, 1) if found else 0.0


def measure(asking: Asking, clients: int, step: int) -> Iterator[tuple[str, float]]:
    asking.ask(-1)
    (instance,) = json.loads(asking.get("/lmlite/instances"))["instances"]
    threads = [threading.Thread(target=asking.ask_all, daemon=True) for _ in range(clients)]
    yield "0", private_mb(instance["pid"])
    for thread in threads:
        thread.start()
    told = 0
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
        if asking.done >= told + step:
            told = asking.done // step * step
            yield str(told), private_mb(instance["pid"])
    time.sleep(QUIET_S)
    yield "quiet", private_mb(instance["pid"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--spill", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        options: dict[str, Any] = {"port": 0, "home": home, "context_length": 2048, "spill": arguments.spill}
        with Server(**options) as server:
            asking = Asking(server, arguments.pictures)
            for after, megabytes in measure(asking, arguments.clients, max(1, arguments.pictures // 10)):
                print(f"{after:>6}: {megabytes} MB", flush=True)


if __name__ == "__main__":
    main()
