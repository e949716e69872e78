"""`responsibility`: ReX's causal search, many random partitions of the image at a time.

Source: Chockler, Kroening, Sun, *Explanations for Occluded Images* (ICCV 2021), and their tool ReX;
used in section 5 of the paper (arXiv 2510.01038) to compare switching off with painting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.budget import EvaluationLimit
from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.options import Search
from convad_fx.explain.scores import Scores

# Credit is counted in integers: 1, 1/2 and 1/3 are whole numbers of sixths, and confidences are
# rounded to sixty-fourths. So sums are exact, and equal responsibility compares as equal.
_SIXTHS, _CONFIDENCE_STEPS = 6, 64

#: With `Search.stable`: partitions between two tests of the ranking; even, for two halves.
PARTITIONS_PER_ROUND = 4


@dataclass(frozen=True, slots=True)
class Box:
    """Rows top..bottom and columns left..right, the ends excluded, after `depth` splits."""

    top: int
    bottom: int
    left: int
    right: int
    depth: int = 0

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def slices(self) -> tuple[slice, slice]:
        """The index of the box in an array (H, W)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def allowed_area(self, allowed: Mask | None) -> int:
        """Pixels in `allowed` (H, W); None: all of them."""
        return self.area if allowed is None else int(allowed[self.slices].sum())


def split_box(
    box: Box,
    random: np.random.Generator,
    search: Search = Search(),  # noqa: B008 (frozen)
) -> tuple[Box, ...]:
    """Four parts, cut at one random row and one random column; two if the box is a single line.

    >>> parts = split_box(Box(0, 8, 0, 8), np.random.default_rng(0))
    >>> len(parts), sum(part.area for part in parts)
    (4, 64)

    Cuts are drawn from `search.split` over the positions that leave no part empty. A single pixel
    stays one part.
    """
    rows = _cut(box.top, box.bottom, random, search)
    columns = _cut(box.left, box.right, random, search)
    return tuple(
        Box(top, bottom, left, right, box.depth + 1)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    )


def _cut(start: int, stop: int, random: np.random.Generator, search: Search) -> tuple[int, ...]:
    if stop - start < 2:
        return start, stop
    if search.split == "uniform":
        return start, int(random.integers(start + 1, stop)), stop
    chance = random.beta(*search.split_shape) if search.split == "beta-binomial" else 0.5
    return start, start + 1 + int(random.binomial(stop - start - 2, chance)), stop


@cache
def proper_combinations(parts: int) -> tuple[tuple[int, ...], ...]:
    """All combinations of some parts but not all, fewest first.

    >>> proper_combinations(2)
    ((0,), (1,))
    >>> len(proper_combinations(4))
    14
    """
    return tuple(c for size in range(1, parts) for c in combinations(range(parts), size))


@dataclass(frozen=True, slots=True)
class BoxSplit:
    """One box split into parts: which combinations of them suffice, with `context` kept?

    Args:
        parts: of the box.
        context: boxes that are kept in every combination.
        allowed: the only pixels (H, W) that may be kept; None: all.
    """

    parts: tuple[Box, ...]
    context: tuple[Box, ...]
    allowed: Mask | None = None

    @property
    def combinations(self) -> tuple[tuple[int, ...], ...]:
        """The combinations of parts, in the order of `masks`."""
        return proper_combinations(len(self.parts))

    def masks(self, shape: tuple[int, int]) -> Iterator[Mask]:
        """One mask (H, W) per combination."""
        context = np.zeros(shape, bool)
        for box in self.context:
            context[box.slices] = True
        for combination in self.combinations:
            mask = context.copy()
            for part in combination:
                mask[self.parts[part].slices] = True
            yield mask if self.allowed is None else mask & self.allowed

    def smallest_first(self, passing: NDArray[np.bool_]) -> list[tuple[int, ...]]:
        """The passing combinations, by pixels, then by parts.

        Confidence decides no tie: it differs by rounding from one batch size to another.
        """
        areas = [part.allowed_area(self.allowed) for part in self.parts]
        return sorted(
            (c for c, passed in zip(self.combinations, passing, strict=True) if passed),
            key=lambda c: (sum(areas[part] for part in c), len(c), c),
        )

    def continued(
        self, passing: NDArray[np.bool_], queue: str, queue_len: int
    ) -> list[tuple[int, ...]]:
        """The passing combinations in which the search continues (see `Search.queue`)."""
        ordered = self.smallest_first(passing)
        if queue == "all" or not ordered:
            return ordered
        if queue == "intersection":
            core = set(ordered[0]).intersection(*ordered[1:])
            if not core:
                count = {part: sum(part in c for c in ordered) for part in range(len(self.parts))}
                core = {min(count, key=lambda part: (-count[part], self.parts[part].area, part))}
            ordered = [c for c in ordered if core <= set(c)]
        return ordered[:queue_len]

    def credit(self, weights: NDArray[np.int64], total: NDArray[np.int64]) -> None:
        """Add each combination's weight to `total` (H, W), divided by the number of its parts."""
        for combination, weight in zip(self.combinations, weights, strict=True):
            if not weight:
                continue
            for part in combination:
                total[self.parts[part].slices] += _SIXTHS // len(combination) * weight


@dataclass(slots=True)
class Branch:
    """Boxes that pass together; the search makes them smaller.

    Args:
        open: boxes that may still be split.
        closed: boxes that stay as they are: too small, or needed as a whole.
    """

    open: list[Box]
    closed: list[Box] = field(default_factory=list)

    def split_largest(
        self, search: Search, random: np.random.Generator, allowed: Mask | None = None
    ) -> BoxSplit | None:
        """Split the largest open box, which can lose the most; `None`: none can be split."""
        sizes = {
            box: box.allowed_area(allowed)
            for box in self.open
            if search.depth is None or box.depth < search.depth
        }
        splittable = [box for box in sizes if box.area > 1 and sizes[box] > search.min_box]
        if not splittable:
            return None
        box = max(splittable, key=sizes.__getitem__)  # the first of equal ones
        self.open.remove(box)
        return BoxSplit(split_box(box, random, search), (*self.open, *self.closed), allowed)

    def continue_in(
        self, split: BoxSplit, passing: NDArray[np.bool_], search: Search
    ) -> list[Branch]:
        """A branch per combination to continue in; if none passes, the box is closed whole."""
        continued = split.continued(passing, search.queue, search.queue_len)
        if not continued:
            return [Branch(self.open, [*self.closed, *split.parts])]
        return [
            Branch([*self.open, *(split.parts[part] for part in c)], list(self.closed))
            for c in continued
        ]


@dataclass(slots=True)
class Partition:
    """One random partition in progress.

    Args:
        branches: where the search continues; one unless `Search.queue_len` or `queue` allow more.
        random: its own stream, so that partitions do not depend on each other.
        half: 0 or 1: partitions are summed in two halves, whose agreement is measured.
        splits: boxes split so far, in all branches.
    """

    branches: list[Branch]
    random: np.random.Generator
    half: int = 0
    splits: int = 0

    def next_splits(self, search: Search, allowed: Mask | None = None) -> list[_PendingSplit]:
        """The next split of every branch that has one, up to `Search.max_splits` in all."""
        pending: list[_PendingSplit] = []
        for branch in self.branches:
            if self.splits == search.max_splits:
                break
            if (split := branch.split_largest(search, self.random, allowed)) is not None:
                self.splits += 1
                pending.append((self, branch, split))
        self.branches = []
        return pending


_PendingSplit: TypeAlias = tuple[Partition, Branch, BoxSplit]


def responsibility(
    evaluator: Evaluator,
    target: int,
    confidence_whole: float,
    search: Search,
    entropy: Sequence[int],
    *,
    score_only: bool = False,
    allowed: Mask | None = None,
    limit: int | None = None,
) -> NDArray[np.float32]:
    """The responsibility of every pixel, (H, W), >= 0.

    >>> import torch
    >>> def corner(x, mask):                              # depends on the top left pixels only
    ...     kept = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * kept, 8 * kept - 4], 1)
    >>> evaluator = Evaluator(corner, torch.zeros(1, 32, 32))
    >>> values = responsibility(evaluator, 1, 0.98, Search(partitions=4), entropy=[0])
    >>> bool(values[:4, :4].min() > values[16:, 16:].max())
    True

    In each of `search.partitions` random partitions, a box (at first the whole image) is split at
    random into four, and all 14 proper non-empty combinations of the parts are evaluated, with the
    rest hidden. Each passing combination gives 1 / (number of its parts) to each of its parts, and
    every pixel collects the *sum* over combinations and levels, as in ReX's implementation. The
    search continues inside the smallest passing combination (see `Search.queue`), the largest box
    first, with the other boxes kept. All partitions are evaluated together; with `search.stable`,
    `PARTITIONS_PER_ROUND` of them.

    Args:
        evaluator: the network and the image.
        target: the class to be kept.
        confidence_whole: its confidence on the whole image.
        search: the options; a `confidence` of None counts as 0 here.
        entropy: non-negative integers that alone determine the random stream.
        score_only: combinations pass by the target's score, whichever class is predicted.
        allowed: the only pixels (H, W) that may be kept; the others have responsibility 0.
        limit: the most masks to evaluate, or None. A split is evaluated completely or not at all.
    """
    height, width = evaluator.shape
    streams = np.random.SeedSequence(list(entropy)).spawn(search.partitions)
    partitions = [
        Partition([Branch([Box(0, height, 0, width)])], np.random.default_rng(stream), number % 2)
        for number, stream in enumerate(streams)
    ]
    halves = np.zeros((2, height, width), np.int64)
    remaining = EvaluationLimit(evaluator, limit)
    per_round = PARTITIONS_PER_ROUND if search.stable is not None else len(partitions)
    for first in range(0, len(partitions), per_round):
        group = partitions[first : first + per_round]
        while pending := _affordable(
            [split for partition in group for split in partition.next_splits(search, allowed)],
            remaining.left,
        ):
            _evaluate(
                pending, evaluator, target, confidence_whole, search, halves, score_only=score_only
            )
        if search.stable is not None and reliability(halves[0], halves[1]) >= search.stable:
            break
    total: NDArray[np.int64] = halves.sum(0)
    if allowed is not None:
        total[~allowed] = 0
    return (total / (_SIXTHS * _CONFIDENCE_STEPS)).astype(np.float32)


def _evaluate(
    pending: list[_PendingSplit],
    evaluator: Evaluator,
    target: int,
    confidence_whole: float,
    search: Search,
    halves: NDArray[np.int64],
    *,
    score_only: bool,
) -> None:
    """Evaluate splits together, add their credit to `halves`, and continue their partitions."""
    masks = (mask for *_, split in pending for mask in split.masks(evaluator.shape))
    scores = evaluator.scores(masks, target)
    needed = (search.confidence or 0.0) * confidence_whole
    passing = scores.passing(needed, score_only=score_only)
    weights = passing * _weights(scores, confidence_whole, weighted=search.weighted)
    ends = np.cumsum([len(split.combinations) for *_, split in pending])[:-1]
    for (partition, branch, split), passed, weight in zip(
        pending, np.split(passing, ends), np.split(weights, ends), strict=True
    ):
        split.credit(weight, halves[partition.half])
        partition.branches += branch.continue_in(split, passed, search)


def _affordable(pending: list[_PendingSplit], left: int | None) -> list[_PendingSplit]:
    """The first splits whose masks are within the limit; the partitions of the others end."""
    if left is None:
        return pending
    costs = np.cumsum([len(split.combinations) for *_, split in pending])
    return pending[: int(np.searchsorted(costs, left, side="right"))]


def _weights(scores: Scores, confidence_whole: float, *, weighted: bool) -> NDArray[np.int64]:
    """(K,): the weight of each combination if it passes, in `_CONFIDENCE_STEPS` per 1."""
    if not weighted:
        return np.full(len(scores.confidence), _CONFIDENCE_STEPS)
    shares = np.rint(_CONFIDENCE_STEPS * scores.confidence / confidence_whole)
    return np.clip(shares, 0, _CONFIDENCE_STEPS).astype(np.int64)


def reliability(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """How reliable the ranking by the sum of two maps (H, W) is, in [0, 1]; 1 = certain.

    >>> ramp = np.arange(64).reshape(8, 8)
    >>> round(reliability(ramp, ramp), 6), reliability(ramp, 0 * ramp)
    (1.0, 0.0)

    The maps come from two independent halves of the partitions. Spearman's rank correlation r of
    the halves is the reliability of either; that of their sum is 2 r / (1 + r) (Spearman-Brown).
    """
    from scipy import stats

    if first.min() == first.max() or second.min() == second.max():
        return 0.0
    correlation = float(stats.spearmanr(first.ravel(), second.ravel()).statistic)
    return max(0.0, 2 * correlation / (1 + correlation)) if correlation > 0 else 0.0
