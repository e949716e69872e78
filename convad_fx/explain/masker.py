"""What can be explained: any callable `(x, mask) -> logits`; and the baseline that paints.

A masked network switches the hidden region off inside; `occlusion` paints over it outside. Both are
`Masker`s, so everything in this package compares them like with like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from convad_fx.errors import ImageError, MaskError, ModelError


class Masker(Protocol):
    """A classifier that can be told which part of an image to look at.

    >>> def brightness(x, mask):                         # two classes: dark, bright
    ...     kept = torch.where(mask, x, 0).mean((1, 2, 3))
    ...     return torch.stack([-kept, kept], 1)
    >>> brightness(torch.ones(1, 3, 8, 8), torch.ones(5, 1, 8, 8, dtype=torch.bool)).shape
    torch.Size([5, 2])

    Args:
        x: the image, (1, C, H, W) or (N, C, H, W), floating point.
        mask: bool (N, 1, H, W), True = kept.

    Returns:
        Logits (N, classes), before any softmax.
    """

    def __call__(self, x: Tensor, mask: Tensor, /) -> Tensor:
        """Logits of what is kept."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Occlusion:
    """A model that is shown paint where the mask hides; made by `occlusion`."""

    model: Callable[[Tensor], Tensor]
    value: float | Tensor

    @property
    def policy(self) -> dict[str, float | str]:
        """What an `Explanation` says about how pixels were hidden."""
        if isinstance(self.value, Tensor):
            return {"paint": f"tensor {tuple(self.value.shape)}"}
        return {"paint": self.value}

    def __call__(self, x: Tensor, mask: Tensor, /) -> Tensor:
        """Logits (N, classes) of the painted images."""
        if isinstance(self.model, nn.Module) and self.model.training:
            raise ModelError("the model is in training mode", hint="call model.eval() first")
        if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1:
            raise MaskError(
                f"a mask is bool (N, 1, H, W), not {mask.dtype} {tuple(mask.shape)}",
                hint="pass e.g. `mask[:, None] > 0.5`, True = kept",
            )
        if mask.shape[2:] != x.shape[2:]:
            raise MaskError(
                f"a mask of {_size(mask)} does not fit an image of {_size(x)}",
                hint="make it at the size of the network's input",
            )
        # `where`, not a product: whatever is hidden, NaN included, must not reach the model.
        return self.model(torch.where(mask, x, self._paint(x)))

    def _paint(self, x: Tensor) -> float | Tensor:
        if not isinstance(self.value, Tensor):
            return self.value
        paint = self.value.to(x)
        if paint.ndim == 1:  # one value per channel
            paint = paint[:, None, None]
        try:
            paint.expand(len(x), *x.shape[1:])
        except RuntimeError:
            raise ImageError(
                f"paint of shape {tuple(self.value.shape)} does not fit an image of shape "
                f"{tuple(x.shape)}",
                hint="pass a number, one value per channel (C,), or an image (C, H, W)",
            ) from None
        return paint


def occlusion(model: Callable[[Tensor], Tensor], value: float | Tensor = 0.0) -> Occlusion:
    """The baseline: hide pixels by painting over them, as perturbation explainers usually do.

    >>> grey = occlusion(torch.nn.Flatten().eval(), 0.5)
    >>> mask = torch.tensor([[[[True, False]]]])
    >>> grey(torch.ones(1, 1, 1, 2), mask)
    tensor([[1.0000, 0.5000]])

    Args:
        model: images (N, C, H, W) -> logits (N, classes), in evaluation mode.
        value: the paint, in the units of the model's input (so 0 is mid-grey for most normalised
            networks): a number, one number per channel (C,), or a whole image (C, H, W).

    Returns:
        A `Masker`.

    Raises (when called):
        ModelError: the model is in training mode.
        MaskError, ImageError: the mask or the paint does not fit the image.
    """
    return Occlusion(model, value if isinstance(value, Tensor) else float(value))


def policy_of(masker: Any) -> dict[str, Any]:
    """How `masker` hides pixels, for the record: its `.policy` as a dict, empty where it has none.

    >>> policy_of(occlusion(torch.nn.Flatten(), 0.5))
    {'paint': 0.5}
    """
    policy = getattr(masker, "policy", None)
    if policy is None:
        return {}
    if is_dataclass(policy) and not isinstance(policy, type):
        return asdict(policy)
    return dict(policy) if isinstance(policy, dict) else {"policy": str(policy)}


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[2:]))
