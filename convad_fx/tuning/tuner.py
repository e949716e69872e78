"""`tune`: all policies on the same masks and images, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from convad_fx.compiler.policy import Policy
from convad_fx.convert import convert
from convad_fx.errors import ModelError, PolicyError
from convad_fx.explain import Search
from convad_fx.explain.evaluator import Mask
from convad_fx.explain.scores import ScoreChoice
from convad_fx.metrics import Best, Interval, Normalisation, best_of, paired
from convad_fx.module import MaskedModule
from convad_fx.tuning.measure import Measurement, Sample, make_samples
from convad_fx.tuning.policies import FEW
from convad_fx.tuning.result import CRITERIA, Measured, Trial, Tuning, mean_of_known

_QUICK = Search(partitions=2)


def tune(
    model: nn.Module,
    images: Sequence[Tensor],
    *,
    masks: Sequence[Mask | Tensor | None] | None = None,
    policies: Sequence[Policy] | None = None,
    baseline: Policy = Policy(),  # noqa: B008 (frozen)
    aim: str = "robust",
    gamma: float = 0.9,
    score: ScoreChoice = None,
    threshold: float = 0.8,
    tried: int = 64,
    n: int = 10,
    search: Search | None = _QUICK,
    level: float = 0.95,
    seed: int = 0,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    names: Sequence[str] | None = None,
    batch_size: int | str = "auto",
    progress: bool = False,
) -> Tuning:
    """Choose tau and the rest of the policy for a network, from a handful of its images.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = torch.rand(3, 3, 16, 16).unbind()
    >>> result = tune(model.eval(), images, policies=[Policy(tau=0.5)], tried=8, n=4, search=None)
    >>> result.decided, result.policy == Policy(), result.verdict[:13]
    (False, True, 'No conclusion')

    The baseline is kept unless another policy's lead is significant, corrected for the choice,
    which takes five images at least. docs/tune.md describes the criteria and the test.

    Args:
        model: images (N, C, H, W) -> logits, in evaluation mode, as `convert` takes it.
        images: (C, H, W) or (1, C, H, W) each, all of one shape, no two alike, on the model's
            device. The class of each is the model's answer.
        masks: the object's true mask (H, W) for each image, bool, True = object; None: not known.
        policies: the candidates; None: `convad_fx.tuning.FEW`.
        baseline: the policy to keep if no other is significantly better.
        aim: a key of `convad_fx.tuning.CRITERIA`.
        gamma, threshold, normalisation: as in `convad_fx.metrics.agreement`.
        score: as in `convad_fx.explain`.
        tried: random masks per image.
        n: backgrounds of each kind: solid colours, and at most as many other images.
        search: options of the explanations, which the baseline and the leader make (for "object"
            every policy); None: none are made.
        level: confidence level of the choice, in [0.5, 1).
        seed, batch_size, progress: as in `convad_fx.explain`.
        names: of the images, for messages and results.

    Raises:
        ImageError, MaskError: no images, two alike, or masks or images that do not fit.
        PolicyError: an option out of its range.
        ConvadError: as `convert`.
    """
    _check_aim(aim, masks, search)
    if isinstance(model, MaskedModule):
        raise ModelError("the model is masked already", hint="pass the original network")
    samples = make_samples(images, masks, names)
    measurement = Measurement(
        model, samples, gamma, threshold, tried, n, seed, normalisation, batch_size, score
    )
    policies = tuple(dict.fromkeys((baseline, *(FEW if policies is None else policies))))
    return _tuned(measurement, policies, aim, search, level, progress=progress)


def _tuned(
    measurement: Measurement,
    policies: Sequence[Policy],
    aim: str,
    search: Search | None,
    level: float,
    *,
    progress: bool,
) -> Tuning:
    """Measure the policies, of which the first is the baseline, and choose one."""
    if not 0.5 <= level < 1:
        raise PolicyError(f"level must lie in [0.5, 1), not {level!r}", hint="0.95 is usual")
    samples, seed = measurement.samples, measurement.seed
    maskers = [convert(measurement.model, samples[0].x, policy) for policy in policies]
    explaining = len(maskers) if aim == "object" else 0 if search is None else 2
    total = len(samples) * (len(maskers) + explaining)
    with tqdm(total=total, unit="image", desc="tune", disable=not progress, leave=False) as bar:
        rows = measurement.on_masks(maskers, on_measured=bar.update)

        def explain_by(numbers: Iterable[int]) -> None:
            if search is None:
                return
            for k in numbers:
                rows[k] = measurement.with_explanations(
                    rows[k], maskers[k], search, on_measured=bar.update
                )

        if aim == "object":
            explain_by(range(len(maskers)))
        best, difference = _compare(rows, samples, aim, level, seed)
        leader = 0 if best is None else best.leader
        if aim == "robust":
            explain_by({0, leader})
    trials = tuple(
        Trial(
            policy,
            tuple(row),
            mean_of_known(_criterion(measured, aim) for measured in row),
            0.0 if best is None else best.wins[k],
        )
        for k, (policy, row) in enumerate(zip(policies, rows, strict=True))
    )
    return Tuning(aim, trials, leader, best, difference, float(measurement.gamma), seed)


def _compare(
    rows: Sequence[Sequence[Measured]],
    samples: Sequence[Sample],
    aim: str,
    level: float,
    seed: int,
) -> tuple[Best | None, Interval | None]:
    """The best policy and its lead over the first, on the images that have the criterion."""
    counted = [k for k in range(len(samples)) if _criterion(rows[0][k], aim) is not None]
    # By content, so that the resamples do not depend on the order of the images.
    counted.sort(key=lambda k: samples[k].digest)
    if not counted:
        return None, None
    values = np.array([[_criterion(row[k], aim) for k in counted] for row in rows], np.float64)
    best = best_of(values, level=level, seed=seed)
    lead = paired(values[best.leader], values[0], level=level, seed=seed)
    return best, lead.difference


def _check_aim(
    aim: str, masks: Sequence[Mask | Tensor | None] | None, search: Search | None
) -> None:
    if aim not in CRITERIA:
        raise PolicyError(
            f"aim must be one of {', '.join(CRITERIA)}, not {aim!r}", hint="pass 'robust'"
        )
    if aim == "object" and search is None:
        raise PolicyError("aim 'object' needs explanations", hint="pass a search")
    if aim == "object" and (masks is None or all(mask is None for mask in masks)):
        raise PolicyError(
            "aim 'object' needs true masks of the objects", hint="pass masks, or aim 'robust'"
        )


def _criterion(measured: Measured, aim: str) -> float | None:
    if aim == "robust":
        return measured.auc
    return None if measured.explained is None else measured.explained.iou
