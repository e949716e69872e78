"""`size`, `confidence` and `minimality` of a set of kept pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convad_fx.errors import PolicyError
from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.masker import Masker
from convad_fx.explain.minimal import grid_blocks
from convad_fx.explain.options import check_count, check_share
from convad_fx.explain.scores import ScoreChoice, positive_score
from convad_fx.metrics.masks import as_array


def size(mask: Mask | Tensor) -> float:
    """Share of the pixels that is kept, in [0, 1].

    >>> size(np.array([[True, False, False, False]]))
    0.25

    Args:
        mask: (H, W), bool, True = kept.

    Raises:
        MaskError: another dtype or shape.
    """
    return float(as_array(mask).mean())


@dataclass(frozen=True, slots=True)
class Confidence:
    """The target's score on the kept pixels and on the whole image.

    Args:
        kept: on the kept pixels alone; by default a probability in [0, 1].
        whole: on the whole image.
        gamma: the required share of `whole`.
        top: whether the target is predicted on the kept pixels.
        is_prediction: whether it is predicted on the whole image; else the score alone counts.
    """

    kept: float
    whole: float
    gamma: float
    top: bool
    is_prediction: bool = True

    @property
    def relative(self) -> float:
        """`kept / whole`; NaN if `whole` is 0."""
        return self.kept / self.whole if self.whole else float("nan")

    @property
    def over_threshold(self) -> float:
        """`kept - gamma * whole`: the distance from the threshold, negative below it.

        Near 0 means that few pixels are redundant (arXiv 2510.01038, section 5: explanations by
        switching off are closer to the threshold).
        """
        return self.kept - self.gamma * self.whole

    @property
    def sufficient(self) -> bool:
        """Whether the target is predicted with at least the required confidence."""
        return (self.top or not self.is_prediction) and self.over_threshold >= 0


def confidence(
    masker: Masker,
    image: Tensor,
    mask: Mask | Tensor,
    target: int,
    gamma: float = 0.9,
    *,
    batch_size: int | str = "auto",
    score: ScoreChoice = None,
) -> Confidence:
    """The masker's confidence in the target on the kept pixels, and whether it suffices.

    >>> import torch
    >>> def brightness(x, mask):
    ...     kept = torch.where(mask, x, 0).mean((1, 2, 3))
    ...     return torch.stack([0 * kept, 4 * kept], 1)
    >>> half = np.arange(64).reshape(8, 8) < 32
    >>> result = confidence(brightness, torch.ones(3, 8, 8), half, target=1)
    >>> round(result.relative, 2), result.sufficient
    (0.9, False)

    Args:
        masker: `(x, mask) -> logits`.
        image: (C, H, W) or (1, C, H, W).
        mask: (H, W), bool, True = kept.
        target: the class.
        gamma: the required share of the whole image's confidence, in (0, 1].
        batch_size: masks per call; 1: direct calls, as for `Explanation.confidence_recheck`.
        score: as in `convad_fx.explain`.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: an unsuitable argument.
    """
    check_share("gamma", gamma, allow_zero=False, hint="0.9 is usual")
    evaluator = Evaluator(masker, image, batch_size=batch_size, score=score)
    whole = np.ones(evaluator.shape, bool)
    kept = as_array(mask, evaluator.shape)
    # Separate calls: in a batch the result may differ by rounding from that alone.
    of_kept, of_whole = (
        evaluator.scores([m], target, direct=batch_size == 1) for m in (kept, whole)
    )
    assert evaluator.score is not None
    return Confidence(
        float(of_kept.confidence[0]),
        positive_score(of_whole, evaluator.score.name, f"class {target}"),
        gamma,
        bool(of_kept.predicted[0]),
        bool(of_whole.predicted[0]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Minimality:
    """Which blocks of a set are needed.

    Args:
        needed: for every block that holds kept pixels, whether the set fails without it.
        blocks: (H, W) of integers: the index in `needed` of each kept pixel's block, -1 elsewhere.
    """

    needed: tuple[bool, ...]
    blocks: NDArray[np.int64]

    @property
    def share(self) -> float:
        """Share of the blocks that are needed, in [0, 1]; 1 for the empty set."""
        return float(np.mean(self.needed)) if self.needed else 1.0

    @property
    def minimal(self) -> bool:
        """Whether the set is 1-minimal: no single block can be left out."""
        return all(self.needed)


def minimality(
    masker: Masker,
    image: Tensor,
    mask: Mask | Tensor,
    target: int,
    at_least: float = 0.0,
    *,
    side: int = 16,
    batch_size: int | str = "auto",
    score: ScoreChoice = None,
) -> Minimality:
    """Which single blocks can be left out of a set?

    >>> import torch
    >>> def corner(x, mask):
    ...     seen = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> half = np.arange(256).reshape(16, 16) < 128               # the corner, and more
    >>> minimality(corner, torch.ones(1, 16, 16), half, target=1, side=4).share
    0.125

    A set is 1-minimal if no single element can be removed without losing the property (Zeller and
    Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, IEEE TSE 2002, Definition 10);
    the elements are squares of a grid here. Two blocks together may still be removable.

    Args:
        masker, image, mask, target, batch_size, score: as in `confidence`.
        at_least: the confidence to be kept, in [0, 1] if it is a probability; at 0 only the class
            counts. For a class that is not predicted on the whole image, the score alone counts.
        side: of the blocks, in pixels.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: an unsuitable argument.
    """
    check_count("side", side, minimum=1, hint="16 pixels are usual")
    evaluator = Evaluator(masker, image, batch_size=batch_size, score=score)
    score_only = evaluator.whole(target).score_only
    if evaluator.score is not None and evaluator.score.is_probability:
        check_share("at_least", at_least, allow_zero=True, hint="0 requires the class alone")
    if score_only and not at_least:
        raise PolicyError(
            f"class {target} is not predicted on the whole image, so its score must be required",
            hint="pass at_least=why.gamma * why.confidence_whole",
        )
    kept = as_array(mask, evaluator.shape)
    grid = grid_blocks(evaluator.shape, side)
    present, indices = np.unique(grid[kept], return_inverse=True)
    blocks = np.full(evaluator.shape, -1, np.int64)
    blocks[kept] = indices
    scores = evaluator.scores((kept & (grid != block) for block in present), target)
    needed = ~scores.passing(at_least, score_only=score_only)
    return Minimality(tuple(needed.tolist()), blocks)
