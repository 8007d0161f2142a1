"""The frame table is written twice, for two languages: these hold the two against each other."""

from __future__ import annotations

import re
from pathlib import Path

from lmlite.core.engine.frames import HEADER, MAX_PAYLOAD, Kind, pack

CSRC = Path(__file__).parents[2] / "csrc"
HEADER_TEXT = (CSRC / "frames.h").read_text(encoding="utf-8")
PROTOCOL_TEXT = (CSRC / "protocol.md").read_text(encoding="utf-8")


def table() -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"\bX\((\w+), *(\d+)\)", HEADER_TEXT)}


def test_both_tables_have_the_same_kinds() -> None:
    assert table() == {kind.name: kind.value for kind in Kind}


def test_no_number_stands_for_two_kinds() -> None:
    assert len(set(table().values())) == len(table()) == len(Kind.__members__)


def test_header_size_is_the_same() -> None:
    found = re.search(r"FRAME_HEADER_SIZE = (\d+);", HEADER_TEXT)
    assert found and int(found[1]) == HEADER.size


def test_payload_limit_is_the_same() -> None:
    found = re.search(r"MAX_PAYLOAD = (\d+)u? *<< *(\d+);", HEADER_TEXT)
    assert found and int(found[1]) << int(found[2]) == MAX_PAYLOAD


def test_every_kind_is_explained_in_the_protocol() -> None:
    assert [kind.name for kind in Kind if not re.search(rf"\b{kind.name}\b", PROTOCOL_TEXT)] == []


def test_a_frame_is_length_kind_id_and_payload_little_endian() -> None:
    assert pack(Kind.TEXT, 0x01020304, b"ab") == b"\x02\0\0\0" + b"\x43\0\0\0" + b"\x04\x03\x02\x01" + b"ab"
