"""Pictures and sounds, written byte by byte: whole ones of every format that is read, and hundreds that are not what they say.

Only the standard library. The broken ones are made from whole ones, so that nothing but the one fault is wrong with them.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Color = tuple[int, int, int]
Paint = Callable[[int, int], Color]
"""The color of the pixel at x, y."""


class MediaFile(NamedTuple):
    kind: str  # "image" or "audio": what a client says that it is
    name: str
    data: bytes


def quarters(width: int, height: int) -> Paint:
    """Red, green, blue and yellow: a turn shows."""
    colors: dict[tuple[bool, bool], Color] = {
        (False, False): (200, 30, 30),
        (True, False): (30, 160, 30),
        (False, True): (30, 30, 200),
        (True, True): (220, 220, 40),
    }
    return lambda x, y: colors[x * 2 >= width, y * 2 >= height]


# ---- whole pictures --------------------------------------------------------------------------------------------------


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def png_head(width: int, height: int, depth: int = 8, color: int = 2, interlaced: int = 0) -> bytes:
    return PNG_MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))


def png_of(head: bytes, raw: bytes, before: bytes = b"") -> bytes:
    return head + before + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND")


def png(
    width: int, height: int, paint: Paint | None = None, alpha: Callable[[int, int], int] | None = None, before: bytes = b""
) -> bytes:
    paint = paint or quarters(width, height)
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            rows += bytes(paint(x, y)) + (bytes([alpha(x, y)]) if alpha else b"")
    return png_of(png_head(width, height, color=6 if alpha else 2), bytes(rows), before)


def exif(turn: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, turn, 0, 0)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


class Bits:
    def __init__(self) -> None:
        self.text = ""

    def put(self, value: int, n: int) -> None:
        self.text += format(value, f"0{n}b") if n else ""

    def stuffed(self) -> bytes:
        text = self.text + "1" * (-len(self.text) % 8)
        return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)).replace(b"\xff", b"\xff\x00")


JPEG_TABLES = segment(0xDB, b"\0" + bytes([8] * 64)) + segment(
    0xC4,  # categories 0 to 11 have four bits; of the other coefficients there is only the end, or a run of ends
    b"\x00" + bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12)) + b"\x10" + bytes([0, 2] + [0] * 14) + b"\x00\xe0",
)


def jpeg_frame(
    width: int, height: int, marker: int = 0xC0, bits: int = 8, sampling: Iterable[int] = (0x11, 0x11, 0x11)
) -> bytes:
    parts = [bytes([i + 1, rate, 0]) for i, rate in enumerate(sampling)]
    return segment(marker, struct.pack(">BHHB", bits, height, width, len(parts)) + b"".join(parts))


def jpeg_scan(n: int, first: int = 0, last: int = 63) -> bytes:
    return segment(0xDA, bytes([n]) + b"".join(bytes([i + 1, 0]) for i in range(n)) + bytes([first, last, 0]))


def jpeg_data(width: int, height: int, paint: Paint, with_ends: bool = True) -> bytes:
    """Blocks of one color each."""
    bits, before = Bits(), [0, 0, 0]
    for y in range(0, height, 8):
        for x in range(0, width, 8):
            r, g, b = paint(min(x + 4, width - 1), min(y + 4, height - 1))
            luma = 0.299 * r + 0.587 * g + 0.114 * b
            for i, value in enumerate((luma - 128, (b - luma) * 0.564, (r - luma) * 0.713)):
                step = round(value) - before[i]
                before[i] += step
                n = abs(step).bit_length()
                bits.put(n, 4)
                bits.put(step if step > 0 else step + (1 << n) - 1, n)
                bits.put(0, 2 if with_ends else 0)
    return bits.stuffed()


JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


def jpeg(width: int, height: int, paint: Paint | None = None, before: bytes = b"", progressive: bool = False) -> bytes:
    data = jpeg_data(width, height, paint or quarters(width, height), not progressive)
    frame = jpeg_frame(width, height, 0xC2 if progressive else 0xC0)
    return JPEG_START + before + JPEG_TABLES + frame + jpeg_scan(3, 0, 0 if progressive else 63) + data + JPEG_END


def gif_codes(codes: Iterable[int], n_bits: int = 9) -> bytes:
    held, n, data = 0, 0, bytearray()
    for code in codes:
        held |= code << n
        n += n_bits
        while n >= 8:
            data.append(held & 255)
            held, n = held >> 8, n - 8
    data.append(held & 255)
    return b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255)) + b"\0"


def gif_head(width: int, height: int, palette: Iterable[Color] | None) -> bytes:
    colors = b"".join(bytes(c) for c in palette or ())
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0xF7 if palette else 0x70, 0, 0)
        + (colors.ljust(768, b"\0") if palette else b"")
    )


def gif_frame(left: int, top: int, width: int, height: int, flags: int = 0) -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width, height, flags)


def gif_pixels(indices: Iterable[int]) -> bytes:
    """Uncompressed: the table is cleared before codes would need ten bits."""
    codes = [256]
    for i, index in enumerate(indices):
        if i % 250 == 249:
            codes.append(256)
        codes.append(index)
    return b"\x08" + gif_codes([*codes, 257])


def gif(width: int, height: int, paint: Paint | None = None) -> bytes:
    paint = paint or quarters(width, height)
    palette = sorted({paint(x, y) for y in range(height) for x in range(width)})
    pixels = gif_pixels(palette.index(paint(x, y)) for y in range(height) for x in range(width))
    return gif_head(width, height, palette) + gif_frame(0, 0, width, height) + pixels + b";"


def bmp_head(width: int, height: int, bits: int = 24, compression: int = 0, offset: int = 54, size: int = 40) -> bytes:
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, offset, size, width, height, 1, bits, compression, 0, 0, 0, 0, 0)


def bmp(width: int, height: int, paint: Paint | None = None) -> bytes:
    paint = paint or quarters(width, height)
    rows = [b"".join(bytes(reversed(paint(x, y))) for x in range(width)) for y in reversed(range(height))]
    return bmp_head(width, height) + b"".join(row + bytes(-len(row) % 4) for row in rows)


# ---- whole sounds ----------------------------------------------------------------------------------------------------


def wav_of(fmt: bytes, data: bytes, size: int | None = None) -> bytes:
    body = (
        b"WAVEfmt "
        + struct.pack("<I", len(fmt))
        + fmt
        + b"data"
        + struct.pack("<I", len(data) if size is None else size)
        + data
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def wav_format(rate: int = 16000, channels: int = 1, bits: int = 16, coding: int = 1) -> bytes:
    block = channels * bits // 8
    return struct.pack("<HHIIHH", coding, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits)


def wav(frames: int, rate: int = 16000, channels: int = 1) -> bytes:
    data = b"".join(struct.pack("<h", (i * 700) % 20000 - 10000) * channels for i in range(frames))
    return wav_of(wav_format(rate, channels), data)


MP3_FRAME = b"\xff\xfb\x90\xc0" + bytes(413)
"""MPEG 1, layer III, 128 kbit/s at 44,100 samples a second, mono: 1152 samples of silence."""


SLOW_MP3_FRAME = b"\xff\xe3\x18\xc0" + bytes(68)
"""MPEG 2.5, 8 kbit/s at 8000 samples a second: 576 samples of silence."""


def mp3(frames: int) -> bytes:
    return MP3_FRAME * frames


def crc(data: bytes, bits: int, polynomial: int) -> int:
    value = 0
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> (bits - 1) & 1 else 0)) & ((1 << bits) - 1)
    return value


def flac_head(frames: int, rate: int = 16000, channels: int = 1, bits: int = 16, block: int = 4096) -> bytes:
    packed = rate << 44 | (channels - 1) << 41 | (bits - 1) << 36 | frames & ((1 << 36) - 1)
    info = struct.pack(">HH", block, block) + bytes(6) + struct.pack(">Q", packed) + bytes(16)
    return b"fLaC" + b"\x80\0\0\x22" + info


def flac_frame(number: int) -> bytes:
    """4096 samples of the same value, mono."""
    coded = bytes([number]) if number < 128 else bytes([0xC0 | number >> 6, 0x80 | number & 63])
    head = b"\xff\xf8\xc5\x08" + coded  # 4096 samples, 16,000 a second, 16 bits
    head += bytes([crc(head, 8, 0x07)])
    body = head + b"\x00" + struct.pack(">h", 100 * number % 30_000)
    return body + struct.pack(">H", crc(body, 16, 0x8005))


def flac(blocks: int, told: bool = True) -> bytes:
    """`told` is its length: who writes to a pipe cannot."""
    return flac_head(4096 * blocks if told else 0) + b"".join(flac_frame(i) for i in range(blocks))


# ---- what must be refused --------------------------------------------------------------------------------------------


def whole() -> dict[str, MediaFile]:
    """One of each format, decodable."""
    return {
        file.name: file
        for file in (
            MediaFile("image", "png", png(40, 24)),
            MediaFile("image", "jpeg", jpeg(40, 24)),
            MediaFile("image", "progressive jpeg", jpeg(40, 24, progressive=True)),
            MediaFile("image", "gif", gif(40, 24)),
            MediaFile("image", "bmp", bmp(40, 24)),
            MediaFile("audio", "wav", wav(8000)),
            MediaFile("audio", "mp3", mp3(20)),
            MediaFile("audio", "flac", flac(5)),
        )
    }


def cut_off() -> Iterator[MediaFile]:
    for name, file in whole().items():
        for part in range(1, 13):
            at = len(file.data) * part // 13
            if name == "mp3" and at % len(MP3_FRAME) == 0:
                at -= 1
            yield MediaFile(file.kind, f"{name} cut at {at}", file.data[:at])
        yield MediaFile(file.kind, f"{name} cut in its magic", file.data[:3])


def huge() -> Iterator[MediaFile]:
    sides = (
        (2**31 - 1, 2**31 - 1),
        (1, 2**31 - 1),
        (100_000, 1),
        (1, 100_000),
        (40_000, 40_000),
        (32_769, 1),
        (12_000, 12_000),
    )
    for width, height in sides:
        yield MediaFile("image", f"png {width} x {height}", png_of(png_head(width, height), bytes(1000)))
        yield MediaFile("image", f"interlaced png {width} x {height}", png_of(png_head(width, height, 16, 6, 1), bytes(1000)))
        yield MediaFile("image", f"bmp {width} x {height}", bmp_head(width, height) + bytes(1000))
    yield MediaFile("image", "bmp of the least height", bmp_head(1, -(2**31)) + bytes(1000))
    yield MediaFile("image", "png 0 x 0", png_of(png_head(0, 0), b""))
    yield MediaFile("image", "png 0 x 5", png_of(png_head(0, 5), bytes(5)))
    yield MediaFile("image", "bmp 0 x 0", bmp_head(0, 0))
    yield MediaFile("image", "png of one row too few", png_of(png_head(8, 8), bytes(25 * 7)))
    for width, height in ((65_535, 65_535), (65_535, 1), (1, 65_535), (12_000, 12_000)):
        scan = jpeg_scan(3) + bytes(50) + JPEG_END
        yield MediaFile("image", f"jpeg {width} x {height}", JPEG_START + JPEG_TABLES + jpeg_frame(width, height) + scan)
        late = JPEG_START + JPEG_TABLES + jpeg_frame(width, height, 0xC2) + jpeg_scan(3, 0, 0) + bytes(50) + JPEG_END
        yield MediaFile("image", f"progressive jpeg {width} x {height}", late)
        head = gif_head(width, height, [(1, 2, 3)])
        yield MediaFile("image", f"gif {width} x {height}", head + gif_frame(0, 0, 1, 1) + gif_pixels([0]) + b";")
        frame = gif_head(1, 1, [(1, 2, 3)]) + gif_frame(0, 0, width, height)
        yield MediaFile("image", f"gif with a picture of {width} x {height}", frame + gif_pixels([0]) + b";")
    wide = png_of(png_head(5000, 6000, 16, 6), bytes(10))  # few enough pixels, of sixteen bytes each while they are decoded
    yield MediaFile("image", "png of much memory", wide)
    for name, fmt in (
        ("no channel", wav_format(channels=1)[:2] + b"\0\0" + wav_format()[4:]),
        ("65535 channels", wav_format(channels=65_535, bits=8)),
        ("nine channels", wav_format(channels=9)),
        ("rate 0", wav_format(rate=0)),
        ("rate 1", wav_format(rate=1)),
        ("rate 4 billion", wav_format(rate=2**32 - 1)),
        ("zero bits", wav_format(bits=0)),
        ("seven bits", wav_format(bits=7)),
        ("64-bit integers", wav_format(bits=64)),
        ("16-bit floats", wav_format(bits=16, coding=3)),
        ("blocks of nothing", wav_format()[:12] + b"\0\0" + wav_format()[14:]),
    ):
        yield MediaFile("audio", f"wav with {name}", wav_of(fmt, bytes(32_000)))
    yield MediaFile("audio", "wav that says 2 GB", wav_of(wav_format(), bytes(32_000), 2**31 - 2**20))
    yield MediaFile("audio", "wav of an hour", wav_of(wav_format(rate=4000, bits=8), bytes(4000 * 3600)))
    yield MediaFile(
        "audio", "wav of eight channels for long", wav_of(wav_format(192_000, 8, 8), bytes(30 << 20))[: 44 + (30 << 20) - 5]
    )
    yield MediaFile("audio", "mp3 of an hour", SLOW_MP3_FRAME * (3600 * 8000 // 576))
    for frames in (2**36 - 1, 2**35, 10**9):
        yield MediaFile("audio", f"flac of {frames} samples", flac_head(frames) + flac_frame(0))
    yield MediaFile("audio", "flac of no length with a frame far on", flac_head(0) + flac_frame(0) + flac_frame(2000))
    yield MediaFile("audio", "flac of no length without a frame", flac_head(0))
    yield MediaFile("audio", "flac of no length, of heads", flac_head(0) + flac_frame(0)[:6] * 300_000)
    piped = flac(5, told=False)
    for n in range(1, len(flac_frame(4))):  # without all of it there would be nothing to notice
        yield MediaFile("audio", f"flac of no length without its last {n} bytes", piped[:-n])
    yield MediaFile("audio", "flac of 8 channels for hours", flac_head(10**8, 48_000, 8) + flac_frame(0))
    for n in (0, 1, 2, 1599):
        yield MediaFile("audio", f"wav of {n} samples", wav(n))
    yield MediaFile("audio", "mp3 of one frame of nothing", b"\xff\xfb\x90\xc0")


def bombs() -> Iterator[MediaFile]:
    megabytes = zlib.compress(bytes(64 << 20), 9)
    for width, color, interlaced in ((1, 2, 0), (1, 2, 1), (100, 6, 0), (100, 0, 1), (1000, 3, 0)):
        palette = chunk(b"PLTE", bytes(3)) if color == 3 else b""
        head = png_head(width, width, 8, color, interlaced) + palette
        yield MediaFile("image", f"png bomb {width}/{color}/{interlaced}", head + chunk(b"IDAT", megabytes) + chunk(b"IEND"))
    many = b"".join(chunk(b"IDAT", b"") for _ in range(50_000))
    yield MediaFile("image", "png of 50,000 empty chunks", png_head(8, 8) + many + chunk(b"IEND"))
    yield MediaFile("image", "png of 50,000 texts", png_head(8, 8) + chunk(b"tEXt", b"x\0y") * 50_000 + chunk(b"IEND"))
    runs = jpeg_scan(1, 1, 5) + b"\x7f"
    big = JPEG_START + JPEG_TABLES + jpeg_frame(4000, 4000, 0xC2) + jpeg_scan(3, 0, 0)
    yield MediaFile("image", "jpeg of 10,000 scans", big + runs * 10_000 + JPEG_END)
    small = JPEG_START + JPEG_TABLES + jpeg_frame(16, 16, 0xC2) + jpeg_scan(3, 0, 0)
    yield MediaFile("image", "small jpeg of 100,000 scans", small + runs * 100_000 + JPEG_END)
    yield MediaFile("image", "jpeg of comments", JPEG_START + segment(0xFE, bytes(60_000)) * 100 + JPEG_END)
    yield MediaFile("image", "jpeg of fill bytes", JPEG_START + b"\xff" * (4 << 20))
    yield MediaFile("image", "gif of comments", gif_head(8, 8, [(1, 2, 3)]) + b"!\xfe\x01x\0" * 200_000 + b";")
    yield MediaFile(
        "image",
        "gif of ever new clear codes",
        gif_head(900, 900, [(1, 2, 3)]) + gif_frame(0, 0, 900, 900) + b"\x08" + gif_codes([256] * 200_000),
    )
    yield MediaFile("audio", "wav of chunks", b"RIFF\0\0\0\0WAVE" + b"LIST\0\0\0\0" * 500_000)
    yield MediaFile("audio", "mp3 of tags", b"ID3\4\0\0\0\0\0\0" * 500_000)
    yield MediaFile(
        "audio",
        "flac of padding",
        b"fLaC" + flac_head(4096)[4:5].replace(b"\x80", b"\0") + flac_head(4096)[5:] + b"\1\0\0\0" * 500_000,
    )
    yield MediaFile("image", "more than a picture may have", png(8, 8) + bytes(33 << 20))
    yield MediaFile("audio", "more than a sound may have", wav(8000) + bytes(33 << 20))


def damaged() -> Iterator[MediaFile]:
    draw = random.Random(1)
    base = png(40, 24)
    data_at = base.index(b"IDAT") + 4
    for i in range(24):
        at = draw.randrange(data_at, len(base) - 16)
        yield MediaFile("image", f"png with a wrong byte at {at}, {i}", base[:at] + bytes([base[at] ^ 0x55]) + base[at + 1 :])
    good = zlib.compress(bytes(25 * 8))
    for name, content in (
        ("no zlib", b"hello, this is not compressed at all"),
        ("half of its data", good[: len(good) // 2]),
        ("a wrong filter", zlib.compress(b"\x09" + bytes(24) + bytes(25 * 7))),
        ("nothing", zlib.compress(b"")),
        ("a preset dictionary", b"\x78\xbb" + good[2:]),
    ):
        yield MediaFile("image", f"png whose data are {name}", png_head(8, 8) + chunk(b"IDAT", content) + chunk(b"IEND"))
    rows = chunk(b"IDAT", good)
    for name, inner in (
        ("no pixels", b""),
        ("a second header", png_head(8, 8)[8:] + rows),
        ("an unknown chunk", chunk(b"ABCD", b"x") + rows),
        ("a huge palette", chunk(b"PLTE", bytes(3 * 257)) + rows),
        ("half a color", chunk(b"PLTE", bytes(4)) + rows),
        ("transparency behind its pixels", rows + chunk(b"tRNS", bytes(6))),
        ("transparency of a wrong size", chunk(b"tRNS", bytes(7)) + rows),
        ("a chunk that says 2 GB", b"\x7f\xff\xff\xffIDAT" + rows),
        ("a chunk that says 4 GB", b"\xff\xff\xff\xfftEXt" + rows),
        ("Apple's chunk", chunk(b"CgBI", bytes(4)) + rows),
    ):
        yield MediaFile("image", f"png with {name}", png_head(8, 8) + inner + chunk(b"IEND"))
    for depth, color in ((3, 2), (16, 3), (1, 2), (8, 1), (8, 5), (8, 7), (0, 0), (32, 0)):
        yield MediaFile(
            "image", f"png of {depth} bits and color type {color}", png_of(png_head(8, 8, depth, color), bytes(500))
        )
    yield MediaFile("image", "png without a palette", png_of(png_head(8, 8, 8, 3), bytes(9 * 8)))
    yield MediaFile("image", "png without a header", PNG_MAGIC + rows + chunk(b"IEND"))
    yield MediaFile("image", "png with a header of 12 bytes", PNG_MAGIC + chunk(b"IHDR", bytes(12)) + rows + chunk(b"IEND"))
    yield MediaFile(
        "image",
        "png of a method that does not exist",
        PNG_MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 1, 1, 9)) + rows + chunk(b"IEND"),
    )


def damaged_jpegs() -> Iterator[MediaFile]:
    scan, data = jpeg_scan(3), jpeg_data(16, 16, quarters(16, 16))
    tail = scan + data + JPEG_END
    frame = jpeg_frame(16, 16)
    for name, body in (
        ("no header", JPEG_TABLES + tail),
        ("two headers", JPEG_TABLES + frame + frame + tail),
        ("no pixels", JPEG_TABLES + frame),
        ("nothing", b""),
        ("12 bits", JPEG_TABLES + jpeg_frame(16, 16, bits=12) + tail),
        ("no width", JPEG_TABLES + jpeg_frame(0, 16) + tail),
        ("no height", JPEG_TABLES + jpeg_frame(16, 0) + tail),
        ("two components", JPEG_TABLES + jpeg_frame(16, 16, sampling=(0x11, 0x11)) + tail),
        ("five components", JPEG_TABLES + jpeg_frame(16, 16, sampling=(0x11,) * 5) + tail),
        ("no component", JPEG_TABLES + jpeg_frame(16, 16, sampling=()) + tail),
        ("CMYK that is not marked", JPEG_TABLES + jpeg_frame(16, 16, sampling=(0x11,) * 4) + jpeg_scan(4) + data + JPEG_END),
        ("sampling of 0", JPEG_TABLES + jpeg_frame(16, 16, sampling=(0x01, 0x11, 0x11)) + tail),
        ("sampling of 5", JPEG_TABLES + jpeg_frame(16, 16, sampling=(0x51, 0x11, 0x11)) + tail),
        ("fractional sampling", JPEG_TABLES + jpeg_frame(16, 16, sampling=(0x31, 0x21, 0x11)) + tail),
        ("a segment of one byte", b"\xff\xe0\0\1" + JPEG_TABLES + frame + tail),
        ("a segment of 64 kB", b"\xff\xe0\xff\xff" + JPEG_TABLES),
        ("a restart marker ahead", b"\xff\xd0" + JPEG_TABLES + frame + tail),
        ("a second start", JPEG_START + JPEG_TABLES + frame + tail),
        ("no marker", b"abc" + JPEG_TABLES + frame + tail),
        ("a scan of no component", JPEG_TABLES + frame + segment(0xDA, bytes([0, 0, 63, 0])) + data + JPEG_END),
        ("a scan of unknown components", JPEG_TABLES + frame + segment(0xDA, bytes([1, 77, 0, 0, 63, 0])) + data + JPEG_END),
        ("a scan of a wrong length", JPEG_TABLES + frame + segment(0xDA, bytes([3, 1, 0])) + data + JPEG_END),
        ("its height at its end", JPEG_TABLES + frame + scan + data + segment(0xDC, b"\0\x10") + JPEG_END),
        ("a table that overflows", segment(0xC4, b"\0" + bytes([255] * 16) + bytes(300)) + frame + tail),
        ("a table of a wrong kind", segment(0xC4, b"\x55" + bytes(16)) + frame + tail),
        ("a quantisation table 9", segment(0xDB, b"\x09" + bytes(64)) + frame + tail),
        ("a header of a wrong length", JPEG_TABLES + segment(0xC0, struct.pack(">BHHB", 8, 16, 16, 3) + bytes(4)) + tail),
    ):
        yield MediaFile("image", f"jpeg with {name}", JPEG_START + body + (b"" if body.endswith(JPEG_END) else JPEG_END))
    for marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
        body = JPEG_START + JPEG_TABLES + jpeg_frame(16, 16, marker) + tail
        yield MediaFile("image", f"jpeg of process {marker:x}", body)


def damaged_others() -> Iterator[MediaFile]:
    head, frame, pixels = gif_head(8, 8, [(1, 2, 3)]), gif_frame(0, 0, 8, 8), gif_pixels([0] * 64)
    for name, data in (
        ("no color", gif_head(8, 8, None) + frame + pixels),
        ("no picture", head + b";"),
        ("something unknown", head + b"\x99" + frame + pixels),
        ("a picture of no width", head + gif_frame(0, 0, 0, 8) + pixels),
        ("a picture of no height", head + gif_frame(0, 0, 8, 0) + pixels),
        ("colors of 12 bits", head + frame + b"\x0c" + gif_codes([4096, 0])),
        ("colors of 255 bits", head + frame + b"\xff" + pixels[1:]),
        ("colors of no bits", head + frame + b"\0" + pixels[1:]),
        ("too few pixels", head + frame + gif_pixels([0] * 63)),
        ("no pixels", head + frame + gif_pixels([])),
        ("a code too high", head + frame + b"\x08" + gif_codes([256, 0, 400])),
        ("a code of the future first", head + frame + b"\x08" + gif_codes([256, 258])),
        ("the end first", head + frame + b"\x08" + gif_codes([257])),
        ("no data", head + frame + b"\x08\0"),
    ):
        yield MediaFile("image", f"gif with {name}", data + b";")
    for name, data in (
        ("a header of 13 bytes", bmp_head(8, 8, size=13)),
        ("a header of 4 GB", bmp_head(8, 8, size=2**32 - 1)),
        ("a negative width", bmp_head(-8, 8)),
        ("its pixels in its header", bmp_head(8, 8, offset=20)),
        ("its pixels behind its end", bmp_head(8, 8, offset=2**31)),
        ("7 bits", bmp_head(8, 8, bits=7)),
        ("0 bits", bmp_head(8, 8, bits=0)),
        ("64 bits", bmp_head(8, 8, bits=64)),
        ("runs", bmp_head(8, 8, bits=8, compression=1)),
        ("runs of four bits", bmp_head(8, 8, bits=4, compression=2)),
        ("a JPEG in it", bmp_head(8, 8, compression=4)),
        ("a PNG in it", bmp_head(8, 8, compression=5)),
        ("an unknown compression", bmp_head(8, 8, compression=99)),
        ("masks of nothing", bmp_head(8, 8, 32, 3, 66) + bytes(12)),
        ("masks that overlap", bmp_head(8, 8, 32, 3, 66) + struct.pack("<III", 255, 255, 255)),
        ("masks with holes", bmp_head(8, 8, 32, 3, 66) + struct.pack("<III", 5, 0xFF00, 0xFF0000)),
        ("masks of 24 bits", bmp_head(8, 8, 24, 3, 66) + struct.pack("<III", 255, 0xFF00, 0xFF0000)),
    ):
        yield MediaFile("image", f"bmp with {name}", data + bytes(400))
    for coding in (2, 0x11, 0x31, 0x50, 0x55, 0xFF, 0x1234):
        yield MediaFile("audio", f"wav of coding {coding:x}", wav_of(wav_format(coding=coding), bytes(32_000)))
    nan = struct.pack("<f", float("nan")) * 16_000
    for name, data in (
        ("no format", b"RIFF\0\0\0\0WAVEdata\0\1\0\0" + bytes(256)),
        ("two formats", b"RIFF\0\0\0\0WAVE" + (b"fmt \x10\0\0\0" + wav_format()) * 2 + b"data\0\1\0\0" + bytes(256)),
        ("a format of 4 bytes", wav_of(wav_format()[:4], bytes(32_000))),
        ("an extension that is missing", wav_of(wav_format(coding=0xFFFE), bytes(32_000))),
        ("no numbers", wav_of(wav_format(bits=32, coding=3), nan)),
        ("infinities", wav_of(wav_format(bits=32, coding=3), struct.pack("<f", float("inf")) * 16_000)),
        ("no samples", wav_of(wav_format(), b"")),
        ("no chunk at all", b"RIFF\x04\0\0\0WAVE"),
    ):
        yield MediaFile("audio", f"wav with {name}", data)
    for name, data in (
        ("noise between frames", mp3(5) + b"noise" * 50 + mp3(5)),
        ("half a frame within", mp3(5) + MP3_FRAME[:200] + mp3(5)),
        ("another rate on the way", mp3(10) + b"\xff\xfb\x94\xc0" + bytes(380)),
        ("two channels on the way", mp3(10) + b"\xff\xfb\x90\x00" + bytes(413)),
        ("frames of free size", (b"\xff\xfb\x00\xc0" + bytes(413)) * 5),
        ("layer II", (b"\xff\xfd\x90\xc0" + bytes(413)) * 5),
        ("layer I", (b"\xff\xff\x90\xc0" + bytes(413)) * 5),
        ("a tag of 256 MB", b"ID3\4\0\0\x7f\x7f\x7f\x7f" + mp3(5)),
        ("a tag and no sound", b"ID3\4\0\0\0\0\0\x0a" + bytes(10)),
        ("zeros behind a tag", b"ID3\4\0\0\0\0\0\x0a" + bytes(100_000)),
    ):
        yield MediaFile("audio", f"mp3 with {name}", data)
    sound = flac(5)
    for at in (60, 64, 68, 72):
        yield MediaFile("audio", f"flac with a wrong byte at {at}", sound[:at] + bytes([sound[at] ^ 0x41]) + sound[at + 1 :])
    for name, data in (
        ("no header", b"fLaC\x81\0\0\4" + bytes(4)),
        ("a header of 33 bytes", b"fLaC\x80\0\0\x21" + bytes(33)),
        ("a block of 16 MB", b"fLaC\0\xff\xff\xff" + bytes(100)),
        ("two headers", flac_head(4096).replace(b"\x80\0\0\x22", b"\0\0\0\x22", 1) + flac_head(4096)[4:]),
        ("blocks of nothing", flac_head(4096, block=0) + flac_frame(0)),
        ("no frame", flac_head(4096)),
        ("frames of noise", flac_head(4096) + bytes(range(256)) * 20),
        ("more samples than frames", flac_head(4096 * 9) + b"".join(map(flac_frame, range(5)))),
    ):
        yield MediaFile("audio", f"flac with {name}", data)


FOREIGN: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\x89",
    "zeros": bytes(1000),
    "noise": bytes(random.Random(2).randrange(256) for _ in range(1000)),
    "WebP": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40),
    "TIFF": b"II*\0\x08\0\0\0" + bytes(40),
    "TIFF of the other order": b"MM\0*" + bytes(40),
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
    "AVIF": b"\0\0\0\x18ftypavif" + bytes(40),
    "an MP4 film": b"\0\0\0\x18ftypisom" + bytes(40),
    "AAC": b"\xff\xf1\x50\x80" + bytes(40),
    "SVG": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "PSD": b"8BPS\0\1" + bytes(20),
    "a PSD of 40 bytes": b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\x2e\xe0\0\0\x2e\xe0\0\x08\0\3" + bytes(14),
    "PIC": b"\x53\x80\xf6\x34" + bytes(104),
    "HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 12000 +X 12000\n",
    "TGA": b"\0\0\2\0\0\0\0\0\0\0\0\0\xe0\x2e\xe0\x2e\x18\0",
    "PNM": b"P6 12000 12000 255\n",
    "PDF": b"%PDF-1.7\n" + bytes(40),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "JPEG XL": b"\xff\x0a" + bytes(40),
    "an icon": b"\0\0\1\0\1\0" + bytes(40),
    "QOI": b"qoif" + bytes(40),
    "OpenEXR": b"v/1\1" + bytes(40),
    "Ogg": b"OggS\0\2" + bytes(40),
    "AIFF": b"FORM\0\0\0\0AIFF" + bytes(40),
    "WebM": b"\x1a\x45\xdf\xa3" + bytes(40),
    "AMR": b"#!AMR\n" + bytes(40),
    "RF64": b"RF64\xff\xff\xff\xffWAVEds64" + bytes(40),
    "AVI": b"RIFF\0\0\0\0AVI LIST" + bytes(40),
    "a ZIP archive": b"PK\3\4" + bytes(40),
    "gzip": b"\x1f\x8b\x08\0" + bytes(40),
    "a program": b"\x7fELF" + bytes(40),
    "a GGUF file": b"GGUF\3\0\0\0" + bytes(40),
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "JSON": b'{"error": "not found"}',
    "base64": b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "a data URL": b"data:image/png;base64,iVBORw0KGgo=",
    "a URL": b"http://127.0.0.1/cat.png",
}


def mislabelled() -> Iterator[MediaFile]:
    for name, data in FOREIGN.items():
        yield MediaFile("image", f"{name} as a picture", data)
        yield MediaFile("audio", f"{name} as a sound", data)
    for name, file in whole().items():
        yield MediaFile("audio" if file.kind == "image" else "image", f"{name} as the other", file.data)
    magics = {"png": PNG_MAGIC, "jpeg": b"\xff\xd8\xff\xe0", "gif": b"GIF89a", "bmp": b"BM\0\0\0\0\0\0\0\0"}
    for name, magic in magics.items():
        for other, file in whole().items():
            if file.kind == "image" and not other.endswith(name):
                yield MediaFile("image", f"{other} with the magic of {name}", magic + file.data[len(magic) :])


def hostile() -> list[MediaFile]:
    """Each of them is to be refused with a reason."""
    makers = (cut_off, huge, bombs, damaged, damaged_jpegs, damaged_others, mislabelled)
    return [file for maker in makers for file in maker()]
