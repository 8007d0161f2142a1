"""Programs with a model or a server that fork: the child is told at once, and the parent does not notice.

Each test is a program of its own: a fork copies everything that the process has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import INSTALLED

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no such call here")

BEGIN = """
import multiprocessing, os, signal, socket, sys, urllib.request
import lmlite
from lmlite.package import bundled_model

def load(**options):
    return lmlite.load(bundled_model(), isolation=ISOLATION, threads=1, **options)

def say(model):
    return model.complete("a", max_tokens=5, temperature=0)

def refused(use):
    try:
        use()
    except RuntimeError as error:
        return "forked" in str(error) and "spawn" in str(error)
    return False

def forked(child):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a child that hangs is a failure
        sys.exit(0 if child() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(program: str, isolation: str = "process") -> str:
    code = BEGIN.replace("ISOLATION", repr(isolation)) + program
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    done = subprocess.run(command, env=environ, cwd=INSTALLED, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_child_with_its_parents_model_is_told_and_the_parent_goes_on(isolation: str) -> None:
    said = run(
        """
with load() as model:
    expected = say(model)
    stream = model.complete_stream("a", max_tokens=300, temperature=0, ignore_eos=True)
    first = next(stream)

    def child():
        uses = (lambda: say(model), lambda: next(stream), lambda: model.close(), lambda: model.__exit__(None, None, None))
        return all(map(refused, uses))

    print(forked(child))
    rest = "".join(stream)
    print((first + rest).startswith(expected) and len(rest) > 100, say(model) == expected)
try:
    say(model)
except RuntimeError as error:
    print(error)
""",
        isolation,
    )
    assert said == "0\nTrue True\nit was closed\n"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_child_that_lives_on_keeps_nothing_of_its_parent_open(isolation: str) -> None:
    """Neither the port, nor a connection, nor an engine."""
    said = run(
        """
from pathlib import Path
import tempfile, threading, time

home = tempfile.mkdtemp()
os.environ["HOME"] = home
server = lmlite.Server(port=0, home=home, models_dir=[home], isolation=ISOLATION, threads=1)
server.start()
body = b'{"prompt": "a", "max_tokens": 2}'
ask = urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})
assert urllib.request.urlopen(ask).status == 200
idle = socket.create_connection(("127.0.0.1", server.port))
idle.sendall(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
assert idle.recv(12) == b"HTTP/1.1 200"
n_threads = threading.active_count()
reads, writes = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(writes)
    ok = refused(server.close) and refused(lambda: server.__exit__(None, None, None))
    os.read(reads, 1)  # until the parent is done
    os._exit(0 if ok else 1)
os.close(reads)
before = time.monotonic()
server.close()
print("lmlite-engine" in [thread.name for thread in threading.enumerate()])
idle.settimeout(20)
while idle.recv(1 << 16):
    pass
again = socket.create_server(("127.0.0.1", server.port))
again.close()
os.close(writes)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""".replace("ISOLATION", repr(isolation)),
        isolation,
    )
    assert said == "False\n0\n"


def test_a_child_loads_a_model_of_its_own() -> None:
    said = run(
        """
with load() as model:
    expected = say(model)

    def child():
        with load() as own:
            return say(own) == expected

    print(forked(child), say(model) == expected)
"""
    )
    assert said == "0 True\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_that_are_not_forked_load_what_they_want(method: str, tmp_path: Path) -> None:
    program = BEGIN.replace("ISOLATION", "'process'") + f"""
def work(_):
    with load() as model:
        return say(model)

if __name__ == "__main__":
    with load() as model:
        expected = say(model)
        with multiprocessing.get_context({method!r}).Pool(1) as pool:
            print(pool.map(work, [0]) == [expected], say(model) == expected)
"""
    file = tmp_path / "program.py"
    file.write_text(program)
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    done = subprocess.run([sys.executable, str(file)], env=environ, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True True\n", "")
