"""How many images' worth goes through a network at once, found by timing what is to be done anyway.

A call has a cost of its own (all weights are read), and on a CPU large batches have theirs: their
tensors leave the caches, and the C library maps and unmaps their memory at every call. Which weighs
more depends on the network and the machine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

#: Boxes have two cells at least at every level, hidden boxes two tiles, and compiled code gets two
#: masks at least: torch.compile takes 1 for a constant, and would compile again.
LEAST = 2
#: From so many masks on torch.compile makes another version.
LARGE = 16


@dataclass(slots=True)
class BatchSize:
    """How many whole images' worth of boxes go through the network at once.

    A fixed number, or found by trying several, as far as `most` and the masks at hand allow them,
    in turn: the largest that is about as fast per image as the fastest.

    >>> size = BatchSize(most=64)
    >>> while size.found is None:
    ...     n = size.of(share=1.0, masks=1000)
    ...     size.record(n, 0.2 + 0.1 * n)             # a call costs 0.2 s, an image 0.1 s
    >>> size.found, round(size.call)                  # a call costs as much as two images
    (32, 2)

    Attributes:
        most: as many as memory allows.
        fixed: the number asked for, if one was.
        sizes: those that are tried.
        usual: what a call costs, in images, as long as nothing says otherwise.
        tried: how often each size was timed.
        found: what was fastest, once every size was timed often enough.
        met: what has run before: ways of running, for small and for large batches.
        calls: images' worth, and seconds for each, of the last calls.
    """

    most: int
    fixed: int | None = None
    sizes: tuple[int, ...] = (4, 8, 16, 32)
    usual: float = 0.3
    tried: dict[int, int] = field(default_factory=dict)
    found: int | None = None
    met: set[tuple[Any, ...]] = field(default_factory=set)
    calls: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=100))
    _ABOUT: ClassVar = 0.97
    _TIMES: ClassVar = 3
    _FULL: ClassVar = 0.7  # so much of a size has to be there for its time to count
    _TRUST: ClassVar = 0.1  # in what is usual, beside one call
    _AT_MOST: ClassVar = 15  # times the usual: more than that is noise

    @classmethod
    def on_gpu(cls, most: int) -> BatchSize:
        """On a GPU a call takes milliseconds, whatever its size, in which it does many images.

        >>> BatchSize.on_gpu(512).of(share=1.0, masks=1000)
        64
        """
        return cls(most, sizes=(64, 256), usual=64.0)

    @property
    def _sizes(self) -> list[int]:
        return [size for size in self.sizes if size <= self.most] or [self.most]

    def _worth(self, images: float) -> list[int]:
        """Sizes that so many images fill."""
        return [size for size in self._sizes if images >= self._FULL * size]

    def of(self, share: float, masks: int) -> int:
        """How many boxes of this share of the image, of so many that are there, at once."""
        if self.fixed is not None:
            return self.fixed
        return _boxes(self._next(share * masks), share)

    def most_of(self, share: float) -> int:
        """How many at once there may be, as far as is known: more than while sizes are tried."""
        if self.fixed is not None:
            return self.fixed
        return _boxes(self._sizes[-1] if self.found is None else self.found, share)

    def _next(self, images: float) -> int:
        """The best known size, or of those that so many images fill the one timed least often."""
        if self.found is not None:
            return self.found
        timed = {size: self.tried.get(size, 0) for size in self._worth(images)}
        if timed and min(timed.values()) < self._TIMES:
            return min(timed, key=timed.__getitem__)
        return self._fastest(list(timed)) if timed else self._sizes[0]

    def record(self, images: float, seconds: float) -> None:
        """What a call took, for so many whole images' worth."""
        self.calls.append((images, seconds / images))
        filled = self._worth(images)
        if self.fixed is not None or self.found is not None or not filled:
            return
        self.tried[filled[-1]] = self.tried.get(filled[-1], 0) + 1
        if all(self.tried.get(size, 0) >= self._TIMES for size in self._sizes):
            self.found = self._fastest(self._sizes)

    def _fastest(self, sizes: list[int]) -> int:
        """The largest that is about as fast per image as the fastest.

        Where large batches cost more they cost much more, which a few timings show; where they cost
        less, it is little, and noise would often hide it.
        """
        fit = self._fit()
        each = {n: float(fit @ _features(float(n))) for n in sizes}
        return max(n for n in each if each[n] * self._ABOUT <= min(each.values()))

    @property
    def call(self) -> float:
        """What a call costs, whatever its size, as a share of what an image costs."""
        if not self.calls:
            return self.usual
        call, image, _ = self._fit()
        most = self._AT_MOST * self.usual
        if image > 0:
            return float(np.clip(call / image, 0.02, most))
        return most if call > 0 else self.usual

    def halve(self, share: float, masks: int) -> None:
        """So many boxes of this share of the image did not fit."""
        if self.fixed is not None:
            self.fixed = max(1, masks // 2)
        else:
            self.found = self.most = max(1, int(share * masks / 2))

    def _fit(self) -> NDArray[np.float64]:
        """Seconds for a call, for an image, and for how many other images there are with it.

        All >= 0, with the least sum of squares of relative errors of the seconds per image: a call
        that took far too long, since something was compiled, hardly counts. Calls that are all
        alike do not tell the three apart: two more rows then say what to expect.
        """
        images, each = np.array(self.calls).T
        middle = np.median(each)
        expected = np.array([[1.0, -self.usual, 0.0], [0.0, 0.0, self.sizes[-1]]])
        rows = np.concatenate([(_features(images) / each).T, self._TRUST * expected / middle])
        found: NDArray[np.float64]
        found, _ = optimize.nnls(rows, np.append(np.ones_like(each), np.zeros(2)))
        return found


def _boxes(images: int, share: float) -> int:
    """Of this share of an image, as many as make so many images."""
    return 1 if images == 1 else max(LEAST, min(round(images / max(share, 0.02)), 8 * images))


def _features(images: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the seconds per image, in a call on so many."""
    images = np.asarray(images)
    return np.stack([1 / images, np.ones_like(images), images])


def marked(t: Tensor, *axes: int) -> Tensor:
    """Tell torch.compile, should it be used, that these sizes vary: it then compiles once.

    Args:
        axes: of the tensor; if there are none, the batch's.
    """
    for axis in axes or (0,):
        if t.shape[axis] > 1:
            torch._dynamo.maybe_mark_dynamic(t, axis)
    return t


def rows_of(x: Tensor, chosen: list[int]) -> Tensor:
    """Images of these masks; the one image, if all have the same."""
    return x if x.shape[0] == 1 else marked(x[chosen])
