"""What a set of pixels is to achieve: `Suffices` when kept alone, `Changes` when hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.evaluator import Mask, Scores


class Goal(Protocol):
    """A condition on a set of pixels that one evaluation of the network decides."""

    @property
    def target(self) -> int:
        """The explained class."""
        ...

    def mask(self, chosen: Mask) -> Mask:
        """The mask (H, W), True = kept, that decides whether the pixels `chosen` reach the goal."""
        ...

    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """(K,): whether the goal is reached, given the scores of K such masks."""
        ...


@dataclass(frozen=True, slots=True)
class Suffices:
    """The pixels, kept alone, give `target` with a confidence of at least `min_confidence`."""

    target: int
    min_confidence: float

    def mask(self, chosen: Mask) -> Mask:
        """The pixels alone."""
        return chosen

    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """The class with enough confidence."""
        return scores.passing(self.target, self.min_confidence)


@dataclass(frozen=True, slots=True)
class Changes:
    """Without the pixels, the network predicts another class than `target`."""

    target: int

    def mask(self, chosen: Mask) -> Mask:
        """All the other pixels."""
        return ~chosen

    def reached(self, scores: Scores) -> NDArray[np.bool_]:
        """Any other class."""
        changed: NDArray[np.bool_] = scores.top != self.target
        return changed
