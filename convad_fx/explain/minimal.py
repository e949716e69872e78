"""`shrink`: a set of pixels made 1-minimal, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.budget import EvaluationLimit
from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.goals import Goal
from convad_fx.explain.sufficient import PixelSet, recheck


def grid_blocks(shape: tuple[int, int], side: int) -> NDArray[np.int64]:
    """The number (H, W) of each pixel's block; blocks are squares of a grid, `side` in pixels.

    >>> grid_blocks((3, 4), 2).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    """
    rows, columns = np.indices(shape)
    blocks: NDArray[np.int64] = (rows // side) * -(-shape[1] // side) + columns // side
    return blocks


def shrink(
    evaluator: Evaluator,
    goal: Goal,
    pixels: PixelSet,
    ranks: NDArray[np.int64],
    side: int,
    *,
    limit: int | None = None,
) -> PixelSet:
    """Leave out blocks until none of those left can be: a 1-minimal set of blocks.

    >>> import torch
    >>> from convad_fx.explain.goals import Suffices
    >>> def corner(x, mask):
    ...     kept = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * kept, 8 * kept - 4], 1)
    >>> evaluator, goal = Evaluator(corner, torch.zeros(1, 16, 16)), Suffices(1, 0.9)
    >>> everything = recheck(evaluator, goal, np.ones((16, 16), bool), 1.0)
    >>> small = shrink(evaluator, goal, everything, np.arange(256).reshape(16, 16), side=2)
    >>> int(small.mask.sum()), small.minimal
    (16, True)

    Blocks are left out one at a time, then the removable ones together, the least responsible
    first; this repeats, first in blocks of four and two times the side.

    Args:
        evaluator: the network and the image.
        goal: reached by the set, before and after.
        pixels: the set.
        ranks: (H, W): blocks of high rank are left out first.
        side: of the blocks, in pixels.
        limit: the most masks to evaluate; None: no limit. Once it is reached, the set so far is
            returned, marked as not minimal.
    """
    sets = [(pixels.mask, pixels.confidence)]
    shrinking = _Shrinking(evaluator, goal, ranks, EvaluationLimit(evaluator, limit), sets)
    minimal = False
    for size in (4 * side, 2 * side, side):
        minimal = shrinking.leave_out(grid_blocks(ranks.shape, size), prove=size == side)
    # In a batch every set reached the goal; at batch size 1, rounding may undo that for the last.
    while len(sets) > 1 and shrinking.limit.allows(1):
        alone = recheck(evaluator, goal, *sets[-1])
        if alone.passed:
            return replace(alone, minimal=minimal)
        sets.pop()
        minimal = False
    return replace(pixels, minimal=minimal and len(sets) == 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Shrinking:
    """Appends ever smaller sets, with their confidence, to `sets`; each reaches the goal."""

    evaluator: Evaluator
    goal: Goal
    ranks: NDArray[np.int64]
    limit: EvaluationLimit
    sets: list[tuple[Mask, float]]

    def leave_out(self, blocks: NDArray[np.int64], *, prove: bool) -> bool:
        """Leave out blocks; with `prove`, whether the rest is known to be minimal."""
        remaining = self._least_responsible_first(blocks)
        candidates, all_remaining = remaining, True
        while candidates:
            # 2: the prefixes have one more than the bit length; and one recheck.
            if not self.limit.allows(len(candidates) + len(candidates).bit_length() + 2):
                return False
            if removable := self._removable_alone(blocks, candidates):
                left_out = self._remove_together(blocks, removable)
                if not left_out:
                    return False
                remaining = [block for block in remaining if block not in left_out]
                candidates = [block for block in removable if block not in left_out]
                all_remaining = False
                if candidates or not prove:
                    continue
            elif all_remaining or not prove:
                return all_remaining
            candidates, all_remaining = remaining, True
        return not remaining

    def _least_responsible_first(self, blocks: NDArray[np.int64]) -> list[int]:
        """The blocks that hold pixels of the set, by mean rank; the number breaks ties."""
        chosen = self.sets[-1][0]
        counts = np.bincount(blocks.ravel(), chosen.ravel())
        sums = np.bincount(blocks.ravel(), (self.ranks * chosen).ravel())
        mean_rank = sums / np.maximum(counts, 1)
        return sorted(np.flatnonzero(counts).tolist(), key=lambda i: (-mean_rank[i], i))

    def _removable_alone(self, blocks: NDArray[np.int64], candidates: Sequence[int]) -> list[int]:
        """Those of the candidates without which, one at a time, the goal is still reached."""
        sets = (self.sets[-1][0] & (blocks != block) for block in candidates)
        reached, _ = self.goal.evaluate(self.evaluator, sets, full_precision=True)
        return [block for block, spare in zip(candidates, reached, strict=True) if spare]

    def _remove_together(self, blocks: NDArray[np.int64], removable: Sequence[int]) -> set[int]:
        """Leave out the longest passing prefix of 1, 2, 4, ... or all of these blocks."""
        lengths = sorted({1 << n for n in range(len(removable).bit_length())} | {len(removable)})
        sets = [self.sets[-1][0] & ~np.isin(blocks, removable[:n]) for n in lengths]
        reached, confidences = self.goal.evaluate(self.evaluator, sets, full_precision=True)
        passing = np.flatnonzero(reached)
        self.sets.extend((sets[i], float(confidences[i])) for i in passing)
        # None passes only by rounding: the first one did alone.
        return set(removable[: lengths[passing[-1]]]) if len(passing) else set()
