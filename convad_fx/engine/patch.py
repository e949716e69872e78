"""Masks that hide little, on the patches that what they hide can change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convad_fx.compiler.lowering.grid_map import GridMap
from convad_fx.compiler.lowering.patch import PatchPlan
from convad_fx.engine.batch_size import LEAST, BatchSize, marked
from convad_fx.engine.box import Parts, spans
from convad_fx.engine.bucketing import grouped

#: Arithmetic on patches costs so much more than on whole grids, for what is copied.
COPYING = 1.2


class Patched:
    """Those masks of one image that hide so little that recomputing what changes costs less.

    Args:
        otherwise: what each mask would cost, in images.
        call: what a call costs, in images.

    Attributes:
        costs: the same of each mask, now that some go on patches.
        members: those, by number.
    """

    def __init__(
        self,
        reuse: PatchPlan,
        parts: Parts,
        x: Tensor,
        masks: Tensor,
        otherwise: list[float],
        call: float,
    ) -> None:
        self.reuse, self.parts, self.x, self.masks = reuse, parts, x, masks
        self.costs = otherwise
        self.members: set[int] = set()
        self.sizes: list[tuple[int, ...]] = []  # of the hidden boxes, where patches are possible
        self.kept: tuple[Tensor, ...] = ()
        if "patch" not in parts or x.shape[0] > 1:
            return
        tile = torch.tensor(self.reuse.tile)
        tiles = -(-torch.tensor(self.reuse.image_size) // tile)
        hidden = GridMap(tuple(range(2, x.dim())), (1,) * (x.dim() - 2), ((0, 0),) * (x.dim() - 2))
        low, high = torch.zeros(2, len(masks), x.dim() - 2, dtype=torch.long)
        for i, first, end in spans(~masks, hidden):
            low[:, i], high[:, i] = first, end
        low = torch.minimum(low // tile, tiles - 1)  # nothing hidden: any tile
        size = torch.minimum((-(-high // tile) - low).clamp(min=LEAST), tiles)
        self.tiles, self.tile, self.start = tiles, tile, low
        self.sizes = [tuple(row) for row in (size * tile).tolist()]
        costs = self.reuse.work.shares(np.array(self.sizes)).tolist()
        gains = {k: o - COPYING * c for k, (o, c) in enumerate(zip(otherwise, costs, strict=True))}
        better = {k: gain for k, gain in gains.items() if gain > 0}
        # without a mask the network has to run once more; a call of its own for each
        if sum(better.values()) > 1 + 2 * call:
            self.members = set(better)
            self.costs = [o - better.get(k, 0.0) for k, o in enumerate(otherwise)]

    def prepare(self, gone: Iterable[int]) -> None:
        """Make ready for what patches are put amid and cut from, of all members but those gone."""
        self.members.difference_update(gone)
        if self.members:
            self.kept = self.parts["patch_base"](self.x, None)
            self.activities = self.parts["patch_activities"](self.x, self.masks)

    def share(self, size: tuple[int, ...]) -> float:
        """Of the whole image's arithmetic."""
        return self.reuse.work.share(size)

    def groups(self, batch: BatchSize) -> dict[tuple[int, ...], list[int]]:
        """Size of hidden box -> the masks that run on its patches."""
        members = sorted(self.members)
        return grouped(members, self.sizes, self.reuse.work.shares, batch.call, self.reuse.tile)

    def asks(self, size: tuple[int, ...]) -> Callable[[list[int]], tuple[Any, ...]]:
        """What to call for some masks, and with what."""
        most = self.tiles - torch.tensor(size) // self.tile
        first = torch.minimum(self.start, most) * self.tile

        def ask(chosen: list[int]) -> tuple[Any, ...]:
            places = _places(first[chosen], size, self.reuse.tile, self.x.device)
            cut = [a if len(a) == 1 else marked(a[chosen]) for a in self.activities]
            return self.parts["patch"], self.x, *places, *cut, *self.kept

        return ask


def _places(
    first: Tensor, size: tuple[int, ...], tile: tuple[int, ...], device: torch.device
) -> list[Tensor]:
    """For each grid axis the image positions of hidden boxes, (N, tiles, size of a tile)."""
    found = []
    for axis, (n, t) in enumerate(zip(size, tile, strict=True)):
        steps = torch.arange(n).reshape(n // t, t)
        found.append(marked((first[:, axis, None, None] + steps).to(device), 0, 1))
    return found
