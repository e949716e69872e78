"""Chunks of masks: as many as are evaluated together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from convad_fx.errors import MaskError

#: Enough to fill batches for every size of box, few enough for memory.
MASKS_PER_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Chunk:
    """Different masks that are evaluated together.

    Attributes:
        x: one image (1, C, *grid), or one for each mask.
        masks: (K, 1, *grid), bool.
        numbers: of the masks, among all different masks of the call.
    """

    x: Tensor
    masks: Tensor
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: list[int]) -> Chunk:
        """These masks, with their images."""
        if len(rows) == len(self):
            return self
        x = self.x if len(self.x) == 1 else self.x[rows]
        return Chunk(x, self.masks[rows], [self.numbers[i] for i in rows])


def mask_chunks(masks: Tensor | Iterable[Tensor], x: Tensor) -> Iterator[Tensor]:
    """Masks (1, *grid) or (*grid) -> chunks (K, 1, *grid) on the image's device.

    Raises:
        MaskError: a mask of the wrong type or shape.
    """
    shape = (1, *x.shape[2:])
    if isinstance(masks, Tensor) and masks.dim() > 0:
        if not len(masks):
            return
        _check_mask(masks[0], x)
        for chunk in torch.split(masks, MASKS_PER_CHUNK):
            yield chunk.reshape(-1, *shape).to(x.device)
        return
    stream = iter(masks)
    while part := [torch.as_tensor(mask) for mask in islice(stream, MASKS_PER_CHUNK)]:
        for mask in part:
            _check_mask(mask, x)
        yield torch.stack([mask.reshape(shape) for mask in part]).to(x.device)


def _check_mask(mask: Tensor, x: Tensor) -> None:
    rank = x.dim() - 2
    expected = f"expected bool of shape (1, {', '.join(map(str, x.shape[2:]))}) each"
    if mask.dtype != torch.bool:
        raise MaskError(
            f"a mask has dtype {mask.dtype}; {expected}, True = kept", hint="pass `mask > 0.5`"
        )
    if tuple(mask.shape[-rank:]) != tuple(x.shape[2:]) or mask.numel() != x[0, 0].numel():
        raise MaskError(
            f"a mask has shape {tuple(mask.shape)}; {expected}",
            hint="masks are (K, 1, H, W) in all, of the image's size",
        )


def rows_of(t: Tensor, rows: list[int]) -> Tensor:
    """These rows of a tensor; the tensor itself if it has one row for all."""
    return t if len(t) == 1 else mark_dynamic(t[rows])


def mark_dynamic(t: Tensor, *axes: int) -> Tensor:
    """Tell torch.compile, if it is used, that these sizes vary, so that it compiles once.

    Args:
        axes: of the tensor; the batch axis if there are none.
    """
    for axis in axes or (0,):
        if t.shape[axis] > 1:
            torch._dynamo.maybe_mark_dynamic(t, axis)
    return t
