"""Captum's perturbation methods, switching off instead of painting; and our search, as Captum's.

>>> import torch, torchvision, convad_fx
>>> from captum.attr import FeatureAblation
>>> model = torchvision.models.resnet18().eval()
>>> masked = convad_fx.convert(model, torch.zeros(1, 3, 64, 64))
>>> x = torch.rand(1, 3, 64, 64)
>>> tiles = torch.arange(64)[:, None] // 32 * 2 + torch.arange(64) // 32
>>> FeatureAblation(switching_off(masked, x)).attribute(
...     all_kept(x), target=3, feature_mask=tiles[None, None]
... ).shape
torch.Size([1, 1, 64, 64])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convad_fx.errors import ImageError, MaskError, Unavailable
from convad_fx.explain import Masker, Search, explain

try:
    from captum.attr._utils.attribution import Attribution
except ImportError as error:
    raise Unavailable("captum is not installed", hint="`pip install captum`") from error


def all_kept(x: Tensor) -> Tensor:
    """Captum's input: a mask (1, 1, *grid) of ones, as floats, for the image `x`."""
    return torch.ones(1, 1, *x.shape[2:], device=x.device)


def switching_off(masker: Masker, x: Tensor) -> Callable[..., Tensor]:
    """A forward function of the mask, for any of Captum's perturbation methods.

    Captum perturbs its input. Here that is the *mask*, 1 = kept, and its baseline 0, which is
    Captum's default, means switched off. Scores are logits; wrap the function for others.

    Args:
        masker: `(x, mask) -> logits`: a `MaskedModule`, or `occlusion(model)` to compare with.
        x: one image (1, C, *grid).

    Returns:
        ``forward(mask)``: float masks (N, 1, *grid) -> logits (N, classes).

    Raises:
        ImageError: not one image.
        MaskError: (when called) values between 0 and 1: nothing is hidden by a fraction.
    """
    if x.dim() < 3 or x.shape[0] != 1:
        raise ImageError(
            f"the image has shape {tuple(x.shape)}; expected one, (1, C, ...)",
            hint="explain one image at a time: x[i : i + 1]",
        )

    def forward(mask: Tensor, *_: Any) -> Tensor:
        kept = mask == 1
        if not bool((kept | (mask == 0)).all()):
            raise MaskError(
                "the mask has values other than 0 and 1",
                hint="use all_kept(x) as input and leave baselines out; methods that follow"
                " gradients or blend (IntegratedGradients) cannot explain by switching off",
            )
        with torch.no_grad():
            return masker(x, kept)

    return forward


class Responsibility(Attribution):  # type: ignore[misc]
    """The causal responsibility search (ReX), as a method of Captum.

    >>> import torch
    >>> def corner(x, mask):                                # sees the top left 8 x 8 pixels only
    ...     seen = torch.where(mask, x, 0)[:, 0, :8, :8].mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> attributions = Responsibility(corner).attribute(torch.ones(1, 1, 32, 32), target=1)
    >>> seen, unseen = attributions[..., :8, :8], attributions[..., 8:, 8:]
    >>> attributions.shape, bool(seen.mean() > unseen.mean())
    (torch.Size([1, 1, 32, 32]), True)

    Args:
        forward_func: `(x, mask) -> logits`: a `MaskedModule`, or `occlusion(model)`.
    """

    def __init__(self, forward_func: Masker) -> None:
        super().__init__(forward_func)

    def attribute(
        self,
        inputs: Tensor,
        target: int | list[int] | tuple[int, ...] | Tensor | None = None,
        *,
        gamma: float = 0.9,
        search: Search | None = None,
        seed: int = 0,
        perturbations_per_eval: int = 64,
        precision: str | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """How responsible each pixel is, for every image of a batch.

        Args:
            inputs: images (N, C, *grid).
            target: the class to explain, one for all images or one for each; by default the
                network's answer. It must be that answer: see `convad_fx.explain`.
            gamma, search, seed, precision: as in `convad_fx.explain`.
            perturbations_per_eval: masks that go through the network at once.
            show_progress: show a bar, on stderr.

        Returns:
            (N, 1, *grid), in [0, 1]; the same for all channels of a pixel.

        Raises:
            ImageError, ModelError, PolicyError: as `convad_fx.explain`.
        """
        targets = _targets(target, len(inputs))
        maps = []
        for x, wanted in zip(inputs, targets, strict=True):
            why = explain(
                self.forward_func,
                x[None],
                wanted,
                gamma,
                seed=seed,
                search=search or Search(),
                batch_size=perturbations_per_eval,
                precision=precision,
                progress=show_progress,
            )
            maps.append(torch.as_tensor(why.responsibility, dtype=torch.float32))
        return torch.stack(maps)[:, None].to(inputs.device)

    def has_convergence_delta(self) -> bool:
        """There is none: responsibilities do not add up to the score."""
        return False


def _targets(target: Any, count: int) -> list[int | None]:
    if isinstance(target, Tensor):
        target = target.tolist()
    if target is None or isinstance(target, int):
        return [target] * count
    if len(target) != count:
        raise ImageError(
            f"{len(target)} targets for {count} images", hint="pass one for all, or one for each"
        )
    return [int(one) for one in target]
