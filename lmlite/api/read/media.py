"""Pictures and sound in requests: Base64 alone or in a data URL, read strictly and once; or an address elsewhere.

What the bytes are is found out from the bytes, by who decodes them: media types and endings that clients give are often wrong.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from typing import Final

from ...errors import InvalidRequest, UnsupportedField
from ...messages import MediaKind, MediaPart
from ...pieces import bytes_of
from .fields import Fields, as_string, clip

STEP: Final = 1 << 16
"""Characters that are decoded at once, in less than a millisecond: no other thread gets the interpreter meanwhile."""
HEAD_MAX: Final = 1024
"""Characters of a data URL before its comma."""
URL_MAX: Final = 8192
"""Characters of an address; signed ones have one or two thousand."""

SOUND_FORMATS: Final = ("wav", "mp3", "flac")
PICTURES: Final = "pictures are PNG, JPEG, GIF, BMP or WebP, as a data URL (data:image/png;base64,...)"
SOUNDS: Final = f"sound is {', '.join(SOUND_FORMATS)}, as Base64"
TYPES: Final[dict[MediaKind, str]] = {"image": "image/", "audio": "audio/"}
ANY_TYPES: Final = frozenset(("", "application/octet-stream", "binary/octet-stream"))
"""Media types that say nothing."""

WEB: Final = re.compile(r"https?://[^\s\x00-\x20]+", re.IGNORECASE)


def parse_image_url(part: Fields, name: str = "image_url") -> MediaPart:
    """`name` is a URL, or an object with one and a `detail`, which says how much of a cloud's money it is worth."""
    given = part.require(name)
    part.string("detail")
    if isinstance(given, dict):
        inner = part.require_object(name)
        inner.string("detail")
        return parse_url(inner.require("url"), inner.where("url"), "image")
    return parse_url(given, part.where(name), "image")


def parse_input_audio(part: Fields) -> MediaPart:
    sound = part.require_object("input_audio")
    form = sound.string("format")
    if form is not None and form.lower() not in SOUND_FORMATS:
        raise UnsupportedField(sound.where("format"), f"of '{clip(form)}' is not supported: {SOUNDS}")
    data, where = sound.require_string("data"), sound.where("data")
    if data[:5].lower() == "data:":
        return parse_data_url(data, where, "audio")
    return MediaPart("audio", decode(data, where), where)


def parse_audio_url(part: Fields) -> MediaPart:
    url = part.require_object("audio_url")
    return parse_url(url.require("url"), url.where("url"), "audio")


def parse_url(value: object, where: str, kind: MediaKind) -> MediaPart:
    """A data URL, or an address on the web, of which nothing is read here."""
    url = as_string(value, where)
    if url[:5].lower() == "data:":
        return parse_data_url(url, where, kind)
    if url[:8].lower().startswith(("http://", "https://")):
        if len(url) > URL_MAX or WEB.fullmatch(url) is None:
            raise InvalidRequest(f"'{where}' is not a URL", where)
        return MediaPart(kind, b"", where, url)
    expected = PICTURES if kind == "image" else "sound is wav, mp3 or flac, as a data URL (data:audio/wav;base64,...)"
    raise InvalidRequest(f"'{where}' must be a data URL: {expected}", where)


def parse_data_url(url: str, where: str, kind: MediaKind) -> MediaPart:
    comma = url.find(",", 0, HEAD_MAX)
    head = url[5 : max(comma, 0)]
    media_type, *parameters = (word.strip().lower() for word in head.split(";"))
    if comma < 0 or "base64" not in parameters:
        raise InvalidRequest(f"'{where}' must be a data URL with Base64 (data:{TYPES[kind]}...;base64,...)", where)
    check_type(media_type, where, kind)
    return MediaPart(kind, decode(url, where, comma + 1), where)


def check_type(media_type: str, where: str, kind: MediaKind) -> None:
    if media_type not in ANY_TYPES and not media_type.startswith(TYPES[kind]):
        told = PICTURES if kind == "image" else SOUNDS
        raise UnsupportedField(where, f"of media type '{clip(media_type)}' is not supported: {told}")


def decode(text: str, where: str, start: int = 0) -> bytes:
    """The Base64 in `text` from `start` on, which may be of many megabytes. Without white space, and with its padding."""
    n = len(text) - start
    if not n:
        raise InvalidRequest(f"'{where}' must not be empty", where)
    try:
        if n % 4:
            raise ValueError
        return bytes_of(decode_pieces(text, start), n // 4 * 3 - text.count("=", len(text) - 2))
    except ValueError:
        raise InvalidRequest(f"'{where}' is not valid Base64", where) from None


def decode_pieces(text: str, start: int) -> Iterator[bytes]:
    for begin in range(start, len(text), STEP):
        yield decode_piece(text[begin : begin + STEP], is_last=begin + STEP >= len(text))


def decode_piece(piece: str, is_last: bool) -> bytes:
    """Python before 3.11 passes over what is no Base64: the bytes must be as many as the letters stand for."""
    decoded = binascii.a2b_base64(piece)
    n_padding = len(piece) - len(piece.rstrip("=")) if is_last else 0
    if n_padding > 2 or len(decoded) != len(piece) // 4 * 3 - n_padding:
        raise ValueError
    return decoded
