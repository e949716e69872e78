"""Choose a strategy for each mask: the one that computes least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convad_fx.compiler.lowering.strategies import Strategies
from convad_fx.engine.batch_size import BatchSize
from convad_fx.engine.batching import BatchRunner
from convad_fx.engine.box import BoxStrategy
from convad_fx.engine.chunk import Chunk
from convad_fx.engine.memory import free_bytes, unless_out_of_memory
from convad_fx.engine.patch import PatchStrategy
from convad_fx.engine.probe import StrategyProbe
from convad_fx.engine.strategy import Group, Parts, groups_of
from convad_fx.engine.tile import TILE_BATCH_WEIGHT, TileStrategy
from convad_fx.engine.whole import WholeStrategy

#: Below this, planning tiles costs more than it saves.
MIN_MASKS_FOR_TILING = 32
#: Masks tried first, to see whether masks share tiles at all.
PROBE_SIZE = 64
#: Many masks share at most this many times as much as `PROBE_SIZE` of them.
MAX_SHARING_GAIN = 2

Selected = tuple[BoxStrategy, PatchStrategy, TileStrategy | None]


@dataclass(slots=True)
class Chooser:
    """Chooses strategies in one call of `evaluate`.

    Masks run on boxes or whole images; those that hide little, on patches; and if that is less
    work, all of them, or all that are not on patches, share tiles.

    Args:
        network: ``(x, mask) -> logits``, on whole images.
        sizes: batch sizes by strategy.
        disabled: names of strategies not to use, for measurements.

    Attributes:
        tiling_rejected: masks of this call share too little to look for tiles again.
    """

    network: Callable[..., Any]
    strategies: Strategies
    parts: Parts
    x: Tensor
    sizes: Mapping[str, BatchSize]
    runner: BatchRunner
    probe: StrategyProbe
    disabled: frozenset[str] = frozenset()
    tiling_rejected: bool = field(default=False, init=False)

    def choose(self, chunk: Chunk) -> Iterator[Group]:
        """Groups of masks, to be evaluated in this order."""
        whole = WholeStrategy(self.network, chunk, self.sizes["box"])
        rows = list(range(len(chunk)))
        image_size = self.strategies.box.image_size
        if tuple(chunk.x.shape[2:]) != image_size or not self.probe.pays("box", len(chunk)):
            yield from groups_of(whole, rows)
            return
        selected = unless_out_of_memory(
            partial(self._select, chunk), self.x.device, smallest=len(chunk) == 1
        )
        if selected is None:  # no memory for the activities of so many masks
            for half in torch.tensor(rows).tensor_split(2):
                yield from self.choose(chunk.take(half.tolist()))
            return
        box, patch, tile = selected
        yield from groups_of(patch, sorted(patch.members))
        if tile is not None:
            self.runner.work.area += tile.tile_area
            yield from groups_of(tile, tile.members)
            return
        rest = [row for row in rows if row not in patch.members]
        for size, members in box.groups(rest).items():
            yield Group(whole if size == box.whole else box, size, members)

    def _select(self, chunk: Chunk) -> Selected:
        """Strategies for the masks of a chunk, ready to be called."""
        with self.probe.selecting("box", len(chunk)):
            box = BoxStrategy(
                self.strategies.box,
                self.parts,
                chunk,
                self.sizes["box"],
                enabled="box" not in self.disabled,
            )
            patch = PatchStrategy(
                self.strategies.patch,
                {} if "patch" in self.disabled else self.parts,
                chunk,
                self.sizes["patch"],
                otherwise=box.costs,
                call_cost=self.sizes["box"].call_cost,
            )
        tile = self._share_tiles(box, patch)
        patch.prepare(without=[] if tile is None else tile.members)
        return box, patch, tile

    def _share_tiles(self, box: BoxStrategy, patch: PatchStrategy) -> TileStrategy | None:
        """Tiles, computed, if that is less work for all masks, or for those not on patches."""
        possible = "tile_rest" in self.parts and "tile" not in self.disabled and len(self.x) == 1
        if not possible or self.runner.dtype is not None or self.tiling_rejected:
            return None
        everything = list(range(len(box.chunk)))
        rest = [k for k in everything if k not in patch.members]
        for members in (everything, rest) if patch.members else (everything,):
            enough = len(members) >= MIN_MASKS_FOR_TILING
            if not enough or not self.probe.pays("tile", len(members)):
                return None
            tile = unless_out_of_memory(
                partial(self._computed_tiles, box, patch.costs, members), self.x.device
            )
            if tile is not None:
                return tile
        self.tiling_rejected = True
        return None

    def _computed_tiles(
        self, box: BoxStrategy, otherwise: list[float], members: list[int]
    ) -> TileStrategy | None:
        plan, parts, batch = self.strategies.tile, self.parts, self.sizes["tile"]
        with self.probe.selecting("tile", len(members)):
            if len(members) >= 2 * PROBE_SIZE:
                few = TileStrategy(plan, parts, box, batch, otherwise, members[:PROBE_SIZE])
                if few.saves < few.tile_cost / MAX_SHARING_GAIN:
                    return None
            tile = TileStrategy(plan, parts, box, batch, otherwise, members)
            if not self._tiling_pays(tile):
                return None
        tile.compute_tiles(self.runner, self._stage_sizes)
        return tile

    @property
    def _stage_sizes(self) -> list[BatchSize]:
        return [self.sizes[f"tile stage {i}"] for i in range(len(self.strategies.tile.stages))]

    def _tiling_pays(self, tile: TileStrategy) -> bool:
        """Whether it is less work, and fits into memory."""
        stages = zip(tile.tiles.counts, self._stage_sizes, strict=True)
        calls = sum(-(-n // size.largest_for_boxes(TILE_BATCH_WEIGHT)) for n, size in stages)
        # a call runs part of the network; timed calls on boxes say little about it
        call_cost = self.sizes["box"].default_call_cost / (1 + len(tile.tiles.counts))
        held = tile.tiles.peak_values * self.x.element_size()
        fits = held < free_bytes(self.x.device) / 2
        return fits and tile.saves > tile.tile_cost + calls * call_cost
