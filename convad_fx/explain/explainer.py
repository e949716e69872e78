"""`explain`: why does the network say so?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from convad_fx.errors import PolicyError
from convad_fx.explain.evaluator import Evaluator, Mask, as_batch
from convad_fx.explain.explanation import Contrast, Explanation
from convad_fx.explain.masker import Masker, policy_of
from convad_fx.explain.options import STRICT, Search, check_class, check_count, check_share
from convad_fx.explain.responsibility import responsibility
from convad_fx.explain.sufficient import (
    SPATIAL_QUESTIONS,
    Changes,
    Goal,
    Shrunk,
    Suffices,
    most_questions,
    order,
    recheck,
    shortest,
    shrink,
    spatial_order,
)
from convad_fx.versions import versions

_DEFAULT = Search()


def explain(
    masker: Masker,
    image: Tensor,
    target: int | None = None,
    gamma: float = 0.9,
    *,
    progress: bool = False,
    seed: int = 0,
    search: Search = _DEFAULT,
    contrastive: bool = False,
    batch_size: int | str = "auto",
    precision: str | None = None,
    labels: Sequence[str] | Mapping[int, str] | None = None,
) -> Explanation:
    """Find a small set of pixels that suffices for the network's answer.

    >>> def corner(x, mask):                                # sees the top left 8 x 8 pixels only
    ...     seen = torch.where(mask, x, 0)[:, 0, :8, :8].mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> why = explain(corner, torch.ones(1, 32, 32), labels=["other", "corner"])
    >>> why.target_name, why.sufficient, why.size < 0.15
    ('corner', True, True)
    >>> bool(why.mask[16:, 16:].any())
    False

    Kept alone, the pixels of `Explanation.mask` give the class `target` with at least `gamma`
    times its confidence (softmax) on the whole image. They are found as in the paper's experiments
    (arXiv 2510.01038): ReX's causal responsibility search ranks the pixels (see `responsibility`),
    the most responsible are kept until they suffice (see `shortest`), the set is made minimal if
    `search.minimal` says so (see `shrink`), and it is then asked
    about once more, alone, at batch size 1. It is small, not the smallest, and there are others:
    `explain_disjoint` finds some.

    If nothing needs to be kept (the empty mask already suffices), that is the answer, and no
    search is made: its responsibilities would say nothing. If no smaller set is found, the answer
    is the whole image.

    The random stream depends on `seed` and the image's values alone. Results do not depend on
    `batch_size`, but for rounding: kernels differ by batch size, and a mask that is sufficient by
    the last bit in one may not be in another.

    Args:
        masker: `(x, mask) -> logits`, e.g. a `MaskedModule`, or `occlusion(model)`.
        image: as the network reads it: float, (C, H, W) or (1, C, H, W), on the network's device.
        target: the class to explain; the network's answer if None. It must be that answer: what the
            whole image does not give, no part is sufficient for in this sense.
        gamma: the share of the confidence to be kept, in (0, 1].
        progress: show a bar, on stderr.
        seed: a non-negative integer.
        search: how much to ask, and how.
        contrastive: find, too, what must be hidden for the class to change
            (`Explanation.contrast`): the most responsible pixels, as many as it takes.
        batch_size: masks that go through the network at once; "auto": as is fastest.
        precision: "bfloat16" or "float16": the search's arithmetic, on a masked float32 network.
            What is claimed is in float32 all the same: a set is asked about again, and made larger
            until it suffices there, and shrinking asks in float32 alone. `Explanation.deviation`
            says how far logits were off.
        labels: class names, one for every class, or a mapping from class numbers.

    Raises:
        ImageError: the image is not one floating-point image.
        ModelError: the masker's answers are not finite logits (N, classes).
        PolicyError: target, gamma, seed, batch_size, precision, labels or the budget are out of
            range.
    """
    with tqdm(total=None, unit="mask", desc="explain", disable=not progress, leave=False) as bar:
        case = _case(masker, image, target, gamma, seed, search, batch_size, precision, labels, bar)
        return _explained(case, 0, None, contrastive)


def explain_disjoint(
    masker: Masker,
    image: Tensor,
    count: int = 3,
    target: int | None = None,
    gamma: float = 0.9,
    *,
    progress: bool = False,
    seed: int = 0,
    search: Search = _DEFAULT,
    contrastive: bool = False,
    batch_size: int | str = "auto",
    precision: str | None = None,
    labels: Sequence[str] | Mapping[int, str] | None = None,
) -> tuple[Explanation, ...]:
    """Up to `count` explanations that share no pixel: different reasons for the same answer.

    >>> def corners(x, mask):                               # either of two corners will do
    ...     seen = mask[:, 0].float()
    ...     best = torch.maximum(seen[:, :8, :8].mean((1, 2)), seen[:, -8:, -8:].mean((1, 2)))
    ...     return torch.stack([0 * best, 8 * best - 4], 1)
    >>> reasons = explain_disjoint(corners, torch.ones(1, 32, 32), count=5)
    >>> len(reasons), bool((reasons[0].mask & reasons[1].mask).any())
    (2, False)

    The first is what `explain` finds. For each further one, the pixels of those before it are
    hidden for good, and the search is made anew with what is left. It ends when what is left does
    not suffice, so there may be fewer than `count`; the whole image is never divided up by force.

    Args:
        masker, image, target, gamma, progress, seed, batch_size, precision, labels: as in
            `explain`.
        count: the most explanations wanted, 1 or more.
        search: as in `explain`; `search.budget` holds for each explanation.
        contrastive: as in `explain`; for the first explanation only.

    Returns:
        One explanation or more; `Explanation.number` counts from 0.

    Raises:
        As `explain`; PolicyError also if count is not a positive whole number.
    """
    check_count("count", count, least=1, hint="3 is usual")
    found: list[Explanation] = []
    with tqdm(total=None, unit="mask", desc="explain", disable=not progress, leave=False) as bar:
        case = _case(masker, image, target, gamma, seed, search, batch_size, precision, labels, bar)
        within: Mask | None = None
        while len(found) < count:
            found.append(_explained(case, len(found), within, contrastive and not found))
            taken = found[-1].mask
            within = ~taken if within is None else within & ~taken
            if not taken.any() or not within.any():
                break
            left = case.evaluator.scores([within], case.target, exact=True)
            if not left.passing(case.target, case.at_least)[0]:
                break
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """One image, and what is to be explained about it."""

    evaluator: Evaluator
    target: int
    gamma: float
    confidence_whole: float
    seed: int
    search: Search
    digest: str
    labels: Sequence[str] | Mapping[int, str] | None
    classes: int
    policy: dict[str, Any]

    @property
    def at_least(self) -> float:
        return self.gamma * self.confidence_whole

    @property
    def asked(self) -> Search:
        """The search with nothing left open."""
        if self.search.confidence is not None:
            return self.search
        return replace(self.search, confidence=min(self.gamma, STRICT))

    def name(self, number: int) -> str | None:
        return _name(number, self.labels, self.classes)


def _case(
    masker: Masker,
    image: Tensor,
    target: int | None,
    gamma: float,
    seed: int,
    search: Search,
    batch_size: int | str,
    precision: str | None,
    labels: Sequence[str] | Mapping[int, str] | None,
    bar: Any,
) -> _Case:
    check_share(
        "gamma", gamma, zero=False, hint="the share of the confidence to keep; 0.9 is usual"
    )
    check_count("seed", seed, least=0, hint="pass 0")
    batch = as_batch(image)
    digest = image_digest(batch)
    evaluator = Evaluator(masker, batch, batch_size=batch_size, bar=bar, precision=precision)
    logits = evaluator.logits([np.ones(evaluator.shape, bool)], exact=True)
    target = _target(logits, target, labels)
    _name(target, labels, logits.shape[1])  # labels that do not fit: before the search
    return _Case(
        evaluator=evaluator,
        target=target,
        gamma=float(gamma),
        confidence_whole=float(torch.softmax(logits, 1)[0, target]),
        seed=seed,
        search=search,
        digest=digest,
        labels=labels,
        classes=logits.shape[1],
        policy=policy_of(masker),
    )


def _explained(case: _Case, number: int, within: Mask | None, contrastive: bool) -> Explanation:
    """The explanation among the pixels `within`, which are known to suffice."""
    evaluator, search, shape = case.evaluator, case.search, case.evaluator.shape
    # The first question, about the whole image, is the first explanation's.
    start = evaluator.evaluations - (number == 0)
    left = _Budget(case, start, contrastive)
    goal = Suffices(case.target, case.at_least)
    nothing = evaluator.scores([np.zeros(shape, bool)], case.target, exact=True)
    ranking = np.zeros(shape, np.float32)
    if not goal.reached(nothing)[0]:
        entropy = [case.seed, int(case.digest, 16), *([number] if number else [])]
        ranking = responsibility(
            evaluator,
            case.target,
            case.confidence_whole,
            case.asked,
            entropy,
            within=within,
            limit=left.for_search(),
        )
    rank = order(ranking, within)
    ranks = spatial_order(evaluator, goal, rank, within) if search.order == "spatial" else rank
    found = shortest(evaluator, goal, ranks, None if within is None else int(within.sum()))
    shrunk = Shrunk(found, False)
    if search.minimal and found.passed and found.mask.any():
        shrunk = shrink(evaluator, goal, found, ranks, search.minimal, limit=left.for_shrinking())
    contrast = None
    if contrastive:
        changed = bool(nothing.top[0] != case.target)
        contrast = _contrast(case, goal, rank, int(nothing.top[0]), changed, left)
    return Explanation(
        mask=shrunk.found.mask,
        responsibility=ranking,
        target=case.target,
        target_name=case.name(case.target),
        gamma=case.gamma,
        confidence_whole=case.confidence_whole,
        confidence_kept=shrunk.found.confidence,
        confidence_recheck=shrunk.found.recheck,
        sufficient=shrunk.found.passed,
        evaluations=evaluator.evaluations - start,
        policy=case.policy,
        seed=case.seed,
        search=search,
        image_digest=case.digest,
        versions=versions(),
        number=number,
        minimal=shrunk.minimal,
        contrast=contrast,
        precision=evaluator.precision,
        deviation=evaluator.deviation,
    )


def _contrast(
    case: _Case, kept: Goal, rank: NDArray[np.int64], empty: int, changes: bool, left: _Budget
) -> Contrast:
    """The shortest prefix whose absence changes the class; `empty` is the class of nothing."""
    evaluator, shape = case.evaluator, case.evaluator.shape
    if not changes:
        nothing = np.zeros(shape, bool)
        return Contrast(nothing, False, empty, case.name(empty), case.confidence_whole, False)
    goal = Changes(case.target)
    shrunk = Shrunk(shortest(evaluator, goal, rank), False)
    if case.search.minimal and shrunk.found.passed:
        limit = left.for_contrast()
        shrunk = shrink(evaluator, goal, shrunk.found, rank, case.search.minimal, limit=limit)
    found = shrunk.found
    suffices = recheck(evaluator, kept, found.mask, found.confidence).passed
    return Contrast(
        mask=found.mask,
        changes=found.passed,
        becomes=found.top,
        becomes_name=case.name(found.top),
        confidence=found.recheck,
        suffices=suffices,
        minimal=shrunk.minimal,
    )


class _Budget:
    """How many questions each step may ask, so that all together keep to `Search.budget`."""

    def __init__(self, case: _Case, start: int, contrastive: bool) -> None:
        self._evaluator, self._start, self._budget = case.evaluator, start, case.search.budget
        self._minimal = case.search.minimal > 0
        pixels = case.evaluator.shape[0] * case.evaluator.shape[1]
        self._prefix = most_questions(pixels)
        self._contrast = self._prefix + 1 if contrastive else 0
        discs = SPATIAL_QUESTIONS if case.search.order == "spatial" else 0
        # The whole image, and nothing.
        least = 2 + discs + self._prefix + self._contrast
        if self._budget is not None and self._budget < least:
            raise PolicyError(
                f"a budget of {self._budget} does not pay for finding the set once pixels are "
                f"ranked: {least} masks at most for {case.evaluator.shape[0]} x "
                f"{case.evaluator.shape[1]} pixels",
                hint=f"pass a budget of {least} and what the search is to cost, 2000 for example",
            )
        self._extraction = discs + self._prefix

    def _left(self, reserved: int) -> int | None:
        if self._budget is None:
            return None
        return self._budget - (self._evaluator.evaluations - self._start) - reserved

    def for_search(self) -> int | None:
        """All but what extraction needs; a third less if the set is to be made minimal."""
        left = self._left(self._extraction + self._contrast)
        return left * 2 // 3 if left is not None and self._minimal else left

    def for_shrinking(self) -> int | None:
        """What is left, but for the contrast; half of that if the contrast is shrunk, too."""
        left = self._left(self._contrast)
        return left // 2 if left is not None and self._contrast else left

    def for_contrast(self) -> int | None:
        """What is left, but for the last question."""
        return self._left(1)


def image_digest(image: Tensor) -> str:
    """SHA-256 of an image's dtype, shape and values, whatever its device and memory layout.

    >>> x = torch.arange(12.0).reshape(1, 3, 2, 2)
    >>> image_digest(x) == image_digest(x.to(memory_format=torch.channels_last))
    True
    """
    plain = image.detach().cpu().contiguous()
    described = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    values = plain.flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(described + values).hexdigest()


def _target(
    logits: Tensor, target: int | None, labels: Sequence[str] | Mapping[int, str] | None
) -> int:
    classes = logits.shape[1]
    top = int(logits[0].argmax())
    if target is None:
        return top
    check_class(target, classes, or_none=True)
    if target != top:
        share = torch.softmax(logits, 1)[0]
        said = _name(top, labels, classes) or f"class {top}"
        asked = _name(target, labels, classes) or f"class {target}"
        raise PolicyError(
            f"the network does not answer {asked} ({share[target]:.3g}) to the whole image but "
            f"{said} ({share[top]:.3g}), so there is no answer {asked} to explain",
            hint=f"pass target={top} or None",
        )
    return int(target)


def _name(
    target: int, labels: Sequence[str] | Mapping[int, str] | None, classes: int
) -> str | None:
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return labels.get(target)
    if isinstance(labels, str) or len(labels) != classes:
        raise PolicyError(
            f"{len(labels)} labels do not name {classes} classes",
            hint="pass one name per class, in order, or a mapping {class: name}",
        )
    return str(labels[target])
