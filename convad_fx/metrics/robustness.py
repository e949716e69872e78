"""`robustness`: is the class kept on other backgrounds, in the original model?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from convad_fx.errors import ImageError, ModelError, PolicyError
from convad_fx.explain.evaluator import (
    Mask,
    as_batch,
    check_answers,
    check_batch_size,
    images_per_call,
)
from convad_fx.explain.options import check_count
from convad_fx.explain.paint import Normalisation, blurred, noise
from convad_fx.explain.scores import (
    Score,
    ScoreChoice,
    activation_of,
    choose_score,
    rounding_of,
)
from convad_fx.metrics.masks import as_array

Model = Callable[[Tensor], Tensor]

#: Kinds of background that `backgrounds` makes by name.
BACKGROUNDS = ("colours", "images", "noise", "blur")


@dataclass(frozen=True, slots=True)
class Robustness:
    """On which backgrounds the class survived.

    Args:
        kept: for each background, whether the model predicted the class, or gave it the score
            required.
        confidence: the score of the class on each background; a probability by default.
    """

    kept: tuple[bool, ...]
    confidence: tuple[float, ...]

    @property
    def rho(self) -> float:
        """The share of backgrounds on which the class survived, in [0, 1]."""
        return float(np.mean(self.kept))

    def __float__(self) -> float:
        return self.rho


def backgrounds(
    image: Tensor,
    kind: str = "colours",
    n: int = 100,
    *,
    others: Sequence[Tensor] = (),
    seed: int = 0,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
) -> Iterator[Tensor]:
    """Backgrounds (1, C, H, W) of one kind, in the units of the model's input.

    >>> list(backgrounds(torch.zeros(3, 4, 4), "colours", n=2))[0].shape
    torch.Size([1, 3, 4, 4])

    Args:
        image: (C, H, W) or (1, C, H, W): its shape, and for "blur" its content.
        kind: "colours": solid colours, uniform over the unit cube, as in the paper's experiment
            (arXiv 2510.01038, section 5); "images": other images, drawn without repetition from
            `others`; "noise": every pixel and channel uniform; "blur": the image itself, blurred
            by Gaussians whose deviation grows evenly from 1/32 to 1/4 of its shorter side.
        n: number of backgrounds; of "images" at most `len(others)`.
        others: images of the same shape, as the model reads them, without the image itself.
        seed: a non-negative integer, which alone determines the stream: all images of a study get
            the same colours.
        normalisation: mean and deviation that the preprocessing subtracts and divides by: colours
            and noise are uniform in [0, 1] *before* it.

    Raises:
        PolicyError: an unknown kind, n < 1, or too few other images.
        ImageError: shapes that do not fit.
    """
    x = as_batch(image)
    check_count("n", n, minimum=1, hint="100 colours are usual")
    check_count("seed", seed, minimum=0, hint="pass 0")
    if kind not in BACKGROUNDS:
        raise PolicyError(
            f"kind must be one of {', '.join(BACKGROUNDS)}, not {kind!r}", hint="pass 'colours'"
        )
    generator = np.random.default_rng([seed, BACKGROUNDS.index(kind)])
    if kind == "images":
        if n > len(others):
            raise PolicyError(
                f"{n} backgrounds cannot be drawn from {len(others)} other images",
                hint="pass more as `others`, or a smaller n",
            )
        return _other_images(x, others, generator.permutation(len(others))[:n].tolist())
    return _generated(x, kind, n, generator, normalisation)


def _other_images(x: Tensor, others: Sequence[Tensor], indices: Sequence[int]) -> Iterator[Tensor]:
    for i in indices:
        other = as_batch(others[i])
        if other.shape != x.shape:
            raise ImageError(
                f"background {i} has shape {tuple(other.shape)}, the image {tuple(x.shape)}",
                hint="preprocess all images in the same way",
            )
        yield other.to(x)


def _generated(
    x: Tensor, kind: str, n: int, generator: np.random.Generator, normalisation: Normalisation
) -> Iterator[Tensor]:
    shorter = min(x.shape[2:])
    for i in range(n):
        if kind == "colours":
            colour = torch.from_numpy(generator.random((1, x.shape[1], 1, 1)))
            yield normalisation.apply(colour, x).expand(x.shape)
        elif kind == "noise":
            yield noise(x, generator, normalisation)
        else:
            share = i / max(1, n - 1)
            yield blurred(x, shorter * (1 / 32 + share * (1 / 4 - 1 / 32)))


def robustness(
    model: Model,
    image: Tensor,
    mask: Mask | Tensor,
    target: int,
    on: Iterator[Tensor] | Sequence[Tensor] | str = "colours",
    *,
    n: int = 100,
    others: Sequence[Tensor] = (),
    seed: int = 0,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    batch_size: int | str = "auto",
    score: ScoreChoice = None,
    at_least: float | None = None,
) -> Robustness:
    """Paste the kept pixels onto n backgrounds: how often does the model still give the class?

    >>> def red(x):                                     # class 1: there is a lot of red
    ...     amount = x[:, 0].mean((1, 2))
    ...     return torch.stack([0.4 - amount, amount - 0.4], 1)
    >>> image, mask = torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    >>> image[0], mask[:4] = 1, True                    # red all over; half of it kept
    >>> robustness(red, image, mask, target=1).rho      # the half alone exceeds 0.4
    1.0

    rho = |{b : argmax model(where(mask, image, b)) = target}| / n, as in the paper (arXiv
    2510.01038, section 5). Larger sets are more robust: report the size, or compare at equal size.
    For a class that the model does not predict on the image, pass the score that is to survive:
    `at_least=why.confidence_whole / 2`.

    Args:
        model: images (N, C, H, W) -> logits (N, classes), or a single value each, (N, 1) or (N,):
            the *original* one, in evaluation mode.
        image: (C, H, W) or (1, C, H, W), as the model reads it.
        mask: (H, W) or (1, 1, H, W), bool, True = kept.
        target: the class that is to survive.
        on: a kind of background, made by `backgrounds` from the remaining arguments; or the
            backgrounds themselves, (1, C, H, W) or (C, H, W) each.
        n, others, seed, normalisation: as in `backgrounds`.
        batch_size: images per call of the model; "auto": 16 on a CPU, else 64.
        score: as in `convad_fx.explain`.
        at_least: the score with which the class survives; None: it survives where it is predicted.

    Raises:
        ImageError, MaskError, PolicyError: an unsuitable argument.
        ModelError: the model is in training mode, or its answers are not finite logits.
    """
    x = as_batch(image)
    kept = as_array(mask, (int(x.shape[2]), int(x.shape[3])))
    check_batch_size(batch_size)
    if isinstance(on, str):
        on = backgrounds(x, on, n, others=others, seed=seed, normalisation=normalisation)
    answers = planted_logits(model, x, [kept], on, batch_size)
    found = score_of_model(model, x, answers, score)(answers, target)
    if at_least is None and found.classes == 1:
        raise PolicyError(
            "a single value predicts no class that could survive",
            hint="pass at_least, for example why.gamma * why.confidence_whole",
        )
    survived = found.predicted if at_least is None else found.confidence >= at_least
    return Robustness(tuple(survived.tolist()), tuple(found.confidence.tolist()))


def robustness_by_kind(
    model: Model,
    image: Tensor,
    mask: Mask | Tensor,
    target: int,
    kinds: Mapping[str, int],
    *,
    others: Sequence[Tensor] = (),
    seed: int = 0,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    batch_size: int | str = "auto",
    score: ScoreChoice = None,
    at_least: float | None = None,
) -> dict[str, Robustness]:
    """`robustness` for each kind of background.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> image, everything = torch.rand(3, 8, 8), np.ones((8, 8), bool)
    >>> target = int(model(image[None]).argmax())
    >>> results = robustness_by_kind(model, image, everything, target, {"colours": 10, "noise": 5})
    >>> {kind: result.rho for kind, result in results.items()}
    {'colours': 1.0, 'noise': 1.0}

    Args:
        kinds: the number of backgrounds of each kind.
        model, image, mask, target, others, seed, normalisation, batch_size, score, at_least: as in
            `robustness`.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: as `robustness`.
    """
    return {
        kind: robustness(
            model,
            image,
            mask,
            target,
            kind,
            n=n,
            others=others,
            seed=seed,
            normalisation=normalisation,
            batch_size=batch_size,
            score=score,
            at_least=at_least,
        )
        for kind, n in kinds.items()
    }


def score_of_model(model: Model, x: Tensor, answers: Tensor, score: ScoreChoice) -> Score:
    """The score to use for a model, given its answers (K, C) to any variants of x (1, C, H, W)."""
    rounding = rounding_of(x.dtype)
    activation = activation_of(answers, rounding, lambda: model(x))
    return choose_score(score, answers, activation, rounding)


def planted_logits(
    model: Model,
    x: Tensor,
    masks: Sequence[Mask],
    planted_on: Iterable[Tensor],
    batch_size: int | str,
) -> Tensor:
    """Logits (K * B, classes) of x (1, C, H, W) under each of K masks on each of B backgrounds.

    An iterator of backgrounds serves a single mask.
    """
    cells = (torch.from_numpy(np.ascontiguousarray(mask)).to(x.device) for mask in masks)
    images = (torch.where(mask, x, as_batch(b).to(x)) for mask in cells for b in planted_on)
    logits = model_logits(model, images, images_per_call(batch_size, x))
    if not len(logits):
        raise PolicyError("there are no backgrounds", hint="pass one or more")
    return logits


def model_logits(model: Model, images: Iterable[Tensor], per_call: int) -> Tensor:
    """Logits (K, classes), float64 on the CPU, of K images (1, C, H, W)."""
    if isinstance(model, nn.Module) and model.training:
        raise ModelError("the model is in training mode", hint="call model.eval() first")
    images, rows = iter(images), [torch.zeros(0, 0, dtype=torch.float64)]
    while batch := list(islice(images, per_call)):
        with torch.inference_mode():
            logits = check_answers(model(torch.cat(batch)), len(batch))
        if not logits.isfinite().all():
            raise ModelError(
                "the logits are not finite", hint="look for NaN in the images and the weights"
            )
        rows.append(logits.double().cpu())
    return torch.cat(rows[1:] or rows)
