"""The order in which pixels join a set: by responsibility, or ring by ring around its peak."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.goals import Goal

# The discs of `spatial_ranks`, as in ReX: the first radius is 25 of 224 pixels, each next one a
# fifth larger.
_FIRST_RADIUS, _RADIUS_FACTOR = 25 / 224, 1.2
#: Upper bound of the masks that `spatial_ranks` evaluates.
MAX_DISCS = 24


def pixel_ranks(
    responsibility: NDArray[np.float32], allowed: Mask | None = None
) -> NDArray[np.int64]:
    """The rank of each pixel (H, W): 0 for the most responsible, every rank once.

    >>> pixel_ranks(np.array([[0, 2], [1, 2]], np.float32)).tolist()
    [[3, 0], [2, 1]]

    Boxes leave plateaus of equal responsibility. Within one, pixels in more responsible
    surroundings come first (so a plateau fills from the side of the peak), then those nearer the
    centre of the image, then row by row. Pixels that are not `allowed` (H, W) come last.
    """
    height, width = responsibility.shape
    rows, columns = np.mgrid[:height, :width]
    to_centre = (2 * rows - height + 1) ** 2 + (2 * columns - width + 1) ** 2
    surroundings = _box_sums(responsibility, max(1, min(height, width) // 16))
    excluded = np.zeros(responsibility.shape, bool) if allowed is None else ~allowed
    index = np.arange(height * width).reshape(responsibility.shape)
    return _ranks(index, to_centre, -surroundings, -responsibility, excluded)


def _ranks(*keys: NDArray[np.generic]) -> NDArray[np.int64]:
    """The rank of each cell (H, W) sorted by the last key, ties by the one before, and so on."""
    order = np.lexsort([key.ravel() for key in keys])
    ranks = np.empty(order.size, np.int64)
    ranks[order] = np.arange(order.size)
    return ranks.reshape(keys[0].shape)


def _box_sums(values: NDArray[np.float32], radius: int) -> NDArray[np.int64]:
    """The sum over the square around each cell, in sixty-fourths: integers, so ties are exact."""
    padded = np.pad(np.rint(values * 64.0).astype(np.int64), radius)
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = 2 * radius + 1
    below, above = sums[side:], sums[:-side]
    inside: NDArray[np.int64] = (
        below[:, side:] - above[:, side:] - below[:, :-side] + above[:, :-side]
    )
    return inside


def spatial_ranks(
    evaluator: Evaluator, goal: Goal, ranks: NDArray[np.int64], allowed: Mask | None = None
) -> NDArray[np.int64]:
    """Ranks (H, W) in which the smallest disc that reaches the goal comes first.

    >>> import torch
    >>> from convad_fx.explain.goals import Suffices
    >>> def corner(x, mask):
    ...     kept = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * kept, 8 * kept - 4], 1)
    >>> responsibility = np.zeros((16, 16), np.float32)
    >>> responsibility[2, 2], responsibility[12:, 12:] = 2, 1
    >>> evaluator, ranks = Evaluator(corner, torch.zeros(1, 16, 16)), pixel_ranks(responsibility)
    >>> compact = spatial_ranks(evaluator, Suffices(1, 0.9), ranks)
    >>> bool((ranks < 17)[12:, 12:].all()), bool((compact < 17)[12:, 12:].any())
    (True, False)

    Of discs around the pixel of rank 0, from small to large, the first that reaches the goal comes
    first, by the given ranks, and then the other pixels ring by ring: so sets are compact (ReX:
    "spatial"). If no disc reaches it, the ranks stay. Pixels that are not `allowed` come last.
    """
    rows, columns = np.indices(ranks.shape)
    row, column = np.argwhere(ranks == 0)[0]
    distance = np.hypot(rows - row, columns - column)
    radii: list[float] = []
    radius = max(1.0, _FIRST_RADIUS * min(ranks.shape))
    while radius < distance.max() and len(radii) < MAX_DISCS:
        radii.append(radius)
        radius *= _RADIUS_FACTOR
    if not radii:
        return ranks
    if allowed is None:
        allowed = np.ones(ranks.shape, bool)
    discs = [(distance <= radius) & allowed for radius in radii]
    reached, _ = goal.evaluate(evaluator, discs)
    if not reached.any():
        return ranks
    ring = np.searchsorted(radii, distance)  # number of discs that leave the pixel out
    return _ranks(ranks, np.maximum(ring, reached.argmax()), ~allowed)
