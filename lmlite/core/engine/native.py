"""The native library: where it is, what was built, and one call that serves an engine.

`library_path` and `engine_path` look for files and load nothing: a server whose engines are child processes never maps
the library. `abi_version`, `build_info` and `serve` load it, once per process. All raise `BuildError` with what to do
when the library is missing or speaks another version than this package.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import BuildError
from ...package import native_file

ABI_VERSION: Final = 1
"""LM_ABI_VERSION of csrc/lmlite.h: what the frames of this package are made for."""

FIX: Final = (
    "Reinstall lmlite with `pip install --force-reinstall lmlite`, or in a source tree run "
    "`pip install -e .` (or `python setup.py build_native --inplace`)."
)
NO_CFFI: Final = (
    "cffi is not installed, with which this process would load it (`pip install cffi`); engines in processes of their own "
    "need none"
)


class Library(NamedTuple):
    """The opened library; `ffi` is the generated module's, `functions` has the `lm_*` of lmlite.h as attributes."""

    ffi: Any
    functions: Any


def library_path() -> Path:
    """The shared library beside this package's modules, wherever that package lies and whatever it is called."""
    return _built("liblmlite.dylib" if sys.platform == "darwin" else "liblmlite.so")


def engine_path() -> Path:
    """The program that serves one engine on the inherited socket whose number is its only argument."""
    return _built("lmlite-engine")


def abi_version() -> int:
    return int(_open().functions.lm_abi_version())


def build_info() -> dict[str, Any]:
    """`{"llama_cpp": commit, "version": llama.cpp's version, "backend": "cpu", "runtime": "llama.cpp-linux-x86_64-cpu",
    "kernels": "native"}`; of a portable build `kernels` is the set of instructions that it computes with here: "haswell"."""
    library = _open()
    text: bytes = library.ffi.string(library.functions.lm_build_info())
    info: dict[str, Any] = json.loads(text)
    return info


def serve(fd: int) -> int:
    """Serves one engine on the socket `fd` until its peer closes it, and closes it. Blocks with the GIL released.

    Returns 0, or a negative `lm_status` of csrc/lmlite.h. Owns `fd` from the call on, a failed one included.
    """
    try:
        functions = _open().functions
    except BuildError:
        os.close(fd)
        raise
    return int(functions.lm_engine_serve(fd))


def _built(name: str) -> Path:
    path = native_file(name)
    if not path.is_file():
        raise BuildError(f"{path} is missing: the native part of lmlite was not built. {FIX}")
    return path


@functools.cache
def _open() -> Library:
    """Loads the library and never lets go: llama.cpp leaves a handler of its own in the process."""
    path = library_path()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would fork a debugger; read as the library is loaded
    try:
        ffi = importlib.import_module("._lib", __package__).ffi  # made by the build, after this very header
        functions = ffi.dlopen(str(path))
        found = int(functions.lm_abi_version())
    except (ImportError, OSError, AttributeError) as error:
        if isinstance(error, ImportError) and error.name == "_cffi_backend":
            raise BuildError(f"{path} cannot be used: {NO_CFFI}.") from error
        raise BuildError(f"{path} cannot be used: {error}. {FIX}") from error
    if found != ABI_VERSION:
        raise BuildError(f"{path} speaks version {found} of the engine's protocol, this package {ABI_VERSION}. {FIX}")
    return Library(ffi, functions)
