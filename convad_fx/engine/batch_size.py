"""Batch sizes, found by timing the batches that run anyway.

Every call has a fixed cost (all weights are read), and on a CPU large batches have theirs: their
tensors leave the caches, and the C library maps and unmaps their memory at every call. Which weighs
more depends on the network and the machine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convad_fx.engine.chunk import MASKS_PER_CHUNK
from convad_fx.engine.memory import free_bytes
from convad_fx.errors import PolicyError

#: Smallest size of an axis that varies: torch.compile takes 1 for a constant and compiles again.
#: So boxes have two cells on every level, hidden boxes two tiles, and compiled batches two rows.
MIN_ROWS = 2
#: From this many rows on torch.compile makes another version.
LARGE_BATCH = 16
#: Memory that one image is assumed to take, in values per image position.
VALUES_PER_POSITION = 400


@dataclass(slots=True)
class BatchSize:
    """How many whole images go through the network at once, or smaller boxes of equal total work.

    Either fixed, or the largest candidate that is about as fast per image as the fastest; until
    all are timed, candidates take turns as far as memory and the masks at hand allow.

    >>> size = BatchSize(max_images=64)
    >>> while size.best is None:
    ...     n = size.for_boxes(share=1.0, masks=1000)
    ...     size.record(n, 0.2 + 0.1 * n)             # a call costs 0.2 s, an image 0.1 s
    >>> size.best, round(size.call_cost)              # a call costs as much as two images
    (32, 2)

    Attributes:
        max_images: upper bound, from the free memory.
        fixed: the number the user asked for, if any.
        candidates: numbers of images to try.
        default_call_cost: fixed cost of a call, in images, before any was timed.
        timings: how often each candidate was timed.
        best: the chosen candidate, once each was timed often enough.
        compiled_versions: (strategy, whether the batch was large) that have run; the first run of
            each may compile and is not timed.
        recent_calls: images, and seconds per image, of the last calls.
    """

    max_images: int
    fixed: int | None = None
    candidates: tuple[int, ...] = (4, 8, 16, 32)
    default_call_cost: float = 0.3
    timings: dict[int, int] = field(default_factory=dict)
    best: int | None = None
    compiled_versions: set[tuple[Any, ...]] = field(default_factory=set)
    recent_calls: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=100))
    _TOLERANCE: ClassVar = 0.97  # of the fastest time per image, to count as fast
    _MIN_TIMINGS: ClassVar = 3  # of each candidate
    _MIN_FILL: ClassVar = 0.7  # share of a candidate that a batch has to fill to count for it
    _PRIOR_WEIGHT: ClassVar = 0.1  # of the default cost, beside one timed call
    _MAX_CALL_COST: ClassVar = 15  # times the default; larger estimates are noise

    @classmethod
    def on_gpu(cls, max_images: int) -> BatchSize:
        """Starting values for a GPU, where a call takes milliseconds, in which many images fit.

        >>> BatchSize.on_gpu(512).for_boxes(share=1.0, masks=1000)
        64
        """
        return cls(max_images, candidates=(64, 256), default_call_cost=64.0)

    @property
    def _allowed(self) -> list[int]:
        return [size for size in self.candidates if size <= self.max_images] or [self.max_images]

    def _filled(self, images: float) -> list[int]:
        """Candidates that a batch of this many images counts for."""
        return [size for size in self._allowed if images >= self._MIN_FILL * size]

    def for_boxes(self, share: float, masks: int) -> int:
        """Batch size for boxes of this share of the image, of which `masks` are left."""
        if self.fixed is not None:
            return self.fixed
        return _boxes(self._next(share * masks), share)

    def largest_for_boxes(self, share: float) -> int:
        """The largest batch that may be used, which is more than while candidates take turns."""
        if self.fixed is not None:
            return self.fixed
        return _boxes(self._allowed[-1] if self.best is None else self.best, share)

    def _next(self, images: float) -> int:
        """The best candidate, or the least timed one that this many images fill."""
        if self.best is not None:
            return self.best
        timed = {size: self.timings.get(size, 0) for size in self._filled(images)}
        if timed and min(timed.values()) < self._MIN_TIMINGS:
            return min(timed, key=timed.__getitem__)
        return self._fastest(list(timed)) if timed else self._allowed[0]

    def record(self, images: float, seconds: float) -> None:
        """Remember how long a call took whose work was that of this many whole images."""
        self.recent_calls.append((images, seconds / images))
        filled = self._filled(images)
        if self.fixed is not None or self.best is not None or not filled:
            return
        self.timings[filled[-1]] = self.timings.get(filled[-1], 0) + 1
        if all(self.timings.get(size, 0) >= self._MIN_TIMINGS for size in self._allowed):
            self.best = self._fastest(self._allowed)

    def _fastest(self, sizes: list[int]) -> int:
        """The largest that is about as fast per image as the fastest.

        Where large batches are slower they are much slower, which a few timings show; where they
        are faster, it is by little, which noise would often hide.
        """
        fit = self._fit()
        seconds = {n: float(fit @ _features(float(n))) for n in sizes}
        bound = min(seconds.values())
        return max(n for n in seconds if seconds[n] * self._TOLERANCE <= bound)

    @property
    def call_cost(self) -> float:
        """Fixed cost of a call, in images."""
        if not self.recent_calls:
            return self.default_call_cost
        call, image, _ = self._fit()
        most = self._MAX_CALL_COST * self.default_call_cost
        if image > 0:
            return float(np.clip(call / image, 0.02, most))
        return most if call > 0 else self.default_call_cost

    def halve(self, share: float, masks: int) -> None:
        """Use half of a batch that did not fit into memory."""
        if self.fixed is not None:
            self.fixed = max(1, masks // 2)
        else:
            self.best = self.max_images = max(1, int(share * masks / 2))

    def _fit(self) -> NDArray[np.float64]:
        """Seconds for a call, for an image, and for each other image in the same batch.

        All >= 0, with the least sum of squares of relative errors of the seconds per image, so
        that a call that took far too long, since it compiled, hardly counts. Calls of one size do
        not determine all three: two prior rows do.
        """
        from scipy import optimize

        images, seconds = np.array(self.recent_calls).T
        prior = np.array([[1.0, -self.default_call_cost, 0.0], [0.0, 0.0, self.candidates[-1]]])
        prior = self._PRIOR_WEIGHT * prior / np.median(seconds)
        rows = np.concatenate([(_features(images) / seconds).T, prior])
        fit: NDArray[np.float64]
        fit, _ = optimize.nnls(rows, np.append(np.ones_like(seconds), np.zeros(2)))
        return fit


def batch_size_for(x: Tensor, requested: int | str = "auto", per_mask: int = 1) -> BatchSize:
    """The batch size requested for `evaluate`, bounded by half of the free memory.

    Args:
        per_mask: items of a batch that count as one mask.

    Raises:
        PolicyError: neither "auto" nor a positive whole number.
    """
    if requested == "auto":
        bytes_each = VALUES_PER_POSITION * x[0, 0].numel() * x.element_size()
        most, fixed = free_bytes(x.device) // 2 // max(bytes_each, 1), None
        most = max(1, min(MASKS_PER_CHUNK, most))
    elif isinstance(requested, int) and not isinstance(requested, bool) and requested >= 1:
        most = fixed = requested * per_mask
    else:
        raise PolicyError(
            f"batch_size must be a positive whole number or 'auto', not {requested!r}",
            hint="'auto' tries a few sizes and keeps the fastest",
        )
    size = BatchSize.on_gpu(most) if x.is_cuda else BatchSize(most)
    size.fixed = fixed
    return size


def _boxes(images: int, share: float) -> int:
    """The number of boxes of this share of an image whose work is that of this many images."""
    return 1 if images == 1 else max(MIN_ROWS, min(round(images / max(share, 0.02)), 8 * images))


def _features(images: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of `_fit` in the seconds per image of a call on this many."""
    images = np.asarray(images)
    return np.stack([1 / images, np.ones_like(images), images])
