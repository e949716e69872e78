"""Labelled pictures, drawn by the numbers: one object on a cluttered ground, and where it is.

>>> scene = draw(CLASSES.index("fish"), seed=3)
>>> scene.image.shape, scene.image.dtype, scene.mask.shape, CLASSES[scene.label]
((96, 96, 3), dtype('uint8'), (96, 96), 'fish')
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convad_fx.demo.backgrounds import background
from convad_fx.demo.canvas import Canvas
from convad_fx.demo.objects import KINDS

CLASSES: tuple[str, ...] = tuple(kind.name for kind in KINDS)
SIZE = 96

# Training draws with seeds below this number, `held_out` from it upwards: they cannot meet.
_HELD_OUT = 1 << 32


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture, and what is to be seen on it.

    Args:
        image: (96, 96, 3), uint8, RGB.
        mask: (96, 96), bool; True wherever the object has a share in the pixel's colour, so outside
            it there is background and nothing else.
        label: which of `CLASSES` the object is.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: int


def draw(label: int, seed: int) -> Scene:
    """The picture number `seed` of class `label`; the same numbers draw the same picture.

    The background and the place depend on the seed alone, so they say nothing about the class:

    >>> fish, car = draw(1, seed=7), draw(5, seed=7)
    >>> neither = ~(fish.mask | car.mask)
    >>> bool((fish.image[neither] == car.image[neither]).all())
    True

    Raises:
        IndexError: there is no class `label`.
        ValueError: the seed is negative.
    """
    if not 0 <= label < len(KINDS):
        raise IndexError(f"class {label} does not exist; there are {len(KINDS)}: {CLASSES}")
    kind = KINDS[label]
    behind, before = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1, label])

    ground = background(behind, SIZE)
    scale = behind.uniform(0.21, 0.4) * SIZE
    # The corners of some drawings stick out of their unit circle; with this, none is cut off.
    margin = 1.15 * scale + 1
    centre = behind.uniform(margin, SIZE - margin, size=2)
    canvas = Canvas(
        SIZE,
        (float(centre[0]), float(centre[1])),
        scale,
        turn=before.uniform(-kind.tilt, kind.tilt),
        mirrored=bool(before.uniform() < 0.5),
    )
    kind.paint(canvas, before)
    colour, coverage = canvas.pixels()

    # Light from one side: flat colours would look cut out of paper.
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    angle = before.uniform(0, 2 * np.pi)
    across = ((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)) / scale
    light = 1 + 0.16 * np.clip(across, -1, 1)

    picture = ground * (1 - coverage[..., None]) + colour * light[..., None]
    picture += behind.normal(0, behind.uniform(1, 4), size=picture.shape)
    return Scene(image=np.clip(picture, 0, 255).astype(np.uint8), mask=coverage > 0, label=label)


def held_out(count: int) -> list[Scene]:
    """`count` pictures that no training has seen, the classes in turn.

    >>> [CLASSES[scene.label] for scene in held_out(3)]
    ['ladybird', 'fish', 'house']
    """
    return [draw(label, seed) for label, seed in held_out_numbers(count)]


def held_out_numbers(count: int) -> list[tuple[int, int]]:
    """What `draw` takes for each picture of `held_out(count)`: pairs of label and seed."""
    return [(index % len(CLASSES), _HELD_OUT + index) for index in range(count)]


def training_numbers(count: int, run: int = 0) -> list[tuple[int, int]]:
    """What `draw` takes for `count` training pictures, others for each `run`: label and seed.

    >>> set(training_numbers(1000)) & set(held_out_numbers(1000))
    set()

    Raises:
        ValueError: the seeds would reach those of the held-out pictures.
    """
    first = run * count
    if not 0 <= first <= _HELD_OUT - count:
        raise ValueError(f"run {run} with {count} pictures leaves the seeds 0 ... {_HELD_OUT - 1}")
    return [(index % len(CLASSES), first + index) for index in range(count)]
