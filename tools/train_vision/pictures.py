"""Draws what lmlite-tiny learns to see: one shape of one colour somewhere on a light ground.

`shown` is what a tower gets of a picture: llama.cpp's bicubic scaling to SIDE x SIDE, with bars where it is not square.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

COLOURS = {
    "red": (222, 38, 42), "green": (38, 168, 62), "blue": (38, 78, 222), "yellow": (242, 212, 38), "purple": (148, 48, 182),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
Seen = tuple[str, str]  # colour and shape

SIDE = 56
BAR = (122, 116, 104)  # the colour of the bars
SOFT_EDGES = 0.5  # of the pictures; a drawing program smooths edges, a plain one does not


def depth(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """How far inside the edge each point is; the shape's middle is at 0, 0 and y grows downwards."""
    if shape == "circle":
        return radius - np.sqrt(x * x + y * y)
    if shape == "square":
        return 0.86 * radius - np.maximum(np.abs(x), np.abs(y))
    # Top corner above the middle, foot as wide as twice the radius.
    return np.minimum(radius - y, (radius + y) / 2 - np.abs(x))


def near(r: np.random.Generator, colour: tuple[int, int, int], by: float) -> np.ndarray:
    return np.clip(np.array(colour) + r.uniform(-by, by, 3), 0, 255)


def draw(r: np.random.Generator, seen: Seen, width: int, height: int) -> np.ndarray:
    """[height, width, 3] bytes."""
    radius = min(width, height) * r.uniform(0.13, 0.43)
    left, top = r.uniform(radius, width - radius), r.uniform(radius, height - radius)
    x, y = np.arange(width)[None, :] + 0.5 - left, np.arange(height)[:, None] + 0.5 - top
    inside = depth(seen[1], x, y, radius)
    covered = np.clip(inside + 0.5, 0, 1) if r.random() < SOFT_EDGES else (inside > 0).astype(float)
    light = r.uniform(195, 255)
    ground, paint = near(r, (light, light, light), 12), near(r, COLOURS[seen[0]], 28)
    return np.rint(ground + covered[..., None] * (paint - ground)).astype(np.uint8)


def shown(picture: np.ndarray) -> Tensor:
    """[3, SIDE, SIDE] from -1 to 1."""
    height, width, _ = picture.shape
    share = SIDE / max(height, width)
    size = min(SIDE, int(np.ceil(height * share))), min(SIDE, int(np.ceil(width * share)))
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)[0]
    whole = torch.tensor(BAR).float()[:, None, None].repeat(1, SIDE, SIDE)
    top, left = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    whole[:, top : top + size[0], left : left + size[1]] = scaled
    return whole / 127.5 - 1


def any_seen(r: np.random.Generator) -> Seen:
    return str(r.choice(list(COLOURS))), str(r.choice(SHAPES))


def album(r: np.random.Generator, size: int) -> tuple[Tensor, list[Seen]]:
    """Pictures of many sizes, a quarter of them not square."""
    pages, names = [], []
    for _ in range(size):
        seen = any_seen(r)
        width = height = int(r.integers(40, 260))
        if r.random() < 0.25:
            height = int(width * r.uniform(0.6, 1.6))
        pages.append(shown(draw(r, seen, width, height)))
        names.append(seen)
    return torch.stack(pages), names
