"""Engines in threads of a program whose own threads compute all the while: answers are as in an idle one, and all ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import INSTALLED

HOST = """
import hashlib, json, os, sys, threading, urllib.request
from pathlib import Path
import lmlite
from lmlite.package import bundled_model
from lmlite.server import Server

over = threading.Event()
counts = [0] * 2 * N_CORES

def outside_python(own):  # without its lock
    block = bytes(1 << 20)
    while not over.is_set():
        hashlib.sha256(block)
        counts[own] += 1

def inside_python(own):
    while not over.is_set():
        counts[own] += 1

def is_busy():
    before = list(counts)
    while any(now == then for now, then in zip(counts, before)):
        over.wait(0.01)

def threads():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else threading.active_count()

def wait_for_end_of_threads(n_left):  # one that has been joined ends a moment later for the system
    while threads() > n_left:
        over.wait(0.01)

def ask(port, prompt):
    body = {"model": "lmlite-tiny", "prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=100) as response:
        return json.load(response)["choices"][0]["text"]

def all_said(model, port):
    said = [model.complete("Once", max_tokens=40, temperature=0, ignore_eos=True)]
    texts = {}
    prompts = ["Hello", "One two three", "Once upon a time", "The end " * 200]
    clients = [threading.Thread(target=lambda p=p: texts.update({p: ask(port, p)})) for p in prompts]
    [client.start() for client in clients]
    [client.join() for client in clients]
    return said + [texts[prompt] for prompt in prompts]

def serve():
    home = Path(sys.argv[1])
    options = {"port": 0, "home": home, "models_dir": [home], "isolation": "thread", "threads": N_CORES, "parallel": 1}
    with Server(**options) as server, lmlite.load(bundled_model(), threads=N_CORES) as model:
        return all_said(model, server.port)

idle, expected = threads(), serve()
wait_for_end_of_threads(idle)
workers = [threading.Thread(target=(inside_python, outside_python)[i > 0], args=(i,)) for i in range(len(counts))]
[worker.start() for worker in workers]
is_busy()
said = serve()
wait_for_end_of_threads(idle + len(workers))
is_busy()
over.set()
[worker.join() for worker in workers]
assert said == expected, (said, expected)
print("all over")
"""


@pytest.mark.parametrize("is_kept", [False, True], ids=["all cores", "one core"])
def test_engines_beside_busy_threads_of_their_host_answer_and_end(tmp_path: Path, is_kept: bool) -> None:
    """More threads than cores, of the host as of its engines. One of the host's never lets go of Python of its own accord."""
    if is_kept and not hasattr(os, "sched_setaffinity"):
        pytest.skip("a program is not kept to a core here")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    used = cores[:1] if is_kept else cores[:4]
    keep = f"import os; os.sched_setaffinity(0, {used})\n" if hasattr(os, "sched_setaffinity") else ""
    command = [sys.executable, "-c", keep + HOST.replace("N_CORES", str(len(used))), str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "all over\n"), done.stderr
