"""`signs`: measured signs that switching off has failed on an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from convad_fx.errors import PolicyError
from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.masker import Masker
from convad_fx.explain.minimal import grid_blocks
from convad_fx.explain.options import check_count, check_share
from convad_fx.explain.scores import ScoreChoice
from convad_fx.metrics.masks import as_array


@dataclass(frozen=True, slots=True)
class Signs:
    """Measured signs of failure of a set of pixels, or of the masker for which it suffices.

    Args:
        parts: connected pieces of the set; pixels that touch at a corner are connected.
        largest: share of the kept pixels in the largest piece, in [0, 1].
        border: share of the kept pixels that lie on the image's border, divided by the share of all
            pixels that do: 1 by chance. The border is a sixteenth of each side wide.
        empty: confidence in the target with nothing kept, divided by that on the whole image.
        spared: the same with a few pixels outside the set hidden: the mean over random draws.
    """

    parts: int
    largest: float
    border: float
    empty: float
    spared: float

    @property
    def seen(self) -> tuple[str, ...]:
        """The signs beyond the limits of docs/failure-signs.md, as text."""
        rows = (
            (self.parts > 5 and self.largest < 0.5, "scattered: many pieces, none of them large"),
            (self.border > 2, "at the border: more of the set lies there than by chance"),
            (self.empty > 0.5, "bias: nothing kept gives the class as well"),
            (self.spared < 0.7, "over-deactivation: hiding a little elsewhere costs much"),
        )
        return tuple(text for exceeded, text in rows if exceeded)


def signs(
    masker: Masker,
    image: Tensor,
    mask: Mask | Tensor,
    target: int,
    *,
    hidden: float = 0.1,
    draws: int = 8,
    side: int = 8,
    seed: int = 0,
    batch_size: int | str = "auto",
    score: ScoreChoice = None,
) -> Signs:
    """Signs of failure: scattered sets, leaks at borders, bias, over-deactivation.

    >>> import torch
    >>> def brightness(x, mask):
    ...     kept = torch.where(mask, x, 0).mean((1, 2, 3))
    ...     return torch.stack([0 * kept, 4 * kept], 1)
    >>> dots = np.zeros((32, 32), bool)
    >>> dots[8:24:4, 8:24:4] = True
    >>> result = signs(brightness, torch.ones(3, 32, 32), dots, target=1)
    >>> result.parts, result.largest, round(result.empty, 2), round(result.spared, 2)
    (16, 0.0625, 0.51, 0.99)
    >>> result.seen
    ('scattered: many pieces, none of them large', 'bias: nothing kept gives the class as well')

    Args:
        masker, image, mask, target, batch_size: as in `confidence`.
        hidden: for `spared`, the share of the pixels outside the set to hide, in (0, 1].
        draws: number of random draws for `spared`.
        side: of the blocks that are hidden, in pixels.
        seed: of the draws; a non-negative integer.
        score: as in `convad_fx.explain`.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: an unsuitable argument.
    """
    check_share("hidden", hidden, allow_zero=False, hint="0.1 is usual")
    check_count("draws", draws, minimum=1, hint="8 is usual")
    check_count("side", side, minimum=1, hint="8 pixels are usual")
    check_count("seed", seed, minimum=0, hint="pass 0")
    evaluator = Evaluator(masker, image, batch_size=batch_size, score=score)
    kept = as_array(mask, evaluator.shape)
    masks = [np.ones_like(kept), np.zeros_like(kept)]
    masks += _with_little_hidden(kept, hidden, draws, side, seed)
    whole, empty, *spared = evaluator.scores(masks, target).confidence
    if not whole > 0:
        raise PolicyError(
            f"class {target} has a confidence of {whole:.3g} on the whole image, which is not "
            "positive",
            hint="pass the explained class and its score: `why.target`, `why.score`",
        )
    pieces, parts = ndimage.label(kept, np.ones((3, 3)))
    largest = int(np.bincount(pieces[kept]).max()) / int(kept.sum()) if parts else 0.0
    return Signs(
        int(parts), largest, _border(kept), float(empty / whole), float(np.mean(spared) / whole)
    )


def _border(kept: Mask) -> float:
    inner = np.zeros_like(kept)
    rows, columns = (-(-n // 16) for n in kept.shape)
    inner[rows:-rows, columns:-columns] = True
    return float((~inner)[kept].mean() / (~inner).mean()) if kept.any() else 0.0


def _with_little_hidden(
    kept: Mask, hidden: float, draws: int, side: int, seed: int
) -> Iterator[Mask]:
    """Masks of all pixels but those of random blocks, with the set kept."""
    grid = grid_blocks(kept.shape, side)
    present = np.unique(grid[~kept])
    n = max(1, round(hidden * len(present))) if len(present) else 0
    random = np.random.default_rng([seed, 11])
    for _ in range(draws):
        yield kept | ~np.isin(grid, random.permutation(present)[:n])
