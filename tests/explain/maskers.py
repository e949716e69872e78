"""Maskers whose reasons are known, because they are written here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from convad_fx.explain import Search
from convad_fx.explain.responsibility import Box

LABELS = ["nothing", "thing", "other"]
IMAGE = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
LEFT, RIGHT = Box(4, 14, 6, 16), Box(30, 42, 44, 56)
QUICK = Search(partitions=6, max_splits=6)


class Counting:
    """A masker that remembers what it was asked: three classes, 1 is what `strength` argues for."""

    def __init__(self, strength: Callable[[Tensor], Tensor]) -> None:
        self.strength = strength
        self.masks: list[Tensor] = []
        self.calls: list[int] = []

    def __call__(self, x: Tensor, mask: Tensor, /) -> Tensor:
        assert x.shape[0] == 1
        assert mask.dtype == torch.bool
        assert mask.shape[1:] == (1, *x.shape[2:])
        assert torch.is_inference_mode_enabled()
        self.masks += list(mask[:, 0].clone())
        self.calls.append(len(mask))
        for_it = 8.0 * self.strength(mask[:, 0].float())
        against = torch.full_like(for_it, 4.0)
        return torch.stack([against, for_it, against - 4], 1)


def share(box: Box) -> Callable[[Tensor], Tensor]:
    """How much of the box is kept."""
    return lambda masks: masks[:, box.slices[0], box.slices[1]].mean((1, 2))


def whole(box: Box) -> Callable[[Tensor], Tensor]:
    """1 if all of the box is kept, else 0."""
    return lambda masks: masks[:, box.slices[0], box.slices[1]].amin((1, 2))


def both(*parts: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda masks: torch.stack([part(masks) for part in parts]).amin(0)


def either(*parts: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda masks: torch.stack([part(masks) for part in parts]).amax(0)


def always(masks: Tensor) -> Tensor:
    return torch.ones(len(masks))
