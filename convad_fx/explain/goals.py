"""What a set of pixels is to achieve: `Suffices` when kept alone, `Changes` when hidden."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.evaluator import Evaluator, Mask
from convad_fx.explain.scores import Scores


@dataclass(frozen=True, slots=True)
class Goal(ABC):
    """A condition on a set of pixels about the class `target`, decided by one evaluation."""

    target: int

    @abstractmethod
    def mask(self, pixels: Mask) -> Mask:
        """The mask (H, W), True = kept, to evaluate for the set `pixels`."""

    @abstractmethod
    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """(K,): whether the goal is reached, given the scores of K such masks."""

    def evaluate(
        self, evaluator: Evaluator, sets: Iterable[Mask], *, full_precision: bool = False
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """(K,) each: whether K sets (H, W) reach the goal, and the target's confidence."""
        masks = map(self.mask, sets)
        scores = evaluator.scores(masks, self.target, full_precision=full_precision)
        return self.reached(scores), scores.confidence


@dataclass(frozen=True, slots=True)
class Suffices(Goal):
    """The pixels, kept alone, give `target` with a confidence of at least `min_confidence`.

    With `score_only`, another class may be predicted.
    """

    min_confidence: float
    score_only: bool = False

    def mask(self, pixels: Mask) -> Mask:
        """The pixels alone."""
        return pixels

    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """The class with enough confidence."""
        return scores.passing(self.min_confidence, score_only=self.score_only)


@dataclass(frozen=True, slots=True)
class Changes(Goal):
    """Without the pixels, the network no longer gives `target` as it does on the `whole` image.

    It predicts another class, or not this label; where the score alone counts, less than half of
    it is left (`Scores.survives`).
    """

    whole: Scores

    def mask(self, pixels: Mask) -> Mask:
        """All the other pixels."""
        return ~pixels

    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """The target is lost."""
        return ~scores.survives(self.whole)
