"""How responsible is each pixel for the network's answer? ReX's causal search, many cuts at a time.

Source: Chockler, Kroening, Sun, *Explanations for Occluded Images* (ICCV 2021), and their tool ReX;
used in section 5 of the paper (arXiv 2510.01038) to compare switching off with painting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.options import Search

# 1, 1/2 and 1/3 are whole numbers of sixths, and confidences are rounded to sixty-fourths: sums of
# them are exact, so equal responsibility is equal, and does not depend on the order of summing.
_UNIT, _FULL = 6, 64

# With `Search.stable`: partitions between two looks at the ranking; even, for two halves.
ROUND = 4


@dataclass(frozen=True, slots=True)
class Box:
    """Rows top..bottom and columns left..right of an image, the ends excluded; in pixels."""

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
        """Where it is in an array (H, W)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def split(
    box: Box,
    random: np.random.Generator,
    search: Search = Search(),  # noqa: B008 (frozen)
) -> tuple[Box, ...]:
    """Four parts, by one random row and one random column; two if the box is a single line.

    >>> parts = split(Box(0, 8, 0, 8), np.random.default_rng(0))
    >>> len(parts), sum(part.area for part in parts)
    (4, 64)

    Cuts are drawn from `search.split` over the places that leave no part empty. A single pixel
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
    """All ways to keep some parts but not all, fewest first.

    >>> proper_combinations(2)
    ((0,), (1,))
    >>> len(proper_combinations(4))
    14
    """
    return tuple(c for size in range(1, parts) for c in combinations(range(parts), size))


@dataclass(frozen=True, slots=True)
class Question:
    """One box split: which of its parts suffice, with `rest` kept and all else switched off?

    Args:
        parts: what the box was split into.
        rest: boxes that are kept whatever the combination.
        within: the only pixels that may be kept; None: all.
    """

    parts: tuple[Box, ...]
    rest: tuple[Box, ...]
    within: Mask | None = None

    @property
    def combinations(self) -> tuple[tuple[int, ...], ...]:
        """The combinations of parts asked about, in the order of `masks`."""
        return proper_combinations(len(self.parts))

    def masks(self, shape: tuple[int, int]) -> Iterator[Mask]:
        """One mask (H, W) per combination."""
        rest = np.zeros(shape, bool)
        for box in self.rest:
            rest[box.slices] = True
        for combination in self.combinations:
            mask = rest.copy()
            for part in combination:
                mask[self.parts[part].slices] = True
            yield mask if self.within is None else mask & self.within

    def smallest(self, passing: NDArray[np.bool_]) -> tuple[int, ...] | None:
        """The passing combination of the fewest pixels, then the fewest parts; `None`: none passes.

        Confidence decides no tie: it differs by rounding from one batch size to another.
        """
        return next(iter(self.by_area(passing)), None)

    def by_area(self, passing: NDArray[np.bool_]) -> list[tuple[int, ...]]:
        """All passing combinations, smallest first."""
        areas = [visible(part, self.within) for part in self.parts]
        return sorted(
            (c for c, passed in zip(self.combinations, passing, strict=True) if passed),
            key=lambda c: (sum(areas[part] for part in c), len(c), c),
        )

    def followed(
        self, passing: NDArray[np.bool_], queue: str, queue_len: int
    ) -> list[tuple[int, ...]]:
        """The passing combinations in which the search goes on (`Search.queue`).

        >>> quarters = split(Box(0, 8, 0, 8), np.random.default_rng(0))
        >>> question = Question(quarters, ())
        >>> passing = np.array([1 in c or c == (0, 2, 3) for c in question.combinations])
        >>> [len(question.followed(passing, queue, 2)) for queue in ("area", "all")]
        [2, 8]
        >>> all(1 in c for c in question.followed(passing, "intersection", 9))
        True
        """
        found = self.by_area(passing)
        if queue == "all" or not found:
            return found
        if queue == "intersection":
            core = set(found[0]).intersection(*found[1:])
            if not core:
                count = {part: sum(part in c for c in found) for part in range(len(self.parts))}
                core = {min(count, key=lambda part: (-count[part], self.parts[part].area, part))}
            found = [c for c in found if core <= set(c)]
        return found[:queue_len]


def visible(box: Box, within: Mask | None) -> int:
    """How many pixels of the box may be kept."""
    return box.area if within is None else int(within[box.slices].sum())


@dataclass(slots=True)
class Branch:
    """One way down: what is kept so far passes, and shrinks.

    Args:
        kept: boxes that may still be split.
        whole: boxes that stay as they are: too small, or needed whole.
    """

    kept: list[Box]
    whole: list[Box] = field(default_factory=list)

    def ask(
        self, search: Search, random: np.random.Generator, within: Mask | None = None
    ) -> Question | None:
        """Split the largest box: it has the most to lose. `None`: nothing is left to split."""
        sizes = {
            box: visible(box, within)
            for box in self.kept
            if search.depth is None or box.depth < search.depth
        }
        splittable = [box for box in sizes if box.area > 1 and sizes[box] > search.min_box]
        if not splittable:
            return None
        box = max(splittable, key=sizes.__getitem__)  # the oldest of equals
        self.kept.remove(box)
        return Question(split(box, random, search), (*self.kept, *self.whole), within)

    def answer(
        self, question: Question, passing: NDArray[np.bool_], search: Search
    ) -> list[Branch]:
        """Go on inside passing combinations, or leave the box whole if none passes."""
        chosen = question.followed(passing, search.queue, search.queue_len)
        if not chosen:
            return [Branch(self.kept, [*self.whole, *question.parts])]
        return [
            Branch([*self.kept, *(question.parts[part] for part in c)], list(self.whole))
            for c in chosen
        ]


@dataclass(slots=True)
class Partition:
    """One random partition on its way down.

    Args:
        branches: where the search goes on; a single one unless `Search.queue_len` says otherwise.
        random: this partition's own stream, so that it does not depend on the others.
        half: 0 or 1: partitions are summed in two halves, to see whether these agree.
        splits: boxes split so far, in all branches.
    """

    branches: list[Branch]
    random: np.random.Generator
    half: int = 0
    splits: int = 0

    def ask(self, search: Search, within: Mask | None = None) -> list[tuple[Branch, Question]]:
        """A question for every branch that has one, as long as `Search.max_splits` lasts."""
        asked = []
        for branch in self.branches:
            if self.splits == search.max_splits:
                break
            question = branch.ask(search, self.random, within)
            if question is not None:
                self.splits += 1
                asked.append((branch, question))
        self.branches = []
        return asked

    def answer(
        self, branch: Branch, question: Question, passing: NDArray[np.bool_], search: Search
    ) -> None:
        """Take up what follows from an answer."""
        self.branches += branch.answer(question, passing, search)


def responsibility(
    evaluator: Evaluator,
    target: int,
    confidence_whole: float,
    search: Search,
    entropy: Sequence[int],
    *,
    within: Mask | None = None,
    limit: int | None = None,
) -> NDArray[np.float32]:
    """The responsibility of every pixel, (H, W), >= 0.

    >>> import torch
    >>> def corner(x, mask):                              # looks at the top left pixels only
    ...     seen = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> evaluator = Evaluator(corner, torch.zeros(1, 32, 32))
    >>> map = responsibility(evaluator, 1, 0.98, Search(partitions=4), entropy=[0])
    >>> bool(map[:4, :4].min() > map[16:, 16:].max())
    True

    In each of `search.partitions` random partitions, a box (at first the whole image) is split at
    random into four, and the network is asked about all 14 proper non-empty combinations of the
    parts, with the rest switched off. Each passing combination gives each of its parts
    1 / (number of its parts), and a part's responsibility is the *sum* over the combinations that
    pass, as in ReX's implementation; every pixel of the part gets it whole (not divided by the
    part's area: small boxes would outweigh everything), so pixels gather it at every level they
    survive. The search goes on inside the smallest passing combination (or several: see
    `Search.queue`): its parts are split
    in turn, the largest box first, each with all other boxes of the combination kept as they are by
    then. So what is kept passes at every moment. A box none of whose combinations passes is needed
    from end to end; it stays whole and gives nothing, since it says nothing about its parts.

    All masks of a step, over all partitions, go through the network together; with
    `search.stable`, over `ROUND` partitions at a time.

    Args:
        evaluator: the network and the image.
        target: the class to be kept.
        confidence_whole: its confidence on the whole image.
        search: how much to ask; a `confidence` left open counts as 0 here.
        entropy: non-negative integers that the random stream depends on, and nothing else does.
        within: the only pixels (H, W) that may be kept; the others have responsibility 0.
        limit: the most masks to ask about, or None. Questions are asked whole or not at all.
    """
    height, width = evaluator.shape
    streams = np.random.SeedSequence(list(entropy)).spawn(search.partitions)
    waiting = [
        Partition([Branch([Box(0, height, 0, width)])], np.random.default_rng(stream), number % 2)
        for number, stream in enumerate(streams)
    ]
    halves = np.zeros((2, height, width), np.int64)
    at_least = (search.confidence or 0.0) * confidence_whole
    size = ROUND if search.stable is not None else len(waiting)
    left = limit
    for first in range(0, len(waiting), size):
        partitions = waiting[first : first + size]
        while asked := _affordable(
            [(p, b, q) for p in partitions for b, q in p.ask(search, within)], left
        ):
            before = evaluator.evaluations
            scores = evaluator.scores(
                (mask for *_, question in asked for mask in question.masks(evaluator.shape)),
                target,
            )
            if left is not None:
                left -= evaluator.evaluations - before
            passing = scores.passing(target, at_least)
            weights = np.full(len(passing), _FULL)
            if search.weighted:
                shares = np.rint(_FULL * scores.confidence / confidence_whole)
                weights = np.clip(shares, 0, _FULL).astype(np.int64)
            start = 0
            for partition, branch, question in asked:
                here = slice(start, start + len(question.combinations))
                start = here.stop
                _credit(halves[partition.half], question, weights[here] * passing[here])
                partition.answer(branch, question, passing[here], search)
        if search.stable is not None and agreement(halves[0], halves[1]) >= search.stable:
            break
    total: NDArray[np.int64] = halves.sum(0)
    if within is not None:
        total[~within] = 0
    return (total / (_UNIT * _FULL)).astype(np.float32)


def _affordable(
    asked: list[tuple[Partition, Branch, Question]], left: int | None
) -> list[tuple[Partition, Branch, Question]]:
    """As many questions as can be paid for, in order; the partitions of the others are done."""
    if left is None:
        return asked
    paid = []
    for one in asked:
        left -= len(one[2].combinations)
        if left < 0:
            break
        paid.append(one)
    return paid


def agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """How reliable the ranking by the sum of two maps is, in [0, 1]; 1 = certain.

    >>> ramp = np.arange(64).reshape(8, 8)
    >>> round(agreement(ramp, ramp), 6), agreement(ramp, 0 * ramp)
    (1.0, 0.0)

    The maps come from two independent halves of the partitions. Spearman's rank correlation r of
    the halves says how reliable each of them is; their sum's is 2 r / (1 + r) (Spearman-Brown).
    """
    if first.min() == first.max() or second.min() == second.max():
        return 0.0
    correlation = float(stats.spearmanr(first.ravel(), second.ravel()).statistic)
    return max(0.0, 2 * correlation / (1 + correlation)) if correlation > 0 else 0.0


def _credit(total: NDArray[np.int64], question: Question, weights: NDArray[np.int64]) -> None:
    for combination, weight in zip(question.combinations, weights, strict=True):
        if weight:
            for part in combination:
                total[question.parts[part].slices] += _UNIT // len(combination) * weight
