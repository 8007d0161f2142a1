"""No input makes the header reader raise anything but GgufError, take long, or take much memory."""

from __future__ import annotations

import os
import re
import struct
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlite.core.disk import gguf as reader
from lmlite.core.disk.chat_template import reads_tools
from lmlite.core.disk.gguf import GgufError, facts, read_header
from tests.core.gguf_files import (
    ARRAY,
    F32,
    FLOAT32,
    Q4_K,
    STRING,
    UINT32,
    Tensor,
    Typed,
    floats,
    gguf,
    llama,
    pair,
    prologue,
    strings,
    text,
    uint32,
)

HUGE = [2**31, 2**60, 2**63, 2**64 - 1]
SOUND = gguf(
    llama(general__alignment=uint32(64), general__size_label="7B"),
    [Tensor("a", (256, 2), Q4_K), Tensor("b", (3,), F32)],
    alignment=64,
)


def reason(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert str(tmp_path) not in caught.value.reason
    assert len(caught.value.reason) < 200 and caught.value.reason.isprintable()
    return caught.value.reason


def array(kind: int, count: int, raw: bytes = b"") -> Typed:
    return Typed(ARRAY, struct.pack("<IQ", kind, count) + raw)


# ---- M1: what is no GGUF file ----


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"GG", "incomplete"),
        (b"GGUF", "incomplete"),
        (b"PK\x03\x04" + bytes(60), "not a GGUF file"),
        (b"GGUG" + SOUND[4:], "not a GGUF file"),
        (bytes(100), "not a GGUF file"),
        (prologue(0, 0, 0), "version 0"),
        (prologue(0, 0, 1), "version 1"),
        (prologue(0, 0, 99), "version 99"),
        (b"GGUF" + struct.pack(">Iqq", 3, 0, 0), "big-endian"),
    ],
)
def test_what_is_no_readable_gguf_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    assert why in reason(tmp_path, content)


# ---- M2: cut off ----


def test_a_header_cut_anywhere_is_incomplete(tmp_path: Path) -> None:
    header_bytes = len(gguf(llama(), [Tensor("a", (256, 2), Q4_K), Tensor("b", (3,), F32)], data=False))
    whole = gguf(llama(), [Tensor("a", (256, 2), Q4_K), Tensor("b", (3,), F32)])
    for n in range(1, header_bytes):
        assert reason(tmp_path, whole[:n]).startswith("incomplete file")


@pytest.mark.parametrize("missing", [1, 12, 200])
def test_tensors_behind_the_end_are_told_with_both_sizes(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SOUND[:-missing])
    assert read_header(path).incomplete == f"incomplete file: {len(SOUND) - missing} of {len(SOUND)} bytes"


# ---- M3: lengths beyond any file ----


def claims(n: int) -> dict[str, bytes]:
    as_u64 = struct.pack("<Q", n)
    signed = as_u64
    return {
        "keys": b"GGUF" + struct.pack("<Iq", 3, 0) + signed,
        "tensors": b"GGUF" + struct.pack("<I", 3) + signed + struct.pack("<q", 0),
        "key length": prologue(0, 1) + as_u64 + b"general.name",
        "string length": prologue(0, 1) + text("k") + struct.pack("<I", STRING) + as_u64 + b"x",
        "template length": prologue(0, 1) + text("tokenizer.chat_template") + struct.pack("<I", STRING) + as_u64,
        "floats": prologue(0, 1) + pair("k", array(FLOAT32, n)),
        "strings": prologue(0, 1) + pair("k", array(STRING, n, bytes(80))),
        "length inside an array": prologue(0, 1) + pair("k", array(STRING, 3, text("a") + as_u64 + b"b")),
        "last length of an array": prologue(0, 1) + pair("k", array(STRING, 2, text("a") + as_u64)),
        "tensor name": prologue(1, 0) + as_u64 + b"x",
    }


@pytest.mark.parametrize("claim", sorted(claims(0)))
@pytest.mark.parametrize("n", HUGE)
def test_a_huge_length_costs_no_memory(tmp_path: Path, claim: str, n: int) -> None:
    content = claims(n)[claim]
    tracemalloc.start()
    try:
        reason(tmp_path, content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


def test_an_endless_sparse_file_of_strings_is_given_up_soon(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(prologue(0, 1) + pair("k", array(STRING, 1 << 33)))
        file.truncate(1 << 40)
    begun = time.process_time()
    with pytest.raises(GgufError, match="strings"):
        read_header(path)
    assert time.process_time() - begun < 1


def test_strings_are_counted_over_all_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_STRINGS_WALKED", 10)
    assert "strings" in reason(tmp_path, gguf({"a": strings(["x"] * 6), "b": strings(["x"] * 6)}))


def test_a_header_is_not_followed_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(prologue(0, 1) + pair("k", array(FLOAT32, 1 << 30)))
        file.truncate(1 << 40)
    with pytest.raises(GgufError, match="a header of more than"):
        read_header(path)


def test_metadata_that_fills_memory_is_refused(tmp_path: Path) -> None:
    assert "bytes of metadata" in reason(tmp_path, gguf({f"k{n}": "x" * 60_000 for n in range(80)}))


def test_long_strings_are_walked_over(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"licence": "x" * 3_000_000, "tokenizer.chat_template": "x" * 2_000_000, "after": 1}))
    assert read_header(path).values == {"after": 1}


# ---- M4: values that make no sense ----


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (uint32(0), "alignment 0"),
        (uint32(3), "alignment 3"),
        ("32", "uint32"),
        (Typed(10, bytes(8)), "uint32"),
        (floats(1), "uint32"),
    ],
)
def test_an_odd_alignment_is_refused(tmp_path: Path, value: object, why: str) -> None:
    assert why in reason(tmp_path, gguf({"general.alignment": value}))


@pytest.mark.parametrize("kind", [13, 255, 2**32 - 1])
def test_an_unknown_value_type_is_refused(tmp_path: Path, kind: int) -> None:
    assert f"unknown type {kind}" in reason(tmp_path, gguf({"k": Typed(kind, bytes(64))}))


@pytest.mark.parametrize("kind", [ARRAY, 13, 2**32 - 1])
def test_an_array_of_arrays_or_of_unknown_type_is_refused(tmp_path: Path, kind: int) -> None:
    assert "array" in reason(tmp_path, gguf({"k": array(kind, 1, bytes(64))}))


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    assert "duplicate key" in reason(tmp_path, gguf([("k", 1), ("k", 2)]))


def test_an_empty_key_is_refused(tmp_path: Path) -> None:
    assert "key of 0 bytes" in reason(tmp_path, gguf({"": 1}))


def test_a_key_cannot_smuggle_control_characters_into_the_reason(tmp_path: Path) -> None:
    assert "\\n" in reason(tmp_path, gguf([("a\n\x1b[31m", 1), ("a\n\x1b[31m", 2)]))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ([Tensor("a", (0,))], "shape"),
        ([Tensor("a", (4, 0))], "shape"),
        ([Tensor("a", (-4,))], "shape"),
        ([Tensor("a", (2**32, 2**32))], "shape"),
        ([Tensor("a", (2**62, 2, 2, 2))], "shape"),
        ([Tensor("a", (1, 1, 1, 1, 1))], "5 dimensions"),
        ([Tensor("a", (255,), Q4_K)], "blocks"),
        ([Tensor("a", (4,), 255)], "unknown type 255"),
        ([Tensor("a", (4,), -1)], "unknown type -1"),
        ([Tensor("a", (4,), 4)], "unknown type 4"),
        ([Tensor("a"), Tensor("a")], "duplicate tensor"),
        ([Tensor("a" * 64)], "64 bytes"),
        ([Tensor("a", offset=32)], "offset 32"),
        ([Tensor("a", offset=2**63)], "offset"),
        ([Tensor("a"), Tensor("b", offset=0)], "offset 0"),
    ],
)
def test_an_impossible_tensor_is_refused(tmp_path: Path, tensors: list[Tensor], why: str) -> None:
    assert why in reason(tmp_path, gguf({}, tensors, data=False) + bytes(64))


def test_more_dimensions_than_a_file_holds_are_refused(tmp_path: Path) -> None:
    assert "dimensions" in reason(tmp_path, prologue(1, 0) + text("a") + struct.pack("<I", 2**32 - 1))


# ---- M12: what is no regular file ----


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError):
        read_header(tmp_path)


def test_a_file_that_is_not_there_is_refused_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=f"^{re.escape(os.strerror(2).lower())}$"):
        read_header(tmp_path / "none.gguf")


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="not a file name"):
        read_header(tmp_path / "a\0b.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_devices_and_link_loops_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)
    for path in (loop, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(GgufError):
            read_header(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_without_a_writer_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "fifo.gguf"
    os.mkfifo(path)
    caught: list[GgufError] = []

    def read() -> None:
        try:
            read_header(path)
        except GgufError as error:
            caught.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(10)
    assert not reading.is_alive()
    assert len(caught) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SOUND)
    path.chmod(0)
    with pytest.raises(GgufError, match="permission"):
        read_header(path)


# ---- anything else ----


class Counting(reader._Cursor):
    """Counts what is looked at, and how often the file is."""

    n_steps = n_reads = 0

    def take(self, n: int) -> bytes:
        Counting.n_steps += 1
        return super().take(n)

    def _move(self, position: int) -> None:
        Counting.n_steps += 1
        super()._move(position)

    def _fill(self, n: int) -> None:
        Counting.n_reads += 1
        super()._fill(n)


def try_to_read(content: bytes, path: Path) -> None:
    """Fails on any other exception than GgufError, and for more steps than the file has bytes."""
    path.write_bytes(content)
    Counting.n_steps = Counting.n_reads = 0
    with mock.patch.object(reader, "_Cursor", Counting):
        try:
            facts([read_header(path)])
        except GgufError as error:
            assert len(error.reason) < 200
    assert 0 < Counting.n_steps <= len(content) and Counting.n_reads <= Counting.n_steps


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.gguf"


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, len(SOUND)),
)
def test_mutated_and_cut_files_are_read_or_refused(scratch: Path, edits: list[tuple[int, int]], end: int) -> None:
    content = bytearray(SOUND)
    for at, byte in edits:
        content[at] = byte
    try_to_read(bytes(content[: max(end, 24)]), scratch)


@settings(max_examples=200)
@given(st.integers(4, len(SOUND) - 8), st.sampled_from([*HUGE, 0, 1, 255, 2**32 - 1, 2**63 - 1]))
def test_any_eight_bytes_can_be_any_number(scratch: Path, at: int, n: int) -> None:
    try_to_read(SOUND[:at] + struct.pack("<Q", n) + SOUND[at + 8 :], scratch)


@settings(max_examples=200)
@given(st.integers(0, 3), st.integers(0, 3), st.binary(max_size=400))
def test_noise_behind_a_sound_beginning_is_read_or_refused(
    scratch: Path, n_tensors: int, n_keys: int, noise: bytes
) -> None:
    try_to_read(prologue(n_tensors, n_keys) + noise, scratch)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "{#", "#}", "tools", " ", "x", "'"]), max_size=200))
def test_any_template_is_scanned(pieces: list[str]) -> None:
    assert reads_tools("".join(pieces)) in (True, False)


@pytest.mark.parametrize("piece", ["{{", "{%", "{{}}", "{# ", "tools"])
def test_a_template_of_a_megabyte_is_scanned_in_linear_time(piece: str) -> None:
    begun = time.process_time()
    assert not reads_tools(piece * ((1 << 20) // len(piece)))
    assert time.process_time() - begun < 2


def test_a_value_of_the_wrong_type_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(llama(llama__context_length="many", general__file_type="Q8", general__type=uint32(UINT32))))
    known = facts([read_header(path)])
    assert (known.context_length, known.quantization, known.general_type) == (None, "F32", "model")
