"""Numbers that stand for masks, so that identical ones are asked once."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

#: Of random numbers.
SEED = 0


def fingerprints(masks: Tensor) -> list[tuple[int, int]]:
    """Two numbers for each mask (K, ...), bool: the same for the same cells.

    >>> masks = torch.tensor([[True, False], [False, True], [True, False]])
    >>> a, b, c = fingerprints(masks)
    >>> a == c, a == b
    (True, False)

    Made where the masks are: these numbers are all that leaves a GPU. Each is the sum of words of
    32 cells times random numbers, modulo 2^64: of two masks that differ it is the same with a
    probability of 2^-33 at most, and both are with 2^-66.
    """
    cells = masks.flatten(1)
    cells = F.pad(cells, (0, -cells.shape[1] % 64)).contiguous()  # a copy: memory of its own
    eight = cells.view(torch.uint8).view(torch.int64).chunk(8, 1)  # cells of a byte each
    packed = eight[0].clone()
    for bit in range(1, 8):
        packed |= eight[bit] << bit
    words = packed.view(torch.int32)
    sums = [(words * factors).sum(1).tolist() for factors in _random(words.shape[1], masks.device)]
    return list(zip(*sums, strict=True))


@functools.lru_cache(maxsize=8)
def _random(words: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    bounds = torch.iinfo(torch.int64)
    drawn = torch.randint(bounds.min, bounds.max, (2, words), generator=generator)
    return drawn.to(device)
