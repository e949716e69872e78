"""The most responsible pixels that suffice: the same class, with enough confidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.evaluate import Evaluator, Mask

# Prefixes asked about at once. 16 take four rounds on 224 x 224 pixels: 64 masks, where bisection
# takes 16 masks in 16 calls, and overlooks a short prefix that passes between two that fail.
SECTIONS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Sufficient:
    """A set of pixels, and what the network says of it.

    Args:
        mask: (H, W), True = kept.
        confidence: of the target, in the batch in which the set was found.
        recheck: the same for the set alone, at batch size 1.
        passed: whether the set is sufficient when asked alone.
    """

    mask: Mask
    confidence: float
    recheck: float
    passed: bool


def order(responsibility: NDArray[np.float32]) -> NDArray[np.int64]:
    """The rank of each pixel (H, W): 0 for the most responsible, every rank once.

    >>> order(np.array([[0, 2], [1, 2]], np.float32)).tolist()
    [[3, 0], [2, 1]]

    Boxes leave plateaus of equal responsibility. Within one, pixels in more responsible
    surroundings come first (so a plateau fills from the side of the peak), then those nearer the
    middle of the image, then row by row.
    """
    height, width = responsibility.shape
    rows, columns = np.mgrid[:height, :width]
    middle = (2 * rows - height + 1) ** 2 + (2 * columns - width + 1) ** 2
    surroundings = _box_sum(responsibility, max(1, min(height, width) // 16))
    by_rank = np.lexsort(
        (np.arange(height * width), middle.ravel(), -surroundings.ravel(), -responsibility.ravel())
    )
    rank = np.empty(height * width, np.int64)
    rank[by_rank] = np.arange(height * width)
    return rank.reshape(height, width)


def _box_sum(values: NDArray[np.float32], radius: int) -> NDArray[np.int64]:
    """The sum over the square around each cell, in sixty-fourths: integers, so ties are exact."""
    padded = np.pad(np.rint(values * 64.0).astype(np.int64), radius)
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = 2 * radius + 1
    below, above = sums[side:], sums[:-side]
    inside: NDArray[np.int64] = (
        below[:, side:] - above[:, side:] - below[:, :-side] + above[:, :-side]
    )
    return inside


def sufficient(
    evaluator: Evaluator, target: int, at_least: float, responsibility: NDArray[np.float32]
) -> Sufficient:
    """The shortest prefix found, in order of responsibility, that is sufficient.

    >>> import torch
    >>> def corner(x, mask):
    ...     seen = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> map = np.zeros((16, 16), np.float32)
    >>> map[:4, :6] = 1
    >>> found = sufficient(Evaluator(corner, torch.zeros(1, 16, 16)), 1, 0.95, map)
    >>> int(found.mask.sum()), found.passed
    (20, True)

    Sufficient means: the class is `target`, and its confidence is `at_least` so much. Sufficiency
    is not monotone (more pixels can change the class again), so the shortest of all prefixes could
    only be found by asking about each. What is guaranteed: the set returned passes, asked alone at
    batch size 1; every shorter prefix that was asked about failed; and these include the one a
    single pixel shorter, except where rounding made the set grow: alone, a prefix may miss by
    rounding what it reached in a batch, and then it is lengthened by 1, 2, 4, ... pixels until it
    passes. The whole image counts as sufficient unasked; only where even it fails when asked again
    (a network that does not repeat itself) is the result marked as not passed.

    Args:
        evaluator: the network and the image; the whole image is known to give `target`.
        target: the class to be kept.
        at_least: the confidence to be reached, in [0, 1].
        responsibility: (H, W).
    """
    rank = order(responsibility)
    length, confidence = _shortest(evaluator, target, at_least, rank)
    if confidence is None:  # the whole image: not asked about on the way
        confidence = float(evaluator.scores([rank < length], target).confidence[0])
    candidates = _growing(evaluator, target, rank, length, confidence)
    found = _recheck(evaluator, target, at_least, *next(candidates))
    while not found.passed and (longer := next(candidates, None)) is not None:
        found = _recheck(evaluator, target, at_least, *longer)
    return found


def _recheck(
    evaluator: Evaluator, target: int, at_least: float, mask: Mask, confidence: float
) -> Sufficient:
    alone = evaluator.scores([mask], target)  # one mask, one call: batch size 1
    passed = bool(alone.passing(target, at_least)[0])
    return Sufficient(mask, confidence, float(alone.confidence[0]), passed)


def _shortest(
    evaluator: Evaluator, target: int, at_least: float, rank: NDArray[np.int64]
) -> tuple[int, float | None]:
    """Length and confidence of the first prefix that passes, by sections; `None`: not asked."""
    failed, passed, confidence = -1, rank.size, None
    while passed - failed > 1:
        gap = passed - failed
        count = min(SECTIONS, gap - 1)
        lengths = [failed + gap * i // (count + 1) for i in range(1, count + 1)]
        if failed < 0 and lengths[0] > 0:
            lengths.insert(0, 0)  # is anything needed at all?
        scores = evaluator.scores((rank < length for length in lengths), target)
        for length, passes, scored in zip(
            lengths, scores.passing(target, at_least), scores.confidence, strict=True
        ):
            if passes:
                passed, confidence = length, float(scored)
                break
            failed = length
    return passed, confidence


def _growing(
    evaluator: Evaluator,
    target: int,
    rank: NDArray[np.int64],
    length: int,
    confidence: float,
) -> Iterator[tuple[Mask, float]]:
    """The prefix itself, then ever longer ones up to the whole image, with their batched scores."""
    yield rank < length, confidence
    lengths = [min(length + (1 << i), rank.size) for i in range((rank.size - length).bit_length())]
    if lengths and lengths[-1] < rank.size:
        lengths.append(rank.size)
    masks = [rank < n for n in lengths]
    scores = evaluator.scores(masks, target)
    yield from zip(masks, scores.confidence.tolist(), strict=True)
