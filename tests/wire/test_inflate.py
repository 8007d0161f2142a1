"""Bodies in gzip: what they hold, and never more of it than a body may have."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from lmlite.errors import HttpError
from lmlite.wire.inflate import MEMBERS_MAX, READ, STEP, inflate


@pytest.mark.parametrize("size", [0, 1, 1000, STEP - 1, STEP, STEP + 1, 3 * STEP])
def test_the_content_comes_back(size: int) -> None:
    content = bytes(i * i % 251 for i in range(size))
    assert inflate(gzip.compress(content), size) == content


def test_members_are_joined() -> None:
    assert inflate(gzip.compress(b"one") + gzip.compress(b"two"), 6) == b"onetwo"


def test_members_are_joined_wherever_one_ends() -> None:
    noise = bytes(hash((7, place)) & 255 for place in range(READ))
    for size in range(READ - 60, READ, 7):
        whole = gzip.compress(noise[:size], 0) + gzip.compress(b"tail") + gzip.compress(b"")
        assert inflate(whole, READ + 4) == noise[:size] + b"tail"


def test_millions_of_empty_members_are_refused_before_they_are_read() -> None:
    empty = gzip.compress(b"")
    assert inflate(empty * MEMBERS_MAX, 0) == b""
    with pytest.raises(HttpError) as refused:
        inflate(empty * (1 << 20), 0)
    assert refused.value.status == 400


@pytest.mark.parametrize("over", [1, STEP, 100 * STEP])
def test_more_than_the_limit_is_413(over: int) -> None:
    with pytest.raises(HttpError) as refused:
        inflate(gzip.compress(bytes(1000 + over)), 1000)
    assert refused.value.status == 413


def test_a_bomb_takes_no_more_memory_than_the_limit_and_a_step() -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    tracemalloc.start()
    try:
        with pytest.raises(HttpError):
            inflate(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < (8 << 20)
    finally:
        tracemalloc.stop()


WHOLE = gzip.compress(b"some content " * 100)


@pytest.mark.parametrize(
    "body",
    [b"hello", zlib.compress(b"x"), WHOLE[:5], WHOLE[:-1], WHOLE[:-8] + bytes(8), WHOLE + b"junk", WHOLE[:20]],
    ids=["text", "zlib", "a head", "cut", "a wrong checksum", "with a tail", "half"],
)
def test_what_is_no_gzip_is_400(body: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        inflate(body, 1 << 20)
    assert refused.value.status == 400
