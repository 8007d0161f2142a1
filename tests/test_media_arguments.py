"""The Python API's pictures and sound: whatever a program has of them becomes what a request could have sent."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import lmlite
from lmlite.embedded import chat_of
from lmlite.errors import InvalidRequest, SenseMissing
from lmlite.media_arguments import png_of
from lmlite.messages import MediaPart, TextPart, media_of
from lmlite.package import bundled_model

PNG = b"\x89PNG\r\n\x1a\n"
RNG = numpy.random.default_rng(3)


def media(*content: Any) -> list[bytes]:
    return [part.data for part in media_of(chat_of([{"role": "user", "content": list(content)}], {}).messages)]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_paths_and_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    shown = {"type": "image_url", "image_url": {"url": url}}
    given = [path, PNG, bytearray(PNG), {"type": "image", "image": str(path)}, shown]
    chat = chat_of([{"role": "user", "content": ["What?", *given, {"type": "text", "text": "Well?"}]}], {})
    assert chat.messages[0].parts == (TextPart("What?"), *[MediaPart("image", PNG)] * 5, TextPart("Well?"))
    assert media({"type": "audio", "audio": PNG}, {"type": "audio", "audio": path}) == [PNG, PNG]
    assert chat_of([{"role": "user", "content": path}], {}).messages[0].parts == (MediaPart("image", PNG),)


def test_images_go_with_what_the_user_said_last(tmp_path: Path) -> None:
    params: dict[str, Any] = {"images": [PNG], "max_tokens": 5}
    assert chat_of("What?", params).messages[0].parts == (MediaPart("image", PNG), TextPart("What?"))
    assert params == {"max_tokens": 5}
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    chat = chat_of(turns, {"images": [PNG]})
    assert [len(message.parts) for message in chat.messages] == [1, 1, 2, 1]
    assert turns[2]["content"] == "user", "what the program has stays as it is"
    with pytest.raises(ValueError, match="none"):
        chat_of([{"role": "system", "content": "x"}], {"images": [PNG]})


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1, 3), (300, 2, 3)])
def test_arrays_become_png_of_the_same_pixels(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=numpy.uint8)
    (data,) = media(array)
    assert data == png_of(array)
    seen = numpy.asarray(opened(data))
    assert seen.tobytes() == array.tobytes() and seen.shape[:2] == shape[:2]
    turned = numpy.asarray(opened(png_of(array.swapaxes(0, 1))))  # whose rows do not lie together
    assert turned.tobytes() == array.swapaxes(0, 1).tobytes()


@pytest.mark.parametrize(
    ("array", "wrong"),
    [(numpy.zeros((5, 5, 3)), TypeError), (numpy.zeros((5, 5, 5), numpy.uint8), ValueError),
     (numpy.zeros((5,), numpy.uint8), ValueError), (numpy.zeros((0, 5, 3), numpy.uint8), ValueError)],
)  # fmt: skip
def test_arrays_that_are_no_pictures_are_refused(array: Any, wrong: type[Exception]) -> None:
    with pytest.raises(wrong, match="picture"):
        media(array)


def test_pil_images_are_saved_as_they_are_shown() -> None:
    image = Image.new("RGB", (6, 4), (10, 20, 30))
    (data,) = media(image)
    assert (opened(data).size, opened(data).getpixel((0, 0))) == ((6, 4), (10, 20, 30))
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 8
    image.save(file, "JPEG", exif=exif)
    assert opened(media(opened(file.getvalue()))[0]).size == (4, 6)
    for mode in ("L", "P", "CMYK", "1"):
        assert opened(media(Image.new(mode, (3, 3)))[0]).mode == "RGB"
    assert opened(media(Image.new("RGBA", (3, 3), (1, 2, 3, 0)))[0]).mode == "RGBA"


@pytest.mark.parametrize("content", [[7], [None], [{"type": "image", "image": 7}], [{"type": "audio", "audio": 7}]])
def test_what_is_none_of_these_is_a_type_error(content: Any) -> None:
    with pytest.raises(TypeError):
        media(*content)


def test_a_file_that_is_not_there_is_the_systems_word() -> None:
    with pytest.raises(FileNotFoundError):
        media(Path("nowhere.png"))


def test_a_text_model_says_that_it_does_not_see() -> None:
    with lmlite.load(bundled_model(), context_length=256) as model:
        with pytest.raises(SenseMissing, match="does not support pictures"):
            model.chat("What is it?", images=[PNG])
        with pytest.raises(InvalidRequest, match="Base64"):
            model.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,A"}}]}])
