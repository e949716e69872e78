"""`agreement`: does a masker's confidence predict robustness, over random masks?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from convad_fx.errors import PolicyError
from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.masker import Masker
from convad_fx.explain.options import check_share
from convad_fx.explain.paint import Normalisation
from convad_fx.explain.scores import ScoreChoice, positive_score
from convad_fx.metrics.masks import as_array, random_masks
from convad_fx.metrics.robustness import (
    Model,
    backgrounds,
    model_logits,
    planted_logits,
    score_of_model,
)


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """Confidence and robustness of the same masks.

    Args:
        confidence: the masker's, relative to the whole image, (K,); 0 where it does not predict the
            class, unless it does not on the whole image either.
        sufficient: whether the mask suffices for the masker, (K,).
        rho: robustness in the original model, (K,), in [0, 1].
        threshold: a mask is robust if rho is at least this.
    """

    confidence: NDArray[np.float64]
    sufficient: NDArray[np.bool_]
    rho: NDArray[np.float64]
    threshold: float

    @property
    def rank_correlation(self) -> float:
        """Spearman's, in [-1, 1]; NaN where either does not vary."""
        return rank_correlation(self.confidence, self.rho)

    @property
    def auc(self) -> float:
        """How often a robust mask has more confidence than another, in [0, 1]; see `auc`."""
        return auc(self.confidence, self.rho >= self.threshold)

    @property
    def robust_given_sufficient(self) -> float:
        """Mean rho of the sufficient masks; NaN where there are none."""
        return float(self.rho[self.sufficient].mean()) if self.sufficient.any() else float("nan")

    @property
    def called_sufficient(self) -> float:
        """Share of the masks that suffice, in [0, 1]."""
        return float(self.sufficient.mean())

    def __add__(self, other: Agreement) -> Agreement:
        """The masks of both, to combine images."""
        if self.threshold != other.threshold:
            raise PolicyError(
                "the two have different thresholds", hint="measure both with the same threshold"
            )
        return Agreement(
            np.concatenate([self.confidence, other.confidence]),
            np.concatenate([self.sufficient, other.sufficient]),
            np.concatenate([self.rho, other.rho]),
            self.threshold,
        )


def agreement(
    masker: Masker,
    model: Model,
    image: Tensor,
    target: int | None = None,
    *,
    masks: Sequence[Mask | Tensor] | None = None,
    rho: NDArray[np.float64] | None = None,
    gamma: float = 0.9,
    threshold: float = 0.8,
    on: str | Sequence[Tensor] = "colours",
    n: int = 20,
    others: Sequence[Tensor] = (),
    seed: int = 0,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    batch_size: int | str = "auto",
    score: ScoreChoice = None,
) -> Agreement:
    """Are random masks that suffice for the masker robust in the original model?

    >>> import torch
    >>> def red(x):                                       # class 1: there is some red
    ...     amount = x[:, 0].amax((1, 2)) - x[:, 1].amax((1, 2)) - 0.5
    ...     return torch.stack([0 * amount, 9 * amount], 1)
    >>> from convad_fx.explain import occlusion
    >>> image = torch.zeros(3, 8, 8)
    >>> image[0, :4, :4] = 1
    >>> result = agreement(occlusion(red), red, image, n=5)
    >>> len(result.rho), 0 <= result.called_sufficient <= 1
    (32, True)

    Args:
        masker: `(x, mask) -> logits`.
        model: images (N, C, H, W) -> logits: the original model.
        image: (C, H, W) or (1, C, H, W).
        target: the class; None: the model's answer to the image.
        masks: (H, W) each; None: 32 of `random_masks`.
        rho: `Agreement.rho` of another masker on the same image, masks and backgrounds, which is
            then not measured again.
        gamma: a mask suffices if it gives the class with this share of the confidence.
        threshold: a mask is robust if the class survives on this share of the backgrounds.
        on, n, others, seed, normalisation, batch_size, score: as in `robustness`.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: an unsuitable argument.
    """
    check_share("gamma", gamma, allow_zero=False, hint="0.9 is usual")
    check_share("threshold", threshold, allow_zero=False, hint="0.8 is usual")
    evaluator = Evaluator(masker, image, batch_size=batch_size, score=score)
    x = evaluator.image
    if target is None or rho is None:
        answer = model_logits(model, [x], 1)
        chosen = score_of_model(model, x, answer, score)
        of_model = chosen(answer, target, optional=True)
        target = of_model.target
    given = random_masks(evaluator.shape, 32, seed) if masks is None else masks
    kept = [as_array(mask, evaluator.shape) for mask in given]
    if not kept:
        raise PolicyError("there are no masks", hint="pass two or more")
    whole = evaluator.whole(target)
    assert evaluator.score is not None
    confidence = positive_score(whole, evaluator.score.name, f"class {target}")
    scores = evaluator.scores(kept, target)
    if rho is None:
        if isinstance(on, str):
            on = list(backgrounds(x, on, n, others=others, seed=seed, normalisation=normalisation))
        found = chosen(planted_logits(model, x, kept, on, batch_size), target)
        rho = found.survives(of_model).reshape(len(kept), -1).mean(1)
    elif len(rho) != len(kept):
        raise PolicyError(
            f"{len(rho)} numbers as `rho` do not fit {len(kept)} masks",
            hint="pass Agreement.rho of the same masks",
        )
    return Agreement(
        np.where(scores.predicted | whole.score_only, scores.confidence / confidence, 0.0),
        scores.passing(gamma * confidence, score_only=whole.score_only),
        np.asarray(rho, np.float64),
        float(threshold),
    )


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's rank correlation of paired numbers; NaN where either does not vary.

    >>> rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 10, 11]))
    1.0

    Args:
        a, b: (n,) each, in the same order.

    Raises:
        PolicyError: arrays of different lengths.
    """
    a, b = np.asarray(a), np.asarray(b)
    _check_paired(a, b)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def _check_paired(a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
    if a.ndim != 1 or a.shape != b.shape:
        raise PolicyError(
            f"arrays of shapes {a.shape} and {b.shape} are not paired", hint="one of each per mask"
        )


def auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: P(score of a positive > score of a negative), ties one half.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75

    The Mann-Whitney statistic U over the number of pairs; NaN where there are no pairs.

    Args:
        scores: (n,), larger = more likely positive.
        positive: (n,), bool.

    Raises:
        PolicyError: arrays of different lengths, or `positive` is not bool.
    """
    scores, positive = np.asarray(scores), np.asarray(positive)
    if positive.dtype != np.bool_:
        raise PolicyError(
            f"`positive` must be bool, not {positive.dtype}", hint="pass `rho >= 0.8`"
        )
    _check_paired(scores, positive)
    positives, negatives = scores[positive], scores[~positive]
    pairs = len(positives) * len(negatives)
    if not pairs:
        return float("nan")
    u = stats.mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return float(u / pairs)
