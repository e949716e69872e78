"""Numbers that stand for masks, so that identical ones are asked once."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

#: Of random numbers.
SEED = 0
#: Masks of which words and products are in memory at once.
AT_ONCE = 64


def mask_hashes(masks: Tensor) -> list[tuple[int, int]]:
    """Two numbers for each mask (K, ...), bool: the same for the same cells.

    >>> masks = torch.tensor([[True, False], [False, True], [True, False]])
    >>> a, b, c = fingerprints(masks)
    >>> a == c, a == b
    (True, False)

    Made where the masks are: these numbers are all that leaves a GPU. Each is the sum of words of
    32 cells times random numbers, modulo 2^64: of two masks that differ it is the same with a
    probability of 2^-33 at most, and both are with 2^-66.
    """
    sums = torch.cat([_sums(some) for some in torch.split(masks.flatten(1), AT_ONCE)])
    return [(first, second) for first, second in sums.tolist()]


def _sums(masks: Tensor) -> Tensor:
    """(K, cells) -> (K, 2)."""
    cells = masks.view(torch.uint8).clamp(max=1)  # memory of its own; any byte but 0 may be True
    cells = F.pad(cells, (0, -cells.shape[1] % 64)).contiguous()
    eight = cells.view(torch.int64).chunk(8, 1)  # cells of a byte each
    packed = eight[0].clone()
    for bit in range(1, 8):
        packed |= eight[bit] << bit
    words = packed.view(torch.int32)
    factors = _random(words.shape[1], masks.device)
    return torch.stack([(words * some).sum(1) for some in factors], 1)


@functools.lru_cache(maxsize=8)
def _random(words: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    bounds = torch.iinfo(torch.int64)
    shape = (2, words)
    drawn = torch.randint(bounds.min, bounds.max, shape, generator=generator, device="cpu")
    return drawn.to(device)
