"""Masks on whole images: for any network and any mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convad_fx.engine.batch_size import BatchSize
from convad_fx.engine.bucketing import Size
from convad_fx.engine.chunk import Chunk, mark_dynamic, rows_of


class WholeStrategy:
    """Calls the network itself."""

    name = "whole"

    def __init__(self, network: Callable[..., Any], chunk: Chunk, batch: BatchSize) -> None:
        self.network, self.chunk, self.batch = network, chunk, batch
        self.costs = [1.0] * len(chunk)

    def groups(self, members: list[int]) -> dict[Size, list[int]]:
        """One group of all masks."""
        return {tuple(self.chunk.x.shape[2:]): members}

    def share(self, size: Size) -> float:  # noqa: ARG002
        """A mask costs all of the arithmetic."""
        return 1.0

    def key(self, size: Size) -> tuple[Any, ...]:  # noqa: ARG002
        """The same for images of all sizes."""
        return (self.name,)

    def call(self, size: Size, members: list[int]) -> tuple[Any, ...]:  # noqa: ARG002
        """The network, images, masks."""
        masks = mark_dynamic(self.chunk.masks[members])
        return self.network, rows_of(self.chunk.x, members), masks
