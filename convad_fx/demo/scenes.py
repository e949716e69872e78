"""Synthetic labelled pictures: one object on a cluttered background, and its mask.

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

# Training uses smaller seeds, `held_out` this one and larger ones.
_HELD_OUT = 1 << 32


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture with its object's mask and class.

    Args:
        image: (96, 96, 3), uint8, RGB.
        mask: (96, 96), bool; True wherever the object contributes to the pixel's colour.
        label: index of the object's class in `CLASSES`.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: int


def draw(label: int, seed: int) -> Scene:
    """Draw a picture of class `label`; deterministic in `label` and `seed`.

    Background and position depend on the seed alone, so they do not reveal the class:

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
    scene_rng = np.random.default_rng([seed, 0])
    object_rng = np.random.default_rng([seed, 1, label])

    ground = background(scene_rng, SIZE)
    scale = scene_rng.uniform(0.21, 0.4) * SIZE
    # Corners of some drawings are outside the unit circle; with this margin none is cut off.
    margin = 1.15 * scale + 1
    centre = scene_rng.uniform(margin, SIZE - margin, size=2)
    canvas = Canvas(
        SIZE,
        (float(centre[0]), float(centre[1])),
        scale,
        turn=object_rng.uniform(-kind.tilt, kind.tilt),
        mirrored=bool(object_rng.uniform() < 0.5),
    )
    kind.paint(canvas, object_rng)
    colour, coverage = canvas.pixels()

    # Light from one side
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    angle = object_rng.uniform(0, 2 * np.pi)
    across = ((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)) / scale
    light = 1 + 0.16 * np.clip(across, -1, 1)

    picture = ground * (1 - coverage[..., None]) + colour * light[..., None]
    picture += scene_rng.normal(0, scene_rng.uniform(1, 4), size=picture.shape)
    return Scene(image=np.clip(picture, 0, 255).astype(np.uint8), mask=coverage > 0, label=label)


def held_out(count: int) -> list[Scene]:
    """`count` pictures that are not in any training set, with classes in turn.

    >>> [CLASSES[scene.label] for scene in held_out(3)]
    ['ladybird', 'fish', 'house']
    """
    return [draw(label, seed) for label, seed in held_out_numbers(count)]


def held_out_numbers(count: int) -> list[tuple[int, int]]:
    """Label and seed of each picture of `held_out(count)`."""
    return [(index % len(CLASSES), _HELD_OUT + index) for index in range(count)]


def training_numbers(count: int, run: int = 0) -> list[tuple[int, int]]:
    """Label and seed of `count` training pictures; every `run` has other pictures.

    >>> set(training_numbers(1000)) & set(held_out_numbers(1000))
    set()

    Raises:
        ValueError: the seeds would overlap those of the held-out pictures.
    """
    first = run * count
    if not 0 <= first <= _HELD_OUT - count:
        raise ValueError(f"run {run} with {count} pictures exceeds the seeds 0 ... {_HELD_OUT - 1}")
    return [(index % len(CLASSES), first + index) for index in range(count)]
