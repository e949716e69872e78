"""What a set of pixels does by itself: its size, its confidence, and whether it is minimal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.masker import Masker
from convad_fx.explain.minimal import grid_blocks
from convad_fx.explain.options import check_count, check_share
from convad_fx.metrics.masks import as_array


def size(mask: Mask | Tensor) -> float:
    """Share of the pixels kept, in [0, 1].

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
    """The target's softmax on the kept pixels, and what it is to be compared with.

    Args:
        kept: on the kept pixels alone, in [0, 1].
        whole: on the whole image.
        gamma: the share of `whole` asked for.
        top: whether the target is the class given on the kept pixels.
    """

    kept: float
    whole: float
    gamma: float
    top: bool

    @property
    def relative(self) -> float:
        """`kept / whole`: 1 = as sure as of the whole image, or even more; NaN if `whole` is 0."""
        return self.kept / self.whole if self.whole else float("nan")

    @property
    def over_threshold(self) -> float:
        """`kept - gamma * whole`: how far above (or, negative, below) the threshold it ends.

        Near 0 means nothing was kept in vain (arXiv 2510.01038, section 5: explanations by
        switching off end closer to the threshold).
        """
        return self.kept - self.gamma * self.whole

    @property
    def sufficient(self) -> bool:
        """The same class, with at least the confidence asked for."""
        return self.top and self.over_threshold >= 0


def confidence(
    masker: Masker,
    image: Tensor,
    mask: Mask | Tensor,
    target: int,
    gamma: float = 0.9,
    *,
    batch_size: int | str = "auto",
) -> Confidence:
    """How sure the masker is of the target on the kept pixels, and is that enough?

    >>> import torch
    >>> def brightness(x, mask):
    ...     kept = torch.where(mask, x, 0).mean((1, 2, 3))
    ...     return torch.stack([0 * kept, 4 * kept], 1)
    >>> half = np.arange(64).reshape(8, 8) < 32
    >>> found = confidence(brightness, torch.ones(3, 8, 8), half, target=1)
    >>> round(found.relative, 2), found.sufficient
    (0.9, False)

    Args:
        masker: `(x, mask) -> logits`.
        image: (C, H, W) or (1, C, H, W).
        mask: (H, W), bool, True = kept.
        target: the class.
        gamma: the share of the whole image's confidence asked for, in (0, 1].
        batch_size: 1 asks by plain calls, as `Explanation.confidence_recheck` does.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: what does not fit.
    """
    check_share("gamma", gamma, allow_zero=False, hint="0.9 is usual")
    evaluator = Evaluator(masker, image, batch_size=batch_size)
    whole = np.ones(evaluator.shape, bool)
    kept = as_array(mask, evaluator.shape)
    # One after the other: two masks in a batch may differ by rounding from one alone.
    direct = batch_size == 1
    scores = [evaluator.scores([m], target, direct=direct) for m in (kept, whole)]
    shares = [float(s.confidence[0]) for s in scores]
    return Confidence(shares[0], shares[1], gamma, bool(scores[0].top[0] == target))


@dataclass(frozen=True, slots=True, eq=False)
class Minimality:
    """Which blocks of a set it cannot do without.

    Args:
        needed: for every block that holds kept pixels, whether the set fails without it.
        blocks: (H, W) of integers: the number of the block of each kept pixel, -1 elsewhere; it
            indexes `needed`.
    """

    needed: tuple[bool, ...]
    blocks: np.ndarray[tuple[int, ...], np.dtype[np.int64]]

    @property
    def share(self) -> float:
        """Share of the blocks that are needed, in [0, 1]; 1 for the empty set."""
        return float(np.mean(self.needed)) if self.needed else 1.0

    @property
    def minimal(self) -> bool:
        """1-minimal: no single block can be left out."""
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
) -> Minimality:
    """Does leaving out any one block break the set?

    >>> import torch
    >>> def corner(x, mask):
    ...     seen = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> half = np.arange(256).reshape(16, 16) < 128               # the corner, and more
    >>> minimality(corner, torch.ones(1, 16, 16), half, target=1, side=4).share
    0.125

    A set is 1-minimal if no single element can be removed without losing the property (Zeller and
    Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, IEEE TSE 2002, Definition 10);
    the elements are squares of a grid here. Not: no *several* blocks can be left out together.

    Args:
        masker: `(x, mask) -> logits`.
        image: (C, H, W) or (1, C, H, W).
        mask: (H, W), bool, True = kept.
        target: the class to be kept.
        at_least: the confidence to be kept, in [0, 1]; at 0 the class decides alone.
        side: of the blocks, in pixels.
        batch_size: masks that go through the network at once.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: what does not fit.
    """
    check_count("side", side, minimum=1, hint="16 pixels are usual")
    check_share("at_least", at_least, allow_zero=True, hint="a softmax; 0 asks for the class alone")
    evaluator = Evaluator(masker, image, batch_size=batch_size)
    kept = as_array(mask, evaluator.shape)
    label = grid_blocks(evaluator.shape, side)
    present, numbers = np.unique(label[kept], return_inverse=True)
    where = np.full(evaluator.shape, -1, np.int64)
    where[kept] = numbers

    def without() -> Iterator[Mask]:
        for block in present:
            yield kept & (label != block)

    scores = evaluator.scores(without(), target)
    passing = scores.passing(target, at_least)
    return Minimality(tuple((~passing).tolist()), where)
