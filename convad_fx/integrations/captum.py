"""Captum's perturbation methods with switching off, and the responsibility search for Captum.

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
from convad_fx.explain.scores import ScoreChoice

try:
    from captum.attr._utils.attribution import Attribution
except ImportError as error:
    raise Unavailable("captum is not installed", hint="`pip install captum`") from error


def all_kept(x: Tensor) -> Tensor:
    """The input for Captum's methods: a float mask (1, 1, *grid) of ones, for the image `x`."""
    return torch.ones(1, 1, *x.shape[2:], device=x.device)


def switching_off(masker: Masker, x: Tensor) -> Callable[..., Tensor]:
    """A forward function of the mask, for any of Captum's perturbation methods.

    The input that Captum perturbs is the *mask*, 1 = kept; Captum's default baseline, 0, means
    switched off. The function returns logits; wrap it for other scores.

    Args:
        masker: `(x, mask) -> logits`: a `MaskedModule`, or `occlusion(model)` to compare with.
        x: one image (1, C, *grid).

    Returns:
        ``forward(mask)``: float masks (N, 1, *grid) -> logits (N, classes).

    Raises:
        ImageError: `x` is not one image.
        MaskError: (when called) the mask has values other than 0 and 1.
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
                hint="use all_kept(x) as input and leave baselines out; methods that use gradients"
                " or interpolate (IntegratedGradients) cannot explain by switching off",
            )
        with torch.no_grad():
            return masker(x, kept)

    return forward


class Responsibility(Attribution):  # type: ignore[misc]
    """The causal responsibility search (ReX) as a Captum attribution method.

    >>> import torch
    >>> def corner(x, mask):                           # depends only on the top left 8 x 8 pixels
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
        score: ScoreChoice = None,
        gamma: float = 0.9,
        search: Search | None = None,
        seed: int = 0,
        perturbations_per_eval: int = 64,
        precision: str | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """The responsibility of each pixel, for every image of a batch.

        Args:
            inputs: images (N, C, *grid).
            target: the class to explain, one for all images or one per image; by default the
                network's answer. Of a class that is not that answer, the score alone is kept.
            score, gamma, search, seed, precision: as in `convad_fx.explain`.
            perturbations_per_eval: batch size of masks.
            show_progress: show a progress bar on stderr.

        Returns:
            (N, 1, *grid), in [0, 1].

        Raises:
            ImageError, ModelError, PolicyError: as `convad_fx.explain`.
        """
        targets = _targets(target, len(inputs))
        maps = []
        for x, label in zip(inputs, targets, strict=True):
            why = explain(
                self.forward_func,
                x[None],
                label,
                gamma,
                score=score,
                seed=seed,
                search=search or Search(),
                batch_size=perturbations_per_eval,
                precision=precision,
                progress=show_progress,
            )
            maps.append(torch.as_tensor(why.responsibility, dtype=torch.float32))
        return torch.stack(maps)[:, None].to(inputs.device)

    def has_convergence_delta(self) -> bool:
        """False: responsibilities do not add up to the score."""
        return False


def _targets(target: Any, count: int) -> list[int | None]:
    if isinstance(target, Tensor):
        target = target.tolist()
    if target is None or isinstance(target, int):
        return [target] * count
    if len(target) != count:
        raise ImageError(
            f"{len(target)} targets for {count} images", hint="pass one for all, or one per image"
        )
    return [int(label) for label in target]
