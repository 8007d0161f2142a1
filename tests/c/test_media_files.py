"""What pictures and sounds are decoded to, and that whatever else is sent is refused with a reason, in bounded memory."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from lmlite.package import bundled_model
from tests import media_files as media
from tests.c.test_c import program
from tests.media_files import MediaFile
from tests.media_models import write_ultravox

__all__ = ["program"]  # a fixture

MOST_KB = (96 << 10) + (8 << 10)
MOST_SOUND_KB = (400 << 10) + (33 << 10)
"""What decoding may take, a copy of a sound's file, and what the allocator keeps."""
HEADER = Path(__file__).parents[2] / "csrc" / "picture.h"
QUARTERS = ["c81e1e", "1ea01e", "1e1ec8", "dcdc28"]


class Verdict(NamedTuple):
    peak_kb: int
    text: str


def judge(program: Path, folder: Path, files: Iterable[MediaFile]) -> dict[str, Verdict]:
    folder.mkdir()
    names = {}
    for i, file in enumerate(files):
        names[f"{i:04d}.{file.kind}"] = file.name
        (folder / f"{i:04d}.{file.kind}").write_bytes(file.data)
    done = subprocess.run([program, "judge_media", folder], capture_output=True, text=True, timeout=300)
    lines = [line.split("\t", 2) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (names.get(lines[-1][0]) if lines else "", done.stderr[-2000:])
    assert len(lines) == len(names)
    return {names[name]: Verdict(int(peak), text) for name, peak, text in lines}


def image(program: Path, tmp_path: Path, data: bytes) -> list[str]:
    """Format, width, height, and the colors in the middles of its quarters."""
    (verdict,) = judge(program, tmp_path / "one", [MediaFile("image", "it", data)]).values()
    assert verdict.text.startswith("picture "), verdict.text
    return verdict.text.split()[1:]


def near(colors: list[str], expected: list[str]) -> bool:
    values = [bytes.fromhex("".join(c)) for c in (colors, expected)]
    return all(abs(a - b) <= 6 for a, b in zip(*values, strict=True))


@pytest.mark.timeout(600)
def test_every_broken_file_is_refused_with_a_reason_in_bounded_memory(program: Path, tmp_path: Path) -> None:
    files = media.hostile()
    assert len(files) >= 400
    verdicts = judge(program, tmp_path / "files", files)
    wrong = {
        name: v.text
        for name, v in verdicts.items()
        if not v.text.startswith('refused invalid_request {"param":"media"} this ')
    }
    kept = {
        n
        for n, text in wrong.items()
        if not re.match(r"refused invalid_request .* (a (picture|sound) may have|the header of this)", text)
    }
    assert not kept, {name: wrong[name] for name in kept}
    assert all(len(v.text) < 300 and v.text.isprintable() for v in verdicts.values())
    most = {file.name: MOST_KB if file.kind == "image" else MOST_SOUND_KB for file in files}
    assert {name: v.peak_kb for name, v in verdicts.items() if v.peak_kb > most[name]} == {}


def test_a_bomb_is_not_unpacked(program: Path, tmp_path: Path) -> None:
    verdicts = judge(program, tmp_path / "files", media.bombs())
    assert max(v.peak_kb for name, v in verdicts.items() if name.startswith("png bomb")) < 32 << 10


def test_formats_that_are_not_read_are_named(program: Path, tmp_path: Path) -> None:
    verdicts = judge(program, tmp_path / "files", media.mislabelled())
    for name, word in (
        ("WebP", "lmlite[webp]"),
        ("TIFF", "TIFF"),
        ("HEIC", "HEIC"),
        ("AVIF", "AVIF"),
        ("SVG", "SVG"),
        ("PSD", "Photoshop"),
        ("PDF", "PDF"),
        ("JPEG XL", "JPEG XL"),
        ("TGA", "TGA"),
        ("an MP4 film", "MP4"),
        ("base64", "encoded twice"),
        ("nothing", "empty"),
        ("HTML", "HTML"),
    ):
        assert word in verdicts[f"{name} as a picture"].text
    for name, word in (("Ogg", "Ogg"), ("AAC", "AAC"), ("AIFF", "AIFF"), ("WebM", "WebM"), ("RF64", "RF64")):
        assert word in verdicts[f"{name} as a sound"].text
    assert "a WAV sound" in verdicts["wav as the other"].text


def test_each_format_is_decoded(program: Path, tmp_path: Path) -> None:
    verdicts = judge(program, tmp_path / "files", media.whole().values())
    for name in ("png", "jpeg", "progressive jpeg", "gif", "bmp"):
        kind, form, width, height, *colors = verdicts[name].text.split()
        assert (kind, form.lower(), width, height) == ("picture", name.split()[-1], "40", "24")
        assert near(colors, QUARTERS), name
    assert verdicts["wav"].text == "sound WAV 0.500 16000 1 8000 0.305"
    assert verdicts["flac"].text == "sound FLAC 1.280 16000 1 20480 0.012"
    assert re.fullmatch(r"sound MP3 0\.522 44100 1 8\d\d\d 0\.000", verdicts["mp3"].text)


TURNED = {  # which quarter of the stored picture is shown at the left and right of the top, and of the bottom
    1: "0123",
    2: "1032",
    3: "3210",
    4: "2301",
    5: "0213",
    6: "2031",
    7: "3120",
    8: "1302",
}


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize("form", ["jpeg", "png", "big-endian jpeg"])
def test_a_picture_is_shown_as_its_camera_was_held(program: Path, tmp_path: Path, turn: int, form: str) -> None:
    block = media.exif(turn, ">" if form.startswith("big") else "<")
    if form == "png":
        data = media.png(40, 24, before=media.chunk(b"eXIf", block))
    else:
        data = media.jpeg(40, 24, before=media.segment(0xE1, b"Exif\0\0" + block))
    _, width, height, *colors = image(program, tmp_path, data)
    assert (width, height) == (("24", "40") if turn > 4 else ("40", "24"))
    assert near(colors, [QUARTERS[int(i)] for i in TURNED[turn]])


def test_a_broken_exif_block_does_not_matter(program: Path, tmp_path: Path) -> None:
    whole = media.exif(6)
    blocks = (
        [whole[:n] for n in range(len(whole))]
        + [whole[:4] + struct.pack("<I", at) + whole[8:] for at in (0, 9, 2**31, 2**32 - 1)]
        + [media.exif(0), media.exif(9), b"II*\0\x08\0\0\0\xff\xff" + b"\1\1" * 4000]
    )
    files = [
        MediaFile("image", str(i), media.jpeg(16, 8, before=media.segment(0xE1, b"Exif\0\0" + b)))
        for i, b in enumerate(blocks)
    ]
    assert all(
        v.text.startswith("picture JPEG 16 8 ") for v in judge(program, tmp_path / "files", files[:20] + files[-7:]).values()
    )


def test_what_is_transparent_is_blended_on_white(program: Path, tmp_path: Path) -> None:
    half = media.png(8, 8, lambda x, y: (200, 0, 0), alpha=lambda x, y: (0, 255, 128, 128)[(y >= 4) * 2 + (x >= 4)])
    assert image(program, tmp_path, half)[3:] == ["ffffff", "c80000", "e37f7f", "e37f7f"]


@pytest.mark.parametrize(
    ("name", "data", "colors"),
    [
        ("grey", media.png_of(media.png_head(4, 4, 8, 0), b"\0\x40\x40\x80\x80" * 4), ["404040", "808080"]),
        ("two bits", media.png_of(media.png_head(4, 4, 2, 0), b"\0\x5a" * 4), ["555555", "aaaaaa"]),
        (
            "sixteen bits",
            media.png_of(media.png_head(4, 4, 16, 0), b"\0\x40\xff\x40\xff\x80\0\x80\0" * 4),
            ["404040", "808080"],
        ),
        (
            "a palette",
            media.png_of(media.png_head(4, 4, 8, 3), b"\0\0\0\1\1" * 4, media.chunk(b"PLTE", bytes(range(10, 16)))),
            ["0a0b0c", "0d0e0f"],
        ),
        (
            "a clear color",
            media.png_of(
                media.png_head(4, 4, 8, 3),
                b"\0\0\0\1\1" * 4,
                media.chunk(b"PLTE", bytes(range(10, 16))) + media.chunk(b"tRNS", b"\0"),
            ),
            ["ffffff", "0d0e0f"],
        ),
        (
            "grey with alpha",
            media.png_of(media.png_head(4, 4, 8, 4), b"\0\x40\xff\x40\xff\x40\0\x40\0" * 4),
            ["404040", "ffffff"],
        ),
        (
            "one clear grey",
            media.png_of(media.png_head(4, 4, 8, 0), b"\0\x40\x40\x80\x80" * 4, media.chunk(b"tRNS", b"\0\x40")),
            ["ffffff", "808080"],
        ),
    ],
)
def test_kinds_of_png(program: Path, tmp_path: Path, name: str, data: bytes, colors: list[str]) -> None:
    assert image(program, tmp_path, data)[3:] == colors * 2


def test_colors_beyond_a_palette_show_nothing_of_the_memory(program: Path, tmp_path: Path) -> None:
    head = media.png_head(4, 4, 8, 3)
    data = media.png_of(head, b"\0\0\0\xfe\xfe" * 4, media.chunk(b"PLTE", bytes(range(10, 16))))
    assert image(program, tmp_path, data)[3:] == ["0a0b0c", "000000"] * 2


def test_an_interlaced_png_is_whole(program: Path, tmp_path: Path) -> None:
    raw, paint = b"", media.quarters(16, 16)
    for left, top, across, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        for y in range(top, 16, down):
            raw += b"\0" + b"".join(bytes(paint(x, y)) for x in range(left, 16, across))
    assert image(program, tmp_path, media.png_of(media.png_head(16, 16, 8, 2, 1), raw))[3:] == QUARTERS


@pytest.mark.parametrize(
    ("name", "head", "rows", "colors"),
    [
        (
            "8 bits",
            media.bmp_head(4, 4, 8, offset=54 + 1024) + bytes([1, 2, 3, 0, 4, 5, 6, 0]) + bytes(1016),
            b"\0\0\1\1" * 4,
            ["030201", "060504"],
        ),
        (
            "4 bits",
            media.bmp_head(4, 4, 4, offset=54 + 64) + bytes([1, 2, 3, 0, 4, 5, 6, 0]) + bytes(56),
            b"\0\x11\0\0" * 4,
            ["030201", "060504"],
        ),
        (
            "1 bit",
            media.bmp_head(4, 4, 1, offset=54 + 8) + bytes([1, 2, 3, 0, 4, 5, 6, 0]),
            b"\x30\0\0\0" * 4,
            ["030201", "060504"],
        ),
        ("16 bits", media.bmp_head(4, 4, 16), struct.pack("<HHHH", 0x7C00, 0x7C00, 31, 31) * 4, ["ff0000", "0000ff"]),
        (
            "32 bits with zeros for alpha",
            media.bmp_head(4, 4, 32),
            bytes([1, 2, 3, 0]) * 2 * 4 + bytes([1, 2, 3, 0]) * 8,
            ["030201", "030201"],
        ),
        (
            "32 bits with alpha",
            media.bmp_head(4, 4, 32),
            (bytes([0, 0, 255, 255]) * 2 + bytes([0, 0, 255, 0]) * 2) * 4,
            ["ff0000", "ffffff"],
        ),
        (
            "masks",
            media.bmp_head(4, 4, 16, 3, 66) + struct.pack("<III", 0xF800, 0x7E0, 0x1F),
            struct.pack("<HHHH", 0xF800, 0xF800, 0x7E0, 0x7E0) * 4,
            ["ff0000", "00ff00"],
        ),
        ("from the top", media.bmp_head(4, -4), bytes([1, 2, 3]) * 16, ["030201", "030201"]),
    ],
)
def test_kinds_of_bmp(program: Path, tmp_path: Path, name: str, head: bytes, rows: bytes, colors: list[str]) -> None:
    assert image(program, tmp_path, head + rows)[3:] == colors * 2


def test_of_a_gif_the_first_picture_is_shown_in_its_place(program: Path, tmp_path: Path) -> None:
    head = media.gif_head(8, 8, [(200, 0, 0), (0, 0, 200)])
    clear = b"!\xf9\x04\x01\0\0\1\0"
    first = media.gif_frame(4, 0, 4, 8) + media.gif_pixels([0] * 16 + [1] * 16)
    second = media.gif_frame(0, 0, 8, 8) + media.gif_pixels([1] * 64)
    assert image(program, tmp_path, head + clear + first + second + b";")[3:] == ["ffffff", "c80000", "ffffff", "ffffff"]


def test_an_interlaced_gif_is_whole(program: Path, tmp_path: Path) -> None:
    rows = [y for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(first, 16, step)]
    pixels = media.gif_pixels(int(y >= 8) for y in rows for _ in range(16))
    data = media.gif_head(16, 16, [(200, 0, 0), (0, 0, 200)]) + media.gif_frame(0, 0, 16, 16, 0x40) + pixels + b";"
    assert image(program, tmp_path, data)[3:] == ["c80000", "c80000", "0000c8", "0000c8"]


def test_the_largest_pictures_stay_within_what_is_documented(program: Path, tmp_path: Path) -> None:
    found = re.search(r"MOST_PICTURE_PIXELS = 1ull << (\d+);", HEADER.read_text())
    assert found is not None
    width, height = 8192, (1 << int(found[1])) // 8192
    zeros = zlib.compress(bytes((3 * width + 1) * height), 1)
    body = media.chunk(b"IDAT", zeros) + media.chunk(b"IEND")
    a_pixel = media.gif_frame(0, 0, 1, 1) + media.gif_pixels([0]) + b";"
    files = [
        MediaFile("image", "png", media.png_head(width, height) + body),
        MediaFile("image", "jpeg", late_jpeg(width, height // 2 + height // 8)),  # of more, the coefficients take too much
        MediaFile("image", "gif", media.gif_head(width, height, [(1, 2, 3)]) + a_pixel),
        MediaFile("image", "a jpeg of too many coefficients", late_jpeg(width, height)),
        MediaFile("image", "an interlaced png of too many pixels", media.png_head(width, height, 8, 2, 1) + body),
    ]
    verdicts = judge(program, tmp_path / "files", files)
    refused = [v.text for v in verdicts.values()][3:]
    assert all("decoding takes 127 MB; here it may take 101 MB" in text for text in refused), refused
    assert {name: v.text.split()[1:4] for name, v in list(verdicts.items())[:3]} == {
        "png": ["PNG", "4096", "2048"],
        "jpeg": ["JPEG", "5181", "1619"],
        "gif": ["GIF", "4096", "2048"],
    }
    assert max(v.peak_kb for v in verdicts.values()) < MOST_KB
    assert verdicts["png"].peak_kb < 40 << 10  # the result, and a row


def late_jpeg(width: int, height: int) -> bytes:
    """A progressive one with half as many colors across and down."""
    blocks = bytes(width // 16 * (height // 16) * 3)  # six blocks of "as the one before" are 24 bits
    frame = media.jpeg_frame(width, height, 0xC2, sampling=(0x22, 0x11, 0x11))
    return media.JPEG_START + media.JPEG_TABLES + frame + media.jpeg_scan(3, 0, 0) + blocks + media.JPEG_END


def shown(program: Path, tmp_path: Path, data: bytes) -> bytes:
    path = tmp_path / "picture"
    path.write_bytes(data)
    return subprocess.run([program, "show_picture", path], capture_output=True, check=True, timeout=60).stdout


def test_what_has_more_pixels_than_anybody_looks_at_is_averaged(program: Path, tmp_path: Path) -> None:
    size, kept = 4096, 2896
    row = b"\0" + b"".join(bytes([x // 16]) * 3 for x in range(size))
    rgb = shown(program, tmp_path, media.png_of(media.png_head(size, size), row * size))
    assert len(rgb) == kept * kept * 3
    line = rgb[: kept * 3]
    assert rgb == line * kept
    assert all(abs(line[3 * x + i] - x * size / kept / 16) <= 1.5 for x in range(kept) for i in range(3))
    checks = b"\0" + b"\0\0\0\xff\xff\xff" * (size // 2)
    other = b"\0" + b"\xff\xff\xff\0\0\0" * (size // 2)
    grey = shown(program, tmp_path, media.png_of(media.png_head(size, size), (checks + other) * (size // 2)))
    assert abs(sum(grey) / len(grey) - 127.5) < 1


def filtered(kind: int, row: bytes, above: bytes, back: int) -> bytes:
    """As a PNG says it."""
    out = bytearray([kind])
    for i, value in enumerate(row):
        left = row[i - back] if i >= back else 0
        corner = above[i - back] if i >= back else 0
        guess = left + above[i] - corner
        nearest = min((left, above[i], corner), key=lambda x: abs(guess - x))  # of equals, the first
        out.append(value - (0, left, above[i], (left + above[i]) // 2, nearest)[kind] & 255)
    return bytes(out)


@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_png_is_every_pixel_that_it_was_made_of(program: Path, tmp_path: Path, level: int, strategy: int) -> None:
    draw = random.Random(level)
    width, height = 211, 190  # more than what is unpacked at a time
    noise = draw.randbytes(997)
    rows = [bytes(noise[(x * x // 7 + y * 3) % 997] if y % 3 else x & 255 for x in range(3 * width)) for y in range(height)]
    above = [bytes(3 * width), *rows]
    raw = b"".join(filtered(y % 5, row, above[y], 3) for y, row in enumerate(rows))
    packer = zlib.compressobj(level, strategy=strategy)
    packed = packer.compress(raw) + packer.flush()
    cuts = sorted({0, len(packed), *draw.sample(range(len(packed)), 5)})
    parts = [media.chunk(b"IDAT", packed[a:b]) for a, b in zip(cuts, cuts[1:])]
    data = media.png_head(width, height) + b"".join(parts) + media.chunk(b"IEND")
    assert shown(program, tmp_path, data) == b"".join(rows)


def sound(program: Path, tmp_path: Path, data: bytes) -> list[str]:
    """Format, seconds, rate, channels, samples at 16,000 a second, and the loudest."""
    (verdict,) = judge(program, tmp_path / "one", [MediaFile("audio", "it", data)]).values()
    assert verdict.text.startswith("sound "), verdict.text
    return verdict.text.split()[1:]


EXTENDED = media.wav_format(coding=0xFFFE) + struct.pack("<HHIH", 22, 16, 4, 1) + bytes(14)


@pytest.mark.parametrize(
    ("name", "fmt", "sample", "loudest"),
    [
        ("8 bits", media.wav_format(bits=8), b"\xc0", "0.502"),
        ("16 bits", media.wav_format(), b"\0\x40", "0.500"),
        ("24 bits", media.wav_format(bits=24), b"\0\0\x40", "0.500"),
        ("32 bits", media.wav_format(bits=32), b"\0\0\0\x40", "0.500"),
        ("floats", media.wav_format(bits=32, coding=3), struct.pack("<f", 0.5), "0.500"),
        ("doubles", media.wav_format(bits=64, coding=3), struct.pack("<d", 0.5), "0.500"),
        ("floats that are too loud", media.wav_format(bits=32, coding=3), struct.pack("<f", 9.0), "1.000"),
        ("A-law", media.wav_format(bits=8, coding=6), b"\xa5", "0.516"),
        ("mu-law", media.wav_format(bits=8, coding=7), b"\x90", "0.488"),
        ("an extended header", EXTENDED, b"\0\x40", "0.500"),
        ("two channels", media.wav_format(channels=2), b"\0\x40\0\x20", "0.375"),
    ],
)
def test_kinds_of_wav(program: Path, tmp_path: Path, name: str, fmt: bytes, sample: bytes, loudest: str) -> None:
    form, seconds, rate, _, samples, found = sound(program, tmp_path, media.wav_of(fmt, sample * 8000))
    assert (form, seconds, rate, samples) == ("WAV", "0.500", "16000", "8000")
    assert abs(float(found) - float(loudest)) < 0.02


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(program: Path, tmp_path: Path, size: int) -> None:
    data = media.wav_of(media.wav_format(), b"\0\x40" * 8000, size)
    assert sound(program, tmp_path, data)[4] == "8000"


def test_other_rates_are_turned_into_the_towers(program: Path, tmp_path: Path) -> None:
    _, seconds, rate, channels, samples, _ = sound(program, tmp_path, media.wav(48_000, 48_000, 2))
    assert (seconds, rate, channels) == ("1.000", "48000", "2") and abs(int(samples) - 16_000) < 16


def test_tags_around_an_mp3_do_not_matter(program: Path, tmp_path: Path) -> None:
    tagged = b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + media.mp3(20) + b"TAG" + bytes(125)
    assert sound(program, tmp_path, tagged)[:3] == ["MP3", "0.522", "44100"]


def test_pictures_in_a_flac_do_not_matter(program: Path, tmp_path: Path) -> None:
    plain = media.flac(5)
    data = plain[:4] + b"\0" + plain[5:42] + b"\6\0\1\0" + bytes(256) + b"\x81\0\0\x10" + bytes(16) + plain[42:]
    assert sound(program, tmp_path, data)[:2] == ["FLAC", "1.280"]


@pytest.mark.parametrize("behind", [b"", b"TAG" + bytes(125)], ids=["", "tagged"])
def test_the_last_frame_of_a_flac_tells_the_length_that_its_head_lacks(program: Path, tmp_path: Path, behind: bytes) -> None:
    files = [
        MediaFile("audio", "piped", media.flac(200, told=False) + behind),
        MediaFile("audio", "written", media.flac(200)),
    ]
    piped, written = judge(program, tmp_path / "files", files).values()
    assert written.text.startswith("sound FLAC 51.200 ") and piped.text == written.text


def test_a_sound_is_decoded_once_for_its_length_and_all_its_windows(program: Path, tmp_path: Path) -> None:
    shutil.copy(bundled_model(), tmp_path / "model.gguf")
    write_ultravox(tmp_path / "mmproj.gguf")
    (tmp_path / "sound.wav").write_bytes(media.wav(40 * 16000))
    done = subprocess.run([program, "listen_once", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
