"""A drawing surface with its own coordinates: shapes are given in the object's units.

>>> canvas = Canvas(size=8, centre=(4, 4), scale=4)
>>> canvas.ellipse((0, 0), (1, 1), fill=(255, 0, 0))
>>> colour, coverage = canvas.pixels()
>>> colour.shape, coverage.shape, bool(coverage[4, 4] == 1), bool(coverage[0, 0] < 1)
((8, 8, 3), (8, 8), True, True)
"""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

# Shapes are drawn this many times larger and averaged down, for smooth edges and exact coverage.
_SUPERSAMPLE = 4


class Canvas:
    """An empty picture for flat shapes; later shapes cover earlier ones.

    Args:
        size: height and width of the picture, in pixels.
        centre: position of the canvas's point (0, 0), in pixels (x, y).
        scale: pixels per unit of the canvas, whose x points right and y down.
        turn: clockwise rotation of the canvas, in radians.
        mirrored: whether left and right are swapped before the rotation.
    """

    def __init__(
        self,
        size: int,
        centre: Point,
        scale: float,
        turn: float = 0.0,
        mirrored: bool = False,
    ):
        side = size * _SUPERSAMPLE
        self._layer = Image.new("RGBA", (side, side))
        self._draw = ImageDraw.Draw(self._layer)
        self._scale = scale * _SUPERSAMPLE
        self._centre = np.asarray(centre, dtype=np.float64) * _SUPERSAMPLE
        cosine, sine = math.cos(turn), math.sin(turn)
        self._frame = np.array([[cosine, -sine], [sine, cosine]]) * self._scale
        if mirrored:
            self._frame[:, 0] *= -1

    def polygon(
        self, points: ArrayLike, fill: Colour, edge: Colour | None = None, width: float = 0.045
    ) -> None:
        """Draw a filled polygon.

        Args:
            points: the corners, (n, 2).
            fill: the colour inside.
            edge: the colour of the outline; None for no outline.
            width: of the outline, in units of the canvas.
        """
        corners = self._place(points)
        self._draw.polygon(corners, fill=fill)
        if edge is not None:
            # The first two corners again, so that the last joint is rounded like the others.
            self._stroke([*corners, *corners[:2]], edge, width)

    def ellipse(
        self,
        middle: Point,
        radii: Point,
        fill: Colour,
        edge: Colour | None = None,
        turn: float = 0.0,
    ) -> None:
        """Draw a filled ellipse, rotated clockwise about its middle by `turn` radians."""
        self.polygon(ring(middle, radii, turn), fill, edge)

    def line(self, points: ArrayLike, width: float, fill: Colour) -> None:
        """Draw a line through `points`, (n, 2), with rounded joints and ends."""
        corners = self._place(points)
        self._stroke(corners, fill, width)
        radius = self._scale * width / 2
        for x, y in (corners[0], corners[-1]):
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def pixels(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The drawing: colour (H, W, 3) in [0, 255], and coverage (H, W) in [0, 1].

        The colour is premultiplied: `background * (1 - coverage) + colour` is the drawing on a
        background.
        """
        # Empty pixels of the layer are black, so averages of colours are premultiplied.
        colour = self._layer.convert("RGB").reduce(_SUPERSAMPLE)
        coverage = self._layer.getchannel("A").reduce(_SUPERSAMPLE)
        return (
            np.asarray(colour, dtype=np.float32),
            np.asarray(coverage, dtype=np.float32) / np.float32(255),
        )

    def _place(self, points: ArrayLike) -> list[Point]:
        placed = np.asarray(points, dtype=np.float64) @ self._frame.T + self._centre
        return [(float(x), float(y)) for x, y in placed]

    def _stroke(self, corners: Sequence[Point], fill: Colour, width: float) -> None:
        thickness = max(1, round(self._scale * width))
        # On curves of many points, joints are invisible but would take most of the time.
        joint = "curve" if len(corners) < 20 else None
        self._draw.line(corners, fill=fill, width=thickness, joint=joint)


def ring(middle: Point, radii: Point, turn: float = 0.0, steps: int = 48) -> NDArray[np.float64]:
    """Points around an ellipse, (steps, 2)."""
    return arc(middle, radii, 0.0, 2 * math.pi * (1 - 1 / steps), turn, steps)


def arc(
    middle: Point,
    radii: Point,
    start: float,
    stop: float,
    turn: float = 0.0,
    steps: int = 32,
) -> NDArray[np.float64]:
    """Points along an ellipse from angle `start` to `stop`, (steps, 2); 0 is right, pi / 2 down."""
    angles = np.linspace(start, stop, steps)
    x, y = radii[0] * np.cos(angles), radii[1] * np.sin(angles)
    cosine, sine = math.cos(turn), math.sin(turn)
    return np.stack([middle[0] + cosine * x - sine * y, middle[1] + sine * x + cosine * y], axis=1)


def smooth(points: ArrayLike, steps: int = 8) -> NDArray[np.float64]:
    """A closed smooth curve through `points` (n, 2), as (n * steps, 2): a Catmull-Rom spline."""
    here = np.asarray(points, dtype=np.float64)
    before, after, beyond = np.roll(here, 1, 0), np.roll(here, -1, 0), np.roll(here, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    curve = 0.5 * (
        2 * here
        + (after - before) * t
        + (2 * before - 5 * here + 4 * after - beyond) * t**2
        + (3 * here - before - 3 * after + beyond) * t**3
    )
    # (steps, n, 2): the steps of one span belong together.
    return np.asarray(curve.transpose(1, 0, 2).reshape(-1, 2))


def flipped(points: ArrayLike) -> NDArray[np.float64]:
    """`points` (n, 2) with left and right swapped."""
    return np.asarray(points, dtype=np.float64) * (-1.0, 1.0)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from hue (any number, taken modulo 1), saturation and value in [0, 1].

    >>> hsv(0, 1, 1), hsv(1.5, 1, 0.5)
    ((255, 0, 0), (0, 128, 128))
    """
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def shaded(colour: Colour, factor: float) -> Colour:
    """`colour`, darker for factors below 1 and lighter above.

    >>> shaded((100, 200, 10), 0.5), shaded((100, 200, 10), 2)
    ((50, 100, 5), (200, 255, 20))
    """
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue
