"""`shortest_prefix`: the first pixels of a ranking that reach a goal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.goals import Goal

#: Prefixes evaluated per round. 16 take four rounds on 224 x 224 pixels: 64 masks, where bisection
#: takes 16 masks in 16 rounds, and misses a short prefix that passes between two that fail.
PREFIXES_PER_ROUND = 16


@dataclass(frozen=True, slots=True, eq=False)
class PixelSet:
    """A set of pixels and its scores.

    Args:
        mask: the pixels, (H, W).
        confidence: of the target, in the batch in which the set was evaluated first.
        recheck: of the target, at batch size 1.
        top: the class predicted at batch size 1.
        passed: whether the goal is reached at batch size 1.
        minimal: whether leaving out any one of its blocks was measured to miss the goal.
    """

    mask: Mask
    confidence: float
    recheck: float
    top: int
    passed: bool
    minimal: bool = False


def recheck(evaluator: Evaluator, goal: Goal, chosen: Mask, confidence: float) -> PixelSet:
    """The set of the pixels `chosen`, scored by a direct call at batch size 1."""
    alone = evaluator.scores([goal.mask(chosen)], goal.target, direct=True)
    passed = bool(goal.reached(alone)[0])
    return PixelSet(chosen, confidence, float(alone.confidence[0]), int(alone.top[0]), passed)


def max_prefix_evaluations(pixels: int) -> int:
    """Upper bound of the masks that `shortest_prefix` evaluates, for a number of pixels.

    >>> max_prefix_evaluations(224 * 224)
    99
    """
    rounds, gap = 0, pixels + 1
    while gap > 1:
        rounds, gap = rounds + 1, -(-gap // (PREFIXES_PER_ROUND + 1))
    return rounds * PREFIXES_PER_ROUND + 1 + 2 * (pixels.bit_length() + 1)


def shortest_prefix(
    evaluator: Evaluator, goal: Goal, ranks: NDArray[np.int64], max_length: int | None = None
) -> PixelSet:
    """The shortest prefix found, in order of rank, that reaches the goal.

    >>> import torch
    >>> from convad_fx.explain.goals import Suffices
    >>> def corner(x, mask):
    ...     kept = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * kept, 8 * kept - 4], 1)
    >>> by_row = np.arange(256).reshape(16, 16)
    >>> evaluator = Evaluator(corner, torch.zeros(1, 16, 16))
    >>> prefix = shortest_prefix(evaluator, Suffices(1, 0.9), by_row)
    >>> int(prefix.mask.sum()), prefix.passed
    (49, True)

    Goals are not monotone (more pixels can change the class again), so a shorter one may exist.
    The prefix passes at batch size 1, and every shorter one evaluated failed, the one a pixel
    shorter included; but a prefix that passes only in a batch, by rounding, is lengthened by 1, 2,
    4, ... pixels. If even the longest fails (the network is not deterministic), `passed` is False.

    Args:
        evaluator: the network and the image.
        goal: the longest prefix is known to reach it.
        ranks: (H, W), every number from 0 once.
        max_length: pixels of the longest prefix; None: all.
    """
    max_length = ranks.size if max_length is None else max_length
    length, confidence = _search(evaluator, goal, ranks, max_length)
    if confidence is None:
        confidence = float(goal.evaluate(evaluator, [ranks < length])[1][0])
    candidates = _lengthened(evaluator, goal, ranks, length, max_length, confidence)
    prefix = recheck(evaluator, goal, *next(candidates))
    while not prefix.passed and (longer := next(candidates, None)) is not None:
        prefix = recheck(evaluator, goal, *longer)
    return prefix


def _search(
    evaluator: Evaluator, goal: Goal, ranks: NDArray[np.int64], max_length: int
) -> tuple[int, float | None]:
    """Length and confidence of the first passing prefix; None for the longest, not evaluated."""
    failed, passed, confidence = -1, max_length, None
    while passed - failed > 1:
        gap = passed - failed
        count = min(PREFIXES_PER_ROUND, gap - 1)
        lengths = [failed + gap * i // (count + 1) for i in range(1, count + 1)]
        if failed < 0 and lengths[0] > 0:
            lengths.insert(0, 0)  # the empty set
        reached, confidences = goal.evaluate(evaluator, (ranks < length for length in lengths))
        first = int(reached.argmax()) if reached.any() else len(lengths)
        if first < len(lengths):
            passed, confidence = lengths[first], float(confidences[first])
        if first > 0:
            failed = lengths[first - 1]
    return passed, confidence


def _lengthened(
    evaluator: Evaluator,
    goal: Goal,
    ranks: NDArray[np.int64],
    length: int,
    max_length: int,
    confidence: float,
) -> Iterator[tuple[Mask, float]]:
    """The prefix, then longer ones up to the longest, with their confidence in a batch."""
    yield ranks < length, confidence
    lengths = [
        min(length + (1 << i), max_length) for i in range((max_length - length).bit_length())
    ]
    if lengths and lengths[-1] < max_length:
        lengths.append(max_length)
    sets = [ranks < n for n in lengths]
    _, confidences = goal.evaluate(evaluator, sets)
    yield from zip(sets, confidences.tolist(), strict=True)
