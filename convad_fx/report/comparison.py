"""Explain one image by several maskers, and measure how robust each explanation is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convad_fx.errors import PolicyError
from convad_fx.explain import Explanation, Occlusion, Search, explain
from convad_fx.explain.scores import LOST_BELOW, ScoreChoice
from convad_fx.metrics import Normalisation, robustness_by_kind

if TYPE_CHECKING:
    from convad_fx.explain.masker import Masker
    from convad_fx.metrics.robustness import Model


@dataclass(frozen=True, slots=True, eq=False)
class MaskerResult:
    """The explanation of one image by one masker.

    Args:
        name: of the masker, for people.
        explanation: the result of the search.
        rho: kind of background -> share of backgrounds on which the original model still gives the
            class when the explanation is planted there; see `convad_fx.metrics.robustness`.
        backgrounds: kind -> number of backgrounds.
        network_input: the painted image for the explanation's mask, (1, C, H, W), normalised;
            None if the masker does not paint.
    """

    name: str
    explanation: Explanation
    rho: Mapping[str, float]
    backgrounds: Mapping[str, int]
    network_input: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "masker": self.name,
            "rho": dict(self.rho),
            "backgrounds": dict(self.backgrounds),
            **self.explanation.to_dict(),
        }


def compare(
    maskers: Mapping[str, Masker],
    model: Model,
    image: Tensor,
    target: int | None = None,
    *,
    gamma: float = 0.9,
    score: ScoreChoice = None,
    seed: int = 0,
    search: Search = Search(),  # noqa: B008 (frozen)
    n: int = 50,
    others: Sequence[Tensor] = (),
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    batch_size: int | str = "auto",
    labels: Sequence[str] | None = None,
    progress: bool = False,
) -> tuple[MaskerResult, ...]:
    """Explain one image by several maskers, with the same search, seed and backgrounds.

    >>> import torch
    >>> from convad_fx.explain import occlusion
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> maskers = {paint: occlusion(model, paint) for paint in ("black", "white")}
    >>> black, white = compare(maskers, model, torch.rand(3, 8, 8), n=10)
    >>> black.name, sorted(black.rho), black.network_input.shape
    ('black', ['colours'], torch.Size([1, 3, 8, 8]))

    Args:
        maskers: name -> masker.
        model: images (N, C, H, W) -> logits: the original model, for `rho`.
        image: (C, H, W) or (1, C, H, W), normalised.
        target: the class; None: each masker's answer.
        gamma, seed, search, batch_size, labels, progress: as in `explain`.
        score: as in `explain`; None: what suits the first masker, for all of them.
        n: number of solid colours, and at most as many of `others`.
        others, normalisation: as in `convad_fx.metrics.robustness`.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: invalid arguments.
    """
    if not maskers:
        raise PolicyError("there is nothing to compare", hint="pass one masker or more")
    backgrounds = {"colours": n} | ({"images": min(n, len(others))} if len(others) else {})
    results = []
    for name, masker in maskers.items():
        why = explain(
            masker,
            image,
            target,
            gamma,
            score=score,
            seed=seed,
            search=search,
            batch_size=batch_size,
            labels=labels,
            progress=progress,
        )
        score = why.score if score is None else score
        planted = robustness_by_kind(
            model,
            image,
            why.mask,
            why.target,
            backgrounds,
            others=others,
            seed=seed,
            normalisation=normalisation,
            batch_size=batch_size,
            score=score,
            at_least=None if why.is_prediction else LOST_BELOW * why.confidence_whole,
        )
        rho = {kind: result.rho for kind, result in planted.items()}
        results.append(MaskerResult(name, why, rho, backgrounds, _painted(masker, image, why)))
    return tuple(results)


def _painted(masker: Masker, image: Tensor, why: Explanation) -> Tensor | None:
    if not isinstance(masker, Occlusion):
        return None
    x = image if image.ndim == 4 else image[None]
    kept = torch.from_numpy(why.mask)[None, None].to(x.device)
    return masker.painted(x, kept).cpu()
