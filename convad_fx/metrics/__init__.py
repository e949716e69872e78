"""Measures of explanations: plain functions on any `(x, mask) -> logits` and the original model.

>>> import torch
>>> from convad_fx import metrics
>>> from convad_fx.explain import explain, occlusion
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
>>> masker, image = occlusion(model, 0.5), torch.rand(3, 8, 8)
>>> why = explain(masker, image)
>>> rho = metrics.robustness(model, image, why.mask, why.target, n=20).rho
>>> 0 <= rho <= 1 and metrics.size(why.mask) == why.size
True

docs/metrics.md lists which function answers which question. All functions evaluate in batches, and
everything random is seeded.
"""

from convad_fx.explain.paint import Normalisation
from convad_fx.metrics.agreement import Agreement, agreement, auc, rank_correlation
from convad_fx.metrics.curves import Curve, deletion, insertion
from convad_fx.metrics.failure_signs import Signs, signs
from convad_fx.metrics.localisation import Localisation, localisation
from convad_fx.metrics.masks import random_masks
from convad_fx.metrics.robustness import (
    Robustness,
    backgrounds,
    robustness,
    robustness_by_kind,
)
from convad_fx.metrics.statistics import Best, Interval, Paired, best_of, bootstrap, paired
from convad_fx.metrics.sufficiency import Confidence, Minimality, confidence, minimality, size

__all__ = [
    "Agreement",
    "Best",
    "Confidence",
    "Curve",
    "Interval",
    "Localisation",
    "Minimality",
    "Normalisation",
    "Paired",
    "Robustness",
    "Signs",
    "agreement",
    "auc",
    "backgrounds",
    "best_of",
    "bootstrap",
    "confidence",
    "deletion",
    "insertion",
    "localisation",
    "minimality",
    "paired",
    "random_masks",
    "rank_correlation",
    "robustness",
    "robustness_by_kind",
    "signs",
    "size",
]
