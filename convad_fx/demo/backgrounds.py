"""Backgrounds of scenes: a texture, and clutter that belongs to none of the ten classes.

>>> import numpy as np
>>> ground = background(np.random.default_rng(0), size=96)
>>> ground.shape, ground.dtype, bool(0 <= ground.min() and ground.max() <= 255)
((96, 96, 3), dtype('float32'), True)
"""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from convad_fx.demo.canvas import Canvas, Colour, arc, hsv, ring, shaded, smooth

_Field = NDArray[np.float32]  # (size, size), values about 0 to 1


def background(rng: Generator, size: int) -> NDArray[np.float32]:
    """A random texture with clutter, (size, size, 3), values in [0, 255]."""
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))]
    hue = rng.uniform()
    dark = hsv(hue, rng.uniform(0.1, 0.6), rng.uniform(0.15, 0.55))
    light = hsv(hue + rng.normal(0, 0.12), rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.95))
    ground = _between(dark, light, pattern(rng, size))
    ground *= 1 + rng.uniform(0.1, 0.35) * (_noise(rng, size) - 0.5)[..., None]

    clutter = Canvas(size, (size / 2, size / 2), size / 2)
    for _ in range(int(rng.integers(8, 17))):
        _draw_distractor(clutter, rng)
    colour, coverage = clutter.pixels()
    opacity = rng.uniform(0.55, 1.0)
    ground = ground * (1 - opacity * coverage[..., None]) + opacity * colour

    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    # The background is slightly out of focus.
    blurred = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.1)))
    return np.asarray(blurred, dtype=np.float32)


def _between(dark: Colour, light: Colour, field: _Field) -> NDArray[np.float32]:
    low, high = np.asarray(dark, np.float32), np.asarray(light, np.float32)
    return low + (high - low) * field[..., None]


def _noise(rng: Generator, size: int) -> _Field:
    """Smooth noise of five octaves, scaled to [0, 1], (size, size)."""
    total = np.zeros((size, size), np.float32)
    weight = 1.0
    for cells in (3, 6, 12, 24, 48):
        octave = Image.fromarray(rng.uniform(size=(cells, cells)).astype(np.float32))
        total += weight * np.asarray(octave.resize((size, size), Image.Resampling.BICUBIC))
        weight *= 0.6
    return np.asarray((total - total.min()) / (total.max() - total.min()), np.float32)


def _ramp(rng: Generator, size: int) -> _Field:
    """Linear in a random direction, from about 0 to 1, (size, size)."""
    angle = rng.uniform(0, math.tau)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    return np.asarray(0.5 + 0.7 * (math.cos(angle) * x + math.sin(angle) * y), np.float32)


def _gradient(rng: Generator, size: int) -> _Field:
    return np.clip(_ramp(rng, size), 0, 1)


def _clouds(rng: Generator, size: int) -> _Field:
    return _noise(rng, size)


def _stripes(rng: Generator, size: int) -> _Field:
    """Straight or wavy stripes, soft or hard."""
    along = _ramp(rng, size) + rng.uniform(0, 0.25) * _noise(rng, size)
    wave = np.sin(math.tau * rng.uniform(4, 12) * along + rng.uniform(0, math.tau))
    return np.clip(0.5 + rng.uniform(0.4, 2.0) * wave, 0, 1).astype(np.float32)


def _checks(rng: Generator, size: int) -> _Field:
    count = rng.uniform(4, 9)
    first, second = _ramp(rng, size), _ramp(rng, size)
    wave = np.sin(math.tau * count * first / 2) * np.sin(math.tau * count * second / 2)
    return np.clip(0.5 + rng.uniform(0.6, 4.0) * wave, 0, 1).astype(np.float32)


def _stones(rng: Generator, size: int) -> _Field:
    """Cobbles: Voronoi cells of random points in random shades, with dark joints."""
    count = int(rng.integers(20, 60))
    points = rng.uniform(0, size, size=(count, 2)).astype(np.float32)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    square = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    nearest = np.partition(square, 1, axis=-1)[..., :2]
    joint = np.clip((np.sqrt(nearest[..., 1]) - np.sqrt(nearest[..., 0])) / 3, 0, 1)
    shades = rng.uniform(0.3, 1, size=count).astype(np.float32)
    return np.asarray(joint * shades[square.argmin(axis=-1)], np.float32)


def _ripples(rng: Generator, size: int) -> _Field:
    """Rings around a random point, distorted by noise."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    distance = np.hypot(x - rng.uniform(-0.2, 1.2), y - rng.uniform(-0.2, 1.2))
    wave = np.sin(math.tau * rng.uniform(4, 10) * distance + 4 * _noise(rng, size))
    return np.asarray(0.5 + 0.5 * wave, np.float32)


_PATTERNS = (_gradient, _clouds, _stripes, _checks, _stones, _ripples)


def _draw_distractor(canvas: Canvas, rng: Generator) -> None:
    """Draw a blob, ring, bar, triangle, cross, squiggle, crescent or dots."""
    fill = hsv(rng.uniform(), rng.uniform(0.2, 0.9), rng.uniform(0.3, 1.0))
    rim = shaded(fill, 0.45) if rng.uniform() < 0.4 else None
    middle = np.asarray(rng.uniform(-1, 1, size=2))
    radius, turn = rng.uniform(0.08, 0.26), rng.uniform(0, math.tau)
    here = (float(middle[0]), float(middle[1]))
    cosine, sine = math.cos(turn), math.sin(turn)
    frame = radius * np.array([[cosine, sine], [-sine, cosine]])
    match int(rng.integers(8)):
        case 0:
            wobble = ring((0, 0), (1, 1), steps=7) * rng.uniform(0.6, 1.3, size=(7, 1))
            canvas.polygon(smooth(wobble @ frame + middle), fill, rim)
        case 1:
            canvas.line(ring(here, (radius, radius), steps=40), 0.35 * radius, fill)
        case 2:
            bar = np.array([(-1.4, -0.4), (1.4, -0.4), (1.4, 0.4), (-1.4, 0.4)])
            canvas.polygon(bar @ frame + middle, fill, rim)
        case 3:
            canvas.polygon(ring(here, (radius, radius), turn, steps=3), fill, rim)
        case 4:
            for end in ((1.0, 0.0), (0.0, 1.0)):
                arm = np.array([(-end[0], -end[1]), end]) @ frame + middle
                canvas.line(arm, 0.5 * radius, fill)
        case 5:
            x = np.linspace(-1.8, 1.8, 30)
            path = np.stack([x, 0.5 * np.sin(5 * x)], axis=1) @ frame + middle
            canvas.line(path, 0.3 * radius, fill)
        case 6:
            outer = arc((0, 0), (1, 1), 0.5, math.tau - 0.5)
            inner = arc((0.45, 0), (0.75, 0.75), math.tau - 0.7, 0.7)
            canvas.polygon(np.concatenate([outer, inner]) @ frame + middle, fill, rim)
        case _:
            for _ in range(6):
                spot = np.asarray(rng.uniform(-1.2, 1.2, size=2)) @ frame + middle
                canvas.ellipse((float(spot[0]), float(spot[1])), (0.04, 0.04), fill)
