"""Hashes of masks, so that identical ones are evaluated once."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

#: Seed of the random factors.
SEED = 0
#: Masks hashed at once, which bounds the memory: about a byte for each cell of each mask.
MASKS_AT_ONCE = 64


def mask_hashes(masks: Tensor) -> list[tuple[int, int]]:
    """Two 64-bit hashes of each mask (K, ...), bool.

    >>> masks = torch.tensor([[True, False], [False, True], [True, False]])
    >>> a, b, c = mask_hashes(masks)
    >>> a == c, a == b
    (True, False)

    Computed on the device of the masks; only the hashes leave a GPU. Each is the sum of 32-cell
    words times random numbers, modulo 2^64: two different masks share one hash with probability
    2^-33 at most, and both with 2^-66.
    """
    sums = torch.cat([_sums(part) for part in torch.split(masks.flatten(1), MASKS_AT_ONCE)])
    return [(first, second) for first, second in sums.tolist()]


def _sums(masks: Tensor) -> Tensor:
    """(K, cells) -> (K, 2)."""
    cells = masks.view(torch.uint8).clamp(max=1)  # a copy; any byte but 0 may be True
    cells = F.pad(cells, (0, -cells.shape[1] % 64)).contiguous()
    parts = cells.view(torch.int64).chunk(8, 1)  # eight cells of a byte each
    packed = parts[0].clone()
    for bit in range(1, 8):
        packed |= parts[bit] << bit
    words = packed.view(torch.int32)
    factors = _random_factors(words.shape[1], masks.device)
    return torch.stack([(words * row).sum(1) for row in factors], 1)


@functools.lru_cache(maxsize=8)
def _random_factors(words: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    bounds = torch.iinfo(torch.int64)
    shape = (2, words)
    drawn = torch.randint(bounds.min, bounds.max, shape, generator=generator, device="cpu")
    return drawn.to(device)
