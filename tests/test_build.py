"""What the build fetches and refuses, what the switches mean, what a failure says. Nothing is compiled."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
HEADER = (ROOT / "csrc" / "lmlite.h").read_text(encoding="utf-8")
TOP = "llama_cpp_python-9/vendor/llama.cpp"


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"under_test_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("fetch", "patch", "build_backend"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return load_module(ROOT / "setup.py")


@pytest.fixture
def backend() -> Any:
    return load_module(ROOT / "build_backend.py")


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vendor/fetch.py with a vendor folder of its own, so that nothing real is touched."""
    module = load_module(ROOT / "vendor" / "fetch.py")
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    monkeypatch.setattr(module, "VENDOR", vendor)
    monkeypatch.setattr(module, "TREE", vendor / "llama.cpp")
    return module


def archive(path: Path, members: Mapping[str, bytes], extra: Callable[[tarfile.TarFile], None] | None = None) -> str:
    """Writes a source archive and returns its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if extra is not None:
            extra(tar)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pin(fetch: Any, monkeypatch: pytest.MonkeyPatch, sha256: str) -> Any:
    pinned = fetch.Pin("llama-cpp-python", "9", sha256, "vendor/llama.cpp", "0" * 40)
    monkeypatch.setattr(fetch, "read_pin", lambda: pinned)
    return pinned


TREE = {
    f"{TOP}/include/llama.h": b"header",
    f"{TOP}/src/llama.cpp": b"source",
    f"{TOP}/ggml/src/ggml.c": b"kernel",
    f"{TOP}/ggml/src/ggml-sycl/x.cpp": b"another backend",
    f"{TOP}/models/ggml-vocab-aquila.gguf": b"vocabulary",
    f"{TOP}/tools/server/server.cpp": b"server",
    "llama_cpp_python-9/setup.py": b"not llama.cpp's",
}


# ---- the source of llama.cpp -----------------------------------------------------------------------------------------


def test_the_tree_holds_only_what_the_build_needs(fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(fetch, monkeypatch, archive(tmp_path / "a.tar.gz", TREE))
    tree = fetch.fill(fetch.TREE, tmp_path / "a.tar.gz")
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    assert files == {"include/llama.h", "src/llama.cpp", "ggml/src/ggml.c", fetch.STAMP}
    assert [path.name for path in tree.parent.iterdir()] == ["llama.cpp"]


def test_a_filled_tree_is_left_alone(fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(fetch, monkeypatch, archive(tmp_path / "a.tar.gz", TREE))
    tree = fetch.fill(fetch.TREE, tmp_path / "a.tar.gz")
    before = tree.stat().st_ino
    assert fetch.fill(fetch.TREE, tmp_path / "gone.tar.gz").stat().st_ino == before


def test_another_pin_replaces_the_whole_tree(fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(fetch, monkeypatch, archive(tmp_path / "a.tar.gz", TREE))
    fetch.fill(fetch.TREE, tmp_path / "a.tar.gz")
    pin(fetch, monkeypatch, archive(tmp_path / "b.tar.gz", {f"{TOP}/include/llama.h": b"newer"}))
    tree = fetch.fill(fetch.TREE, tmp_path / "b.tar.gz")
    assert (tree / "include" / "llama.h").read_bytes() == b"newer"
    assert not (tree / "src").exists()


def test_an_archive_with_another_checksum_is_not_unpacked(
    fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(tmp_path / "a.tar.gz", TREE)
    pin(fetch, monkeypatch, "0" * 64)
    with pytest.raises(fetch.FetchError, match=r"SHA-256 is [0-9a-f]{64}, expected 0{64}"):
        fetch.fill(fetch.TREE, tmp_path / "a.tar.gz")
    assert list(fetch.VENDOR.iterdir()) == []


@pytest.mark.parametrize("name", [f"{TOP}/src/../../../../escape.cpp", f"{TOP}/src/./../../x", f"{TOP}//src/x"])
def test_a_path_that_leaves_the_folder_is_refused(fetch: Any, tmp_path: Path, name: str) -> None:
    archive(tmp_path / "a.tar.gz", {name: b"x"})
    with pytest.raises(fetch.FetchError, match="leaves its folder"):
        fetch.unpack(tmp_path / "a.tar.gz", "vendor/llama.cpp", tmp_path / "out", lambda path: True)
    assert not (tmp_path / "out").exists()


def test_links_and_devices_are_not_unpacked(fetch: Any, tmp_path: Path) -> None:
    def add(tar: tarfile.TarFile) -> None:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"{TOP}/src/{name}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)

    archive(tmp_path / "a.tar.gz", {f"{TOP}/src/file": b"x"}, add)
    fetch.unpack(tmp_path / "a.tar.gz", "vendor/llama.cpp", tmp_path / "out", lambda path: True)
    assert [path.name for path in (tmp_path / "out" / "src").iterdir()] == ["file"]


def test_a_copy_in_vendor_saves_the_download(fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = fetch.VENDOR / "llama_cpp_python-9.tar.gz"
    pin(fetch, monkeypatch, archive(copy, TREE))
    assert (fetch.fill(fetch.TREE) / "include" / "llama.h").exists()


@pytest.mark.parametrize(
    ("output", "cause"),
    [("No module named pip", "pip is missing"), ("Could not find a version", "see pip's words above")],
)
def test_a_failed_download_says_how_to_do_without(
    fetch: Any, monkeypatch: pytest.MonkeyPatch, output: str, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(fetch, monkeypatch, "0" * 64)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, stdout=output))
    with pytest.raises(fetch.FetchError) as caught:
        fetch.fill(fetch.TREE)
    for word in (cause, "llama-cpp-python==9", "llama_cpp_python-9.tar.gz", "LMLITE_LLAMA_CPP", "000000000"):
        assert word in str(caught.value)
    assert output in capsys.readouterr().err
    assert list(fetch.VENDOR.iterdir()) == []


def test_the_pin_names_a_full_commit_and_checksum() -> None:
    pinned = load_module(ROOT / "vendor" / "fetch.py").read_pin()
    assert re.fullmatch("[0-9a-f]{40}", pinned.commit) and re.fullmatch("[0-9a-f]{64}", pinned.sha256)


# ---- switches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "arguments"),
    [
        ({}, []),
        ({"LMLITE_CUDA": "1"}, ["-DGGML_CUDA=ON"]),
        ({"LMLITE_METAL": "off"}, ["-DGGML_METAL=OFF"]),
        ({"LMLITE_VULKAN": "ON", "LMLITE_PORTABLE": "true"}, ["-DGGML_VULKAN=ON", "-DLMLITE_PORTABLE=ON"]),
        ({"LMLITE_CUDA": ""}, []),
        (
            {"LMLITE_CUDA": "1", "CMAKE_ARGS": "-DGGML_CUDA=OFF '-DCMAKE_CXX_FLAGS=-g -O1'"},
            ["-DGGML_CUDA=ON", "-DGGML_CUDA=OFF", "-DCMAKE_CXX_FLAGS=-g -O1"],
        ),
    ],
)
def test_switches_become_cmake_arguments(setup: Any, environ: dict[str, str], arguments: list[str]) -> None:
    assert setup.cmake_switches(environ) == arguments


def test_a_setuptools_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setuptools.command.bdist_wheel", None)  # as if it were not there
    with pytest.raises(SystemExit, match="`pip install -U setuptools`"):
        load_module(ROOT / "setup.py")


@pytest.mark.parametrize("environ", [{"LMLITE_CUDA": "maybe"}, {"CMAKE_ARGS": "'unclosed"}])
def test_a_switch_that_means_nothing_ends_the_build(setup: Any, environ: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match=next(iter(environ))):
        setup.cmake_switches(environ)


@pytest.mark.parametrize(
    ("settings", "variables"),
    [
        (None, {}),
        ({"cuda": "1"}, {"LMLITE_CUDA": "1"}),
        ({"LMLITE_PORTABLE": "1"}, {"LMLITE_PORTABLE": "1"}),
        ({"cmake-args": ["-DA=1", "-DB=2"]}, {"CMAKE_ARGS": "-DA=1 -DB=2"}),
        ({"CMAKE_ARGS": "-DA=1"}, {"CMAKE_ARGS": "-DA=1"}),
        ({"llama_cpp": "/tree"}, {"LMLITE_LLAMA_CPP": "/tree"}),
        ({"editable_mode": "strict", "--build-option": "-q"}, {}),
    ],
)
def test_settings_become_variables(backend: Any, settings: Any, variables: dict[str, str]) -> None:
    environ: dict[str, str] = {}
    backend.apply_settings(settings, environ)
    assert environ == variables


def test_a_setting_wins_over_the_variable(backend: Any) -> None:
    environ = {"LMLITE_CUDA": "1"}
    backend.apply_settings({"cuda": "0"}, environ)
    assert environ == {"LMLITE_CUDA": "0"}


def test_an_unknown_setting_ends_the_build(backend: Any) -> None:
    with pytest.raises(SystemExit, match="no build setting 'cdua'. Known: cuda, metal, vulkan, portable"):
        backend.apply_settings({"cdua": "1"}, {})


@pytest.mark.parametrize(
    "name", ["aarch64", "x86_64-linux-musl", "riscv64-linux-gnu.2.28", "x86_64-linux-gnu", "x86_64-linux-gnu.2.28 -O0"]
)
def test_a_target_that_nothing_is_built_for_ends_the_build(setup: Any, name: str) -> None:
    with pytest.raises(SystemExit, match=r"is no target: x86_64-linux-gnu.2.28 or"):
        setup.target_of({"LMLITE_TARGET": name})


def test_a_target_is_compiled_for_cpus_only(setup: Any) -> None:
    with pytest.raises(SystemExit, match="there is no `cuda` in a build for a `target`"):
        setup.target_of({"LMLITE_TARGET": "x86_64-linux-gnu.2.28", "LMLITE_CUDA": "1"})


def test_pip_is_asked_for_the_cross_compiler_where_there_is_a_target(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.os, "environ", {})
    assert "ziglang" not in backend.get_requires_for_build_wheel({"portable": "1"})
    assert "ziglang" in backend.get_requires_for_build_wheel({"target": "aarch64-linux-gnu.2.28"})


def test_a_target_has_a_compiler_of_its_own(setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "zig").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (package / "zig").chmod(0o755)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    target = setup.target_of({"LMLITE_TARGET": "aarch64-linux-gnu.2.28"})
    arguments = dict(it.removeprefix("-D").split("=", 1) for it in setup.write_compilers(target, tmp_path / "zig"))
    assert arguments["CMAKE_SYSTEM_PROCESSOR"] == "aarch64" and arguments["LMLITE_PORTABLE"] == "ON"
    said = subprocess.run([arguments["CMAKE_CXX_COMPILER"], "-c", "a b"], capture_output=True, text=True).stdout
    assert said == "c++|-target|aarch64-linux-gnu.2.28|-c|a b|"
    written = Path(arguments["CMAKE_CXX_COMPILER"]).stat().st_mtime_ns
    setup.write_compilers(target, tmp_path / "zig")
    assert Path(arguments["CMAKE_CXX_COMPILER"]).stat().st_mtime_ns == written  # by which compiler caches go


def test_a_target_without_zig_says_where_it_is_from(setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit, match="`pip install ziglang`"):
        setup.write_compilers(setup.target_of({"LMLITE_TARGET": "x86_64-linux-gnu.2.17"}), tmp_path)


def test_portable_names_every_cpu_feature_of_llama_cpp() -> None:
    cmake = ROOT / "vendor" / "llama.cpp" / "ggml" / "CMakeLists.txt"
    if not cmake.exists():
        pytest.skip("built from a tree of one's own")
    text = cmake.read_text(encoding="utf-8")
    theirs = set(re.findall(r"option\(GGML_(SSE\w+|AVX\w*|BMI\w*|FMA|F16C|AMX\w*)\s", text))
    ours = (ROOT / "csrc" / "CMakeLists.txt").read_text(encoding="utf-8")
    named = {word for words in re.findall(r"foreach\(feature ([^)]*)\)", ours) for word in words.split()}
    assert len(theirs) > 10 and named == theirs


# ---- what a failure says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "environ", "words"),
    [
        ([], {}, ["cmake is missing", "pip install cmake ninja"]),
        (["cmake"], {}, ["no C++ compiler", "apt install g++", "xcode-select --install"]),
        (["cmake", "g++"], {"CXX": "nowhere-c++ -m64"}, ["no C++ compiler", "nowhere-c++"]),
        (["cmake", "g++"], {"LMLITE_CUDA": "1", "CUDA_PATH": "/nowhere"}, ["nvcc", "CUDACXX"]),
        (["cmake", "g++"], {"LMLITE_VULKAN": "1"}, ["glslc"]),
    ],
)
def test_what_is_missing_is_named_with_its_cure(
    setup: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    present: list[str],
    environ: dict[str, str],
    words: list[str],
) -> None:
    monkeypatch.setattr(setup, "cuda_roots", lambda environ: [environ.get("CUDA_PATH", "")])
    make_programs(tmp_path, present)
    missing = setup.find_missing({"PATH": str(tmp_path), **environ})
    assert missing is not None
    assert [word for word in words if word not in missing] == []


@pytest.mark.parametrize(
    "environ",
    [{}, {"LMLITE_CUDA": "0"}, {"CXX": "g++ -m64"}, {"CMAKE_ARGS": "-DCMAKE_CXX_COMPILER=/opt/cc", "CXX": "nowhere"}],
)
def test_nothing_is_missing_where_all_is_there(setup: Any, tmp_path: Path, environ: dict[str, str]) -> None:
    make_programs(tmp_path, ["cmake", "g++"])
    assert setup.find_missing({"PATH": str(tmp_path), **environ}) is None


def test_the_cmake_that_comes_with_this_python_is_the_one_that_builds(
    setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether pip builds in isolation or a virtual environment that nobody activated: another CMake compiles all anew."""
    site, programs = tmp_path / "lib" / "site", tmp_path / "bin"
    programs.mkdir()
    make_programs(programs, ["cmake"])
    information = site / "cmake-9.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: cmake\nVersion: 9\n")
    (information / "RECORD").write_text("cmake/data/bin/cmake,,\n../../bin/cmake,,\n")
    monkeypatch.setattr(sys, "path", [str(site)])
    assert setup.with_own_programs({"PATH": "/system", "A": "b"}) == {"PATH": f"{programs}{os.pathsep}/system", "A": "b"}
    (programs / "cmake").unlink()
    assert setup.with_own_programs({"PATH": "/system"}) == {"PATH": "/system"}


def make_programs(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


def test_a_folder_that_is_no_llama_cpp_is_refused(setup: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no include/llama.h"):
        setup.find_tree({"LMLITE_LLAMA_CPP": str(tmp_path)})


def test_a_tree_of_ones_own_is_used_as_it_is(setup: Any, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "llama.h").touch()
    assert setup.find_tree({"LMLITE_LLAMA_CPP": str(tmp_path)}) == tmp_path.resolve()


# ---- our changes of llama.cpp -----------------------------------------------------------------------------------------


DIFF = """--- a/src/x.c
+++ b/src/x.c
@@ -2,3 +2,4 @@
 two
-three
+drei
+3
 four
@@ -7,2 +8,1 @@
 seven
-eight
"""
NUMBERS = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n"


@pytest.fixture
def patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vendor/patch.py with one diff, and a tree that it fits."""
    module = load_module(ROOT / "vendor" / "patch.py")
    monkeypatch.setattr(module, "PATCHES", tmp_path / "patches")
    for name, text in {"patches/x.c.patch": DIFF, "tree/src/x.c": NUMBERS}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    return module


def test_a_tree_that_fits_is_patched_in_a_copy(patch: Any, tmp_path: Path) -> None:
    (copy,) = patch.apply_all(tmp_path / "tree", tmp_path / "copies")
    assert copy == tmp_path / "copies" / "src" / "x.c"
    assert copy.read_text() == "one\ntwo\ndrei\n3\nfour\nfive\nsix\nseven\n"
    assert (tmp_path / "tree" / "src" / "x.c").read_text() == NUMBERS


def test_a_copy_that_is_right_is_left_alone_and_one_that_is_not_is_made_anew(patch: Any, tmp_path: Path) -> None:
    (copy,) = patch.apply_all(tmp_path / "tree", tmp_path / "copies")
    os.utime(copy, (1, 1))
    patch.apply_all(tmp_path / "tree", tmp_path / "copies")
    assert copy.stat().st_mtime == 1  # nothing is compiled again
    copy.write_text("of another tree")
    patch.apply_all(tmp_path / "tree", tmp_path / "copies")
    assert "drei" in copy.read_text()


@pytest.mark.parametrize("text", [f"a line more\n{NUMBERS}", NUMBERS.replace("five\n", "five\n5\n"), f"{NUMBERS}two\n"])
def test_code_that_has_only_moved_fits(patch: Any, text: str) -> None:
    assert "drei" in patch.apply(DIFF, text)


@pytest.mark.parametrize(
    "text",
    [
        NUMBERS.replace("two", "2"),
        NUMBERS.replace("three", " three"),
        NUMBERS.replace("three\n", ""),
        NUMBERS.replace("two\nthree", "two\n\nthree"),
        f"{NUMBERS}two\nthree\nfour\n",
        NUMBERS.replace("one\ntwo", "one, two"),
        NUMBERS.replace("eight", "eighty"),
        "",
    ],
)
def test_code_that_differs_is_refused_with_what_to_do(patch: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "tree" / "src" / "x.c").write_text(text)
    with pytest.raises(patch.PatchError) as caught:
        patch.apply_all(tmp_path / "tree", tmp_path / "copies")
    for words in ("x.c.patch does not fit", "times, not once", "vendor/llama.cpp.json", "unset LMLITE_LLAMA_CPP"):
        assert words in str(caught.value)
    assert not (tmp_path / "copies").exists()


def test_a_file_that_is_not_there_is_refused_with_what_to_do(patch: Any, tmp_path: Path) -> None:
    (tmp_path / "tree" / "src" / "x.c").unlink()
    with pytest.raises(patch.PatchError, match="No such file.*unset LMLITE_LLAMA_CPP"):
        patch.apply_all(tmp_path / "tree", tmp_path / "copies")


@pytest.mark.parametrize("diff", ["", "+++ b/x.c\n", "--- a/x.c\n+++ b/x.c\n@@ -1 +1 @@\n one\ntwo\n"])
def test_a_damaged_diff_is_refused(patch: Any, diff: str) -> None:
    with pytest.raises(ValueError):
        patch.apply(diff, NUMBERS)


def test_a_build_from_a_tree_that_does_not_fit_ends_before_it_begins(
    setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("include/llama.h", "ggml/src/ggml-cpu/ggml-cpu.c"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("/* quite another llama.cpp */\n")
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "find_missing", lambda environ: None)
    with pytest.raises(SystemExit, match="lmlite: vendor/patches/.*.patch does not fit .*unset LMLITE_LLAMA_CPP"):
        setup.configure({"LMLITE_LLAMA_CPP": str(tmp_path)})


def test_our_changes_fit_the_pinned_tree_and_leave_it_as_it_is(tmp_path: Path) -> None:
    tree = ROOT / "vendor" / "llama.cpp"
    if not tree.exists():
        pytest.skip("built from a tree of one's own")
    words = {
        "ggml/src/ggml-cpu/amx/mmq.cpp": "lm_parallel_for",
        "tools/mtmd/clip.cpp": "lm_open_part",
        "ggml/src/ggml-cpu/ggml-cpu.c": "lm_wait_a_moment",
        "ggml/src/gguf.cpp": "lm_open_part",
        "common/jinja/runtime.cpp": "count_nodes",
        "common/jinja/value.cpp": "lm::count_step",
        "src/llama-kv-cache.cpp": "lm_forget_zeros",
        "src/llama-mmap.cpp": "lm_open_part",
        "src/llama-mmap.h": "lm_open_part",
    }
    names = list(words)
    originals = [(tree / name).read_text(encoding="utf-8") for name in names]
    copies = load_module(ROOT / "vendor" / "patch.py").apply_all(tree, tmp_path)
    assert copies == [tmp_path / name for name in names]
    for copy, original, word in zip(copies, originals, words.values(), strict=True):
        assert word in copy.read_text(encoding="utf-8") and word not in original
    assert [(tree / name).read_text(encoding="utf-8") for name in names] == originals


def test_the_build_compiles_each_file_that_is_changed() -> None:
    cmake = (ROOT / "csrc" / "CMakeLists.txt").read_text(encoding="utf-8")
    patches = ROOT / "vendor" / "patches"
    for diff in patches.glob("*.patch"):
        (name,) = re.findall(r"^\+\+\+ b/(\S+)$", diff.read_text(encoding="utf-8"), re.MULTILINE)
        if name.endswith(".h"):  # which is found beside the changed file that reads it
            assert (patches / diff.name.replace(".h.", ".cpp.")).exists()
            continue
        in_ggml = rf"foreach\(file [^)]*\b{re.escape(name.removeprefix('ggml/src/'))}\b"
        assert re.search(rf"{in_ggml}|use_patched\([^)]* {re.escape(name)}\)", cmake)


def test_the_source_archive_carries_our_changes() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    assert "vendor/patch.py" in manifest and "vendor/patches/*.patch" in manifest


# ---- the surface of the library --------------------------------------------------------------------------------------


def exported() -> set[str]:
    return set(re.findall(r"^LM_API .*?\b(lm_\w+)\(", HEADER, flags=re.MULTILINE))


def test_the_bindings_hold_the_header(setup: Any, tmp_path: Path) -> None:
    setup.write_bindings(tmp_path / "core" / "_lib.py")
    text = (tmp_path / "core" / "_lib.py").read_text()
    assert set(re.findall(r"(?<=x23)lm_\w+", text)) == exported() != set()
    assert "LM_ABI_VERSION" in text


def test_the_list_for_macos_is_the_header(setup: Any) -> None:
    listed = {line.removeprefix("_") for line in (ROOT / "csrc" / "exports.txt").read_text().split()}
    assert listed == exported()


# ---- wheels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "platform", "tag"),
    [
        (["GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.9"], "linux_x86_64", "manylinux_2_34_x86_64"),
        (["GLIBC_2.17", "GLIBC_2.28"], "linux_aarch64", "manylinux_2_28_aarch64"),
        (["GLIBC_2.2.5"], "linux_x86_64", "manylinux_2_5_x86_64"),
        ([], "linux_x86_64", "linux_x86_64"),  # another C library
        (["GLIBC_2.17", "libstdc++.so.6"], "linux_x86_64", "linux_x86_64"),
        (["GLIBC_2.17"], "macosx_11_0_arm64", "macosx_11_0_arm64"),
    ],
)
def test_a_portable_wheel_is_for_each_linux_that_has_what_its_library_asks_for(
    setup: Any, asked: list[str], platform: str, tag: str
) -> None:
    library = b"\0".join([b"\x7fELF", *map(str.encode, asked), b"_ZGLIBC_2.99", b""])
    assert setup.manylinux(platform, library) == tag
