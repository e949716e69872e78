"""`insertion` and `deletion`: confidence as the pixels of a ranking are shown or hidden."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import integrate
from torch import Tensor

from convad_fx.errors import ImageError, PolicyError
from convad_fx.explain.evaluator import Evaluator
from convad_fx.explain.masker import Masker
from convad_fx.explain.options import check_count
from convad_fx.explain.ranking import pixel_ranks
from convad_fx.explain.scores import ScoreChoice


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Confidence of one class as pixels are shown or hidden.

    Args:
        share: of the pixels shown (insertion) or hidden (deletion), ascending from 0 to 1.
        confidence: the score of the class at each share; a probability in [0, 1] by default.
    """

    share: NDArray[np.float64]
    confidence: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Area under the curve, by the trapezoidal rule; in [0, 1] for probabilities."""
        return float(integrate.trapezoid(self.confidence, self.share))


def insertion(
    masker: Masker,
    image: Tensor,
    ranking: NDArray[np.floating],
    target: int,
    *,
    steps: int = 50,
    batch_size: int | str = "auto",
    score: ScoreChoice = None,
) -> Curve:
    """Confidence as the most responsible pixels are shown first: large for a good ranking.

    >>> import torch
    >>> def corner(x, mask):
    ...     seen = mask[:, 0, :4, :4].float().mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> good = np.zeros((16, 16), np.float32)
    >>> good[:4, :4] = 1
    >>> image = torch.ones(1, 16, 16)
    >>> insertion(corner, image, good, 1).area > 0.9 > insertion(corner, image, -good, 1).area
    True

    Source: Petsiuk, Das, Saenko, *RISE* (BMVC 2018), section 4.2. The masker hides the pixels, so
    compare areas under the same masker only. Pixels of equal responsibility are ordered as in
    explanations (`convad_fx.explain.ranking.pixel_ranks`).

    Args:
        masker: `(x, mask) -> logits`.
        image: (C, H, W) or (1, C, H, W).
        ranking: (H, W), larger = more responsible.
        target: the class.
        steps: of the curve, as even as whole pixels allow.
        batch_size: masks per call of the network.
        score: as in `convad_fx.explain`.

    Raises:
        ImageError, ModelError, PolicyError: an unsuitable argument.
    """
    return _curve(masker, image, ranking, target, steps, batch_size, score, delete=False)


def deletion(
    masker: Masker,
    image: Tensor,
    ranking: NDArray[np.floating],
    target: int,
    *,
    steps: int = 50,
    batch_size: int | str = "auto",
    score: ScoreChoice = None,
) -> Curve:
    """Confidence as the most responsible pixels are hidden first: small for a good ranking.

    >>> import torch
    >>> first_pixel = lambda x, mask: 9 * torch.nn.functional.one_hot(mask[:, 0, 0, 0].long(), 2)
    >>> first_row_first = np.linspace(1, 0, 64).reshape(8, 8)
    >>> deletion(first_pixel, torch.ones(1, 8, 8), first_row_first, 1).area < 0.1
    True

    Arguments, errors and source as for `insertion`.
    """
    return _curve(masker, image, ranking, target, steps, batch_size, score, delete=True)


def _curve(
    masker: Masker,
    image: Tensor,
    ranking: NDArray[np.floating],
    target: int,
    steps: int,
    batch_size: int | str,
    score: ScoreChoice,
    *,
    delete: bool,
) -> Curve:
    check_count("steps", steps, minimum=1, hint="50 is usual")
    evaluator = Evaluator(masker, image, batch_size=batch_size, score=score)
    values = np.asarray(ranking)
    if values.shape != evaluator.shape:
        raise ImageError(
            f"the ranking has shape {values.shape}, the image {evaluator.shape}",
            hint="pass Explanation.responsibility, or any map of the image's size",
        )
    if not np.isfinite(values).all():
        raise PolicyError("the ranking is not finite", hint="look for NaN in the map")
    rank = pixel_ranks(values.astype(np.float32))
    counts = np.unique(np.linspace(0, rank.size, steps + 1).round().astype(np.int64))
    masks = ((rank >= n) if delete else (rank < n) for n in counts)
    return Curve(counts / rank.size, evaluator.scores(masks, target).confidence)
