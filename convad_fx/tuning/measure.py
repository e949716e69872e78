"""Measurements of policies on images: the same masks and backgrounds for every policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convad_fx.errors import ImageError, MaskError, PolicyError
from convad_fx.explain import Search, explain
from convad_fx.explain.evaluator import Mask, as_batch
from convad_fx.explain.options import check_count, check_share
from convad_fx.explain.scores import ScoreChoice
from convad_fx.metrics import (
    Normalisation,
    agreement,
    backgrounds,
    localisation,
    random_masks,
    robustness,
)
from convad_fx.metrics.masks import as_array
from convad_fx.metrics.robustness import model_logits, score_of_model
from convad_fx.module import MaskedModule
from convad_fx.tuning.result import Explained, Measured


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image to tune on.

    Args:
        name: for messages and results.
        x: (1, C, H, W).
        truth: the object's true mask (H, W), or None.
        digest: of the image's values.
    """

    name: str
    x: Tensor
    truth: Mask | None
    digest: bytes

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return int(self.x.shape[2]), int(self.x.shape[3])


def make_samples(
    images: Sequence[Tensor],
    masks: Sequence[Mask | Tensor | None] | None,
    names: Sequence[str] | None,
) -> list[Sample]:
    """The images with their masks and names, all of one shape, no two alike.

    Raises:
        ImageError, MaskError, PolicyError: as `tune`.
    """
    count = len(images)
    if not count:
        raise ImageError("there are no images", hint="pass five or more, better ten")
    for argument, values in (("masks", masks), ("names", names)):
        if values is not None and len(values) != count:
            raise PolicyError(
                f"{len(values)} {argument} do not fit {count} images",
                hint="pass one for each, in order",
            )
    masks = [None] * count if masks is None else masks
    names = [f"image {k}" for k in range(1, count + 1)] if names is None else names
    samples: list[Sample] = []
    name_by_digest: dict[bytes, str] = {}
    for image, mask, name in zip(images, masks, names, strict=True):
        x = as_batch(image)
        if samples and x.shape != samples[0].x.shape:
            raise ImageError(
                f"{name} has shape {tuple(x.shape[1:])}, {samples[0].name} "
                f"{tuple(samples[0].x.shape[1:])}",
                hint="preprocess all images in the same way",
            )
        content = x.cpu().contiguous().to(torch.float64).numpy().tobytes()
        digest = blake2b(content, digest_size=16).digest()
        if digest in name_by_digest:
            raise ImageError(
                f"{name} and {name_by_digest[digest]} are the same image",
                hint="pass each once: a copy is no additional evidence",
            )
        name_by_digest[digest] = name
        samples.append(Sample(name, x, None if mask is None else _truth(mask, x, name), digest))
    return samples


def _truth(mask: Mask | Tensor, x: Tensor, name: str) -> Mask:
    try:
        truth = as_array(mask, (int(x.shape[2]), int(x.shape[3])))
    except MaskError as error:
        raise MaskError(f"the true mask of {name}: {error.what}", hint=error.hint) from error
    if not truth.any():
        raise MaskError(f"the true mask of {name} is empty", hint="pass None for it")
    return truth


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """How policies are measured on samples; the arguments are those of `tune`."""

    model: nn.Module
    samples: Sequence[Sample]
    gamma: float
    threshold: float
    tried: int
    n: int
    seed: int
    normalisation: Normalisation
    batch_size: int | str
    score: ScoreChoice = None

    def __post_init__(self) -> None:
        check_count("tried", self.tried, minimum=2, hint="64 is usual")
        check_count("n", self.n, minimum=1, hint="10 is usual")
        check_count("seed", self.seed, minimum=0, hint="pass 0")
        check_share("gamma", self.gamma, allow_zero=False, hint="0.9 is usual")
        check_share("threshold", self.threshold, allow_zero=False, hint="0.8 is usual")

    def on_masks(
        self, maskers: Sequence[MaskedModule], *, on_measured: Callable[[], object]
    ) -> list[list[Measured]]:
        """For each masked network, its agreement with the model on each sample's random masks.

        `on_measured` is called after every measurement.
        """
        rows: list[list[Measured]] = [[] for _ in maskers]
        for sample in self.samples:
            stream = int.from_bytes(sample.digest[:6], "big") + self.seed
            masks = random_masks(sample.shape, self.tried, stream)
            planted_on, target = self._backgrounds(sample), self._target(sample)
            rho: NDArray[np.float64] | None = None
            for row, masker in zip(rows, maskers, strict=True):
                result = agreement(
                    masker,
                    self.model,
                    sample.x,
                    target,
                    masks=masks,
                    rho=rho,
                    gamma=self.gamma,
                    threshold=self.threshold,
                    on=planted_on,
                    batch_size=self.batch_size,
                    score=self.score,
                )
                rho = result.rho
                row.append(
                    Measured(
                        sample.name,
                        _none_if_nan(result.auc),
                        result.called_sufficient,
                        _none_if_nan(result.robust_given_sufficient),
                    )
                )
                on_measured()
        return rows

    def with_explanations(
        self,
        row: Sequence[Measured],
        masker: MaskedModule,
        search: Search,
        *,
        on_measured: Callable[[], object],
    ) -> list[Measured]:
        """The measurements of one masked network, with an explanation of each sample."""
        explained: list[Measured] = []
        for measured, sample in zip(row, self.samples, strict=True):
            explained.append(replace(measured, explained=self._explained(sample, masker, search)))
            on_measured()
        return explained

    def _explained(self, sample: Sample, masker: MaskedModule, search: Search) -> Explained:
        """The explanation of a sample, its robustness, and its overlap with the object."""
        why = explain(
            masker,
            sample.x,
            self._target(sample),
            self.gamma,
            seed=self.seed,
            search=search,
            batch_size=self.batch_size,
            score=self.score,
        )
        rho = robustness(
            self.model,
            sample.x,
            why.mask,
            why.target,
            self._backgrounds(sample),
            batch_size=self.batch_size,
            score=self.score,
        ).rho
        iou = energy = None
        if sample.truth is not None:
            overlap = localisation(why.mask, sample.truth, why.responsibility)
            iou = overlap.iou
            energy = None if overlap.energy is None else _none_if_nan(overlap.energy)
        return Explained(why.size, rho, why.sufficient, iou, energy)

    def _backgrounds(self, sample: Sample) -> list[Tensor]:
        """Colours and other images; independent of the order of the samples."""
        colours = backgrounds(sample.x, n=self.n, seed=self.seed, normalisation=self.normalisation)
        others = sorted((s for s in self.samples if s is not sample), key=lambda s: s.digest)
        if not others:
            return list(colours)
        on_images = backgrounds(
            sample.x,
            "images",
            min(self.n, len(others)),
            others=[s.x for s in others],
            seed=self.seed,
        )
        return [*colours, *on_images]

    def _target(self, sample: Sample) -> int:
        answer = model_logits(self.model, [sample.x], 1)
        return score_of_model(self.model, sample.x, answer, self.score)(answer, None).target


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
