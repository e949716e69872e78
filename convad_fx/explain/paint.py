"""Paint for the hidden region: colours in the model's units, blur, noise, in-painting.

A network reads normalised pixels, `(p - mean) / std` for p in [0, 1]. Black is therefore not 0 but
`-mean / std`; `Normalisation` converts between the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convad_fx.errors import PolicyError


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The last step of a network's preprocessing: `(p - mean) / std` for pixels p in [0, 1].

    >>> imagenet = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    >>> black = imagenet.apply(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 4, 4))
    >>> black.flatten().tolist() == [-m / s for m, s in zip(imagenet.mean, imagenet.std)]
    False
    >>> [round(v, 3) for v in black.flatten().tolist()]
    [-2.118, -2.036, -1.804]

    Args:
        mean: one number per channel, or one for all: (0.5,).
        std: likewise; none of them zero.

    Raises:
        PolicyError: a number that is not finite, or a deviation of zero.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if not values or not all(math.isfinite(v) for v in values):
                raise PolicyError(
                    f"{name} must be finite numbers, not {values}", hint="pass one per channel"
                )
            object.__setattr__(self, name, values)
        if 0.0 in self.std:
            raise PolicyError("std must not be zero", hint="pass what the preprocessing divides by")

    def apply(self, pixels: Tensor, like: Tensor) -> Tensor:
        """Pixels (N, C, ...) in [0, 1], normalised, with the dtype and device of `like`."""
        mean, std = (self._per_channel(v, like.shape[1]) for v in (self.mean, self.std))
        normalised = (pixels.to(torch.float64) - mean) / std
        return normalised.to(like)

    def undo(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] of an input x (N, C, H, W); float64, on the CPU."""
        mean, std = (self._per_channel(v, x.shape[1]) for v in (self.mean, self.std))
        return x.detach().to("cpu", torch.float64) * std + mean

    def _per_channel(self, values: tuple[float, ...], channels: int) -> Tensor:
        if len(values) not in (1, channels):
            raise PolicyError(
                f"{len(values)} numbers do not normalise {channels} channels",
                hint="pass one per channel as mean and std, or a single one",
            )
        return torch.tensor(values, dtype=torch.float64)[:, None, None].expand(channels, 1, 1)


def noise(x: Tensor, random: np.random.Generator, normalisation: Normalisation) -> Tensor:
    """Noise shaped as x (N, C, H, W): uniform in [0, 1] per pixel and channel, then normalised."""
    pixels = torch.from_numpy(random.random(tuple(x.shape)))
    return normalisation.apply(pixels, x)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """x (N, C, H, W) convolved with a Gaussian of standard deviation `sigma` pixels.

    >>> blurred(torch.ones(1, 1, 5, 5), 2.0).round(decimals=5).unique().tolist()
    [1.0]

    At the border the weights inside the image are divided by their sum.

    Raises:
        PolicyError: sigma is not a positive finite number.
    """
    if not sigma > 0 or not math.isfinite(sigma):
        raise PolicyError(
            f"sigma must be a positive number of pixels, not {sigma!r}", hint="pass 3.0"
        )
    out = x.to(torch.promote_types(x.dtype, torch.float32))
    for axis in (2, 3):
        weights = _gaussian(x.shape[axis], sigma).to(out)
        out = torch.tensordot(out, weights, dims=([axis], [1])).movedim(-1, axis)
    return out.to(x.dtype)


def _gaussian(n: int, sigma: float) -> Tensor:
    """(n, n): row i holds the weights of the inputs of output i; rows sum to 1."""
    cells = torch.arange(n, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((cells[:, None] - cells[None]) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def inpainted(x: Tensor, mask: Tensor) -> Tensor:
    """Hidden pixels of x (N, C, H, W) filled from the kept ones around them, coarse to fine.

    >>> mask = torch.ones(1, 1, 1, 5, dtype=torch.bool)
    >>> mask[..., 1:4] = False
    >>> inpainted(torch.tensor([[[[1.0, 9, 9, 9, 1]]]]), mask)
    tensor([[[[1., 1., 1., 1., 1.]]]])

    Push and pull (Gortler et al., *The Lumigraph*, SIGGRAPH 1996, section 3.2.4): the image is
    halved repeatedly, each cell the mean of the kept cells below it; cells without a value take
    that of the coarser level. Where nothing at all is kept, the result is 0. Values of hidden
    pixels, NaN included, have no influence.

    Args:
        x: (1, C, H, W) or (N, C, H, W).
        mask: bool (N, 1, H, W), True = kept; either batch may be 1.
    """
    n = max(len(x), len(mask))
    values = torch.where(mask, x, 0).expand(n, *x.shape[1:])
    filled = _fill_from_coarser(values, mask.expand(n, -1, -1, -1).to(values.dtype))
    return torch.where(mask, x, filled)


def _fill_from_coarser(values: Tensor, weight: Tensor) -> Tensor:
    """The values where `weight` > 0 (they are 0 elsewhere), and coarser means elsewhere."""
    known = values / weight.clamp(min=torch.finfo(weight.dtype).tiny)
    if values.shape[2:] == (1, 1):
        return known * (weight > 0)
    size = values.shape[2:]
    # Windows are cut off at the border.
    coarse_values = F.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False)
    coarse_weight = F.avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)
    coarse = _fill_from_coarser(coarse_values, coarse_weight)
    smooth = F.interpolate(coarse, size=size, mode="nearest")
    return torch.where(weight > 0, known, smooth)
