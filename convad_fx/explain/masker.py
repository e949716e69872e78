"""The `Masker` protocol `(x, mask) -> logits`, and the baseline that paints, `occlusion`.

A masked network switches the hidden region off inside; `occlusion` paints over the image. Both are
`Masker`s, so the rest of this package treats them alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from convad_fx.errors import ImageError, MaskError, ModelError, PolicyError
from convad_fx.explain.options import check_count
from convad_fx.explain.paint import Normalisation, blurred, inpainted, noise


class Masker(Protocol):
    """A classifier of the kept part of an image.

    >>> def brightness(x, mask):                         # two classes: dark, bright
    ...     kept = torch.where(mask, x, 0).mean((1, 2, 3))
    ...     return torch.stack([-kept, kept], 1)
    >>> brightness(torch.ones(1, 3, 8, 8), torch.ones(5, 1, 8, 8, dtype=torch.bool)).shape
    torch.Size([5, 2])

    x is (1, C, H, W) or (N, C, H, W), floating point; mask is bool (N, 1, H, W), True = kept.
    """

    def __call__(self, x: Tensor, mask: Tensor, /) -> Tensor:
        """Logits (N, classes) of the kept pixels; (N, 1) or (N,) for a single value."""
        ...


#: Names of the paints of `occlusion`.
PAINTS = (
    "zero",
    "mean",
    "black",
    "white",
    "grey",
    "image-mean",
    "blur",
    "noise",
    "inpaint",
)
_GREY_LEVELS = {"black": 0.0, "white": 1.0, "grey": 0.5}


@dataclass(frozen=True, slots=True, eq=False)
class Occlusion:
    """A model whose hidden pixels are painted over; created by `occlusion`."""

    model: Callable[[Tensor], Tensor]
    value: float | Tensor | str
    normalisation: Normalisation = Normalisation()  # noqa: RUF009 (frozen)
    sigma: float | None = None
    seed: int = 0

    @property
    def policy(self) -> dict[str, Any]:
        """How pixels are hidden, for `Explanation.policy`."""
        if isinstance(self.value, Tensor):
            return {"paint": f"tensor {tuple(self.value.shape)}"}
        recorded: dict[str, Any] = {"paint": self.value}
        if self.value in ("black", "white", "grey", "noise"):
            recorded["mean"] = list(self.normalisation.mean)
            recorded["std"] = list(self.normalisation.std)
        if self.value == "blur":
            recorded["sigma"] = self.sigma
        if self.value == "noise":
            recorded["seed"] = self.seed
        return recorded

    def __call__(self, x: Tensor, mask: Tensor, /) -> Tensor:
        """Logits (N, classes) of the painted images."""
        if isinstance(self.model, nn.Module) and self.model.training:
            raise ModelError("the model is in training mode", hint="call model.eval() first")
        return self.model(self.painted(x, mask))

    def painted(self, x: Tensor, mask: Tensor) -> Tensor:
        """The painted images (N, C, H, W), in the units of the model's input.

        Raises:
            MaskError, ImageError, PolicyError: mask, paint or normalisation do not fit the image.
        """
        if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1:
            raise MaskError(
                f"a mask is bool (N, 1, H, W), not {mask.dtype} {tuple(mask.shape)}",
                hint="pass e.g. `mask[:, None] > 0.5`, True = kept",
            )
        if mask.shape[2:] != x.shape[2:]:
            raise MaskError(
                f"a mask of {_size_text(mask)} does not fit an image of {_size_text(x)}",
                hint="resize it to the network's input",
            )
        if self.value == "inpaint":
            return inpainted(x, mask)
        # `where`, not a product: hidden values, NaN included, must not reach the model.
        return torch.where(mask, x, self._paint(x))

    def _paint(self, x: Tensor) -> float | Tensor:
        if isinstance(self.value, Tensor):
            return _broadcastable(self.value, x)
        if not isinstance(self.value, str):
            return self.value
        if self.value in _GREY_LEVELS:
            pixel = torch.full((1, x.shape[1], 1, 1), _GREY_LEVELS[self.value])
            return self.normalisation.apply(pixel, x)
        if self.value == "noise":
            # The same for every mask and every image of the same size.
            return noise(x[:1], np.random.default_rng(self.seed), self.normalisation)
        if self.value == "image-mean":
            return x.mean((2, 3), keepdim=True)
        if self.value == "blur":
            return blurred(x, min(x.shape[2:]) / 10 if self.sigma is None else self.sigma)
        return 0.0  # "zero" and "mean"


def _broadcastable(value: Tensor, x: Tensor) -> Tensor:
    paint = value.to(x)
    if paint.ndim == 1:  # one value per channel
        paint = paint[:, None, None]
    try:
        paint.expand(len(x), *x.shape[1:])
    except RuntimeError:
        raise ImageError(
            f"paint of shape {tuple(value.shape)} does not fit an image of shape {tuple(x.shape)}",
            hint="pass a number, one value per channel (C,), or an image (C, H, W)",
        ) from None
    return paint


def occlusion(
    model: Callable[[Tensor], Tensor],
    value: float | Tensor | str = 0.0,
    *,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    sigma: float | None = None,
    seed: int = 0,
) -> Occlusion:
    """A masker that paints over hidden pixels, as most perturbation explainers do.

    >>> half = occlusion(torch.nn.Flatten().eval(), 0.5)
    >>> mask = torch.tensor([[[[True, False]]]])
    >>> half(torch.ones(1, 1, 1, 2), mask)
    tensor([[1.0000, 0.5000]])
    >>> black = occlusion(torch.nn.Flatten().eval(), "black", mean=0.5, std=0.25)
    >>> black(torch.ones(1, 1, 1, 2), mask)                  # (0 - 0.5) / 0.25
    tensor([[ 1., -2.]])

    | name | hidden pixels become |
    |---|---|
    | `"zero"` | 0 in the units of the model's input |
    | `"mean"` | the mean colour that the preprocessing subtracts, which is 0 in those units |
    | `"black"`, `"white"`, `"grey"` | pixels of 0, 1, 1/2, normalised by `mean` and `std` |
    | `"image-mean"` | the image's own mean colour, hidden pixels included |
    | `"blur"` | the image, blurred by a Gaussian, hidden pixels included |
    | `"noise"` | uniform in [0, 1] per pixel and channel, normalised; the same for every mask |
    | `"inpaint"` | filled from the kept pixels around them (`paint.inpainted`) |

    With `"image-mean"` and `"blur"`, hidden pixels influence the model by definition.

    Args:
        model: images (N, C, H, W) -> logits (N, classes), in evaluation mode.
        value: the paint: one of the names; or, in the units of the model's input (so 0 is mid-grey
            for most normalised networks): a number, one number per channel (C,), or a whole image
            (C, H, W).
        mean: what the preprocessing subtracts from pixels in [0, 1]: a number, or one per channel.
            The defaults of mean and std describe a network that reads such pixels directly.
        std: what the preprocessing then divides by.
        sigma: standard deviation of the blur in pixels; None: a tenth of the shorter side.
        seed: seed of the noise, a non-negative integer.

    Raises:
        PolicyError: an unknown name; a mean, std, sigma or seed out of range.
        ModelError (when called): the model is in training mode.
        MaskError, ImageError, PolicyError (when called): mask, paint or normalisation do not fit.
    """
    if isinstance(value, str) and value not in PAINTS:
        raise PolicyError(
            f"there is no paint called {value!r}", hint=f"pass one of {', '.join(PAINTS)}"
        )
    if sigma is not None and not 0 < sigma < math.inf:
        raise PolicyError(
            f"sigma must be a positive number of pixels, not {sigma!r}",
            hint="None means a tenth of the shorter side",
        )
    check_count("seed", seed, minimum=0, hint="pass 0")
    paint = value if isinstance(value, Tensor | str) else float(value)
    per_channel = ((v,) if isinstance(v, int | float) else tuple(v) for v in (mean, std))
    return Occlusion(model, paint, Normalisation(*per_channel), sigma, seed)


def policy_of(masker: Any) -> dict[str, Any]:
    """How `masker` hides pixels: its `.policy` as a dict, empty where it has none.

    >>> policy_of(occlusion(torch.nn.Flatten(), 0.5))
    {'paint': 0.5}
    """
    policy = getattr(masker, "policy", None)
    if policy is None:
        return {}
    if is_dataclass(policy) and not isinstance(policy, type):
        return asdict(policy)
    return dict(policy) if isinstance(policy, dict) else {"policy": str(policy)}


def _size_text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[2:]))
