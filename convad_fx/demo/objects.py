"""The ten classes of the demo, drawn with random shapes and colours.

A drawing fills the unit circle of its canvas, upright: x to the right, y down. Classes differ by
their parts (wheels, sails, petals ...); colours vary too much to identify a class.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from convad_fx.demo.canvas import Canvas, Colour, Point, arc, flipped, hsv, ring, shaded, smooth

_INK: Colour = (34, 28, 32)
_WHITE: Colour = (246, 244, 236)


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of objects.

    Args:
        name: of the class, for people.
        paint: draws an object with random choices from the generator.
        tilt: maximum rotation from upright in either direction, in radians.
    """

    name: str
    paint: Callable[[Canvas, Generator], None]
    tilt: float


def _vivid(rng: Generator) -> Colour:
    """Any hue, saturated enough for a cluttered background."""
    return hsv(rng.uniform(), rng.uniform(0.55, 0.95), rng.uniform(0.7, 1.0))


def _pale(rng: Generator) -> Colour:
    return hsv(rng.uniform(), rng.uniform(0.05, 0.3), rng.uniform(0.88, 1.0))


def _wood(rng: Generator) -> Colour:
    return hsv(rng.uniform(0.04, 0.11), rng.uniform(0.4, 0.7), rng.uniform(0.35, 0.6))


def _leafy(rng: Generator) -> Colour:
    return hsv(rng.uniform(0.22, 0.42), rng.uniform(0.5, 0.9), rng.uniform(0.45, 0.8))


def _rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _ladybird(canvas: Canvas, rng: Generator) -> None:
    wing = _vivid(rng) if rng.uniform() < 0.4 else hsv(rng.uniform(-0.02, 0.12), 0.9, 0.92)
    for side in (-1, 1):
        for hip, reach, foot in ((-0.3, 0.92, -0.55), (0.1, 1.0, 0.12), (0.5, 0.82, 0.72)):
            knee = ((reach - 0.2 + rng.uniform(0, 0.08)) * side, foot * 0.8)
            canvas.line([(0.4 * side, hip), knee, (reach * side, foot)], 0.075, _INK)
        canvas.line([(0.1 * side, -0.8), (0.22 * side, -0.98), (0.36 * side, -1.02)], 0.05, _INK)
    canvas.ellipse((0, -0.66), (0.4, 0.3), _INK)
    canvas.ellipse((0, 0.14), (0.74, 0.82), wing, _INK)
    # The shield behind the head, with its two pale cheeks.
    canvas.polygon(arc((0, 0.14), (0.74, 0.82), -0.78 * math.pi, -0.22 * math.pi), _INK)
    for side in (-1, 1):
        canvas.ellipse((0.28 * side, -0.56), (0.12, 0.09), _WHITE, turn=0.6 * side)
    canvas.line([(0, -0.42), (0, 0.94)], 0.055, _INK)
    spots = (((0.3, -0.2), (0.52, 0.2), (0.24, 0.38), (0.38, 0.7)), ((0.4, -0.08), (0.36, 0.5)))
    radius = rng.uniform(0.12, 0.16)
    for x, y in spots[0] if rng.uniform() < 0.7 else spots[1]:
        for side in (-1, 1):
            canvas.ellipse((x * side, y), (radius, radius * 1.1), _INK)


def _fish(canvas: Canvas, rng: Generator) -> None:
    body, mark = _vivid(rng), _vivid(rng)
    fin, rim = shaded(mark, 0.85), shaded(body, 0.4)
    height = rng.uniform(0.4, 0.52)
    tail = [(-0.5, 0), (-0.98, -0.48), (-0.84, 0), (-0.98, 0.48)]
    canvas.polygon(smooth(tail, 6), fin, rim)
    back = [(-0.35, -0.7 * height), (-0.3, -height - 0.25), (0.3, -height - 0.12), (0.4, -0.2)]
    canvas.polygon(smooth(back), fin, rim)
    canvas.polygon(smooth([(-0.2, 0.2), (-0.32, height + 0.26), (0.12, 0.8 * height)]), fin, rim)
    outline = [
        (0.94, 0.04), (0.72, -0.6 * height), (0.25, -height), (-0.3, -0.68 * height),
        (-0.66, -0.1), (-0.66, 0.1), (-0.3, 0.68 * height), (0.25, height), (0.72, 0.62 * height),
    ]  # fmt: skip
    canvas.polygon(smooth(outline), body)
    if rng.uniform() < 0.5:
        for x in (-0.28, 0.0, 0.28):
            half = height * (0.74 + 0.6 * min(0.28, x + 0.3))
            bar = [(x - 0.06, -half), (x + 0.06, -half), (x + 0.1, 0), (x + 0.06, half)]
            canvas.polygon([*bar, (x - 0.06, half), (x - 0.02, 0)], mark)
    else:
        for x in (-0.4, -0.16, 0.08):
            for y in (-0.22, 0.0, 0.22):
                if abs(y) < height * 0.55:
                    scale = arc((x, y), (0.1, 0.11), -0.45 * math.pi, 0.45 * math.pi, steps=9)
                    canvas.line(scale, 0.045, mark)
    curve = smooth(outline)
    canvas.line([*curve, curve[0]], 0.05, rim)
    canvas.line(arc((0.32, 0), (0.14, 0.72 * height), -1.3, 1.3, steps=12), 0.05, rim)
    canvas.polygon(smooth([(0.12, 0.1), (-0.2, 0.34), (0.02, 0.02)], 6), fin, rim)
    canvas.ellipse((0.62, -0.14), (0.12, 0.12), _WHITE, rim)
    canvas.ellipse((0.65, -0.14), (0.065, 0.065), _INK)
    canvas.line([(0.9, 0.1), (0.74, 0.16)], 0.05, rim)


def _house(canvas: Canvas, rng: Generator) -> None:
    wall = _pale(rng) if rng.uniform() < 0.6 else _vivid(rng)
    roof, door = _vivid(rng), _wood(rng)
    rim, glass = shaded(wall, 0.4), hsv(rng.uniform(0.1, 0.6), 0.35, 0.95)
    half, eaves = rng.uniform(0.56, 0.66), rng.uniform(-0.2, -0.06)
    ridge = -0.92
    chimney = rng.uniform(0.25, 0.38)
    stack = _rectangle(chimney, -0.88, chimney + 0.2, -0.2)
    canvas.polygon(stack, shaded(roof, 0.7), shaded(roof, 0.35))
    canvas.polygon(_rectangle(-half, eaves, half, 0.78), wall, rim)
    gable = [(-half - 0.18, eaves + 0.06), (0, ridge), (half + 0.18, eaves + 0.06)]
    canvas.polygon(gable, roof, shaded(roof, 0.35))
    canvas.ellipse((0, 0.6 * eaves - 0.2), (0.11, 0.11), glass, shaded(roof, 0.35))
    doorway = -0.24 if rng.uniform() < 0.5 else 0.0
    frame = _rectangle(doorway - 0.14, 0.26, doorway + 0.14, 0.78)
    canvas.polygon(frame, door, shaded(door, 0.45))
    canvas.ellipse((doorway + 0.07, 0.54), (0.03, 0.03), _WHITE)
    for x in (0.3,) if doorway else (-0.37, 0.37):
        size = 0.17 if doorway else 0.12
        y = 0.28
        canvas.polygon(_rectangle(x - size, y - 0.16, x + size, y + 0.16), glass, rim)
        canvas.line([(x, y - 0.16), (x, y + 0.16)], 0.04, rim)
        canvas.line([(x - size, y), (x + size, y)], 0.04, rim)


def _tree(canvas: Canvas, rng: Generator) -> None:
    leaf, bark = _leafy(rng), _wood(rng)
    if rng.uniform() < 0.4:  # autumn, blossom, or a cold evening
        leaf = _vivid(rng)
    rim = shaded(leaf, 0.42)
    if rng.uniform() < 0.5:
        trunk = [(-0.11, 0.5), (0.11, 0.5), (0.14, 0.98), (-0.14, 0.98)]
        canvas.polygon(trunk, bark, shaded(bark, 0.5))
        for top, bottom, half in ((0.02, 0.68, 0.66), (-0.46, 0.22, 0.54), (-0.98, -0.24, 0.4)):
            skirt = [(0, top), (half, bottom), (half / 3, bottom - 0.06), (0, bottom)]
            skirt += [(-half / 3, bottom - 0.06), (-half, bottom)]
            canvas.polygon(skirt, leaf, rim)
        return
    trunk = [(-0.1, 0.0), (0.1, 0.0), (0.13, 0.8), (0.22, 0.97), (-0.22, 0.97), (-0.13, 0.8)]
    canvas.polygon(trunk, bark, shaded(bark, 0.5))
    for side in (-1, 1):
        canvas.line([(0, 0.5), (0.3 * side, 0.15)], 0.09, bark)
    clumps = [(-0.44, -0.02, 0.34), (0.44, -0.02, 0.34), (-0.36, -0.42, 0.36), (0.36, -0.42, 0.36)]
    clumps += [(0.0, -0.6, 0.38), (0.0, -0.12, 0.42)]
    puffs = [(x + rng.normal(0, 0.03), y + rng.normal(0, 0.03), r) for x, y, r in clumps]
    # All rims first: the visible parts form the outline of the crown.
    for x, y, r in puffs:
        canvas.ellipse((x, y), (r, r), rim)
    for x, y, r in puffs:
        canvas.ellipse((x, y), (r - 0.04, r - 0.04), leaf)
    for x, y, r in puffs:
        light = arc((x, y), (0.68 * r, 0.68 * r), 1.05 * math.pi, 1.6 * math.pi, steps=10)
        canvas.line(light, 0.06, shaded(leaf, 1.3))


def _flower(canvas: Canvas, rng: Generator) -> None:
    petal, heart, stem = _vivid(rng), hsv(rng.uniform(0.08, 0.17), 0.9, 0.95), _leafy(rng)
    if rng.uniform() < 0.3:
        petal, heart = _pale(rng), _vivid(rng)
    count, rim = int(rng.integers(5, 9)), shaded(petal, 0.45)
    canvas.line([(0, -0.2), (0.04, 0.4), (0, 0.98)], 0.13, shaded(stem, 0.5))
    canvas.line([(0, -0.2), (0.04, 0.4), (0, 0.98)], 0.075, stem)
    for side, base in ((-1, 0.78), (1, 0.64)):
        blade = [(0.02, base), (0.22 * side, base - 0.24), (0.6 * side, base - 0.3)]
        canvas.polygon(smooth([*blade, (0.34 * side, base - 0.02)]), stem, shaded(stem, 0.5))
    offset, reach = rng.uniform(0, math.tau), rng.uniform(0.34, 0.38)
    broad = min(0.26, 1.25 / count)
    for index in range(count):
        angle = offset + index * math.tau / count
        middle = (reach * math.cos(angle), -0.36 + reach * math.sin(angle))
        canvas.ellipse(middle, (0.26, broad), petal, rim, turn=angle)
    canvas.ellipse((0, -0.36), (0.21, 0.21), heart, shaded(heart, 0.5))
    for angle in np.arange(6) * math.tau / 6:
        seed = (0.1 * math.cos(angle), -0.36 + 0.1 * math.sin(angle))
        canvas.ellipse(seed, (0.025, 0.025), shaded(heart, 0.55))


def _car(canvas: Canvas, rng: Generator) -> None:
    paint = _vivid(rng) if rng.uniform() < 0.8 else _pale(rng)
    rim, glass = shaded(paint, 0.35), hsv(rng.uniform(0.5, 0.6), 0.25, rng.uniform(0.8, 0.95))
    roof, back = rng.uniform(-0.52, -0.44), rng.uniform(-0.72, -0.55)
    front = rng.uniform(0.3, 0.42)
    cabin = [(back, -0.05), (back + 0.2, roof), (front - 0.22, roof), (front + 0.12, -0.05)]
    canvas.polygon(cabin, paint, rim)
    post = (back + front) / 2 + 0.02
    for bottom, top, inner in (
        (back + 0.12, back + 0.25, post - 0.04),
        (front, front - 0.24, post + 0.04),
    ):
        pane = [(bottom, -0.06), (top, roof + 0.09), (inner, roof + 0.09), (inner, -0.06)]
        canvas.polygon(pane, glass)
    shell = [(-0.94, 0.3), (-0.96, 0.0), (-0.88, -0.08), (front + 0.1, -0.08), (0.82, 0.02)]
    canvas.polygon([*shell, (0.95, 0.12), (0.95, 0.3)], paint, rim)
    canvas.line([(post, 0.0), (post, 0.24)], 0.035, rim)
    canvas.line([(post - 0.16, 0.04), (post - 0.06, 0.04)], 0.045, rim)
    canvas.ellipse((0.86, 0.12), (0.07, 0.06), (255, 240, 170))
    canvas.ellipse((-0.9, 0.1), (0.045, 0.07), (200, 40, 30))
    for x in (-0.54, 0.52):
        canvas.ellipse((x, 0.3), (0.25, 0.25), _INK)
        canvas.ellipse((x, 0.3), (0.12, 0.12), (205, 205, 212))
        canvas.ellipse((x, 0.3), (0.045, 0.045), _INK)


def _umbrella(canvas: Canvas, rng: Generator) -> None:
    first, second = _vivid(rng), _vivid(rng) if rng.uniform() < 0.5 else _pale(rng)
    rim = shaded(first, 0.38)
    shaft = _wood(rng) if rng.uniform() < 0.5 else (70, 70, 78)
    hook = arc((0.15, 0.72), (0.15, 0.2), math.pi, 0.05 * math.pi, steps=14)
    canvas.line([(0, -0.92), (0, 0.72)], 0.07, shaft)
    canvas.line(hook, 0.1, shaft)
    panels, rise = 6, rng.uniform(0.7, 0.8)
    # The canopy is a half-dome seen from the side: its ribs meet at the top, dense at the sides.
    stops = 0.94 * np.cos(np.linspace(math.pi, 0, panels + 1))
    dome_top = np.array([0.0, -rise])
    hem = 0.02
    for index in range(panels):
        left, right = float(stops[index]), float(stops[index + 1])
        up = [_rib(left, t, hem, dome_top) for t in np.linspace(0, 1, 14)]
        down = [_rib(right, t, hem, dome_top) for t in np.linspace(1, 0, 14)]
        half = (right - left) / 2
        scallop = arc(((left + right) / 2, hem), (half, 0.14), 0, -math.pi, steps=12)
        canvas.polygon([*up, *down, *scallop], first if index % 2 == 0 else second, rim)
    canvas.line([(0, -rise - 0.1), (0, -rise + 0.02)], 0.07, shaft)


def _rib(foot: float, share: float, hem: float, top: np.ndarray) -> tuple[float, float]:
    """A point of the umbrella's rib that ends at x = `foot`, `share` of the way up to the top."""
    angle = share * math.pi / 2
    return foot * math.cos(angle), hem + (float(top[1]) - hem) * math.sin(angle)


def _mushroom(canvas: Canvas, rng: Generator) -> None:
    cap, stem = _vivid(rng), _pale(rng)
    if rng.uniform() < 0.3:
        cap = _wood(rng)
    rim, top = shaded(cap, 0.4), rng.uniform(-0.9, -0.75)
    foot = rng.uniform(0.28, 0.38)
    stalk = [(-0.2, 0.0), (0.2, 0.0), (0.24, 0.5), (foot, 0.82)]
    stalk += [(0, 0.95), (-foot, 0.82), (-0.24, 0.5)]
    canvas.polygon(smooth(stalk), stem, shaded(stem, 0.45))
    for x in (-0.08, 0.06):
        canvas.line([(x, 0.45), (x * 1.4, 0.72)], 0.03, shaded(stem, 0.75))
    canvas.ellipse((0, 0.06), (0.86, 0.17), shaded(stem, 0.85), shaded(stem, 0.45))
    for x in np.linspace(-0.66, 0.66, 7):
        canvas.line([(0.5 * x, 0.07), (x, 0.15)], 0.03, shaded(stem, 0.55))
    dome = arc((0, 0.06), (0.92, 0.06 - top), math.pi, math.tau, steps=40)
    brim = arc((0, 0.06), (0.92, 0.1), 0, math.pi, steps=24)
    canvas.polygon([*dome, *brim], cap, rim)
    dots = _pale(rng)
    for x, y, r in ((-0.5, -0.12, 0.13), (0.0, -0.3, 0.16), (0.5, -0.1, 0.13), (-0.28, -0.52, 0.11),
                    (0.3, -0.5, 0.11), (-0.2, 0.0, 0.08), (0.24, 0.02, 0.08)):  # fmt: skip
        if rng.uniform() < 0.9:
            canvas.ellipse((x + rng.normal(0, 0.03), y), (r, 0.82 * r), dots)


def _boat(canvas: Canvas, rng: Generator) -> None:
    hull, first = _vivid(rng), _pale(rng) if rng.uniform() < 0.6 else _vivid(rng)
    second, mast = _pale(rng) if rng.uniform() < 0.5 else _vivid(rng), _wood(rng)
    rim = shaded(hull, 0.38)
    step = rng.uniform(-0.12, 0.05)
    canvas.line([(step, 0.5), (step, -0.94)], 0.07, mast)
    flag = [(step, -0.92), (step - 0.3, -0.82), (step, -0.72)]
    canvas.polygon(flag, _vivid(rng), _INK, width=0.03)
    main = arc((step + 0.06, 0.34), (0.74, 1.1), -0.5 * math.pi, 0, steps=16) * (0.97, 1.0)
    canvas.polygon([*main, (step + 0.06, 0.34)], first, shaded(first, 0.45))
    jib = [(step - 0.07, -0.6), (step - 0.07, 0.34), (-0.72, 0.34)]
    canvas.polygon(jib, second, shaded(second, 0.45))
    if rng.uniform() < 0.5:
        canvas.line([(step + 0.1, 0.0), (step + 0.66, 0.0)], 0.08, shaded(hull, 0.9))
    deck = [(-0.98, 0.42), (0.98, 0.42), (0.74, 0.86), (-0.66, 0.86)]
    canvas.polygon(deck, hull, rim)
    canvas.line([(-0.84, 0.55), (0.84, 0.55)], 0.06, shaded(hull, 1.35))
    for x in (-0.36, 0.0, 0.36):
        canvas.ellipse((x, 0.7), (0.06, 0.06), _WHITE, rim)


def _butterfly(canvas: Canvas, rng: Generator) -> None:
    wing, mark = _vivid(rng), _vivid(rng) if rng.uniform() < 0.6 else _pale(rng)
    rim = shaded(wing, 0.3)
    spread = rng.uniform(0.9, 1.0)
    upper = [(0.06, -0.12), (0.3, -0.62), (0.78, -0.82), (0.95, -0.5), (0.72, -0.06), (0.3, 0.08)]
    lower = [(0.06, 0.0), (0.42, 0.02), (0.74, 0.24), (0.66, 0.66), (0.38, 0.8), (0.16, 0.46)]
    for turned in (lambda points: np.asarray(points), flipped):
        for outline, middle in ((lower, (0.44, 0.4)), (upper, (0.58, -0.42))):
            shape = smooth(np.asarray(outline) * (spread, 1.0))
            canvas.polygon(turned(shape), wing, rim, width=0.07)
            inner = (shape - middle) * 0.55 + middle
            canvas.polygon(turned(inner), mark)
            dot = ring((middle[0], middle[1]), (0.1, 0.1), steps=20)
            canvas.polygon(turned(dot), rim)
    canvas.ellipse((0, 0.06), (0.09, 0.54), _INK)
    canvas.ellipse((0, -0.5), (0.12, 0.12), _INK)
    for side in (-1, 1):
        feeler = [(0.04 * side, -0.56), (0.12 * side, -0.8), (0.28 * side, -0.98)]
        canvas.line(feeler, 0.05, _INK)
        canvas.ellipse((0.28 * side, -0.98), (0.055, 0.055), _INK)


KINDS = (
    Kind("ladybird", _ladybird, math.pi),
    Kind("fish", _fish, 0.7),
    Kind("house", _house, 0.25),
    Kind("tree", _tree, 0.25),
    Kind("flower", _flower, 0.6),
    Kind("car", _car, 0.3),
    Kind("umbrella", _umbrella, 0.7),
    Kind("mushroom", _mushroom, 0.45),
    Kind("sailing boat", _boat, 0.3),
    Kind("butterfly", _butterfly, math.pi),
)
