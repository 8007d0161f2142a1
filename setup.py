"""Builds the native part with CMake and puts it into the package; everything else is in pyproject.toml.

    pip install .                                 a wheel for every CPython 3 on this platform
    pip wheel . -C target=aarch64-linux-gnu.2.28  one for another, or for older systems (with zig, which pip brings)
    python setup.py pyz [--with MODEL.gguf]...    dist/lmlite.pyz, which any CPython from 3.10 on runs as it is
    python setup.py build_native --inplace        (re)builds lmlite/lib in the source tree; --tests: the C++ tests too

Objects stay under build/native-<switches>, so a second build of either kind compiles only what changed.
Whatever is missing ends the build with one paragraph that says what, and how to get it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from setuptools import Command, setup

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    raise SystemExit("lmlite: setuptools is older than 77. Get a newer one with `pip install -U setuptools`.") from None
from setuptools.command.build import build
from setuptools.command.install import install as setuptools_install
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "vendor"), str(ROOT / "tools" / "onefile")]

import fetch  # noqa: E402, I001 (vendor/fetch.py)
import patch  # noqa: E402 (vendor/patch.py)
from build_backend import CROSS_COMPILER, SWITCHES, VARIABLES  # noqa: E402

JOB_MEMORY = 1_500_000_000
"""Bytes that the largest of llama.cpp's translation units needs: more jobs than fit end in a killed compiler."""

PATCHED = "patched"
"""Folder of the build's own where CMake finds the files of llama.cpp that are compiled with our changes."""

JOINT = "\n"
"""Between the models of `pyz`, once they are one option's value."""

Environ = Mapping[str, str]


# ---- switches --------------------------------------------------------------------------------------------------------


def is_on(environ: Environ, switch: str) -> bool | None:
    """The switch's value, None where it is not set."""
    value = environ.get(VARIABLES[switch], "").strip().lower()
    if value in ("1", "on", "true", "yes"):
        return True
    if value in ("0", "off", "false", "no"):
        return False
    if value:
        raise SystemExit(f"lmlite: {VARIABLES[switch]}={value!r} is neither 1 nor 0.")
    return None


def cmake_switches(environ: Environ) -> list[str]:
    """The CMake arguments that the switches mean; CMAKE_ARGS come last, so that they win."""
    names = {"cuda": "GGML_CUDA", "metal": "GGML_METAL", "vulkan": "GGML_VULKAN", "portable": "LMLITE_PORTABLE"}
    values = {switch: is_on(environ, switch) for switch in SWITCHES}
    arguments = [f"-D{names[key]}={'ON' if value else 'OFF'}" for key, value in values.items() if value is not None]
    try:
        return arguments + shlex.split(environ.get("CMAKE_ARGS", ""))
    except ValueError as error:
        raise SystemExit(f"lmlite: CMAKE_ARGS cannot be split into arguments: {error}.") from None


class Target(NamedTuple):
    """A Linux that is built for with zig: `x86_64-linux-gnu.2.28`, the number being the oldest glibc that will do."""

    name: str
    architecture: str

    @property
    def is_this_machine(self) -> bool:
        return self.architecture == platform.machine()


def target_of(environ: Environ) -> Target | None:
    name = environ.get(VARIABLES["target"], "").strip()
    if not name:
        return None
    parts = re.fullmatch(r"(x86_64|aarch64)-linux-gnu\.2\.\d+", name)
    if parts is None:
        raise SystemExit(
            f"lmlite: {VARIABLES['target']}={name} is no target: x86_64-linux-gnu.2.28 or aarch64-linux-gnu.2.28, for "
            "example, for a Linux with that glibc or a newer one."
        )
    for switch in SWITCHES:
        if switch != "portable" and is_on(environ, switch):
            raise SystemExit(f"lmlite: there is no `{switch}` in a build for a `target`, which is compiled for CPUs only.")
    return Target(name, parts[1])


def write_compilers(target: Target, folder: Path) -> list[str]:
    """Programs that are zig's compiler for that target, and the CMake arguments by which they are used."""
    found = importlib.util.find_spec(CROSS_COMPILER)
    if found is None or found.origin is None:
        raise SystemExit(
            f"lmlite: a build for a `target` is compiled with zig. pip brings it unless build isolation is off; get it with "
            f"`pip install {CROSS_COMPILER}`."
        )
    zig = Path(found.origin).parent / "zig"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cc", "c++", "ar", "ranlib"):
        program = folder / name
        command = f"{shlex.quote(str(zig))} {name}" + f" -target {target.name}" * (name in ("cc", "c++"))
        text = f'#!/bin/sh\nexec {command} "$@"\n'
        if not program.is_file() or program.read_text(encoding="utf-8") != text:  # compiler caches go by its time
            program.write_text(text, encoding="utf-8")
            program.chmod(0o755)
    tools = {"C_COMPILER": "cc", "CXX_COMPILER": "c++", "AR": "ar", "RANLIB": "ranlib"}
    arguments = [f"-DCMAKE_{variable}={folder / name}" for variable, name in tools.items()]
    arguments += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={target.architecture}"]
    arguments += [f"-DCMAKE_{kind}_LINKER_FLAGS=-s" for kind in ("SHARED", "EXE")]  # `strip` may not know the architecture
    return [*arguments, "-DLMLITE_ZIG=ON", "-DLMLITE_PORTABLE=ON"]


# ---- what a build needs ----------------------------------------------------------------------------------------------


def find_missing(environ: Environ) -> str | None:
    """What this machine lacks for the chosen switches, with the way to get it; None if nothing was found to lack."""
    path = environ.get("PATH")
    if shutil.which("cmake", path=path) is None:
        return "cmake is missing. pip brings it unless build isolation is off; get it with `pip install cmake ninja`."
    chosen_by_hand = re.search("CMAKE_CXX_COMPILER|TOOLCHAIN", environ.get("CMAKE_ARGS", ""))
    compilers = [shlex.split(environ["CXX"])[0]] if environ.get("CXX", "").strip() else ["c++", "g++", "clang++"]
    if not chosen_by_hand and target_of(environ) is None and not any(shutil.which(name, path=path) for name in compilers):
        return (
            f"no C++ compiler was found (looked for {', '.join(compilers)}). Get one with `apt install g++` (Debian, "
            "Ubuntu), `dnf install gcc-c++` (Fedora), `apk add g++ linux-headers` (Alpine) or `xcode-select --install` "
            "(macOS)."
        )
    if is_on(environ, "cuda"):
        places = ["nvcc", environ.get("CUDACXX", ""), *(f"{root}/bin/nvcc" for root in cuda_roots(environ))]
        if not any(place and shutil.which(place, path=path) for place in places):
            return (
                "`cuda` needs NVIDIA's compiler nvcc, which was not found. Install the CUDA toolkit, or name the "
                "compiler in CUDACXX."
            )
    if is_on(environ, "vulkan") and shutil.which("glslc", path=path) is None:
        return "`vulkan` needs the shader compiler glslc, which is missing. Try `apt install glslc libvulkan-dev`."
    return None


def with_own_programs(environ: Environ) -> dict[str, str]:
    """The environment in which those of CMake and Ninja are found first that were installed for this Python. Then what pip
    built in isolation and what is built from the virtual environment later is built by the same ones: another CMake would
    compile all of it a second time."""
    folders: list[str] = []
    for name in ("cmake", "ninja"):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        programs = [Path(str(file.locate())) for file in files if file.stem == name and file.parent.name in ("bin", "Scripts")]
        folders += [os.path.normpath(path.parent) for path in programs if path.is_file()][:1]
    path = [*dict.fromkeys(folders), environ.get("PATH", os.defpath)]
    return {**environ, "PATH": os.pathsep.join(path)}


def cuda_roots(environ: Environ) -> list[str]:
    """Where CMake looks for the toolkit besides PATH."""
    return [environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if environ.get(name)] + ["/usr/local/cuda"]


def find_tree(environ: Environ) -> Path:
    """llama.cpp's source: the tree that LMLITE_LLAMA_CPP names, else the pinned one."""
    named = environ.get("LMLITE_LLAMA_CPP", "")
    if not named:
        try:
            return fetch.fill()
        except fetch.FetchError as error:
            raise SystemExit(f"lmlite: {error}") from None
    tree = Path(named).expanduser().resolve()
    if not (tree / "include" / "llama.h").is_file():
        raise SystemExit(f"lmlite: LMLITE_LLAMA_CPP={named} is not a llama.cpp source tree: it has no include/llama.h.")
    return tree


def commit_of(tree: Path) -> str:
    """The commit for `lmlite --version`: the pin's for a tree that bears its stamp, else what git says of the tree."""
    if (tree / fetch.STAMP).is_file():
        return fetch.read_pin().commit
    command = ["git", "-C", str(tree), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def job_count() -> int:
    """As many compilers as there are cores for us and memory for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return cores
    return max(1, min(cores, int(available[1]) * 1024 // JOB_MEMORY)) if available else cores


# ---- the build -------------------------------------------------------------------------------------------------------


def configure(environ: Environ) -> Path:
    """Returns the build folder of these switches, configured."""
    missing = find_missing(environ)
    if missing is not None:
        raise SystemExit(f"lmlite: {missing}")
    tree = find_tree(environ)
    switches = cmake_switches(environ)
    target = target_of(environ)
    if target is not None:
        switches = [*write_compilers(target, ROOT / "build" / target.name), *switches]
    identity = repr([str(tree), switches, environ.get("CC"), environ.get("CXX"), environ.get("CXXFLAGS")])
    folder = ROOT / "build" / f"native-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    try:
        patch.apply_all(tree, folder / PATCHED)
    except patch.PatchError as error:
        raise SystemExit(f"lmlite: {error}") from None
    command = ["cmake", "-S", str(ROOT / "csrc"), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DLMLITE_LLAMA_CPP={tree}", f"-DLMLITE_LLAMA_COMMIT={commit_of(tree)}"]
    ninja = shutil.which("ninja", path=environ.get("PATH"))
    if ninja is not None:  # pip's isolated build puts it at another path each time
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run([*command, *switches], environ, "CMake could not prepare the build: its last words above say what it lacks.")
    return folder


def compile_targets(folder: Path, targets: Sequence[str], environ: Environ) -> None:
    jobs = environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(job_count())
    run(
        ["cmake", "--build", str(folder), "--parallel", jobs, "--target", *targets],
        environ,
        "the compiler failed: the first error above says where. A killed compiler is a lack of memory: try again with "
        "CMAKE_BUILD_PARALLEL_LEVEL=1. A compiler without C++17 (GCC before 8, Clang before 7) is too old.",
    )


def install(folder: Path, target: Path, strip: bool, environ: Environ) -> None:
    command = ["cmake", "--install", str(folder), "--component", "lmlite", "--prefix", str(target)]
    run(command + ["--strip"] * strip, environ, f"the library could not be put into {target}.")


def run(command: Sequence[str], environ: Environ, failure: str) -> None:
    print("lmlite:", shlex.join(command), flush=True)
    if subprocess.run(command, env={"CCACHE_BASEDIR": str(ROOT), **environ}).returncode != 0:
        raise SystemExit(f"lmlite: {failure}")


def copy_licences(tree: Path, target: Path) -> None:
    """What is linked into the library travels with its licence."""
    shutil.copyfile(tree / "LICENSE", target / "LICENSE-llama.cpp")
    for licence in (tree / "licenses").glob("LICENSE-*"):
        shutil.copyfile(licence, target / licence.name)


def declarations(header: str) -> str:
    """lmlite.h as cffi reads it: no preprocessor but the version's constant, no linkage, no attributes."""
    without_guards = re.sub(r"^#ifdef __cplusplus\n.*?^#endif\n", "", header, flags=re.MULTILINE | re.DOTALL)
    kept = re.compile(r"(?!#)|#define LM_\w+ \d+$")
    lines = [line.removeprefix("LM_API ") for line in without_guards.splitlines() if kept.match(line)]
    return "\n".join(lines)


def write_bindings(target: Path) -> None:
    """The out-of-line cffi module: plain Python, for the ABI of any CPython."""
    from cffi import FFI

    ffi = FFI()
    ffi.set_source("_lib", None)
    ffi.cdef(declarations((ROOT / "csrc" / "lmlite.h").read_text(encoding="utf-8")))
    target.parent.mkdir(parents=True, exist_ok=True)
    ffi.emit_python_code(str(target))


def manylinux(platform: str, library: bytes) -> str:
    """The tag of a wheel for every Linux whose glibc has what the library asks of it; `platform` for one that asks for none,
    or for libraries that not every Linux has."""
    asked = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?:\.\d+)?(?=\0)", library)]
    if not platform.startswith("linux_") or not asked or b"\0libstdc++.so.6\0" in library:
        return platform
    return f"manylinux_2_{max(*asked, 5)}_{platform.removeprefix('linux_')}"  # no older one has a name


# ---- setuptools ------------------------------------------------------------------------------------------------------


class BuildNative(Command):
    """Puts lib/ and core/engine/_lib.py into the package: the copy being built, or the source itself (in place, editable)."""

    description = "build the native library with CMake"
    user_options = [
        ("inplace", "i", "put it into the source tree"),
        ("build-lib=", "b", "folder of the package being built"),
        ("tests", None, "build the C++ tests too, as build/lmlite-tests"),
        ("bench", None, "build the yardstick of bench/embeddings.py too, as build/lmlite-raw-embed"),
    ]
    boolean_options = ["inplace", "tests", "bench"]
    editable_mode = False

    def initialize_options(self) -> None:
        self.inplace = self.tests = self.bench = 0
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    @property
    def in_place(self) -> bool:
        return bool(self.inplace or self.editable_mode)

    def package(self) -> Path:
        return ROOT / "lmlite" if self.in_place else Path(self.build_lib or "").resolve() / "lmlite"

    def run(self) -> None:
        package, environ = self.package(), with_own_programs(os.environ)
        folder = configure(environ)
        programs = ["lmlite-tests"] * self.tests + ["lmlite-raw-embed"] * self.bench
        compile_targets(folder, ["lmlite", "lmlite-engine", *programs], environ)
        strip = not self.in_place and target_of(environ) is None
        install(folder, package / "lib", strip=strip, environ=environ)
        copy_licences(find_tree(environ), package / "lib")
        write_bindings(package / "core" / "engine" / "_lib.py")
        for program in programs:
            shutil.copy2(folder / program, ROOT / "build" / f"{program}.new")
            (ROOT / "build" / f"{program}.new").replace(ROOT / "build" / program)  # it may be running

    def get_outputs(self) -> list[str]:
        package = self.package()
        return [str(path) for path in [*(package / "lib").glob("*"), package / "core" / "engine" / "_lib.py"]]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in names them


class Build(build):
    """Starts from an empty folder: what a build with other switches left, or a deleted module, must not be packed."""

    sub_commands = [*build.sub_commands, ("build_native", None)]

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class Install(setuptools_install):
    """Into the folder for packages with machine code, although setuptools knows of no extension module here."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.install_lib = self.install_platlib


class Wheel(bdist_wheel):
    """One wheel per platform: the library is loaded through its ABI and never sees Python's."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        platform, target = super().get_tag()[2], target_of(os.environ)
        if target is not None:
            platform = f"linux_{target.architecture}"
        libraries = list((Path(self.bdist_dir or "") / "lmlite" / "lib").glob("liblmlite.so"))
        if libraries and (target is not None or is_on(os.environ, "portable")):
            platform = manylinux(platform, libraries[0].read_bytes())
        return "py3", "none", platform


class OneFile(Command):
    """The package of this platform in one file."""

    description = "write dist/lmlite.pyz, which runs without being installed"
    user_options = [
        ("target=", "t", "the file to write (default: dist/lmlite.pyz)"),
        ("with=", "w", "a GGUF file to go with it, or its projector; may be given several times"),
    ]

    def initialize_options(self) -> None:
        self.target: str | None = None
        setattr(self, "with", None)  # the option's name

    def finalize_options(self) -> None:
        self.target = self.target or str(ROOT / "dist" / "lmlite.pyz")
        self.models = [Path(name).expanduser() for name in (getattr(self, "with") or "").split(JOINT) if name]

    def run(self) -> None:
        import onefile  # tools/onefile

        self.run_command("build")
        target = Path(self.target or "")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            onefile.write(Path(self.get_finalized_command("build").build_lib).resolve() / "lmlite", target, self.models)
        except (onefile.ModelError, OSError) as error:
            raise SystemExit(f"lmlite: {target} was not written: {error}") from None
        print(f"lmlite: {target} has {target.stat().st_size / 1e6:.1f} MB", flush=True)


def joined(arguments: Sequence[str]) -> list[str]:
    """The command line with all `--with` in one: of an option that comes several times setuptools takes the last."""
    kept: list[str] = []
    models: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--with", "-w"):
            models.append(next(rest, ""))
        elif argument.startswith("--with="):
            models.append(argument.removeprefix("--with="))
        else:
            kept.append(argument)
    return [*kept, *[f"--with={JOINT.join(models)}"] * bool(models)]


class SourceArchive(sdist):
    """Carries llama.cpp, so that installing from it needs no download."""

    def run(self) -> None:
        try:
            fetch.fill()
        except fetch.FetchError as error:
            raise SystemExit(f"lmlite: {error}") from None
        super().run()


if __name__ == "__main__":
    setup(
        script_args=joined(sys.argv[1:]),
        cmdclass={
            "build": Build,
            "build_native": BuildNative,
            "install": Install,
            "bdist_wheel": Wheel,
            "pyz": OneFile,
            "sdist": SourceArchive,
        }
    )
