"""How responsible is each pixel for the network's answer? ReX's causal search, many cuts at a time.

Source: Chockler, Kroening, Sun, *Explanations for Occluded Images* (ICCV 2021), and their tool ReX;
used in section 5 of the paper (arXiv 2510.01038) to compare switching off with painting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.evaluate import Evaluator, Mask
from convad_fx.explain.options import check_count, check_share

# 1, 1/2 and 1/3 are whole numbers of sixths: sums of them are exact, so equal responsibility is
# equal, and does not depend on the order of summing.
_UNIT = 6


@dataclass(frozen=True, slots=True)
class Search:
    """How much is asked.

    >>> Search(partitions=5).evaluations          # never more masks than this
    560

    Args:
        partitions: random partitions whose responsibilities are added up; more make smoother maps.
        min_box: boxes of this many pixels (area) or fewer are not split further.
        max_splits: boxes split per partition; each costs 14 masks. 8 make about 2200 masks in
            all, as many as ReX asks; 15 cost a third more and found sets hardly smaller (ten
            pictures, one small network).
        confidence: a combination passes if the class is the target and its confidence is at least
            this share of that on the whole image; in [0, 1]. At 0 the class decides alone, as in
            ReX.

    Raises:
        PolicyError: a field out of its range.
    """

    partitions: int = 20
    min_box: int = 10
    max_splits: int = 8
    confidence: float = 0.0

    def __post_init__(self) -> None:
        for name in ("partitions", "min_box", "max_splits"):
            default = Search.__dataclass_fields__[name].default
            check_count(name, getattr(self, name), least=1, hint=f"the default is {default}")
        check_share(
            "confidence", self.confidence, zero=True, hint="at 0 the class decides alone, as in ReX"
        )

    @property
    def evaluations(self) -> int:
        """The most masks the search can ask about."""
        return self.partitions * self.max_splits * len(proper_combinations(4))


@dataclass(frozen=True, slots=True)
class Box:
    """Rows top..bottom and columns left..right of an image, the ends excluded; in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Where it is in an array (H, W)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def split(box: Box, random: np.random.Generator) -> tuple[Box, ...]:
    """Four parts, by one random row and one random column; two if the box is a single line.

    >>> parts = split(Box(0, 8, 0, 8), np.random.default_rng(0))
    >>> len(parts), sum(part.area for part in parts)
    (4, 64)

    Cuts are uniform over the places that leave no part empty. A single pixel stays one part.
    """
    rows, columns = _cut(box.top, box.bottom, random), _cut(box.left, box.right, random)
    return tuple(
        Box(top, bottom, left, right)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    )


def _cut(start: int, stop: int, random: np.random.Generator) -> tuple[int, ...]:
    if stop - start < 2:
        return start, stop
    return start, int(random.integers(start + 1, stop)), stop


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
    """One box split: which of its parts suffice, with `rest` kept and all else switched off?"""

    parts: tuple[Box, ...]
    rest: tuple[Box, ...]

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
            yield mask

    def smallest(self, passing: NDArray[np.bool_]) -> tuple[int, ...] | None:
        """The passing combination of the fewest pixels, then the fewest parts; `None`: none passes.

        Confidence decides no tie: it differs by rounding from one batch size to another.
        """
        return min(
            (c for c, passed in zip(self.combinations, passing, strict=True) if passed),
            key=lambda c: (sum(self.parts[part].area for part in c), len(c), c),
            default=None,
        )


@dataclass(slots=True)
class Partition:
    """One random partition on its way down: what is kept so far passes, and shrinks.

    Args:
        kept: boxes that may still be split.
        random: this partition's own stream, so that it does not depend on the others.
        whole: boxes that stay as they are: too small, or needed whole.
        splits: boxes split so far.
    """

    kept: list[Box]
    random: np.random.Generator
    whole: list[Box] = field(default_factory=list)
    splits: int = 0

    def ask(self, search: Search) -> Question | None:
        """Split the largest box: it has the most to lose. `None`: nothing is left to split."""
        splittable = [box for box in self.kept if box.area > search.min_box]
        if not splittable or self.splits == search.max_splits:
            return None
        box = max(splittable, key=lambda box: box.area)  # the oldest of equals
        self.kept.remove(box)
        self.splits += 1
        return Question(split(box, self.random), (*self.kept, *self.whole))

    def answer(self, question: Question, passing: NDArray[np.bool_]) -> None:
        """Go on inside the smallest passing combination, or leave the box whole if none passes."""
        chosen = question.smallest(passing)
        if chosen is None:
            self.whole += question.parts
        else:
            self.kept += [question.parts[part] for part in chosen]


def responsibility(
    evaluator: Evaluator, target: int, confidence_whole: float, search: Search, entropy: list[int]
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
    survive. The search goes on inside the smallest passing combination: its parts are split
    in turn, the largest box first, each with all other boxes of the combination kept as they are by
    then. So what is kept passes at every moment. A box none of whose combinations passes is needed
    from end to end; it stays whole and gives nothing, since it says nothing about its parts.

    All masks of a step, over all partitions, go through the network together.

    Args:
        evaluator: the network and the image.
        target: the class to be kept.
        confidence_whole: its confidence on the whole image.
        search: how much to ask.
        entropy: non-negative integers that the random stream depends on, and nothing else does.
    """
    height, width = evaluator.shape
    streams = np.random.SeedSequence(entropy).spawn(search.partitions)
    partitions = [
        Partition([Box(0, height, 0, width)], np.random.default_rng(stream)) for stream in streams
    ]
    total = np.zeros((height, width), np.int64)
    while asked := [(p, question) for p in partitions if (question := p.ask(search)) is not None]:
        scores = evaluator.scores(
            (mask for _, question in asked for mask in question.masks(evaluator.shape)), target
        )
        passing = scores.passing(target, search.confidence * confidence_whole)
        start = 0
        for partition, question in asked:
            answer = passing[start : start + len(question.combinations)]
            start += len(question.combinations)
            _credit(total, question, answer)
            partition.answer(question, answer)
    return (total / _UNIT).astype(np.float32)


def _credit(total: NDArray[np.int64], question: Question, passing: NDArray[np.bool_]) -> None:
    for combination, passed in zip(question.combinations, passing, strict=True):
        if passed:
            for part in combination:
                total[question.parts[part].slices] += _UNIT // len(combination)
