"""Does a masker's confidence predict robustness? Over random masks, not only over explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from convad_fx.errors import PolicyError
from convad_fx.explain.evaluator import Evaluator, Mask, as_batch
from convad_fx.explain.masker import Masker
from convad_fx.explain.options import check_class, check_share
from convad_fx.explain.paint import Normalisation
from convad_fx.metrics.masks import as_array, random_masks
from convad_fx.metrics.robustness import Model, answers, backgrounds


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """Confidence and robustness of the same masks.

    Args:
        confidence: the masker's, relative to the whole image, one per mask; 0 where the class is
            another one.
        sufficient: whether the masker calls the mask sufficient.
        rho: robustness in the original model, in [0, 1].
        threshold: a mask is called robust if rho is at least this.
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
        """How often a robust mask has more confidence than one that is not, in [0, 1]."""
        return auc(self.confidence, self.rho >= self.threshold)

    @property
    def robust_given_sufficient(self) -> float:
        """Mean rho of the masks called sufficient; NaN where there are none."""
        return float(self.rho[self.sufficient].mean()) if self.sufficient.any() else float("nan")

    @property
    def called_sufficient(self) -> float:
        """Share of the masks called sufficient, in [0, 1]."""
        return float(self.sufficient.mean())

    def __add__(self, other: Agreement) -> Agreement:
        """The masks of both: for several images."""
        if self.threshold != other.threshold:
            raise PolicyError("the two have different thresholds", hint="measure both alike")
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
) -> Agreement:
    """Over random masks: is what the masker calls sufficient robust in the original model?

    >>> def red(x):                                       # class 1: there is some red
    ...     amount = x[:, 0].amax((1, 2)) - x[:, 1].amax((1, 2)) - 0.5
    ...     return torch.stack([0 * amount, 9 * amount], 1)
    >>> from convad_fx.explain import occlusion
    >>> image = torch.zeros(3, 8, 8)
    >>> image[0, :4, :4] = 1
    >>> found = agreement(occlusion(red), red, image, n=5)
    >>> len(found.rho), 0 <= found.called_sufficient <= 1
    (32, True)

    The comparison of maskers in which no search takes part: every one is asked about the same masks
    and judged by the same compositions. Backgrounds are the same for every mask of an image.

    Args:
        masker: `(x, mask) -> logits`, the one that is judged.
        model: images (N, C, H, W) -> logits: the original model.
        image: (C, H, W) or (1, C, H, W).
        target: the class; None: what the model says of the image.
        masks: (H, W) each; None: 32 of `random_masks`.
        rho: `Agreement.rho` of another masker on the same image, masks and backgrounds: the model
            is then not asked again, and the four arguments of backgrounds are not read.
        gamma: a mask is sufficient if it gives the class with this share of the confidence.
        threshold: a mask is robust if this share of the compositions gives the class.
        on, n, others, seed, normalisation, batch_size: as in `robustness`.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: what does not fit.
    """
    check_share("gamma", gamma, allow_zero=False, hint="0.9 is usual")
    check_share("threshold", threshold, allow_zero=False, hint="0.8 is usual")
    evaluator = Evaluator(masker, image, batch_size=batch_size)
    x = as_batch(image)
    if target is None:
        target = int(answers(model, iter([x]), 1)[0].argmax())
    tried = random_masks(evaluator.shape, 32, seed) if masks is None else masks
    kept = [as_array(mask, evaluator.shape) for mask in tried]
    if not kept:
        raise PolicyError("there are no masks", hint="pass two or more")
    whole = evaluator.logits([np.ones(evaluator.shape, bool)])
    check_class(target, whole.shape[1], allow_none=True)
    whole_confidence = float(torch.softmax(whole, 1)[0, target])
    if not whole_confidence:
        raise PolicyError(
            f"the whole image gives class {target} no confidence at all",
            hint="leave target out: the class that the model gives is then taken",
        )
    scores = evaluator.scores(kept, target)
    if rho is None:
        planted = (
            list(backgrounds(x, on, n, others=others, seed=seed, normalisation=normalisation))
            if isinstance(on, str)
            else [as_batch(b).to(x) for b in on]
        )
        rho = _survival(model, x, target, kept, planted, batch_size)
    elif len(rho) != len(kept):
        raise PolicyError(
            f"{len(rho)} numbers as `rho` do not fit {len(kept)} masks",
            hint="pass Agreement.rho of the same masks",
        )
    return Agreement(
        np.where(scores.top == target, scores.confidence / whole_confidence, 0.0),
        scores.passing(target, gamma * whole_confidence),
        np.asarray(rho, np.float64),
        float(threshold),
    )


def _survival(
    model: Model,
    x: Tensor,
    target: int,
    kept: Sequence[Mask],
    planted: Sequence[Tensor],
    batch_size: int | str,
) -> NDArray[np.float64]:
    """For each mask, the share of the backgrounds on which the model gives the class."""
    if not planted:
        raise PolicyError("there are no backgrounds", hint="pass one or more")
    cells = (torch.from_numpy(mask)[None, None].to(x.device) for mask in kept)
    compositions = (torch.where(mask, x, b) for mask in cells for b in planted)
    logits = answers(model, compositions, batch_size)
    survived = (logits.argmax(1) == target).double().reshape(len(kept), len(planted))
    rho: NDArray[np.float64] = survived.mean(1).numpy()
    return rho


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's rank correlation of two lists of numbers; NaN where either does not vary.

    >>> rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 10, 11]))
    1.0

    Args:
        a, b: (n,) each, in the same order.

    Raises:
        PolicyError: lists of different lengths.
    """
    a, b = np.asarray(a), np.asarray(b)
    _check_paired(a, b)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def _check_paired(a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
    if a.ndim != 1 or a.shape != b.shape:
        raise PolicyError(
            f"lists of shapes {a.shape} and {b.shape} are not paired", hint="one of each per mask"
        )


def auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: P(score of a positive > score of a negative), ties one half.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75

    It is the Mann-Whitney statistic U over the number of pairs; NaN where there are no pairs.

    Args:
        scores: (n,), larger = more likely positive.
        positive: (n,), bool.

    Raises:
        PolicyError: lists of different lengths, or `positive` is not bool.
    """
    scores, positive = np.asarray(scores), np.asarray(positive)
    if positive.dtype != np.bool_:
        raise PolicyError(
            f"what is positive must be bool, not {positive.dtype}", hint="pass `rho >= 0.8`"
        )
    _check_paired(scores, positive)
    wins, losses = scores[positive], scores[~positive]
    if not len(wins) or not len(losses):
        return float("nan")
    ranks = stats.rankdata(scores)
    u = ranks[positive].sum() - len(wins) * (len(wins) + 1) / 2
    return float(u / (len(wins) * len(losses)))
