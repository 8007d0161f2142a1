"""Several builds of the same objects in one library (csrc/kernels.py), as a portable build has them."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lmlite.core.engine import native
from lmlite.core.engine.worker import environment
from tests.conftest import INSTALLED, ROOT

SCRIPT = ROOT / "csrc" / "kernels.py"
SOURCE = r"""
#include <vector>
template <typename T> __attribute__((noinline)) T shared_by_all(T x) { return x * SET; }  // in each object of each set
struct base { virtual ~base(); virtual int answer() { return SET; } };
base::~base() {}
base * make() { return new base; }
extern "C" int answer(int a, double b) {
    std::vector<int> v(3, shared_by_all(1));
    return (v[2] + make()->answer()) * 100 + a + int(b);
}
extern "C" int other(void);
extern "C" int both(void) { return other() * 1000 + answer(0, 0); }
"""
OTHER = r"""
template <typename T> __attribute__((noinline)) T shared_by_all(T x) { return x * SET; }
extern "C" int other(void) { return shared_by_all(2); }
"""
LEVEL = r"""
#define SEEN(text) extern "C" __attribute__((visibility(text)))
SEEN("hidden") int lm_kernels_level = 0;
SEEN("default") void set_level(int n) { lm_kernels_level = n; }
extern "C" int answer(int, double);
extern "C" int both(void);
SEEN("default") int call_answer(int a, double b) { return answer(a, b); }
SEEN("default") int call_both(void) { return both(); }
"""

elf = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64") or shutil.which("c++") is None,
    reason="kernels.py is for ELF, and this needs a compiler",
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def done(*command: str | Path) -> None:
    it = run(*command)
    assert it.returncode == 0, it.stderr


def compiled(folder: Path, name: str, source: str, *options: str) -> Path:
    (folder / f"{name}.cpp").write_text(source)
    target = folder / f"{name}.o"
    flags = ["-O1", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", *options]
    done("c++", *flags, "-c", folder / f"{name}.cpp", "-o", target)
    return target


@elf
def test_each_set_is_whole_and_the_level_says_which_is_called(tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    for n, name in enumerate(("old", "new"), 1):
        (tmp_path / name).mkdir()
        sources = {"a": SOURCE, "b": OTHER}
        objects = [compiled(tmp_path / name, each, source, f"-DSET={n}") for each, source in sources.items()]
        done(sys.executable, SCRIPT, "rename", name, renamed, *objects)
    done(sys.executable, SCRIPT, "choose", tmp_path / "choose.c", "old,new", renamed)
    level = compiled(tmp_path, "level", LEVEL)
    done("cc", "-O1", "-fPIC", "-c", tmp_path / "choose.c", "-o", tmp_path / "choose.o")
    objects = [level, tmp_path / "choose.o", *sorted(renamed.glob("*.o"))]
    done("c++", "-shared", "-Wl,--no-undefined", "-Wl,--gc-sections", *objects, "-o", tmp_path / "both.so")
    library = ctypes.CDLL(str(tmp_path / "both.so"))
    library.call_answer.argtypes = [ctypes.c_int, ctypes.c_double]
    for n in (1, 2, 1):
        library.set_level(n - 1)
        assert library.call_answer(7, 2.5) == 2 * n * 100 + 9
        assert library.call_both() == 2 * n * 1000 + 2 * n * 100


@elf
def test_what_would_run_by_itself_on_every_cpu_is_refused(tmp_path: Path) -> None:
    source = "int f(); int at_load = f(); int f() { return __builtin_popcount(at_load); }"
    it = run(sys.executable, SCRIPT, "rename", "new", tmp_path / "out", compiled(tmp_path, "a", source))
    assert it.returncode == 1 and "it would run on CPUs that it is not for" in it.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_elf_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.o").write_bytes(b"\xcf\xfa\xed\xfe" + bytes(100))
    it = run(sys.executable, SCRIPT, "rename", "new", tmp_path / "out", tmp_path / "a.o")
    assert it.returncode == 1 and "ELF" in it.stderr


def kernels(environ: Mapping[str, str]) -> str:
    code = "from lmlite.core.engine import native; print(native.build_info()['kernels'])"
    outer = {**os.environ, "PYTHONPATH": str(INSTALLED), **environ}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=INSTALLED, env=outer, capture_output=True, text=True)  # not the sources' library
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def test_the_build_says_what_it_computes_with_and_can_be_told_less(tmp_path: Path) -> None:
    best = kernels({})
    assert best == native.build_info()["kernels"]
    least = {"x86_64": "sse42", "aarch64": "armv8"}.get(platform.machine(), "native")
    assert kernels({"LMLITE_KERNELS": least}) == ("native" if best == "native" else least)
    assert kernels({"LMLITE_KERNELS": "none of them"}) == best
    assert environment({"LMLITE_KERNELS": least})["LMLITE_KERNELS"] == least
