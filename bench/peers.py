"""llama.cpp's own programs, built from the very tree that lmlite is built from, to be measured beside it.

`binary("llama-bench")` returns the program's path, building it on the first call (some minutes) below bench/peers/.
LMLITE_PEERS names a folder that has them already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / "peers"

sys.path.insert(0, str(ROOT / "vendor"))
import fetch  # noqa: E402


def binary(name: str) -> Path:
    if folder := os.environ.get("LMLITE_PEERS"):
        return Path(folder) / name
    path = PEERS / "build" / "bin" / name
    if not path.exists():
        build(name)
    return path


def build(name: str) -> None:
    tree = PEERS / "llama.cpp"
    if not tree.exists():
        pin = fetch.read_pin()
        with fetch.pinned_archive(pin) as archive:
            fetch.unpack(archive, pin.folder, tree, lambda path: not path.startswith("models/"))
    switches = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    subprocess.run(["cmake", "-G", "Ninja", "-S", tree, "-B", PEERS / "build", *switches], check=True, stdout=sys.stderr)
    subprocess.run(["cmake", "--build", PEERS / "build", "--target", name], check=True, stdout=sys.stderr)
