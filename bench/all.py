"""Runs every bench in turn, each in a process of its own, and prints their table lines together, with date and machine.

`python bench/all.py [NAME ...]` runs those named, or all. What the benches print besides goes to stderr. Exit code 1 if a
bench failed; a claim that was not kept is a NO in the table.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONTESTS = (
    "throughput", "decode", "overhead", "prefix", "system_prompt", "comeback", "long_prompt", "image_gap", "cancel",
    "sampling", "embeddings", "speculative", "health", "threads",
)  # fmt: skip
HEAD = "| claim | lmlite | llama-server | ratio | wanted | kept |\n|---|---|---|---|---|---|"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> int:
    there = [name for name in CONTESTS if (HERE / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(there))
    names = parser.parse_args().names or there
    if unknown := set(names) - set(there):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    lines, failed = [], []
    for name in names:
        print(f"---- {name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, HERE / f"{name}.py"], stdout=subprocess.PIPE, text=True)
        print(done.stdout, file=sys.stderr, flush=True)
        lines += [line for line in done.stdout.splitlines() if line.startswith("| ")]
        failed += [name] if done.returncode else []
    print(f"{datetime.date.today()}, {os.cpu_count()} cores of {processor()}, load {os.getloadavg()[0]:.1f} at the end\n")
    print("\n".join((HEAD, *lines)))
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
