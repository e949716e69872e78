"""Responsibility maps in the conventions of pytorch-grad-cam, Quantus and torchmetrics.

None of these packages is imported here; docs/other-tools.md has an example of each.

>>> import torch
>>> def corner(x, mask):                           # depends only on the top left 8 x 8 pixels
...     seen = torch.where(mask, x, 0)[:, 0, :8, :8].mean((1, 2))
...     return torch.stack([0 * seen, 8 * seen - 4], 1)
>>> cam = Responsibility(corner)                        # in place of GradCAM(...)
>>> maps = cam(torch.ones(2, 1, 32, 32))
>>> maps.shape, maps.dtype, float(maps.max())
((2, 32, 32), dtype('float32'), 1.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convad_fx.compiler.policy import Policy
from convad_fx.convert import convert
from convad_fx.errors import ImageError
from convad_fx.explain import Explanation, Masker, Search, explain
from convad_fx.explain.scores import ScoreChoice
from convad_fx.module import MaskedModule

Maps = NDArray[np.float32]


def grayscale(explanations: Explanation | Sequence[Explanation]) -> Maps:
    """Responsibilities as pytorch-grad-cam's ``grayscale_cam``: (H, W) or (N, H, W), in [0, 1].

    Each map is divided by its maximum, unless that is zero.

    Raises:
        ImageError: the maps have different sizes.
    """
    if isinstance(explanations, Explanation):
        responsibility = explanations.responsibility
        scaled: Maps = (responsibility / (responsibility.max() or 1)).astype(np.float32)
        return scaled
    maps = [grayscale(explanation) for explanation in explanations]
    sizes = {one.shape for one in maps}
    if len(sizes) != 1:
        raise ImageError(
            f"{len(maps)} maps of {len(sizes)} sizes cannot be stacked",
            hint="stack maps of one size",
        )
    return np.stack(maps)


class Responsibility:
    """The responsibility search with the interface of pytorch-grad-cam's CAMs.

    `cam(input_tensor=x, targets=targets)` returns (N, H, W), float32, in [0, 1].

    Args:
        masker: `(x, mask) -> logits`: a `MaskedModule`, or `occlusion(model)`.
        options: for `convad_fx.explain`: `gamma`, `score`, `search`, `seed`, `batch_size`,
            `precision`, `progress`.

    Attributes:
        explanations: of the last call, one per image.
    """

    def __init__(self, masker: Masker, **options: Any) -> None:
        self.masker, self.options = masker, options
        self.explanations: tuple[Explanation, ...] = ()

    def __call__(self, input_tensor: Tensor, targets: Sequence[Any] | None = None) -> Maps:
        """Maps of a batch (N, C, H, W).

        Args:
            input_tensor: normalised images.
            targets: per image a class, or pytorch-grad-cam's `ClassifierOutputTarget`; by default
                the network's answer. Of a class that is not that answer, the score alone is kept.

        Raises:
            ImageError, ModelError, PolicyError: as `convad_fx.explain`.
        """
        classes = [None] * len(input_tensor) if targets is None else [_class(t) for t in targets]
        if len(classes) != len(input_tensor):
            raise ImageError(
                f"{len(classes)} targets for {len(input_tensor)} images", hint="pass one per image"
            )
        self.explanations = tuple(
            explain(self.masker, x, target, **self.options)
            for x, target in zip(input_tensor, classes, strict=True)
        )
        return grayscale(self.explanations)

    def __enter__(self) -> Responsibility:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def quantus_explain(
    model: nn.Module,
    inputs: NDArray[Any] | Tensor,
    targets: NDArray[Any] | Tensor | Sequence[int] | None = None,
    *,
    policy: Policy | None = None,
    device: Any = None,
    gamma: float = 0.9,
    score: ScoreChoice = None,
    search: Search | None = None,
    seed: int = 0,
    batch_size: int | str = "auto",
    precision: str | None = None,
    **_: Any,
) -> Maps:
    """An ``explain_func`` for Quantus: responsibilities (N, 1, H, W), in [0, 1].

    >>> import torchvision
    >>> model = torchvision.models.squeezenet1_1().eval()
    >>> images = np.zeros((1, 3, 64, 64), np.float32)
    >>> quantus_explain(model, images, search=Search(partitions=1)).shape
    (1, 1, 64, 64)

    The model is converted on every call, since some metrics of Quantus change its weights. Other
    keyword arguments of Quantus are ignored.

    Args:
        model: in eval mode; or a masked network.
        inputs: normalised images (N, C, H, W).
        targets: a class per image, the network's answer or not.
        policy: for the conversion.
        device: by default the model's.
        gamma, score, search, seed, batch_size, precision: as in `convad_fx.explain`.

    Raises:
        UnsupportedModel: regions cannot be switched off inside the model.
        ImageError, ModelError, PolicyError: as `convad_fx.explain`.
    """
    like = next(model.parameters(), torch.zeros(()))
    x = torch.as_tensor(inputs).to(device=device or like.device, dtype=like.dtype)
    masked = model if isinstance(model, MaskedModule) else convert(model, x[:1], policy)
    cam = Responsibility(
        masked,
        gamma=gamma,
        score=score,
        search=search or Search(),
        seed=seed,
        batch_size=batch_size,
        precision=precision,
    )
    maps: Maps = cam(x, None if targets is None else list(targets))[:, None]
    return maps


def _class(target: Any) -> int:
    """A class, or the class of pytorch-grad-cam's `ClassifierOutputTarget`."""
    return int(getattr(target, "category", target))


__all__ = ["Responsibility", "grayscale", "quantus_explain"]
