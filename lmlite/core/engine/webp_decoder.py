"""The process that makes PNG of one WebP picture: from stdin to stdout. Runs alone, without the package."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Any

MEMORY_MAX = 1 << 30
CPU_S = 10


def main() -> None:
    del sys.path[0]  # where this file is: nothing here is Pillow's business
    confine()
    Image: Any = import_module("PIL.Image")

    Image.MAX_IMAGE_PIXELS = None  # whoever starts this has read the size
    with Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=("WEBP",)) as image:
        shown = import_module("PIL.ImageOps").exif_transpose(image)  # of several pictures the first
        if shown.has_transparency_data:
            above = shown.convert("RGBA")
            shown = Image.new("RGB", above.size, "white")
            shown.paste(above, mask=above.getchannel("A"))
        shown.convert("RGB").save(sys.stdout.buffer, "PNG", compress_level=1)


def confine() -> None:
    try:
        import resource
    except ImportError:
        return
    for limit, most in ((resource.RLIMIT_AS, MEMORY_MAX), (resource.RLIMIT_CPU, CPU_S)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most, hard) if hard == resource.RLIM_INFINITY or most <= hard else (hard, hard))


if __name__ == "__main__":
    main()
