"""Hashes of all that a tile depends on, so that tiles that masks share are computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convad_fx.compiler.lowering.tile import TilePlan, TileRead
from convad_fx.engine.mask_hash import SEED

Hashes: TypeAlias = NDArray[np.uint64]
Bytes: TypeAlias = NDArray[np.uint8]
Indices: TypeAlias = NDArray[np.int64]


class TileHasher:
    """Hashes tiles by their place and by the patches of activities that they depend on.

    Eight cells of a line are packed into a byte. The hash of a patch is the sum of its bytes times
    random numbers, modulo 2^64: those of two different patches are equal with probability 2^-57.

    Args:
        shapes: (C, *grid) of each activity that differs between masks, by its number.
    """

    def __init__(self, plan: TilePlan, shapes: Mapping[int, Sequence[int]]) -> None:
        self.plan = plan
        self._random = np.random.default_rng(SEED)
        self._place_hashes = [self._drawn(1, *plan.counts) for _ in plan.stages]
        reads = dict.fromkeys(read for stage in plan.stages for read in stage.depends)
        self._read_factors = {
            r: self._drawn() | np.uint64(1) for r in reads if r.activity in shapes
        }
        self._byte_factors = {
            (read.activity, read.axes): self._drawn(
                *_packed(np.empty((1, *shapes[read.activity]), np.bool_), read.axes).shape
            )
            for read in reads
        }

    def _drawn(self, *shape: int) -> Hashes:
        drawn: Hashes = self._random.integers(0, 1 << 64, shape, np.uint64)
        return drawn

    def hashes(self, activities: Mapping[int, Tensor], masks: int) -> list[Hashes]:
        """(K, *tiles) for each stage, from the activities (K, C, *grid) of K masks."""
        lines = {}
        for key, factors in self._byte_factors.items():
            activity, axes = key
            packed = _packed(activities[activity].cpu().numpy(), axes)
            lines[key] = packed, _cumulative(packed * factors)
        found = []
        for stage, places in zip(self.plan.stages, self._place_hashes, strict=True):
            hashes = np.broadcast_to(places, (masks, *self.plan.counts))
            for read in stage.depends:
                if (key := (read.activity, read.axes)) in lines:
                    patches = self._patch_sums(*lines[key], self._byte_factors[key], read)
                    hashes = hashes + self._read_factors[read] * patches
            found.append(hashes)
        return found

    def _patch_sums(self, packed: Bytes, sums: Hashes, factors: Hashes, read: TileRead) -> Hashes:
        """Sums over patches, (K, *tiles), from the bytes and the cumulative sums of lines."""
        if not read.axes:
            result = sums[-1]
        else:
            first, end = self._spans(read, -1, 8 * len(packed))
            low = np.minimum(first // 8, len(packed) - 1)  # a patch may lie outside the grid
            high = np.maximum(end - 1, 0) // 8
            before = np.uint8(255) >> (first % 8).astype(np.uint8)  # bits start at the highest
            after = np.uint8(255) << (7 - (end - 1) % 8).astype(np.uint8)
            after[end <= first] = 0
            alone = low >= high
            shape = (-1, *[1] * (packed.ndim - 1))
            starts = packed[low] & np.where(alone, before & after, before).reshape(shape)
            ends = packed[high] & np.where(alone, np.uint8(0), after).reshape(shape)
            result = sums[high] - sums[np.minimum(low + 1, high)]
            result += starts * factors[low]
            result += ends * factors[high]
        for i in reversed(range(len(read.axes) - 1)):
            lines = np.moveaxis(result, -1, 0)
            first, end = self._spans(read, i, len(lines))
            result = np.stack([lines[a:b].sum(0) for a, b in zip(first, end, strict=True)])
        tiles = len(read.axes)
        result = np.moveaxis(result, tiles, 0)
        result = result.sum(tuple(range(1 + tiles, result.ndim)))
        missing = [1 + axis for axis in range(len(self.plan.counts)) if axis not in read.grid]
        return np.expand_dims(result, missing)

    def _spans(self, read: TileRead, i: int, cells: int) -> tuple[Indices, Indices]:
        """Where the patches of all tiles start and end along an axis, inside the grid."""
        n = self.plan.tile[read.grid[i]] // read.strides[i]
        low, high = read.reach[i]
        start = np.arange(self.plan.counts[read.grid[i]]) * n
        return (start - low).clip(0, cells), (start + n + high).clip(0, cells)


def _packed(activity: NDArray[np.bool_], axes: tuple[int, ...]) -> Bytes:
    """(K, C, *grid) -> (last of the axes, K, *others, *axes before), eight of the last a byte."""
    others = [axis for axis in range(1, activity.ndim) if axis not in axes]
    packed = np.packbits(activity.transpose(0, *others, *axes), axis=-1)
    return np.ascontiguousarray(np.moveaxis(packed, -1, 0))


def _cumulative(values: Hashes) -> Hashes:
    """Sums over the first 0, 1, ... along the first axis."""
    sums = np.zeros((1 + len(values), *values.shape[1:]), np.uint64)
    for before, line, after in zip(sums[:-1], values, sums[1:], strict=True):
        np.add(before, line, out=after)  # several times faster than cumsum along the first axis
    return sums
