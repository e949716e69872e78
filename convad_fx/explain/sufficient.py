"""Which pixels reach a goal? Sets found by order, in a disc around the peak, and made minimal.

Two goals are known: kept alone, the pixels give the same class with enough confidence (`Suffices`);
hidden, they take the class away (`Changes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.evaluator import Evaluator, Mask, Scores

# Prefixes asked about at once. 16 take four rounds on 224 x 224 pixels: 64 masks, where bisection
# takes 16 masks in 16 calls, and overlooks a short prefix that passes between two that fail.
SECTIONS = 16

# The discs of `spatial_order`, as in ReX: the first radius is 25 of 224 pixels, then a fifth more.
_FIRST_RADIUS, _WIDER = 25 / 224, 1.2
SPATIAL_QUESTIONS = 24


class Goal(Protocol):
    """What is asked of a set of pixels."""

    @property
    def target(self) -> int:
        """The class the question is about."""
        ...

    def mask(self, chosen: Mask) -> Mask:
        """What the network is shown (H, W), True = kept, to find out about `chosen`."""
        ...

    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """Whether the answers (K,) are the ones wanted."""
        ...


@dataclass(frozen=True, slots=True)
class Suffices:
    """Kept alone, they give `target` with a confidence of `at_least`."""

    target: int
    at_least: float

    def mask(self, chosen: Mask) -> Mask:
        """They alone."""
        return chosen

    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """The class, and the confidence."""
        return scores.passing(self.target, self.at_least)


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Hidden, they take the class away: the rest gives another one.

    Args:
        target: the class to be lost.
        within: the only pixels shown at all (H, W); None: all.
    """

    target: int
    within: Mask | None = None

    def mask(self, chosen: Mask) -> Mask:
        """All the others."""
        return ~chosen if self.within is None else ~chosen & self.within

    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """Any other class."""
        changed: NDArray[np.bool_] = scores.top != self.target
        return changed


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A set of pixels, and what the network says of it.

    Args:
        mask: the set, (H, W).
        confidence: of the target, in the batch in which the set was found.
        recheck: the same at batch size 1.
        top: the class given, at batch size 1.
        passed: whether the goal is reached at batch size 1.
    """

    mask: Mask
    confidence: float
    recheck: float
    top: int
    passed: bool


def order(responsibility: NDArray[np.float32], within: Mask | None = None) -> NDArray[np.int64]:
    """The rank of each pixel (H, W): 0 for the most responsible, every rank once.

    >>> order(np.array([[0, 2], [1, 2]], np.float32)).tolist()
    [[3, 0], [2, 1]]

    Boxes leave plateaus of equal responsibility. Within one, pixels in more responsible
    surroundings come first (so a plateau fills from the side of the peak), then those nearer the
    middle of the image, then row by row. Pixels that are not `within` (H, W) come after all others.
    """
    height, width = responsibility.shape
    rows, columns = np.mgrid[:height, :width]
    middle = (2 * rows - height + 1) ** 2 + (2 * columns - width + 1) ** 2
    surroundings = _box_sum(responsibility, max(1, min(height, width) // 16))
    outside = np.zeros(height * width, bool) if within is None else ~within.ravel()
    by_rank = np.lexsort(
        (
            np.arange(height * width),
            middle.ravel(),
            -surroundings.ravel(),
            -responsibility.ravel(),
            outside,
        )
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


def spatial_order(
    evaluator: Evaluator, goal: Goal, rank: NDArray[np.int64], within: Mask | None = None
) -> NDArray[np.int64]:
    """The ranks (H, W) again, with the smallest disc that reaches the goal in front.

    >>> import torch
    >>> def corner(x, mask):
    ...     seen = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> map = np.zeros((16, 16), np.float32)
    >>> map[2, 2], map[12:, 12:] = 2, 1
    >>> evaluator, goal = Evaluator(corner, torch.zeros(1, 16, 16)), Suffices(1, 0.9)
    >>> before = shortest(evaluator, goal, order(map)).mask
    >>> after = shortest(evaluator, goal, spatial_order(evaluator, goal, order(map))).mask
    >>> bool(before[12:, 12:].any()), bool(after[12:, 12:].any())
    (True, False)

    Discs around the pixel of rank 0 are asked about from small to large; those inside the first
    that reaches the goal come first, in their order, and then the others ring by ring. So sets
    built from the ranks are compact, where the order alone may scatter them (ReX: "spatial").
    If no disc but the whole image reaches the goal, the order stays. Pixels that are not `within`
    come last, as before.
    """
    height, width = rank.shape
    rows, columns = np.mgrid[:height, :width]
    row, column = np.argwhere(rank == 0)[0]
    distance = np.hypot(rows - row, columns - column)
    radii: list[float] = []
    radius = max(1.0, _FIRST_RADIUS * min(height, width))
    while radius < distance.max() and len(radii) < SPATIAL_QUESTIONS:
        radii.append(radius)
        radius *= _WIDER
    allowed = np.ones((height, width), bool) if within is None else within
    discs = [(distance <= radius) & allowed for radius in radii]
    scores = evaluator.scores(map(goal.mask, discs), goal.target)
    for number, reached in enumerate(goal.reached(scores) if radii else ()):
        if reached:
            ring = np.searchsorted(radii, distance)  # how many discs leave the pixel out
            by_rank = np.lexsort((rank.ravel(), np.maximum(ring, number).ravel(), ~allowed.ravel()))
            ranks = np.empty(rank.size, np.int64)
            ranks[by_rank] = np.arange(rank.size)
            return ranks.reshape(height, width)
    return rank


def most_questions(pixels: int) -> int:
    """The most masks that `shortest` can ask about, in an image of so many pixels.

    >>> most_questions(224 * 224)
    99
    """
    rounds, gap = 0, pixels + 1
    while gap > 1:
        rounds, gap = rounds + 1, -(-gap // (SECTIONS + 1))
    return rounds * SECTIONS + 1 + 2 * (pixels.bit_length() + 1)


def shortest(
    evaluator: Evaluator, goal: Goal, rank: NDArray[np.int64], most: int | None = None
) -> Found:
    """The shortest prefix found, in order of rank, that reaches the goal.

    >>> import torch
    >>> def corner(x, mask):
    ...     seen = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> map = np.zeros((16, 16), np.float32)
    >>> map[:4, :6] = 1
    >>> found = shortest(Evaluator(corner, torch.zeros(1, 16, 16)), Suffices(1, 0.95), order(map))
    >>> int(found.mask.sum()), found.passed
    (20, True)

    Goals are not monotone (more pixels can change the class again), so the shortest of all prefixes
    could only be found by asking about each. What is guaranteed: the set returned passes, asked
    alone at batch size 1; every shorter prefix that was asked about failed; and these include the
    one a single pixel shorter, except where rounding made the set grow: alone, a prefix may miss by
    rounding what it reached in a batch, and then it is lengthened by 1, 2, 4, ... pixels until it
    passes. The longest prefix counts as passing unasked; only where even it fails when asked again
    (a network that does not repeat itself) is the result marked as not passed.

    Args:
        evaluator: the network and the image.
        goal: what is to be reached; the longest prefix is known to reach it.
        rank: (H, W), every number from 0 once.
        most: the longest prefix; None: all pixels.
    """
    most = rank.size if most is None else most
    length, confidence = _first(evaluator, goal, rank, most)
    if confidence is None:  # the longest: not asked about on the way
        longest = evaluator.scores([goal.mask(rank < length)], goal.target)
        confidence = float(longest.confidence[0])
    candidates = _growing(evaluator, goal, rank, length, most, confidence)
    found = recheck(evaluator, goal, *next(candidates))
    while not found.passed and (longer := next(candidates, None)) is not None:
        found = recheck(evaluator, goal, *longer)
    return found


def recheck(evaluator: Evaluator, goal: Goal, chosen: Mask, confidence: float) -> Found:
    """What the network says at batch size 1: the last word on a set."""
    alone = evaluator.scores([goal.mask(chosen)], goal.target, plainly=True)
    passed = bool(goal.reached(alone)[0])
    return Found(chosen, confidence, float(alone.confidence[0]), int(alone.top[0]), passed)


def _first(
    evaluator: Evaluator, goal: Goal, rank: NDArray[np.int64], most: int
) -> tuple[int, float | None]:
    """Length and confidence of the first prefix that passes, by sections; `None`: not asked."""
    failed, passed, confidence = -1, most, None
    while passed - failed > 1:
        gap = passed - failed
        count = min(SECTIONS, gap - 1)
        lengths = [failed + gap * i // (count + 1) for i in range(1, count + 1)]
        if failed < 0 and lengths[0] > 0:
            lengths.insert(0, 0)  # is anything needed at all?
        scores = evaluator.scores((goal.mask(rank < length) for length in lengths), goal.target)
        for length, passes, scored in zip(
            lengths, goal.reached(scores), scores.confidence, strict=True
        ):
            if passes:
                passed, confidence = length, float(scored)
                break
            failed = length
    return passed, confidence


def _growing(
    evaluator: Evaluator,
    goal: Goal,
    rank: NDArray[np.int64],
    length: int,
    most: int,
    confidence: float,
) -> Iterator[tuple[Mask, float]]:
    """The prefix itself, then ever longer ones up to the longest, with their batched scores."""
    yield rank < length, confidence
    lengths = [min(length + (1 << i), most) for i in range((most - length).bit_length())]
    if lengths and lengths[-1] < most:
        lengths.append(most)
    masks = [rank < n for n in lengths]
    scores = evaluator.scores((goal.mask(mask) for mask in masks), goal.target)
    yield from zip(masks, scores.confidence.tolist(), strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class Shrunk:
    """A set made smaller, and whether it is known to be minimal.

    Args:
        found: the set and its scores.
        minimal: whether leaving out any one of its blocks was seen to miss the goal.
    """

    found: Found
    minimal: bool


def blocks(shape: tuple[int, int], side: int) -> NDArray[np.int64]:
    """The number (H, W) of the block each pixel lies in; blocks are squares of a grid.

    >>> blocks((3, 4), 2).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    number: NDArray[np.int64] = (rows // side) * -(-shape[1] // side) + columns // side
    return number


def shrink(
    evaluator: Evaluator,
    goal: Goal,
    found: Found,
    rank: NDArray[np.int64],
    side: int,
    *,
    limit: int | None = None,
) -> Shrunk:
    """Leave out blocks until none can be spared: 1-minimal, block by block.

    >>> import torch
    >>> def corner(x, mask):
    ...     seen = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> evaluator, goal = Evaluator(corner, torch.zeros(1, 16, 16)), Suffices(1, 0.9)
    >>> everything = recheck(evaluator, goal, np.ones((16, 16), bool), 1.0)
    >>> small = shrink(evaluator, goal, everything, order(np.zeros((16, 16), np.float32)), side=2)
    >>> int(small.found.mask.sum()), small.minimal
    (16, True)

    Every block is left out by itself; those that can be spared are then left out together, the
    least responsible first, as many as the goal allows; and so on with what is left, first in
    blocks of four and two times the side. At the end every remaining block has been asked about.
    There are other minimal sets: this is the one that keeps the most responsible blocks.

    Args:
        evaluator: the network and the image.
        goal: what the set reaches, and is to go on reaching.
        found: the set.
        rank: (H, W): blocks of high rank go first.
        side: of the blocks, in pixels.
        limit: the most masks to ask about; None: no limit. If it is met, what was reached by then
            is returned, marked as not minimal.
    """
    left = _Purse(evaluator, limit)
    states = [(found.mask, found.confidence)]
    minimal = False
    for size in (4 * side, 2 * side, side):
        label = blocks(rank.shape, size)
        minimal = _spare(evaluator, goal, states, rank, label, left, prove=size == side)
    # In a batch every state reached the goal; alone, rounding may undo that for the last ones.
    while len(states) > 1 and left.pays(1):
        alone = recheck(evaluator, goal, *states[-1])
        if alone.passed:
            return Shrunk(alone, minimal)
        states.pop()
        minimal = False
    return Shrunk(found, minimal and len(states) == 1)


@dataclass(slots=True)
class _Purse:
    """How many questions are left."""

    evaluator: Evaluator
    limit: int | None
    before: int = -1

    def __post_init__(self) -> None:
        self.before = self.evaluator.evaluations

    def pays(self, questions: int) -> bool:
        asked = self.evaluator.evaluations - self.before
        return self.limit is None or asked + questions <= self.limit


def _spare(
    evaluator: Evaluator,
    goal: Goal,
    states: list[tuple[Mask, float]],
    rank: NDArray[np.int64],
    label: NDArray[np.int64],
    left: _Purse,
    *,
    prove: bool,
) -> bool:
    """Append ever smaller sets to `states`; whether the last one is minimal (if `prove`)."""
    chosen = states[-1][0]
    counts = np.bincount(label.ravel(), chosen.ravel())
    late = np.bincount(label.ravel(), (rank * chosen).ravel()) / np.maximum(counts, 1)
    # The least responsible first; a number breaks ties.
    present = sorted(np.flatnonzero(counts).tolist(), key=lambda i: (-late[i], i))
    asked_all, candidates = True, present
    while candidates:
        # One more, for the recheck.
        if not left.pays(len(candidates) + len(candidates).bit_length() + 2):
            return False
        chosen = states[-1][0]
        scores = evaluator.scores(
            (goal.mask(chosen & (label != i)) for i in candidates), goal.target, exact=True
        )
        reached = goal.reached(scores)
        spare = [i for i, passed in zip(candidates, reached, strict=True) if passed]
        if not spare:
            if asked_all or not prove:
                return asked_all
            asked_all, candidates = True, present
            continue
        # 1 passes; of 2, 4, ... all, take the most.
        numbers = sorted({1 << n for n in range(len(spare).bit_length())} | {len(spare)})
        sets = [chosen & ~np.isin(label, spare[:n]) for n in numbers]
        together = evaluator.scores(map(goal.mask, sets), goal.target, exact=True)
        passing = np.flatnonzero(goal.reached(together))
        if not len(passing):  # by rounding: the first of them passed a moment ago
            return False
        best = int(passing[-1])
        states += [(sets[i], float(together.confidence[i])) for i in passing]
        gone = set(spare[: numbers[best]])
        present = [i for i in present if i not in gone]
        candidates = [i for i in spare if i not in gone]
        asked_all = False
        if not candidates and prove:
            asked_all, candidates = True, present
    return not present
