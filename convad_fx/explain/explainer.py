"""`explain` and `explain_disjoint`: sets of pixels that suffice for a class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from convad_fx.errors import PolicyError
from convad_fx.explain.budget import ExplanationBudget
from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.explanation import Contrast, Explanation
from convad_fx.explain.goals import Changes, Suffices
from convad_fx.explain.masker import Masker, policy_of
from convad_fx.explain.minimal import shrink
from convad_fx.explain.options import (
    MAX_DEFAULT_CONFIDENCE,
    Search,
    check_count,
    check_share,
)
from convad_fx.explain.ranking import pixel_ranks, spatial_ranks
from convad_fx.explain.responsibility import responsibility
from convad_fx.explain.scores import Score, ScoreChoice, Scores, positive_score
from convad_fx.explain.sufficient import recheck, shortest_prefix
from convad_fx.versions import versions

_DEFAULT = Search()


def explain(
    masker: Masker,
    image: Tensor,
    target: int | None = None,
    gamma: float = 0.9,
    *,
    score: ScoreChoice = None,
    progress: bool = False,
    seed: int = 0,
    search: Search = _DEFAULT,
    contrastive: bool = False,
    batch_size: int | str = "auto",
    precision: str | None = None,
    labels: Sequence[str] | Mapping[int, str] | None = None,
) -> Explanation:
    """Find a small set of pixels that suffices for the network's answer, or for another class.

    >>> def corner(x, mask):                       # depends on the top left 8 x 8 pixels only
    ...     kept = torch.where(mask, x, 0)[:, 0, :8, :8].mean((1, 2))
    ...     return torch.stack([0 * kept, 8 * kept - 4], 1)
    >>> why = explain(corner, torch.ones(1, 32, 32), labels=["other", "corner"])
    >>> why.target_name, why.sufficient, why.size < 0.15
    ('corner', True, True)
    >>> bool(why.mask[16:, 16:].any())
    False

    Kept alone, the pixels of `Explanation.mask` give the class `target` with at least `gamma`
    times its confidence on the whole image, evaluated at batch size 1. For a class that the network
    does not predict on the whole image, the score alone counts, whichever class is predicted
    (`Explanation.is_prediction` is then False). The set is small, not the smallest, and not the
    only one. The search is ReX's, as in the paper (arXiv 2510.01038); docs/search.md describes it.
    The random stream depends on `seed` and the image's values alone.

    | `score` | what is kept to `gamma` | of one value z: 0 = no, 1 = yes |
    |---|---|---|
    | `"softmax"` | softmax of the answers | refused: always 1 |
    | `"sigmoid"` | sigmoid of the answers: labels of their own | 1 - sigmoid(z), sigmoid(z) |
    | `"probability"` | the answers, which lie in [0, 1] | 1 - z, z |
    | `"logit"` | the answers | -z, z |
    | a function | its result (K, classes) or (K,) for answers (K, C), float64 | the same |

    Labels of their own are predicted from 0.5 on; so are probabilities that do not sum to 1. By
    default, a network that ends in softmax or sigmoid is explained by its own probabilities,
    another one by the softmax, or by the sigmoid where it has one logit. For regression, pass a
    function with one column, larger = more, and positive: `score=lambda y: y[:, 0]`.

    Args:
        masker: `(x, mask) -> logits` (N, classes), or (N, 1) or (N,) for a single value, e.g. a
            `MaskedModule`, or `occlusion(model)`.
        image: as the network reads it: float, (C, H, W) or (1, C, H, W), on the network's device.
        target: the class to explain; None: the network's answer.
        gamma: the share of the confidence to keep, in (0, 1].
        score: one of the names above, or a function.
        progress: show a progress bar on stderr.
        seed: a non-negative integer.
        search: the options of the search.
        contrastive: also find what must be hidden for the class to change; for a label or a class
            that is not predicted, for it to be lost: see `Contrast`.
        batch_size: masks per call of the network; "auto": the fastest size.
        precision: "bfloat16" or "float16": arithmetic of the search, for a masked float32 network;
            the result is checked in float32.
        labels: class names, one for every class, or a mapping from class numbers.

    Raises:
        ImageError, PolicyError: an unsuitable argument; a score that does not suit the answers, or
            is not positive on the whole image.
        ModelError: the masker's answers are not finite logits (N, classes).
    """
    return explain_disjoint(
        masker,
        image,
        1,
        target,
        gamma,
        score=score,
        progress=progress,
        seed=seed,
        search=search,
        contrastive=contrastive,
        batch_size=batch_size,
        precision=precision,
        labels=labels,
    )[0]


def explain_disjoint(
    masker: Masker,
    image: Tensor,
    count: int = 3,
    target: int | None = None,
    gamma: float = 0.9,
    *,
    score: ScoreChoice = None,
    progress: bool = False,
    seed: int = 0,
    search: Search = _DEFAULT,
    contrastive: bool = False,
    batch_size: int | str = "auto",
    precision: str | None = None,
    labels: Sequence[str] | Mapping[int, str] | None = None,
) -> tuple[Explanation, ...]:
    """Up to `count` explanations that share no pixel: different reasons for the same answer.

    >>> def corners(x, mask):                              # either of two corners suffices
    ...     kept = mask[:, 0].float()
    ...     best = torch.maximum(kept[:, :8, :8].mean((1, 2)), kept[:, -8:, -8:].mean((1, 2)))
    ...     return torch.stack([0 * best, 8 * best - 4], 1)
    >>> reasons = explain_disjoint(corners, torch.ones(1, 32, 32), count=5)
    >>> len(reasons), bool((reasons[0].mask & reasons[1].mask).any())
    (2, False)

    The first is the result of `explain`. Each further search hides the pixels of all before it,
    and the last ends when the rest does not suffice.

    Args:
        count: the most explanations wanted, 1 or more.
        search: its budget holds for each explanation.
        contrastive: for the first explanation only.
        other arguments: as in `explain`.

    Returns:
        One explanation or more; `Explanation.number` counts from 0.

    Raises:
        As `explain`; PolicyError also if count is not a positive whole number.
    """
    check_count("count", count, minimum=1, hint="3 is usual")
    hint = "the share of the confidence to keep; 0.9 is usual"
    check_share("gamma", gamma, allow_zero=False, hint=hint)
    check_count("seed", seed, minimum=0, hint="pass 0")
    with tqdm(total=None, unit="mask", desc="explain", disable=not progress, leave=False) as bar:
        evaluator = Evaluator(
            masker,
            image,
            batch_size=batch_size,
            on_evaluated=bar.update,
            precision=precision,
            score=score,
        )
        problem = _Problem(evaluator, target, gamma, seed, search, labels, policy_of(masker))
        explanations = [problem.explanation(0, None, contrastive=contrastive)]
        allowed = ~explanations[0].mask
        while (
            len(explanations) < count
            and explanations[-1].mask.any()
            and allowed.any()
            and problem.suffices(allowed)
        ):
            explanations.append(problem.explanation(len(explanations), allowed))
            allowed &= ~explanations[-1].mask
    return tuple(explanations)


class _Problem:
    """One image, the class to explain about it, and the options of the search."""

    def __init__(
        self,
        evaluator: Evaluator,
        target: int | None,
        gamma: float,
        seed: int,
        search: Search,
        labels: Sequence[str] | Mapping[int, str] | None,
        policy: dict[str, Any],
    ) -> None:
        self.evaluator, self.gamma, self.seed, self.search = evaluator, float(gamma), seed, search
        self.whole = evaluator.whole(target, full_precision=True)
        assert evaluator.score is not None
        self.score: Score = evaluator.score
        self.labels, self.policy = labels, policy
        target = self.whole.target
        title = self._name(target) or f"class {target}"  # refuses labels before the search
        self.confidence_whole = positive_score(self.whole, self.score.name, title)
        score_only = self.whole.score_only
        if score_only and search.confidence == 0:
            raise PolicyError(
                f"with Search(confidence=0) only the class counts, and {title} is not predicted",
                hint="pass a confidence above 0, or leave it out",
            )
        self.goal = Suffices(target, self.gamma * self.confidence_whole, score_only)
        self.digest = image_digest(evaluator.image)

    def suffices(self, pixels: Mask) -> bool:
        """Whether these pixels suffice, in the network's own precision."""
        return bool(self.goal.evaluate(self.evaluator, [pixels], full_precision=True)[0][0])

    def explanation(
        self, number: int, allowed: Mask | None, *, contrastive: bool = False
    ) -> Explanation:
        """The explanation among the pixels `allowed`, which are known to suffice."""
        evaluator, search, goal = self.evaluator, self.search, self.goal
        # The first evaluation, of the whole image, counts for the first explanation.
        start = evaluator.evaluations - (number == 0)
        spent = evaluator.evaluations - start
        budget = ExplanationBudget(evaluator, search, spent, contrastive=contrastive)
        nothing = np.zeros(evaluator.shape, bool)
        empty = evaluator.scores([nothing], goal.target, full_precision=True)
        values = np.zeros(evaluator.shape, np.float32)
        # A class that is not predicted often scores higher with everything hidden. The set is then
        # empty, but the map still shows which parts keep the score up.
        if goal.score_only or not goal.reached(empty)[0]:
            values = self._responsibility(number, allowed, budget.for_search())
        ranks = pixel_ranks(values, allowed)
        set_ranks = ranks
        if search.order == "spatial":
            set_ranks = spatial_ranks(evaluator, goal, ranks, allowed)
        max_length = None if allowed is None else int(allowed.sum())
        pixels = shortest_prefix(evaluator, goal, set_ranks, max_length)
        if search.minimal and pixels.passed and pixels.mask.any():
            limit = budget.for_shrinking()
            pixels = shrink(evaluator, goal, pixels, set_ranks, search.minimal, limit=limit)
        contrast = self._contrast(ranks, empty, budget) if contrastive else None
        return Explanation(
            mask=pixels.mask,
            responsibility=values,
            target=goal.target,
            target_name=self._name(goal.target),
            gamma=self.gamma,
            score=self.score.name,
            is_prediction=bool(self.whole.predicted[0]),
            confidence_whole=self.confidence_whole,
            confidence_kept=pixels.confidence,
            confidence_recheck=pixels.recheck,
            sufficient=pixels.passed,
            evaluations=evaluator.evaluations - start,
            policy=self.policy,
            seed=self.seed,
            search=search,
            image_digest=self.digest,
            versions=versions(),
            number=number,
            minimal=pixels.minimal,
            contrast=contrast,
            precision=evaluator.precision,
            deviation=evaluator.deviation,
        )

    def _responsibility(
        self, number: int, allowed: Mask | None, limit: int | None
    ) -> NDArray[np.float32]:
        search = self.search
        if search.confidence is None:
            search = replace(search, confidence=min(self.gamma, MAX_DEFAULT_CONFIDENCE))
        entropy = [self.seed, int(self.digest, 16), *([number] if number else [])]
        return responsibility(
            self.evaluator,
            self.goal.target,
            self.confidence_whole,
            search,
            entropy,
            score_only=self.goal.score_only,
            allowed=allowed,
            limit=limit,
        )

    def _contrast(
        self, ranks: NDArray[np.int64], empty: Scores, budget: ExplanationBudget
    ) -> Contrast:
        """The shortest prefix whose absence changes the class, or loses the target."""
        evaluator = self.evaluator
        goal = Changes(self.goal.target, self.whole)
        # No other class takes the place of a label, or of a class that was not predicted.
        replaced = not (self.whole.score_only or self.score.independent)
        if not goal.reached(empty)[0]:
            nothing = np.zeros(evaluator.shape, bool)
            becomes = goal.target if replaced else None
            name = self._name(becomes)
            return Contrast(nothing, False, becomes, name, self.confidence_whole, False)
        pixels = shortest_prefix(evaluator, goal, ranks)
        if self.search.minimal and pixels.passed:
            limit = budget.for_contrast()
            pixels = shrink(evaluator, goal, pixels, ranks, self.search.minimal, limit=limit)
        becomes = pixels.top if replaced else None
        return Contrast(
            mask=pixels.mask,
            changes=pixels.passed,
            becomes=becomes,
            becomes_name=self._name(becomes),
            confidence=pixels.recheck,
            suffices=recheck(evaluator, self.goal, pixels.mask, pixels.confidence).passed,
            minimal=pixels.minimal,
        )

    def _name(self, number: int | None) -> str | None:
        return None if number is None else _class_name(number, self.labels, self.whole.classes)


def image_digest(image: Tensor) -> str:
    """SHA-256 of an image's dtype, shape and values, whatever its device and memory layout.

    >>> x = torch.arange(12.0).reshape(1, 3, 2, 2)
    >>> image_digest(x) == image_digest(x.to(memory_format=torch.channels_last))
    True
    """
    values = image.detach().cpu().contiguous()
    header = f"{values.dtype} {tuple(values.shape)} ".encode()
    return hashlib.sha256(header + values.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _class_name(
    number: int, labels: Sequence[str] | Mapping[int, str] | None, classes: int
) -> str | None:
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return labels.get(number)
    if isinstance(labels, str) or len(labels) != classes:
        raise PolicyError(
            f"{len(labels)} labels do not name {classes} classes",
            hint="pass one name per class, in order, or a mapping {class: name}",
        )
    return str(labels[number])
