"""Evaluate identical masks once, and the empty mask once for all images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convad_fx.engine.chunk import MASKS_PER_CHUNK, Chunk
from convad_fx.engine.collect import Answers
from convad_fx.engine.mask_hash import mask_hashes
from convad_fx.engine.weight_versions import WeightVersions
from convad_fx.errors import MaskError


class UniqueMasks:
    """Numbers the different masks of a call, in order of first appearance.

    >>> unique = UniqueMasks(torch.zeros(1, 3, 2, 2))
    >>> nothing, all = torch.zeros(1, 1, 2, 2).bool(), torch.ones(1, 1, 2, 2).bool()
    >>> len(unique.new(torch.cat([nothing, all, nothing]))), unique.rows
    (2, [0, 1, 0])

    Attributes:
        rows: the number of each mask so far.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.rows: list[int] = []
        self._numbers: dict[tuple[int, ...], int] = {}

    def new(self, masks: Tensor) -> Chunk:
        """The masks (K, 1, *grid) that are not among those before; with an image each, all.

        Raises:
            MaskError: several images, but not one for each mask.
        """
        images = len(self.x)
        if images not in (1, len(masks)) or (images > 1 and self.rows):
            raise MaskError(
                f"{len(masks)} masks for {images} images",
                hint=f"one image, or as many as masks (at most {MASKS_PER_CHUNK})",
            )
        fresh = []
        for i, hashes in enumerate(mask_hashes(masks)):
            key = hashes if images == 1 else (i, *hashes)
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                fresh.append(i)
            self.rows.append(self._numbers[key])
        return Chunk(self.x, masks, self.rows[-len(masks) :]).take(fresh)


class EmptyMaskCache:
    """Answers to the mask that keeps nothing, which are those for any image.

    They hold as long as the weights stay; after writing to weights through ``.data``, which cannot
    be detected, they are stale.
    """

    def __init__(self) -> None:
        self.answers: dict[Any, Tensor] = {}
        self._weights: WeightVersions | None = None

    def split(self, chunk: Chunk, key: Any, network: Callable[..., Any]) -> tuple[Chunk, list[int]]:
        """The masks to evaluate, and the numbers of all that are empty.

        If no answer is cached under `key`, the first empty mask is among those to evaluate.
        """
        kept = chunk.masks.view(torch.uint8).flatten(1).amax(1) > 0  # several times as fast as any
        if kept.all():
            return chunk, []
        weights = WeightVersions.of(network)
        if self._weights is None or weights != self._weights:
            self.answers.clear()
        self._weights = weights
        empty = (~kept).nonzero().flatten().tolist()
        if key not in self.answers:
            kept[empty[0]] = True
        rest = chunk.take(kept.nonzero().flatten().tolist())
        return rest, [chunk.numbers[i] for i in empty]

    def answer(self, empty: list[int], key: Any, answers: Answers) -> None:
        """Add the answers to empty masks, of which the first was evaluated if none was cached."""
        if key not in self.answers:
            self.answers[key] = answers.of(empty.pop(0))
        cached = self.answers[key]
        answers.add(cached.expand(len(empty), *cached.shape[1:]), empty)
