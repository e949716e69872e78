"""The checks of image and mask at the start of emitted code."""

from __future__ import annotations

import torch
from torch import Tensor

from convad_fx.compiler.kernels.gating import materialised
from convad_fx.errors import ImageError, MaskError


def checked_mask(
    x: Tensor,
    mask: Tensor | None,
    channels: int,
    size: tuple[int, ...] | None = None,
    rank: int = 4,
    like: Tensor | None = None,
) -> Tensor:
    """The mask, checked against the image: bool (N, 1, *grid). None becomes "all kept".

    Args:
        x: the image batch (N, channels, *grid).
        mask: True = kept; its batch or the image's may be 1.
        size: the only grid size the graph is valid for, if it depends on it.
        rank: number of axes of the image batch.
        like: a parameter of the network, whose dtype and device the image must have; None if the
            network converts its input.

    Raises:
        ImageError, MaskError: what was expected, what was given, what to do.
    """
    _require_image(x, channels, size, rank)
    if like is not None:
        _require_like(x, like)
    if mask is None:
        return x.new_ones((1, 1, *x.shape[2:]), dtype=torch.bool)
    _require_mask(mask, x)
    return materialised(mask)


def _require_image(x: Tensor, channels: int, size: tuple[int, ...] | None, rank: int) -> None:
    if not isinstance(x, Tensor):
        raise ImageError(
            f"the image is a {type(x).__name__}; expected a tensor (N, {channels}, ...)",
            hint="stack images with torch.stack",
        )
    if x.dim() != rank or x.shape[1] != channels:
        grid = ("length", "height, width", "depth, height, width")[rank - 3]
        raise ImageError(
            f"the image has shape {tuple(x.shape)}; expected (N, {channels}, {grid})",
            hint="add the batch axis with x[None]" if x.dim() == rank - 1 else "",
        )
    if size is not None and tuple(x.shape[2:]) != size:
        raise ImageError(
            f"the image has grid {tuple(x.shape[2:])}, but this network was converted for {size}"
            " and uses sizes that depend on it",
            hint="convert again with an example of the new size",
        )


def _require_like(x: Tensor, like: Tensor) -> None:
    if x.device != like.device:
        raise ImageError(
            f"the image is on {x.device}, the network on {like.device}",
            hint="use x.to(device), or masked.to(device)",
        )
    if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ImageError(
            f"the image has dtype {x.dtype}; expected {like.dtype}, as the network has",
            hint=f"use x.to({like.dtype}), or masked.to({x.dtype})"
            if x.is_floating_point()
            else "normalise the image as the model expects",
        )


def _require_mask(mask: Tensor, x: Tensor) -> None:
    expected = f"expected bool of shape (N, 1, {', '.join(map(str, x.shape[2:]))})"
    if not isinstance(mask, Tensor):
        raise MaskError(
            f"the mask is a {type(mask).__name__}; {expected}", hint="use torch.as_tensor(mask)"
        )
    if mask.dtype != torch.bool:
        raise MaskError(
            f"the mask has dtype {mask.dtype}; {expected}, True = kept",
            hint="pass `mask > 0.5`: a pixel is either kept or hidden, never by a fraction",
        )
    if mask.dim() != x.dim() or mask.shape[1] != 1 or mask.shape[2:] != x.shape[2:]:
        raise MaskError(
            f"the mask has shape {tuple(mask.shape)}; {expected}",
            hint="one channel, the image's size; see mask[:, None] or mask[None, None]",
        )
    if mask.shape[0] != x.shape[0] and 1 not in (mask.shape[0], x.shape[0]):
        raise MaskError(
            f"{mask.shape[0]} masks for {x.shape[0]} images",
            hint="one batch size must be 1, or both the same",
        )
    if mask.device != x.device:
        raise MaskError(
            f"the mask is on {mask.device}, the image on {x.device}", hint="use mask.to(x.device)"
        )
